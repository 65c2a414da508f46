//! Sizes for people.

/// `1.2 GiB`.
pub(crate) fn bytes(n: u64) -> impl std::fmt::Display {
    bytesize::ByteSize(n).display().iec()
}
