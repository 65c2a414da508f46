//! The one configuration: a TOML file, overridden by `FOREBAY_*` environment variables, overridden
//! by flags. Every key is optional, and stands in [`KEYS`] with what it means.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::{Error, Kind, Result};
use serde::Serialize;

/// What a key's text must be.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Bytes: `64MiB`, `10GiB`, `1500000`.
    Size,
    /// A time: `150ms`, `24h`.
    Time,
    /// A whole number.
    Number,
    /// A number that is not below 0: `1.5`.
    Decimal,
    /// `address:port`.
    Address,
    /// An IP address.
    Ip,
    /// A path.
    Path,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Names that who reads the key takes apart.
    Words,
}

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Dotted name; a table and a key in the file.
    pub name: &'static str,
    /// What it must be.
    pub form: Form,
    /// Its value unless it is set; empty if that depends on others (the text says how).
    pub default: &'static str,
    /// What it means.
    pub doc: &'static str,
}

const fn key(name: &'static str, form: Form, default: &'static str, doc: &'static str) -> Key {
    Key { name, form, default, doc }
}

/// What is logged unless told otherwise. The FUSE library warns of each operation that is not needed.
pub const DEFAULT_FILTER: &str = "warn,fuser=error";

/// Every key, in the order in which `forebay config` prints them.
pub const KEYS: &[Key] = &[
    key(
        "up.listen",
        Form::Address,
        "127.0.0.1:7400",
        "where placement's HTTPS API listens; port 0 takes a free one",
    ),
    key(
        "up.name",
        Form::Word(&[]),
        "up",
        "name of this `forebay up` in the grid: each of several over one state needs its own",
    ),
    key(
        "up.placements",
        Form::Word(&[]),
        "",
        "of several `forebay up` over one state, the addresses of all, with commas in between: members are told of \
         them, and try them in this order; the own one unless set",
    ),
    key(
        "placement.lease",
        Form::Time,
        "15m",
        "how long a node that is not heard of has its volumes for itself, 4 s at least: it stops writing before that is over",
    ),
    key(
        "placement.certificates",
        Form::Time,
        "365d",
        "how long certificates of members are good for, 365 d at most; members renew them when a third of that is left",
    ),
    key(
        "placement.state",
        Form::Path,
        "",
        "placement's state: a file, or members of etcd and a prefix of keys, such as \
         etcd://10.0.0.1:2379,10.0.0.2:2379/forebay; DATA/placement.redb unless set",
    ),
    key(
        "placement.etcd_ca",
        Form::Path,
        "",
        "certificates of the authorities that etcd's are from, PEM; needed unless etcd is on this machine",
    ),
    key("placement.etcd_cert", Form::Path, "", "certificate that etcd is shown, PEM"),
    key("placement.etcd_key", Form::Path, "", "key of that certificate, PEM; of mode 600"),
    key("serve.ip", Form::Ip, "127.0.0.1", "IP address on which chunks are served over QUIC"),
    key(
        "serve.port",
        Form::Number,
        "0",
        "first UDP port for chunks, one more per core; 0 takes free ones",
    ),
    key("serve.advertise_ip", Form::Ip, "", "IP address that nodes are told; serve.ip unless set"),
    key("serve.cores", Form::Number, "0", "cores that serve chunks; 0 means all"),
    key(
        "serve.api_port",
        Form::Number,
        "0",
        "TCP port of a cache's own API, metrics included, on serve.ip; 0 takes a free one; that of \
         `forebay up` is placement's",
    ),
    key(
        "serve.memory",
        Form::Size,
        "256MiB",
        "memory for what is on its way, over all connections; each takes 768 KiB at least",
    ),
    key(
        "serve.revocations",
        Form::Time,
        "20s",
        "how often a server of chunks asks placement whose certificates are refused",
    ),
    key(
        "store.at",
        Form::Path,
        "",
        "the permanent store: a directory, or a URL such as s3://bucket/prefix; DATA/store unless \
         set",
    ),
    key(
        "receiver.buffer",
        Form::Size,
        "128MiB",
        "memory for pushed frames on their way into packs",
    ),
    key("cache.memory", Form::Size, "64MiB", "memory for frames"),
    key(
        "cache.in_flight",
        Form::Size,
        "128MiB",
        "memory for frames on their way to readers and to disk",
    ),
    key("cache.disk", Form::Size, "10GiB", "disk space for frames; 0 switches the disk tier off"),
    key("cache.reserve", Form::Size, "1GiB", "free space that the cache leaves on its file system"),
    key("cache.dir", Form::Path, "", "directory of the cache's segments; DATA/cache unless set"),
    key(
        "cache.scrub",
        Form::Size,
        "8MiB",
        "bytes a second of the cache's disk that are checked, again and again; 0 switches it off",
    ),
    key(
        "cache.weight",
        Form::Number,
        "100",
        "share of the sections, beside the other caches' weights; with 0 the cache of `forebay up` gets \
         none while there are others",
    ),
    key("gc.grace", Form::Time, "24h", "how long garbage is kept after it was condemned"),
    key("node.cores", Form::Number, "0", "cores that a pull uses; 0 means all"),
    key("node.memory", Form::Size, "32MiB", "memory for chunks on their way to the disk"),
    key(
        "node.rate",
        Form::Size,
        "0",
        "bytes a second that pulls may take from the network; 0 means no limit",
    ),
    key("node.transfers", Form::Number, "2", "transfers that the node daemon runs at a time"),
    key("node.builds", Form::Number, "1", "volumes of pools that the node daemon builds at a time"),
    key(
        "node.build_rate",
        Form::Size,
        "0",
        "bytes a second that builds of pools that nobody waits for may take together from the network; 0 means no limit",
    ),
    key("node.captures", Form::Number, "2", "volumes that the node daemon captures at a time"),
    // With twice as much what a guest on two cores feels of it is 1.8 to 2.6 times as much as nothing, and with this 0.9 to
    // 1.7 times (p99, `compare save-beside`).
    key(
        "node.capture_rate",
        Form::Size,
        "32MiB",
        "bytes a second that a capture with --background reads at most; 0 means no limit",
    ),
    key(
        "node.stats",
        Form::Time,
        "10s",
        "how often the node measures itself, 1 s at least; more often while somebody looks",
    ),
    key(
        "node.domain",
        Form::Words,
        "",
        "where the node stands, a name for each of place.levels: ams/row-2/rack-7",
    ),
    key("node.labels", Form::Words, "", "what requests may ask for: disk=nvme, tier=gold"),
    key("node.functions", Form::Words, "", "what the node is there for: web, build"),
    key("node.tenants", Form::Words, "", "the only tenants whose guests it takes; all unless set"),
    key(
        "node.risk_most",
        Form::Words,
        "",
        "the highest risk class that it takes, 0 to 255; any unless set",
    ),
    key(
        "node.licences",
        Form::Words,
        "",
        "licences that it holds, each with how many guests it is good for (* for any number) and what one more costs: \
         windows=4@0.5, sql=*@2",
    ),
    key(
        "node.strengths",
        Form::Words,
        "",
        "how much of what the bare machine does its guests reached, of CPU, disk and network: qemu=0.97/0.8/0.9",
    ),
    key(
        "node.network",
        Form::Size,
        "0",
        "bits a second that its network carries; 0: as its interfaces say",
    ),
    key(
        "node.architecture",
        Form::Words,
        "",
        "its CPU architecture; as the kernel says unless set",
    ),
    key("node.socket", Form::Path, "", "the node daemon's socket; DATA/node/node.sock unless set"),
    key("volumes.dir", Form::Path, "", "directory of the node's volumes; DATA/volumes unless set"),
    key(
        "volumes.memory",
        Form::Size,
        "64MiB",
        "memory of each core for what is between guests and volumes, and as much for what arrives",
    ),
    key(
        "volumes.rate",
        Form::Size,
        "0",
        "bytes a second that all volumes together fetch before a guest asks; 0 means no limit",
    ),
    key(
        "volumes.share",
        Form::Word(&["auto", "always", "never"]),
        "auto",
        "whether new volumes share the chunks of their images; auto: where files can share blocks, and of images that the node holds",
    ),
    key("import.memory", Form::Size, "160MiB", "memory for sections on their way to the receiver"),
    key(
        "import.workers",
        Form::Number,
        "0",
        "threads that hash and compress; 0 means one per core",
    ),
    key(
        "place.levels",
        Form::Words,
        "",
        "levels of failure domains, the widest first: site/row/rack; below all is the node",
    ),
    key("place.head_room_cpu", Form::Number, "0", "thousandths of each node's CPUs that stay free"),
    key("place.head_room_memory", Form::Number, "0", "the same of memory"),
    key("place.head_room_disk", Form::Number, "50", "the same of the disk"),
    key("place.head_room_network", Form::Number, "0", "the same of the network"),
    key(
        "place.pools_disk",
        Form::Number,
        "1000",
        "thousandths of each node's disk that volumes of pools may have, ready or being built",
    ),
    key(
        "place.load_most",
        Form::Decimal,
        "0.9",
        "load above which a node takes nothing new, 0 to 1",
    ),
    key(
        "place.weight_fit",
        Form::Decimal,
        "1",
        "how much it counts that a node gets full, so that large room stays for large requests",
    ),
    key("place.weight_image", Form::Decimal, "2", "the same of the image's share that is at hand"),
    key("place.weight_pool", Form::Decimal, "2", "the same of a ready volume of the pool"),
    key("place.weight_near", Form::Decimal, "0.5", "the same of being near what it should be near"),
    key(
        "place.weight_behaviour",
        Form::Decimal,
        "1",
        "the same of a hypervisor that is strong where the guest needs it",
    ),
    key("place.weight_licence", Form::Decimal, "1", "the same of licences that cost little"),
    key("place.weight_idle", Form::Decimal, "0.5", "the same of a node whose tasks do not wait"),
    key(
        "place.weight_spread",
        Form::Decimal,
        "1.5",
        "the same of a failure domain with few of those from whom it should be spread",
    ),
    key(
        "io.engine",
        Form::Word(&["auto", "io_uring", "portable"]),
        "auto",
        "how files are read and written",
    ),
    key(
        "log.format",
        Form::Word(&["human", "json"]),
        "human",
        "format of the log on standard error",
    ),
    key(
        "log.filter",
        Form::Word(&[]),
        DEFAULT_FILTER,
        "what is logged, e.g. `info` or `warn,forebay_stream=debug`",
    ),
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "from", content = "name")]
pub enum Origin {
    /// Built in.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "${name}"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Config {
    values: BTreeMap<&'static str, (String, Origin)>,
    /// The data directory.
    pub data: PathBuf,
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, message)
}

fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// The environment variable of a key.
pub fn variable(name: &str) -> String {
    format!("FOREBAY_{}", name.replace('.', "_").to_uppercase())
}

fn check(key: &Key, text: &str) -> std::result::Result<(), String> {
    if text.is_empty() && key.default.is_empty() {
        return Ok(());
    }
    match key.form {
        Form::Size => size(text).map(drop),
        Form::Time => parse_time(text).map(drop),
        Form::Number => text.parse::<u32>().map(drop).map_err(|e| e.to_string()),
        Form::Decimal => match text.parse::<f64>() {
            Ok(n) if n.is_finite() && n >= 0.0 => Ok(()),
            _ => Err("write a number that is not below 0, as 1.5".into()),
        },
        Form::Address => text.parse::<std::net::SocketAddr>().map(drop).map_err(|e| e.to_string()),
        Form::Ip => text.parse::<std::net::IpAddr>().map(drop).map_err(|e| e.to_string()),
        Form::Path | Form::Words | Form::Word(&[]) => Ok(()),
        Form::Word(words) if words.contains(&text) => Ok(()),
        Form::Word(words) => Err(format!("must be one of {}", words.join(", "))),
    }
}

/// Checks a key and its value, given on the command line.
pub fn check_setting(name: &str, text: &str) -> std::result::Result<(), String> {
    find(name).ok_or_else(|| no_such_key(name)).and_then(|key| check(key, text))
}

fn no_such_key(name: &str) -> String {
    format!("there is no key `{name}`; `forebay config` lists them all")
}

fn size(text: &str) -> std::result::Result<u64, String> {
    let bytes = text.parse::<bytesize::ByteSize>().map(|b| b.as_u64());
    match bytes {
        // More than fits is parsed as the most that does.
        Ok(u64::MAX) => {
            let most = volume_pool::size::shown(image::geometry::MAX_DISK);
            Err(format!("too large: the largest disk has {most}"))
        }
        Ok(bytes) => Ok(bytes),
        Err(_) => Err("write a size as 20GiB, 512MiB or a number of bytes".into()),
    }
}

/// Parses a size given on the command line.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    size(text)
}

/// Parses bytes a second given on the command line.
pub fn parse_rate(text: &str) -> std::result::Result<u64, String> {
    let bytes = text.parse::<bytesize::ByteSize>().map(|b| b.as_u64());
    bytes.map_err(|_| "write bytes a second as 40MiB, 500KiB or a number".into())
}

/// Parses a time given on the command line.
pub fn parse_time(text: &str) -> std::result::Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a time as 30s, 30m or 2h".into())
}

/// The same of one in which something is to be done.
pub fn parse_later(text: &str) -> std::result::Result<Duration, String> {
    match parse_time(text)? {
        time if time.as_secs() == 0 => Err("a second is the least".into()),
        time => Ok(time),
    }
}

/// Parses two whole numbers given on the command line, of which the first is not above the second.
pub fn parse_range(text: &str) -> std::result::Result<(u32, u32), String> {
    let both = text
        .split_once("..")
        .and_then(|(from, to)| Some((from.trim().parse().ok()?, to.trim().parse().ok()?)));
    both.filter(|(from, to)| from <= to)
        .ok_or_else(|| "write the least and the most as 1..40".into())
}

impl Config {
    /// Reads the configuration. `file` must exist if it is named; else `DATA/forebay.toml` is read
    /// if it is there. `flags` are `key=value` pairs from the command line.
    pub fn load(
        data: PathBuf,
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
        flags: &[(String, String)],
    ) -> Result<Self> {
        let defaults = KEYS.iter().map(|k| (k.name, (k.default.to_owned(), Origin::Default)));
        let mut config = Self { values: defaults.collect(), data };
        let usual = config.data.join("forebay.toml");
        let path = file.unwrap_or(&usual);
        if file.is_some() || path.exists() {
            config.read_file(path)?;
        }
        for key in KEYS {
            let name = variable(key.name);
            if let Some(text) = environment(&name) {
                config.set(key.name, text, Origin::Environment(name))?;
            }
        }
        for (name, text) in flags {
            config.set(name, text.clone(), Origin::Flag(format!("--set {name}")))?;
        }
        Ok(config)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), e))?;
        let tables: toml::Table =
            toml::from_str(&text).map_err(|e| invalid(format!("{}: {e}", path.display())))?;
        for (table, keys) in tables {
            let toml::Value::Table(keys) = keys else {
                let path = path.display();
                return Err(invalid(format!("{path}: `{table}` must be a table, e.g. [{table}]")));
            };
            for (key, value) in keys {
                let text = match value {
                    toml::Value::String(s) => s,
                    other => other.to_string(),
                };
                let origin = Origin::File(path.to_owned());
                self.set(&format!("{table}.{key}"), text, origin)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, text: String, origin: Origin) -> Result<()> {
        let Some(key) = find(name) else {
            return Err(invalid(format!("{origin}: {}", no_such_key(name))));
        };
        check(key, &text).map_err(|why| invalid(format!("{origin}: {name} = `{text}`: {why}")))?;
        self.values.insert(key.name, (text, origin));
        Ok(())
    }

    /// Every key with its value in force and where it came from.
    pub fn entries(&self) -> impl Iterator<Item = (&'static Key, &str, &Origin)> {
        KEYS.iter().map(|k| {
            let (text, origin) = &self.values[k.name];
            (k, text.as_str(), origin)
        })
    }

    /// A value as text.
    pub fn text(&self, name: &'static str) -> &str {
        &self.values[name].0
    }

    /// A size in bytes.
    pub fn size(&self, name: &'static str) -> u64 {
        size(self.text(name)).expect("checked when it was set")
    }

    /// A time.
    pub fn time(&self, name: &'static str) -> Duration {
        humantime::parse_duration(self.text(name)).expect("checked when it was set")
    }

    /// A number.
    pub fn number(&self, name: &'static str) -> u32 {
        self.text(name).parse().expect("checked when it was set")
    }

    /// A number that need not be whole.
    pub fn decimal(&self, name: &'static str) -> f64 {
        self.text(name).parse().expect("checked when it was set")
    }

    /// A number of threads; 0 means one per core.
    pub fn threads(&self, name: &'static str) -> usize {
        match self.number(name) as usize {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// A path, or `usual` under the data directory.
    pub fn path(&self, name: &'static str, usual: &str) -> PathBuf {
        match self.text(name) {
            "" => self.data.join(usual),
            text => PathBuf::from(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("forebay.toml"), toml).unwrap();
        let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let env = |name: &str| env.iter().find(|e| e.0 == name).map(|e| e.1.to_owned());
        Config::load(dir.path().to_owned(), None, env, &flags)
    }

    #[test]
    fn defaults_are_what_their_form_says() {
        let config = load("", &[], &[]).unwrap();
        for (key, text, origin) in config.entries() {
            check(key, text).unwrap_or_else(|e| panic!("{}: {e}", key.name));
            assert_eq!(*origin, Origin::Default);
        }
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let toml = "[cache]\nmemory = \"1MiB\"\ndisk = 4096\n[log]\nformat = \"json\"";
        let env = [("FOREBAY_CACHE_MEMORY", "2MiB"), ("FOREBAY_CACHE_DISK", "3MiB")];
        let config = load(toml, &env, &[("cache.memory", "4MiB")]).unwrap();
        assert_eq!(config.size("cache.memory"), 4 << 20);
        assert_eq!(config.size("cache.disk"), 3 << 20);
        assert_eq!(config.text("log.format"), "json");
    }

    #[test]
    fn wrong_keys_and_values_are_refused_by_name() {
        for (toml, says) in [
            ("[cache]\nmemry = \"1MiB\"", "cache.memry"),
            ("[cache]\nmemory = \"lots\"", "cache.memory"),
            ("[io]\nengine = \"magic\"", "io_uring"),
            ("cache = 1", "must be a table"),
            ("[cache", "forebay.toml"),
        ] {
            let e = load(toml, &[], &[]).unwrap_err();
            assert!(e.message().contains(says), "{e}");
            assert_eq!(e.kind(), Kind::Invalid);
        }
    }
}
