//! Signed statements: PASETO v4.public tokens (Ed25519) around JSON.
//!
//! The purpose is bound in as the implicit assertion, so a ticket can never pass as a record. Times
//! inside are checked by who reads them, with a clock of their own.

use pasetors::keys::{AsymmetricPublicKey, AsymmetricSecretKey};
use pasetors::token::UntrustedToken;
use pasetors::version4::{PublicToken, V4};
use pasetors::{Public, keys::AsymmetricKeyPair, keys::Generate};

use crate::error::{Error, FormatError, Kind};

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 64 << 10;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An image record.
    Record,
    /// A ticket: the right to an image's chunks, or to push.
    Ticket,
}

impl Purpose {
    fn assertion(self) -> &'static [u8] {
        match self {
            Purpose::Record => b"forebay 1 image record",
            Purpose::Ticket => b"forebay 1 ticket",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Purpose::Record => "image record",
            Purpose::Ticket => "ticket",
        }
    }
}

/// A key that signs.
#[derive(Clone)]
pub struct SigningKey(AsymmetricSecretKey<V4>);

/// A key that verifies.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyingKey(AsymmetricPublicKey<V4>);

impl SigningKey {
    /// A fresh key. Fails only if the system has no randomness. (Randomness comes from the
    /// operating system through the signing library; nothing else here uses any.)
    #[expect(clippy::disallowed_methods, reason = "the one place where signing keys are drawn")]
    pub fn generate() -> Result<Self, Error> {
        let pair = AsymmetricKeyPair::<V4>::generate()
            .map_err(|e| Error::new(Kind::Io, format!("generating a signing key: {e:?}")))?;
        Ok(Self(pair.secret))
    }

    /// A key from its 64 bytes (seed, public key).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let key = AsymmetricSecretKey::from(bytes);
        key.map(Self).map_err(|e| Error::new(Kind::Invalid, format!("signing key: {e:?}")))
    }

    /// The key's 64 bytes. Keep them readable by their owner alone.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }

    /// The key that verifies what this one signs.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(AsymmetricPublicKey::try_from(&self.0).expect("public half of a valid key"))
    }

    /// Signs a statement.
    pub fn sign<T: serde::Serialize>(&self, purpose: Purpose, statement: &T) -> String {
        let json = serde_json::to_vec(statement).expect("our own types serialise");
        PublicToken::sign(&self.0, &json, None, Some(purpose.assertion()))
            .expect("a valid key signs a statement that is not empty")
    }
}

impl VerifyingKey {
    /// A key from its 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let key = AsymmetricPublicKey::from(bytes);
        key.map(Self).map_err(|e| Error::new(Kind::Invalid, format!("verifying key: {e:?}")))
    }

    /// The key's 32 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }

    /// Checks a token's signature and purpose, and returns what it states.
    pub fn open<T: serde::de::DeserializeOwned>(
        &self,
        purpose: Purpose,
        token: &str,
    ) -> Result<T, FormatError> {
        let what = purpose.name();
        let bad = |why: String| FormatError::Text { what, why };
        if token.len() > MAX_TOKEN {
            return Err(bad(format!("longer than {MAX_TOKEN} bytes")));
        }
        let untrusted = UntrustedToken::<Public, V4>::try_from(token)
            .map_err(|_| bad("not a v4.public token".into()))?;
        let trusted = PublicToken::verify(&self.0, &untrusted, None, Some(purpose.assertion()))
            .map_err(|_| bad("the signature is not good".into()))?;
        serde_json::from_str(trusted.payload()).map_err(|e| bad(format!("its content: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
    fn signed_for_one_purpose_is_no_good_for_another() {
        let key = SigningKey::generate().unwrap();
        let token = key.sign(Purpose::Ticket, &7);
        let verify = key.verifying_key();
        assert_eq!(verify.open::<u32>(Purpose::Ticket, &token).unwrap(), 7);
        assert!(verify.open::<u32>(Purpose::Record, &token).is_err());
        let other = SigningKey::generate().unwrap().verifying_key();
        assert!(other.open::<u32>(Purpose::Ticket, &token).is_err());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "keys of a test: any will do")]
    fn an_altered_token_is_refused_wherever_it_is_altered() {
        let key = SigningKey::generate().unwrap();
        let token = key.sign(Purpose::Record, &"something to say");
        let verify = key.verifying_key();
        for i in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).unwrap();
            assert!(verify.open::<String>(Purpose::Record, &altered).is_err(), "at {i}");
            assert!(verify.open::<String>(Purpose::Record, &token[..i]).is_err(), "cut at {i}");
        }
    }
}
