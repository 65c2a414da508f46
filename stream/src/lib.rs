//! The protocol `forebay/1`: how chunks travel between Forebay's programs.
//!
//! ```text
//! connection (QUIC, TLS 1.3, both sides show a certificate, ALPN "forebay/1")
//! ├─ stream 0, opened by the client: control
//! │    →  HELLO TICKET …      ←  WELCOME GRANTED|ERROR … GOAWAY
//! ├─ one stream per read:
//! │    →  GET_MANIFEST        ←  MANIFEST | ERROR
//! │    →  GET_TABLE           ←  TABLE | ERROR
//! │    →  GET_CHUNKS          ←  FRAME … END | FRAME … ERROR
//! ├─ one stream per image on its way in; the push session lives as long as this stream:
//! │    →  OPEN_PUSH … COMMIT  ←  PUSH | ERROR … COMMITTED | ERROR
//! └─ one stream per section on its way in:
//!      →  OFFER … FRAME … END ←  WANT | ERROR … SEALED | ERROR
//! ```
//!
//! The bytes are described in [`wire`] and [`messages`], and with diagrams in `docs/protocol.md`.
//!
//! # Reading order
//!
//! [`wire`] (framing) → [`messages`] → [`session`] (what may be said when: pure, no I/O, no clock)
//! → [`transport`] (QUIC and TLS settings) → [`client`], [`push_client`], [`server`] (thin drivers).
//!
//! # Non-goals
//!
//! * No discovery: who asks knows whom to ask, from placement.
//! * No requests for chunks by digest: a request names a place, and a ticket is the right to it.
//!   Whether somebody else has a chunk is never disclosed.
//! * No reads of less than a chunk.
//! * No proof of content by the transport: TLS keeps strangers out, but what makes bytes right is
//!   BLAKE3 at the end that uses them, and CRC32C at every hop.
//! * No migration of a connection to another address, and no 0-RTT: a replayed request is never
//!   served.

pub mod messages;
pub mod session;
pub mod wire;

#[cfg(feature = "quic")]
pub mod client;
#[cfg(feature = "quic")]
mod io;
#[cfg(feature = "quic")]
pub mod push_client;
#[cfg(feature = "quic")]
pub mod server;
#[cfg(feature = "quic")]
pub mod transport;

#[cfg(feature = "quic")]
pub use client::{Client, ClientLimits, ClientOptions, WeakClient};
#[cfg(feature = "quic")]
pub use server::{Auth, Lent, Memory, NoSink, ServerLimits, serve};
