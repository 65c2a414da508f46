//! Which caches keep an image: a pure function of who serves and of what caches say they have.
//!
//! Every placement comes to the same, from the state alone. Of the caches that do not drain the first in the image's own
//! order are chosen (highest random weight), those last that have lately failed to keep it. Until all of the chosen have it,
//! others that have all of it go on.

use api::grid::CacheInfo;
use api::keep::CachedImage;
use image::Digest;

/// A cache, and what it says of the images that it was told to keep.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    pub info: CacheInfo,
    pub kept: Vec<CachedImage>,
}

impl Cache {
    pub(crate) fn said(&self, image: &Digest) -> Option<&CachedImage> {
        self.kept.iter().find(|said| said.image == *image)
    }

    /// Whether it has all of an image, and keeps it.
    pub(crate) fn has(&self, image: &Digest) -> bool {
        self.said(image).is_some_and(CachedImage::is_whole)
    }

    fn has_failed(&self, image: &Digest) -> bool {
        self.said(image).is_some_and(|said| said.error.is_some())
    }
}

/// The caches that are to keep an image.
pub(crate) fn chosen<'a>(image: &Digest, many: u32, caches: &'a [Cache]) -> Vec<&'a Cache> {
    if many == 0 {
        return Vec::new();
    }
    let mut order: Vec<&Cache> = caches.iter().filter(|cache| !cache.info.draining).collect();
    order.sort_by_cached_key(|cache| {
        let draw = Digest::of_stored(format!("{image} {}", cache.info.name).as_bytes());
        (cache.has_failed(image), draw, cache.info.name.clone())
    });
    let others = order.split_off(order.len().min(many as usize));
    let whole = order.iter().filter(|cache| cache.has(image)).count() as u32;
    let more = others.into_iter().filter(|cache| cache.has(image));
    order.extend(more.take(many.saturating_sub(whole) as usize));
    order
}

#[cfg(test)]
mod tests {
    use api::error::ErrorBody;
    use image::{Error, Kind};

    use super::*;

    const IMAGE: Digest = Digest([7; 32]);

    fn cache(n: u8) -> Cache {
        let info = CacheInfo {
            name: format!("c{n}"),
            server_name: String::new(),
            endpoints: vec![],
            receives: false,
            api: None,
            weight: 1.0,
            draining: false,
        };
        Cache { info, kept: vec![] }
    }

    fn names(caches: &[Cache]) -> Vec<&str> {
        chosen(&IMAGE, 2, caches).iter().map(|cache| cache.info.name.as_str()).collect()
    }

    fn says(cache: &mut Cache, held: u64, error: Option<ErrorBody>) {
        let pinned = held == 9;
        cache.kept = vec![CachedImage { image: IMAGE, chunks: 9, held, pinned, error }];
    }

    #[test]
    fn who_leaves_or_fails_is_replaced_and_who_has_it_goes_on_until_then() {
        let mut caches: Vec<Cache> = (0..4).map(cache).collect();
        let first = names(&caches).into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(first.len(), 2);
        let at =
            |caches: &[Cache], name: &str| caches.iter().position(|c| c.info.name == name).unwrap();
        let (a, b) = (at(&caches, &first[0]), at(&caches, &first[1]));
        says(&mut caches[a], 9, None);
        let full = ErrorBody::from(&Error::new(Kind::Full, "too much is pinned"));
        says(&mut caches[b], 3, Some(full));
        let second = names(&caches).into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(second[0], first[0]);
        assert_ne!(second[1], first[1]);
        // One that drains does not count; its place is another's.
        caches[a].info.draining = true;
        assert!(!names(&caches).contains(&first[0].as_str()));
        caches[a].info.draining = false;
        // One more of them that comes first: who has it goes on until the new one does.
        let c = at(&caches, &second[1]);
        says(&mut caches[c], 9, None);
        caches[b].kept.clear();
        assert_eq!(names(&caches), [&first[0], &first[1], &second[1]]);
        says(&mut caches[b], 9, None);
        assert_eq!(names(&caches), [&first[0], &first[1]]);
        assert!(chosen(&IMAGE, 0, &caches).is_empty());
    }
}
