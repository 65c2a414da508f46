//! Where a cluster is, and what it is shown.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use image::{Error, Kind, Result};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::calls::Member;
use crate::files;

const SCHEME: &str = "etcd://";

/// The files of what is shown to etcd, and of whom etcd's certificates are from, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Papers {
    /// Certificates of the authorities that etcd's certificates are from.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A place in etcd: its members, and a prefix of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPlace {
    /// Host and port of each.
    members: Vec<String>,
    /// Empty: `forebay/GRID`.
    prefix: String,
    papers: Option<Papers>,
}

impl ClusterPlace {
    /// Whether a text means a place in etcd.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads `etcd://HOST:PORT,HOST:PORT/PREFIX`. Without papers, members are on this machine.
    pub fn parse(text: &str, papers: Option<Papers>) -> Result<Self> {
        let invalid = |why: String| Error::new(Kind::Invalid, format!("`{text}`: {why}"));
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| {
            invalid(
                "must begin with etcd://, e.g. etcd://10.0.0.1:2379,10.0.0.2:2379/prefix".into(),
            )
        })?;
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let members: Vec<String> = members.split(',').map(str::to_owned).collect();
        for member in &members {
            let host = host(member).ok_or_else(|| {
                invalid(format!("`{member}` must be HOST:PORT, such as 10.0.0.1:2379"))
            })?;
            if papers.is_none() && !is_here(host) {
                let why = format!(
                    "{host} is another machine, so etcd must be reached by mutual TLS: set \
                     placement.etcd_ca, placement.etcd_cert and placement.etcd_key"
                );
                return Err(invalid(why));
            }
        }
        let prefix = prefix.trim_matches('/').to_owned();
        Ok(Self { members, prefix, papers })
    }

    /// What stands before each key of a grid.
    pub(super) fn root(&self, grid: Option<&str>) -> Result<String> {
        match (self.prefix.as_str(), grid) {
            ("", Some(grid)) => Ok(format!("forebay/{grid}/")),
            ("", None) => {
                let what = format!(
                    "{self}: without the grid's CA its prefix is not known: restore the CA's directory, or \
                     name the prefix (forebay/GRID)"
                );
                Err(Error::new(Kind::Invalid, what))
            }
            (prefix, _) => Ok(format!("{prefix}/")),
        }
    }

    pub(super) fn members(&self) -> Result<Vec<Member>> {
        let tls = self.papers.as_ref().map(Papers::tls).transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let member = |name: &String| {
            let wrong = |e| Error::caused(Kind::Invalid, format!("etcd at {name}: its papers"), e);
            let endpoint = Endpoint::from_shared(format!("{scheme}://{name}")).map_err(wrong)?;
            let endpoint = match &tls {
                Some(tls) => endpoint.tls_config(tls.clone()).map_err(wrong)?,
                None => endpoint,
            };
            Ok(Member::new(name.clone(), endpoint))
        };
        self.members.iter().map(member).collect()
    }
}

impl std::fmt::Display for ClusterPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.members.join(","), self.prefix)
    }
}

/// The host of `HOST:PORT`, as it stands there.
fn host(member: &str) -> Option<&str> {
    let (host, port) = member.rsplit_once(':')?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    let right = !host.is_empty() && host.chars().all(fits) && port.parse::<u16>().is_ok();
    right.then_some(host)
}

fn is_here(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Papers {
    fn tls(&self) -> Result<ClientTlsConfig> {
        let read = |path: &Path| files::read(path).map_err(|e| e.at("papers for etcd"));
        let key = files::read_private(&self.key).map_err(|e| e.at("papers for etcd"))?;
        let identity = Identity::from_pem(read(&self.cert)?, key);
        let ca = Certificate::from_pem(read(&self.ca)?);
        Ok(ClientTlsConfig::new().ca_certificate(ca).identity(identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_what_is_not_safe_is_refused() {
        let here = |text: &str| ClusterPlace::parse(text, None);
        let place = here("etcd://127.0.0.1:1,localhost:2,[::1]:3/a/b/").unwrap();
        assert_eq!(place.members, ["127.0.0.1:1", "localhost:2", "[::1]:3"]);
        assert_eq!(
            (place.root(None).unwrap().as_str(), place.to_string().ends_with("/a/b")),
            ("a/b/", true)
        );
        assert_eq!(here("etcd://localhost:1").unwrap().root(Some("g")).unwrap(), "forebay/g/");
        assert!(here("etcd://localhost:1").unwrap().root(None).is_err());
        for (text, says) in [
            ("http://localhost:1", "etcd://"),
            ("etcd://", "HOST:PORT"),
            ("etcd://localhost", "HOST:PORT"),
            ("etcd://localhost:1,/x", "HOST:PORT"),
            ("etcd://u@localhost:1/x", "HOST:PORT"),
            ("etcd://localhost:1,10.0.0.1:2379/x", "placement.etcd_ca"),
        ] {
            let e = here(text).unwrap_err();
            assert_eq!(e.kind(), Kind::Invalid, "{text}");
            assert!(e.message().contains(says), "{text}: {e}");
        }
        let papers = Papers { ca: "a".into(), cert: "b".into(), key: "c".into() };
        assert!(ClusterPlace::parse("etcd://10.0.0.1:2379/x", Some(papers)).is_ok());
    }
}
