//! Keeps the connections of mounts while the process that serves them is away.
//!
//! A connection lives while a process has its descriptor. A holder is a process that does nothing but have
//! them; it changes so seldom that it need not be restarted. (systemd can be one: `FDSTORE=1`.) Over its
//! Unix socket one question is asked per connection: a letter, the length of a name, the name, and for
//! `k` the descriptor. The answer is `y` or `n`, and for `g` the descriptor.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

const KEEP: u8 = b'k';
const GIVE: u8 = b'g';
const FORGET: u8 = b'f';
const YES: u8 = b'y';
const NO: u8 = b'n';
/// Who asks and then says nothing is left after so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Descriptors that are kept at most.
const MOST_KEPT: usize = 4096;

/// Serves until it has had nothing to keep for a while, and nobody has asked. Whoever can connect can have every
/// connection: the socket's directory must be the daemon's alone.
///
/// # Errors
///
/// What accepting fails with; what a single client does ends nothing.
pub fn hold(listener: &UnixListener, idle: Duration) -> io::Result<()> {
    let mut kept = BTreeMap::new();
    while !kept.is_empty() || is_asked(listener, idle)? {
        let (client, _) = listener.accept()?;
        if let Err(error) = serve(client, &mut kept) {
            tracing::debug!(%error, "a client of the holder");
        }
    }
    Ok(())
}

/// Waits for a client, so long.
fn is_asked(listener: &UnixListener, idle: Duration) -> io::Result<bool> {
    let idle = idle.try_into().map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&idle)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn serve(mut client: UnixStream, kept: &mut BTreeMap<Vec<u8>, OwnedFd>) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    // The descriptor comes with the first byte.
    let (verb, descriptor) = receive(&client)?;
    let mut length = [0];
    client.read_exact(&mut length)?;
    let mut name = vec![0; usize::from(length[0])];
    client.read_exact(&mut name)?;
    let given = match (verb, descriptor) {
        (KEEP, Some(descriptor)) if kept.len() < MOST_KEPT => {
            kept.insert(name, descriptor);
            return client.write_all(&[YES]);
        }
        (GIVE, _) => kept.get(&name),
        (FORGET, _) if kept.remove(&name).is_some() => return client.write_all(&[YES]),
        _ => None,
    };
    send(&client, if given.is_some() { YES } else { NO }, given.map(AsFd::as_fd))
}

/// Has `descriptor` kept under a name of at most 255 bytes; another of that name is let go.
///
/// # Errors
///
/// What the socket fails with; `Other` if the holder does not take it.
pub fn keep(holder: &Path, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    match ask(holder, KEEP, name, Some(descriptor))? {
        (YES, _) => Ok(()),
        _ => Err(io::Error::other("the holder keeps no more")),
    }
}

/// Takes a copy of a descriptor that is kept, if there is one.
///
/// # Errors
///
/// What the socket fails with.
pub fn give(holder: &Path, name: &str) -> io::Result<Option<OwnedFd>> {
    Ok(ask(holder, GIVE, name, None)?.1)
}

/// Has a descriptor let go of. Returns whether there was one.
///
/// # Errors
///
/// What the socket fails with.
pub fn forget(holder: &Path, name: &str) -> io::Result<bool> {
    Ok(ask(holder, FORGET, name, None)?.0 == YES)
}

fn ask(
    holder: &Path,
    verb: u8,
    name: &str,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<(u8, Option<OwnedFd>)> {
    let length = u8::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut stream = UnixStream::connect(holder)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    send(&stream, verb, descriptor)?;
    stream.write_all(&[length])?;
    stream.write_all(name.as_bytes())?;
    receive(&stream)
}

fn send(stream: &UnixStream, byte: u8, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let bytes = [byte];
    rustix::net::sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((byte[0], descriptors.next().and_then(|mut descriptors| descriptors.next())))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use super::*;

    fn holder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holder");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || hold(&listener, Duration::from_secs(3600)));
        (dir, path)
    }

    #[test]
    fn what_is_kept_can_be_had_until_it_is_forgotten() {
        let (dir, holder) = holder();
        assert!(give(&holder, "a").unwrap().is_none());
        for text in ["first", "second"] {
            let path = dir.path().join("file");
            std::fs::write(&path, text).unwrap();
            keep(&holder, "a", File::open(&path).unwrap().as_fd()).unwrap();
            std::fs::remove_file(&path).unwrap();
            let mut found = String::new();
            let mut file = File::from(give(&holder, "a").unwrap().unwrap());
            file.read_to_string(&mut found).unwrap();
            assert_eq!(found, text);
        }
        assert!(give(&holder, "b").unwrap().is_none());
        assert!(forget(&holder, "a").unwrap() && !forget(&holder, "a").unwrap());
        assert!(give(&holder, "a").unwrap().is_none());
        let long = "n".repeat(256);
        assert_eq!(give(&holder, &long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn it_ends_when_there_is_nothing_to_keep() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holder");
        let listener = UnixListener::bind(&path).unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        let held = std::thread::spawn(move || hold(&listener, Duration::from_millis(20)));
        keep(&path, "a", file.as_fd()).unwrap();
        std::thread::park_timeout(Duration::from_millis(60));
        assert!(give(&path, "a").unwrap().is_some(), "it keeps what it has");
        assert!(forget(&path, "a").unwrap());
        held.join().unwrap().unwrap();
    }

    #[test]
    fn clients_that_say_nonsense_or_go_away_are_left() {
        let (_dir, holder) = holder();
        for said in [&b""[..], b"k", b"k\x01a", b"?\x00", b"g\xffab"] {
            UnixStream::connect(&holder).unwrap().write_all(said).unwrap();
        }
        assert!(give(&holder, "a").unwrap().is_none());
    }
}
