//! The other end of placement's API: one method per route.

mod care;
mod fleet;
mod people;
mod wire;

pub use care::CareClient;

use std::time::Duration;

use api::catalog::{
    GcReport, GcRequest, ImageInfo, ImageList, MoveRef, NewRecord, RefInfo, StoreReport,
    TicketAnswer, TicketRequest, VerifyReport, VerifyRequest, VerifyStoreRequest,
};
use api::grid::{
    CacheInfo, CacheList, Health, JoinAnswer, JoinRequest, JoinToken, Lease, MemberInfo,
    MemberList, NewToken, PlacementStatus, RenewRequest, Revocations, Serving,
};
use api::page::{Listed, Paged};
use api::trace::{TraceBody, TraceInfo};
use hyper::Method;
use image::error::At;
use image::{BootTrace, Digest, Error, Kind, Ref, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ca::new_key;
use crate::clock::Clock;
use crate::member::{PLACEMENT, check_name};
use crate::papers::Papers;
use crate::people::PersonCode;
use crate::tls;
use crate::tokens::JoinCode;
use wire::{Patience, Repeat, Wire};

const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Asks placement. Cheap to clone; needs a tokio runtime. A call that is dropped is cancelled.
///
/// Nothing is repeated by itself, unless [that is wished](Client::asking_again). A call that fails with `Retry` may be made
/// again, but of a move of a ref one must look first whether it was done.
#[derive(Clone, Debug)]
pub struct Client {
    wire: Wire,
}

impl Client {
    /// A client of the placement at `address` (`host:port` or `https://host:port`). Whatever the
    /// address, the server must prove to be the placement of the papers' grid.
    pub fn new(address: &str, papers: &Papers) -> Result<Self> {
        papers.check()?;
        let config = tls::client(papers, ALPN, &Clock::system())?;
        Ok(Self { wire: Wire::new("placement", "forebay up", PLACEMENT, address, config)? })
    }

    /// A client of the placement that a person's token names. Whatever the address, the server must prove to be
    /// the placement of the token's grid.
    pub fn with_token(code: &PersonCode) -> Result<Self> {
        let tls = tls::joiner(code.ca, ALPN, &Clock::system())?;
        let wire = Wire::new("placement", "forebay up", PLACEMENT, &code.address, tls)?;
        Ok(Self { wire: wire.bearing(&code.bearer)? })
    }

    /// The same, asking again for so long what may be asked again (all that changes nothing, and what says so) if placement was
    /// reached and the connection broke, or its answer is `Retry`: the one that led has died, and another is about to lead.
    #[must_use]
    pub fn asking_again(self, most: Duration) -> Self {
        Self { wire: self.wire.again(most) }
    }

    /// Joins a grid: makes a key, which stays here, and has a certificate issued for it. `token` is the
    /// text that an admin was given; the name must be free in the grid.
    pub async fn join(token: &str, name: &str) -> Result<Papers> {
        let code: JoinCode = token.parse()?;
        // Found here, it does not cost the token.
        check_name(name)?;
        let clock = Clock::system();
        let tls = tls::joiner(code.ca, ALPN, &clock)?;
        let wire = Wire::new("placement", "forebay up", PLACEMENT, &code.address, tls)?;
        let (key_pem, request) = signing_request()?;
        let body = JoinRequest { secret: code.secret, name: name.into(), request };
        let client = Self { wire };
        let answer: JoinAnswer = client.send(Method::POST, "/v1/join", Some(&body)).await?;
        let papers = Papers { ca_pem: answer.ca, cert_pem: answer.certificate, key_pem };
        check_joined(&papers, &code.ca, name, &answer.grid, clock.now())
            .at(|| format!("placement at {}: the papers that it issued", client.wire.address()))?;
        Ok(papers)
    }

    /// Has a new certificate issued to who has these papers, which are this client's, for a new key, which stays here.
    pub async fn renew(&self, papers: &Papers) -> Result<Papers> {
        let (key_pem, request) = signing_request()?;
        let body = RenewRequest { request };
        let answer: JoinAnswer = self.send(Method::POST, "/v1/renew", Some(&body)).await?;
        let new = Papers { ca_pem: answer.ca, cert_pem: answer.certificate, key_pem };
        let (name, now) = (papers.member()?.name, Clock::system().now());
        check_joined(&new, &papers.ca_digest()?, &name, &answer.grid, now)
            .at(|| format!("placement at {}: the papers that it issued", self.wire.address()))?;
        Ok(new)
    }

    /// The certificates that are refused, if they are not those of a version that is known.
    pub async fn revocations(&self, known: &str) -> Result<Revocations> {
        match known {
            "" => self.get("/v1/revoked").await,
            known => self.get(&format!("/v1/revoked?known={}", segment(known)?)).await,
        }
    }

    /// That placement serves, and for which grid.
    pub async fn health(&self) -> Result<Health> {
        self.get("/v1/health").await
    }

    /// Which placement answers, and which leads.
    pub async fn placement(&self) -> Result<PlacementStatus> {
        self.get("/v1/placement").await
    }

    /// The servers of chunks.
    pub async fn caches(&self) -> Result<CacheList> {
        self.all("/v1/caches").await
    }

    /// Says that the cache of these papers serves; to be said again before the lease ends.
    pub async fn serving(&self, name: &str, at: &Serving) -> Result<Lease> {
        self.send(Method::PUT, &format!("/v1/caches/{}", segment(name)?), Some(at)).await
    }

    /// Says that a cache serves no longer; returns it as it was.
    pub async fn leave(&self, name: &str) -> Result<CacheInfo> {
        let path = format!("/v1/caches/{}", segment(name)?);
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    /// Makes a one-time token to join.
    pub async fn new_token(&self, asked: &NewToken) -> Result<JoinToken> {
        self.send(Method::POST, "/v1/tokens", Some(asked)).await
    }

    /// Who may use the grid.
    pub async fn members(&self) -> Result<MemberList> {
        self.all("/v1/members").await
    }

    /// Frees a name and refuses whoever held it; returns the member as it was.
    pub async fn remove_member(&self, name: &str) -> Result<MemberInfo> {
        let path = format!("/v1/members/{}", segment(name)?);
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    /// One line per ref.
    pub async fn images(&self) -> Result<ImageList> {
        self.all_images("/v1/images").await
    }

    /// The same, and what these images were made from. An older placement does not say.
    pub async fn lineage(&self) -> Result<ImageList> {
        self.all_images("/v1/images?ancestors=true").await
    }

    /// What is known of an image; `name` is a ref or a digest.
    pub async fn image(&self, name: &str) -> Result<ImageInfo> {
        self.get(&format!("/v1/images/{}", segment(name)?)).await
    }

    /// Says something of an image.
    pub async fn record(&self, image: &Digest, said: &NewRecord) -> Result<ImageInfo> {
        self.send(Method::POST, &format!("/v1/images/{image}/record"), Some(said)).await
    }

    /// What an image's guests touch when they start; nothing while nobody has recorded it. An older placement
    /// has none either.
    pub async fn trace(&self, name: &str) -> Result<Option<BootTrace>> {
        let path = format!("/v1/images/{}/trace", segment(name)?);
        match self.get::<TraceBody>(&path).await {
            Ok(body) => body.open().map(Some),
            Err(e) if e.kind() == Kind::Gone => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Says how one guest of an image started.
    pub async fn add_trace(&self, recording: &BootTrace) -> Result<TraceInfo> {
        let path = format!("/v1/images/{}/trace", recording.image());
        self.send(Method::POST, &path, Some(&TraceBody::from(recording))).await
    }

    /// Verifies a stored image; `name` is a ref or a digest. Takes as long as it takes.
    pub async fn verify(&self, name: &str, asked: &VerifyRequest) -> Result<VerifyReport> {
        let path = format!("/v1/images/{}/verify", segment(name)?);
        self.ask(Method::POST, &path, Some(asked), Patience::Endless).await
    }

    /// Verifies the store, or a sample of it. Takes as long as it takes.
    pub async fn verify_store(&self, asked: &VerifyStoreRequest) -> Result<StoreReport> {
        self.ask(Method::POST, "/v1/store/verify", Some(asked), Patience::Endless).await
    }

    /// Moves or makes a ref. An error other than `Conflict` leaves open whether it moved.
    pub async fn move_ref(&self, name: &Ref, to: &MoveRef) -> Result<RefInfo> {
        self.send(Method::PUT, &ref_path(name)?, Some(to)).await
    }

    /// Deletes a ref; returns it as it was.
    pub async fn delete_ref(&self, name: &Ref) -> Result<RefInfo> {
        self.send(Method::DELETE, &ref_path(name)?, None::<&()>).await
    }

    /// Deletes a ref if it points at an image, and is a conflict if it does not; returns it as it was.
    pub async fn delete_ref_at(&self, name: &Ref, image: &Digest) -> Result<RefInfo> {
        let path = format!("{}?expect={image}", ref_path(name)?);
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    /// A ticket to pull or push, for these papers.
    pub async fn ticket(&self, asked: &TicketRequest) -> Result<TicketAnswer> {
        self.send(Method::POST, "/v1/tickets", Some(asked)).await
    }

    /// Collects garbage. Takes as long as it takes, and goes on if the call is dropped.
    pub async fn gc(&self, asked: &GcRequest) -> Result<GcReport> {
        self.ask(Method::POST, "/v1/gc", Some(asked), Patience::Endless).await
    }

    /// The OpenAPI document, JSON.
    pub async fn openapi(&self) -> Result<serde_json::Value> {
        self.get("/v1/openapi.json").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send_again(Method::GET, path, None::<&()>).await
    }

    /// All of a list, page by page. An earlier placement gives all of it at once.
    async fn all<L: Listed + DeserializeOwned>(&self, path: &str) -> Result<L> {
        let sep = if path.contains('?') { '&' } else { '?' };
        let page = |after: &str| format!("{path}{sep}limit={}{after}", api::page::USUAL);
        let Paged { list: mut all, mut next } = self.get::<Paged<L>>(&page("")).await?;
        while let Some(cursor) = next {
            let more: Paged<L> = self.get(&page(&format!("&after={}", segment(&cursor)?))).await?;
            let mut list = more.list;
            all.items().append(list.items());
            next = more.next;
        }
        Ok(all)
    }

    /// An earlier placement refuses to be asked for a page of this list.
    async fn all_images(&self, path: &str) -> Result<ImageList> {
        match self.all(path).await {
            Err(e) if e.kind() == Kind::Invalid => self.get(path).await,
            done => done,
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        self.ask(method, path, body, Patience::Usual).await
    }

    /// The same of what does nothing more when it is asked twice.
    async fn send_again<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        self.wire.call(method, path, json(body), (Patience::Usual, Repeat::Safe)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        patience: Patience,
    ) -> Result<T> {
        self.wire.call(method, path, json(body), (patience, Repeat::Never)).await
    }
}

/// A new key (PEM), and a request to have it certified (PEM).
fn signing_request() -> Result<(String, String)> {
    let key = new_key()?;
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(|e| Error::caused(Kind::Io, "making a certificate signing request", e))?;
    Ok((key.serialize_pem(), request))
}

fn json(body: Option<&impl Serialize>) -> Option<Vec<u8>> {
    body.map(|b| serde_json::to_vec(b).expect("our own types serialise"))
}

fn ref_path(name: &Ref) -> Result<String> {
    Ok(format!("/v1/refs/{}", segment(&name.to_string())?))
}

/// What need not be encoded in one segment of a path.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b':');

/// One segment of a path. Nothing, and what servers in between might resolve, is refused.
fn segment(name: &str) -> Result<String> {
    if matches!(name, "" | "." | "..") {
        let what = format!("`{name}` is neither a ref ([tenant/]name:tag) nor a digest");
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(utf8_percent_encode(name, ENCODED).to_string())
}

/// That the papers are of the grid that the token named, for this name, and go with our key.
fn check_joined(papers: &Papers, ca: &Digest, name: &str, grid: &str, now: u64) -> Result<()> {
    papers.check()?;
    let member = papers.member()?;
    if papers.ca_digest()? != *ca || member.grid != grid || member.name != name {
        return Err(Error::new(Kind::Denied, "they are not what was asked for"));
    }
    tls::check_issued(papers.ca()?, &papers.certificate()?, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_segment_whatever_they_hold() {
        assert_eq!(segment("acme/web:1").unwrap(), "acme%2Fweb:1");
        assert_eq!(segment("a b?c#d%2e").unwrap(), "a%20b%3Fc%23d%252e");
        for bad in ["", ".", ".."] {
            assert_eq!(segment(bad).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
