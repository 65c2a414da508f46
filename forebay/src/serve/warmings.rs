//! Images on their way into the cache because somebody ordered it: at most one order per image.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::care::{WarmState, Warming};
use cache::{DiskState, HeldSection, Warmed};
use image::{Digest, Error, Kind, ReadContext, Result};
use tokio::sync::watch;

use super::errands::{CoreCache, Errands};

/// Orders that are remembered; of those that have ended the earlier images are forgotten first.
const MAX: usize = 256;

/// The orders so far.
#[derive(Default)]
pub struct Warmings {
    orders: Arc<Mutex<BTreeMap<Digest, Order>>>,
}

struct Order {
    at: Warming,
    /// Told, or dropped, to end it. Nobody listens once it has ended.
    cancel: watch::Sender<()>,
}

impl Order {
    fn is_running(&self) -> bool {
        self.at.state == WarmState::Running
    }

    fn end(&mut self) {
        if self.is_running() {
            self.at.state = WarmState::Cancelled;
            self.cancel.send_replace(());
        }
    }
}

type Orders = BTreeMap<Digest, Order>;

fn lock(orders: &Mutex<Orders>) -> MutexGuard<'_, Orders> {
    // Each change of an order is whole.
    orders.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Warmings {
    /// All of them.
    pub fn list(&self) -> Vec<Warming> {
        lock(&self.orders).values().map(|order| order.at.clone()).collect()
    }

    /// How far one is.
    pub fn get(&self, image: &Digest) -> Result<Warming> {
        let orders = lock(&self.orders);
        orders.get(image).map(|order| order.at.clone()).ok_or_else(|| {
            Error::new(Kind::Gone, format!("image {}: nobody ordered it", image.short()))
        })
    }

    /// Begins one, unless it is under way. One that was to warm alone pins too if that is asked for now.
    pub fn begin(&self, errands: &Errands, image: Digest, pins: bool) -> Result<Warming> {
        let mut orders = lock(&self.orders);
        if let Some(order) = orders.get(&image)
            && order.is_running()
            && (order.at.pins || !pins)
        {
            return Ok(order.at.clone());
        }
        make_room(&mut orders)?;
        let (cancel, cancelled) = watch::channel(());
        let at = Warming {
            image,
            state: WarmState::Running,
            pins,
            of_sections: 0,
            sections: 0,
            chunks: 0,
            fetched: 0,
            fetched_bytes: 0,
            size: 0,
            held: None,
            warning: None,
            error: None,
            error_code: None,
        };
        let all = Arc::clone(&self.orders);
        errands.send(move |cache| run(cache, image, pins, all, cancelled))?;
        orders.insert(image, Order { at: at.clone(), cancel });
        Ok(at)
    }

    /// Ends one.
    pub fn stop(&self, image: &Digest) -> Result<Warming> {
        if let Some(order) = lock(&self.orders).get_mut(image) {
            order.end();
        }
        self.get(image)
    }

    /// Ends one if it is to pin, and returns when nothing is done for it any more.
    pub async fn stop_pin(&self, image: &Digest) {
        let order = lock(&self.orders).get_mut(image).filter(|order| order.at.pins).map(|order| {
            order.end();
            order.cancel.clone()
        });
        if let Some(cancel) = order {
            cancel.closed().await;
        }
    }
}

/// Forgets one that has ended, if there are many.
fn make_room(orders: &mut Orders) -> Result<()> {
    if orders.len() < MAX {
        return Ok(());
    }
    let ended = orders.iter().find(|(_, order)| !order.is_running());
    let Some(image) = ended.map(|(image, _)| *image) else {
        let after = std::time::Duration::from_secs(10);
        let what = format!("{MAX} images are on their way into this cache already");
        return Err(Error::new(Kind::Busy(after), what));
    };
    orders.remove(&image);
    Ok(())
}

/// Carries an order out, until it is done or its other end is gone.
async fn run(
    cache: CoreCache,
    image: Digest,
    pins: bool,
    orders: Arc<Mutex<Orders>>,
    mut cancelled: watch::Receiver<()>,
) {
    let ctx = ReadContext::default();
    let mine = cancelled.clone();
    let note = |change: &dyn Fn(&mut Warming)| {
        let mut orders = lock(&orders);
        // Another may have taken its place.
        let order = orders
            .get_mut(&image)
            .filter(|order| order.is_running() && order.cancel.subscribe().same_channel(&mine));
        if let Some(order) = order {
            change(&mut order.at);
        }
    };
    let progress = |warmed: &Warmed| note(&|at| come_so_far(at, warmed));
    let work = async {
        let warmed = match pins {
            true => cache.pin(&ctx, &image, progress).await?,
            false => cache.warm(&ctx, &image, progress).await?,
        };
        // What came first may have had to go for what came last.
        cache.shared().written().await;
        Ok((warmed, cache.held(&ctx, &image).await?.all))
    };
    let result = tokio::select! {
        result = work => result,
        _ = cancelled.changed() => return,
    };
    note(&|at| match &result {
        Ok((warmed, held)) => {
            come_so_far(at, warmed);
            at.held = Some(held.here);
            at.warning = too_small(held, &cache.shared().status().disk);
            at.state = WarmState::Done;
        }
        Err(error) => {
            tracing::warn!(%error, "warming an image");
            at.fail(error);
        }
    });
}

/// Why fewer chunks of an image are held than it has, if so.
fn too_small(held: &HeldSection, disk: &DiskState) -> Option<String> {
    let why = match disk {
        DiskState::None => "cache.memory is too small for it".to_owned(),
        DiskState::On => "cache.disk is too small for it".to_owned(),
        state => format!("its disk tier is {state}"),
    };
    let HeldSection { here, chunks, .. } = held;
    (here < chunks).then(|| format!("only {here} of {chunks} chunks stayed: {why}"))
}

fn come_so_far(at: &mut Warming, warmed: &Warmed) {
    at.of_sections = warmed.of_sections;
    at.sections = warmed.sections;
    at.chunks = warmed.chunks;
    at.fetched = warmed.fetched;
    at.fetched_bytes = warmed.fetched_bytes;
    at.size = warmed.size;
}

#[cfg(test)]
mod tests {
    use super::super::errands::tests::errands;
    use super::*;

    async fn ended(warmings: &Warmings, image: &Digest) -> Warming {
        loop {
            let at = warmings.get(image).unwrap();
            if at.state != WarmState::Running {
                return at;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn why_one_failed_is_told_by_kind() {
        let ((errands, _dir), warmings) = (errands(false).await, Warmings::default());
        let image = Digest::of_stored(b"nowhere");
        warmings.begin(&errands, image, false).unwrap();
        let failure = ended(&warmings, &image).await.failure();
        assert_eq!(failure.kind(), Kind::Gone, "{failure}");
        warmings.begin(&errands, image, true).unwrap();
        let failure = ended(&warmings, &image).await.failure();
        assert_eq!(failure.kind(), Kind::Unsupported, "{failure}");
    }

    #[test]
    fn an_image_that_did_not_stay_whole_is_said() {
        let held = |here| HeldSection { chunks: 800, here, ..HeldSection::default() };
        assert_eq!(too_small(&held(800), &DiskState::On), None);
        let says = |state| too_small(&held(410), &state).unwrap();
        assert_eq!(
            says(DiskState::On),
            "only 410 of 800 chunks stayed: cache.disk is too small for it"
        );
        assert!(says(DiskState::None).contains("cache.memory"));
        assert!(says(DiskState::Off("no answer".into())).contains("off: no answer"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pin_under_way_is_ended_and_a_warming_is_not() {
        let ((errands, _dir), warmings) = (errands(true).await, Warmings::default());
        let (pins, warms) = (Digest::of_stored(b"pins"), Digest::of_stored(b"warms"));
        warmings.begin(&errands, pins, true).unwrap();
        warmings.begin(&errands, warms, false).unwrap();
        for image in [&pins, &warms, &pins, &Digest::of_stored(b"never ordered")] {
            warmings.stop_pin(image).await;
        }
        assert_eq!(warmings.get(&pins).unwrap().state, WarmState::Cancelled);
        assert_eq!(warmings.get(&warms).unwrap().state, WarmState::Running);
        assert_eq!(lock(&warmings.orders)[&pins].cancel.receiver_count(), 0, "its work has ended");
    }
}
