//! A UDP socket that hands the kernel no more than it takes at once.
//!
//! quinn gives up to ten packets to one `sendmsg`, for the kernel to cut (GSO). Together they may not
//! be longer than one UDP datagram: 65,507 bytes. With packets of more than 6,550 bytes — jumbo
//! frames, loopback — they are, `sendmsg` says EMSGSIZE, and quinn takes that for a probe that was too
//! long: the packets are lost without a word, again and again, until it falls back to short ones. So
//! longer batches are split here: 5.3 GB/s instead of 0.73 with packets of 8952 bytes, 7.1 instead of
//! 0.73 with 65507 (benches/throughput.rs).

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Longest payload of one UDP datagram over IPv4, and so of one batch.
pub const MAX_BATCH: usize = 65_507;

/// Wraps quinn's own socket and splits batches that are too long.
#[derive(Debug)]
pub struct SplitSocket(pub Arc<dyn AsyncUdpSocket>);

/// How many bytes of a batch go out at a time: whole packets, as many as fit, at least one.
fn step(total: usize, segment: Option<usize>) -> usize {
    match segment {
        Some(segment) if total > MAX_BATCH && segment > 0 => (MAX_BATCH / segment).max(1) * segment,
        _ => total,
    }
}

impl AsyncUdpSocket for SplitSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let step = step(transmit.contents.len(), transmit.segment_size);
        if step == transmit.contents.len() {
            return self.0.try_send(transmit);
        }
        for contents in transmit.contents.chunks(step) {
            // If the socket is full half-way the caller gives the whole batch again. What was sent
            // arrives twice, which QUIC does not mind.
            self.0.try_send(&Transmit { contents, ..*transmit })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Record(Mutex<Vec<(usize, Option<usize>)>>);

    impl AsyncUdpSocket for Record {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing waits")
        }

        fn try_send(&self, t: &Transmit<'_>) -> io::Result<()> {
            self.0.lock().unwrap().push((t.contents.len(), t.segment_size));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }
    }

    #[test]
    fn no_batch_is_longer_than_a_datagram_and_none_is_cut_inside_a_packet() {
        for segment in [1200, 1452, 6550, 6551, 8952, 30_000, 40_000, 65_507] {
            for packets in 1..=10 {
                let record = Arc::new(Record::default());
                // The last packet of a batch may be shorter.
                let total = segment * packets - 7;
                SplitSocket(record.clone())
                    .try_send(&Transmit {
                        destination: ([127, 0, 0, 1], 2).into(),
                        ecn: None,
                        contents: &vec![0; total],
                        segment_size: (packets > 1).then_some(segment),
                        src_ip: None,
                    })
                    .unwrap();
                let sent = record.0.lock().unwrap();
                assert_eq!(sent.iter().map(|s| s.0).sum::<usize>(), total);
                assert!(sent.iter().all(|s| s.0 <= MAX_BATCH), "{segment} × {packets}: {sent:?}");
                let whole = &sent[..sent.len() - 1];
                assert!(whole.iter().all(|s| s.0 % segment == 0), "{segment} × {packets}");
            }
        }
    }
}
