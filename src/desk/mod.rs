//! How a thread gets an operation into a turn.
//!
//! The dispatcher serves a bounded channel, so that one commit carries what many threads have handed in. A caller who
//! is alone while the dispatcher rests takes the turn on its own thread and spares two thread switches.

mod item;
mod others;
mod press;
mod pulse;
mod waiters;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::desk::item::{Call, Item, Operation};
pub(crate) use crate::desk::item::{Finish, Note};
pub(crate) use crate::desk::others::Rest;
pub(crate) use crate::desk::press::Press;
use crate::desk::pulse::Pulse;
use crate::desk::waiters::{Waiters, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::model::explain::Reason;
use crate::model::id::JobId;
use crate::model::job::Job;
use crate::model::retry::Backoff;
use crate::model::time::Timestamp;
use crate::store::connect::storage_error;
use crate::store::contact::Contact;
use crate::store::lane::Demand;
use crate::store::row::Claim;
use crate::store::workflow::WALK_MAX;
use crate::store::{Outbox, Store, Turn};

/// The most operations that wait for a turn. Who comes after that waits to hand in.
const WAITING_MAX: usize = 4096;
/// The most operations of one turn.
const TURN_MAX: usize = 1024;
/// The most jobs that one turn expires.
const EXPIRE_MAX: usize = 200;
/// About how many jobs one turn enqueues for schedules.
const TICK_MAX: usize = 200;
/// How long a caller who is alone waits for the turn of somebody else to end, to take the next one itself.
const LONELY_PATIENCE: Duration = Duration::from_micros(500);
/// How many refused operations fail, each in a turn of its own, before the rest waits for better times.
const REFUSED_MAX: usize = 4;
/// How often a busy dispatcher lets others run before it lies down.
const YIELDS: u32 = 8;

thread_local! {
    /// The desk whose turn this thread takes, if it takes one.
    static AT: Cell<*const Desk> = const { Cell::new(std::ptr::null()) };
}

/// Those who run the jobs that a turn claims.
pub(crate) trait Crew: Send + Sync {
    /// Whether jobs are to be claimed, and schedules to tick.
    fn is_open(&self) -> bool;
    /// What is wanted now.
    fn demand(&self) -> Box<dyn Demand + '_>;
    /// Takes note of how long a turn took.
    fn turn_took(&self, took: Duration);
    /// Takes over claimed jobs.
    fn accept(&self, claims: Vec<Claim>);
    /// Asks running jobs to stop.
    fn stop(&self, jobs: &[JobId]);
    /// Lets go of the slots of attempts whose ends are committed.
    fn settled(&self, slots: &[u32]);
    /// How long a job waits after a failure unless it says otherwise.
    fn backoff(&self) -> &Backoff;
    /// What is lacking to run a job, if it is anything but a worker.
    fn lacks(&self, job: &Job, weight: u32) -> Option<Reason>;
}

struct Core {
    store: Store,
    /// What was handed in for whoever takes the next turn.
    backlog: Vec<Item>,
    /// What a failed turn has left: ends and notes, which nobody could hand in again. They get turns of their own, so
    /// that one which cannot be written fails nobody else.
    refused: Vec<Item>,
    /// How many jobs the last turn claimed.
    claimed: usize,
    /// The last turn has not met all that may start: limits have let jobs go since it made its choice, too many stood
    /// before them that may not, or it came after one that failed.
    missed: bool,
}

/// The way into a turn, shared by all threads of the process.
pub(crate) struct Desk {
    core: Mutex<Core>,
    sender: Sender<Item>,
    receiver: Receiver<Item>,
    clock: Arc<dyn Clock>,
    crew: OnceLock<Arc<dyn Crew>>,
    /// Whether a dispatcher serves the channel. If not, whoever has an operation takes the turn.
    attended: AtomicBool,
    /// The dispatcher's thread, to be woken when something is handed in.
    dispatcher: OnceLock<Thread>,
    closed: AtomicBool,
    /// Callers with an operation under way.
    callers: AtomicUsize,
    waiters: Waiters,
    press: Press,
    pulse: Pulse,
    contact: Arc<Contact>,
    /// Until when commits of the application's own are looked for eagerly, on the monotonic clock in nanoseconds.
    eager_until_ns: AtomicU64,
    /// Whether others can ring for us.
    listening: AtomicBool,
    /// When we last rang for others, on the monotonic clock in nanoseconds. 0 if never.
    rang_at_ns: AtomicU64,
    /// Until when the dispatcher means to rest, in microseconds since the epoch.
    rest_until_us: AtomicI64,
    /// Wakes the poller.
    poller: OnceLock<Sender<()>>,
}

impl Desk {
    pub(crate) fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        let (sender, receiver) = bounded(WAITING_MAX);
        let contact = store.contact().clone();
        Self {
            core: Mutex::new(Core { store, backlog: Vec::new(), refused: Vec::new(), claimed: 0, missed: false }),
            sender,
            receiver,
            clock,
            crew: OnceLock::new(),
            attended: AtomicBool::new(false),
            dispatcher: OnceLock::new(),
            closed: AtomicBool::new(false),
            callers: AtomicUsize::new(0),
            waiters: Waiters::default(),
            press: Press::default(),
            pulse: Pulse::default(),
            contact,
            eager_until_ns: AtomicU64::new(0),
            listening: AtomicBool::new(false),
            rang_at_ns: AtomicU64::new(0),
            rest_until_us: AtomicI64::new(0),
            poller: OnceLock::new(),
        }
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Whoever tells what was committed.
    pub(crate) fn press(&self) -> &Press {
        &self.press
    }

    /// What the turns tell of themselves.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// How things stand between the file and us.
    pub(crate) fn contact(&self) -> &Arc<Contact> {
        &self.contact
    }

    /// Writes what has been counted and is not written yet. In the midst of a turn it stays as it is, for its thread
    /// cannot wait for the turn's end.
    pub(crate) fn write_tallies(&self) -> Result<()> {
        if std::ptr::eq(AT.get(), self) {
            return Ok(());
        }
        let mut core = self.core.lock();
        self.press.want();
        self.call_on(&mut core, |_| Ok(()))
    }

    /// The same, but if somebody else keeps the file locked, what was counted last is left for later: it is worth less
    /// than an answer.
    pub(crate) fn write_tallies_if_free(&self) -> Result<()> {
        self.write_tallies().or_else(|error| match error.kind() {
            ErrorKind::Busy => {
                log::debug!("the newest counts are not in the file yet: {error}");
                Ok(())
            }
            _ => Err(error),
        })
    }

    /// The same, if anything has been counted.
    pub(crate) fn write_tallies_if_any(&self) -> Result<()> {
        if self.press.has_counted() { self.write_tallies() } else { Ok(()) }
    }

    /// Sets who runs what turns claim. Once only.
    pub(crate) fn employ(&self, crew: Arc<dyn Crew>) {
        let employed = self.crew.set(crew);
        debug_assert!(employed.is_ok(), "a desk has one crew");
    }

    /// What those who run jobs here lack to run one, if there are any, and if it is anything but a worker.
    pub(crate) fn lacks(&self, job: &Job, weight: u32) -> Option<Reason> {
        self.crew.get().filter(|crew| crew.is_open())?.lacks(job, weight)
    }

    /// Says that a dispatcher serves the channel from now on.
    pub(crate) fn attend_by(&self, dispatcher: Thread) {
        let first = self.dispatcher.set(dispatcher).is_ok();
        debug_assert!(first, "a desk has one dispatcher");
        self.pulse.looked(self.clock.monotonic());
        self.contact.attend(true);
        self.attended.store(true, Ordering::SeqCst);
    }

    /// Says that the dispatcher has gone.
    pub(crate) fn leave_unattended(&self) {
        self.contact.attend(false);
        self.attended.store(false, Ordering::SeqCst);
    }

    /// Wakes the dispatcher. If it is awake, it looks once more before it rests.
    pub(crate) fn wake(&self) {
        if let Some(dispatcher) = self.dispatcher.get() {
            dispatcher.unpark();
        }
    }

    /// Says how the poller is woken. Once only.
    pub(crate) fn poll_by(&self, poller: Sender<()>) {
        let first = self.poller.set(poller).is_ok();
        debug_assert!(first, "a desk has one poller");
    }

    /// Wakes the poller, if there is one.
    pub(crate) fn wake_poller(&self) {
        if let Some(poller) = self.poller.get() {
            // If it is full, it will look anyhow.
            let _ = poller.try_send(());
        }
    }

    pub(crate) fn is_attended(&self) -> bool {
        self.attended.load(Ordering::SeqCst)
    }

    /// Runs `work` in a turn and waits for its commit.
    pub(crate) fn call<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Turn<'_>) -> Result<T> + Send + 'static,
    {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::shutdown());
        }
        if std::ptr::eq(AT.get(), self) {
            let rule = "a closure that writes must do so by its transaction: a client would wait for the closure's end";
            return Err(Error::new(ErrorKind::Conflict, rule));
        }
        let _leave = Counted::enter(&self.callers);
        if !self.is_attended() {
            return self.call_here(work);
        }
        let alone = self.callers.load(Ordering::Relaxed) == 1;
        if alone && let Some(mut core) = self.core.try_lock_for(LONELY_PATIENCE) {
            return self.call_on(&mut core, work);
        }
        let (reply, answer) = bounded(1);
        self.hand_in(Item::Call(Box::new(Call::new(work, Some(reply)))));
        answer.recv().unwrap_or_else(|_| Err(Error::shutdown()))
    }

    /// Runs `work` in a turn on the caller's own thread, however long it must wait for its turn. The dispatcher's way,
    /// for it cannot wait for itself.
    pub(crate) fn call_here<T, F>(&self, work: F) -> Result<T>
    where
        T: Send,
        F: FnOnce(&mut Turn<'_>) -> Result<T> + Send,
    {
        self.call_on(&mut self.core.lock(), work)
    }

    fn call_on<T: Send, F>(&self, core: &mut Core, work: F) -> Result<T>
    where
        F: FnOnce(&mut Turn<'_>) -> Result<T> + Send,
    {
        let mut call = Call::new(work, None);
        let items = self.waiting(core);
        let turned = self.turn(core, Some(&mut call), items);
        self.tell_dispatcher(core, turned.is_err());
        call.outcome(turned.as_ref().copied())
    }

    /// Hands in the end of an attempt.
    pub(crate) fn finish(&self, finish: Finish) {
        self.post(Item::Finish(finish));
    }

    /// Hands in the end of an attempt after which nothing is left to run. If nobody else is at it, the worker takes the
    /// turn itself, for the dispatcher would have to be woken.
    pub(crate) fn finish_last(&self, finish: Finish) {
        if !self.is_attended() {
            return self.finish(finish);
        }
        match self.core.try_lock() {
            Some(mut core) => {
                let mut items = self.waiting(&mut core);
                items.push(Item::Finish(finish));
                let turned = self.turn(&mut core, None, items);
                self.tell_dispatcher(&core, turned.is_err());
                if let Err(error) = turned {
                    self.log_failure(&error);
                }
            }
            None => self.finish(finish),
        }
    }

    /// Wakes the dispatcher after a turn that another thread has taken, if that leaves it something to do.
    fn tell_dispatcher(&self, core: &Core, failed: bool) {
        let rest_until = Timestamp::from_micros(self.rest_until_us.load(Ordering::SeqCst));
        let now = self.clock.now();
        let due_earlier =
            || core.store.is_gate_due(now) || core.store.next_due(now).is_some_and(|due| due < rest_until);
        // Of several claimed jobs some may wait for workers, over which the dispatcher watches.
        if failed || core.claimed > 1 || core.missed || core.store.has_flow_work() || due_earlier() {
            self.wake();
        }
    }

    /// Keeps ends for the next turn, whoever takes it. The dispatcher's way, for its channel may be full.
    pub(crate) fn finish_next_turn(&self, ends: Vec<Finish>) {
        if ends.is_empty() {
            return;
        }
        self.core.lock().backlog.extend(ends.into_iter().map(Item::Finish));
    }

    /// Hands in what a handler tells of itself.
    pub(crate) fn note(&self, note: Note) {
        self.post(Item::Note(note));
    }

    /// Keeps what handlers have told for the next turn, whoever takes it, and tells whether that was anything. It is
    /// taken while no turn can be, so that nothing overtakes it that they tell after it.
    pub(crate) fn note_next_turn(&self, notes: impl FnOnce() -> Vec<Note>) -> bool {
        let mut core = self.core.lock();
        let before = core.backlog.len();
        core.backlog.extend(notes().into_iter().map(Item::Note));
        core.backlog.len() > before
    }

    fn post(&self, item: Item) {
        if self.is_attended() {
            self.hand_in(item);
        } else {
            self.core.lock().backlog.push(item);
        }
    }

    fn hand_in(&self, item: Item) {
        // The receiver lives as long as we do.
        let _ = self.sender.send(item);
        self.wake();
        if self.closed.load(Ordering::SeqCst) {
            self.refuse_all();
        }
    }

    /// Refuses every operation from now on, those that wait included.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.refuse_all();
        self.waiters.notify_all();
        self.press.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn refuse_all(&self) {
        for item in self.receiver.try_iter() {
            if let Item::Call(call) = item {
                call.answer(Err(&Error::shutdown()));
            }
        }
    }

    /// Waits for an operation, no longer than `rest`, and takes a turn with it and all that have come since. The
    /// dispatcher's way.
    ///
    /// After a turn that had something to do, it lets others run a few times before it lies down: those whom it has just
    /// answered often have something new, and each time somebody must wake it costs more than these.
    pub(crate) fn attend(&self, rest: Duration, busy: bool) -> Result<Rest> {
        for _ in 0..if busy { YIELDS } else { 0 } {
            if !self.receiver.is_empty() {
                break;
            }
            std::thread::yield_now();
        }
        // What waits is left in the channel until the turn is ours: somebody else may take it along before.
        if self.receiver.is_empty() && !rest.is_zero() {
            std::thread::park_timeout(rest);
        }
        let looked = self.look_around();
        self.pulse.looked(self.clock.monotonic());
        looked
    }

    /// Takes a turn with all that waits, and with whatever time and others have brought. Without waiting.
    pub(crate) fn look_around(&self) -> Result<Rest> {
        let mut core = self.core.lock();
        let items = self.waiting(&mut core);
        self.round(&mut core, items)
    }

    /// Takes turns until nothing waits any more.
    pub(crate) fn settle(&self) -> Result<()> {
        loop {
            if self.look_around()?.failed {
                let why = self.contact().trouble().map(|trouble| format!(": {}", trouble.error)).unwrap_or_default();
                return Err(Error::new(ErrorKind::Storage, format!("the last turn failed{why}")));
            }
            let core = self.core.lock();
            if self.receiver.is_empty() && core.backlog.is_empty() && core.refused.is_empty() {
                return Ok(());
            }
        }
    }

    /// What earlier turns have left, and what has been handed in since.
    fn waiting(&self, core: &mut Core) -> Vec<Item> {
        let mut items = std::mem::take(&mut core.backlog);
        let room = TURN_MAX.saturating_sub(items.len());
        items.extend(self.receiver.try_iter().take(room));
        items
    }

    /// Tries again what failed turns have left: all of it at once and, if that fails, one by one. Tells whether all of
    /// it is written.
    fn retry_refused(&self, core: &mut Core) -> bool {
        let refused = std::mem::take(&mut core.refused);
        if refused.is_empty() || self.turn(core, None, refused).is_ok() {
            return true;
        }
        if self.contact.is_troubled() {
            // It is the file that refuses them, all alike, and each try may wait for long.
            return false;
        }
        let mut failures = 0;
        for item in std::mem::take(&mut core.refused) {
            if failures == REFUSED_MAX {
                core.refused.push(item);
            } else if self.turn(core, None, vec![item]).is_err() {
                failures += 1;
            }
        }
        failures == 0
    }

    fn round(&self, core: &mut Core, items: Vec<Item>) -> Result<Rest> {
        let mut failed = !self.retry_refused(core);
        if items.is_empty() {
            core.store.look()?;
        }
        let busy = !items.is_empty();
        if busy || self.worth_a_turn(core, self.clock.now()) {
            let turned = self.turn(core, None, items);
            if let Err(error) = &turned {
                self.log_failure(error);
                failed = true;
            }
        }
        self.tell_of_others(core);
        Ok(self.rest(core, busy, failed))
    }

    /// Says that a turn failed. That the file fails has been said already, once.
    fn log_failure(&self, error: &Error) {
        let level = if self.contact.is_troubled() { log::Level::Debug } else { log::Level::Error };
        log::log!(level, "a turn failed and is tried again: {error}");
    }

    /// Whether a turn without operations would do anything. The look that found out took no write lock.
    fn worth_a_turn(&self, core: &Core, now: Timestamp) -> bool {
        // Whether the file works again shows only when something is written.
        self.contact.is_troubled()
            || core.store.is_expiry_due(now)
            || self.is_tick_due(core, now)
            || core.store.may_have_signals()
            || core.store.has_flow_work()
            || core.store.is_gate_due(now)
            || core.store.is_set_back(now)
            || self.has_work(core, now)
    }

    /// Whether a job that is wanted could be claimed. What the workers want is asked only if there is something for them: an
    /// idle engine looks often.
    fn has_work(&self, core: &Core, now: Timestamp) -> bool {
        core.store.has_ready(now) && self.crew.get().is_some_and(|crew| core.store.has_work(now, &*crew.demand()))
    }

    /// Whether a schedule is due that may tick.
    fn is_tick_due(&self, core: &Core, now: Timestamp) -> bool {
        core.store.is_tick_due(now) && self.crew.get().is_some_and(|crew| crew.is_open())
    }

    /// Takes one turn: the operations, then what time has brought, then as many claims as are wanted.
    fn turn(&self, core: &mut Core, first: Option<&mut dyn Operation>, mut items: Vec<Item>) -> Result<()> {
        let crew = self.crew.get();
        let default_backoff = Backoff::default();
        let backoff = crew.map_or(&default_backoff, |crew| crew.backoff());
        let began = self.clock.monotonic();
        self.pulse.begins(began);
        let inside = Inside::enter(self);
        let mut demand = crew.map(|crew| crew.demand());
        let demand = demand.as_mut().map(|demand| &mut **demand as &mut dyn Demand);
        let tallies = self.press.take_due(began);
        let turned = core.store.turn(self.clock.now(), demand, |turn| {
            // After a turn that failed.
            let claims_nothing = crew.is_some() && turn.demand.is_none();
            if let Some(first) = first {
                first.apply(turn)?;
            }
            for item in &mut items {
                item.apply(turn, backoff)?;
            }
            let storage = |error| storage_error("cannot choose the next jobs", error);
            turn.take_signals().map_err(storage)?;
            turn.expire(EXPIRE_MAX).map_err(storage)?;
            let ticked = turn.tick(TICK_MAX, crew.is_some_and(|crew| crew.is_open()));
            ticked.map_err(|error| storage_error("cannot tick the schedules", error))?;
            turn.walk_flows(WALK_MAX).map_err(storage)?;
            if let Some(tallies) = &tallies {
                turn.add_tallies(tallies).map_err(storage)?;
            }
            turn.open_gates().map_err(storage)?;
            let is_cut = turn.claim().map_err(storage)?;
            // What was claimed or held may have left a gate waiting for time alone, or with room.
            Ok(turn.open_gates().map_err(storage)? || is_cut || claims_nothing)
        });
        core.missed = matches!(turned, Ok((true, _)));
        drop(inside);
        self.pulse.ends();
        // What others have done came before what this turn has done to it.
        self.tell_of_others(core);
        match turned {
            Ok((_, out)) => {
                if let Some(crew) = crew {
                    crew.turn_took(self.clock.monotonic().saturating_sub(began));
                }
                let slots: Vec<u32> = items.iter().filter_map(Item::slot).collect();
                core.claimed = out.claims.len();
                self.pulse.committed(self.clock.now());
                if let Some(claim) = out.claims.last() {
                    self.pulse.claimed(claim.job.run_at, self.clock.now());
                }
                out.said.iter().for_each(|(level, line)| log::log!(*level, "{line}"));
                self.press.tell(&out, &core.store);
                self.publish(out, &slots);
                self.ring_others(core);
                for item in items {
                    item.answer(Ok(()));
                }
                Ok(())
            }
            Err(error) => {
                self.press.give_back(tallies.unwrap_or_default());
                for item in items {
                    match item {
                        Item::Call(call) => call.answer(Err(&error)),
                        kept => core.refused.push(kept),
                    }
                }
                Err(error)
            }
        }
    }

    fn publish(&self, out: Outbox, settled: &[u32]) {
        if let Some(crew) = self.crew.get() {
            if !settled.is_empty() {
                crew.settled(settled);
            }
            if !out.stop.is_empty() {
                crew.stop(&out.stop);
            }
            if !out.claims.is_empty() {
                crew.accept(out.claims);
            }
        }
        self.waiters.notify(&out.ended);
    }

    /// Asks to be told when a job ends. The receiver also hears of every change that somebody else made to the file.
    pub(crate) fn watch(&self, id: JobId) -> Watch<'_> {
        self.waiters.watch(id)
    }

    /// Runs work on the writer between turns.
    pub(crate) fn with_store<R>(&self, work: impl FnOnce(&mut Store) -> R) -> R {
        work(&mut self.core.lock().store)
    }
}

/// Notes whose turn this thread takes, until it is dropped.
struct Inside {
    outer: *const Desk,
}

impl Inside {
    fn enter(desk: &Desk) -> Self {
        Self { outer: AT.replace(desk) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        AT.set(self.outer);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts those who are within.
struct Counted<'c>(&'c AtomicUsize);

impl<'c> Counted<'c> {
    fn enter(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
