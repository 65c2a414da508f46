//! Placement's fleet without its API, on keys and clocks that a test owns.

use std::sync::Arc;
use std::time::Duration;

use api::catalog::{GcReport, GcRequest, StoreReport, VerifyReport, VerifyStoreRequest};
use api::goal::{StatusReport, Told};
use api::grid::{PlacementInfo, PlacementStatus};
use api::lease::{BreakLease, LeaseGrant, LeaseInfo, LeaseList, TakeLease, TransferLease};
use api::operation::Operation;
use api::place::{PlaceAnswer, PlaceAsk, Policy, Reservation, ReservationList};
use api::pool::{NewClaim, PoolInfo, SetPool};
use image::record::Verified;
use image::signing::SigningKey;
use image::{Digest, Error, Kind, Result};

use crate::archive::{Answer, Archive, ImageFacts, RefMove, Swept};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::fleet::{Fleet, Stats, Terms};
use crate::state::keys::Keys;
use crate::state::{State, StatePlace};

/// The first key of RFC 8032, section 7.1, and its public half: nothing that it signs counts anywhere.
const KEY: [u8; 64] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// The keys that are at a place, of a grid called `test`.
///
/// # Errors
///
/// If they cannot be opened.
pub async fn keys(place: &StatePlace) -> Result<Arc<dyn Keys>> {
    place.keys(Some("test")).await
}

/// What answers for the fleet, without who asks being looked at.
#[derive(Clone)]
pub struct Coordinator(Arc<Fleet>);

impl Coordinator {
    /// Over keys, of a grid called `test` whose store is empty.
    ///
    /// # Errors
    ///
    /// Of the keys.
    pub async fn open(
        keys: Arc<dyn Keys>,
        clock: Clock,
        name: &str,
        lease_secs: u64,
    ) -> Result<Self> {
        let state = State::over(keys, "test").await?;
        let key = SigningKey::from_bytes(&KEY)?;
        let catalog =
            Catalog::open(state.clone(), Arc::new(Empty), key, clock.clone(), vec![]).await?;
        let me = PlacementInfo { name: name.to_owned(), address: name.to_owned() };
        let stats = Stats::new(vec![])?;
        let terms = Terms { lease_secs, policy: Policy::default(), me, stats };
        Ok(Self(Fleet::new(state, clock, Arc::new(catalog), terms)))
    }

    /// Sees to everything while it may, until [`Coordinator::close`].
    pub async fn control(&self) {
        Arc::clone(&self.0).control().await;
    }

    /// Ends all waiting, and [`Coordinator::control`].
    pub fn close(&self) {
        self.0.close();
        self.0.end();
    }

    /// `POST /v1/nodes/{name}/report`
    pub async fn report(&self, node: &str, report: StatusReport, wait: Duration) -> Result<Told> {
        self.0.report(node, report, wait).await
    }

    /// `PUT /v1/leases/{name}`
    pub async fn take_lease(&self, volume: &str, asked: &TakeLease) -> Result<LeaseGrant> {
        self.0.take_lease(volume, asked).await
    }

    /// `POST /v1/leases/{name}/transfer`, by who has it.
    pub async fn transfer_lease(
        &self,
        volume: &str,
        by: &str,
        asked: &TransferLease,
    ) -> Result<LeaseGrant> {
        self.0.transfer_lease(volume, Some(by), asked).await
    }

    /// `POST /v1/leases/{name}/break`
    pub async fn break_lease(&self, volume: &str, asked: &BreakLease) -> Result<LeaseInfo> {
        self.0.break_lease(volume, "test", asked).await
    }

    /// `GET /v1/placement`
    pub async fn status(&self) -> Result<PlacementStatus> {
        self.0.placements().await
    }

    /// `GET /v1/leases`
    pub async fn leases(&self) -> Result<LeaseList> {
        self.0.leases().await
    }

    /// `PUT /v1/pools/{name}`
    pub async fn set_pool(&self, name: &str, set: SetPool) -> Result<PoolInfo> {
        self.0.set_pool(name, set).await
    }

    /// `GET /v1/pools/{name}`
    pub async fn pool(&self, name: &str) -> Result<PoolInfo> {
        self.0.pool(name).await
    }

    /// `POST /v1/pools/{name}/claims`
    pub async fn claim(&self, pool: &str, asked: NewClaim, wait: Duration) -> Result<Operation> {
        self.0.claim("test", pool, asked, wait).await
    }

    /// `GET /v1/operations/{id}`
    pub async fn operation(&self, id: &str, wait: Duration) -> Result<Operation> {
        self.0.operation(id, wait).await
    }

    /// `POST /v1/place`
    pub async fn place(&self, ask: &PlaceAsk) -> Result<PlaceAnswer> {
        self.0.place("test", ask).await
    }

    /// `GET /v1/reservations`
    pub async fn reservations(&self) -> Result<ReservationList> {
        self.0.reservations().await
    }

    /// `DELETE /v1/reservations/{id}`
    pub async fn release_reservation(&self, id: &str) -> Result<Reservation> {
        self.0.release_reservation(id, None).await
    }
}

/// A store in which nothing is.
struct Empty;

fn gone<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(async { Err(Error::new(Kind::Gone, "this store is empty")) })
}

impl Archive for Empty {
    fn facts(&self, _: Digest) -> Answer<'_, ImageFacts> {
        gone()
    }

    fn verified(&self, _: Digest) -> Option<Verified> {
        None
    }

    fn put_record(&self, _: Digest, _: String) -> Answer<'_, ()> {
        gone()
    }

    fn records(&self, _: Digest) -> Answer<'_, Vec<String>> {
        gone()
    }

    fn append_ref_move(&self, _: RefMove) -> Answer<'_, ()> {
        gone()
    }

    fn ref_log(&self) -> Answer<'_, Vec<RefMove>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn gc(&self, _: Vec<Digest>, _: GcRequest, _: u64, _: Swept) -> Answer<'_, GcReport> {
        gone()
    }

    fn unchanged(&self, _: Digest, _: Digest, _: Vec<u64>) -> Answer<'_, Vec<u64>> {
        gone()
    }

    fn verify(&self, _: Digest, _: bool) -> Answer<'_, VerifyReport> {
        gone()
    }

    fn verify_store(&self, _: VerifyStoreRequest) -> Answer<'_, StoreReport> {
        gone()
    }
}
