//! QUIC and TLS settings, and the endpoints that have them.
//!
//! One endpoint per core, each on its own UDP port: with several sockets on one port the kernel
//! spreads connections by a hash, unevenly, and a connection's packets should be handled on the core
//! that handles its chunks. Bind to port 0 and announce [`quinn::Endpoint::local_addr`].

mod socket;
mod tls;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use image::error::At;
use image::{Error, Kind, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

pub use socket::{MAX_BATCH, SplitSocket};
pub use tls::{ALPN, Papers, client_config, server_config, server_config_showing};

/// Bytes of a connection that are taken by a server before they are looked at, until an image is sent on it
/// ([`crate::ServerLimits::push_window`]): every request that a connection may have in flight, and an OFFER.
pub const REQUEST_WINDOW: u32 = 256 << 10;

/// Settings of a connection. The defaults are for a grid: little loss, round trips below some
/// milliseconds, 10 Gb/s and more.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Longest UDP payload that is looked for on the path and accepted, in bytes. A packet costs about
    /// the same whatever its length, so the longest that the path carries is best: between two threads
    /// on loopback a pull moved 1.5 GB/s with 1452 bytes, 5.3 with 8952, 7.1 with 65507
    /// (benches/throughput.rs). The search takes about twelve round trips, during which data flows in
    /// short packets; probes that are too long cost nothing but themselves. An endpoint reserves
    /// 2048 times as much address space for what arrives, of which it touches 2 MiB.
    pub max_payload: u16,
    /// UDP payload that packets have before a longer one was found on the path, in bytes: what every path carries,
    /// unless more is known of it ([`Tuning::towards`]).
    pub first_payload: u16,
    /// The round trip that is assumed before one was measured: a lost first packet is sent again after
    /// three of them. The RFC's 333 ms are for the whole Internet.
    pub initial_rtt: Duration,
    /// Bytes that may be in flight before the first acknowledgement: a chunk that did not shrink, so that a
    /// guest has it after one round trip. With 1 MiB twenty nodes that began at once on links of
    /// 500 Mbit/s lost thousands of packets in the first second (`compare tails`).
    pub initial_window: u64,
    /// Bytes of one stream that are taken before its reader has read them. At 0.5 ms of round trip
    /// 2 MiB feed 4 GB/s.
    pub stream_window: u32,
    /// Bytes of a connection that are taken before their readers have read them. It bounds the
    /// memory that a peer can fill. It is more than [`crate::ClientLimits::bulk`] stream windows: what
    /// slow readers leave lying does not keep a guest's answer out.
    pub connection_window: u32,
    /// Bytes of a connection that were written and are not acknowledged, at first: servers adjust it
    /// ([`crate::ServerLimits::window`]).
    pub send_window: u64,
    /// A connection on which nothing is heard for so long is dead.
    pub idle_timeout: Duration,
    /// The client says something after so long, so that an idle connection lives on.
    pub keep_alive: Duration,
    /// Bytes that the kernel keeps for a socket in each direction. It may grant less
    /// (`net.core.rmem_max`, `net.core.wmem_max`), which costs speed.
    pub socket_buffer: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            max_payload: MAX_BATCH as u16,
            first_payload: 1200,
            initial_rtt: Duration::from_millis(50),
            initial_window: 288 << 10,
            stream_window: 2 << 20,
            connection_window: 32 << 20,
            send_window: 8 << 20,
            idle_timeout: Duration::from_secs(12),
            keep_alive: Duration::from_secs(4),
            socket_buffer: 4 << 20,
        }
    }
}

impl Tuning {
    /// The same for an address. What loopback carries is known, and not looked for: twelve probes of up to 64 KiB,
    /// nearly all padding, in each direction cost a connection 10 ms of processor time, half of what a capture of an
    /// unchanged volume took (`compare save`).
    #[must_use]
    pub fn towards(self, address: IpAddr) -> Self {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        let carried = match address.is_loopback() {
            true => std::fs::read_to_string("/sys/class/net/lo/mtu").ok(),
            false => None,
        };
        let carried = carried.and_then(|mtu| mtu.trim().parse::<u32>().ok());
        let Some(carried) = carried.and_then(|mtu| mtu.checked_sub(headers)) else { return self };
        let payload = carried.min(self.max_payload.into()).max(self.first_payload.into()) as u16;
        Self { first_payload: payload, ..self }
    }

    fn transport(&self, incoming_streams: u32, window: u32) -> Result<TransportConfig> {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.max_payload);
        let mut cubic = quinn::congestion::CubicConfig::default();
        cubic.initial_window(self.initial_window);
        let idle = quinn::IdleTimeout::try_from(self.idle_timeout)
            .map_err(|e| Error::new(Kind::Invalid, format!("idle timeout: {e}")))?;
        let mut config = TransportConfig::default();
        config
            .initial_mtu(self.first_payload)
            .mtu_discovery_config(Some(mtu))
            .initial_rtt(self.initial_rtt)
            .congestion_controller_factory(Arc::new(cubic))
            .max_concurrent_bidi_streams(incoming_streams.into())
            .max_concurrent_uni_streams(0u32.into())
            .stream_receive_window(self.stream_window.into())
            .receive_window(window.into())
            .send_window(self.send_window)
            .max_idle_timeout(Some(idle))
            .datagram_receive_buffer_size(None);
        Ok(config)
    }

    /// The client's QUIC settings: no streams from the server, keep-alive.
    pub fn client(&self, tls: Arc<rustls::ClientConfig>) -> Result<quinn::ClientConfig> {
        let crypto = QuicClientConfig::try_from(tls)
            .map_err(|e| Error::new(Kind::Invalid, format!("TLS for QUIC: {e}")))?;
        let mut transport = self.transport(0, self.connection_window)?;
        transport.keep_alive_interval(Some(self.keep_alive));
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        Ok(config)
    }

    /// The server's QUIC settings: no migration, and no stream but the control stream until a HELLO
    /// has come and the server's own limit is set (a number once granted cannot be taken back).
    pub fn server(&self, tls: Arc<rustls::ServerConfig>) -> Result<quinn::ServerConfig> {
        let crypto = QuicServerConfig::try_from(tls)
            .map_err(|e| Error::new(Kind::Invalid, format!("TLS for QUIC: {e}")))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(Arc::new(self.transport(1, REQUEST_WINDOW)?))
            .migration(false)
            .max_incoming(1024)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(8 << 20);
        Ok(config)
    }

    fn endpoint(
        &self,
        addr: SocketAddr,
        server: Option<quinn::ServerConfig>,
    ) -> Result<quinn::Endpoint> {
        let io = |e| Error::io(format!("UDP socket on {addr}"), e);
        let socket = self.bind(addr).map_err(io)?;
        let mut config = EndpointConfig::default();
        config
            .max_udp_payload_size(self.max_payload)
            .map_err(|e| Error::new(Kind::Invalid, format!("longest UDP payload: {e}")))?;
        let runtime: Arc<dyn quinn::Runtime> = Arc::new(TokioRuntime);
        let socket = Arc::new(SplitSocket(runtime.wrap_udp_socket(socket).map_err(io)?));
        quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime).map_err(io)
    }

    fn bind(&self, addr: SocketAddr) -> std::io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_recv_buffer_size(self.socket_buffer)?;
        socket.set_send_buffer_size(self.socket_buffer)?;
        // Linux says twice what it grants, for its own bookkeeping.
        let granted = socket.recv_buffer_size()? / 2;
        if granted < self.socket_buffer {
            let wanted = self.socket_buffer;
            tracing::info!(%addr, granted, wanted, "small socket buffer: raise net.core.rmem_max");
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Ok(socket.into())
    }

    /// An endpoint that connects. Call it inside the runtime that will drive it.
    pub fn client_endpoint(&self, addr: SocketAddr) -> Result<quinn::Endpoint> {
        self.endpoint(addr, None)
    }

    /// An endpoint that listens. Call it inside the runtime that will drive it; port 0 picks a free
    /// one.
    pub fn server_endpoint(
        &self,
        addr: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
    ) -> Result<quinn::Endpoint> {
        let config = self.clone().towards(addr.ip()).server(tls)?;
        self.endpoint(addr, Some(config)).at(|| "server endpoint")
    }
}

/// Codes with which the protocol ends a stream.
pub mod stream_code {
    use super::VarInt;

    /// Whoever asked has lost interest. It is also what QUIC libraries send when a stream is dropped.
    pub const CANCELLED: VarInt = VarInt::from_u32(0);
    /// An ERROR on this stream says why.
    pub const REFUSED: VarInt = VarInt::from_u32(1);
    /// The other side did not take or give a byte for too long.
    pub const STALLED: VarInt = VarInt::from_u32(2);
}

/// Codes with which the protocol closes a connection.
pub mod close_code {
    use super::VarInt;

    /// Nothing more to say.
    pub const DONE: VarInt = VarInt::from_u32(0);
    /// The peer broke the protocol; an ERROR on the control stream says how.
    pub const PROTOCOL: VarInt = VarInt::from_u32(1);
    /// The server is shutting down.
    pub const SHUTDOWN: VarInt = VarInt::from_u32(2);
    /// Too many connections.
    pub const BUSY: VarInt = VarInt::from_u32(3);
    /// No HELLO in time.
    pub const TIMEOUT: VarInt = VarInt::from_u32(4);
    /// The peer's certificate was revoked.
    pub const REVOKED: VarInt = VarInt::from_u32(5);
}
