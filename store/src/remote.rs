//! How an object store across the network is spoken to: endpoint, region, credentials, retries and
//! timeouts.
//!
//! Settings have the names that other tools give their environment variables, in lower case. Keys
//! for S3 come from the settings (`aws_access_key_id`, `aws_secret_access_key`), else from the shared
//! credentials file (`aws_shared_credentials_file`, or `~/.aws/credentials` if that is there;
//! `aws_profile` names the section; if neither file nor section is named, only if the default one has
//! keys), else from where a machine or a container in a cloud has them.
//! Paths are `endpoint/bucket/…` unless `aws_virtual_hosted_style_request` says otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use image::{Error, Kind, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::credentials;
use crate::errors::from_store;

/// First and longest pause between two tries; between them each pause is drawn at random from the
/// first to three times the one before (decorrelated jitter).
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How an object store across the network is spoken to.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Settings of the object store by the names of their environment variables in lower case:
    /// `aws_endpoint_url`, `aws_region`, `aws_access_key_id`, …; others are passed over.
    pub settings: BTreeMap<String, String>,
    /// How often a request is tried again if the server cannot be reached, says 5xx or 429, or does
    /// not end its answer. What cannot get better (401, 403, 404, …) is not tried again.
    pub retries: usize,
    /// No try begins later than this after the first.
    pub retry_for: Duration,
    /// How long connecting may take.
    pub connect: Duration,
    /// How long an answer may stand still, or take to begin.
    pub stall: Duration,
    /// How long one try may take. With `retry_for` it must be less than the life of a session
    /// ([`crate::StoreOptions::session_life`]).
    pub request: Duration,
}

impl Remote {
    /// With these settings, of which only those of object stores are taken: the whole environment
    /// may be given.
    pub fn new(settings: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |name: &str| {
            let prefixes = ["aws_", "google_", "azure_"];
            prefixes.iter().any(|p| name.starts_with(p)) || name == "home"
        };
        let settings = settings.into_iter().map(|(name, value)| (name.to_lowercase(), value));
        Self {
            settings: settings.filter(|(name, _)| ours(name)).collect(),
            retries: 8,
            retry_for: Duration::from_secs(60),
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            request: Duration::from_secs(120),
        }
    }

    /// The objects below a URL.
    pub(crate) fn objects(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let invalid = |e: &dyn std::fmt::Display| Error::new(Kind::Invalid, e.to_string());
        let (scheme, prefix) = ObjectStoreScheme::parse(url).map_err(|e| invalid(&e))?;
        let settings = self.effective(&scheme)?;
        let retry = self.retry();
        // The three builders have the same methods and no trait for them.
        macro_rules! built {
            ($builder:ty, $key:ty) => {{
                let builder = <$builder>::new().with_url(url.as_str()).with_retry(retry);
                let with = |builder: $builder, (name, value): (String, String)| match name
                    .parse::<$key>()
                {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                };
                let built = settings.into_iter().fold(builder, with).build();
                let built = built.map_err(|e| invalid(&from_store("its settings", e)))?;
                Ok(Arc::new(PrefixStore::new(built, prefix)))
            }};
        }
        match scheme {
            ObjectStoreScheme::AmazonS3 => built!(AmazonS3Builder, AmazonS3ConfigKey),
            ObjectStoreScheme::GoogleCloudStorage => {
                built!(GoogleCloudStorageBuilder, GoogleConfigKey)
            }
            ObjectStoreScheme::MicrosoftAzure => built!(MicrosoftAzureBuilder, AzureConfigKey),
            _ => {
                let message = "not a kind of store that is known; a directory, `s3://bucket/prefix`, \
                               `gs://…` and `az://…` are";
                Err(Error::new(Kind::Invalid, message))
            }
        }
    }

    fn retry(&self) -> RetryConfig {
        let backoff =
            BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 3. };
        RetryConfig { backoff, max_retries: self.retries, retry_timeout: self.retry_for }
    }

    /// The settings, with times and what a credentials file says where they say nothing.
    fn effective(&self, scheme: &ObjectStoreScheme) -> Result<BTreeMap<String, String>> {
        let (prefix, mut settings) = match scheme {
            ObjectStoreScheme::GoogleCloudStorage => ("google_", BTreeMap::new()),
            ObjectStoreScheme::MicrosoftAzure => ("azure_", BTreeMap::new()),
            _ => ("aws_", self.file_settings()?),
        };
        let times = [
            ("connect_timeout", self.connect),
            ("read_timeout", self.stall),
            ("timeout", self.request),
        ];
        settings.extend(times.map(|(name, t)| (name.to_owned(), format!("{}ms", t.as_millis()))));
        for (name, value) in &self.settings {
            // One name per setting: `aws_timeout` is the same as `timeout`.
            let plain = name.strip_prefix(prefix).filter(|n| times.iter().any(|(t, _)| t == n));
            settings.insert(plain.unwrap_or(name).to_owned(), value.clone());
        }
        Ok(settings)
    }

    /// What the credentials file says, if there are no keys in the settings.
    fn file_settings(&self) -> Result<BTreeMap<String, String>> {
        let setting = |name: &str| self.settings.get(name).map(String::as_str);
        let elsewhere = ["aws_access_key_id", "aws_skip_signature", "aws_web_identity_token_file"];
        let named = setting("aws_shared_credentials_file");
        let profile = setting("aws_profile");
        if elsewhere.iter().any(|name| setting(name).is_some()) {
            return Ok(BTreeMap::new());
        }
        let usual = || setting("home").map(|home| Path::new(home).join(".aws/credentials"));
        match (named, usual().filter(|path| path.exists())) {
            (Some(path), _) => credentials::read(&PathBuf::from(path), profile),
            (None, Some(path)) if profile.is_some() => credentials::read(&path, profile),
            (None, Some(path)) => Ok(credentials::read_unasked(&path)),
            (None, None) if profile.is_some() => {
                let message = "AWS_PROFILE is set, but there is no credentials file; name one with \
                               AWS_SHARED_CREDENTIALS_FILE";
                Err(Error::new(Kind::Invalid, message))
            }
            (None, None) => Ok(BTreeMap::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(settings: &[(&str, &str)]) -> Remote {
        Remote::new(settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_environment_may_be_given_whole() {
        // Without a prefix these would be taken for a session token, a bucket and a timeout.
        let remote =
            remote(&[("TOKEN", "x"), ("BUCKET", "y"), ("TIMEOUT", "z"), ("AWS_REGION", "r")]);
        assert_eq!(
            remote.settings.into_iter().collect::<Vec<_>>(),
            [("aws_region".into(), "r".into())]
        );
    }

    #[test]
    fn settings_come_before_the_file_and_both_before_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(&file, "[p]\naws_access_key_id=A\naws_secret_access_key=S\nregion=file\n")
            .unwrap();
        let path = file.to_str().unwrap();
        let s3 = ObjectStoreScheme::AmazonS3;
        let with_file = [("aws_shared_credentials_file", path), ("aws_profile", "p")];
        let settings = remote(&with_file).effective(&s3).unwrap();
        assert_eq!((&*settings["aws_access_key_id"], &*settings["aws_region"]), ("A", "file"));
        assert_eq!((&*settings["timeout"], &*settings["connect_timeout"]), ("120000ms", "5000ms"));
        let mut more = with_file.to_vec();
        more.extend([("aws_region", "env"), ("aws_timeout", "7s")]);
        let settings = remote(&more).effective(&s3).unwrap();
        assert_eq!((&*settings["aws_region"], &*settings["timeout"]), ("env", "7s"));
        more.push(("aws_access_key_id", "B"));
        let settings = remote(&more).effective(&s3).unwrap();
        assert_eq!(
            (&*settings["aws_access_key_id"], settings.get("aws_secret_access_key")),
            ("B", None)
        );
        let e = remote(&[("aws_profile", "p")]).effective(&s3).unwrap_err();
        assert!(e.message().contains("AWS_SHARED_CREDENTIALS_FILE"), "{e}");
        // Where other tools have it.
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        std::fs::rename(&file, dir.path().join(".aws/credentials")).unwrap();
        let home = [("home", dir.path().to_str().unwrap()), ("aws_profile", "p")];
        assert_eq!(remote(&home).effective(&s3).unwrap()["aws_access_key_id"], "A");
    }

    #[test]
    fn a_file_that_nobody_named_and_that_has_no_keys_to_use_leaves_a_machine_its_own_role() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".aws")).unwrap();
        let file = dir.path().join(".aws/credentials");
        let home = ("home", dir.path().to_str().unwrap());
        let keys = "aws_access_key_id=A\naws_secret_access_key=S\n";
        for text in [
            format!("[work]\n{keys}"),
            format!("[default]\ncredential_process=/bin/x\n[work]\n{keys}"),
            "[default]\nrole_arn=r\nsource_profile=work\n".into(),
            "[default\n".into(),
            String::new(),
        ] {
            std::fs::write(&file, &text).unwrap();
            let settings = remote(&[home]).effective(&ObjectStoreScheme::AmazonS3).unwrap();
            assert_eq!(settings.get("aws_access_key_id"), None, "{text}");
            // Who asks for it is told.
            for asked in [
                ("aws_profile", "default"),
                ("aws_shared_credentials_file", file.to_str().unwrap()),
            ] {
                let asked = remote(&[home, asked]).effective(&ObjectStoreScheme::AmazonS3);
                assert_eq!(asked.unwrap_err().kind(), Kind::Invalid, "{text}");
            }
        }
        std::fs::write(&file, format!("[default]\n{keys}")).unwrap();
        let settings = remote(&[home]).effective(&ObjectStoreScheme::AmazonS3).unwrap();
        assert_eq!(settings["aws_access_key_id"], "A");
    }
}
