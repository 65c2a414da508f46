//! Who is a member, and who is one no longer.
//!
//! A certificate is good until it expires, so a member that is removed is refused by its name: each
//! request asks whether the name was ever removed, and if so, only the certificate with which the name
//! was taken anew is heard. Certificates that the name had before that stay refused, however many.
//! Tokens that were made by or for the name go with the member.

use api::grid::{MemberInfo, MemberList, Role};
use image::{Error, Kind, Result};

use crate::clock::Clock;
use crate::member::{Member, check_name};
use crate::state::State;

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
        if self.state.hears(&member.name, &member.holder).await? {
            return Ok(());
        }
        let what = format!(
            "the certificate is refused: {member} was removed from the grid; to come back it joins anew, with a new \
             token"
        );
        Err(Error::new(Kind::Denied, what))
    }
}
