//! The thread that asks providers how their batches do, with a bounded number of requests in flight.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use parking_lot::Mutex;
use rusqlite::Connection;

use crate::builtin::batch::{Agency, Batches, CLOCK_SKEW, POLL_WAIT_MAX, SLICE, call, in_slices};
use crate::client::Client;
use crate::engine::vitals::Vitals;
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::PollCycle;
use crate::model::id::BatchRequestId;
use crate::model::time::Timestamp;
use crate::provider::{CallClass, CallError, CallResult, Limits, Provider, RemoteBatch};
use crate::store::Turn;
use crate::store::batch::poll::PollLimits;
use crate::store::batch::request::RequestRow;
use crate::store::batch::{poll, results};
use crate::store::jittered;

/// The longest rest, after which it looks whether another process has left something to be asked about.
const REST_MAX: Duration = Duration::from_secs(30);
/// The shortest rest.
const REST_MIN: Duration = Duration::from_millis(20);
/// The shortest rest after a cycle that could not write what it was told, doubled each time up to the longest.
const REST_FAILED: Duration = Duration::from_secs(1);
const REST_FAILED_MAX: Duration = Duration::from_secs(60);
/// How long nobody else asks about a batch that we ask about.
const LEASE: Duration = Duration::from_secs(120);
/// The first poll of a batch, and how much longer each further one waits.
const FIRST_WAIT: Duration = Duration::from_secs(30);
const GROWTH: f64 = 1.5;
/// Of how many batches at one account it asks by a list rather than one by one.
const LIST_FROM: usize = 4;
/// How long a batch may be overdue before it is said that its account is not here.
const STRANGE_AFTER: Duration = Duration::from_secs(600);
/// How often what nobody is at is taken up again, and what belongs to deleted batches is removed.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// A batch whose time was up this long ago is asked about once an hour.
const OVERDUE: Duration = Duration::from_secs(3600);
const WAIT_OVERDUE: Duration = Duration::from_secs(3600);
/// A batch that has run for longer than the lookback is asked about this often.
const WAIT_OLD: Duration = Duration::from_secs(6 * 3600);

/// Asks providers how their batches do.
pub(crate) struct Poller {
    client: Client,
    agency: Arc<Agency>,
    /// How many requests it makes at a time. 1: on its own thread.
    parallel: usize,
    stopping: Arc<AtomicBool>,
    /// What is claimed and not written, to be let go if the engine ends before.
    claimed: Arc<Mutex<HashSet<BatchRequestId>>>,
    vitals: Arc<Vitals>,
}

/// What one call is to find out.
enum Task<'a> {
    One(&'a dyn Provider, Box<RequestRow>),
    /// All of them, by a list of what was created since.
    All(&'a dyn Provider, Vec<RequestRow>, Timestamp),
}

/// What a call has found out of one request.
struct Told {
    row: RequestRow,
    answer: CallResult<RemoteBatch>,
    limits: Limits,
}

impl Poller {
    pub(crate) fn new(client: Client, agency: Arc<Agency>, threads: bool, vitals: Arc<Vitals>) -> Self {
        let parallel = if threads { agency.settings.polls_in_flight } else { 1 };
        Self { client, agency, parallel, stopping: Arc::default(), claimed: Arc::default(), vitals }
    }

    /// Asks about all that is due, writes what it is told, and tells what that came to.
    ///
    /// # Errors
    /// `Storage` if the file fails, or something panics that is ours or the application's. That must not end the thread
    /// that asks for all. What was due is due still.
    pub(crate) fn cycle(&self) -> Result<PollCycle> {
        let clock = self.client.desk().clock();
        self.vitals.cycle_begins(clock.monotonic());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.ask_all()))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Storage, "the poller panicked in the midst of a cycle")));
        let left: Vec<BatchRequestId> = std::mem::take(&mut *self.claimed.lock()).into_iter().collect();
        if !left.is_empty() {
            // Their lease is over soon, if that cannot be written either.
            let let_go = call(self.client.desk(), move |turn| turn.unclaim_polls(&left));
            let_go.unwrap_or_else(|error| log::debug!("polls are let go later: {error}"));
        }
        if self.vitals.cycle_ended(clock.now(), &outcome) {
            match &outcome {
                Ok(_) => log::info!("polls work again"),
                Err(error) => log::warn!("a cycle of polls failed, and is tried again until it does not: {error}"),
            }
        }
        outcome
    }

    fn ask_all(&self) -> Result<PollCycle> {
        let desk = self.client.desk();
        let (started_at, began) = (desk.clock().now(), desk.clock().monotonic());
        let limit = self.agency.settings.poll_batch_size;
        let accounts = self.agency.accounts();
        let (now, limits) = (started_at, PollLimits { lease: LEASE, wait_max: POLL_WAIT_MAX });
        let ids =
            self.look("cannot read which polls are due", |conn| poll::due(conn, &accounts, now, limit, limits))?;
        let mut due = Vec::with_capacity(ids.len());
        self.each_slice(
            ids,
            move |turn, ids| turn.claim_polls(ids, limits),
            |claimed: Vec<RequestRow>| {
                self.claimed.lock().extend(claimed.iter().map(|row| row.id));
                due.extend(claimed);
            },
        )?;
        let mut cycle = PollCycle { started_at, total: due.len() as u64, ..PollCycle::default() };
        if due.is_empty() {
            return Ok(cycle);
        }
        // By a cycle that is kept.
        cycle.items_updated = self.agency.items_updated.swap(0, Ordering::Relaxed);
        let (mut tasks, strange) = self.tasks(due, &mut cycle);
        for row in strange {
            let why = format!("the account {} is not here", row.account);
            log::warn!("{}: {why}", row.id);
            self.write(Told { row, answer: Err(not_here(why)), limits: Limits::new(1, 1) }, &mut cycle)?;
        }
        while !tasks.is_empty() {
            tasks = self.ask(tasks, &mut cycle)?;
        }
        cycle.elapsed_us = micros(desk.clock().monotonic().saturating_sub(began));
        log::info!(
            "polled {} batches with {} calls in {:?}: {} running, {} completed, {} not reached, {} items updated; {:?}",
            cycle.total,
            cycle.calls,
            Duration::from_micros(cycle.elapsed_us),
            cycle.running,
            cycle.completed,
            cycle.failed,
            cycle.items_updated,
            cycle.providers
        );
        let kept = cycle.clone();
        call(desk, move |turn| turn.keep_cycle(&kept))?;
        Ok(cycle)
    }

    /// The calls that tell of all these, and those whose account is not here.
    fn tasks(&self, due: Vec<RequestRow>, cycle: &mut PollCycle) -> (Vec<Task<'_>>, Vec<RequestRow>) {
        let mut by_account: Vec<(String, Vec<RequestRow>)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for row in due {
            *cycle.providers.entry(row.provider.clone()).or_default() += 1;
            let place = *places.entry(row.account.clone()).or_insert_with(|| {
                by_account.push((row.account.clone(), Vec::new()));
                by_account.len() - 1
            });
            by_account[place].1.push(row);
        }
        let (mut tasks, mut strange) = (Vec::new(), Vec::new());
        for (account, rows) in by_account {
            let Some(provider) = rows.first().and_then(|row| self.agency.for_account(&row.provider, &account)) else {
                strange.extend(rows);
                continue;
            };
            let page = provider.limits().list_page;
            let created = |row: &RequestRow| row.latest.as_ref().and_then(|latest| latest.created_at).or(row.sent_at);
            let oldest = rows.iter().map(created).min().flatten();
            match oldest {
                // A list that goes back to the oldest of them should have fewer pages than there are batches.
                Some(oldest) if page > 0 && rows.len() >= LIST_FROM => {
                    tasks.push(Task::All(&**provider, rows, oldest.saturating_sub(CLOCK_SKEW)));
                }
                _ => tasks.extend(rows.into_iter().map(|row| Task::One(&**provider, Box::new(row)))),
            }
        }
        (tasks, strange)
    }

    /// Makes the calls, as many at a time as may be, and writes what they tell. Gives those that a list did not tell of.
    fn ask<'a>(&self, tasks: Vec<Task<'a>>, cycle: &mut PollCycle) -> Result<Vec<Task<'a>>> {
        let mut left = Vec::new();
        if self.parallel == 1 || tasks.len() == 1 {
            for task in tasks {
                if self.stopping.load(Ordering::SeqCst) {
                    self.let_go(task)?;
                    continue;
                }
                cycle.calls += 1;
                for told in task.make(&mut left) {
                    self.write(told, cycle)?;
                }
            }
            return Ok(left);
        }
        let threads = self.parallel.min(tasks.len());
        let queue = Mutex::new(VecDeque::from(tasks));
        let (sender, receiver) = bounded::<(Vec<Told>, Vec<Task<'a>>)>(threads);
        let stopping = &self.stopping;
        let outcome = std::thread::scope(|scope| {
            for number in 0..threads {
                let (queue, sender) = (&queue, sender.clone());
                let body = move || {
                    while !stopping.load(Ordering::SeqCst) {
                        let Some(task) = queue.lock().pop_front() else { return };
                        let mut left = Vec::new();
                        let told = task.make(&mut left);
                        if sender.send((told, left)).is_err() {
                            return;
                        }
                    }
                };
                let named = std::thread::Builder::new().name(format!("jobmill-poll-{number}"));
                if let Err(error) = named.spawn_scoped(scope, body) {
                    log::warn!("cannot start a thread to poll with: {error}");
                }
            }
            drop(sender);
            let mut outcome = Ok(());
            for (told, further) in &receiver {
                cycle.calls += 1;
                left.extend(further);
                for told in told {
                    let written = self.write(told, cycle);
                    outcome = outcome.and(written);
                }
            }
            outcome
        });
        // What nobody came to ask about goes back.
        for task in queue.into_inner() {
            self.let_go(task)?;
        }
        outcome.map(|()| left)
    }

    fn let_go(&self, task: Task<'_>) -> Result<()> {
        let requests: Vec<BatchRequestId> = match task {
            Task::One(_, row) => vec![row.id],
            Task::All(_, rows, _) => rows.iter().map(|row| row.id).collect(),
        };
        let let_go = requests.clone();
        call(self.client.desk(), move |turn| turn.unclaim_polls(&let_go))?;
        self.written(&requests);
        Ok(())
    }

    /// Takes note that these are claimed no more.
    fn written(&self, requests: &[BatchRequestId]) {
        let mut claimed = self.claimed.lock();
        claimed.retain(|id| !requests.contains(id));
    }

    fn write(&self, told: Told, cycle: &mut PollCycle) -> Result<()> {
        let Told { row, answer, limits } = told;
        let desk = self.client.desk();
        let (now, id) = (desk.clock().now(), row.id);
        match answer {
            Ok(remote) => {
                let wait = next_wait(&self.agency.settings, &limits, &row, Some(&remote), remote.retry_after, now);
                let ended = call(desk, move |turn| turn.polled(&row, &remote, wait))?;
                *(if ended { &mut cycle.completed } else { &mut cycle.running }) += 1;
            }
            Err(error) => {
                cycle.failed += 1;
                let wait = next_wait(&self.agency.settings, &limits, &row, None, error.retry_after, now);
                log::warn!("{}: the provider did not tell how it does: {error}", row.id);
                let (text, not_found) = (error.to_string(), error.is_not_found());
                let patience = self.agency.settings.lost_after;
                call(desk, move |turn| {
                    turn.poll_failed(&row, &text, wait)?;
                    if not_found { turn.not_known(&row, &text, patience).map(drop) } else { Ok(()) }
                })?;
            }
        }
        self.written(&[id]);
        Ok(())
    }

    /// Reads beside the writer, however much there is.
    fn look<T>(&self, what: &str, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.client.reader().snapshot(what, read)
    }

    /// Writes in turns that are short, however much there is. Each looks again at what was read before it.
    fn each_slice<T: Clone + Send + 'static, R: Send + 'static>(
        &self,
        all: Vec<T>,
        work: impl Fn(&mut Turn<'_>, &[T]) -> rusqlite::Result<R> + Clone + Send + 'static,
        mut done: impl FnMut(R),
    ) -> Result<()> {
        for slice in all.chunks(SLICE) {
            let (slice, work) = (slice.to_vec(), work.clone());
            done(call(self.client.desk(), move |turn| work(turn, &slice))?);
        }
        Ok(())
    }

    /// Takes up again what nobody is at, ends steps whose job has gone, and removes what belongs to deleted batches.
    pub(crate) fn tidy(&self) -> Result<()> {
        let desk = self.client.desk();
        let open = self.look("cannot read the requests", poll::open)?;
        self.each_slice(open, |turn, ids| turn.resume_requests(ids), drop)?;
        let running = self.look("cannot read the batches", poll::running)?;
        self.each_slice(running, |turn, ids| turn.resume_batches(ids), drop)?;
        self.note_strange()?;
        loop {
            let lost = self.look("cannot read the steps", |conn| results::lost_steps(conn, SLICE))?;
            let left = lost.len() == SLICE;
            if !lost.is_empty() {
                call(desk, move |turn| turn.fail_lost_steps(lost))?;
            }
            if !left {
                break;
            }
        }
        for batch in self.look("cannot read what is deleted", poll::gone)? {
            in_slices(desk, move |turn| turn.purge_batch(batch, SLICE))?;
        }
        Ok(())
    }

    /// Says of batches that have been due for long that nobody here may ask about them.
    fn note_strange(&self) -> Result<()> {
        let desk = self.client.desk();
        let (accounts, before) = (self.agency.accounts(), desk.clock().now().saturating_sub(STRANGE_AFTER));
        let mut told = false;
        loop {
            let (others, silent) =
                self.look("cannot read the accounts", |conn| poll::strange(conn, &accounts, before, SLICE))?;
            if !std::mem::replace(&mut told, true) {
                others
                    .iter()
                    .for_each(|account| log::warn!("batches wait for the account {account}, which is not here"));
            }
            if silent.is_empty() {
                return Ok(());
            }
            call(desk, move |turn| turn.note_strange(&silent))?;
        }
    }

    fn rest(&self) -> Duration {
        let now = self.client.desk().clock().now();
        let accounts = self.agency.accounts();
        let due = self
            .client
            .reader()
            .snapshot("cannot read when the next poll is due", |conn| poll::next_due(conn, &accounts));
        match due {
            Ok(Some(due)) if self.agency.settings.polling => due.since(now).min(REST_MAX),
            _ => REST_MAX,
        }
    }

    fn run(&self, wake: &Receiver<()>, stop: &Receiver<()>) {
        let clock = self.client.desk().clock().clone();
        let mut tidy_at = clock.monotonic();
        let (mut failures, never) = (0, crossbeam_channel::never());
        while !self.stopping.load(Ordering::SeqCst) {
            if clock.monotonic() >= tidy_at {
                tidy_at = clock.monotonic() + TIDY_EVERY;
                if let Err(error) = self.tidy() {
                    log::warn!("batches are looked after later: {error}");
                }
            }
            let failed = self.agency.settings.polling && self.cycle().is_err();
            failures = if failed { failures + 1 } else { 0 };
            let rest_min = jittered(rest_min(failures), u64::from(failures));
            crossbeam_channel::select! {
                recv(stop) -> _ => return,
                // Who has something new cannot hurry one whose cycles fail.
                recv(if failed { &never } else { wake }) -> _ => {}
                default(self.rest().max(rest_min)) => {}
            }
        }
    }
}

impl<'a> Task<'a> {
    /// Makes the call. What a list does not tell of is left to be asked about one by one.
    fn make(self, left: &mut Vec<Task<'a>>) -> Vec<Told> {
        match self {
            Self::One(provider, row) => {
                let id = row.remote_id.clone().unwrap_or_default();
                vec![Told { row: *row, answer: asked(|| provider.poll(&id)), limits: provider.limits() }]
            }
            Self::All(provider, rows, since) => match asked(|| provider.list(since)) {
                Ok(Some(batches)) => {
                    let mut known: HashMap<String, RemoteBatch> =
                        batches.into_iter().map(|batch| (batch.id.clone(), batch)).collect();
                    let mut told = Vec::new();
                    for row in rows {
                        match row.remote_id.as_ref().and_then(|id| known.remove(id)) {
                            Some(batch) => told.push(Told { row, answer: Ok(batch), limits: provider.limits() }),
                            None => left.push(Task::One(provider, Box::new(row))),
                        }
                    }
                    told
                }
                Ok(None) => {
                    left.extend(rows.into_iter().map(|row| Task::One(provider, Box::new(row))));
                    Vec::new()
                }
                // Not to have a list, or none that can be read, says nothing of any batch.
                Err(error) if !is_for_now(&error) => {
                    log::warn!("{}: batches are asked about one by one, without a list: {error}", rows[0].account);
                    left.extend(rows.into_iter().map(|row| Task::One(provider, Box::new(row))));
                    Vec::new()
                }
                Err(error) => {
                    let failed = |row| Told { row, answer: Err(error.clone()), limits: provider.limits() };
                    rows.into_iter().map(failed).collect()
                }
            },
        }
    }
}

/// How long to rest at least after so many cycles in a row that failed. What was due is due still.
fn rest_min(failures: u32) -> Duration {
    match failures {
        0 => REST_MIN,
        failures => REST_FAILED.saturating_mul(1 << (failures - 1).min(16)).min(REST_FAILED_MAX),
    }
}

/// What a provider answers. One that panics, which may be the application's, must not end the thread that asks for all.
fn asked<T>(ask: impl FnOnce() -> CallResult<T>) -> CallResult<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)).unwrap_or_else(|_| {
        let why = "the provider panicked when it was asked";
        Err(CallError::new(crate::provider::Fate::Ambiguous, CallClass::Server, why))
    })
}

/// Whether a list may be had later, and its provider should not be asked more often meanwhile.
fn is_for_now(error: &CallError) -> bool {
    match error.class {
        CallClass::Account | CallClass::RateLimited | CallClass::Transport => true,
        CallClass::Server => error.status.is_some(),
        _ => false,
    }
}

fn not_here(why: String) -> CallError {
    CallError::new(crate::provider::Fate::NotSent, CallClass::Account, why)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How long a batch is left alone now: longer each time, with a fifth of jitter, and never shorter than its provider asks.
fn next_wait(
    settings: &Batches,
    limits: &Limits,
    row: &RequestRow,
    remote: Option<&RemoteBatch>,
    retry_after: Option<Duration>,
    now: Timestamp,
) -> Duration {
    let grown = row.poll_wait.map_or(FIRST_WAIT, |last| last.mul_f64(GROWTH).max(Duration::from_secs(1)));
    let spread = BuildHasherDefault::<DefaultHasher>::default().hash_one((row.id.raw(), now.as_micros()));
    let jitter = 0.8 + 0.4 * (spread % 1000) as f64 / 1000.0;
    let mut wait = grown.min(settings.poll_interval).mul_f64(jitter).min(settings.poll_interval);
    let remote = remote.or(row.latest.as_ref());
    if remote.and_then(|remote| remote.expires_at).is_some_and(|at| now.since(at) > OVERDUE) {
        wait = wait.max(WAIT_OVERDUE);
    }
    if row.sent_at.is_some_and(|at| now.since(at) > settings.lookback) {
        wait = wait.max(WAIT_OLD);
    }
    wait.max(retry_after.unwrap_or_default()).max(limits.poll_min).min(POLL_WAIT_MAX)
}

/// The thread, and how it is stopped.
pub(crate) struct PollerThread {
    stop: Sender<()>,
    stopping: Arc<AtomicBool>,
    claimed: Arc<Mutex<HashSet<BatchRequestId>>>,
    /// Hears of the end of the thread by being hung up on.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

impl PollerThread {
    pub(crate) fn start(poller: Poller, wake: Receiver<()>) -> std::io::Result<Self> {
        let ((stop, stopped), (ends, ended)) = (bounded(0), bounded::<()>(0));
        let (stopping, claimed) = (poller.stopping.clone(), poller.claimed.clone());
        let thread = std::thread::Builder::new().name("jobmill-poller".to_owned()).spawn(move || {
            let _ends = ends;
            let vitals = poller.vitals.clone();
            if !vitals.poller.live(|| poller.run(&wake, &stopped)) {
                // A bug of ours. The file holds all that is needed for the next engine to go on.
                log::error!("the poller panicked: no batch is asked about any more");
            }
        })?;
        Ok(Self { stop, stopping, claimed, ended, thread })
    }

    /// Asks it to end after the calls that are under way.
    pub(crate) fn ask_to_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Waits for it, no longer than `timeout` and no longer than nobody hurries. Gives what it is still asking about if it
    /// did not end: what it is told then, nobody hears any more, and its thread ends with the calls.
    pub(crate) fn stop(self, timeout: Duration, hurry: &Receiver<()>) -> Vec<BatchRequestId> {
        self.ask_to_stop();
        drop(self.stop);
        let has_ended = crossbeam_channel::select! {
            recv(self.ended) -> _ => true,
            recv(hurry) -> _ => self.ended.try_recv() == Err(TryRecvError::Disconnected),
            default(timeout) => self.ended.try_recv() == Err(TryRecvError::Disconnected),
        };
        if has_ended {
            if self.thread.join().is_err() {
                log::error!("the poller panicked");
            }
            return Vec::new();
        }
        let left: Vec<BatchRequestId> = std::mem::take(&mut *self.claimed.lock()).into_iter().collect();
        log::warn!("{} batches are being asked about still, by calls that are left behind", left.len());
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was due stays due when the file fails, so that a poller which did not rest would ask a thousand times a second.
    #[test]
    fn a_poller_rests_longer_and_longer_while_its_cycles_fail() {
        let rests: Vec<Duration> = [0, 1, 2, 3, 1000].into_iter().map(rest_min).collect();
        assert_eq!(rests, [REST_MIN, REST_FAILED, 2 * REST_FAILED, 4 * REST_FAILED, REST_FAILED_MAX]);
    }
}
