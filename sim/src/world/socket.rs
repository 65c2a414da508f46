//! quinn's end of the network: a UDP socket that is none.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use image::{Error, Kind, Result};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, TokioRuntime, UdpPoller};
use stream::transport::{SplitSocket, Tuning};

use super::net::{Mailbox, Net};
use crate::chance::Chance;

/// Packets that quinn may hand over at once, as with a kernel that cuts them (GSO).
const SEGMENTS: usize = 10;

#[derive(Debug)]
struct Socket {
    net: Net,
    addr: SocketAddr,
    mailbox: Arc<Mailbox>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A host that was unplugged does not notice.
        if self.net.is_bound(&self.addr, &self.mailbox) {
            let packet = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            for bytes in transmit.contents.chunks(packet) {
                self.net.send(self.addr, transmit.destination, bytes);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Poll::Ready((addr, bytes)) = self.mailbox.poll(cx) else { break };
            let len = bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&bytes[..len]);
            *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
            filled += 1;
        }
        if filled == 0 { Poll::Pending } else { Poll::Ready(Ok(filled)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.net.unbind(&self.addr, &self.mailbox);
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An endpoint on the network, as [`Tuning::server_endpoint`] makes one on a real one. What QUIC draws
/// by lot (packet numbers that are left out, grease) follows from `chance`.
pub fn endpoint(
    net: &Net,
    addr: SocketAddr,
    tuning: &Tuning,
    server: Option<quinn::ServerConfig>,
    mut chance: Chance,
) -> Result<quinn::Endpoint> {
    let (addr, mailbox) = net.bind(addr);
    let socket = Arc::new(SplitSocket(Arc::new(Socket { net: net.clone(), addr, mailbox })));
    let mut config = EndpointConfig::default();
    let seed = chance.bytes(32).try_into().expect("32 bytes");
    config.rng_seed(Some(seed));
    config
        .max_udp_payload_size(tuning.max_payload)
        .map_err(|e| Error::new(Kind::Invalid, format!("longest UDP payload: {e}")))?;
    let endpoint =
        quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime));
    endpoint.map_err(|e| Error::io(addr, e))
}
