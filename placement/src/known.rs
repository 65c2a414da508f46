//! What is known of images, kept in memory: so that a list of refs does not go to the store for
//! every line, every time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use image::signing::VerifyingKey;
use image::{Digest, ImageRecord, Result};

use crate::archive::{Archive, ImageFacts};

/// Images that are remembered at most; some hundreds of bytes each, and their records.
const MAX_IMAGES: usize = 10_000;

/// Facts of an image, and its newest record.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub facts: ImageFacts,
    pub record: Option<ImageRecord>,
}

/// Asks the store once per image.
pub(crate) struct Images {
    archive: Arc<dyn Archive>,
    key: VerifyingKey,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    images: HashMap<Digest, Arc<Known>>,
    /// Grows when something remembered became wrong. What was read before that is not remembered
    /// after it: the reader may have seen the store as it was.
    generation: u64,
}

impl Images {
    pub(crate) fn new(archive: Arc<dyn Archive>, key: VerifyingKey) -> Self {
        Self { archive, key, memory: Mutex::default() }
    }

    /// What is known of an image; `Gone` if it does not exist.
    pub(crate) async fn get(&self, image: Digest) -> Result<Arc<Known>> {
        let generation = {
            let memory = self.memory();
            if let Some(known) = memory.images.get(&image) {
                return Ok(known.clone());
            }
            memory.generation
        };
        let facts = self.archive.facts(image).await?;
        let known = Arc::new(Known { facts, record: self.newest_record(image).await? });
        let mut memory = self.memory();
        if memory.generation == generation {
            if memory.images.len() >= MAX_IMAGES {
                memory.images.clear();
            }
            memory.images.insert(image, known.clone());
        }
        Ok(known)
    }

    /// The newest record of an image that this grid signed. Others are passed over: anybody who can
    /// write to the store could have put them there.
    pub(crate) async fn newest_record(&self, image: Digest) -> Result<Option<ImageRecord>> {
        let mut newest: Option<ImageRecord> = None;
        for token in self.archive.records(image).await? {
            match ImageRecord::open(&token, &self.key, &image) {
                Ok(record) if newest.as_ref().is_none_or(|n| n.said() < record.said()) => {
                    newest = Some(record);
                }
                Ok(_) => {}
                Err(e) => tracing::warn!(image = %image, error = %e, "passed over an image record"),
            }
        }
        Ok(newest)
    }

    /// The image has a new record.
    pub(crate) fn changed(&self, image: &Digest) {
        let mut memory = self.memory();
        memory.generation += 1;
        memory.images.remove(image);
    }

    /// Images that are not among `kept` may be gone.
    pub(crate) fn keep_only(&self, kept: &[Digest]) {
        let kept: std::collections::HashSet<_> = kept.iter().collect();
        let mut memory = self.memory();
        memory.generation += 1;
        memory.images.retain(|image, _| kept.contains(image));
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // Every change under the lock leaves it whole.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
