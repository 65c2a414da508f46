//! As much of an NBD client as a test needs, written from the specification: an outside judge of the server.

use std::io::{Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

/// A connection to the default export behind a socket.
pub struct Nbd {
    stream: UnixStream,
    pub size: u64,
}

impl Nbd {
    pub fn connect(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; the default export.
        stream.write_all(&3u32.to_be_bytes())?;
        stream.write_all(b"IHAVEOPT")?;
        stream.write_all(&1u32.to_be_bytes())?;
        stream.write_all(&0u32.to_be_bytes())?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let size = u64::from_be_bytes(export[..8].try_into().expect("eight bytes"));
        Ok(Self { stream, size })
    }

    fn ask(&mut self, command: u16, at: u64, len: usize, payload: &[u8]) -> Result<Vec<u8>> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(7u64.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend((len as u32).to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = i32::from_be_bytes(reply[4..8].try_into().expect("four bytes"));
        if error != 0 {
            return Err(std::io::Error::from_raw_os_error(error));
        }
        let mut data = vec![0; if command == READ { len } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    pub fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>> {
        self.ask(READ, at, len, &[])
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.ask(WRITE, at, bytes.len(), bytes).map(drop)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.ask(FLUSH, 0, 0, &[]).map(drop)
    }
}
