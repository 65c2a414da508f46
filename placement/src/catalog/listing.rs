//! Lists of images: those that have a ref, and what they were made from.

use std::collections::{BTreeMap, HashSet};

use api::catalog::{Ancestor, ImageLine, ImageList, RefInfo};
use futures::StreamExt;
use image::{Digest, Kind, Result};

use super::Catalog;

/// Images of a list that are looked up in the store at the same time.
const LOOK_UPS: usize = 8;
/// Ancestors without a name that a list shows at most.
const MAX_ANCESTORS: usize = 10_000;

impl Catalog {
    /// One line per ref. A ref whose image the store cannot describe is in the list too, and says so.
    pub(crate) async fn list(&self, ancestors: bool) -> Result<ImageList> {
        let refs = self.state.refs().await?;
        let lines = futures::stream::iter(refs).map(|r| self.line(r)).buffered(LOOK_UPS);
        let images: Vec<ImageLine> = lines.collect().await;
        let ancestors = match ancestors {
            true => Some(self.ancestors(&images).await),
            false => None,
        };
        Ok(ImageList { images, ancestors })
    }

    async fn line(&self, at: RefInfo) -> ImageLine {
        let mut line = ImageLine {
            name: at.name,
            image: at.image,
            size: 0,
            stored: 0,
            created: None,
            os: None,
            kind: None,
            parent: None,
            labels: BTreeMap::new(),
            problem: None,
        };
        match self.images.get(at.image).await {
            Ok(known) => {
                line.size = known.facts.size;
                line.stored = known.facts.stored;
                if let Some(record) = &known.record {
                    line.created = Some(record.created);
                    line.os = record.os.clone();
                    line.kind = Some(record.kind);
                    line.parent = record.parent;
                    line.labels = record.labels.clone();
                }
            }
            Err(e) => {
                tracing::warn!(r#ref = %line.name, error = %e, "no facts of a ref's image");
                line.problem = Some(e.to_string());
            }
        }
        line
    }

    /// What these images were made from, and so on, as far as it has no name. Each once: who makes a circle of records
    /// leads nobody in it.
    async fn ancestors(&self, images: &[ImageLine]) -> Vec<Ancestor> {
        let mut seen: HashSet<Digest> = images.iter().map(|line| line.image).collect();
        let mut next: Vec<Digest> = images.iter().filter_map(|line| line.parent).collect();
        let mut found = Vec::new();
        while !next.is_empty() {
            next.retain(|image| seen.insert(*image));
            next.truncate(MAX_ANCESTORS - found.len());
            let asked = std::mem::take(&mut next);
            let looked = futures::stream::iter(asked).map(|image| self.ancestor(image));
            let looked: Vec<Ancestor> = looked.buffered(LOOK_UPS).collect().await;
            next.extend(looked.iter().filter_map(|ancestor| ancestor.parent));
            found.extend(looked);
        }
        found
    }

    async fn ancestor(&self, image: Digest) -> Ancestor {
        let known = self.images.get(image).await;
        let mut ancestor = Ancestor::unknown(image);
        match &known {
            Ok(known) => {
                ancestor.size = known.facts.size;
                ancestor.stored = known.facts.stored;
                let record = known.record.as_ref();
                ancestor.created = record.map(|r| r.created);
                ancestor.os = record.and_then(|r| r.os.clone());
                ancestor.kind = record.map(|r| r.kind);
                ancestor.parent = record.and_then(|r| r.parent);
            }
            Err(e) if e.kind() == Kind::Gone => ancestor.gone = true,
            Err(e) => ancestor.problem = Some(e.to_string()),
        }
        ancestor
    }
}
