//! Who is a member, and who is one no longer.
//!
//! A certificate is good until it expires, so a member that is removed is refused by its name: each
//! request asks whether the name was ever removed, and if so, only the certificate with which the name
//! was taken anew is heard. Certificates that the name had before that stay refused, however many.
//! Tokens that were made by or for the name go with the member.

use std::collections::BTreeMap;

use api::grid::{MemberInfo, MemberList, Revocations, Role};
use image::{Digest, Error, Kind, Result};

use crate::ca::{CERTIFICATE_SECS, EARLY_SECS};
use crate::clock::Clock;
use crate::member::{Member, check_name};
use crate::state::State;
use crate::state::keys::encode;

/// The members of the grid. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Members {
    pub state: State,
    pub clock: Clock,
}

impl Members {
    /// Those who hold a name, in the order of the names.
    pub(crate) async fn list(&self) -> Result<MemberList> {
        let holders = self.state.holders().await?.into_iter();
        let info = |(name, holder): (String, crate::state::Holder)| MemberInfo {
            name,
            role: Some(holder.role),
            expires: Some(holder.expires),
        };
        Ok(MemberList { members: holders.map(info).collect() })
    }

    /// Frees a name and refuses whoever held it; returns the member as it was. A name that is not in
    /// the list is refused too: the list may have been lost with an earlier state.
    pub(crate) async fn remove(&self, name: &str) -> Result<MemberInfo> {
        check_name(name)?;
        let held = self.state.holder(name).await?;
        if held.as_ref().is_some_and(|(holder, _)| holder.own) {
            let what = format!("member {name}: it is the grid's own, and stays");
            return Err(Error::new(Kind::Denied, what));
        }
        let seen = held.as_ref().map(|(_, seen)| seen);
        self.state.remove_member(name, seen, self.clock.now()).await?;
        tracing::info!(name, "removed from the grid");
        let holder = held.map(|(holder, _)| holder);
        Ok(MemberInfo {
            name: name.into(),
            role: holder.as_ref().map(|h| h.role),
            expires: holder.map(|h| h.expires),
        })
    }

    /// Refuses the certificate of a node that is no more; says whether it had one. Whoever else has the name (the
    /// daemon beside `forebay up` has the admin's papers) keeps it.
    pub(crate) async fn revoke_node(&self, name: &str) -> Result<bool> {
        match self.state.holder(name).await? {
            Some((holder, _)) if holder.role == Role::Node => self.remove(name).await.map(|_| true),
            _ => Ok(false),
        }
    }

    /// Refuses who was removed.
    pub(crate) async fn check(&self, member: &Member) -> Result<()> {
        match self.state.hears(&member.name, &member.holder).await? {
            true => Ok(()),
            false => Err(removed(member)),
        }
    }

    /// The certificates that are refused; nothing of them if `known` is their version. Those of names that were
    /// removed so long ago that all their certificates have expired are not among them.
    pub(crate) async fn revocations(&self, known: Option<&str>) -> Result<Revocations> {
        let expired = self.clock.now().saturating_sub(CERTIFICATE_SECS + EARLY_SECS);
        let mut names = BTreeMap::new();
        for (name, at) in self.state.removed().await? {
            if at >= expired {
                let holder = self.state.holder(&name).await?.map(|(holder, _)| holder);
                names.insert(name, holder.map(|holder| holder.heard()).unwrap_or_default());
            }
        }
        let version = Digest::of_stored(&encode(&names)).to_string();
        let same = known == Some(&version);
        Ok(Revocations { version, names: (!same).then_some(names) })
    }
}

/// That a certificate is refused.
pub(crate) fn removed(member: &Member) -> Error {
    let what = format!(
        "the certificate is refused: {member} was removed from the grid; to come back it joins anew, with a new \
         token"
    );
    Error::new(Kind::Denied, what)
}
