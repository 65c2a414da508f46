//! The BLAKE3 that ends footers and heads of locators, to put it right in a mutant.

/// Digest of the parts, one after the other.
pub fn index_sum(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("forebay 1 index");
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}
