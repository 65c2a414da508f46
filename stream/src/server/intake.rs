//! A client's messages as they arrive: no more is read of a stream than the message that is expected on it,
//! and of that the header alone until the caller has memory for the body.

use std::time::Duration;

use image::{Error, Kind, Result};
use quinn::RecvStream;

use crate::io;
use crate::messages::Message;
use crate::session::control::as_request;
use crate::session::push::Replies;
use crate::wire::{Header, Type};

/// The header of the next message; `None` if the stream ends instead. Waits for its first byte for `idle`, and
/// for each further one for `patience`.
pub(super) async fn header(
    recv: &mut RecvStream,
    replies: &mut Replies,
    expected: &[Type],
    idle: Duration,
    patience: Duration,
) -> Result<Option<Header>> {
    let mut wait = idle;
    loop {
        if let Some(header) = replies.begin(expected).map_err(as_request)? {
            return Ok(Some(header));
        }
        match io::read_some(recv, wait, replies.missing()).await? {
            Some(piece) => replies.feed(piece),
            None => return replies.end().map(|()| None),
        }
        wait = patience;
    }
}

/// The message whose header has come.
pub(super) async fn message(
    recv: &mut RecvStream,
    replies: &mut Replies,
    expected: &[Type],
    patience: Duration,
) -> Result<Message> {
    loop {
        if let Some(message) = replies.poll(expected).map_err(as_request)? {
            return Ok(message);
        }
        match io::read_some(recv, patience, replies.missing()).await? {
            Some(piece) => replies.feed(piece),
            None => return Err(cut_off()),
        }
    }
}

/// The stream ended too early.
pub(super) fn cut_off() -> Error {
    Error::new(Kind::Invalid, "the stream ended before a whole request")
}
