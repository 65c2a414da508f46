//! The shared credentials file of S3 tools: sections of `name = value`, one per profile.
//!
//! ```text
//! [default]
//! aws_access_key_id = …
//! aws_secret_access_key = …
//! aws_session_token = …        (if they are temporary)
//! region, endpoint_url = …     (as other tools have them in their config file)
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use configparser::ini::Ini;
use image::{Error, Kind, Result};

/// The profile that is read if none is named.
const DEFAULT: &str = "default";
/// Longest credentials file in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Names of settings in a profile, and of the setting that each stands for.
const NAMES: [(&str, &str); 5] = [
    ("aws_access_key_id", "aws_access_key_id"),
    ("aws_secret_access_key", "aws_secret_access_key"),
    ("aws_session_token", "aws_session_token"),
    ("region", "aws_region"),
    ("endpoint_url", "aws_endpoint_url"),
];

/// Reads a profile. Settings that are not of use here are passed over.
pub(crate) fn read(path: &Path, profile: Option<&str>) -> Result<BTreeMap<String, String>> {
    let place = || format!("credentials file {}", path.display());
    let len = std::fs::metadata(path).map_err(|e| Error::io(place(), e))?.len();
    if len > MAX_FILE {
        return Err(Error::new(Kind::Invalid, format!("{}: {len} bytes are too many", place())));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(place(), e))?;
    parse(text, profile).map_err(|why| Error::new(Kind::Invalid, format!("{}: {why}", place())))
}

/// Reads the default profile of a file that nobody named: nothing if that has no keys, for then the
/// file is another tool's, and what it is good for is none of our business.
pub(crate) fn read_unasked(path: &Path) -> BTreeMap<String, String> {
    read(path, None).unwrap_or_else(|error| {
        tracing::info!(%error, "credentials are taken from elsewhere");
        BTreeMap::new()
    })
}

fn parse(text: String, profile: Option<&str>) -> Result<BTreeMap<String, String>, String> {
    let mut ini = Ini::new_cs();
    let mut form = ini.defaults();
    // A secret may hold any of the other signs.
    form.delimiters = vec!['='];
    form.enable_inline_comments = false;
    ini.load_defaults(form);
    // Its complaints may quote a line, and a line may be a secret.
    let sections =
        ini.read(text).map_err(|_| "it is not made of `[profile]` and `name = value`")?;
    let profile = profile.unwrap_or(DEFAULT);
    let found = sections.get(profile).or_else(|| sections.get(&format!("profile {profile}")));
    let Some(section) = found else {
        let mut names: Vec<&str> = sections.keys().map(String::as_str).collect();
        names.sort_unstable();
        return Err(format!(
            "there is no profile [{profile}], but [{}]; name one with AWS_PROFILE",
            names.join("], [")
        ));
    };
    let value = |name: &str| section.get(name).cloned().flatten().filter(|v| !v.is_empty());
    for needed in ["aws_access_key_id", "aws_secret_access_key"] {
        if value(needed).is_none() {
            return Err(format!("profile [{profile}] has no {needed}"));
        }
    }
    let settings = NAMES.iter().filter_map(|(name, key)| Some(((*key).to_owned(), value(name)?)));
    Ok(settings.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# made by a tool\n[default]\naws_access_key_id=AK\n\
        aws_secret_access_key = a/b+c#d;e=f:g\n\n[profile grid]\nregion = eu-1\n\
        aws_access_key_id = GK\naws_secret_access_key = s\nendpoint_url = http://127.0.0.1:9\n\
        s3 =\n  signature_version = s3v4\n[half]\naws_access_key_id = HK\n";

    #[test]
    fn profiles_are_read_as_other_tools_write_them() {
        let default = parse(FILE.into(), None).unwrap();
        assert_eq!(default["aws_access_key_id"], "AK");
        assert_eq!(default["aws_secret_access_key"], "a/b+c#d;e=f:g");
        assert_eq!(default.len(), 2);
        let grid = parse(FILE.into(), Some("grid")).unwrap();
        assert_eq!((&*grid["aws_region"], &*grid["aws_access_key_id"]), ("eu-1", "GK"));
        assert_eq!(grid["aws_endpoint_url"], "http://127.0.0.1:9");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        let e = parse(FILE.into(), Some("other")).unwrap_err();
        assert!(e.contains("[other]") && e.contains("[half]") && e.contains("AWS_PROFILE"), "{e}");
        let e = parse(FILE.into(), Some("half")).unwrap_err();
        assert!(e.contains("aws_secret_access_key") && e.contains("[half]"), "{e}");
        if let Err(e) = parse("[default\nSECRET".into(), None) {
            assert!(!e.contains("SECRET"), "{e}");
        }
        let e = read(Path::new("/nowhere/credentials"), None).unwrap_err();
        assert!(e.message().contains("/nowhere/credentials"), "{e}");
    }
}
