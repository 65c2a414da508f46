//! Nodes, pools and operations.

use std::time::Duration;

use api::goal::{GoalState, NodeList, StatusReport, Told};
use api::keep::{KeepInfo, KeepList, SetKeep};
use api::lease::{BreakLease, LeaseGrant, LeaseInfo, LeaseList, TakeLease};
use api::life::{Forgotten, NodeLife, SetStanding, Standing};
use api::operation::{Operation, OperationList};
use api::place::{PlaceAnswer, PlaceAsk, Reservation, ReservationList};
use api::pool::{NewClaim, PoolInfo, PoolList, SetPool};
use api::released::ReleasedList;
use api::stats::{NodeHistory, StatsList};
use hyper::Method;
use image::Result;

use super::wire::Patience;
use super::{Client, segment};

impl Client {
    /// The nodes that have reported.
    pub async fn nodes(&self) -> Result<NodeList> {
        self.all("/v1/nodes").await
    }

    /// A node, and what is left of it.
    pub async fn node(&self, node: &str) -> Result<NodeLife> {
        self.get(&format!("/v1/nodes/{}", segment(node)?)).await
    }

    /// Says what may be put on a node. May be asked again.
    pub async fn set_standing(&self, node: &str, standing: Standing) -> Result<NodeLife> {
        let path = format!("/v1/nodes/{}/standing", segment(node)?);
        self.send_again(Method::PUT, &path, Some(&SetStanding { standing })).await
    }

    /// Forgets a node; returns it as it was. May be asked again.
    pub async fn forget(&self, node: &str, force: bool) -> Result<Forgotten> {
        let path = format!("/v1/nodes/{}?force={force}", segment(node)?);
        self.send_again(Method::DELETE, &path, None::<&()>).await
    }

    /// What a node is to do.
    pub async fn goal(&self, node: &str) -> Result<GoalState> {
        self.get(&format!("/v1/nodes/{}/goal", segment(node)?)).await
    }

    /// Says what this node has; the answer is what it is to do, when that is news or after `wait`.
    pub async fn report(&self, node: &str, report: &StatusReport, wait: Duration) -> Result<Told> {
        let path = format!("/v1/nodes/{}/report?wait={}", segment(node)?, wait.as_secs());
        self.ask(Method::POST, &path, Some(report), Patience::Asked(wait)).await
    }

    /// What nodes have measured last; with `every`, they measure so many seconds apart for a while.
    pub async fn stats(&self, every: u32) -> Result<StatsList> {
        self.get(&format!("/v1/stats?every={every}")).await
    }

    /// What a node has measured, of what is later than `since`, in seconds since 1970; with `every`, it measures so many
    /// seconds apart for a while.
    pub async fn node_stats(&self, node: &str, since: u64, every: u32) -> Result<NodeHistory> {
        let path = format!("/v1/nodes/{}/stats?since={since}&every={every}", segment(node)?);
        self.get(&path).await
    }

    /// Has nodes chosen, and reserved if that is asked for. May be asked again.
    pub async fn place(&self, asked: &PlaceAsk) -> Result<PlaceAnswer> {
        self.send_again(Method::POST, "/v1/place", Some(asked)).await
    }

    /// All reservations.
    pub async fn reservations(&self) -> Result<ReservationList> {
        self.get("/v1/reservations").await
    }

    /// Gives a reservation back; returns it as it was.
    pub async fn release_reservation(&self, id: &str) -> Result<Reservation> {
        let path = format!("/v1/reservations/{}", segment(id)?);
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    /// The images that must be at hand, and where they are.
    pub async fn keeps(&self) -> Result<KeepList> {
        self.all("/v1/keeps").await
    }

    /// One of them.
    pub async fn keep(&self, name: &str) -> Result<KeepInfo> {
        self.get(&format!("/v1/keeps/{}", segment(name)?)).await
    }

    /// Says where an image must be. May be asked again.
    pub async fn set_keep(&self, name: &str, set: &SetKeep) -> Result<KeepInfo> {
        self.send_again(Method::PUT, &format!("/v1/keeps/{}", segment(name)?), Some(set)).await
    }

    /// Says that an image need not be anywhere any more; returns how it was.
    pub async fn unkeep(&self, name: &str) -> Result<KeepInfo> {
        self.send(Method::DELETE, &format!("/v1/keeps/{}", segment(name)?), None::<&()>).await
    }

    /// What was given back lately, and erased.
    pub async fn released(&self) -> Result<ReleasedList> {
        self.get("/v1/released").await
    }

    /// All leases that nodes have.
    pub async fn leases(&self) -> Result<LeaseList> {
        self.all("/v1/leases").await
    }

    /// The right to write a volume. May be asked again.
    pub async fn take_lease(&self, volume: &str, asked: &TakeLease) -> Result<LeaseGrant> {
        self.send_again(Method::PUT, &format!("/v1/leases/{}", segment(volume)?), Some(asked)).await
    }

    /// Takes a lease from its holder.
    pub async fn break_lease(&self, volume: &str, asked: &BreakLease) -> Result<LeaseInfo> {
        let path = format!("/v1/leases/{}/break", segment(volume)?);
        self.send(Method::POST, &path, Some(asked)).await
    }

    /// All pools.
    pub async fn pools(&self) -> Result<PoolList> {
        self.all("/v1/pools").await
    }

    /// One pool.
    pub async fn pool(&self, name: &str) -> Result<PoolInfo> {
        self.get(&format!("/v1/pools/{}", segment(name)?)).await
    }

    /// Says what a pool shall be; makes it if there is none.
    pub async fn set_pool(&self, name: &str, set: &SetPool) -> Result<PoolInfo> {
        self.send(Method::PUT, &format!("/v1/pools/{}", segment(name)?), Some(set)).await
    }

    /// Removes a pool; returns it as it was.
    pub async fn delete_pool(&self, name: &str) -> Result<PoolInfo> {
        let path = format!("/v1/pools/{}", segment(name)?);
        self.send(Method::DELETE, &path, None::<&()>).await
    }

    /// Asks for a volume of a pool; the answer is the operation, when it has ended or after `wait`. May be asked again.
    pub async fn claim(&self, pool: &str, asked: &NewClaim, wait: Duration) -> Result<Operation> {
        let path = format!("/v1/pools/{}/claims?wait={}", segment(pool)?, wait.as_secs());
        self.send_again(Method::POST, &path, Some(asked)).await
    }

    /// What was asked for lately.
    pub async fn operations(&self) -> Result<OperationList> {
        self.all("/v1/operations").await
    }

    /// An operation, when it has ended or after `wait`.
    pub async fn operation(&self, id: &str, wait: Duration) -> Result<Operation> {
        let path = format!("/v1/operations/{}?wait={}", segment(id)?, wait.as_secs());
        self.get(&path).await
    }

    /// Ends an operation, if no node has done it meanwhile; the answer is the operation when it has ended, or after `wait`.
    /// May be asked again.
    pub async fn cancel_operation(&self, id: &str, wait: Duration) -> Result<Operation> {
        let path = format!("/v1/operations/{}/cancel?wait={}", segment(id)?, wait.as_secs());
        self.send_again(Method::POST, &path, None::<&()>).await
    }
}
