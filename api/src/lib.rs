//! What travels between Forebay's programs beside chunks: requests and answers of the HTTP APIs,
//! tickets, and the one place where an error becomes a wire code, an HTTP status or an exit code.

pub mod audit;
pub mod capture;
pub mod care;
pub mod catalog;
pub mod error;
pub mod fleet;
pub mod goal;
pub mod grid;
pub mod keep;
pub mod layout;
pub mod lease;
pub mod life;
pub mod node;
pub mod operation;
pub mod page;
pub mod people;
pub mod place;
pub mod pool;
pub mod released;
pub mod rendezvous;
pub mod stats;
pub mod ticket;
pub mod trace;
pub mod volume;
pub mod watch;

pub use error::{ErrorBody, PROBLEM, Problem, exit_code, from_wire, http_status, to_wire};
pub use ticket::{Grant, Ticket};
