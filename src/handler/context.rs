//! What a handler has of its job and its engine while it runs.

use std::any::{Any, TypeId, type_name};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Client, Transaction};
use crate::desk::Note;
use crate::error::{Error, ErrorKind, Result};
use crate::handler::Failure;
use crate::model::delivery::Try;
use crate::model::id::JobId;
use crate::model::job::{Job, Progress};
use crate::model::limit::{Limit, THROTTLE_MAX};
use crate::model::new_job::NewJob;
use crate::model::rules::{check_name, check_size};
use crate::model::stop_reason::StopReason;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::connect::storage_error;
use crate::store::finish::{self, Finished, Verdict};
use crate::store::row::Claim;

/// Progress and log lines are written no more often than this; what comes between is gathered.
pub(crate) const NOTE_EVERY: Duration = Duration::from_millis(100);
/// The most lines that one attempt may log, and the longest one in bytes. What is more is cut.
const LOG_LINES_MAX: usize = 1000;
const LOG_LINE_BYTES: usize = 4096;

/// Why a handler should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Cancelled = 1,
    TimedOut = 2,
    ShutDown = 3,
}

/// One attempt under way, as its worker, its handler and the engine share it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) claim: Arc<Claim>,
    pub(crate) worker: u32,
    /// Where the lock file tells that it has begun. It is kept until the end of the attempt is committed: before that, a
    /// crash must find it there.
    pub(crate) slot: u32,
    /// When it began, on the monotonic clock.
    pub(crate) began: Duration,
    stop: AtomicU8,
    notes: Mutex<Notes>,
    /// Each note that was taken and is not written yet has a share in it.
    on_its_way: Arc<()>,
}

#[derive(Debug, Default)]
struct Notes {
    progress: Option<Progress>,
    lines: Vec<(Timestamp, String)>,
    ttft: Option<Duration>,
    total_duration: Option<Duration>,
    stop_reason: Option<StopReason>,
    tried: Option<Try>,
    /// The first token has been marked, even if that has been handed in already.
    marked: bool,
    logged: usize,
    sent_at: Option<Duration>,
    /// The handler has ended its job in a transaction.
    ended: bool,
    /// The names of the steps that the attempt has come to.
    steps: HashSet<String>,
}

impl Run {
    pub(crate) fn new(claim: Arc<Claim>, worker: u32, slot: u32, began: Duration) -> Self {
        Self { claim, worker, slot, began, stop: AtomicU8::new(0), notes: Mutex::default(), on_its_way: Arc::default() }
    }

    /// Asks the handler to stop. The first reason stays.
    pub(crate) fn ask_to_stop(&self, stop: Stop) {
        let _ = self.stop.compare_exchange(0, stop as u8, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub(crate) fn stop(&self) -> Option<Stop> {
        match self.stop.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Stop::Cancelled),
            2 => Some(Stop::TimedOut),
            _ => Some(Stop::ShutDown),
        }
    }

    /// The moment on the monotonic clock when its time is up.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.claim.job.timeout.map(|timeout| self.began.saturating_add(timeout))
    }

    /// What the handler has told and nobody has written yet.
    pub(crate) fn take_note(&self) -> Option<Note> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let times = notes.ttft.is_some() || notes.total_duration.is_some() || notes.stop_reason.is_some();
        if notes.progress.is_none() && notes.lines.is_empty() && !times && notes.tried.is_none() {
            return None;
        }
        Some(Note {
            claim: self.claim.clone(),
            progress: notes.progress.take(),
            lines: std::mem::take(&mut notes.lines),
            ttft: notes.ttft.take(),
            total_duration: notes.total_duration.take(),
            stop_reason: notes.stop_reason.take(),
            tried: notes.tried.take(),
            _on_its_way: self.on_its_way.clone(),
        })
    }

    /// The same, if it has been waiting for longer than words are gathered. Whoever takes it has a shorter way to the turn
    /// than the handler, so nothing is taken while words are on their way that came before.
    pub(crate) fn take_old_note(&self, now: Duration) -> Option<Note> {
        if Arc::strong_count(&self.on_its_way) > 1 {
            return None;
        }
        {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            if notes.sent_at.is_none_or(|sent_at| now.saturating_sub(sent_at) < NOTE_EVERY) {
                return None;
            }
            notes.sent_at = Some(now);
        }
        self.take_note()
    }

    /// Takes note that the attempt has come to a step. The error is how many it has come to, if it may come to no other; none
    /// if it has come to this one before.
    pub(crate) fn begin_step(&self, name: &str, max: usize) -> Result<(), Option<usize>> {
        let steps = &mut self.notes.lock().unwrap_or_else(PoisonError::into_inner).steps;
        if steps.contains(name) {
            return Err(None);
        }
        if steps.len() == max {
            return Err(Some(max));
        }
        steps.insert(name.to_owned());
        Ok(())
    }

    /// Whether the handler has ended its job in a transaction.
    pub(crate) fn has_ended(&self) -> bool {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).ended
    }
}

/// Values that an application shares with its handlers, one of each type.
#[derive(Default)]
pub(crate) struct States(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl States {
    pub(crate) fn insert<T: Any + Send + Sync>(&mut self, state: T) {
        self.0.insert(TypeId::of::<T>(), Box::new(state));
    }

    fn find<T: Any>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

/// What a handler has of its job and its engine while it runs.
///
/// ```
/// use jobmill::{Context, Failure, Payload};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Import { files: Vec<String> }
/// # impl Payload for Import { const KIND: &'static str = "import"; }
///
/// fn import(job: Import, ctx: &Context) -> Result<usize, Failure> {
///     // The attempt before this one may have come some way.
///     let done: usize = ctx.saved()?.unwrap_or(0);
///     for (number, file) in job.files.iter().enumerate().skip(done) {
///         ctx.check()?;
///         ctx.log(format!("importing {file}"));
///         ctx.save(&(number + 1))?;
///         ctx.progress(number as u64 + 1, Some(job.files.len() as u64));
///     }
///     Ok(job.files.len())
/// }
/// ```
pub struct Context {
    run: Arc<Run>,
    client: Client,
    states: Arc<States>,
    shutting_down: Arc<std::sync::atomic::AtomicBool>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("id", &self.id()).field("attempt", &self.attempt()).finish_non_exhaustive()
    }
}

impl Context {
    pub(crate) fn new(
        run: Arc<Run>,
        client: Client,
        states: Arc<States>,
        shutting_down: Arc<std::sync::atomic::AtomicBool>,
    ) -> Self {
        Self { run, client, states, shutting_down }
    }

    /// The job, as it stood when this attempt began.
    pub fn job(&self) -> &Job {
        &self.run.claim.job
    }

    /// The job's id.
    pub fn id(&self) -> JobId {
        self.job().id
    }

    /// The number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.job().attempt
    }

    /// The tick that this is the job of, if a schedule enqueued it: the time that the schedule names, not when it ran.
    pub fn scheduled_for(&self) -> Option<Timestamp> {
        self.job().scheduled_for
    }

    /// Whether this is the last attempt that the job may have.
    pub fn is_last_attempt(&self) -> bool {
        self.attempt() >= self.job().max_attempts
    }

    pub(crate) fn claim(&self) -> &Arc<Claim> {
        &self.run.claim
    }

    pub(crate) fn begin_step(&self, name: &str, max: usize) -> Result<(), Option<usize>> {
        self.run.begin_step(name, max)
    }

    pub(crate) fn payload<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        Ok(self.job().payload()?)
    }

    /// A value that the builder was given for all handlers.
    ///
    /// # Errors
    /// A fatal failure if it was given none of this type.
    pub fn state<T: Any + Send + Sync>(&self) -> Result<&T, Failure> {
        self.states.find().ok_or_else(|| {
            Failure::fatal(format_args!("the builder was given no state of the type {}", type_name::<T>()))
        })
    }

    /// The client of the engine, to enqueue further jobs or to ask about others.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether somebody asked for the job's cancellation.
    pub fn is_cancelled(&self) -> bool {
        self.run.stop() == Some(Stop::Cancelled)
    }

    /// Whether the engine shuts down. A long handler may save its state and return
    /// [`Outcome::Snooze(Duration::ZERO)`](crate::Outcome::Snooze) then, to go on after the next start; one that does not
    /// has until the shutdown's deadline.
    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::SeqCst)
    }

    /// Goes on only if the attempt still counts. Long handlers call it often. The beginning of a shutdown does not
    /// stop them: see [`is_shutting_down`](Context::is_shutting_down).
    ///
    /// # Errors
    /// A failure to be returned by `?` if the job was cancelled, its time is up, or the engine's shutdown cannot wait
    /// any longer.
    pub fn check(&self) -> Result<(), Failure> {
        // An engine without threads has nobody else who looks at the time.
        if self.remaining() == Some(Duration::ZERO) {
            self.run.ask_to_stop(Stop::TimedOut);
        }
        match self.run.stop() {
            None => Ok(()),
            Some(Stop::Cancelled) => Err(Failure::fatal("the job was cancelled")),
            Some(Stop::TimedOut) => Err(Failure::retry("the time of the attempt is up")),
            Some(Stop::ShutDown) => Err(Failure::retry("the engine shuts down")),
        }
    }

    /// How much of the attempt's time is left, if it has a timeout.
    pub fn remaining(&self) -> Option<Duration> {
        let now = self.client.desk().clock().monotonic();
        self.run.deadline().map(|deadline| deadline.saturating_sub(now))
    }

    /// When the attempt's time is up, by the wall clock, if it has a timeout.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.remaining().map(|left| self.client.desk().clock().now().saturating_add(left))
    }

    /// Tells how far the work is. It is written at most ten times a second, the last word always.
    pub fn progress(&self, done: u64, total: Option<u64>) {
        self.tell(|notes, _| notes.progress = Some(Progress { done, total, note: None }));
    }

    /// Tells how far the work is, with a word about it.
    pub fn progress_note(&self, done: u64, total: Option<u64>, note: impl Into<String>) {
        let note = Some(cut(note.into()));
        self.tell(|notes, _| notes.progress = Some(Progress { done, total, note }));
    }

    /// Keeps a line in the job's own log. At most 1000 of each attempt are kept, of at most 4096 bytes, and of all attempts
    /// the newest 10 000.
    pub fn log(&self, line: impl Into<String>) {
        self.tell(|notes, now| {
            notes.logged += 1;
            if notes.logged < LOG_LINES_MAX {
                notes.lines.push((now, cut(line.into())));
            } else if notes.logged == LOG_LINES_MAX {
                notes.lines.push((now, "further lines are not kept".to_owned()));
            }
        });
    }

    /// Marks the moment at which a model gave its first token. The first mark of an attempt counts.
    pub fn first_token(&self) {
        let ttft = self.client.desk().clock().monotonic().saturating_sub(self.run.began);
        self.tell(|notes, _| {
            if !std::mem::replace(&mut notes.marked, true) {
                notes.ttft = Some(ttft);
            }
        });
    }

    /// Records how long the work took in all, if that is not the time from the start of the attempt to its end. The last
    /// word counts.
    pub fn total_duration(&self, duration: Duration) {
        self.tell(|notes, _| notes.total_duration = Some(duration));
    }

    /// Records why an agent's run stops. The last word counts.
    ///
    /// # Errors
    /// `Invalid` if it breaks the rule for names.
    pub fn stop_reason(&self, reason: impl Into<StopReason>) -> Result<()> {
        let reason = reason.into();
        check_name("stop_reason", reason.as_str())?;
        self.tell(|notes, _| notes.stop_reason = Some(reason));
        Ok(())
    }

    /// Records what a callback came to, whose delivery this attempt is. It is written in the turn that ends the attempt.
    pub(crate) fn tried(&self, tried: Try) {
        self.run.notes.lock().unwrap_or_else(PoisonError::into_inner).tried = Some(tried);
    }

    fn tell(&self, change: impl FnOnce(&mut Notes, Timestamp)) {
        let clock = self.client.desk().clock();
        let now = clock.monotonic();
        {
            let mut notes = self.run.notes.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut notes, clock.now());
            if notes.sent_at.is_some_and(|sent_at| now.saturating_sub(sent_at) < NOTE_EVERY) {
                return;
            }
            notes.sent_at = Some(now);
        }
        if let Some(note) = self.run.take_note() {
            self.client.desk().note(note);
        }
    }

    /// The state that an earlier attempt has saved.
    ///
    /// # Errors
    /// A failure if it cannot be read, or is not a `T`.
    pub fn saved<T: DeserializeOwned>(&self) -> Result<Option<T>, Failure> {
        match self.client.reader().saved(self.id())? {
            Some(value) => serde_json::from_slice(&value)
                .map(Some)
                .map_err(|error| Failure::retry(format_args!("saved: the state is no {}: {error}", type_name::<T>()))),
            None => Ok(None),
        }
    }

    /// Saves a state for the attempt that may follow this one. It is durable when this returns.
    ///
    /// # Errors
    /// A failure for good if it does not serialize or is longer than 16 MiB of JSON; a failure if it cannot be written, or
    /// if this attempt does not count any more.
    pub fn save<T: Serialize>(&self, state: &T) -> Result<(), Failure> {
        let value = serde_json::to_vec(state)
            .map_err(|error| Failure::fatal(format_args!("save: the state does not serialize: {error}")))?;
        check_size("save: the state", value.len(), NewJob::MAX_PAYLOAD_BYTES).map_err(Failure::fatal)?;
        let claim = self.run.claim.clone();
        self.client.desk().call(move |turn| {
            let storage = |error| storage_error("cannot save the state", error);
            if !turn.holds(claim.job.id, claim.fence).map_err(storage)? {
                return Err(fenced(&claim));
            }
            turn.save(claim.job.id, &value).map_err(storage)
        })?;
        Ok(())
    }

    /// Corrects how many tokens this job takes of a limit, by name, once that is known: what it took less goes back, what it
    /// took more is taken, even if that leaves less than nothing. The last word of an attempt counts. It is written when
    /// this returns.
    ///
    /// # Errors
    /// `Invalid` if the job does not count against a limit of this name; `Conflict` if this attempt does not count any more.
    pub fn spent(&self, limit: &str, tokens: u32) -> Result<()> {
        check_tokens(tokens)?;
        let limit = limit.to_owned();
        self.at_gates(move |turn, job| match turn.spent(job, &limit, tokens)? {
            true => Ok(Ok(())),
            false => Ok(Err(Error::invalid("limit", format_args!("the job counts against no limit {limit:?}")))),
        })
    }

    /// The same for the rate of the job's queue, of which it has taken its [cost](crate::NewJob::cost). Where the queue has
    /// none, nothing is corrected.
    ///
    /// # Errors
    /// `Conflict` if this attempt does not count any more.
    pub fn spent_in_queue(&self, tokens: u32) -> Result<()> {
        check_tokens(tokens)?;
        self.at_gates(move |turn, job| turn.spent_in_queue(job, tokens).map(Ok))
    }

    /// Tells that a service has asked to be left alone for this long, as by a `retry-after`: each limit with a rate that this
    /// job counts against lets nobody start with the same key until then, and if its queue has a rate, so does that. If none
    /// of them has a rate, for that may be lifted at any time, each of its limits does so. At most a day. The handler may
    /// then end with [`Outcome::Snooze`](crate::Outcome::Snooze) of the same time.
    ///
    /// Tells whether there was anything to shut: false if the job counts against no limit and its queue has no rate.
    ///
    /// # Errors
    /// `Conflict` if this attempt does not count any more.
    pub fn throttled(&self, wait: Duration) -> Result<bool> {
        let wait = wait.min(THROTTLE_MAX);
        self.at_gates(move |turn, job| turn.throttle(job, turn.now.saturating_add(wait)).map(Ok))
    }

    fn at_gates<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Turn<'_>, JobId) -> rusqlite::Result<Result<T>> + Send + 'static,
    ) -> Result<T> {
        let claim = self.run.claim.clone();
        self.client.desk().call(move |turn| {
            let storage = |error| storage_error("cannot count at the limits", error);
            if !turn.holds(claim.job.id, claim.fence).map_err(storage)? {
                return Err(fenced(&claim));
            }
            work(turn, claim.job.id).map_err(storage)?
        })
    }

    /// Completes the job in the very transaction in which `work` writes: both are done once, or neither. The output
    /// of `work` is the job's result, and is given back, for the handler to return; what else it may return after that
    /// changes nothing.
    ///
    /// # Errors
    /// The error of `work`, of which nothing is written then; `Conflict` if this attempt does not count any more.
    pub fn complete<T, E>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Serialize + Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (claim, worker) = (self.run.claim.clone(), self.run.worker);
        let output = self.client.write(move |tx| -> Result<T, E> {
            let output = work(tx)?;
            let result = encode(&output).map_err(|failure| Error::invalid("result", failure))?;
            let storage = |error| storage_error("cannot complete the job", error);
            let verdict = Verdict::Completed { result: Some(result) };
            let finished = tx.turn().finish(&claim, &verdict, Some(worker), &Default::default()).map_err(storage)?;
            if finished == Finished::Fenced { Err(fenced(&claim).into()) } else { Ok(output) }
        })?;
        self.run.notes.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        Ok(output)
    }

    /// Completes the job in a transaction of the application's own on the same file. If it is committed, what the
    /// handler returns after that changes nothing; if it is not, nothing has happened.
    ///
    /// # Errors
    /// `Conflict` if this attempt does not count any more.
    pub fn complete_in<T: Serialize>(&self, transaction: &rusqlite::Transaction<'_>, output: &T) -> Result<()> {
        let result = encode(output).map_err(|failure| Error::invalid("result", failure))?;
        let claim = &self.run.claim;
        let desk = self.client.desk();
        let (now, counts) = (desk.clock().now(), desk.press().counts());
        let done = finish::complete_in(transaction, claim, Some(self.run.worker), Some(&result), now, counts)
            .map_err(|error| storage_error("cannot complete the job", error))?;
        desk.expect_commit();
        if done { Ok(()) } else { Err(fenced(claim)) }
    }
}

/// The JSON of a handler's output.
pub(crate) fn encode(output: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    let result = serde_json::to_vec(output)
        .map_err(|error| Failure::fatal(format_args!("the result does not serialize: {error}")))?;
    if result.len() > NewJob::MAX_PAYLOAD_BYTES {
        let (is, max) = (result.len(), NewJob::MAX_PAYLOAD_BYTES);
        return Err(Failure::fatal(format_args!("the result has {is} bytes, and no more than {max} are stored")));
    }
    Ok(result)
}

pub(crate) fn fenced(claim: &Claim) -> Error {
    Error::new(ErrorKind::Conflict, format!("this attempt of {} does not count any more", claim.job.id))
}

fn cut(mut text: String) -> String {
    if text.len() > LOG_LINE_BYTES {
        let fits = |end: &usize| text.is_char_boundary(*end);
        let end = (0..=LOG_LINE_BYTES).rev().find(fits).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Checks how many tokens a job is said to have taken.
fn check_tokens(tokens: u32) -> Result<()> {
    if tokens > Limit::MAX {
        return Err(Error::invalid("tokens", format_args!("must be no more than {}", Limit::MAX)));
    }
    Ok(())
}
