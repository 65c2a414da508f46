//! Who is at the other end of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use image::{Error, Kind, Result};
use rustls::pki_types::CertificateDer;

use crate::member::Member;

/// The other end of a connection. TLS has checked its certificate, if it showed one.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub address: SocketAddr,
    identity: Identity,
}

#[derive(Clone, Debug)]
enum Identity {
    Nobody,
    Member(Arc<Member>),
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

    /// The member, if it is one.
    pub(super) fn member(&self) -> Result<&Arc<Member>> {
        let denied = |what: String| Err(Error::new(Kind::Denied, what));
        match &self.identity {
            Identity::Member(member) => Ok(member),
            Identity::Nobody => {
                denied("a member's certificate is needed; join the grid first".into())
            }
            Identity::Refused(why) => denied(format!("the certificate is refused: {why}")),
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.identity {
            Identity::Member(member) => write!(f, "{member} at {}", self.address),
            Identity::Nobody => write!(f, "nobody at {}", self.address),
            Identity::Refused(why) => write!(f, "refused ({why}) at {}", self.address),
        }
    }
}
