//! How an engine does: what it is at, what its threads do, what is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::model::batch::PollCycle;
use crate::model::time::Timestamp;
use crate::model::words::words;

/// What an engine is at. It goes forward only; a start after a shutdown makes another engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EngineState {
    /// It is described, or starting, and has not started.
    Initializing,
    /// It has started: it takes operations and runs jobs.
    Active,
    /// It claims no jobs any more. What runs is given its time to end.
    ShuttingDown,
    /// It has ended, or could not start. Another one may start on the file.
    Stopped,
}

impl EngineState {
    /// Every state, in the order in which they come.
    pub const ALL: [Self; 4] = [Self::Initializing, Self::Active, Self::ShuttingDown, Self::Stopped];

    /// The state as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Active => "active",
            Self::ShuttingDown => "shutting_down",
            Self::Stopped => "stopped",
        }
    }
}

words!(EngineState, "state");

/// What has become of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ThreadState {
    /// There is none: the engine has no threads, or no need of this one, or has not started.
    #[default]
    Absent,
    /// It runs.
    Running,
    /// It ended as it should.
    Ended,
    /// It ended by a bug of ours, which the log tells.
    Panicked,
}

impl ThreadState {
    /// The state as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for ThreadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The thread that takes turns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DispatcherHealth {
    /// What has become of it.
    pub thread: ThreadState,
    /// When a turn was last committed, by whichever thread.
    pub last_turn_at: Option<Timestamp>,
    /// How long the turn has lasted that is under way. A turn waits for other writers of the file.
    #[serde(rename = "turn_for_us", serialize_with = "as_micros_if_any")]
    pub turn_for: Option<Duration>,
    /// How long it has not looked whether there is something to do. It looks at least every 50 ms, or 2 s while the
    /// database fails.
    #[serde(rename = "silent_for_us", serialize_with = "as_micros")]
    pub silent_for: Duration,
}

/// The thread that asks providers how LLM batches do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PollerHealth {
    /// What has become of it. Absent without a provider.
    pub thread: ThreadState,
    /// Whether it asks. Not if [`Batches::polling`](crate::Batches::polling) forbids it, and not without a provider.
    pub enabled: bool,
    /// How many providers the engine has.
    pub providers: usize,
    /// When a cycle last ended.
    pub last_cycle_at: Option<Timestamp>,
    /// What the last cycle came to that succeeded and asked about anything.
    pub last_cycle: Option<PollCycle>,
    /// How long the cycle has lasted that is under way.
    #[serde(rename = "cycle_for_us", serialize_with = "as_micros_if_any")]
    pub cycle_for: Option<Duration>,
    /// Why the last cycle failed, if it did. A provider that does not answer fails no cycle.
    pub error: Option<String>,
}

/// Those who run handlers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkersHealth {
    /// How many jobs may run at a time, those of the engine's own not counted.
    pub max: usize,
    /// Threads, those of abandoned handlers not counted.
    pub threads: usize,
    /// Handlers that run, those of the engine's own jobs included.
    pub busy: usize,
    /// Threads that wait for work.
    pub idle: usize,
    /// Jobs that are claimed and wait for a thread.
    pub ready: usize,
    /// Handlers that have passed their timeout and hold a worker still.
    pub overdue: usize,
    /// Handlers that ignored their timeout, and run on without a worker.
    pub abandoned: usize,
    /// How many may ([`EngineBuilder::max_abandoned`](crate::EngineBuilder::max_abandoned)).
    pub abandoned_max: usize,
}

/// A queue in brief.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueHealth {
    /// Pending jobs, those whose time has not come included.
    pub pending: u64,
    /// Running ones, in all processes.
    pub running: u64,
    /// How long the job has waited that has waited longest, of those whose time has come.
    #[serde(rename = "oldest_wait_us", serialize_with = "as_micros_if_any")]
    pub oldest_wait: Option<Duration>,
}

/// The schedules in brief.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SchedulesHealth {
    /// Schedules that tick: neither paused nor at their end.
    pub active: u64,
    /// When the next of their ticks is due, or was.
    pub next_at: Option<Timestamp>,
    /// For how long the tick has been due that is due for longest. Zero if none is.
    #[serde(rename = "late_by_us", serialize_with = "as_micros")]
    pub late_by: Duration,
}

/// The database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DatabaseHealth {
    /// Whether the last thing that was tried with it succeeded.
    pub reachable: bool,
    /// The newest error, if it is not.
    pub error: Option<String>,
    /// Since when it is not.
    pub since: Option<Timestamp>,
    /// How often it has failed since then.
    pub failures: u64,
    /// The length of the WAL file.
    pub wal_bytes: u64,
}

/// Something that is wrong with an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "problem")]
#[non_exhaustive]
pub enum Problem {
    /// It is not active.
    NotActive {
        /// What it is at.
        state: EngineState,
    },
    /// Its dispatcher has ended by a bug of ours: nothing is run any more, and callers are refused.
    DispatcherEnded,
    /// Its dispatcher has not looked for longer than [`Health::SILENCE_MAX`].
    DispatcherSilent {
        /// For how long, in microseconds.
        silent_for_us: u64,
    },
    /// The poller has ended: no batch is asked about any more.
    PollerEnded,
    /// The last cycle of polls failed.
    PollerFails {
        /// Why.
        error: String,
    },
    /// A cycle of polls lasts for longer than [`Health::CYCLE_MAX`].
    PollerSilent {
        /// How long, in microseconds.
        cycle_for_us: u64,
    },
    /// Handlers that have passed their timeout hold all workers.
    WorkersHeld {
        /// How many do.
        overdue: usize,
    },
    /// As many handlers run on after their timeout as may. Further ones keep their workers.
    TooManyAbandoned {
        /// How many do.
        abandoned: usize,
    },
    /// The database fails, or is out of reach.
    DatabaseFails {
        /// The newest error.
        error: String,
        /// Since when.
        since: Timestamp,
    },
    /// The WAL file is longer than [`Health::WAL_MAX_BYTES`]: somebody has been reading for long.
    WalTooLong {
        /// Its length.
        wal_bytes: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |us: &u64| Duration::from_micros(*us);
        match self {
            Self::NotActive { state } => write!(f, "the engine is {state}"),
            Self::DispatcherEnded => write!(f, "the dispatcher has ended by a bug, and the engine is closed"),
            Self::DispatcherSilent { silent_for_us } => {
                write!(f, "the dispatcher has not looked for {:?}", micros(silent_for_us))
            }
            Self::PollerEnded => write!(f, "the poller has ended: no batch is asked about"),
            Self::PollerFails { error } => write!(f, "polls fail: {error}"),
            Self::PollerSilent { cycle_for_us } => write!(f, "a cycle of polls lasts {:?}", micros(cycle_for_us)),
            Self::WorkersHeld { overdue } => {
                write!(f, "all workers are held by {overdue} handlers that ignore their timeouts")
            }
            Self::TooManyAbandoned { abandoned } => {
                write!(f, "{abandoned} handlers ignored their timeouts and run on: further ones keep their workers")
            }
            Self::DatabaseFails { error, since } => write!(f, "the database fails since {since}: {error}"),
            Self::WalTooLong { wal_bytes } => {
                write!(f, "the WAL file has {wal_bytes} bytes, for somebody has been reading for long")
            }
        }
    }
}

/// How an engine does, as [`Engine::health`](crate::Engine::health) tells it. It is written as lines for people, and as
/// JSON for machines, in which spans of time are microseconds.
///
/// Of an engine that has stopped it tells what was known at its end: `state` says so, and `at` when that was.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// When this was so. The end of the engine, if it has stopped.
    pub at: Timestamp,
    /// What the engine is at.
    pub state: EngineState,
    /// What is wrong. Nothing, if it is healthy.
    pub problems: Vec<Problem>,
    /// The thread that takes turns.
    pub dispatcher: DispatcherHealth,
    /// The thread that asks providers.
    pub poller: PollerHealth,
    /// The thread that hears when other processes commit. Without it the dispatcher looks 250 times a second.
    pub listener: ThreadState,
    /// Those who run handlers.
    pub workers: WorkersHealth,
    /// The queues, the engine's own `system` among them: callbacks, and what LLM batches need. Empty if they cannot be read.
    pub queues: BTreeMap<String, QueueHealth>,
    /// How long the job had waited that was claimed last, since it could have run.
    #[serde(rename = "lag_us", serialize_with = "as_micros_if_any")]
    pub lag: Option<Duration>,
    /// LLM batches that are not at their end.
    pub batches: u64,
    /// The schedules. None of them, if they cannot be read.
    pub schedules: SchedulesHealth,
    /// The database.
    pub database: DatabaseHealth,
}

impl Health {
    /// The longest that a healthy dispatcher does not look: 5 s. It is longer silent when another writer keeps the file
    /// locked, when a closure of [`Client::write`](crate::Client::write) takes long, or when the disk hangs.
    pub const SILENCE_MAX: Duration = Duration::from_secs(5);
    /// The longest healthy cycle of polls: 15 min.
    pub const CYCLE_MAX: Duration = Duration::from_secs(15 * 60);
    /// The longest healthy WAL file: 128 MiB, twice the length at which it is cut by force.
    pub const WAL_MAX_BYTES: u64 = 128 << 20;

    pub(crate) fn new(at: Timestamp, state: EngineState) -> Self {
        Self {
            at,
            state,
            problems: Vec::new(),
            dispatcher: DispatcherHealth::default(),
            poller: PollerHealth::default(),
            listener: ThreadState::Absent,
            workers: WorkersHealth::default(),
            queues: BTreeMap::new(),
            lag: None,
            batches: 0,
            schedules: SchedulesHealth::default(),
            database: DatabaseHealth::default(),
        }
    }

    /// Whether nothing is wrong.
    pub fn is_healthy(&self) -> bool {
        self.problems.is_empty()
    }

    /// Jobs that are pending, in all queues but the engine's own.
    pub fn depth(&self) -> u64 {
        self.queues.iter().filter(|(name, _)| *name != "system").map(|(_, queue)| queue.pending).sum()
    }

    /// Whether there was ever anything to tell: an engine that has started may run one job at least.
    fn has_started(&self) -> bool {
        self.workers.max > 0
    }

    /// Finds out what is wrong.
    pub(crate) fn judge(&mut self) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut problems = Vec::new();
        if self.state != EngineState::Active {
            problems.push(Problem::NotActive { state: self.state });
        }
        if self.dispatcher.thread == ThreadState::Panicked {
            problems.push(Problem::DispatcherEnded);
        }
        if self.dispatcher.thread == ThreadState::Running && self.dispatcher.silent_for > Self::SILENCE_MAX {
            problems.push(Problem::DispatcherSilent { silent_for_us: micros(self.dispatcher.silent_for) });
        }
        if self.poller.thread == ThreadState::Panicked {
            problems.push(Problem::PollerEnded);
        }
        if let Some(error) = &self.poller.error {
            problems.push(Problem::PollerFails { error: error.clone() });
        }
        if let Some(cycle_for) = self.poller.cycle_for.filter(|time| *time > Self::CYCLE_MAX) {
            problems.push(Problem::PollerSilent { cycle_for_us: micros(cycle_for) });
        }
        let workers = &self.workers;
        if workers.overdue > 0 && workers.overdue >= workers.max {
            problems.push(Problem::WorkersHeld { overdue: workers.overdue });
        }
        if workers.abandoned > 0 && workers.abandoned >= workers.abandoned_max {
            problems.push(Problem::TooManyAbandoned { abandoned: workers.abandoned });
        }
        if let Some(error) = &self.database.error {
            let since = self.database.since.unwrap_or(self.at);
            problems.push(Problem::DatabaseFails { error: error.clone(), since });
        }
        if self.database.wal_bytes > Self::WAL_MAX_BYTES {
            problems.push(Problem::WalTooLong { wal_bytes: self.database.wal_bytes });
        }
        self.problems = problems;
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}", self.state, if self.is_healthy() { "healthy" } else { "not healthy" })?;
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        if !self.has_started() {
            return write!(f, "nothing is known of its parts, for it has not started");
        }
        if self.state == EngineState::Stopped {
            writeln!(f, "what was known when it stopped, at {}:", self.at)?;
        }
        let dispatcher = &self.dispatcher;
        write!(f, "dispatcher: {}", dispatcher.thread)?;
        if dispatcher.thread == ThreadState::Running {
            write!(f, ", looked {:?} ago", dispatcher.silent_for)?;
        }
        if let Some(turn_for) = dispatcher.turn_for {
            write!(f, ", a turn under way for {turn_for:?}")?;
        }
        match dispatcher.last_turn_at {
            Some(at) => writeln!(f, ", last turn at {at}")?,
            None => writeln!(f, ", no turn yet")?,
        }
        let workers = &self.workers;
        writeln!(
            f,
            "workers: {} busy of {} at most, {} threads, {} idle, {} jobs ready, {} overdue, {} abandoned",
            workers.busy, workers.max, workers.threads, workers.idle, workers.ready, workers.overdue, workers.abandoned
        )?;
        for (name, queue) in &self.queues {
            write!(f, "queue {name}: {} pending, {} running", queue.pending, queue.running)?;
            match queue.oldest_wait {
                Some(wait) => writeln!(f, ", the oldest for {wait:?}")?,
                None => writeln!(f)?,
            }
        }
        if let Some(lag) = self.lag {
            writeln!(f, "lag: {lag:?}")?;
        }
        let poller = &self.poller;
        write!(f, "poller: {}", poller.thread)?;
        match (poller.enabled, poller.providers) {
            (true, _) => {}
            (false, 0) => write!(f, ", for there is no provider")?,
            (false, _) => write!(f, ", disabled")?,
        }
        if let Some(at) = poller.last_cycle_at {
            write!(f, ", last cycle at {at}")?;
        }
        writeln!(f, ", {} batches under way", self.batches)?;
        writeln!(f, "listener: {}", self.listener)?;
        let schedules = &self.schedules;
        write!(f, "schedules: {} active", schedules.active)?;
        match schedules.next_at {
            Some(at) if schedules.late_by.is_zero() => writeln!(f, ", the next tick at {at}")?,
            Some(at) => writeln!(f, ", a tick due since {at}, for {:?}", schedules.late_by)?,
            None => writeln!(f)?,
        }
        let word = if self.database.reachable { "reachable" } else { "not reachable" };
        write!(f, "database: {word}, WAL of {} bytes", self.database.wal_bytes)
    }
}

pub(crate) fn as_micros<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn as_micros_if_any<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => as_micros(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Health {
        let mut health = Health::new(Timestamp::EPOCH, EngineState::Active);
        health.dispatcher.thread = ThreadState::Running;
        health.workers = WorkersHealth { max: 2, abandoned_max: 1, ..WorkersHealth::default() };
        health.database.reachable = true;
        health
    }

    /// Each change, and the beginning of what is said of it. At its bound all is well still.
    #[test]
    fn each_problem_is_found_past_its_bound_and_not_before() {
        type Change = fn(&mut Health);
        let cases: [(Change, &str); 17] = [
            (|_| {}, ""),
            (|h| h.state = EngineState::Stopped, "the engine is stopped"),
            (|h| h.dispatcher.thread = ThreadState::Panicked, "the dispatcher has ended"),
            (|h| h.dispatcher.silent_for = Health::SILENCE_MAX, ""),
            (|h| h.dispatcher.silent_for = Health::SILENCE_MAX * 2, "the dispatcher has not looked for 10s"),
            (|h| h.poller.thread = ThreadState::Panicked, "the poller has ended"),
            (|h| h.poller.error = Some("why".into()), "polls fail: why"),
            (|h| h.poller.cycle_for = Some(Health::CYCLE_MAX), ""),
            (|h| h.poller.cycle_for = Some(Health::CYCLE_MAX * 2), "a cycle of polls lasts 1800s"),
            (|h| h.workers.overdue = 1, ""),
            (|h| h.workers.overdue = 2, "all workers are held by 2"),
            (|h| h.workers.abandoned = 1, "1 handlers ignored"),
            (|h| h.workers.busy = 2, ""),
            (|h| h.database.error = Some("why".into()), "the database fails since 1970-01-01T00:00:00.000000Z: why"),
            (|h| h.database.wal_bytes = Health::WAL_MAX_BYTES, ""),
            (|h| h.database.wal_bytes = Health::WAL_MAX_BYTES + 1, "the WAL file has 134217729 bytes"),
            (|h| h.listener = ThreadState::Panicked, ""),
        ];
        for (change, says) in cases {
            let mut health = well();
            change(&mut health);
            health.judge();
            let said: Vec<String> = health.problems.iter().map(Problem::to_string).collect();
            assert_eq!(said.is_empty(), says.is_empty(), "{said:?} where {says:?} was expected");
            assert_eq!(health.is_healthy(), says.is_empty());
            assert!(said.join("; ").starts_with(says), "{said:?} where {says:?} was expected");
        }
    }

    #[test]
    fn health_is_json_for_machines_and_lines_for_people() {
        let mut health = well();
        health.lag = Some(Duration::from_millis(2));
        health.database.error = Some("why".into());
        health.judge();
        let json = serde_json::to_value(&health).expect("JSON");
        assert_eq!((&json["state"], &json["lag_us"]), (&"active".into(), &2000.into()));
        assert_eq!(json["problems"][0]["problem"], "database_fails");
        let text = health.to_string();
        assert!(text.starts_with("active, not healthy\nproblem: the database fails since"), "{text}");
    }
}
