//! All SQL, behind one door: `Store::turn` for whatever writes, `Reader` for whatever reads.

pub(crate) mod audit;
pub(crate) mod batch;
pub(crate) mod bound;
pub(crate) mod callback;
pub(crate) mod claim;
pub(crate) mod connect;
pub(crate) mod contact;
pub(crate) mod delays;
pub(crate) mod detail;
pub(crate) mod edge;
pub(crate) mod enqueue;
pub(crate) mod explain;
pub(crate) mod fair;
pub(crate) mod finish;
pub(crate) mod flow;
pub(crate) mod gate;
pub(crate) mod history;
pub(crate) mod hold;
pub(crate) mod housekeeping;
pub(crate) mod instance;
pub(crate) mod lane;
pub(crate) mod limits;
pub(crate) mod line;
pub(crate) mod list;
pub(crate) mod operate;
pub(crate) mod place;
#[cfg(test)]
mod plans;
pub(crate) mod queue;
pub(crate) mod read;
pub(crate) mod release;
pub(crate) mod rescue;
pub(crate) mod reserve;
pub(crate) mod row;
pub(crate) mod schedule;
pub(crate) mod schema;
pub(crate) mod share;
pub(crate) mod source;
pub(crate) mod step;
pub(crate) mod tally;
pub(crate) mod unheard;
pub(crate) mod unique;
pub(crate) mod update;
pub(crate) mod waiting;
pub(crate) mod workflow;

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection, ffi, named_params};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::event::{Ticks, Transition, WorkflowTransition};
use crate::model::id::{JobId, WorkflowId};
use crate::model::time::Timestamp;
use crate::store::connect::{Durability, storage_error, with_patience};
use crate::store::contact::{Contact, Lost, is_of_connection};
use crate::store::fair::Turns;
use crate::store::flow::Flows;
use crate::store::gate::Gates;
use crate::store::lane::{Demand, Lane, Lanes, NextDelayed};
use crate::store::place::Place;
use crate::store::row::{Claim, State};
use crate::store::schedule::tick::Agenda;
use crate::store::share::Shares;
use crate::store::unheard::Unheard;

/// A clock that goes back by more than this was set.
pub(crate) const SET_BACK: Duration = Duration::from_secs(1);

/// Makes commits fail, for tests: asked before each one, with its number from 1.
pub(crate) type Faults = Arc<dyn Fn(u64) -> Option<Fault> + Send + Sync>;

/// How a commit is made to fail.
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "the feature `testing` exports it"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing was written, and the error says so.
    Before,
    /// All was written, and the process never learned of it.
    After,
    /// Nothing was written, and nothing will be before the connection is opened anew.
    Broken,
}

/// How long a connection that fails is left before it is opened anew, doubled each time up to the longest.
const REOPEN_WAIT: Duration = Duration::from_millis(100);
const REOPEN_WAIT_MAX: Duration = Duration::from_secs(30);
/// After how many failures in a row that a new connection may heal it is opened.
const REOPEN_AFTER: u32 = 2;

/// The writer: its connection, and what it remembers of the file between turns.
pub(crate) struct Store {
    conn: Connection,
    contact: Arc<Contact>,
    durability: Durability,
    /// The connection has been closed and no new one could be opened yet.
    adrift: bool,
    /// Failures in a row that a new connection may heal.
    sick: u32,
    /// How often a new one was opened since it last worked, and when it may be again, on the monotonic clock.
    reopenings: u32,
    reopen_at: Duration,
    /// Why the last one came to nothing.
    unopened: String,
    /// A test wants the connection to fail until it is opened anew.
    broken: bool,
    book: Book,
    /// SQLite's number for the writes of others that our memory has seen. None before the first look.
    data_version: Option<i64>,
    /// A turn failed half way, so that our memory may be wrong.
    stale: bool,
    /// Somebody else has written since this was last asked.
    changed_by_others: bool,
    /// What failed turns may have written after all.
    unheard: Unheard,
    patience: Duration,
    commits: u64,
    /// What the clock told at the last turn.
    seen_at: Timestamp,
    /// The number of commits when the cache was emptied last.
    cache_kept_since: u64,
    faults: Option<Faults>,
    /// A closure of the application's is at work, and no commit may come from it.
    guarded: Arc<AtomicBool>,
}

/// What the writer remembers of the file, so that a turn need not read it.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) lanes: Lanes,
    pub(crate) shares: Shares,
    pub(crate) flows: Flows,
    pub(crate) turns: Turns,
    pub(crate) gates: Gates,
    /// Running jobs that are to be deleted as soon as they have ended.
    pub(crate) doomed: HashSet<JobId>,
    /// The newest id in the file.
    pub(crate) last_id: i64,
    /// No job expires before this, in microseconds. Unknown if none.
    pub(crate) next_expiry: Option<i64>,
    /// Our row in the table of instances, if this process runs jobs.
    pub(crate) owner: Option<i64>,
    /// The bells of other engines on the file.
    pub(crate) bells: Vec<u16>,
    /// Somebody else has written since we last looked for signals.
    pub(crate) look_for_signals: bool,
    pub(crate) agenda: Agenda,
}

/// What the rest of the process must learn of a turn, once it is committed.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Jobs that are ours now, in the order in which they should start.
    pub(crate) claims: Vec<Claim>,
    /// Jobs that came to a terminal status.
    pub(crate) ended: Vec<JobId>,
    /// Running jobs of this process that somebody asked to stop.
    pub(crate) stop: Vec<JobId>,
    /// All that has changed of jobs.
    pub(crate) transitions: Vec<Transition>,
    /// What became of ticks of schedules.
    pub(crate) ticks: Vec<Ticks>,
    /// Lines for the log: a turn that fails is taken again, and would say them twice.
    pub(crate) said: Vec<(log::Level, String)>,
    /// What workflows came to, each with its place: before which of the transitions.
    pub(crate) workflows: Vec<(usize, WorkflowTransition)>,
}

/// How much an outbox held at a moment.
struct Mark {
    ended: usize,
    transitions: usize,
    ticks: usize,
    said: usize,
    workflows: usize,
}

impl Outbox {
    /// How much it holds.
    fn mark(&self) -> Mark {
        Mark {
            ended: self.ended.len(),
            transitions: self.transitions.len(),
            ticks: self.ticks.len(),
            said: self.said.len(),
            workflows: self.workflows.len(),
        }
    }

    /// Takes back what has come since, for it is not so.
    fn cut_to(&mut self, mark: &Mark) {
        self.ended.truncate(mark.ended);
        self.transitions.truncate(mark.transitions);
        self.ticks.truncate(mark.ticks);
        self.said.truncate(mark.said);
        self.workflows.truncate(mark.workflows);
    }

    /// Takes what workflows have come to until now.
    fn take_workflows(&mut self, flows: &mut Flows) {
        for transition in flows.transitions.drain(..) {
            if transition.to.is_terminal() {
                // Whoever waits for a workflow waits for its id, which no job has.
                self.ended.push(JobId::from_raw(transition.id.raw()));
            }
            self.workflows.push((self.transitions.len(), transition));
        }
    }
}

/// A write transaction under way, with the engine's vocabulary.
pub(crate) struct Turn<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) book: &'a mut Book,
    pub(crate) out: &'a mut Outbox,
    pub(crate) now: Timestamp,
    pub(crate) hot: Hot<'a>,
    /// What the workers want. None if nothing is to be claimed.
    pub(crate) demand: Option<&'a mut (dyn Demand + 'a)>,
    /// Nothing that a worker of the application's could take is waiting, so that a new job may be claimed as it is
    /// written.
    pub(crate) nothing_waits: bool,
    /// In what time a job that waits comes to count one priority higher, if it does.
    pub(crate) ageing: Option<Duration>,
    guarded: &'a AtomicBool,
}

/// The statements that a turn runs once for each job, kept at hand from the first to the last.
#[derive(Default)]
pub(crate) struct Hot<'a> {
    pub(crate) insert: Option<CachedStatement<'a>>,
    pub(crate) end: Option<CachedStatement<'a>>,
}

/// The statement at hand, taken from the connection's cache the first time.
pub(crate) fn at_hand<'s, 'a>(
    place: &'s mut Option<CachedStatement<'a>>,
    conn: &'a Connection,
    sql: &'static str,
) -> rusqlite::Result<&'s mut CachedStatement<'a>> {
    match place {
        Some(statement) => Ok(statement),
        None => Ok(place.insert(conn.prepare_cached(sql)?)),
    }
}

impl Store {
    /// Opens the file, made if there is none, and brings its tables up to date.
    pub(crate) fn open(path: &Path, durability: Durability, patience: Duration, clock: Arc<dyn Clock>) -> Result<Self> {
        let contact = Arc::new(Contact::new(connect::resolve(path)?, clock));
        let guarded = Arc::new(AtomicBool::new(false));
        let conn = with_patience(patience, || open(contact.path(), durability, true, &guarded))?;
        contact.meet()?;
        Ok(Self {
            conn,
            contact,
            durability,
            adrift: false,
            sick: 0,
            reopenings: 0,
            reopen_at: Duration::ZERO,
            unopened: String::new(),
            broken: false,
            book: Book::default(),
            data_version: None,
            stale: true,
            changed_by_others: false,
            unheard: Unheard::default(),
            patience,
            commits: 0,
            seen_at: Timestamp::EPOCH,
            cache_kept_since: 0,
            faults: None,
            guarded,
        })
    }

    /// How things stand between the file and us.
    pub(crate) fn contact(&self) -> &Arc<Contact> {
        &self.contact
    }

    pub(crate) fn inject(&mut self, faults: Faults) {
        self.faults = Some(faults);
    }

    /// Sets the kinds that this process has handlers for, and its row among the instances.
    pub(crate) fn serve(&mut self, kinds: HashSet<String>, owner: i64) {
        self.book.lanes.serve(kinds);
        self.book.owner = Some(owner);
    }

    /// Runs `work` in a write transaction, in which as much may be claimed as is demanded. If it or the commit fails,
    /// nothing is written.
    pub(crate) fn turn<R>(
        &mut self,
        now: Timestamp,
        demand: Option<&mut dyn Demand>,
        work: impl FnOnce(&mut Turn<'_>) -> Result<R>,
    ) -> Result<(R, Outbox)> {
        let mut out = Outbox::default();
        let result = with_patience(self.patience, || {
            self.mend()?;
            if !self.conn.is_autocommit() {
                // A panic has left a turn half way.
                run(&self.conn, "ROLLBACK").map_err(|error| storage_error("cannot undo a broken turn", error))?;
                self.stale = true;
            }
            run(&self.conn, "BEGIN IMMEDIATE").map_err(|error| storage_error("cannot begin to write", error))?;
            self.refresh().map_err(|error| storage_error("cannot read the lanes", error))?;
            if self.is_set_back(now) {
                log::warn!("the clock was set back: what limits let go is looked at anew");
                let set_back = self.book.set_back(&self.conn, self.seen_at, now);
                set_back.map_err(|error| storage_error("cannot look at the limits anew", error))?;
            }
            let ageing = demand.as_ref().and_then(|demand| demand.ageing());
            // What a failed turn has claimed may come to be in the file. While that is not known nothing more is
            // claimed, or each turn that fails would leave more to be remembered.
            let demand = demand.filter(|_| self.unheard.claims.is_empty());
            let nothing_waits =
                demand.as_ref().is_some_and(|demand| !self.book.has_ready(now, |lane| !demand.is_apart(lane)));
            // The compiler shortens the life of what a reference to a trait object holds only where it is coerced.
            let demand = demand.map(|demand| demand as &mut dyn Demand);
            let mut turn = Turn {
                conn: &self.conn,
                book: &mut self.book,
                out: &mut out,
                now,
                hot: Hot::default(),
                demand,
                nothing_waits,
                ageing,
                guarded: &self.guarded,
            };
            turn.hear(&mut self.unheard).map_err(|error| storage_error("cannot take back what was claimed", error))?;
            let value = work(&mut turn)?;
            if self.contact.is_troubled() {
                // Whether all is well again shows only when something is written.
                turn.touch().map_err(|error| storage_error("cannot write", error))?;
            }
            drop(turn);
            self.book.flush(&self.conn, now).map_err(|error| storage_error("cannot count the jobs", error))?;
            out.take_workflows(&mut self.book.flows);
            self.commit()?;
            self.seen_at = now;
            Ok(value)
        });
        match &result {
            Ok(_) => {
                self.unheard = Unheard::default();
                self.succeeded();
            }
            Err(error) => self.failed(error),
        }
        if result.is_err() {
            self.stale = true;
            // The commit of a turn that failed may have been written after all, and nobody will tell of it.
            self.changed_by_others = true;
            let Outbox { claims, stop, .. } = std::mem::take(&mut out);
            self.unheard.note(claims, stop);
            self.book.lanes.forget();
            self.book.shares.forget();
            self.book.flows.forget();
            self.book.gates.forget();
            if !self.conn.is_autocommit()
                && let Err(error) = self.conn.execute_batch("ROLLBACK")
            {
                log::debug!("cannot roll back a failed turn: {error}");
            }
        }
        result.map(|value| (value, out))
    }

    /// Whether the clock goes behind what it was at the last turn, so that moments which came of it would not come for long.
    pub(crate) fn is_set_back(&self, now: Timestamp) -> bool {
        now.saturating_add(SET_BACK) < self.seen_at
    }

    fn commit(&mut self) -> Result<()> {
        self.commits += 1;
        let fault = self.faults.as_ref().and_then(|faults| faults(self.commits));
        let injected = || Error::new(ErrorKind::Storage, "injected fault");
        if fault == Some(Fault::Before) {
            return Err(injected());
        }
        self.broken |= fault == Some(Fault::Broken);
        if self.broken {
            let broken = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR), None);
            return Err(storage_error("cannot commit", broken));
        }
        self.find()?;
        run(&self.conn, "COMMIT").map_err(|error| storage_error("cannot commit", error))?;
        if fault == Some(Fault::After) { Err(injected()) } else { Ok(()) }
    }

    /// Brings our memory up to date if somebody else has written.
    fn refresh(&mut self) -> rusqlite::Result<()> {
        let version = self.conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get::<_, i64>(0))?;
        if self.data_version == Some(version) && !self.stale {
            return Ok(());
        }
        self.book.reload(&self.conn)?;
        // What the file held when it was opened is no change.
        self.changed_by_others |= self.data_version.is_some_and(|known| known != version);
        self.data_version = Some(version);
        self.stale = false;
        Ok(())
    }

    /// Takes note, without the write lock, of what somebody else has written.
    pub(crate) fn look(&mut self) -> Result<()> {
        let looked = with_patience(self.patience, || {
            self.mend()?;
            self.find()?;
            self.refresh().map_err(|error| storage_error("cannot look at the database", error))
        });
        looked.inspect_err(|error| self.failed(error))
    }

    /// Refuses to go on if the file that we have open is not the one that others find.
    fn find(&mut self) -> Result<()> {
        self.contact.look_again().map_err(|lost| {
            if lost == Lost::WalGone {
                // The open connection has all that is in it.
                self.sick = REOPEN_AFTER;
            }
            self.contact.lost(lost)
        })
    }

    fn succeeded(&mut self) {
        (self.sick, self.reopenings) = (0, 0);
        self.contact.succeeded();
    }

    fn failed(&mut self, error: &Error) {
        if is_of_connection(error) {
            self.sick += 1;
        }
        self.contact.failed(error);
    }

    /// Opens a new connection in the place of one that goes on failing, if it is time for it.
    fn mend(&mut self) -> Result<()> {
        if self.sick < REOPEN_AFTER && !self.adrift {
            return Ok(());
        }
        let now = self.contact.clock().monotonic();
        if now >= self.reopen_at || self.reopenings == 0 {
            let wait = REOPEN_WAIT.saturating_mul(1 << self.reopenings.min(16)).min(REOPEN_WAIT_MAX);
            self.reopen_at = now + jittered(wait, self.commits + u64::from(self.reopenings));
            self.reopenings += 1;
            self.reopen().inspect_err(|error| self.unopened = error.to_string())?;
        }
        if self.adrift {
            let text = format!("the database cannot be opened again yet: {}", self.unopened);
            return Err(Error::new(ErrorKind::Storage, text));
        }
        Ok(())
    }

    /// Opens a new connection. The old one is closed before, and so are those that read: connections of one process share
    /// what SQLite knows of a file, and a new one would be told by it that all is as the broken ones have it.
    fn reopen(&mut self) -> Result<()> {
        match self.contact.look() {
            Ok(()) => {}
            // Its committed frames are in no file that has a name, but SQLite can still read them.
            Err(Lost::WalGone) => drop(self.checkpoint()),
            Err(lost) => return Err(self.contact.lost(lost)),
        }
        if !self.adrift {
            let nothing = Connection::open_in_memory().map_err(|error| storage_error("cannot let go", error))?;
            self.adrift = true;
            self.contact.forget_readers();
            drop(std::mem::replace(&mut self.conn, nothing));
        }
        let path = self.contact.path();
        let conn = open(path, self.durability, false, &self.guarded)?;
        if let Err(lost @ (Lost::Gone | Lost::Replaced)) = self.contact.look() {
            return Err(self.contact.lost(lost));
        }
        self.contact.meet_wal();
        self.conn = conn;
        (self.adrift, self.sick, self.broken) = (false, 0, false);
        (self.stale, self.changed_by_others, self.data_version) = (true, true, None);
        log::info!("opened {} anew, for the connection went on failing", path.display());
        Ok(())
    }

    /// Whether somebody has asked for the deletion of jobs that were running then.
    pub(crate) fn has_doomed(&self) -> bool {
        !self.book.doomed.is_empty()
    }

    /// What the jobs of a lane have in common, as far as memory tells.
    pub(crate) fn lane(&self, id: i64) -> Option<&Lane> {
        self.book.lanes.get(id)
    }

    /// The user of a share.
    pub(crate) fn user_of(&self, share: i64) -> Option<Arc<str>> {
        let user = self.conn.prepare_cached("SELECT user_id FROM jobmill_share WHERE id = ?1");
        user.and_then(|mut user| user.query_row([share], |row| row.get(0))).ok()
    }

    /// The name and the user of a workflow.
    pub(crate) fn workflow(&self, id: WorkflowId) -> Option<(Arc<str>, Option<Arc<str>>)> {
        let found = self.conn.prepare_cached("SELECT name, user_id FROM jobmill_flow WHERE id = ?1");
        found.and_then(|mut found| found.query_row([id.raw()], |row| Ok((row.get(0)?, row.get(1)?)))).ok()
    }

    /// The bells of other engines on the file.
    pub(crate) fn bells(&self) -> &[u16] {
        &self.book.bells
    }

    /// Whether somebody else has written since this was last asked.
    pub(crate) fn take_changed_by_others(&mut self) -> bool {
        std::mem::take(&mut self.changed_by_others)
    }

    /// Whether a job that this process serves is ready at `now`, as far as memory tells.
    pub(crate) fn has_ready(&self, now: Timestamp) -> bool {
        self.book.has_ready(now, |_| true)
    }

    /// Whether a job that is wanted could be claimed at `now`, as far as memory tells.
    pub(crate) fn has_work(&self, now: Timestamp, demand: &dyn Demand) -> bool {
        self.book.has_ready(now, |lane| demand.room(lane) > 0)
    }

    /// Whether a job may have expired by `now`.
    pub(crate) fn is_expiry_due(&self, now: Timestamp) -> bool {
        self.book.next_expiry.is_none_or(|next| next <= now.as_micros())
    }

    /// Whether the end of a job or a workflow calls for something, as far as memory tells.
    pub(crate) fn has_flow_work(&self) -> bool {
        self.book.flows.has_work
    }

    /// Whether a limit may have jobs to let go.
    pub(crate) fn is_gate_due(&self, now: Timestamp) -> bool {
        self.book.gates.is_due(now)
    }

    /// Whether a schedule is due at `now`, as far as memory tells.
    pub(crate) fn is_tick_due(&self, now: Timestamp) -> bool {
        self.book.is_tick_due(now)
    }

    /// Whether schedules were reckoned under a clock that ran ahead of `now`, as far as memory tells.
    pub(crate) fn ran_ahead(&self, now: Timestamp) -> bool {
        self.book.ran_ahead(now)
    }

    /// Whether somebody else may have left a signal for one of our running jobs.
    pub(crate) fn may_have_signals(&self) -> bool {
        self.book.look_for_signals && self.book.owner.is_some()
    }

    /// The next moment after `now` at which time alone gives a turn something to do.
    pub(crate) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let delayed = self.book.lanes.open(now).filter_map(|lane| match lane.next_delayed {
            NextDelayed::NotBefore(at) => Some(at),
            NextDelayed::Unknown => None,
        });
        let book = &self.book;
        let others = [book.next_expiry, book.gates.next_wake(), book.lanes.next_opening(now), book.agenda.due_at()];
        let due = delayed.chain(others.into_iter().flatten()).filter(|at| *at > now.as_micros()).min()?;
        (due != i64::MAX).then(|| Timestamp::from_micros(due))
    }

    /// The writer's connection, between turns. For housekeeping.
    pub(crate) fn connection(&self) -> &Connection {
        &self.conn
    }
}

impl Drop for Store {
    /// Closes the connection. SQLite would remove the WAL file by its name, which may be another file's by now.
    fn drop(&mut self) {
        if matches!(self.contact.look(), Err(Lost::Replaced)) {
            drop(self.checkpoint());
            if let Err(error) = self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
                log::error!("closing the database may remove the WAL file of the one in its place: {error}");
            }
        }
    }
}

/// Opens the connection that writes, and brings the tables up to date.
fn open(path: &Path, durability: Durability, make: bool, guarded: &Arc<AtomicBool>) -> Result<Connection> {
    let mut conn = connect::writer(path, durability, make)?;
    schema::migrate(&mut conn).map_err(|error| error.about(path.display()))?;
    let refuse = guarded.clone();
    conn.commit_hook(Some(move || refuse.load(Ordering::Relaxed)))
        .map_err(|error| storage_error("cannot guard the commits", error))?;
    Ok(conn)
}

/// A wait with a fifth of jitter, so that many who failed together do not try again together.
pub(crate) fn jittered(wait: Duration, seed: u64) -> Duration {
    let spread = BuildHasherDefault::<DefaultHasher>::default().hash_one((std::process::id(), seed));
    wait.mul_f64(0.8 + 0.4 * (spread % 1000) as f64 / 1000.0)
}

impl Book {
    /// Whether a job that this process serves is ready at `now` in a lane that passes, as far as memory tells.
    fn has_ready(&self, now: Timestamp, passes: impl Fn(&Lane) -> bool) -> bool {
        let until_now = NextDelayed::NotBefore(now.as_micros());
        self.lanes.open(now).filter(|lane| passes(lane)).any(|lane| {
            lane.count(State::Pending) > 0 || lane.count(State::Delayed) > 0 && lane.next_delayed <= until_now
        })
    }

    /// Counts a job that came into a state, and out of another if it is not new.
    pub(crate) fn count(&mut self, place: Place, from: Option<State>, to: Option<State>) {
        self.lanes.count(place.lane, from, to);
        if let Some(share) = place.share {
            self.shares.count(share, from, to);
        }
        if let Some(flow) = place.flow {
            self.flows.count(flow, from, to);
        }
    }

    /// Writes what has been counted since the last time.
    pub(crate) fn flush(&mut self, conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        self.lanes.flush(conn)?;
        self.gates.flush(conn, now)?;
        self.shares.flush(conn)?;
        self.flows.flush(conn, now)
    }

    /// Has the time go on for what time alone lets go, from a moment at which the clock was set back, when it showed `seen` at
    /// least.
    pub(crate) fn set_back(&mut self, conn: &Connection, seen: Timestamp, now: Timestamp) -> rusqlite::Result<()> {
        self.lanes.set_back(seen, now);
        self.gates.set_back(conn, seen, now)
    }

    fn reload(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.lanes.reload(conn)?;
        self.shares.forget();
        self.flows.reload(conn)?;
        self.gates.reload(conn)?;
        let mut statement = conn.prepare_cached("SELECT job FROM jobmill_doomed")?;
        self.doomed = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        self.last_id = last_id(conn)?;
        self.bells = bells(conn, self.owner)?;
        self.next_expiry = None;
        self.look_for_signals = true;
        self.agenda.reload(conn)
    }
}

impl Turn<'_> {
    /// The same turn, lent for a shorter time.
    pub(crate) fn lend(&mut self) -> Turn<'_> {
        // What is at hand goes back to the cache, where the borrower finds it.
        self.hot = Hot::default();
        Turn {
            conn: self.conn,
            book: self.book,
            out: self.out,
            now: self.now,
            hot: Hot::default(),
            // What may still be undone is not claimed.
            demand: None,
            nothing_waits: false,
            ageing: self.ageing,
            guarded: self.guarded,
        }
    }

    /// Notes what workflows have come to, in its place among what became of jobs.
    pub(crate) fn take_workflows(&mut self) {
        self.out.take_workflows(&mut self.book.flows);
    }

    /// Runs work that may fail by itself: what it wrote is undone then, and the turn goes on. A panic is caught too,
    /// for it must not end a turn in which others ride.
    pub(crate) fn guarded<R, E>(
        &mut self,
        work: impl FnOnce(Turn<'_>) -> Result<R, E>,
    ) -> Result<std::thread::Result<Result<R, E>>> {
        let storage = |error| storage_error("cannot guard a change", error);
        self.book.flush(self.conn, self.now).map_err(storage)?;
        self.take_workflows();
        let mark = self.out.mark();
        run(self.conn, "SAVEPOINT jobmill_guard").map_err(storage)?;
        // Half a turn must not be committed: its counts are written at its end.
        self.guarded.store(true, Ordering::Relaxed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(self.lend())));
        self.guarded.store(false, Ordering::Relaxed);
        if self.conn.is_autocommit() {
            return Err(Error::new(ErrorKind::Storage, "a closure ended the transaction that it was given"));
        }
        if !matches!(result, Ok(Ok(_))) {
            run(self.conn, "ROLLBACK TO jobmill_guard").map_err(storage)?;
            self.out.cut_to(&mark);
            let last_id = self.book.last_id;
            self.book.reload(self.conn).map_err(storage)?;
            self.book.last_id = last_id;
        }
        run(self.conn, "RELEASE jobmill_guard").map_err(storage)?;
        Ok(result)
    }
}

/// The newest id ever given, of which the row may be gone.
pub(crate) fn last_id(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached(
        "SELECT max(coalesce((SELECT max(id) FROM jobmill_job), 0),
                    coalesce((SELECT max(id) FROM jobmill_flow), 0),
                    coalesce((SELECT value FROM jobmill_meta WHERE key = 'last_id'), 0))",
    )?
    .query_row([], |row| row.get(0))
}

/// The bells of the engines whose rows are open, other than `own`.
fn bells(conn: &Connection, own: Option<i64>) -> rusqlite::Result<Vec<u16>> {
    conn.prepare_cached(
        "SELECT port FROM jobmill_instance WHERE ended_at IS NULL AND port IS NOT NULL AND id IS NOT :own",
    )?
    .query_map(named_params! { ":own": own }, |row| row.get(0))?
    .collect()
}

/// Runs a statement without parameters and rows.
fn run(conn: &Connection, sql: &'static str) -> rusqlite::Result<()> {
    conn.prepare_cached(sql)?.execute([]).map(drop)
}
