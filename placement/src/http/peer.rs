//! Who asks: the other end of a connection, or the person whose token it shows.

use std::net::SocketAddr;
use std::sync::Arc;

use api::grid::Role;
use api::people::PersonRole;
use image::{Error, Kind, Result};
use rustls::pki_types::CertificateDer;

use super::access::Who;
use crate::member::Member;
use crate::people::Person;

/// The other end of a connection. TLS has checked its certificate, if it showed one; the guard its token.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub address: SocketAddr,
    identity: Identity,
}

#[derive(Clone, Debug)]
enum Identity {
    Nobody,
    Member(Arc<Member>),
    Person(Arc<Person>),
    /// The CA issued the certificate, but it is no member's of this grid.
    Refused(String),
}

impl Peer {
    pub(super) fn new(
        address: SocketAddr,
        certificates: Option<&[CertificateDer<'_>]>,
        grid: &str,
    ) -> Self {
        let identity = match certificates.and_then(<[_]>::first) {
            None => Identity::Nobody,
            Some(certificate) => match Member::from_certificate(certificate) {
                Ok(member) if member.grid == grid => Identity::Member(Arc::new(member)),
                Ok(member) => Identity::Refused(format!("it is of grid {}", member.grid)),
                Err(e) => Identity::Refused(e.to_string()),
            },
        };
        Self { address, identity }
    }

    /// The same end of the connection, as a member.
    #[cfg(test)]
    pub(super) fn as_member(&self, member: Member) -> Self {
        Self { address: self.address, identity: Identity::Member(Arc::new(member)) }
    }

    /// The same end of the connection, as the person whose token it shows.
    pub(super) fn as_person(&self, person: Person) -> Self {
        Self { address: self.address, identity: Identity::Person(Arc::new(person)) }
    }

    /// Who asks, in the words of the table of routes.
    pub(super) fn who(&self) -> Who {
        match &self.identity {
            Identity::Nobody | Identity::Refused(_) => Who::Nobody,
            Identity::Member(member) => member.role.into(),
            Identity::Person(person) => person.role.into(),
        }
    }

    /// The member, if it is one.
    pub(super) fn member(&self) -> Result<&Arc<Member>> {
        let denied = |what: String| Err(Error::new(Kind::Denied, what));
        match &self.identity {
            Identity::Member(member) => Ok(member),
            Identity::Person(person) => {
                denied(format!("{person}: a member's certificate is needed here, no token does"))
            }
            Identity::Nobody => denied(
                "a member's certificate is needed, or a person's token; join the grid first".into(),
            ),
            Identity::Refused(why) => denied(format!("the certificate is refused: {why}")),
        }
    }

    /// What it is called where it is kept who did something: a member's name, or `token:` and a person's, which no
    /// member's name can be.
    pub(super) fn name(&self) -> Result<String> {
        match &self.identity {
            Identity::Person(person) => Ok(format!("token:{}", person.name)),
            _ => Ok(self.member()?.name.clone()),
        }
    }

    /// Whether it is an admin, by certificate or token.
    pub(super) fn is_admin(&self) -> bool {
        match &self.identity {
            Identity::Member(member) => member.role == Role::Admin,
            Identity::Person(person) => person.role == PersonRole::Admin,
            Identity::Nobody | Identity::Refused(_) => false,
        }
    }

    /// The role in its certificate, or of its token.
    pub(super) fn role(&self) -> Result<&'static str> {
        match &self.identity {
            Identity::Person(person) => Ok(person.role.name()),
            _ => Ok(self.member()?.role.name()),
        }
    }

    /// Whether the grid knows it.
    pub(super) fn is_known(&self) -> bool {
        matches!(self.identity, Identity::Member(_) | Identity::Person(_))
    }

    /// Who it is, without where it is.
    pub(super) fn identity(&self) -> String {
        match &self.identity {
            Identity::Member(member) => member.to_string(),
            Identity::Person(person) => person.to_string(),
            Identity::Nobody => "nobody".into(),
            Identity::Refused(_) => "refused".into(),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.identity {
            Identity::Refused(why) => write!(f, "refused ({why}) at {}", self.address),
            _ => write!(f, "{} at {}", self.identity(), self.address),
        }
    }
}
