//! Names of images as people write them: a ref or a digest.

use image::{Digest, Error, Kind, Ref, Result};

/// Longest name that is looked at, in bytes: longer than any ref.
const MAX_NAME: usize = 512;
/// From this many hex digits on, a bare word is taken for (a part of) a digest: as many as are shown
/// to people.
const SHORT: usize = 12;

/// A ref or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Ref(Ref),
    Image(Digest),
}

/// Reads a name. Part of a digest is refused: it could come to mean another image.
pub(crate) fn parse(text: &str) -> Result<Name> {
    if text.len() > MAX_NAME {
        let what = format!("name: longer than {MAX_NAME} bytes");
        return Err(Error::new(Kind::Invalid, what));
    }
    let hex = text.len() >= SHORT && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex {
        return text.parse().map(Name::Ref);
    }
    text.parse().map(Name::Image).map_err(|_| {
        let what = format!(
            "`{text}` looks like part of a digest: give all 64 digits, in lower case, or a ref with \
             its tag"
        );
        Error::new(Kind::Invalid, what)
    })
}

/// Reads a name that must be a ref.
pub(crate) fn parse_ref(text: &str) -> Result<Ref> {
    match parse(text)? {
        Name::Ref(name) => Ok(name),
        Name::Image(_) => {
            let what = format!("`{text}` is a digest; a ref is [tenant/]name:tag, e.g. debian:12");
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

/// Reads a name that must be a digest.
pub(crate) fn parse_digest(text: &str) -> Result<Digest> {
    match parse(text)? {
        Name::Image(image) => Ok(image),
        Name::Ref(name) => {
            let what = format!("`{name}` is a ref; the digest of an image is needed");
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_digests_and_neither() {
        let digest = Digest::of_chunk(b"x");
        assert_eq!(parse(&digest.to_string()).unwrap(), Name::Image(digest));
        for a_ref in ["debian:12", "beef", "cafe:1", "acme/web:1", &format!("{digest}:1")] {
            assert!(matches!(parse(a_ref).unwrap(), Name::Ref(_)), "{a_ref}");
        }
        let upper = digest.to_string().to_uppercase();
        let long = "x".repeat(MAX_NAME + 1);
        for neither in [&digest.short(), &digest.to_string()[..63], &upper, &long, "", "a b"] {
            assert_eq!(parse(neither).unwrap_err().kind(), Kind::Invalid, "{neither}");
        }
        assert!(parse_ref(&digest.to_string()).is_err() && parse_digest("debian:12").is_err());
    }
}
