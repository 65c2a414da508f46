//! Join tokens, and what comes of them: a new member's certificate.
//!
//! A token is one text: `<addresses of placement>/<digest of the CA's certificate>/<secret>`. The digest
//! lets the new machine know its grid before it trusts anything; the secret lets the grid know the
//! machine, once. Placement keeps only a hash of the secret.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use api::grid::{JoinAnswer, JoinRequest, JoinToken, NewToken, RenewRequest};
use api::ticket::holder_of;
use image::{Digest, Error, Kind, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::ca::Authority;
use crate::clock::Clock;
use crate::member::{Member, PLACEMENT, check_name, dns_name};
use crate::state::keys::Versioned;
use crate::state::{Holder, Issuer, State, Token};
use crate::tls;

/// Longest life of a token, in seconds.
pub const MAX_LIFETIME_SECS: u64 = 30 * 24 * 3600;

/// What a join token's text says.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinCode {
    /// Addresses of placement: host and port each, with commas in between.
    pub address: String,
    /// Digest of the CA's certificate.
    pub ca: Digest,
    /// The secret: 64 hex digits.
    pub secret: String,
}

impl fmt::Display for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.address, self.ca, self.secret)
    }
}

/// Without the secret.
impl fmt::Debug for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinCode({}/{}/…)", self.address, self.ca)
    }
}

impl FromStr for JoinCode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text is a secret: it is not shown.
        let why = "join token: it must be <address>/<digest of the CA>/<secret>, as it was printed";
        let bad = || Error::new(Kind::Invalid, why);
        let mut parts = text.trim().rsplitn(3, '/');
        let (Some(secret), Some(ca), Some(address)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        secret.parse::<Digest>().map_err(|_| bad())?;
        if address.is_empty() {
            return Err(bad());
        }
        let ca = ca.parse().map_err(|_| bad())?;
        Ok(Self { address: address.into(), ca, secret: secret.into() })
    }
}

/// Makes tokens, and takes them.
pub(crate) struct Tokens {
    pub state: State,
    pub authority: Arc<Authority>,
    pub clock: Clock,
    /// The addresses that tokens name.
    pub address: String,
}

impl Tokens {
    pub(crate) async fn make(&self, asked: &NewToken, by: &Member) -> Result<JoinToken> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        if !(1..=MAX_LIFETIME_SECS).contains(&asked.lifetime_secs) {
            return invalid(format!("lifetime_secs: must be 1 to {MAX_LIFETIME_SECS}"));
        }
        if let Some(name) = &asked.name {
            free_to_ask(name)?;
        }
        let now = self.clock.now();
        self.state.drop_expired_tokens(now).await?;
        let mut secret = [0; 32];
        tls::random(&mut secret)?;
        let secret = Digest(secret).to_string();
        let expires = now + asked.lifetime_secs;
        let issuer = Some(Issuer { name: by.name.clone(), certificate: by.holder });
        let token = Token { role: asked.role, name: asked.name.clone(), expires, issuer };
        self.state.add_token(&hash(&secret), &token).await?;
        let code =
            JoinCode { address: self.address.clone(), ca: self.authority.ca_digest(), secret };
        Ok(JoinToken { token: code.to_string(), expires })
    }

    /// Everything that can be wrong with the request is found before the token is used up; the
    /// certificate leaves only after.
    pub(crate) async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer> {
        let now = self.clock.now();
        let hash = hash(&request.secret);
        let token = self.state.token(&hash).await?.filter(|t| now < t.expires);
        let token = token.ok_or_else(unknown_token)?;
        // One that was made while its maker was being removed is not dropped with the others.
        if let Some(Issuer { name, certificate }) = &token.issuer
            && !self.state.hears(name, certificate).await?
        {
            return Err(unknown_token());
        }
        free_to_ask(&request.name)?;
        let seen = self.may_take(&token, &request.name, now).await?;
        let (role, name) = (token.role, request.name.as_str());
        let certificate = self.authority.sign_request(&request.request, role, name, now)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| Error::caused(Kind::Io, "the certificate that was signed", e))?;
        let expires = now + self.authority.validity();
        let certified = Some(holder_of(&der));
        let holder = Holder { role, expires, certificate: certified, before: None, own: false };
        // The node of that name that was forgotten was another.
        crate::fleet::life::welcome(&self.state, name).await?;
        match self.state.redeem(&hash, name, seen.as_ref(), &holder).await {
            Err(e) if e.kind() == Kind::Conflict => {
                let what = "join token: it, or the name, was taken by somebody else just now";
                return Err(Error::new(Kind::Conflict, what));
            }
            done => done?,
        }
        tracing::info!(name, role = role.name(), "joined the grid");
        Ok(self.answer(certificate))
    }

    /// A new certificate for a member, which shows its present one. That stays good until it expires.
    ///
    /// # Errors
    ///
    /// [`Kind::Denied`] if placement goes by the name itself, or the role is not the member's; [`Kind::Gone`] if
    /// nobody of that name is known.
    pub(crate) async fn renew(&self, member: &Member, asked: &RenewRequest) -> Result<JoinAnswer> {
        let (name, role, now) = (member.name.as_str(), member.role, self.clock.now());
        let unknown = || {
            let what =
                format!("{member}: no member is known of that name: join anew, with a new token");
            Error::new(Kind::Gone, what)
        };
        let (before, seen) = self.state.holder(name).await?.ok_or_else(unknown)?;
        if before.own || before.role != role {
            let what = format!("{member}: its certificate is not renewed here");
            return Err(Error::new(Kind::Denied, what));
        }
        let certificate = self.authority.sign_request(&asked.request, role, name, now)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| Error::caused(Kind::Io, "the certificate that was signed", e))?;
        let holder = Holder {
            expires: now + self.authority.validity(),
            certificate: Some(holder_of(&der)),
            before: Some(member.holder),
            ..before
        };
        match self.state.renew(name, &seen, &holder).await {
            Err(e) if e.kind() == Kind::Conflict => {
                let what = format!("{member}: it was changed by somebody else just now");
                return Err(Error::new(Kind::Retry, what));
            }
            done => done?,
        }
        tracing::info!(name, "has a new certificate");
        Ok(self.answer(certificate))
    }

    fn answer(&self, certificate: String) -> JoinAnswer {
        let (grid, ca) = (self.authority.grid().into(), self.authority.ca_pem().into());
        JoinAnswer { grid, certificate, ca }
    }

    /// Whether this token gives this name: a name that is held goes only to a token made for it.
    /// Else who has any token could step into the place of another member.
    async fn may_take(&self, token: &Token, name: &str, now: u64) -> Result<Option<Versioned>> {
        let held = self.state.holder(name).await?;
        let denied = |what: String| Err(Error::new(Kind::Denied, what));
        if let Some(only) = &token.name {
            if only != name {
                return denied(format!("name `{name}`: the token is for `{only}`"));
            }
        } else if let Some((holder, _)) = held.as_ref().filter(|(h, _)| h.own || now < h.expires) {
            let role = holder.role.name();
            return denied(format!(
                "name `{name}`: a member ({role}) has it; take another, or a token made for this name"
            ));
        }
        Ok(held.map(|(_, version)| version))
    }
}

/// Refuses names that are no member's to have.
fn free_to_ask(name: &str) -> Result<()> {
    check_name(name)?;
    if dns_name(name) == PLACEMENT {
        let what = format!("name `{name}`: it is placement's own");
        return Err(Error::new(Kind::Denied, what));
    }
    Ok(())
}

/// The same for a token that never was, was used, went with a member, or has expired: nothing to learn
/// by trying.
fn unknown_token() -> Error {
    let what = "join token: not known, used already, or expired; ask an admin for a new one";
    Error::new(Kind::Denied, what)
}

/// A secret has 256 bits of randomness: a plain hash of it gives nothing away.
fn hash(secret: &str) -> Digest {
    Digest::of_stored(secret.as_bytes())
}
