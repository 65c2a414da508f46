//! Tickets: short-lived signed rights, bound to the certificate of who may use them.

use image::signing::{Purpose, SigningKey, VerifyingKey};
use image::{Digest, Domain, Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// Seconds that a session opened with a ticket outlives it, while placement is away.
pub const GRACE_SECS: u64 = 15 * 60;
/// Seconds that a ticket is good for.
pub const LIFETIME_SECS: u64 = 10 * 60;
/// Seconds by which clocks of different machines may differ.
pub const SKEW_SECS: u64 = 30;

/// What a ticket allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "right")]
pub enum Grant {
    /// To read one image's chunks.
    Pull {
        /// The image.
        image: Digest,
    },
    /// To push images into a domain, leaning on the chunks of `parent` if one is named.
    Push {
        /// The trust domain.
        domain: u32,
        /// An image that the pusher may read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<Digest>,
    },
}

/// A ticket's statement, as PASETO v4.public JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Version of the ticket format.
    pub version: u32,
    /// What it allows.
    pub grant: Grant,
    /// Who may use it: [`holder_of`] that certificate.
    pub holder: Digest,
    /// When it was issued, in seconds since 1970.
    pub issued: u64,
    /// Until when a session may be opened with it, in seconds since 1970.
    pub expires: u64,
}

/// The name by which a ticket knows a certificate (DER bytes).
pub fn holder_of(certificate: &[u8]) -> Digest {
    Digest::of_stored(certificate)
}

/// The domain a push ticket is for, refused if this version does not implement it.
pub fn push_domain(domain: u32) -> Result<Domain> {
    Ok(Domain(domain).check("ticket")?)
}

impl Ticket {
    /// The version that this program writes and reads.
    pub const VERSION: u32 = 1;

    /// A ticket from `now` on (seconds since 1970) for [`LIFETIME_SECS`].
    pub fn new(grant: Grant, holder: Digest, now: u64) -> Self {
        Self { version: Self::VERSION, grant, holder, issued: now, expires: now + LIFETIME_SECS }
    }

    /// The signed token.
    pub fn sign(&self, key: &SigningKey) -> String {
        key.sign(Purpose::Ticket, self)
    }

    /// Checks a token: signature, version, holder and time (`now` in seconds since 1970).
    pub fn open(token: &str, key: &VerifyingKey, holder: &Digest, now: u64) -> Result<Self> {
        let denied = |why: &str| Error::new(Kind::Denied, format!("ticket: {why}"));
        let ticket: Self = key
            .open(Purpose::Ticket, token)
            .map_err(|e| Error::new(Kind::Denied, e.to_string()))?;
        if ticket.version != Self::VERSION {
            let version = ticket.version;
            return Err(Error::new(Kind::Unsupported, format!("ticket: version {version}")));
        }
        if ticket.holder != *holder {
            return Err(denied("it was issued to another certificate"));
        }
        if now > ticket.expires.saturating_add(SKEW_SECS) {
            return Err(denied("it has expired"));
        }
        if now.saturating_add(SKEW_SECS) < ticket.issued {
            return Err(denied("it is not valid yet; check the clocks"));
        }
        Ok(ticket)
    }

    /// Whether a session that was opened with it may still ask, `now` in seconds since 1970.
    pub fn session_good(&self, now: u64) -> bool {
        now <= self.expires.saturating_add(GRACE_SECS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
    fn only_its_holder_may_use_it_and_only_in_time() {
        let key = SigningKey::generate().unwrap();
        let verify = key.verifying_key();
        let (me, other) = (holder_of(b"my certificate"), holder_of(b"another"));
        let grant = Grant::Pull { image: Digest::of_chunk(b"image") };
        let token = Ticket::new(grant.clone(), me, 1000).sign(&key);
        assert_eq!(Ticket::open(&token, &verify, &me, 1000).unwrap().grant, grant);
        let late = 1000 + LIFETIME_SECS + SKEW_SECS;
        assert!(Ticket::open(&token, &verify, &me, late).is_ok());
        for (holder, now) in [(other, 1000), (me, late + 1), (me, 900)] {
            assert_eq!(
                Ticket::open(&token, &verify, &holder, now).unwrap_err().kind(),
                Kind::Denied
            );
        }
        let alien = SigningKey::generate().unwrap();
        let forged = Ticket::new(grant, me, 1000).sign(&alien);
        assert_eq!(Ticket::open(&forged, &verify, &me, 1000).unwrap_err().kind(), Kind::Denied);
    }
}
