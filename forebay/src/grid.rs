//! How a command finds its grid: through the data directory, in which `forebay up` or `forebay node
//! join` left what is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::catalog::{MoveRef, RefInfo};
use api::grid::CacheInfo;
use image::{Digest, Error, Kind, Ref, Result};
use node::patience::Patience;
use placement::{CareClient, Client, Member, Papers, PersonCode, Shown};
use serde::{Deserialize, Serialize};

use crate::report::Serving;

/// TLS of a client of the grid.
pub type TlsClient = rustls::ClientConfig;
/// TLS of a server of the grid.
pub type TlsServer = rustls::ServerConfig;

/// What `forebay up` says of itself to other commands on its machine.
const UP: &str = "up.json";
/// What `forebay node join` stored.
const JOINED: &str = "grid.json";
/// The token of a person who logged in.
const TOKEN: &str = "token";
/// The same, for one command.
const TOKEN_VARIABLE: &str = "FOREBAY_TOKEN";
/// Papers of a machine that joined.
pub const MEMBER: &str = "member";
/// Papers of the admin, on the machine of `forebay up`.
pub const ADMIN: &str = "admin";

/// Where a grid that was joined is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// Address of placement, `host:port`.
    pub placement: String,
}

/// A grid, as a member sees it.
#[derive(Clone)]
pub struct Grid {
    /// Its placement.
    pub placement: Client,
    rights: Rights,
}

/// By what one may use a grid.
#[derive(Clone, PartialEq, Eq)]
enum Rights {
    Member {
        papers: Papers,
        /// Where these are kept.
        dir: PathBuf,
    },
    Person(PersonCode),
}

/// What a data directory says of its grid.
#[derive(Clone, PartialEq, Eq)]
struct Whereabouts {
    address: String,
    rights: Rights,
}

impl Whereabouts {
    fn read(data: &Path) -> Result<Self> {
        // Said for this command, a token comes before what the directory holds.
        if let Some(text) = std::env::var_os(TOKEN_VARIABLE).filter(|text| !text.is_empty()) {
            let code = text.to_string_lossy().parse::<PersonCode>();
            return code.map(Self::of_person).map_err(|e| e.at(TOKEN_VARIABLE));
        }
        let member = |address, dir: &str| {
            let dir = data.join(dir);
            let rights = Rights::Member { papers: Papers::load(&dir)?, dir };
            Ok(Self { address, rights })
        };
        if let Some(serving) = read::<Serving>(&data.join(UP))? {
            return member(serving.placement.to_string(), ADMIN);
        }
        if let Some(joined) = read::<Joined>(&data.join(JOINED))? {
            return member(joined.placement, MEMBER);
        }
        match token(data)? {
            Some(code) => Ok(Self::of_person(code)),
            None => Err(no_grid(data)),
        }
    }

    fn of_person(code: PersonCode) -> Self {
        Self { address: code.address.clone(), rights: Rights::Person(code) }
    }
}

/// The grid of a data directory, looked for each time it is asked for: it may be joined, or its papers renewed, meanwhile.
/// While it is the same, so is the client.
#[derive(Clone)]
pub struct Finder {
    data: PathBuf,
    last: Arc<Mutex<Option<(Whereabouts, Grid)>>>,
}

impl Finder {
    /// Of this data directory.
    pub fn new(data: PathBuf) -> Self {
        Self { data, last: Arc::default() }
    }

    /// As [`Grid::find`].
    pub fn find(&self) -> Result<Grid> {
        let at = Whereabouts::read(&self.data)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, grid)) = last.as_ref().filter(|(before, _)| *before == at) {
            return Ok(grid.clone());
        }
        let grid = Grid::of(at.clone())?;
        *last = Some((at, grid.clone()));
        Ok(grid)
    }
}

/// The data directory unless another is named.
pub fn default_data() -> Result<PathBuf> {
    directories::ProjectDirs::from("", "", "forebay")
        .map(|dirs| dirs.data_dir().to_owned())
        .ok_or_else(|| {
            let why = "no home directory: name the data directory with --data or FOREBAY_DATA";
            Error::new(Kind::Invalid, why)
        })
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| Error::caused(Kind::Corrupt, format!("{}: {e}", path.display()), e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path.display(), e)),
    }
}

/// Leaves the note that other commands find the grid by; whole or not at all.
pub fn note_serving(data: &Path, serving: &Serving) -> Result<()> {
    write(&data.join(UP), serving)
}

/// Takes that note away.
pub fn forget_serving(data: &Path) {
    // Left behind, it would only make the next command's error less clear.
    let _ = fs::remove_file(data.join(UP));
}

/// Leaves the note about a grid that was joined.
pub fn note_joined(data: &Path, joined: &Joined) -> Result<()> {
    write(&data.join(JOINED), joined)
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).expect("our own types serialise");
    blockio::Fs::os().replace(path, &text).map_err(|e| Error::io(path.display(), e))
}

/// The token that is kept in a data directory.
fn token(data: &Path) -> Result<Option<PersonCode>> {
    match PersonCode::load(&data.join(TOKEN)) {
        Err(e) if e.kind() == Kind::Gone => Ok(None),
        read => read.map(Some),
    }
}

/// Refuses to keep a token where a grid is known already: it would never be shown.
pub fn refuse_login(data: &Path) -> Result<()> {
    let there = [UP, JOINED, ADMIN, MEMBER].iter().find(|name| data.join(name).exists());
    let Some(there) = there else { return Ok(()) };
    let what = format!(
        "{}: this directory is a member's, who needs no token; name another one (--data or FOREBAY_DATA)",
        data.join(there).display()
    );
    Err(Error::new(Kind::Conflict, what))
}

/// Keeps a token, for its owner alone; whole or not at all.
pub fn note_token(data: &Path, text: &str) -> Result<()> {
    let path = data.join(TOKEN);
    blockio::Fs::os().replace(&path, text.as_bytes()).map_err(|e| Error::io(path.display(), e))
}

/// The grid that a data directory joined.
pub fn joined(data: &Path) -> Result<Joined> {
    read(&data.join(JOINED))?.ok_or_else(|| no_grid(data))
}

impl Grid {
    /// Finds the grid of a data directory.
    pub fn find(data: &Path) -> Result<Self> {
        Self::of(Whereabouts::read(data)?)
    }

    fn of(at: Whereabouts) -> Result<Self> {
        let placement = match &at.rights {
            Rights::Member { papers, .. } => Client::new(&at.address, papers)?,
            Rights::Person(code) => Client::with_token(code)?,
        };
        Ok(Self { placement, rights: at.rights })
    }

    /// The same, whose placement is [asked again](Client::asking_again) for so long.
    pub fn asking_again(self, most: Duration) -> Self {
        Self { placement: self.placement.asking_again(most), ..self }
    }

    /// The certificate that chunks, caches on other machines and signatures need.
    fn papers(&self) -> Result<&Papers> {
        match &self.rights {
            Rights::Member { papers, .. } => Ok(papers),
            Rights::Person(_) => {
                let what = "this needs a member's certificate, and here is a person's token: run it on the machine of \
                            `forebay up`, or on one that has joined (`forebay node join`)";
                Err(Error::new(Kind::Denied, what))
            }
        }
    }

    /// Who this is in the grid.
    pub fn member(&self) -> Result<Member> {
        self.papers()?.member()
    }

    /// A signature by this member.
    pub fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.papers()?.sign(bytes)
    }

    /// Whether a signature is this member's, also if its certificate was renewed since.
    pub fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        match &self.rights {
            Rights::Member { dir, .. } => placement::papers::was_signed(dir, bytes, signature),
            Rights::Person(_) => false,
        }
    }

    /// TLS for QUIC connections to the grid's servers.
    pub fn tls(&self) -> Result<Arc<TlsClient>> {
        quic_client(self.papers()?)
    }

    /// The caches of these names, each with a client of its API; all of them if none is named.
    pub async fn caches(&self, names: &[String]) -> Result<Vec<(CacheInfo, Result<CareClient>)>> {
        let mut caches = self.placement.caches().await?.caches;
        if let Some(stranger) = names.iter().find(|n| !caches.iter().any(|c| c.name == **n)) {
            let known: Vec<_> = caches.iter().map(|c| c.name.as_str()).collect();
            let what =
                format!("there is no cache {stranger}; those that serve: {}", known.join(", "));
            return Err(Error::new(Kind::Gone, what));
        }
        caches.retain(|c| names.is_empty() || names.contains(&c.name));
        let client = |c: CacheInfo| {
            let client = match &self.rights {
                Rights::Member { papers, .. } => CareClient::new(&c, papers),
                Rights::Person(code) => CareClient::with_token(&c, code),
            };
            (c, client)
        };
        Ok(caches.into_iter().map(client).collect())
    }

    /// Moves or makes a ref. While garbage is deleted none moves: that is waited for, so that what led
    /// up to the move (the hours of an import) is not for nothing.
    pub async fn move_ref(&self, name: &Ref, to: &MoveRef) -> Result<RefInfo> {
        Patience::with_busy().ask(async || self.placement.move_ref(name, to).await).await
    }

    /// Resolves a ref or digest to an image.
    pub async fn resolve(&self, name: &str) -> Result<Digest> {
        match name.parse::<Digest>() {
            Ok(digest) => Ok(digest),
            Err(_) => Ok(self.placement.image(name).await?.image),
        }
    }
}

fn no_grid(data: &Path) -> Error {
    let message = format!(
        "{}: no grid is known there; start one with `forebay up`, join one with `forebay node \
         join TOKEN`, or use one as a person with `forebay login` (the directory is set by --data or FOREBAY_DATA)",
        data.display()
    );
    Error::new(Kind::Gone, message)
}

fn stream_papers(papers: &Papers) -> stream::transport::Papers<'_> {
    stream::transport::Papers {
        ca: papers.ca_pem.as_bytes(),
        certificate: papers.cert_pem.as_bytes(),
        key: papers.key_pem.as_bytes(),
    }
}

/// TLS for QUIC connections to the grid's servers.
pub fn quic_client(papers: &Papers) -> Result<Arc<TlsClient>> {
    stream::transport::client_config(stream_papers(papers))
}

/// TLS for QUIC connections from the grid's members.
pub fn quic_server(shown: &Arc<Shown>) -> Result<Arc<TlsServer>> {
    let ca = shown.papers().ca_pem;
    stream::transport::server_config_showing(ca.as_bytes(), Arc::clone(shown) as _)
}
