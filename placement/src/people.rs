//! People: who may use the grid by a token, without a certificate.
//!
//! A token is one text: `<address of placement>/<digest of the CA's certificate>/<name>.<secret>`. The digest lets its
//! holder know the grid; what follows is shown with each request. Placement keeps a hash of the secret alone, and looks
//! at it with each request: a token that was revoked is refused from then on.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use api::people::{NewPerson, PersonInfo, PersonList, PersonRole, PersonToken};
use image::error::At;
use image::{Digest, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::ca::Authority;
use crate::clock::Clock;
use crate::files;
use crate::member::check_name;
use crate::state::State;
use crate::state::keys::{Transaction, encode};
use crate::tls;

/// Longest life of a person's token, in seconds: two years.
pub const MAX_PERSON_SECS: u64 = 2 * 365 * 24 * 3600;
/// Most people who have a token at a time.
const MOST: usize = 1000;

/// What a person's token says.
#[derive(Clone, PartialEq, Eq)]
pub struct PersonCode {
    /// Address of placement: host and port.
    pub address: String,
    /// Digest of the CA's certificate.
    pub ca: Digest,
    /// What placement is shown: name and secret.
    pub bearer: String,
}

impl PersonCode {
    /// Reads one from a file. Refuses one that others can read.
    pub fn load(path: &Path) -> Result<Self> {
        files::read_private_text(path)?.parse().at(|| path.display())
    }
}

/// Without the secret.
impl fmt::Debug for PersonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PersonCode({}/{}/…)", self.address, self.ca)
    }
}

impl FromStr for PersonCode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text is a secret: it is not shown.
        let why =
            "token: it must be <address>/<digest of the CA>/<name>.<secret>, as it was printed";
        let bad = || Error::new(Kind::Invalid, why);
        let mut parts = text.trim().rsplitn(3, '/');
        let (Some(bearer), Some(ca), Some(address)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        named(bearer).ok_or_else(bad)?;
        if address.is_empty() {
            return Err(bad());
        }
        let ca = ca.parse().map_err(|_| bad())?;
        Ok(Self { address: address.into(), ca, bearer: bearer.into() })
    }
}

/// Name and secret of what is shown.
fn named(bearer: &str) -> Option<(&str, &str)> {
    let (name, secret) = bearer.rsplit_once('.')?;
    let good = check_name(name).is_ok() && secret.parse::<Digest>().is_ok();
    good.then_some((name, secret))
}

/// A person, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    role: PersonRole,
    /// Of the secret, which has 256 bits of randomness: a plain hash of it gives nothing away.
    hash: Digest,
    created: u64,
    expires: u64,
    by: String,
}

impl Kept {
    fn info(self, name: String) -> PersonInfo {
        let Self { role, created, expires, by, .. } = self;
        PersonInfo { name, role, created, expires, by }
    }
}

/// Who has shown a good token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    pub name: String,
    pub role: PersonRole,
}

impl fmt::Display for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token:{} ({})", self.name, self.role.name())
    }
}

/// The people who have tokens. Cheap to clone.
#[derive(Clone)]
pub(crate) struct People {
    pub state: State,
    pub clock: Clock,
    pub authority: Arc<Authority>,
    /// The address that tokens name.
    pub address: Arc<str>,
}

fn key(name: &str) -> String {
    format!("people/{name}")
}

impl People {
    /// Makes a token. Of those that are over one makes room.
    pub(crate) async fn make(&self, asked: &NewPerson, by: &str) -> Result<PersonToken> {
        check_name(&asked.name)?;
        if !(1..=MAX_PERSON_SECS).contains(&asked.lifetime_secs) {
            let what = format!("lifetime_secs: must be 1 to {MAX_PERSON_SECS}");
            return Err(Error::new(Kind::Invalid, what));
        }
        let now = self.clock.now();
        if self.good(now).await?.len() >= MOST {
            let what = format!("{MOST} people have tokens: revoke one that is not needed any more");
            return Err(Error::new(Kind::Full, what));
        }
        let there = self.state.get::<Kept>(&key(&asked.name)).await?;
        let taken = || {
            let name = &asked.name;
            let what = format!("token {name}: there is one; `forebay token revoke {name}` first");
            Error::new(Kind::Conflict, what)
        };
        if there.as_ref().is_some_and(|(kept, _)| now < kept.expires) {
            return Err(taken());
        }
        let mut secret = [0; 32];
        tls::random(&mut secret)?;
        let secret = Digest(secret).to_string();
        let expires = now + asked.lifetime_secs;
        let (role, by) = (asked.role, by.to_owned());
        let kept = Kept { role, hash: hash(&secret), created: now, expires, by };
        let make = Transaction::default()
            .unchanged(&key(&asked.name), there.as_ref().map(|(_, seen)| seen))
            .put(&key(&asked.name), encode(&kept));
        match self.state.commit(make).await {
            Err(error) if error.kind() == Kind::Conflict => return Err(taken()),
            done => done?,
        }
        let (address, ca) = (&self.address, self.authority.ca_digest());
        Ok(PersonToken { token: format!("{address}/{ca}/{}.{secret}", asked.name), expires })
    }

    /// Who has a token that is good. The others are forgotten.
    pub(crate) async fn list(&self) -> Result<PersonList> {
        let people = self.good(self.clock.now()).await?;
        Ok(PersonList { people })
    }

    async fn good(&self, now: u64) -> Result<Vec<PersonInfo>> {
        let mut good = Vec::new();
        for (name, kept, seen) in self.state.list_versioned::<Kept>("people/").await? {
            if now < kept.expires {
                good.push(kept.info(name));
                continue;
            }
            let forget = Transaction::default().unchanged(&key(&name), Some(&seen));
            match self.state.commit(forget.delete(&key(&name))).await {
                Err(error) if error.kind() != Kind::Conflict => return Err(error),
                _ => {}
            }
        }
        Ok(good)
    }

    /// Refuses a token from now on; returns the person as it was.
    pub(crate) async fn revoke(&self, name: &str) -> Result<PersonInfo> {
        check_name(name)?;
        let found = self.state.get::<Kept>(&key(name)).await?;
        let gone = || Error::new(Kind::Gone, format!("token {name}: there is none"));
        let (kept, seen) = found.ok_or_else(gone)?;
        let revoke = Transaction::default().unchanged(&key(name), Some(&seen)).delete(&key(name));
        match self.state.commit(revoke).await {
            Err(error) if error.kind() == Kind::Conflict => Err(gone()),
            done => done.map(|()| kept.info(name.to_owned())),
        }
    }

    /// Whose token this is. That there is none of the name, that the secret is another one, and that it is over
    /// are told in the same words.
    pub(crate) async fn check(&self, bearer: &str) -> Result<Person> {
        let unknown = || {
            let what = "token: not known, revoked, or expired; ask an admin for a new one";
            Error::new(Kind::Denied, what)
        };
        // The whole text may be shown, too.
        let bearer = bearer.rsplit('/').next().unwrap_or_default();
        let (name, secret) = named(bearer).ok_or_else(unknown)?;
        let found = self.state.get::<Kept>(&key(name)).await?;
        let (kept, _) = found.ok_or_else(unknown)?;
        // Which compares in the same time, however much of it is right.
        let same = blake3::Hash::from(kept.hash.0) == blake3::Hash::from(hash(secret).0);
        match same && self.clock.now() < kept.expires {
            true => Ok(Person { name: name.into(), role: kept.role }),
            false => Err(unknown()),
        }
    }
}

fn hash(secret: &str) -> Digest {
    Digest::of_stored(secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_token_is_refused_and_not_shown() {
        let secret = "ab".repeat(32);
        let good = format!("h:1/{}/alice.{secret}", Digest([7; 32]));
        let code: PersonCode = good.parse().unwrap();
        assert_eq!((&*code.address, code.bearer), ("h:1", format!("alice.{secret}")));
        assert!(!format!("{:?}", good.parse::<PersonCode>().unwrap()).contains(&secret));
        for bad in ["", "/", "a/b/c", &good[1..good.len() - 1], &good.replace("alice", "A_b")] {
            let error = bad.parse::<PersonCode>().unwrap_err();
            assert!(error.kind() == Kind::Invalid && !error.message().contains(&secret), "{bad}");
        }
    }
}
