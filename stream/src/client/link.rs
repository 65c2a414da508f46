//! The way to one endpoint of a server: connected when somebody needs it, and again, after a pause that
//! grows with every failure, when the connection was lost.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use image::{Error, Kind, Result};

use super::session::Session;
use super::{ClientLimits, Tickets};

/// First pause after a failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that lived for less has failed.
const SHORT_LIFE: Duration = Duration::from_secs(5);

/// What is needed to connect.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) config: quinn::ClientConfig,
    pub(crate) server_name: String,
    pub(crate) limits: ClientLimits,
    pub(crate) tickets: Tickets,
}

/// One endpoint of a server.
#[derive(Debug)]
pub(crate) struct Link {
    addr: SocketAddr,
    dial: Arc<Dial>,
    state: Mutex<State>,
}

/// A session that is on its way; who needs it shares it with the others who do.
pub(super) type Opening = Shared<BoxFuture<'static, Result<Arc<Session>>>>;
/// It goes on while somebody waits.
pub(super) type WeakOpening = WeakShared<BoxFuture<'static, Result<Arc<Session>>>>;

#[derive(Debug)]
enum State {
    /// Nobody connects before `until`.
    Down { failures: u32, until: Option<Instant>, why: Option<Error> },
    /// All who need it wait for the same attempt. When all of them have gone it is given up: the server
    /// keeps nothing for it.
    Opening { failures: u32, attempt: WeakOpening },
    /// Connected.
    Up { failures: u32, since: Instant, session: Arc<Session> },
}

/// What a link can give at once.
enum Ready {
    Now(Arc<Session>),
    Later { attempt: Opening, new: bool },
}

#[expect(
    clippy::disallowed_methods,
    reason = "a driver: back-off is measured in the runtime's time"
)]
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How long to wait after so many failures in a row: doubled each time, and spread by up to a quarter
/// so that the clients of a server that was restarted do not all come at once.
fn pause(failures: u32, who: impl Hash) -> Duration {
    let plain = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let plain = plain.min(LAST_PAUSE);
    let mut hasher = DefaultHasher::new();
    (who, failures).hash(&mut hasher);
    plain + plain.mul_f64((hasher.finish() % 1024) as f64 / 4096.0)
}

impl Link {
    pub(crate) fn new(addr: SocketAddr, dial: Arc<Dial>) -> Arc<Self> {
        let state = Mutex::new(State::Down { failures: 0, until: None, why: None });
        Arc::new(Self { addr, dial, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment, so a panic elsewhere leaves a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session, if there is one now.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        match &*self.state() {
            State::Up { session, .. } if session.usable() => Some(session.clone()),
            _ => None,
        }
    }

    /// Forgets the pause: something has changed that may make the next attempt succeed.
    pub(crate) fn hurry(&self) {
        if let State::Down { until, .. } = &mut *self.state() {
            *until = None;
        }
    }

    /// Connects, if it is not connected and not resting, and does not wait for it.
    pub(crate) fn wake(self: &Arc<Self>) -> bool {
        let Ok(Ready::Later { attempt, new: true }) = self.ready() else { return false };
        tokio::spawn(attempt.map(drop));
        true
    }

    /// The session; connects if need be.
    pub(crate) async fn session(self: &Arc<Self>) -> Result<Arc<Session>> {
        match self.ready()? {
            Ready::Now(session) => Ok(session),
            Ready::Later { attempt, .. } => attempt.await,
        }
    }

    /// The session or the attempt to get one, which is started if need be.
    fn ready(self: &Arc<Self>) -> Result<Ready> {
        let mut state = self.state();
        if let State::Up { failures, since, session } = &*state
            && !session.usable()
        {
            *state = self.after_loss(*failures, *since);
        }
        match &*state {
            State::Up { session, .. } => Ok(Ready::Now(session.clone())),
            State::Opening { failures, attempt } => match attempt.upgrade() {
                Some(attempt) => Ok(Ready::Later { attempt, new: false }),
                None => Ok(self.open(*failures, &mut state)),
            },
            State::Down { failures, until, why } => {
                let left = until.and_then(|until| until.checked_duration_since(now()));
                if let Some(left) = left.filter(|left| !left.is_zero()) {
                    return Err(resting(left, why.as_ref()));
                }
                Ok(self.open(*failures, &mut state))
            }
        }
    }

    fn open(self: &Arc<Self>, failures: u32, state: &mut State) -> Ready {
        let attempt = self.attempt();
        let weak = attempt.downgrade().expect("it has not begun");
        *state = State::Opening { failures, attempt: weak };
        Ready::Later { attempt, new: true }
    }

    /// An attempt to connect.
    fn attempt(self: &Arc<Self>) -> Opening {
        let (link, dial, addr) = (Arc::downgrade(self), self.dial.clone(), self.addr);
        let attempt = async move {
            let result = Session::open(&dial, addr).await;
            if let Some(link) = Weak::upgrade(&link) {
                link.opened(&result);
            }
            result
        };
        attempt.boxed().shared()
    }

    fn opened(&self, result: &Result<Arc<Session>>) {
        let mut state = self.state();
        let failures = match &*state {
            State::Opening { failures, .. } => *failures,
            _ => 0,
        };
        *state = match result {
            Ok(session) => State::Up { failures, since: now(), session: session.clone() },
            Err(e) => self.down(failures + 1, Some(e.clone())),
        };
    }

    /// A connection that had lived is opened again at once; one that had not is a failure.
    fn after_loss(&self, failures: u32, since: Instant) -> State {
        if now().saturating_duration_since(since) >= SHORT_LIFE {
            return State::Down { failures: 0, until: None, why: None };
        }
        self.down(failures + 1, None)
    }

    fn down(&self, failures: u32, why: Option<Error>) -> State {
        // The first failure in a row costs no pause: most often the server was just restarted.
        let until = (failures > 1 || why.is_some()).then(|| now() + pause(failures, self.addr));
        State::Down { failures, until, why }
    }
}

fn resting(left: Duration, why: Option<&Error>) -> Error {
    if let Some(e) = why
        && matches!(e.kind(), Kind::Denied | Kind::Unsupported | Kind::Invalid)
    {
        return e.clone();
    }
    let why = why.map_or("the connection was lost again and again", Error::message);
    Error::new(Kind::Busy(left), format!("waiting before the next attempt: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let mut last = Duration::ZERO;
        for failures in 1..40 {
            let pause = pause(failures, 7);
            assert!(pause >= FIRST_PAUSE && pause <= LAST_PAUSE.mul_f64(1.25));
            assert!(pause * 3 > last, "it does not shrink by more than the spread");
            last = pause;
        }
        assert!(pause(1, 1) < FIRST_PAUSE.mul_f64(1.25));
        assert!((0..16).any(|who| pause(3, who) != pause(3, 99)));
    }
}
