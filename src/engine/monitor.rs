//! How an engine does, gathered for whoever asks from any thread, before it starts and after it has ended too.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::Client;
use crate::clock::{Clock, SystemClock};
use crate::engine::pool::Pool;
use crate::engine::vitals::Vitals;
use crate::model::health::{
    DatabaseHealth, DispatcherHealth, EngineState, Health, QueueHealth, SchedulesHealth, ThreadState,
};
use crate::model::job_type::JobType;
use crate::store::schedule::read as read_schedules;

/// How long a question about the health waits for a reader at most.
const PATIENCE: Duration = Duration::from_millis(100);

/// Tells what an engine is at and how it does, from any thread. A cheap clone that outlives the engine: before the start
/// it says that the engine is initializing, after the end that it has stopped, and what was known then.
///
/// ```
/// use jobmill::{Engine, EngineState};
/// use std::time::Duration;
/// # fn main() -> jobmill::Result<()> {
/// # let directory = tempfile::tempdir().expect("a temporary directory");
/// # let path = directory.path().join("jobs.db");
///
/// let builder = Engine::builder(&path);
/// let monitor = builder.monitor();
/// assert_eq!(monitor.state(), EngineState::Initializing);
/// let engine = builder.start()?;
/// assert!(monitor.wait_for(EngineState::Active, Duration::from_secs(10)));
/// println!("{}", monitor.health());
/// drop(engine);
/// assert_eq!(monitor.state(), EngineState::Stopped);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Monitor {
    vitals: Arc<Vitals>,
    known: Arc<Mutex<Known>>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What is known of an engine beside its vitals.
#[derive(Clone, Default)]
enum Known {
    /// Nothing: it has not started.
    #[default]
    Nothing,
    /// It has parts to ask.
    Parts(Parts),
    /// It has ended, and this is what its parts told last.
    Last(Box<Health>),
}

/// The parts of an engine that are asked.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) pool: Arc<Pool>,
    /// Whether the poller asks.
    pub(crate) polling: bool,
    /// How many providers there are.
    pub(crate) providers: usize,
}

impl Monitor {
    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    /// What the engine is at.
    pub fn state(&self) -> EngineState {
        self.vitals.state()
    }

    /// Waits until the engine has come to a state or has passed it, at most for `timeout`, and tells whether it has.
    pub fn wait_for(&self, state: EngineState, timeout: Duration) -> bool {
        self.vitals.wait_for(state, Some(timeout))
    }

    /// How the engine does: its threads and workers, its queues, its database, and what is wrong, if anything is.
    ///
    /// What the threads are at it knows by itself. It asks the file for the counts, beside whatever is being written, and
    /// waits no longer than a tenth of a second for a reader. If the file cannot be read, it says so.
    ///
    /// Once the engine has stopped, it gives what was known at the end.
    pub fn health(&self) -> Health {
        let known = self.known().clone();
        let mut health = match known {
            Known::Nothing => Health::new(SystemClock.now(), self.state()),
            Known::Parts(parts) => self.ask(&parts),
            Known::Last(last) => *last,
        };
        health.state = self.state();
        health.dispatcher.thread = self.vitals.dispatcher.get();
        health.poller.thread = self.vitals.poller.get();
        health.listener = self.vitals.listener.get();
        health.judge();
        health
    }

    fn ask(&self, parts: &Parts) -> Health {
        let clock = parts.client.desk().clock();
        let mut health = Health::new(clock.now(), self.state());
        health.dispatcher.thread = self.vitals.dispatcher.get();
        health.poller = self.vitals.poller_health(parts.polling, parts.providers, clock.monotonic());
        gather(parts, &mut health, clock.monotonic());
        health
    }

    pub(crate) fn watch(&self, parts: Parts) {
        *self.known() = Known::Parts(parts);
    }

    /// Lets go of the engine, which has ended, and keeps what it tells last.
    pub(crate) fn let_go(&self) {
        let Known::Parts(parts) = self.known().clone() else { return };
        let mut last = self.ask(&parts);
        // What is under way by now is left behind, and nobody takes the time of it any more.
        (last.dispatcher.turn_for, last.poller.cycle_for) = (None, None);
        *self.known() = Known::Last(Box::new(last));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gather(parts: &Parts, health: &mut Health, monotonic: Duration) {
    let desk = parts.client.desk();
    let (pulse, contact) = (desk.pulse(), desk.contact());
    health.dispatcher = DispatcherHealth {
        thread: health.dispatcher.thread,
        last_turn_at: pulse.last_turn_at(),
        turn_for: pulse.turn_for(monotonic),
        silent_for: match health.dispatcher.thread {
            ThreadState::Running => pulse.silent_for(monotonic),
            _ => Duration::ZERO,
        },
    };
    health.workers = parts.pool.census();
    health.lag = pulse.lag();
    let stats = parts.client.reader().stats_within(PATIENCE, health.at);
    let unread = stats.as_ref().err().map(ToString::to_string);
    if let Ok(stats) = stats {
        health.batches = stats.job_types.get(&JobType::Batch).map_or(0, |batches| batches.running);
        for (name, counts) in stats.queues {
            let oldest_wait = stats.oldest_waiting.get(&name).map(|since| health.at.since(*since));
            health.queues.insert(name, QueueHealth { pending: counts.pending, running: counts.running, oldest_wait });
        }
    }
    let schedules =
        parts.client.reader().snapshot_within(PATIENCE, "cannot read the schedules", read_schedules::outlook);
    if let Ok((active, next_at)) = schedules {
        let late_by = next_at.map_or(Duration::ZERO, |next_at| health.at.since(next_at));
        health.schedules = SchedulesHealth { active, next_at, late_by };
    }
    let wal_bytes = std::fs::metadata(contact.wal_path()).map_or(0, |file| file.len());
    let trouble = contact.trouble();
    health.database = DatabaseHealth {
        reachable: trouble.is_none() && unread.is_none(),
        since: trouble.as_ref().map(|trouble| trouble.since),
        failures: trouble.as_ref().map_or(0, |trouble| trouble.failures),
        error: trouble.map(|trouble| trouble.error).or(unread),
        wal_bytes,
    };
}
