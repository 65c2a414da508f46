//! The Unix socket of an export: its owner's alone, and gone when the server is.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use image::{Error, Kind, Result};

/// A listening socket at a path, which is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`, with mode 0600. A socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    ///
    /// `Conflict` if somebody listens there, or if something else than a socket is there; otherwise what
    /// the system says.
    pub async fn bind(path: impl Into<PathBuf>) -> Result<Socket> {
        let path = path.into();
        let place = |error| Error::io(path.display(), error);
        check_free(&path).await?;
        // By another name first: nobody can connect before the mode is right.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(place)?;
        let ready = fs::set_permissions(&new, Permissions::from_mode(0o600))
            .and_then(|()| listener.set_nonblocking(true))
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| tokio::net::UnixListener::from_std(listener));
        match ready {
            Ok(listener) => Ok(Socket { listener, path }),
            Err(error) => {
                let _ = fs::remove_file(&new);
                Err(place(error))
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> std::io::Result<tokio::net::UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn check_free(path: &Path) -> Result<()> {
    let conflict = |what| Err(Error::new(Kind::Conflict, format!("{}: {what}", path.display())));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(path.display(), error)),
        Ok(found) if !found.file_type().is_socket() => return conflict("not a socket"),
        Ok(_) => {}
    }
    // One whose line is full is somebody, too: this does not wait for its turn in it.
    match tokio::net::UnixStream::connect(path).await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        _ => conflict("another server listens there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = Socket::bind(&path).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::bind(&path).await.unwrap_err().kind(), Kind::Conflict);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
