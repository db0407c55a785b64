//! The claimed jobs and those who run them: who may take which, how many are wanted, who has run out of time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::desk::Note;
use crate::handler::context::{Run, Stop};
use crate::handler::registry::Registry;
use crate::model::batch_job::{BATCH_KINDS, LOCAL_KIND};
use crate::model::explain::Reason;
use crate::model::health::WorkersHealth;
use crate::model::id::JobId;
use crate::model::job::{Job, Priority};
use crate::model::preference::Preference;
use crate::model::retry::Backoff;
use crate::model::rules::SYSTEM_QUEUE;
use crate::model::workers::Workers;
use crate::store::lane::{Demand, Lane};
use crate::store::row::Claim;

/// Jobs are claimed ahead of free workers for about as long as this, so that no turn is made for each of them.
const AHEAD_MIN: Duration = Duration::from_millis(1);
const AHEAD_MAX: Duration = Duration::from_millis(10);
/// The most jobs that are claimed ahead.
const AHEAD_JOBS_MAX: usize = 256;
/// Jobs claimed ahead that no worker has taken for this long go back.
const AHEAD_STALE: Duration = Duration::from_millis(20);
/// A further worker is woken for ready jobs that take longer than this, all together.
const WAKE_FOR: Duration = Duration::from_micros(100);
const RANKS: usize = Priority::ALL.len();
/// Jobs stand in a line for each rank, and the engine's own in more: those have workers of their own, so that callbacks do
/// not wait for batches, nor what is at a provider for what runs here and may take hours.
const LINES: usize = RANKS + OWN_LINES;
const OWN_LINES: usize = 3;
const CALLBACKS: usize = RANKS;
const BATCHES: usize = RANKS + 1;
const LOCAL: usize = RANKS + 2;

/// What the pool was built with.
pub(crate) struct PoolSettings {
    pub(crate) workers: Workers,
    /// How many deliveries of callbacks run at a time, beside the others, how many jobs that batches need, and how many
    /// requests of local providers.
    pub(crate) own_workers: [usize; OWN_LINES],
    pub(crate) queue_limits: HashMap<String, usize>,
    /// What jobs may weigh all together that run at a time.
    pub(crate) capacity: Option<u32>,
    pub(crate) ageing: Option<Duration>,
    pub(crate) preference: Preference,
    pub(crate) fair_by_user: bool,
    pub(crate) backoff: Backoff,
    pub(crate) timeout_grace: Duration,
    pub(crate) abandoned_max: usize,
}

/// The claimed jobs and those who run them.
pub(crate) struct Pool {
    settings: PoolSettings,
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// A worker may have something to do.
    work: Condvar,
    /// A run has ended.
    ended: Condvar,
    /// How long a turn takes, a moving mean.
    turn_ns: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Jobs are claimed.
    open: bool,
    /// Workers go home.
    closed: bool,
    /// Claimed jobs that no worker has taken yet, by line.
    ready: [VecDeque<Arc<Claim>>; LINES],
    /// Since when jobs have lain ready without one being taken.
    ready_since: Duration,
    /// Nothing is claimed ahead until a run ends, for all workers are busy for long.
    no_ahead: bool,
    running: HashMap<JobId, Arc<Run>>,
    running_by_line: [usize; LINES],
    /// Claimed jobs by queue, for queues with a limit.
    by_queue: HashMap<String, usize>,
    /// What the claimed jobs weigh that share the capacity.
    weight: u64,
    /// The job for which nothing that comes after it is claimed until it has room: its weight and its rank.
    too_heavy: Option<(u64, usize)>,
    /// Ready jobs that somebody asked to stop.
    stopped: HashSet<JobId>,
    threads: usize,
    idle: usize,
    abandoned: usize,
    warned_of_abandoned: bool,
    /// Somebody waits for runs to end.
    awaited: bool,
    /// And has no time any more.
    hurried: bool,
    next_worker: u32,
    /// Slots of the lock file that hold no attempt whose end is not committed yet, and the number of all slots.
    free_slots: Vec<u32>,
    slots: u32,
}

impl State {
    fn ready_len(&self) -> usize {
        self.ready.iter().map(VecDeque::len).sum()
    }

    /// The best ready job that a worker may take now: a worker is kept for its priority, but it is chosen by the rank
    /// that its waiting has earned it. The engine's own jobs go first, for others wait for what they do.
    fn take(&mut self, workers: &Workers, own_workers: &[usize; OWN_LINES]) -> Option<Arc<Claim>> {
        for (own, workers) in own_workers.iter().enumerate() {
            if self.running_by_line[RANKS + own] < *workers
                && let Some(own) = self.ready[RANKS + own].pop_front()
            {
                return Some(own);
            }
        }
        let fits = |above: usize| {
            let running: usize = self.running_by_line[above..RANKS].iter().sum();
            running < workers.room_for(Priority::ALL[above])
        };
        let best = |rank: &usize| self.ready[*rank].front().map(|claim| (claim.rank, claim.job.run_at, claim.job.id));
        let rank =
            (0..RANKS).take_while(|rank| fits(*rank)).filter(|rank| !self.ready[*rank].is_empty()).min_by_key(best)?;
        self.ready[rank].pop_front()
    }
}

/// What the end of a run leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The run had been abandoned, and its outcome does not count.
    Abandoned,
    /// Other jobs are running or claimed.
    OthersRun,
    /// Nothing runs, and nothing is claimed.
    LastOne,
}

/// What a worker is to do next.
pub(crate) enum Next {
    Run(Arc<Run>),
    /// Nothing has come for so long that the thread may end.
    GoHome,
}

impl Pool {
    pub(crate) fn new(settings: PoolSettings, registry: Arc<Registry>, clock: Arc<dyn Clock>) -> Self {
        Self {
            settings,
            registry,
            clock,
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            turn_ns: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock runs code of others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing runs and nothing is claimed.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state();
        state.running.is_empty() && state.ready_len() == 0
    }

    /// Says whether jobs are to be claimed.
    pub(crate) fn set_open(&self, open: bool) {
        self.state().open = open;
    }

    /// Whether jobs are to be claimed.
    pub(crate) fn is_open(&self) -> bool {
        self.state().open
    }

    /// Takes note of how long a turn took.
    pub(crate) fn turn_took(&self, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mean_ns = self.turn_ns.load(Ordering::Relaxed);
        self.turn_ns.store(mean_ns - mean_ns / 8 + took_ns / 8, Ordering::Relaxed);
    }

    /// How many jobs of a kind are to be claimed ahead of free workers: what they run in about one turn.
    fn ahead(&self, kind: &str) -> usize {
        let Some(mean) = self.registry.mean(kind) else {
            return 0;
        };
        let turn = Duration::from_nanos(self.turn_ns.load(Ordering::Relaxed));
        let horizon = (2 * turn).clamp(AHEAD_MIN, AHEAD_MAX);
        let each = horizon.as_nanos() / mean.as_nanos().max(1);
        let jobs = usize::try_from(each).unwrap_or(usize::MAX).saturating_mul(self.settings.workers.max);
        jobs.min(AHEAD_JOBS_MAX)
    }

    /// Whether jobs take so long that it is worth waking another worker for them.
    fn is_long(&self, jobs: usize, kind: &str) -> bool {
        match self.registry.mean(kind) {
            Some(mean) => mean.saturating_mul(u32::try_from(jobs).unwrap_or(u32::MAX)) > WAKE_FOR,
            None => true,
        }
    }

    /// Wakes everybody if jobs lie ready though workers are idle: one that was thought short takes long.
    pub(crate) fn spread(&self) {
        let state = self.state();
        if state.idle > 0 && state.ready_len() > 0 {
            self.work.notify_all();
        }
    }

    /// The next job for a worker, waited for if need be.
    pub(crate) fn next(&self, worker: u32) -> Next {
        let mut state = self.state();
        loop {
            if let Some(run) = self.begin(&mut state, worker) {
                return Next::Run(run);
            }
            if state.closed {
                state.threads -= 1;
                self.ended.notify_all();
                return Next::GoHome;
            }
            state.idle += 1;
            if state.threads <= self.settings.workers.min {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            }
            let (woken, waited) =
                self.work.wait_timeout(state, self.settings.workers.keep_alive).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.ready_len() == 0 && state.threads > self.settings.workers.min {
                state.threads -= 1;
                self.ended.notify_all();
                return Next::GoHome;
            }
        }
    }

    /// The next job for the caller's own thread, if there is one.
    pub(crate) fn try_next(&self, worker: u32) -> Option<Arc<Run>> {
        self.begin(&mut self.state(), worker)
    }

    fn begin(&self, state: &mut State, worker: u32) -> Option<Arc<Run>> {
        if !state.open {
            // What a late turn has claimed goes back.
            return None;
        }
        let claim = state.take(&self.settings.workers, &self.settings.own_workers)?;
        let now = self.clock.monotonic();
        state.ready_since = now;
        if state.idle > 0 && state.ready_len() > 0 && self.is_long(state.ready_len(), claim.job.kind_name()) {
            self.work.notify_one();
        }
        state.running_by_line[line(&claim)] += 1;
        let slot = state.free_slots.pop().unwrap_or_else(|| {
            state.slots += 1;
            state.slots - 1
        });
        let run = Arc::new(Run::new(claim, worker, slot, now));
        if state.stopped.remove(&run.claim.job.id) {
            run.ask_to_stop(Stop::Cancelled);
        }
        state.running.insert(run.claim.job.id, run.clone());
        Some(run)
    }

    /// Takes note that a run has ended, and tells what that leaves.
    pub(crate) fn end(&self, run: &Run) -> Ended {
        let took = self.clock.monotonic().saturating_sub(run.began);
        self.registry.measured(run.claim.job.kind_name(), took);
        let mut state = self.state();
        let counts = remove(&mut state, run);
        if !counts {
            state.abandoned -= 1;
        }
        if state.awaited {
            self.ended.notify_all();
        }
        match counts {
            false => Ended::Abandoned,
            true if state.running.is_empty() && state.ready_len() == 0 => Ended::LastOne,
            true => Ended::OthersRun,
        }
    }

    /// How many threads ought to be started for the jobs that lie ready, with the numbers of their workers.
    pub(crate) fn hire(&self) -> std::ops::Range<u32> {
        let mut state = self.state();
        let first = state.next_worker;
        if !state.closed {
            // The engine's own jobs bring their workers with them.
            let own_line = |own: usize| state.ready[RANKS + own].len() + state.running_by_line[RANKS + own];
            let own: usize = (0..OWN_LINES).map(|own| own_line(own).min(self.settings.own_workers[own])).sum();
            let max = self.settings.workers.max + own;
            let wanted = state
                .ready_len()
                .saturating_sub(state.idle)
                .max(self.settings.workers.min.saturating_sub(state.threads));
            let hired = wanted.min(max.saturating_sub(state.threads));
            state.threads += hired;
            state.next_worker += hired as u32;
        }
        first..state.next_worker
    }

    /// Gives back a worker's place whose thread could not be started.
    pub(crate) fn unhire(&self) {
        self.state().threads -= 1;
    }

    /// Looks for runs whose time is up: asks them to stop, and gives those that did not within the grace. These are
    /// abandoned: their outcome counts no more, and their place is free.
    pub(crate) fn overdue(&self) -> Vec<Arc<Run>> {
        let now = self.clock.monotonic();
        let mut state = self.state();
        let mut abandoned = Vec::new();
        for run in state.running.values() {
            let Some(deadline) = run.deadline().filter(|deadline| *deadline <= now) else {
                continue;
            };
            run.ask_to_stop(Stop::TimedOut);
            if deadline.saturating_add(self.settings.timeout_grace) <= now {
                abandoned.push(run.clone());
            }
        }
        let room = self.settings.abandoned_max.saturating_sub(state.abandoned);
        if abandoned.len() > room && !state.warned_of_abandoned {
            state.warned_of_abandoned = true;
            log::warn!("{} handlers ignore their timeouts; further ones keep their workers", state.abandoned);
        }
        abandoned.truncate(room);
        for run in &abandoned {
            remove(&mut state, run);
            state.abandoned += 1;
            // The thread comes back whenever its handler does, and then goes home.
            state.threads -= 1;
        }
        abandoned
    }

    /// What handlers have told since their last words were handed in, of those that have been silent for a while.
    pub(crate) fn notes(&self) -> Vec<Note> {
        let now = self.clock.monotonic();
        self.state().running.values().filter_map(|run| run.take_old_note(now)).collect()
    }

    /// Takes back jobs that were claimed ahead and that no worker has come to take.
    pub(crate) fn stale(&self) -> Vec<Arc<Claim>> {
        let mut state = self.state();
        let now = self.clock.monotonic();
        if state.ready_len() == 0 || now.saturating_sub(state.ready_since) < AHEAD_STALE {
            return Vec::new();
        }
        state.no_ahead = true;
        self.take_ready(&mut state)
    }

    fn take_ready(&self, state: &mut State) -> Vec<Arc<Claim>> {
        let mut taken = Vec::new();
        for ready in &mut state.ready {
            taken.extend(ready.drain(..));
        }
        state.stopped.clear();
        for claim in &taken {
            release(state, claim);
        }
        taken
    }

    /// Stops the claiming and gives back what no worker has taken.
    pub(crate) fn retire(&self) -> Vec<Arc<Claim>> {
        let mut state = self.state();
        state.open = false;
        self.take_ready(&mut state)
    }

    /// Waits until nothing runs any more, or the time is up.
    pub(crate) fn wait_until_idle(&self, timeout: Duration) {
        let mut state = self.state();
        state.awaited = true;
        let runs = |state: &mut State| !state.running.is_empty() && !state.hurried;
        let waited = self.ended.wait_timeout_while(state, timeout, runs);
        drop(waited);
    }

    /// Lets nobody wait for runs to end any more.
    pub(crate) fn hurry(&self) {
        self.state().hurried = true;
        self.ended.notify_all();
    }

    /// How many there are of what.
    pub(crate) fn census(&self) -> WorkersHealth {
        let now = self.clock.monotonic();
        let state = self.state();
        let is_overdue = |run: &&Arc<Run>| {
            run.deadline().is_some_and(|deadline| deadline.saturating_add(self.settings.timeout_grace) <= now)
        };
        WorkersHealth {
            max: self.settings.workers.max,
            threads: state.threads,
            busy: state.running.len(),
            idle: state.idle,
            ready: state.ready_len(),
            overdue: state.running.values().filter(is_overdue).count(),
            abandoned: state.abandoned,
            abandoned_max: self.settings.abandoned_max,
        }
    }

    /// Takes note that a worker's thread has ended by a bug of ours, and gives the run that it leaves, if any.
    pub(crate) fn lost(&self, worker: u32) -> Option<Arc<Run>> {
        let mut state = self.state();
        let run = state.running.values().find(|run| run.worker == worker).cloned();
        match &run {
            Some(run) => drop(remove(&mut state, run)),
            // It may have been abandoned, and its place given to another.
            None if state.abandoned > 0 => {
                state.abandoned -= 1;
                return None;
            }
            None => {}
        }
        state.threads = state.threads.saturating_sub(1);
        self.ended.notify_all();
        run
    }

    /// Abandons every run. Their outcomes count no more.
    pub(crate) fn abandon_all(&self) -> Vec<Arc<Run>> {
        let mut state = self.state();
        let runs: Vec<Arc<Run>> = state.running.values().cloned().collect();
        for run in &runs {
            run.ask_to_stop(Stop::ShutDown);
            remove(&mut state, run);
            state.abandoned += 1;
            // A run on the caller's own thread has none of the pool's.
            state.threads = state.threads.saturating_sub(1);
        }
        runs
    }

    /// How many threads run a handler whose outcome does not count any more.
    pub(crate) fn abandoned(&self) -> usize {
        self.state().abandoned
    }

    /// Waits until every worker has gone home that is not abandoned.
    pub(crate) fn wait_until_gone(&self) {
        let state = self.state();
        let gone = self.ended.wait_while(state, |state| state.threads > 0);
        drop(gone);
    }

    /// Sends all workers home.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.open = false;
        state.closed = true;
        self.work.notify_all();
    }
}

/// The line in which a job stands.
fn line(claim: &Claim) -> usize {
    if claim.job.queue == SYSTEM_QUEUE { own_line(claim.job.kind_name()) } else { claim.job.priority.rank() }
}

/// The line in which a job of the engine's own stands.
fn own_line(kind: &str) -> usize {
    match kind {
        LOCAL_KIND => LOCAL,
        kind if kind.starts_with(BATCH_KINDS) => BATCHES,
        _ => CALLBACKS,
    }
}

/// Takes a run off the books, and tells whether it was on them.
fn remove(state: &mut State, run: &Run) -> bool {
    let id = run.claim.job.id;
    if state.running.get(&id).is_none_or(|known| known.claim.fence != run.claim.fence) {
        return false;
    }
    state.running.remove(&id);
    state.running_by_line[line(&run.claim)] -= 1;
    release(state, &run.claim);
    state.no_ahead = false;
    true
}

fn release(state: &mut State, claim: &Claim) {
    if let Some(count) = state.by_queue.get_mut(&claim.job.queue) {
        *count -= 1;
    }
    if line(claim) < RANKS {
        state.weight -= u64::from(claim.weight);
    }
}

/// What a turn needs of the pool.
impl Pool {
    /// What is wanted now.
    pub(crate) fn demand(&self) -> PoolDemand<'_> {
        let state = self.state();
        let mut claimed = state.running_by_line;
        for (line, ready) in state.ready.iter().enumerate() {
            claimed[line] += ready.len();
        }
        PoolDemand {
            pool: self,
            open: state.open,
            claimed,
            ready: state.ready[..RANKS].iter().map(VecDeque::len).sum(),
            ahead: !state.no_ahead,
            by_queue: state.by_queue.clone(),
            weight: state.weight,
            too_heavy: state.too_heavy,
        }
    }

    /// Takes over claimed jobs.
    pub(crate) fn accept(&self, claims: Vec<Claim>) {
        let mut state = self.state();
        if state.ready_len() == 0 {
            state.ready_since = self.clock.monotonic();
        }
        for claim in claims {
            if self.settings.queue_limits.contains_key(&claim.job.queue) {
                *state.by_queue.entry(claim.job.queue.clone()).or_default() += 1;
            }
            let line = line(&claim);
            if line < RANKS {
                state.weight += u64::from(claim.weight);
                state.too_heavy = None;
            }
            state.ready[line].push_back(Arc::new(claim));
        }
        let idle = state.idle > 0;
        drop(state);
        if idle {
            // Each worker that begins wakes the next one, as long as there is enough to do.
            self.work.notify_one();
        }
    }

    /// Asks claimed jobs to stop.
    pub(crate) fn stop(&self, jobs: &[JobId]) {
        let mut state = self.state();
        for id in jobs {
            match state.running.get(id) {
                Some(run) => run.ask_to_stop(Stop::Cancelled),
                None if state.ready.iter().flatten().any(|claim| claim.job.id == *id) => {
                    state.stopped.insert(*id);
                }
                None => {}
            }
        }
    }

    /// Lets go of slots whose attempts the ledger has settled.
    pub(crate) fn settled(&self, slots: &[u32]) {
        self.state().free_slots.extend(slots);
    }

    pub(crate) fn backoff(&self) -> &Backoff {
        &self.settings.backoff
    }

    /// What is lacking to run a job, if it is anything but a worker.
    pub(crate) fn lacks(&self, job: &Job, weight: u32) -> Option<Reason> {
        let state = self.state();
        let running = state.by_queue.get(&job.queue).copied().unwrap_or(0);
        if let Some(most) = self.settings.queue_limits.get(&job.queue).copied().filter(|most| running >= *most) {
            return Some(Reason::QueueFull { queue: job.queue.clone(), running, most });
        }
        let capacity = self.settings.capacity?;
        let heavier = state.too_heavy.filter(|(_, rank)| *rank <= job.priority.rank()).map_or(0, |(weight, _)| weight);
        let wanted = heavier.max(weight.into()).min(capacity.into());
        let taken = state.weight;
        (taken + wanted > capacity.into()).then_some(Reason::NoCapacity { weight, taken, capacity })
    }
}

/// What the pool wants in one turn.
pub(crate) struct PoolDemand<'p> {
    pool: &'p Pool,
    open: bool,
    /// Claimed jobs by line, running and ready.
    claimed: [usize; LINES],
    ready: usize,
    ahead: bool,
    by_queue: HashMap<String, usize>,
    weight: u64,
    too_heavy: Option<(u64, usize)>,
}

impl PoolDemand<'_> {
    /// Whether the capacity has room for so much more. What weighs more than all of it runs alone.
    fn carries(&self, weight: u64) -> bool {
        let Some(capacity) = self.pool.settings.capacity.map(u64::from) else { return true };
        self.weight + weight.min(capacity) <= capacity
    }

    /// How many more jobs the limit of the lane's queue allows.
    fn room_in_queue(&self, lane: &Lane) -> usize {
        let claimed = || self.by_queue.get(&*lane.queue).copied().unwrap_or(0);
        self.pool.settings.queue_limits.get(&*lane.queue).map_or(usize::MAX, |limit| limit.saturating_sub(claimed()))
    }
}

impl Demand for PoolDemand<'_> {
    fn room(&self, lane: &Lane) -> usize {
        if !self.open {
            return 0;
        }
        let settings = &self.pool.settings;
        if self.is_apart(lane) {
            let line = own_line(&lane.kind);
            return settings.own_workers[line - RANKS].saturating_sub(self.claimed[line]);
        }
        let rank = lane.priority.rank();
        let least = self.too_heavy.filter(|(_, heavy)| *heavy <= rank).map_or(1, |(weight, _)| weight);
        if !self.carries(least) {
            return 0;
        }
        let free = (0..=rank)
            .map(|above| {
                let claimed: usize = self.claimed[above..RANKS].iter().sum();
                settings.workers.room_for(Priority::ALL[above]).saturating_sub(claimed)
            })
            .min()
            .unwrap_or(0);
        let ahead = if self.ahead { self.pool.ahead(&lane.kind).saturating_sub(self.ready) } else { 0 };
        free.max(ahead).min(self.room_in_queue(lane))
    }

    fn bars(&self, lane: &Lane) -> bool {
        let all_busy = self.claimed[..RANKS].iter().sum::<usize>() >= self.pool.settings.workers.max;
        self.open && all_busy && !self.is_apart(lane) && self.room_in_queue(lane) > 0
    }

    fn is_apart(&self, lane: &Lane) -> bool {
        &*lane.queue == SYSTEM_QUEUE
    }

    fn bears(&mut self, lane: &Lane, rank: usize, weight: u32) -> bool {
        if self.is_apart(lane) || self.carries(weight.into()) {
            return true;
        }
        self.too_heavy = Some((weight.into(), rank));
        self.pool.state().too_heavy = self.too_heavy;
        false
    }

    fn took(&mut self, lane: &Lane, weight: u32) {
        if self.is_apart(lane) {
            self.claimed[own_line(&lane.kind)] += 1;
            return;
        }
        self.weight += u64::from(weight);
        self.claimed[lane.priority.rank()] += 1;
        self.ready += 1;
        if self.pool.settings.queue_limits.contains_key(&*lane.queue) {
            *self.by_queue.entry(lane.queue.to_string()).or_default() += 1;
        }
    }

    fn ageing(&self) -> Option<Duration> {
        self.pool.settings.ageing
    }

    fn preference(&self) -> Preference {
        self.pool.settings.preference
    }

    fn takes(&self, lane: &Lane) -> Duration {
        match self.pool.settings.preference {
            Preference::Arrival => Duration::ZERO,
            _ => self.pool.registry.mean(&lane.kind).unwrap_or_default(),
        }
    }

    fn is_fair_by_user(&self) -> bool {
        self.pool.settings.fair_by_user
    }
}
