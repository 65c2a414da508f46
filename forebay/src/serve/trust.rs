//! Whom this process trusts, and what it shows of itself, kept up to date while it serves: papers are renewed before
//! they expire, and placement is asked whose are refused.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::grid::Revocations;
use image::{Kind, Result};
use placement::{Clock, Papers, Shown};
use tokio::sync::watch;

use crate::grid::{Finder, MEMBER};

/// Pauses between looks at papers, and between tries to renew them.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);
/// How soon a machine that has not joined a grid is looked at again.
const JOINS: Duration = Duration::from_secs(60);

/// Renews the papers with which this machine joined its grid, for ever. Whoever reads them from disk each time has the
/// new ones from then on; what is `shown` is changed.
pub async fn renew(data: PathBuf, shown: Option<Arc<Shown>>, clock: Clock) {
    let finder = Finder::new(data.clone());
    loop {
        let pause = match renew_once(&data, &finder, shown.as_ref(), &clock).await {
            Ok(pause) => pause,
            // It has not joined, or is where `forebay up` is, which renews its own.
            Err(error) if error.kind() == Kind::Gone => JOINS,
            Err(error) => {
                tracing::warn!(%error, "the certificate was not renewed; it is tried again");
                SHORTEST
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// How long until it is to be looked at again.
async fn renew_once(
    data: &std::path::Path,
    finder: &Finder,
    shown: Option<&Arc<Shown>>,
    clock: &Clock,
) -> Result<Duration> {
    let dir = data.join(MEMBER);
    let papers = Papers::load(&dir)?;
    let due = papers.renewed_in(clock.now())?;
    if due > 0 {
        return Ok(Duration::from_secs(due).clamp(SHORTEST, LONGEST));
    }
    let new = finder.find()?.placement.renew(&papers).await?;
    new.renew(&dir)?;
    if let Some(shown) = shown {
        shown.change(new)?;
    }
    tracing::info!("the certificate was renewed");
    Ok(SHORTEST)
}

/// Shows what `issue` gives whenever the papers that are shown are to be renewed, for ever.
pub async fn reissue(shown: Arc<Shown>, clock: Clock, issue: impl Fn() -> Result<Papers>) {
    loop {
        let due = shown.papers().renewed_in(clock.now()).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(due).clamp(SHORTEST, LONGEST)).await;
        let issued = issue().and_then(|papers| shown.change(papers));
        if let Err(error) = issued {
            tracing::error!(%error, "placement's own papers were not issued anew; it is tried again");
        }
    }
}

/// Asks placement whose certificates are refused, so often (a second at least), until nobody listens any more. What was told last is known
/// when this returns, if placement answers.
pub async fn revocations(
    finder: Finder,
    every: Duration,
) -> (watch::Receiver<Arc<Revocations>>, impl Future<Output = ()>) {
    let every = every.max(SHORTEST);
    let (tell, told) = watch::channel(Arc::default());
    let first = ask(&finder, &tell).await;
    let asking = async move {
        let mut last = first;
        while !tell.is_closed() {
            // Until it is known who is refused, it is asked often.
            let pause = if last.is_err() { SHORTEST } else { every };
            tokio::time::sleep(pause).await;
            let now = ask(&finder, &tell).await;
            if let (Ok(()), Err(error)) = (&last, &now) {
                tracing::warn!(%error, "placement does not say whose certificates are refused");
            }
            last = now;
        }
    };
    (told, asking)
}

async fn ask(finder: &Finder, tell: &watch::Sender<Arc<Revocations>>) -> Result<()> {
    let known = tell.borrow().version.clone();
    let now = finder.find()?.placement.revocations(&known).await?;
    if now.names.is_some() {
        tell.send_replace(Arc::new(now));
    }
    Ok(())
}
