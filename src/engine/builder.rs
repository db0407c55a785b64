//! How an engine is described and started.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::builtin::batch::cancel::Canceller;
use crate::builtin::batch::clean::Cleaner;
use crate::builtin::batch::end::Ender;
use crate::builtin::batch::harvest::{Harvester, Runner};
use crate::builtin::batch::plan::Planner;
use crate::builtin::batch::retry::Retrier;
use crate::builtin::batch::send::Sender;
use crate::builtin::batch::step::StepFn;
use crate::builtin::batch::{Agency, Batches};
use crate::builtin::callback::Callbacks;
use crate::builtin::callback::courier::Courier;
use crate::builtin::callback::job::DeliverCallback;
use crate::client::Client;
use crate::clock::{Clock, SystemClock};
use crate::desk::Desk;
use crate::engine::dispatcher::Dispatcher;
use crate::engine::listener::Listener;
use crate::engine::maintenance::Maintenance;
use crate::engine::monitor::{Monitor, Parts};
use crate::engine::names::SystemNames;
use crate::engine::poller::{Poller, PollerThread};
use crate::engine::pool::{Pool, PoolSettings};
use crate::engine::staff::Staff;
use crate::engine::worker::Shop;
use crate::engine::{Engine, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::handler::context::{Context, States};
use crate::handler::registry::{FnHandler, Registry};
use crate::handler::{Failure, Handler, IntoOutcome};
use crate::liveness::Liveness;
use crate::model::batch::{BatchReply, Step};
use crate::model::health::EngineState;
use crate::model::limit::Limit;
use crate::model::metrics::Window;
use crate::model::new_job::{NewJob, Payload};
use crate::model::preference::Preference;
use crate::model::retention::Retention;
use crate::model::retry::Backoff;
use crate::model::rules::{MAX_DURATION, check_count, check_duration, check_kind, check_queue, check_time};
use crate::model::schedule::Schedule;
use crate::model::threshold::Threshold;
use crate::model::workers::Workers;
use crate::panics;
use crate::provider::Provider;
use crate::ring::Bell;
use crate::store::connect::{DEFAULT_PATIENCE, Durability, storage_error};
use crate::store::{Faults, Store};

/// Describes an engine. Nothing is checked or started before [`start`](EngineBuilder::start).
///
/// ```
/// use jobmill::{Durability, Engine, Priority, Workers};
/// use std::time::Duration;
/// # fn main() -> jobmill::Result<()> {
/// # let directory = tempfile::tempdir().expect("a temporary directory");
/// # let path = directory.path().join("jobs.db");
///
/// let engine = Engine::builder(&path)
///     .durability(Durability::Normal)
///     .workers(Workers::new(4).reserve(Priority::Critical, 1))
///     .queue("mail", 2)
///     .ageing(Duration::from_secs(600))
///     .start()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until it is started"]
pub struct EngineBuilder {
    pub(super) path: PathBuf,
    registry: Registry,
    states: States,
    pub(super) workers: Workers,
    queue_limits: HashMap<String, usize>,
    pub(super) backoff: Backoff,
    pub(super) capacity: Option<u32>,
    limits: Vec<Limit>,
    bounded_queues: Vec<Limit>,
    pub(super) preference: Preference,
    pub(super) ageing: Option<Duration>,
    pub(super) fair_by_user: bool,
    thresholds: Vec<Threshold>,
    schedules: Vec<Schedule>,
    pub(super) counts_rates: bool,
    /// None: this engine delivers no callbacks.
    pub(super) callbacks: Option<Callbacks>,
    providers: Vec<Arc<dyn Provider>>,
    pub(super) batches: Batches,
    pub(super) durability: Durability,
    pub(super) busy_timeout: Duration,
    pub(super) retention: Retention,
    pub(super) timeout_grace: Duration,
    pub(super) abandoned_max: usize,
    pub(super) shutdown_timeout: Duration,
    pub(super) heartbeats: bool,
    clock: Arc<dyn Clock>,
    faults: Option<Faults>,
    monitor: Monitor,
    /// The first rule that a setter saw broken.
    problem: Option<Error>,
}

impl fmt::Debug for EngineBuilder {
    /// Without the settings, among which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder").field("path", &self.path).finish_non_exhaustive()
    }
}

impl EngineBuilder {
    pub(super) const CAPACITY_BOUNDS: RangeInclusive<u64> = 1..=NewJob::MAX_WEIGHT as u64;
    pub(super) const AGEING_BOUNDS: RangeInclusive<Duration> = Duration::from_millis(1)..=MAX_DURATION;
    /// How many handlers that were abandoned may be running on: each has a thread, as a worker has.
    pub(super) const ABANDONED_BOUNDS: RangeInclusive<u64> = 0..=Workers::MAX as u64;

    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            registry: Registry::default(),
            states: States::default(),
            workers: Workers::default(),
            queue_limits: HashMap::new(),
            backoff: Backoff::default(),
            capacity: None,
            limits: Vec::new(),
            bounded_queues: Vec::new(),
            preference: Preference::default(),
            ageing: None,
            fair_by_user: false,
            thresholds: Vec::new(),
            schedules: Vec::new(),
            counts_rates: true,
            callbacks: Some(Callbacks::new()),
            providers: Vec::new(),
            batches: Batches::new(),
            durability: Durability::Full,
            busy_timeout: DEFAULT_PATIENCE,
            retention: Retention::default(),
            timeout_grace: Duration::from_secs(5),
            abandoned_max: 8,
            shutdown_timeout: Duration::from_secs(10),
            heartbeats: false,
            clock: Arc::new(SystemClock),
            faults: None,
            monitor: Monitor::default(),
            problem: None,
        }
    }

    /// Registers a function or closure as the handler of its payload's kind. It returns a value, or an
    /// [`Outcome`](crate::Outcome) of one, or a [`Failure`].
    pub fn handle<F, P, R>(self, handler: F) -> Self
    where
        F: Fn(P, &Context) -> Result<R, Failure> + Send + Sync + 'static,
        P: Payload + 'static,
        R: IntoOutcome + 'static,
    {
        self.handler(FnHandler::new(handler))
    }

    /// Registers a handler of its payload's kind.
    pub fn handler(mut self, handler: impl Handler) -> Self {
        if let Err(problem) = self.registry.add(handler) {
            self.problem.get_or_insert(problem);
        }
        self
    }

    /// Adds a provider of LLM batches, one account. Batches ask for it by its name.
    pub fn provider(mut self, provider: impl Provider + 'static) -> Self {
        self.providers.push(Arc::new(provider));
        self
    }

    /// Sets how LLM batches are submitted, polled and reckoned. Defaults to [`Batches::new`].
    pub fn batches(mut self, batches: Batches) -> Self {
        self.batches = batches;
        self
    }

    /// Registers a step, by the name that batches ask for ([`NewBatch::step`](crate::NewBatch::step)): it is given each
    /// reply of a model, runs on the workers as a job of the batch's queue and priority, and decides whether the item goes
    /// on. What it decides counts once; after a crash it may run again.
    pub fn batch_step<F>(mut self, name: &str, step: F) -> Self
    where
        F: Fn(BatchReply, &Context) -> Result<Step, Failure> + Send + Sync + 'static,
    {
        let step: StepFn = Arc::new(step);
        let added = check_kind(name).map_err(|error| error.within("batch_step")).and_then(|()| {
            self.registry.add_raw(name, Box::new(move |ctx| crate::builtin::batch::step::run(&step, ctx)))
        });
        if let Err(problem) = added {
            self.problem.get_or_insert(problem);
        }
        self
    }

    /// Shares a value with all handlers, which have it by [`Context::state`]. One of each type; the last one counts.
    pub fn state<T: Any + Send + Sync>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// Sets how many jobs run at a time, and how many workers are kept for urgent ones. Defaults to one worker for each
    /// processor, at least two.
    pub fn workers(mut self, workers: Workers) -> Self {
        self.workers = workers;
        self
    }

    /// Sets how many jobs of one queue this process runs at a time, at least 1. Defaults to no limit but the workers.
    pub fn queue(mut self, name: impl Into<String>, limit: usize) -> Self {
        self.queue_limits.insert(name.into(), limit);
        self
    }

    /// Sets a [`Limit`] in the file at the start, as [`Client::set_limit`](crate::Client::set_limit) does. May be called for
    /// several of different names. Defaults to what the file has.
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limits.push(limit);
        self
    }

    /// Bounds a queue in all processes together, at the start, as
    /// [`Client::limit_queue`](crate::Client::limit_queue) does. May be called for several queues. Defaults to what the
    /// file has.
    pub fn limit_queue(mut self, limit: Limit) -> Self {
        self.bounded_queues.push(limit);
        self
    }

    /// Sets what the jobs may [weigh](crate::NewJob::weight) all together that this engine runs at a time, from 1 to
    /// [`NewJob::MAX_WEIGHT`]: its memory, its cores, whatever the application counts. A job that weighs more than all
    /// of it runs alone. While the next job is too heavy for what is left, no lighter one overtakes it. Defaults to no
    /// bound but the workers.
    pub fn capacity(mut self, weight: u32) -> Self {
        self.capacity = Some(weight);
        self
    }

    /// Sets the waits between the attempts of jobs that do not say otherwise. The longest is 100 years at most.
    /// Defaults to [`Backoff::default`].
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Lets a job that has waited this long count one priority higher, and one more for each further such time, so
    /// that none starves. From a millisecond to 100 years. Defaults to no ageing.
    pub fn ageing(mut self, bound: Duration) -> Self {
        self.ageing = Some(bound);
        self
    }

    /// Sets what goes first among jobs of one priority. Defaults to [`Preference::Arrival`].
    pub fn prefer(mut self, preference: Preference) -> Self {
        self.preference = preference;
        self
    }

    /// Sets how much of a commit survives. Defaults to [`Durability::Full`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets how long a write waits for another process's write. Defaults to 10 s.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Lets users take turns: among jobs of one priority, the next is that of the user who was served longest ago, so that
    /// one who enqueues a thousand does not keep the others waiting. Jobs without a user count as one user's. Defaults to
    /// the order of the jobs alone.
    pub fn fair_by_user(mut self) -> Self {
        self.fair_by_user = true;
        self
    }

    /// Sets how callbacks are delivered. Defaults to [`Callbacks::new`]: unsigned, and to public addresses only.
    pub fn callbacks(mut self, callbacks: Callbacks) -> Self {
        self.callbacks = Some(callbacks);
        self
    }

    /// Delivers no callbacks, but leaves them to other engines on the file. Defaults to delivering.
    pub fn without_callbacks(mut self) -> Self {
        self.callbacks = None;
        self
    }

    /// Watches over a threshold, once a second, and tells those who [subscribe](crate::Client::subscribe) when it is passed
    /// and when it is well again. May be called for up to [`Threshold::MAX_COUNT`] of them. Defaults to none.
    pub fn threshold(mut self, threshold: Threshold) -> Self {
        self.thresholds.push(threshold);
        self
    }

    /// Stores a schedule at the start, in the place of the one that has its name if there is one
    /// ([`Client::schedule`](crate::Client::schedule)). May be called for any number of them. The last start decides: if
    /// another program, or an earlier version of this one, has stored it otherwise, it is changed for all, and the log says
    /// what is changed; an interval goes on from the moment from which it was reckoned before. Those of earlier starts that
    /// are not named any more stay, until they are deleted. Defaults to none.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedules.push(schedule);
        self
    }

    /// Counts no rates, so that an engine with nothing to do but its jobs writes nothing else:
    /// [`Client::metrics`](crate::Client::metrics) knows nothing of what this engine does then. The counts of
    /// [`Client::stats`](crate::Client::stats) stay exact. Defaults to counting.
    pub fn without_rates(mut self) -> Self {
        self.counts_rates = false;
        self
    }

    /// Sets how long ended jobs are kept. Defaults to [`Retention::default`].
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Sets how long a handler may go on after its timeout before its attempt is abandoned. Defaults to 5 s.
    pub fn timeout_grace(mut self, grace: Duration) -> Self {
        self.timeout_grace = grace;
        self
    }

    /// Sets how many abandoned handlers may be running on, each on a thread that was replaced. Further ones keep
    /// their workers. No more than [`Workers::MAX`]. Defaults to 8.
    pub fn max_abandoned(mut self, max: usize) -> Self {
        self.abandoned_max = max;
        self
    }

    /// Sets how long dropping the engine waits for running jobs. Defaults to 10 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Lets a heartbeat every 2 s tell that this engine lives, instead of a file lock: for file systems that have none.
    /// If it dies, its jobs run again only after a silence of 15 s, and a clock that is set forward by as much, or a
    /// process that sleeps for as long, makes a living engine count as dead; its attempts are fenced off then. Defaults
    /// to the lock.
    pub fn heartbeats(mut self) -> Self {
        self.heartbeats = true;
        self
    }

    /// Sets where the time comes from. Defaults to [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Makes commits fail as told, for tests.
    #[cfg(feature = "testing")]
    pub(crate) fn faults(mut self, faults: Faults) -> Self {
        self.faults = Some(faults);
        self
    }

    /// What will tell the state and the health of the engine, from now on: that it is starting too, which may take long if
    /// another process keeps the file locked.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// Starts the engine and its threads.
    ///
    /// Letta's start has two phases: to take a lock by which one process becomes the leader, and to try again and again in
    /// the background until it does. With SQLite both are left out, as its documentation allows, and the log says so once:
    /// every claim of a job, of a poll or of a tick is a conditional write, so that any number of processes share the work,
    /// and one that dies is made up for at once. What is left is one phase. The settings are checked, the file is opened and
    /// brought up to date, what dead engines have left is taken back, limits and schedules are set, all of them or none, the
    /// threads start; then the engine is active. If any of that fails, what had begun is undone, and the engine has
    /// [stopped](crate::EngineState::Stopped).
    ///
    /// With [`Batches::polling`] false (the documentation's `enable_batch_job_polling`) no provider is asked how batches do,
    /// which is said once in the log; everything else goes on, polls by other processes too.
    ///
    /// # Errors
    /// `Invalid` if a setting breaks a rule, with the setting and the rule; `Conflict` if this process runs an engine
    /// on the file already; `Storage` if the file cannot be opened.
    pub fn start(self) -> Result<Engine> {
        self.begin(true)
    }

    /// Makes an engine without threads, which runs jobs only when [`Engine::drain`] is called.
    ///
    /// # Errors
    /// Those of [`start`](EngineBuilder::start).
    pub fn inline(self) -> Result<Engine> {
        self.begin(false)
    }

    fn begin(self, threads: bool) -> Result<Engine> {
        let monitor = self.monitor();
        self.build(threads).inspect_err(|_| monitor.vitals().advance(EngineState::Stopped))
    }

    fn check(&mut self) -> Result<()> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        self.workers.check()?;
        self.backoff.check()?;
        self.retention.check()?;
        Threshold::check_all(&self.thresholds)?;
        self.schedules.iter().try_for_each(Schedule::check)?;
        let mut names = HashSet::new();
        if let Some(twice) = self.schedules.iter().find(|schedule| !names.insert(schedule.name())) {
            // Each would replace the other at every start.
            return Err(Error::invalid("schedule", format_args!("must not be two of the name {:?}", twice.name())));
        }
        if let Some(callbacks) = &self.callbacks {
            callbacks.check()?;
        }
        for (name, limit) in &self.queue_limits {
            check_queue(name)?;
            if *limit == 0 {
                return Err(Error::invalid("queue", format_args!("the limit of {name} must be at least 1")));
            }
        }
        self.preference.check()?;
        if let Some(capacity) = self.capacity {
            check_count("capacity", capacity.into(), &Self::CAPACITY_BOUNDS)?;
        }
        self.limits.iter().try_for_each(Limit::check)?;
        for limit in &self.bounded_queues {
            limit.check()?;
            check_queue(&limit.name)?;
        }
        for (field, limits) in [("limit", &self.limits), ("limit_queue", &self.bounded_queues)] {
            let mut names = HashSet::new();
            if let Some(twice) = limits.iter().find(|limit| !names.insert(limit.name())) {
                // The last one would silently undo the other.
                return Err(Error::invalid(field, format_args!("must not be two of the name {:?}", twice.name())));
            }
        }
        if let Some(ageing) = self.ageing {
            check_time("ageing", ageing, &Self::AGEING_BOUNDS)?;
        }
        check_count("max_abandoned", self.abandoned_max as u64, &Self::ABANDONED_BOUNDS)?;
        for (field, duration) in [
            ("backoff.max", self.backoff.max),
            ("busy_timeout", self.busy_timeout),
            ("timeout_grace", self.timeout_grace),
            ("shutdown_timeout", self.shutdown_timeout),
            ("workers.keep_alive", self.workers.keep_alive),
        ] {
            check_duration(field, duration)?;
        }
        Ok(())
    }

    /// The providers, if there are any.
    fn found_agency(&mut self) -> Result<Option<Arc<Agency>>> {
        self.batches.check()?;
        if self.providers.is_empty() {
            return Ok(None);
        }
        let mut agency = Agency::new(self.batches.clone());
        for provider in self.providers.drain(..) {
            agency.add(provider)?;
        }
        Ok(Some(Arc::new(agency)))
    }

    fn build(mut self, threads: bool) -> Result<Engine> {
        self.check()?;
        let mut own_workers = [self.callbacks.as_ref().map_or(0, |callbacks| callbacks.in_flight), 0, 0];
        let agency = self.found_agency()?;
        if let Some(agency) = &agency {
            own_workers[1..].copy_from_slice(&[agency.settings.in_flight, agency.settings.local_in_flight]);
            self.registry.add_own(Planner { agency: agency.clone() })?;
            self.registry.add_own(Sender { agency: agency.clone() })?;
            self.registry.add_own(Harvester { agency: agency.clone() })?;
            self.registry.add_own(Runner(Harvester { agency: agency.clone() }))?;
            self.registry.add_own(Canceller { agency: agency.clone() })?;
            self.registry.add_own(Cleaner { agency: agency.clone() })?;
            self.registry.add_own(Retrier)?;
            self.registry.add_own(Ender)?;
        }
        if let Some(callbacks) = self.callbacks.take() {
            // Each delivery looks up one name, and one that waits for a dead server should not hold up the next.
            let names = Arc::new(SystemNames::new(2 * callbacks.in_flight));
            self.registry.add_own(DeliverCallback { courier: Courier::new(callbacks, names)? })?;
        }
        let mut store = Store::open(&self.path, self.durability, self.busy_timeout, self.clock.clone())?;
        let path = store.contact().path().to_owned();
        let mut place = Place::take(&path)?;
        if let Some(faults) = self.faults.take() {
            store.inject(faults);
        }
        let liveness = Arc::new(Liveness::begin(&path, self.clock.now(), self.heartbeats)?);
        place.liveness = Some(liveness.clone());

        let registry = Arc::new(self.registry);
        let kinds = registry.kinds();
        // Nobody would come to remove the file of an engine that has no row. One that has a row after all needs no file:
        // it counts as dead without.
        let bell = if threads { hang_bell() } else { None };
        let port = bell.as_ref().map(Bell::port);
        let registered = register(&mut store, &*self.clock, &liveness, &kinds, port).inspect_err(|_| liveness.end());
        let own = registered?;
        store.serve(kinds, own);
        let client = Client::new(store, self.durability, self.clock.clone());
        let desk = client.desk().clone();
        let settings = PoolSettings {
            workers: self.workers,
            own_workers,
            queue_limits: self.queue_limits,
            capacity: self.capacity,
            ageing: self.ageing,
            preference: self.preference,
            fair_by_user: self.fair_by_user,
            backoff: self.backoff,
            timeout_grace: self.timeout_grace,
            abandoned_max: self.abandoned_max,
        };
        let pool = Arc::new(Pool::new(settings, registry.clone(), self.clock.clone()));
        let staff = Arc::new(Staff::new(pool.clone()));
        desk.employ(staff.clone());
        let shutting_down = Arc::new(AtomicBool::new(false));
        let shop = Arc::new(Shop {
            client: client.clone(),
            registry,
            states: Arc::new(self.states),
            pool: pool.clone(),
            liveness: liveness.clone(),
            shutting_down: shutting_down.clone(),
        });
        if self.preference != Preference::Arrival {
            learn(&client, &shop.registry)?;
        }
        panics::install();
        if !self.counts_rates {
            desk.press().count_nothing();
        }
        let (retention, heartbeats) = (self.retention, self.heartbeats);
        let mut maintenance =
            Maintenance::new(desk.clone(), path.clone(), own, liveness.clone(), retention, heartbeats, self.thresholds);
        maintenance.beat()?;
        maintenance.rescue()?;
        if let Err(error) = client.set_up(&self.limits, &self.bounded_queues, &self.schedules) {
            withdraw(&desk, own, place);
            return Err(error);
        }
        maintenance.look_at_schedules()?;

        let monitor = self.monitor;
        let vitals = monitor.vitals().clone();
        let polling = agency.as_ref().map(|agency| agency.settings.polling);
        let providers = agency.as_ref().map_or(0, |agency| agency.providers.len());
        let asks = polling.unwrap_or(false);
        monitor.watch(Parts { client: client.clone(), pool: pool.clone(), polling: asks, providers });
        let (patience, hurried) = crossbeam_channel::bounded(0);
        // From here on whatever has begun is ended when the engine is dropped.
        let mut engine = Engine {
            client,
            pool,
            staff,
            shop: Mutex::new(Some(shop.clone())),
            dispatcher: Mutex::default(),
            listener: Mutex::default(),
            poller: None,
            poller_thread: Mutex::default(),
            stop_dispatcher: Arc::default(),
            shutting_down,
            vitals: vitals.clone(),
            monitor,
            patience: Mutex::new(Some(patience)),
            hurried,
            own,
            inline: None,
            shutdown_timeout: self.shutdown_timeout,
            place: Mutex::new(Some(place)),
        };
        if threads {
            engine.staff.open(shop);
            engine.pool.set_open(true);
            let (pool, stop) = (engine.pool.clone(), engine.stop_dispatcher.clone());
            let body = Dispatcher { desk: desk.clone(), pool, maintenance, stop, vitals: vitals.clone() };
            vitals.dispatcher.begins(true);
            let thread = std::thread::Builder::new()
                .name("jobmill-dispatcher".to_owned())
                .spawn(move || body.run())
                .inspect_err(|_| vitals.dispatcher.begins(false))
                .map_err(|error| Error::with_source(ErrorKind::Storage, "cannot start the dispatcher", error))?;
            desk.attend_by(thread.thread().clone());
            engine.dispatcher = Mutex::new(Some(thread));
            let listener = bell.and_then(|bell| {
                let started = Listener::start(bell, desk.clone(), vitals.clone());
                started.inspect_err(|error| log::warn!("cannot listen for other engines: {error}")).ok()
            });
            engine.listener = Mutex::new(listener);
        } else {
            engine.inline = Some(Mutex::new(maintenance));
        }
        if let Some(agency) = agency {
            let poller = Poller::new(engine.client.clone(), agency, threads, vitals.clone());
            if threads {
                let (wake, woken) = crossbeam_channel::bounded(1);
                desk.poll_by(wake);
                vitals.poller.begins(true);
                let started = PollerThread::start(poller, woken);
                let started =
                    started.map_err(|error| Error::with_source(ErrorKind::Storage, "cannot start the poller", error));
                engine.poller_thread = Mutex::new(Some(started?));
            } else {
                poller.tidy()?;
                engine.poller = Some(poller);
            }
        }
        if polling == Some(false) {
            log::info!("polling of LLM batches is disabled: no provider is asked how they do by this engine");
        }
        log::info!(
            "started on {}, without leader election, which SQLite does not need: every claim is a conditional write",
            path.display()
        );
        // Whoever asks for the health waits for a reader less long than it may take to open the first one.
        let opened = engine.client.reader().snapshot("cannot open a reader", |_| Ok(()));
        opened.unwrap_or_else(|error| log::debug!("no reader is open yet: {error}"));
        vitals.advance(EngineState::Active);
        Ok(engine)
    }
}

/// Hangs the bell by which other engines wake this one. Where a process may not, it looks at the file more often.
fn hang_bell() -> Option<Bell> {
    Bell::hang().inspect_err(|error| log::info!("no bell for other engines to ring, so we look often: {error}")).ok()
}

/// Writes our row among the instances.
fn register(
    store: &mut Store,
    clock: &dyn Clock,
    liveness: &Liveness,
    kinds: &HashSet<String>,
    port: Option<u16>,
) -> Result<i64> {
    let Some(lock_file) = liveness.path().to_str() else {
        return Err(Error::invalid("path", "must be UTF-8, for it is kept in the database"));
    };
    let kinds = serde_json::to_string(kinds)
        .map_err(|error| Error::with_source(ErrorKind::Invalid, "the kinds do not serialize", error))?;
    let host = hostname();
    let (own, _) = store.turn(clock.now(), None, |turn| {
        turn.register(lock_file, &host, std::process::id(), &kinds, port)
            .map_err(|error| storage_error("cannot register the engine", error))
    })?;
    Ok(own)
}

/// Takes an engine back that does not start after all: its row, and the sign that it lives.
fn withdraw(desk: &Desk, own: i64, place: Place) {
    let withdrawn = desk.call_here(move |turn| {
        turn.rescue(own, &HashSet::new()).map_err(|error| storage_error("cannot close the engine's row", error))
    });
    match withdrawn {
        Ok(_) => place.leave(),
        Err(error) => log::debug!("the next engine closes the row of one that has not started: {error}"),
    }
}

/// Learns from the file how long jobs of each kind have run in the last day.
fn learn(client: &Client, registry: &Registry) -> Result<()> {
    for (kind, rates) in client.metrics(Window::Day)?.kinds {
        if let Some(mean) = rates.ran.mean() {
            registry.measured(&kind, mean);
        }
    }
    Ok(())
}

/// The name of this host, for people to read.
fn hostname() -> String {
    std::env::var("HOSTNAME")
        .or_else(|_| std::env::var("COMPUTERNAME"))
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}
