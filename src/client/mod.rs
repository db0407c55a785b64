//! The way in for everybody who enqueues, asks and operates. No threads.

pub(crate) mod jobs;
pub(crate) mod selection;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, select};

use crate::client::jobs::Jobs;
use crate::client::selection::Selection;
use crate::clock::{Clock, SystemClock};
use crate::desk::Desk;
use crate::error::{Error, ErrorKind, Result};
use crate::model::alert::Alert;
use crate::model::attempt::{Attempt, LogLine};
use crate::model::delivery::CallbackDelivery;
use crate::model::event::Event;
use crate::model::explain::Explanation;
use crate::model::history::{Caller, HistoryEntry};
use crate::model::id::JobId;
use crate::model::job::{Job, Priority, Status};
use crate::model::metrics::{Metrics, Window};
use crate::model::new_job::{NewJob, check_name, check_queue};
use crate::model::page::{Page, Query};
use crate::model::stats::{Stats, StatusCounts};
use crate::model::time::Timestamp;
use crate::model::update::{JobUpdate, StatusChange};
use crate::store::connect::{self, DEFAULT_PATIENCE, Durability, storage_error};
use crate::store::enqueue::{self, Enqueued};
use crate::store::operate::{Cancelled, Deleted, Move, Refused};
use crate::store::read::{self, Reader};
use crate::store::update::NotUpdated;
use crate::store::{Store, Turn, callback, history, housekeeping, list, tally};

/// How many reading connections a client has at most.
const READERS_MAX: u32 = 4;
/// How often a client without a dispatcher looks for what others have written, while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Enqueues jobs, asks about them and operates on them, from any thread. A cheap clone.
///
/// An [`Engine`](crate::Engine) hands one out; [`Client::open`] makes one for a program that runs no jobs itself.
///
/// ```
/// use jobmill::{Client, NewJob, Query, Status};
/// # fn main() -> jobmill::Result<()> {
/// # let directory = tempfile::tempdir().expect("a temporary directory");
/// # let path = directory.path().join("jobs.db");
///
/// let client = Client::open(&path)?;
/// let id = client.enqueue(NewJob::json("greet", &"world"))?.id();
/// let page = client.list(Query::new().statuses([Status::Pending]))?;
/// assert_eq!(page.jobs[0].id, id);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    caller: Arc<Caller>,
}

struct Inner {
    desk: Arc<Desk>,
    reader: Reader,
    path: PathBuf,
    durability: Durability,
}

impl Client {
    /// Opens a file, made if there is none, for a program that runs no jobs itself. Commits are durable as by
    /// [`Durability::Full`].
    ///
    /// # Errors
    /// `Invalid` if the path cannot name a database; `Storage` if the file is no database, is read-only, or was written
    /// by a newer jobmill.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, Durability::Full)
    }

    /// Opens a file with a durability of the caller's choice.
    ///
    /// # Errors
    /// Those of [`Client::open`].
    pub fn open_with(path: impl AsRef<Path>, durability: Durability) -> Result<Self> {
        let store = Store::open(path.as_ref(), durability, DEFAULT_PATIENCE)?;
        Self::new(store, durability, Arc::new(SystemClock))
    }

    pub(crate) fn new(store: Store, durability: Durability, clock: Arc<dyn Clock>) -> Result<Self> {
        let path = store.path().to_owned();
        let reader = Reader::new(connect::readers(&path, READERS_MAX)?);
        let desk = Arc::new(Desk::new(store, clock));
        Ok(Self { inner: Arc::new(Inner { desk, reader, path, durability }), caller: Arc::default() })
    }

    /// A client that is bound to a user: it sees, changes and counts only that user's jobs, and those that it enqueues are
    /// the user's. Another's job is `NotFound` to it. What concerns everybody (pausing a queue, writing to the file,
    /// backups) is `Forbidden`.
    ///
    /// An unbound client is the administrator's. Binding guards against mistakes within a program, not against its author.
    ///
    /// ```
    /// use jobmill::{Client, ErrorKind, NewJob};
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// let client = Client::open(directory.path().join("jobs.db"))?;
    /// let (ada, bob) = (client.for_user("ada")?, client.for_user("bob")?);
    /// let id = ada.enqueue(NewJob::json("greet", &"world"))?.id();
    /// assert_eq!(ada.get(id)?.user_id.as_deref(), Some("ada"));
    /// assert_eq!(bob.get(id).unwrap_err().kind(), ErrorKind::NotFound);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Invalid` if the name breaks the rule for names; `Forbidden` if this client is bound to another user.
    pub fn for_user(&self, user: impl Into<String>) -> Result<Self> {
        let user = user.into();
        check_name("user", &user)?;
        if self.user().is_some_and(|bound| bound != user) {
            return Err(forbidden("act for another user"));
        }
        let caller = Caller { user: Some(user), name: self.caller.name.clone() };
        Ok(Self { inner: self.inner.clone(), caller: Arc::new(caller) })
    }

    /// A client whose name the history keeps with all that it changes. Without one the history keeps the user to whom it
    /// is bound, if it is.
    ///
    /// # Errors
    /// `Invalid` if the name breaks the rule for names.
    pub fn acting_as(&self, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        check_name("name", &name)?;
        let caller = Caller { user: self.caller.user.clone(), name: Some(name) };
        Ok(Self { inner: self.inner.clone(), caller: Arc::new(caller) })
    }

    /// The user to whom it is bound.
    pub fn user(&self) -> Option<&str> {
        self.caller.user.as_deref()
    }

    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Refuses to a bound client what only the administrator may do.
    fn administer(&self, what: &'static str) -> Result<()> {
        if self.user().is_some() { Err(forbidden(what)) } else { Ok(()) }
    }

    /// A job that this client may enqueue.
    fn admit(&self, job: impl Into<NewJob>) -> Result<NewJob> {
        admit(job.into(), &self.caller)
    }

    /// A query that this client may ask.
    fn restrict(&self, mut query: Query) -> Result<Query> {
        query.check()?;
        if let Some(user) = self.user() {
            if query.user.as_ref().is_some_and(|asked| asked != user) {
                return Err(Error::invalid("user", "must be the one to whom the client is bound"));
            }
            query.user = Some(user.to_owned());
        }
        Ok(query)
    }

    /// A cursor that is a job of another user's, if the client is bound to one.
    fn foreign_cursor(&self, conn: &rusqlite::Connection, query: &Query) -> rusqlite::Result<Option<JobId>> {
        let Some(user) = self.user() else { return Ok(None) };
        for cursor in [query.before, query.after].into_iter().flatten() {
            if read::is_foreign(conn, cursor, user)? {
                return Ok(Some(cursor));
            }
        }
        Ok(None)
    }

    fn check_cursors(&self, query: &Query) -> Result<()> {
        if self.user().is_none() || (query.before.is_none() && query.after.is_none()) {
            return Ok(());
        }
        let foreign = self.reader().snapshot("cannot look for the cursor", |conn| self.foreign_cursor(conn, query))?;
        foreign.map_or(Ok(()), |cursor| Err(not_found(cursor)))
    }

    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.inner.desk
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.inner.reader
    }

    /// The database file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Enqueues a job: a reference to a payload, or a [`NewJob`] with options. It is durable when this returns.
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the field and the rule; `Busy`, `Storage` and `Shutdown` as their names say.
    pub fn enqueue(&self, job: impl Into<NewJob>) -> Result<Enqueued> {
        let job = self.admit(job)?;
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            let enqueued = turn.enqueue(&job).map_err(cannot_enqueue)?;
            hide_foreign(turn.conn, enqueued, &caller)
        })
    }

    /// Enqueues many jobs in one transaction: all or none. Unique keys hold among them too.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`], for the first job that breaks a rule.
    pub fn enqueue_many<J: Into<NewJob>>(&self, jobs: impl IntoIterator<Item = J>) -> Result<Vec<Enqueued>> {
        let jobs = jobs.into_iter().map(|job| self.admit(job)).collect::<Result<Vec<NewJob>>>()?;
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let enqueue_all = |turn: &mut Turn<'_>, jobs: &[NewJob]| -> Result<Vec<Enqueued>> {
            jobs.iter().map(|job| turn.enqueue(job)).collect::<rusqlite::Result<_>>().map_err(cannot_enqueue)
        };
        let caller = self.caller.clone();
        if caller.user.is_none() || jobs.iter().all(|job| job.unique.is_none()) {
            return self.desk().call(move |turn| enqueue_all(turn, &jobs));
        }
        // A key of somebody else's may refuse one of them when others are written already.
        let enqueued = self.desk().call(move |turn| {
            turn.guarded(|mut turn| {
                let enqueued = enqueue_all(&mut turn, &jobs)?;
                enqueued.into_iter().map(|enqueued| hide_foreign(turn.conn, enqueued, &caller)).collect()
            })
        })?;
        enqueued.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Enqueues a job in a transaction of the application's own on the same file: it exists if and when that is
    /// committed. The engine notices the commit by itself.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`].
    pub fn enqueue_in(&self, transaction: &rusqlite::Transaction<'_>, job: impl Into<NewJob>) -> Result<Enqueued> {
        let job = self.admit(job)?;
        let now = self.desk().clock().now();
        let enqueued = enqueue::enqueue_in(transaction, &job, now).map_err(cannot_enqueue)?;
        let enqueued = hide_foreign(transaction, enqueued, &self.caller)?;
        self.desk().expect_commit();
        Ok(enqueued)
    }

    /// Runs `work` on our writer, in one transaction with the jobs that it enqueues. If it fails, nothing is written.
    /// It should be short: everybody else waits. It writes by its transaction alone: a client that it calls to write
    /// answers `Conflict`, and a commit of its own fails.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// use jobmill::NewJob;
    ///
    /// client.write(|tx| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    ///     tx.execute("CREATE TABLE customer (name TEXT)", [])?;
    ///     tx.execute("INSERT INTO customer VALUES ('Ada')", [])?;
    ///     tx.enqueue(NewJob::json("greet", &"Ada"))?;
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The error of `work`, or ours.
    ///
    /// # Panics
    /// If `work` does.
    pub fn write<T, E>(&self, work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.administer("write to the file")?;
        let caller = self.caller.clone();
        let written = self.desk().call(move |turn| turn.guarded(|turn| work(&mut Transaction { turn, caller })))?;
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Reads a job.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn get(&self, id: JobId) -> Result<Job> {
        self.reader().job(id, self.user())?.ok_or_else(|| not_found(id))
    }

    /// Waits until a job has ended, and gives it.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Timeout` if it has not ended in time; `Shutdown` if the engine shut down
    /// meanwhile.
    pub fn wait(&self, id: JobId, timeout: Duration) -> Result<Job> {
        let watch = self.desk().watch(id);
        let patience = after(timeout);
        loop {
            match self.reader().status(id, self.user())? {
                None => return Err(not_found(id)),
                Some(status) if status.is_terminal() => return self.get(id),
                Some(_) if self.desk().is_closed() => return Err(Error::shutdown()),
                Some(_) => {}
            }
            let look = if self.desk().is_attended() { crossbeam_channel::never() } else { after(LOOK_EVERY) };
            select! {
                recv(watch.receiver()) -> _ => {}
                recv(look) -> _ => {}
                recv(patience) -> _ => {
                    return Err(Error::new(ErrorKind::Timeout, format!("{id} has not ended in time")));
                }
            }
        }
    }

    /// Lists jobs, a page at a time.
    ///
    /// # Errors
    /// `Invalid` if the limit or the cursors break a rule; `NotFound` if the client is bound to a user and a cursor is
    /// another's job.
    pub fn list(&self, query: Query) -> Result<Page> {
        let query = self.restrict(query)?;
        let listed = self.reader().snapshot("cannot list jobs", |conn| match self.foreign_cursor(conn, &query)? {
            Some(cursor) => Ok(Err(cursor)),
            None => list::list(conn, &query).map(Ok),
        })?;
        listed.map_err(not_found)
    }

    /// Every job that a query lists, over all its pages: an iterator that holds one page at a time. The limit of the query
    /// is the length of a page. Jobs that come while it goes on are given if they lie ahead in its order; none is given
    /// twice.
    ///
    /// ```
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// use jobmill::{Query, Status};
    ///
    /// for job in client.jobs(Query::new().statuses([Status::Failed]))? {
    ///     println!("{}", job?.id);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Client::list`], here for the query, later for each page.
    pub fn jobs(&self, query: Query) -> Result<Jobs> {
        let query = self.restrict(query)?;
        self.check_cursors(&query)?;
        Ok(Jobs::new(self.clone(), query))
    }

    /// The jobs that a query lists, to do something to all of them: see [`Selection`].
    ///
    /// # Errors
    /// Those of [`Client::list`].
    pub fn select(&self, query: Query) -> Result<Selection> {
        let query = self.restrict(query)?;
        self.check_cursors(&query)?;
        Ok(Selection::new(self.clone(), query))
    }

    /// Counts jobs by status, queue, kind, priority and type, without reading them.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        self.reader().stats(self.user(), self.desk().clock().now())
    }

    /// Counts the jobs of each user, at most `limit` of them, in the order of their names, behind the name `after` if
    /// one is given. Users who have no job any more are left out.
    ///
    /// # Errors
    /// `Invalid` if the limit is not from 1 to 1000; `Forbidden` if the client is bound to a user.
    pub fn users(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, StatusCounts)>> {
        self.administer("count the jobs of others")?;
        Query::new().limit(limit).check()?;
        let after = after.unwrap_or_default();
        self.reader().snapshot("cannot count by user", |conn| history::users(conn, after, limit))
    }

    /// Who did what to a job, and when, the oldest first. What happens to every job is told by the job itself; what is out
    /// of the ordinary is kept longer than the job, as long as the engine's [`Retention`](crate::Retention) says.
    ///
    /// # Errors
    /// `NotFound` if nothing is known of a job of this id.
    pub fn history(&self, id: JobId) -> Result<Vec<HistoryEntry>> {
        let changes = self.reader().snapshot("cannot read the history", |conn| {
            let attempts = read::attempts(conn, id)?;
            history::history(conn, id, self.user(), attempts.unwrap_or_default())
        })?;
        if changes.is_empty() { Err(not_found(id)) } else { Ok(changes) }
    }

    /// What was done out of the ordinary, to all jobs and queues: at most `limit` lines, the newest first, from before the
    /// moment `before` if one is given. What was done in the same moment as the last of them is given too, so that the page
    /// from before that moment goes on without a gap.
    ///
    /// # Errors
    /// `Invalid` if the limit is not from 1 to 1000; `Forbidden` if the client is bound to a user.
    pub fn audit(&self, before: Option<Timestamp>, limit: usize) -> Result<Vec<HistoryEntry>> {
        self.administer("read the audit of everybody")?;
        Query::new().limit(limit).check()?;
        self.reader().snapshot("cannot read the audit", |conn| history::audit(conn, before, limit))
    }

    /// What jobs did in the last minute, hour or day: how many were enqueued, started and ended and how, how long they
    /// waited and ran. It is kept in the file, in steps of a second, for all processes together; of what a process did
    /// right before it was killed, at most a second is missing.
    ///
    /// ```
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// use jobmill::Window;
    ///
    /// let metrics = client.metrics(Window::Hour)?;
    /// println!("{:.1} jobs a second, {:?} errors", metrics.total.completion_rate(), metrics.total.error_rate());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Forbidden` if the client is bound to a user; `Storage` if the file cannot be read.
    pub fn metrics(&self, window: Window) -> Result<Metrics> {
        self.administer("read the rates of everybody")?;
        self.desk().write_tallies()?;
        let now = self.desk().clock().now();
        self.reader().snapshot("cannot read the rates", |conn| tally::metrics(conn, window, now))
    }

    /// What the file tells Prometheus, in its text exposition format 0.0.4: jobs by status, counters and histograms of all
    /// time, the longest wait of each queue. Serve it as `text/plain; version=0.0.4`. The labels are bounded: the 100
    /// pairs of a queue and a kind that had the most jobs are told apart, the others are summed up as `other`.
    ///
    /// # Errors
    /// `Forbidden` if the client is bound to a user; `Storage` if the file cannot be read.
    pub fn prometheus(&self) -> Result<String> {
        self.administer("read the metrics of everybody")?;
        self.desk().write_tallies()?;
        let now = self.desk().clock().now();
        self.reader().snapshot("cannot read the metrics", |conn| tally::exposition(conn, now))
    }

    /// The alerts of this engine's thresholds that are raised now.
    ///
    /// # Errors
    /// `Forbidden` if the client is bound to a user.
    pub fn alerts(&self) -> Result<Vec<Alert>> {
        self.administer("read the alerts")?;
        Ok(self.desk().press().alerts())
    }

    /// Tells of every change from now on, after its commit: each job that is enqueued, started, ended, moved, deleted by
    /// this process, and that others have changed the file. A client that is bound to a user hears of that user's jobs.
    ///
    /// At most `capacity` events wait to be received. What finds no room is left out, and an [`Event::Lagged`] stands in its
    /// place: nobody is ever kept waiting for a slow subscriber. Dropping the receiver ends the subscription; so does the
    /// engine's shutdown, after what waits.
    ///
    /// Changes by other processes and by transactions of the application's own are told as [`Event::Elsewhere`], which does
    /// not say what was changed. It takes an engine in this process to notice them.
    ///
    /// ```
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// use jobmill::{Event, NewJob};
    ///
    /// let events = client.subscribe(1000)?;
    /// let id = client.enqueue(NewJob::json("greet", &"Ada"))?.id();
    /// assert!(matches!(events.recv(), Ok(Event::Changed(change)) if change.id == id));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Invalid` if `capacity` is not from 1 to 65 536; `Shutdown` if the engine has shut down.
    pub fn subscribe(&self, capacity: usize) -> Result<Receiver<Event>> {
        self.desk().press().subscribe(capacity, self.caller.user.clone())
    }

    /// Tells why a job stands where it stands.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn explain(&self, id: JobId) -> Result<Explanation> {
        self.reader().explain(id, self.user(), self.desk().clock().now())?.ok_or_else(|| not_found(id))
    }

    /// Every attempt of a job, the oldest first. A snoozed attempt is none.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn attempts(&self, id: JobId) -> Result<Vec<Attempt>> {
        self.reader().attempts(id, self.user())?.ok_or_else(|| not_found(id))
    }

    /// The lines that a job's handler has logged, the oldest first.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn log(&self, id: JobId) -> Result<Vec<LogLine>> {
        self.reader().log(id, self.user())?.ok_or_else(|| not_found(id))
    }

    /// Cancels a job. A waiting one is cancelled at once; a running one is asked to stop, and holds its worker until it
    /// does; a tracked one, which nobody here runs, is cancelled at once. One that is cancelled already stays so.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has ended otherwise.
    pub fn cancel(&self, id: JobId) -> Result<Cancelled> {
        self.operate(id, "cancelled", |turn, id, caller| turn.cancel(id, caller))
    }

    /// Makes a job that failed, was cancelled or expired pending once more, with at least one attempt.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has not ended or is completed, or if another job holds its
    /// unique key by now.
    pub fn retry(&self, id: JobId) -> Result<()> {
        self.operate(id, "retried", |turn, id, caller| turn.retry(id, caller))
    }

    /// Deletes a job and all that is kept of it but what the audit holds. A running one is asked to stop first, and goes
    /// when it has.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn delete(&self, id: JobId) -> Result<Deleted> {
        self.operate(id, "deleted", |turn, id, caller| turn.delete(id, caller))
    }

    /// Gives a job that waits another priority.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it does not wait.
    pub fn set_priority(&self, id: JobId, priority: Priority) -> Result<()> {
        let to = Move { priority: Some(priority), queue: None };
        self.operate(id, "moved", move |turn, id, caller| turn.relocate(id, &to, caller))
    }

    /// Puts a job that waits into another queue.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it does not wait; `Invalid` if the name breaks the rule for names.
    pub fn set_queue(&self, id: JobId, queue: &str) -> Result<()> {
        check_queue(queue)?;
        let to = Move { priority: None, queue: Some(queue.to_owned()) };
        self.operate(id, "moved", move |turn, id, caller| turn.relocate(id, &to, caller))
    }

    fn operate<T: Send + 'static>(
        &self,
        id: JobId,
        done: &'static str,
        work: impl FnOnce(&mut Turn<'_>, JobId, &Caller) -> rusqlite::Result<Result<T, Refused>> + Send + 'static,
    ) -> Result<T> {
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            let result = work(turn, id, &caller).map_err(|error| storage_error("cannot change the job", error))?;
            result.map_err(|refused| refusal(id, done, refused))
        })
    }

    /// Changes fields of a job, and the status of a tracked one, all or nothing. Gives the job as it stands then.
    ///
    /// ```
    /// use jobmill::{JobUpdate, NewJob, Status};
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// let id = client.enqueue(NewJob::tracked().agent("agent-7"))?.id();
    /// let job = client.update(id, JobUpdate::new().status(Status::Completed).agent(None))?;
    /// assert_eq!((job.status, job.agent_id), (Status::Completed, None));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if the status may not follow, or if the engine runs the job and sets
    /// the field itself; `Invalid` if a rule is broken, with the field and the rule.
    pub fn update(&self, id: JobId, update: JobUpdate) -> Result<Job> {
        update.check()?;
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            let storage = |error| storage_error("cannot update the job", error);
            let updated = turn.update(id, &update, &caller).map_err(storage)?;
            updated.map_err(|not| match not {
                NotUpdated::Refused(refused) => refusal(id, "updated", refused),
                NotUpdated::Status(StatusChange::Refused { status, why }) => {
                    Error::new(ErrorKind::Conflict, format!("{id} is {status}, and {why}"))
                }
                NotUpdated::Status(_) => Error::new(ErrorKind::Conflict, format!("{id} cannot have that status")),
                NotUpdated::MetadataTooLong => Error::invalid("metadata", "would grow too long"),
            })?;
            read::job(turn.conn, id).map_err(storage)?.ok_or_else(|| not_found(id))
        })
    }

    /// Brings a tracked job to another status, and tells what came of it: forward only, and a terminal status is final.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn update_status(&self, id: JobId, status: Status) -> Result<StatusChange> {
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            let changed = turn.update_status(id, status, &caller);
            changed.map_err(|error| storage_error("cannot change the status", error))?.ok_or_else(|| not_found(id))
        })
    }

    /// Records the time to the first token of a job.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn record_ttft(&self, id: JobId, ttft: Duration) -> Result<()> {
        self.update(id, JobUpdate::new().ttft(ttft)).map(drop)
    }

    /// Records how long a job took in all.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn record_total_duration(&self, id: JobId, duration: Duration) -> Result<()> {
        self.update(id, JobUpdate::new().total_duration(duration)).map(drop)
    }

    /// Every delivery of a job's callback, the oldest first, with each of its tries.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn deliveries(&self, id: JobId) -> Result<Vec<CallbackDelivery>> {
        let deliveries = self.reader().snapshot("cannot read the deliveries", |conn| {
            let hidden = match self.user() {
                Some(user) => read::is_foreign(conn, id, user)?,
                None => false,
            };
            if hidden || read::job(conn, id)?.is_none() {
                return Ok(None);
            }
            callback::deliveries(conn, id).map(Some)
        })?;
        deliveries.ok_or_else(|| not_found(id))
    }

    /// Delivers the callback of a job that has ended once more, to its `callback_url` as it is now, and gives the id of the
    /// delivering job. The receiver sees the same `webhook-id` and body as before, if a delivery of this end is kept still.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has not ended or has no `callback_url`.
    pub fn redeliver(&self, id: JobId) -> Result<JobId> {
        self.operate(id, "redelivered", |turn, id, caller| turn.redeliver(id, caller))
    }

    /// Stops the claiming from a queue, in every process, until it is resumed. Running jobs go on.
    ///
    /// # Errors
    /// `Invalid` if the name breaks the rule for names.
    pub fn pause(&self, queue: &str) -> Result<()> {
        self.set_paused(queue, true)
    }

    /// Resumes a paused queue.
    ///
    /// # Errors
    /// `Invalid` if the name breaks the rule for names.
    pub fn resume(&self, queue: &str) -> Result<()> {
        self.set_paused(queue, false)
    }

    fn set_paused(&self, queue: &str, paused: bool) -> Result<()> {
        self.administer("pause or resume a queue")?;
        check_name("queue", queue)?;
        let queue = queue.to_owned();
        let caller = self.caller.clone();
        self.desk().call(move |turn| {
            turn.pause(&queue, paused, &caller).map_err(|error| storage_error("cannot change the queue", error))
        })
    }

    /// Opens a connection to the same file for the application's own tables. It waits for other writers in short steps,
    /// and commits are as durable as the engine's.
    ///
    /// # Errors
    /// `Storage` if the file cannot be opened; `Forbidden` if the client is bound to a user.
    pub fn connection(&self) -> Result<rusqlite::Connection> {
        self.administer("open the file")?;
        connect::application(self.path(), self.inner.durability)
    }

    /// Copies the database to a new file while everybody goes on working. In the copy nothing runs: jobs that were running
    /// are pending again, their attempts unspent.
    ///
    /// # Errors
    /// `Invalid` if there is a file of that name already; `Storage` if the copy fails.
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<()> {
        housekeeping::backup(&self.connection()?, to.as_ref())?;
        // The engines of the original live on, so that nobody would ever take their jobs for lost in the copy.
        let mut copy = Store::open(to.as_ref(), self.inner.durability, DEFAULT_PATIENCE)?;
        let now = self.desk().clock().now();
        copy.turn(now, None, |turn| turn.disown_all().map_err(|error| storage_error("cannot free the copy", error)))?;
        copy.checkpoint().map(drop)
    }

    /// Checks the whole file, and our books in it against its rows. Gives what is wrong: nothing, if all is well. It
    /// reads every page.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read.
    pub fn verify(&self) -> Result<Vec<String>> {
        self.administer("verify the file")?;
        self.reader().snapshot("cannot verify the file", housekeeping::check)
    }
}

/// A write transaction on our writer, in which [`Client::write`] lets the application write. It is a
/// `rusqlite::Connection` by [`Deref`]; it is committed by us.
pub struct Transaction<'a> {
    turn: Turn<'a>,
    caller: Arc<Caller>,
}

impl<'a> Transaction<'a> {
    /// Enqueues a job in this transaction.
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the field and the rule.
    pub fn enqueue(&mut self, job: impl Into<NewJob>) -> Result<Enqueued> {
        let job = admit(job.into(), &self.caller)?;
        self.turn.enqueue(&job).map_err(cannot_enqueue)
    }

    pub(crate) fn turn(&mut self) -> &mut Turn<'a> {
        &mut self.turn
    }
}

impl Deref for Transaction<'_> {
    type Target = rusqlite::Connection;

    fn deref(&self) -> &rusqlite::Connection {
        self.turn.conn
    }
}

fn cannot_enqueue(error: rusqlite::Error) -> Error {
    storage_error("cannot enqueue", error)
}

fn not_found(id: JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no job {id}"))
}

fn forbidden(what: &str) -> Error {
    Error::new(ErrorKind::Forbidden, format!("a client that is bound to a user may not {what}"))
}

/// A job that this caller may enqueue, its rules checked.
fn admit(mut job: NewJob, caller: &Caller) -> Result<NewJob> {
    job.check()?;
    if let Some(user) = &caller.user {
        if job.user_id.as_ref().is_some_and(|asked| asked != user) {
            return Err(Error::invalid("user", "must be the one to whom the client is bound"));
        }
        job.user_id = Some(user.clone());
    }
    job.created_by = caller.actor().map(str::to_owned);
    Ok(job)
}

/// Keeps from a bound client which job of somebody else's holds a key.
fn hide_foreign(conn: &rusqlite::Connection, enqueued: Enqueued, caller: &Caller) -> Result<Enqueued> {
    if let (Enqueued::Existing(holder), Some(user)) = (enqueued, &caller.user)
        && read::is_foreign(conn, holder, user).map_err(cannot_enqueue)?
    {
        return Err(Error::new(ErrorKind::Conflict, "unique: a job of another user holds the key"));
    }
    Ok(enqueued)
}

fn refusal(id: JobId, what: &str, refused: Refused) -> Error {
    match refused {
        Refused::NotFound => not_found(id),
        Refused::Status(status @ (Status::Created | Status::Pending | Status::Running)) => {
            Error::new(ErrorKind::Conflict, format!("{id} is {status} and cannot be {what}"))
        }
        Refused::Status(status) => {
            Error::new(ErrorKind::Conflict, format!("{id} is {status} already and cannot be {what}"))
        }
        Refused::NoCallback => Error::new(ErrorKind::Conflict, format!("{id} has no callback_url")),
        Refused::FieldOfTheEngine(field) => {
            Error::new(ErrorKind::Conflict, format!("{field}: the engine runs {id}, and sets this itself"))
        }
        Refused::KeyHeldBy(holder) => {
            let holder = holder.map_or("a job of another user".to_owned(), |holder| holder.to_string());
            Error::new(ErrorKind::Conflict, format!("{id} cannot be {what}, for {holder} holds its unique key"))
        }
    }
}
