//! A raw disk that comes as a stream: standard input, or a compressed file.
//!
//! Decompression is streamed, so a bomb costs no more memory than a chunk plus the decoder's
//! window, which is limited: 128 MiB for zstd (its own default) and 256 MiB for xz.

use std::io::{self, BufReader, Read};

use blockio::BlockFile;
use flate2::read::MultiGzDecoder;
use image::{Error, Kind, Result};

use super::fingerprint::Fingerprint;
use crate::format::{Compression, doubt};

/// Memory that an xz decoder may take, in bytes: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// Bytes of compressed input read at a time.
const INPUT: usize = 256 << 10;

/// The plain bytes of a raw disk, from front to back.
pub struct Stream {
    reader: Box<dyn Read + Send>,
    size: Option<u64>,
    at: u64,
    compression: Compression,
    file: Option<Fingerprint>,
}

impl Stream {
    /// Decompresses what `reader` gives. `size` is that of the plain bytes, if known.
    ///
    /// # Errors
    ///
    /// Only without memory.
    pub(super) fn new(
        reader: Box<dyn Read + Send>,
        compression: Compression,
        size: Option<u64>,
    ) -> Result<Self> {
        let reader = decoder(reader, compression)
            .map_err(|e| Error::io(format!("starting to decompress {compression}"), e))?;
        Ok(Self { reader, size, at: 0, compression, file: None })
    }

    /// Decompresses a file.
    pub(super) fn of_file(
        file: BlockFile,
        compression: Compression,
        size: Option<u64>,
    ) -> Result<Self> {
        let fingerprint = Fingerprint::take(&file)?;
        let reader = Box::new(FileReader { file, at: 0 });
        Ok(Self { file: Some(fingerprint), ..Self::new(reader, compression, size)? })
    }

    /// The size that was declared, in bytes.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Fills `buf`; less than that comes back only at the end.
    pub(crate) fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let (mut done, first) = (0, self.at == 0);
        while done < buf.len() {
            match self.reader.read(&mut buf[done..]) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    self.at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        if let Some(doubt) = doubt(&buf[..done]).filter(|_| first) {
            tracing::warn!("{doubt}");
        }
        Ok(done)
    }

    /// Asked at the end: whether a file was the same all the while.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), Fingerprint::check)
    }

    fn failed(&self, e: io::Error) -> Error {
        let place = format!("at byte {} of the disk", self.at);
        // A failing disk below speaks for itself; all else a decoder says is about its input.
        let below = blockio::errno(&e).is_some();
        if self.compression == Compression::None || below {
            return Error::io(place, e);
        }
        let what = format!("{place}: damaged or truncated {} data: {e}", self.compression);
        Error::caused(Kind::Corrupt, what, e)
    }
}

fn decoder(
    reader: Box<dyn Read + Send>,
    compression: Compression,
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => reader,
        Compression::Zstd => {
            let input = BufReader::with_capacity(INPUT, reader);
            Box::new(zstd::stream::read::Decoder::with_buffer(input)?)
        }
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(INPUT, reader))),
        Compression::Xz => {
            let input = BufReader::with_capacity(INPUT, reader);
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
    })
}

/// A file from front to back.
struct FileReader {
    file: BlockFile,
    at: u64,
}

impl Read for FileReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
