//! For the tests of programs that use jobmill: a clock that stands still, an engine without threads on a file of its
//! own, crashes and failing commits at will. Behind the feature `testing`.

mod conformance;

use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::client::Client;
use crate::clock::Clock;
use crate::engine::Engine;
use crate::engine::builder::EngineBuilder;
use crate::error::Result;
use crate::model::id::JobId;
use crate::model::job::{Job, Status};
use crate::model::new_job::NewJob;
use crate::model::time::Timestamp;
pub use crate::store::Fault;
pub use crate::testing::conformance::Conformance;

/// A clock that moves only when it is told to. Clones share the time.
///
/// ```
/// use jobmill::testing::ManualClock;
/// use jobmill::Clock;
/// use std::time::Duration;
///
/// let clock = ManualClock::default();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now().since(before), Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    time: Arc<Time>,
}

#[derive(Debug)]
struct Time {
    now_us: AtomicI64,
    monotonic_us: AtomicU64,
}

impl Default for ManualClock {
    /// Stands at the beginning of 2026.
    fn default() -> Self {
        Self::at(Timestamp::from_micros(1_767_225_600_000_000))
    }
}

impl ManualClock {
    /// A clock that stands at this moment.
    pub fn at(now: Timestamp) -> Self {
        let time = Time { now_us: AtomicI64::new(now.as_micros()), monotonic_us: AtomicU64::new(0) };
        Self { time: Arc::new(time) }
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        let later = self.now().saturating_add(time);
        self.time.now_us.store(later.as_micros(), Ordering::SeqCst);
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.time.monotonic_us.fetch_add(time_us, Ordering::SeqCst);
    }

    /// Lets the wall clock jump, forward or back, as when somebody sets it. No time passes.
    pub fn jump(&self, to: Timestamp) {
        self.time.now_us.store(to.as_micros(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.time.now_us.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.time.monotonic_us.load(Ordering::SeqCst))
    }
}

/// Makes commits of a [`Harness`] fail.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    commits: u64,
    fault: Option<(u64, u64, Fault)>,
}

impl FaultPlan {
    /// Makes the `n`-th commit from now fail, counted from 1.
    pub fn fail(&self, n: u64, fault: Fault) {
        let mut plan = self.plan();
        let at = plan.commits + n;
        plan.fault = Some((at, at, fault));
    }

    /// Makes the `n`-th commit from now fail, and all that follow it.
    pub fn fail_from(&self, n: u64, fault: Fault) {
        let mut plan = self.plan();
        plan.fault = Some((plan.commits + n, u64::MAX, fault));
    }

    /// Lets commits succeed again.
    pub fn heal(&self) {
        self.plan().fault = None;
    }

    /// How many commits have been tried.
    pub fn commits(&self) -> u64 {
        self.plan().commits
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Fault> {
        let mut plan = self.plan();
        plan.commits += 1;
        let commit = plan.commits;
        plan.fault.filter(|(from, to, _)| (*from..=*to).contains(&commit)).map(|(_, _, fault)| fault)
    }
}

type Describe = Box<dyn Fn(EngineBuilder) -> EngineBuilder + Send>;

/// An engine without threads, on a file of its own, with a manual clock.
///
/// ```
/// use jobmill::testing::Harness;
/// use jobmill::{Context, Failure, Payload};
/// use serde::{Deserialize, Serialize};
/// use std::time::Duration;
///
/// #[derive(Serialize, Deserialize)]
/// struct Flaky;
///
/// impl Payload for Flaky {
///     const KIND: &'static str = "flaky";
/// }
///
/// fn flaky(_: Flaky, ctx: &Context) -> Result<(), Failure> {
///     if ctx.attempt() == 1 { Err(Failure::retry_after(Duration::from_secs(2), "not yet")) } else { Ok(()) }
/// }
///
/// # fn main() -> jobmill::Result<()> {
/// let t = Harness::new(|builder| builder.handle(flaky))?;
/// let id = t.enqueue(&Flaky)?;
/// t.drain()?;
/// t.check(id, "pending, attempt 1 failed: not yet, due in 2s");
/// t.advance(Duration::from_secs(2));
/// t.drain()?;
/// t.check(id, "completed, attempt 2");
/// # Ok(())
/// # }
/// ```
pub struct Harness {
    engine: Option<Engine>,
    describe: Describe,
    clock: ManualClock,
    faults: FaultPlan,
    directory: TempDir,
}

impl std::fmt::Debug for Harness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harness").field("engine", &self.engine).field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl Harness {
    /// Makes an engine as the closure describes it. The closure is called again after each crash and restart.
    ///
    /// # Errors
    /// Those of [`EngineBuilder::inline`].
    pub fn new(describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> Result<Self> {
        let directory = tempfile::tempdir().map_err(|error| {
            crate::error::Error::with_source(crate::error::ErrorKind::Storage, "no temporary directory", error)
        })?;
        let mut harness = Self {
            engine: None,
            describe: Box::new(describe),
            clock: ManualClock::default(),
            faults: FaultPlan::default(),
            directory,
        };
        harness.open()?;
        Ok(harness)
    }

    fn open(&mut self) -> Result<()> {
        let faults = self.faults.clone();
        let builder = Engine::builder(self.path()).clock(self.clock.clone()).faults(Arc::new(move |_| faults.next()));
        self.engine = Some((self.describe)(builder).inline()?);
        Ok(())
    }

    /// The database file.
    pub fn path(&self) -> impl AsRef<Path> + use<> {
        self.directory.path().join("jobs.db")
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("a harness has an engine but while it restarts")
    }

    /// A client of the engine.
    pub fn client(&self) -> &Client {
        self.engine().client()
    }

    /// The clock.
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// What makes commits fail.
    pub fn faults(&self) -> &FaultPlan {
        &self.faults
    }

    /// Enqueues a job and gives its id, or that of the job that holds its unique key.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`].
    pub fn enqueue(&self, job: impl Into<NewJob>) -> Result<JobId> {
        Ok(self.client().enqueue(job)?.id())
    }

    /// Runs what is due until nothing is, and tells how many attempts that were.
    ///
    /// # Errors
    /// Those of [`Engine::drain`].
    pub fn drain(&self) -> Result<usize> {
        self.engine().drain()
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Ends the engine as a kill of its process would, and starts another on the same file.
    ///
    /// # Errors
    /// Those of [`EngineBuilder::inline`].
    pub fn crash(&mut self) -> Result<()> {
        if let Some(engine) = self.engine.take() {
            engine.crash();
        }
        self.open()
    }

    /// Shuts the engine down and starts another on the same file.
    ///
    /// # Errors
    /// Those of [`Engine::shutdown`] and [`EngineBuilder::inline`].
    pub fn restart(&mut self) -> Result<()> {
        if let Some(engine) = self.engine.take() {
            engine.shutdown(Duration::ZERO)?;
        }
        self.open()
    }

    /// Where a job stands, in a few words: its status, its attempt, the error of one that failed, when it is due.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn describe(&self, id: JobId) -> Result<String> {
        Ok(describe(&self.client().get(id)?, self.clock.now()))
    }

    /// Asserts where a job stands, in the words of [`Harness::describe`].
    ///
    /// # Panics
    /// If it stands elsewhere, or does not exist.
    #[track_caller]
    pub fn check(&self, id: JobId, expected: &str) {
        match self.describe(id) {
            Ok(found) => assert_eq!(found, expected, "{id}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn describe(job: &Job, now: Timestamp) -> String {
    let mut text = job.status.to_string();
    let error = job.error.as_deref().unwrap_or("without a word");
    match job.status {
        Status::Pending if job.attempt > 0 && job.error.is_some() => {
            text += &format!(", attempt {} failed: {error}", job.attempt);
        }
        Status::Running | Status::Completed => text += &format!(", attempt {}", job.attempt),
        Status::Failed => text += &format!(", attempt {}: {error}", job.attempt),
        _ => {}
    }
    if job.status == Status::Pending && job.run_at > now {
        text += &format!(", due in {:?}", job.run_at.since(now));
    }
    text
}
