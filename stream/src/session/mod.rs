//! What may be said when: the protocol without I/O.
//!
//! Every type here is a state machine in the manner of sans-IO: bytes, answers and the time go in as
//! arguments, events and bytes come out, and nothing else happens. The drivers move bytes between
//! these machines and QUIC streams; a simulator or a fuzzer can do the same.
//!
//! | machine | end | stream |
//! |---|---|---|
//! | [`control::ClientControl`], [`control::ServerControl`] | each | control |
//! | [`inbox::Inbox`] | both | any: bytes → messages, with a gate before anything is kept |
//! | [`exchange::PullAnswer`] | client | a read |
//! | [`push::SectionUpload`] | server | a section on its way in |
//! | [`push::Replies`] | both | the few small messages of the other exchanges |
//! | [`rights::Rights`] | server | what the connection's tickets allow |

pub mod control;
pub mod exchange;
pub mod inbox;
#[cfg(any(test, feature = "ops"))]
pub mod ops;
pub mod push;
pub mod rights;
