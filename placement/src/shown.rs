//! What a server shows of itself: its papers, which may be renewed while it serves.

use std::sync::{Arc, PoisonError, RwLock};

use image::{Error, Kind, Result};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::papers::Papers;
use crate::tls;

/// The papers that new connections are shown. Connections that are there live on with what they were shown.
#[derive(Debug)]
pub struct Shown(RwLock<(Papers, Arc<CertifiedKey>)>);

impl Shown {
    /// Shows these papers.
    pub fn new(papers: Papers) -> Result<Arc<Self>> {
        let key = certified(&papers)?;
        Ok(Arc::new(Self(RwLock::new((papers, key)))))
    }

    /// Shows others from now on. They must be of the same CA: whom to trust is not changed.
    pub fn change(&self, papers: Papers) -> Result<()> {
        let key = certified(&papers)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (papers, key);
        Ok(())
    }

    /// The papers.
    pub fn papers(&self) -> Papers {
        self.0.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

fn certified(papers: &Papers) -> Result<Arc<CertifiedKey>> {
    let pair = CertifiedKey::from_der(papers.chain()?, papers.key()?, &tls::provider());
    let why = |e| format!("the key and the certificate do not belong together: {e}");
    pair.map(Arc::new).map_err(|e| Error::new(Kind::Corrupt, why(e)))
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).1))
    }
}
