//! The threads: the engine that owns them, and the parts that they run.

pub(crate) mod builder;
pub(crate) mod clock_watch;
pub(crate) mod dispatcher;
pub(crate) mod listener;
pub(crate) mod maintenance;
pub(crate) mod monitor;
pub(crate) mod names;
pub(crate) mod poller;
pub(crate) mod pool;
pub(crate) mod settings;
pub(crate) mod staff;
pub(crate) mod vitals;
pub(crate) mod worker;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;

use crate::client::Client;
use crate::desk::Finish;
use crate::engine::builder::EngineBuilder;
use crate::engine::listener::Listener;
use crate::engine::maintenance::Maintenance;
use crate::engine::monitor::Monitor;
use crate::engine::poller::{Poller, PollerThread};
use crate::engine::pool::Pool;
use crate::engine::staff::Staff;
use crate::engine::vitals::Vitals;
use crate::engine::worker::Shop;
use crate::error::{Error, ErrorKind, Result};
use crate::liveness::Liveness;
use crate::model::batch::PollCycle;
use crate::model::health::{EngineState, Health};
use crate::model::id::BatchRequestId;
use crate::store::connect::{storage_error, with_patience};
use crate::store::finish::Verdict;

/// Runs jobs: one dispatcher thread and as many workers as there is work for, on one SQLite file.
///
/// ```
/// use jobmill::{Context, Engine, Failure, Payload};
/// use serde::{Deserialize, Serialize};
/// use std::time::Duration;
///
/// #[derive(Serialize, Deserialize)]
/// struct Greet {
///     name: String,
/// }
///
/// impl Payload for Greet {
///     const KIND: &'static str = "greet";
/// }
///
/// fn greet(job: Greet, _ctx: &Context) -> Result<String, Failure> {
///     Ok(format!("hello {}", job.name))
/// }
///
/// # fn main() -> jobmill::Result<()> {
/// # let directory = tempfile::tempdir().expect("a temporary directory");
/// # let path = directory.path().join("jobs.db");
/// let engine = Engine::builder(&path).handle(greet).start()?;
/// let id = engine.client().enqueue(&Greet { name: "Ada".into() })?.id();
/// let job = engine.client().wait(id, Duration::from_secs(10))?;
/// assert_eq!(job.result::<String>()?, "hello Ada");
/// engine.shutdown(Duration::from_secs(30))?;
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    client: Client,
    pool: Arc<Pool>,
    staff: Arc<Staff>,
    shop: Mutex<Option<Arc<Shop>>>,
    dispatcher: Mutex<Option<JoinHandle<()>>>,
    listener: Mutex<Option<Listener>>,
    /// Polls on the caller's thread, of an engine without threads.
    poller: Option<Poller>,
    poller_thread: Mutex<Option<PollerThread>>,
    stop_dispatcher: Arc<AtomicBool>,
    shutting_down: Arc<AtomicBool>,
    vitals: Arc<Vitals>,
    monitor: Monitor,
    /// Hung up by whoever has no time to wait for a shutdown that is under way.
    patience: Mutex<Option<Sender<()>>>,
    hurried: Receiver<()>,
    own: i64,
    /// What an engine without threads does by itself.
    inline: Option<Mutex<Maintenance>>,
    shutdown_timeout: Duration,
    place: Mutex<Option<Place>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("path", &self.client.path())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

/// What a shutdown came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Shutdown {
    /// Jobs that were running still when the time was up, and are pending again.
    pub returned: usize,
    /// LLM batches that their providers were being asked about still. Any engine may ask about them again at once.
    pub polls_cut_off: usize,
}

impl Engine {
    /// Begins to describe an engine on this file.
    pub fn builder(path: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder::new(path.as_ref())
    }

    /// A client of this engine. It clones.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the engine is at: active from its start until it is shut down, for one without threads too. It is shutting
    /// down from then on, or from the moment when its dispatcher ends by a bug, until all has ended.
    pub fn state(&self) -> EngineState {
        self.monitor.state()
    }

    /// How the engine does, as [`Monitor::health`] tells it.
    ///
    /// ```
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let path = directory.path().join("jobs.db");
    /// let engine = jobmill::Engine::builder(&path).start()?;
    /// let health = engine.health();
    /// println!("{health}");
    /// assert!(health.is_healthy(), "{:?}", health.problems);
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        self.monitor.health()
    }

    /// What tells the state and the health from elsewhere, after the end of the engine too. It clones.
    pub fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// Runs what is due on the caller's own thread, until nothing is, and tells how many attempts that were. Only for
    /// an engine without threads ([`EngineBuilder::inline`]).
    ///
    /// # Errors
    /// `Conflict` if the engine has threads; `Shutdown` if it has shut down; `Storage` if the file fails.
    pub fn drain(&self) -> Result<usize> {
        let Some(maintenance) = &self.inline else {
            return Err(Error::new(ErrorKind::Conflict, "this engine has threads, which run what is due"));
        };
        let shop = self.shop.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(Error::shutdown)?;
        {
            let mut maintenance = maintenance.lock().unwrap_or_else(PoisonError::into_inner);
            maintenance.beat()?;
            maintenance.rescue()?;
            maintenance.look_at_clock()?;
        }
        self.pool.set_open(true);
        let drained = self.drain_with(&shop);
        self.pool.set_open(false);
        drained
    }

    fn drain_with(&self, shop: &Shop) -> Result<usize> {
        let mut attempts = 0;
        loop {
            let look = self.client.desk().look_around()?;
            if look.failed {
                return Err(Error::new(ErrorKind::Storage, "a turn failed; draining again may go on"));
            }
            let before = attempts;
            while let Some(run) = self.pool.try_next(0) {
                shop.run(&run);
                attempts += 1;
            }
            if attempts == before && !look.more {
                return Ok(attempts);
            }
        }
    }

    /// Asks the providers how the LLM batches do that are due, on the caller's own thread. Only for an engine without
    /// threads.
    ///
    /// # Errors
    /// `Conflict` if the engine has threads, which do it; `Storage` if the file fails.
    pub fn poll(&self) -> Result<PollCycle> {
        if self.inline.is_none() {
            return Err(Error::new(ErrorKind::Conflict, "this engine has threads, which poll"));
        }
        self.poller.as_ref().map_or_else(|| Ok(PollCycle::default()), Poller::cycle)
    }

    /// Does everything at once that an engine does by itself now and then: a look whether the clock was set back, the rescue
    /// of dead engines' jobs, pruning, vacuum.
    ///
    /// # Errors
    /// `Conflict` if the engine has threads, which do it; `Storage` if the file fails.
    pub fn maintain(&self) -> Result<()> {
        let Some(maintenance) = &self.inline else {
            return Err(Error::new(ErrorKind::Conflict, "this engine has threads, which do the maintenance"));
        };
        maintenance.lock().unwrap_or_else(PoisonError::into_inner).run()?;
        self.poller.as_ref().map_or(Ok(()), Poller::tidy)
    }

    /// Stops claiming, lets running jobs and polls of LLM batches end for at most `timeout`, then makes jobs that have not
    /// pending again, with their attempt given back, and lets go of the polls. Clients of this engine answer `Shutdown`
    /// afterwards, and another engine may start on the file. After the time it waits for the file alone, to write what it
    /// leaves: if another process keeps it locked, for a few times [`busy_timeout`](EngineBuilder::busy_timeout).
    ///
    /// Doing it again does nothing. While another thread is at it, it waits until that is done, and makes it give up waiting
    /// once its own `timeout` has passed: a second signal may end what the first one asked for politely.
    ///
    /// # Errors
    /// `Storage` if the file fails; the next engine rescues the jobs then.
    pub fn shutdown(&self, timeout: Duration) -> Result<Shutdown> {
        let Some(place) = self.place.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            if !self.vitals.wait_for(EngineState::Stopped, Some(timeout)) {
                self.pool.hurry();
                self.patience.lock().unwrap_or_else(PoisonError::into_inner).take();
                self.vitals.wait_for(EngineState::Stopped, None);
            }
            return Ok(Shutdown::default());
        };
        // Handlers know it when others hear of it.
        self.shutting_down.store(true, Ordering::SeqCst);
        // Whatever happens, those who wait for the end hear of it.
        let _stopped = Stopping::begin(&self.vitals, &self.monitor);
        // Dropped before that: who hears that the engine has stopped may start another.
        let place = place;
        let began = self.client.desk().clock().monotonic();
        log::info!("shutting down");
        let poller = self.poller_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(poller) = &poller {
            poller.ask_to_stop();
        }
        let desk = self.client.desk();
        let mut ends: Vec<Finish> = self
            .pool
            .retire()
            .into_iter()
            .map(|claim| Finish { claim, verdict: Verdict::Returned, worker: None, slot: None, note: None })
            .collect();
        self.pool.wait_until_idle(timeout);
        let left = timeout.saturating_sub(desk.clock().monotonic().saturating_sub(began));
        let polls = poller.map(|poller| poller.stop(left, &self.hurried)).unwrap_or_default();
        let runs = self.pool.abandon_all();
        let report = Shutdown { returned: runs.len(), polls_cut_off: polls.len() };
        ends.extend(runs.into_iter().map(|run| Finish {
            claim: run.claim.clone(),
            verdict: Verdict::Returned,
            worker: Some(run.worker),
            slot: Some(run.slot),
            note: None,
        }));
        desk.finish_next_turn(ends);
        self.stop_dispatcher.store(true, Ordering::SeqCst);
        desk.wake();
        if let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() {
            listener.stop();
        }
        let dispatcher = self.dispatcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if dispatcher.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the dispatcher panicked");
        }
        desk.leave_unattended();
        self.staff.dismiss();
        self.shop.lock().unwrap_or_else(PoisonError::into_inner).take();
        let written = self.sign_off(polls);
        desk.close();
        match &written {
            // Nothing of ours is left in the file, so nobody needs to know whether we live.
            Ok(()) => place.leave(),
            Err(error) => log::error!("the shutdown could not be written; the next start makes up for it: {error}"),
        }
        log::info!("shut down, {} running jobs returned, {} polls cut off", report.returned, report.polls_cut_off);
        written.map(|()| report)
    }

    /// Writes what is left to write, and closes our row.
    fn sign_off(&self, polls: Vec<BatchRequestId>) -> Result<()> {
        let desk = self.client.desk();
        desk.settle()?;
        if !polls.is_empty() {
            desk.call_here(move |turn| {
                turn.unclaim_polls(&polls).map_err(|error| storage_error("cannot let go of the polls", error))
            })?;
        }
        desk.write_tallies_if_any()?;
        let own = self.own;
        // A turn that was under way when the claiming stopped may have claimed jobs that nobody has taken since.
        let left = desk.call_here(move |turn| {
            turn.rescue(own, &HashSet::new()).map_err(|error| storage_error("cannot close the engine's row", error))
        })?;
        log::debug!("{left:?} at the shutdown");
        desk.with_store(|store| {
            if let Err(error) = with_patience(Duration::ZERO, || store.checkpoint()) {
                log::debug!("no checkpoint at the shutdown: {error}");
            }
        });
        Ok(())
    }

    /// Ends as if the process had been killed: nothing is written, running jobs stay so in the file.
    #[cfg(feature = "testing")]
    pub(crate) fn crash(self) {
        if let Some(poller) = self.poller_thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            poller.stop(Duration::MAX, &crossbeam_channel::never());
        }
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.pool.close();
        self.shop.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.staff.dismiss();
        self.client.desk().close();
        drop(place);
        self.vitals.advance(EngineState::Stopped);
        self.monitor.let_go();
    }
}

/// A shutdown under way. When it is dropped, the engine has stopped.
struct Stopping<'e> {
    vitals: &'e Vitals,
    monitor: &'e Monitor,
}

impl<'e> Stopping<'e> {
    fn begin(vitals: &'e Vitals, monitor: &'e Monitor) -> Self {
        vitals.advance(EngineState::ShuttingDown);
        Self { vitals, monitor }
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.monitor.let_go();
        self.vitals.advance(EngineState::Stopped);
    }
}

impl Drop for Engine {
    /// Shuts down, waiting for running jobs no longer than the builder said.
    fn drop(&mut self) {
        if let Err(error) = self.shutdown(self.shutdown_timeout) {
            log::error!("cannot shut down: {error}");
        }
    }
}

/// The file that this process runs jobs on, once only, and the sign that it lives.
struct Place {
    path: PathBuf,
    liveness: Option<Arc<Liveness>>,
}

static TAKEN: LazyLock<Mutex<HashSet<PathBuf>>> = LazyLock::new(Mutex::default);

impl Place {
    fn take(path: &Path) -> Result<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.insert(path.to_owned()) {
            let rule = format!("an engine runs on {} in this process already", path.display());
            return Err(Error::new(ErrorKind::Conflict, rule));
        }
        Ok(Self { path: path.to_owned(), liveness: None })
    }

    /// Takes the sign of life away, for there is nothing to rescue.
    fn leave(mut self) {
        if let Some(liveness) = self.liveness.take() {
            // Abandoned workers may hold it still. The lock goes with the last of them, and nobody asks for it any more.
            liveness.end();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}
