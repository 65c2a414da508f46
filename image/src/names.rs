//! Refs: the mutable names of images.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind};

/// Longest part of a ref in bytes.
const MAX_PART: usize = 128;

/// A ref, `[tenant/]name:tag`; the tag is `latest` if it is left out.
///
/// Each part starts with an ASCII letter or digit and goes on with letters, digits, `.`, `_` and `-`,
/// without `..`, so a ref is safe as a path, in a URL and in a shell.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref {
    tenant: Option<String>,
    name: String,
    tag: String,
}

impl Ref {
    /// The tenant, if one is named.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Whether it can be taken for the digest of an image: then it should not be made.
    pub fn looks_like_digest(&self) -> bool {
        self.tenant.is_none() && self.name.to_ascii_lowercase().parse::<crate::Digest>().is_ok()
    }
}

fn part(text: &str, which: &str, whole: &str) -> Result<String, Error> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fine = text.len() <= MAX_PART
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(ok)
        && !text.contains("..");
    if fine {
        return Ok(text.to_owned());
    }
    Err(Error::new(
        Kind::Invalid,
        format!(
            "ref `{}`: the {which} `{}` must start with a letter or digit and hold only letters, \
             digits, `.`, `_` and `-` (no `..`), at most {MAX_PART} of them; a ref is \
             [tenant/]name:tag, e.g. debian:12",
            whole.escape_debug(),
            text.escape_debug()
        ),
    ))
}

impl FromStr for Ref {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let (tenant, rest) = match s.split_once('/') {
            Some((tenant, rest)) => (Some(part(tenant, "tenant", s)?), rest),
            None => (None, s),
        };
        let (name, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
        Ok(Self { tenant, name: part(name, "name", s)?, tag: part(tag, "tag", s)? })
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tenant) = &self.tenant {
            write!(f, "{tenant}/")?;
        }
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl serde::Serialize for Ref {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Ref {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones_round_trip() {
        for (text, full) in [
            ("debian:12", "debian:12"),
            ("debian", "debian:latest"),
            ("acme/web_1:v1.2-rc", "acme/web_1:v1.2-rc"),
        ] {
            assert_eq!(text.parse::<Ref>().unwrap().to_string(), full);
        }
    }

    #[test]
    fn some_can_be_taken_for_digests() {
        let digest = crate::Digest::of_chunk(b"a").to_string();
        for text in [digest.clone(), format!("{digest}:1"), digest.to_uppercase()] {
            assert!(text.parse::<Ref>().unwrap().looks_like_digest(), "{text}");
        }
        for text in [&format!("a/{digest}"), &digest[1..], "debian:12", &format!("{digest}0")] {
            assert!(!text.parse::<Ref>().unwrap().looks_like_digest(), "{text}");
        }
    }

    #[test]
    fn hostile_ones_are_refused_with_the_name() {
        let long = "x".repeat(129);
        for bad in [
            "", ":", "/", "a/", "/a", "a:", ":a", "../etc:x", "a/../b:x", "a..b", "a b", "a:b c",
            "a/b/c:d", "a:b:c", "-a", ".a", "dé:1", "a\n:1", "a%2e:1", &long,
        ] {
            let e = bad.parse::<Ref>().unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid);
            assert!(e.message().contains("ref `"), "{e}");
        }
    }
}
