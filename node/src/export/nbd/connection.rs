//! One connection from its first byte to its last, over any stream of bytes.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Context;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::fault::Fault;
use super::inbox::Inbox;
use super::proto::handshake::{Handshake, Step, greeting};
use super::proto::{Card, Terms};
use super::server::Site;
use super::transmission::Transmission;
use super::work;
use crate::export::Disk;

/// What is read of a socket at a time, in bytes: some hundred requests, or sixteen writes of 4 KiB. An
/// option of the handshake fits.
const INBOX: usize = 64 << 10;

/// Serves one client until one of both ends it; when `ending` is done, until what was begun is answered.
pub(super) async fn serve<D: Disk, S>(
    site: &Site<D>,
    mut socket: S,
    ending: impl Future<Output = ()>,
) -> Result<(), Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ending = pin!(ending);
    let mut inbox = Inbox::new(INBOX);
    let patience = site.limits.handshake;
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(patience, shake(site, &mut socket, &mut inbox)) => shaken,
        () = &mut ending => return Ok(()),
    };
    let Some(terms) = shaken.map_err(|_| Fault::Slow(patience.as_secs()))?? else {
        return Ok(());
    };
    tokio::select! {
        () = site.leaving.over() => {}
        () = &mut ending => return Ok(()),
    }
    let disk = Rc::clone(&site.exports[terms.export].disk);
    let bounds = (site.memory.share(site.limits.connections), site.limits.requests);
    let mut transmission = Transmission::new((&mut socket, inbox), disk, terms, bounds, work::run);
    let mut left = None;
    let mut poll = |transmission: &mut Transmission<_, _, _, _>, cx: &mut Context<'_>| {
        let ended = transmission.poll(cx);
        if transmission.client_has_gone() && left.is_none() {
            left = Some(site.leaving.begin());
        }
        ended
    };
    let ended = tokio::select! {
        biased;
        ended = poll_fn(|cx| poll(&mut transmission, cx)) => Some(ended),
        () = ending => None,
    };
    match ended {
        Some(ended) => ended?,
        None => {
            transmission.finish();
            poll_fn(|cx| poll(&mut transmission, cx)).await?;
        }
    }
    drop(transmission);
    socket.shutdown().await?;
    Ok(())
}

/// The handshake. `None` if the client leaves instead.
async fn shake<D: Disk, S>(
    site: &Site<D>,
    socket: &mut S,
    inbox: &mut Inbox,
) -> Result<Option<Terms>, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.write_all(&greeting()).await?;
    let mut handshake = Handshake::default();
    let mut out = Vec::new();
    loop {
        let cards: Vec<Card> = site.exports.iter().map(|export| export.card()).collect();
        let (used, step) = handshake.advance(inbox.unread(), &cards, &mut out)?;
        inbox.use_up(used);
        if !out.is_empty() {
            socket.write_all(&out).await?;
            out.clear();
        }
        match step {
            Step::Start(terms) => return Ok(Some(terms)),
            Step::Close => return Ok(None),
            Step::More if used > 0 => {}
            Step::More => {
                if poll_fn(|cx| inbox.poll_fill(cx, Pin::new(&mut *socket))).await? == 0 {
                    return Ok(None);
                }
            }
        }
    }
}
