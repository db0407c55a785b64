//! How an engine does, gathered for whoever asks from any thread, before it starts and after it has ended too.

use std::sync::{Arc, Mutex, PoisonError};
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
/// it says that the engine is initializing, after the end that it has stopped.
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
    /// What there is between the start and the end only.
    parts: Arc<Mutex<Option<Parts>>>,
}

/// The parts of an engine that are asked.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) pool: Arc<Pool>,
    /// Whether the poller asks. None if there is none.
    pub(crate) polling: Option<bool>,
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
    pub fn health(&self) -> Health {
        let state = self.state();
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let clock = parts.as_ref().map_or(&SystemClock as &dyn Clock, |parts| &**parts.client.desk().clock());
        let mut health = Health::new(clock.now(), state);
        health.dispatcher.thread = self.vitals.dispatcher.get();
        health.listener = self.vitals.listener.get();
        let polling = parts.as_ref().and_then(|parts| parts.polling);
        health.poller = self.vitals.poller_health(polling.unwrap_or(false), clock.monotonic());
        if let Some(parts) = &parts {
            gather(parts, &mut health, clock.monotonic());
        }
        health.judge();
        health
    }

    pub(crate) fn watch(&self, parts: Parts) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = Some(parts);
    }

    /// Lets go of the engine, which has ended.
    pub(crate) fn let_go(&self) {
        drop(self.parts.lock().unwrap_or_else(PoisonError::into_inner).take());
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
