//! The way in for everybody who enqueues, asks and operates. No threads.

mod ask;
pub(crate) mod batch;
pub(crate) mod jobs;
mod limits;
mod operate;
mod schedule;
pub(crate) mod selection;
mod setup;
pub(crate) mod workflow;

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::desk::Desk;
use crate::error::{Error, ErrorKind, Result};
use crate::model::history::Caller;
use crate::model::id::JobId;
use crate::model::new_job::NewJob;
use crate::model::rules::check_name;
use crate::store::connect::{self, DEFAULT_PATIENCE, Durability, storage_error};
use crate::store::enqueue::{self, Enqueued};
use crate::store::read::{self, Reader};
use crate::store::{Store, Turn, gate, housekeeping};

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

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("path", &self.path()).field("user", &self.user()).finish_non_exhaustive()
    }
}

struct Inner {
    desk: Arc<Desk>,
    reader: Reader,
    path: PathBuf,
    durability: Durability,
}

impl Drop for Inner {
    /// Writes what has been counted: without an engine nobody else does, and an engine that has shut down has done it.
    fn drop(&mut self) {
        if !self.desk.is_closed()
            && let Err(error) = self.desk.write_tallies_if_any()
        {
            log::warn!("what was counted last is not written: {error}");
        }
    }
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
        let clock = Arc::new(SystemClock);
        Ok(Self::new(Store::open(path.as_ref(), durability, DEFAULT_PATIENCE, clock.clone())?, durability, clock))
    }

    pub(crate) fn new(store: Store, durability: Durability, clock: Arc<dyn Clock>) -> Self {
        let path = store.contact().path().to_owned();
        let reader = Reader::new(store.contact().clone());
        let desk = Arc::new(Desk::new(store, clock));
        Self { inner: Arc::new(Inner { desk, reader, path, durability }), caller: Arc::default() }
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
            find_needs(turn.conn, &job, &caller)?;
            knows_limits(turn, &job)?;
            let enqueued = turn.enqueue(&job).map_err(cannot_enqueue)?;
            hide_foreign(turn.conn, enqueued, &caller)
        })
    }

    /// Enqueues many jobs in one transaction: all or none. Unique keys hold among them too.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`], for the first job that breaks a rule, with its place: `jobs[0]` is the first.
    pub fn enqueue_many<J: Into<NewJob>>(&self, jobs: impl IntoIterator<Item = J>) -> Result<Vec<Enqueued>> {
        let admitted =
            jobs.into_iter().enumerate().map(|(at, job)| self.admit(job).map_err(|error| of_many(at, error)));
        let jobs = admitted.collect::<Result<Vec<NewJob>>>()?;
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let enqueue_all = |turn: &mut Turn<'_>, jobs: &[NewJob]| -> Result<Vec<Enqueued>> {
            each_of(jobs, |job| knows_limits(turn, job))?;
            jobs.iter().map(|job| turn.enqueue(job)).collect::<rusqlite::Result<_>>().map_err(cannot_enqueue)
        };
        let caller = self.caller.clone();
        let (of, needy): (Arc<Caller>, bool) = (caller.clone(), jobs.iter().any(|job| !job.needs.is_empty()));
        let enqueue_all = move |turn: &mut Turn<'_>, jobs: &[NewJob]| {
            if needy {
                each_of(jobs, |job| find_needs(turn.conn, job, &of))?;
            }
            enqueue_all(turn, jobs)
        };
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
        self.find()?;
        for used in &job.limits {
            if !gate::is_defined_in(transaction, &used.name).map_err(cannot_enqueue)? {
                return Err(unknown_limit(&used.name));
            }
        }
        let (now, counts) = (self.desk().clock().now(), self.desk().press().counts());
        find_needs(transaction, &job, &self.caller)?;
        let enqueued = enqueue::enqueue_in(transaction, &job, now, counts).map_err(cannot_enqueue)?;
        let enqueued = hide_foreign(transaction, enqueued, &self.caller)?;
        self.desk().expect_commit();
        Ok(enqueued)
    }

    /// Refuses to go on if the file that we have open is not the one that the application finds.
    fn find(&self) -> Result<()> {
        let contact = self.desk().contact();
        contact.look_again().map_err(|lost| contact.lost(lost))
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

    /// Opens a connection to the same file for the application's own tables. It waits for other writers in short steps,
    /// and commits are as durable as the engine's.
    ///
    /// # Errors
    /// `Storage` if the file cannot be opened; `Forbidden` if the client is bound to a user.
    pub fn connection(&self) -> Result<rusqlite::Connection> {
        self.administer("open the file")?;
        self.find()?;
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
        let clock = self.desk().clock().clone();
        let now = clock.now();
        let mut copy = Store::open(to.as_ref(), self.inner.durability, DEFAULT_PATIENCE, clock)?;
        copy.turn(now, None, |turn| turn.disown_all().map_err(|error| storage_error("cannot free the copy", error)))?;
        copy.checkpoint().map(drop)
    }

    /// Checks the whole file, and our books in it against its rows. Gives what is wrong: nothing, if all is well. It
    /// reads every page.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read, of which bad damage may be the cause: SQLite tells then no more than that.
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

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

impl<'a> Transaction<'a> {
    /// Enqueues a job in this transaction.
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the field and the rule.
    pub fn enqueue(&mut self, job: impl Into<NewJob>) -> Result<Enqueued> {
        let job = admit(job.into(), &self.caller)?;
        find_needs(self.turn.conn, &job, &self.caller)?;
        knows_limits(&self.turn, &job)?;
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

/// Says of which of many jobs an error tells.
fn of_many(at: usize, error: Error) -> Error {
    error.within(format_args!("jobs[{at}]"))
}

/// Checks a rule for each of many jobs.
fn each_of(jobs: &[NewJob], rule: impl Fn(&NewJob) -> Result<()>) -> Result<()> {
    jobs.iter().enumerate().try_for_each(|(at, job)| rule(job).map_err(|error| of_many(at, error)))
}

/// A job that this caller may enqueue, its rules checked.
fn admit(job: NewJob, caller: &Caller) -> Result<NewJob> {
    job.check_alone()?;
    admit_any(job, caller)
}

/// The same, of one that may take the result of another in a workflow.
fn admit_any(mut job: NewJob, caller: &Caller) -> Result<NewJob> {
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

/// Sees to it that the jobs are there that a job waits for.
fn find_needs(conn: &rusqlite::Connection, job: &NewJob, caller: &Caller) -> Result<()> {
    for need in &job.needs {
        if !read::exists_for(conn, need.job, caller.user.as_deref()).map_err(cannot_enqueue)? {
            return Err(not_found(need.job));
        }
    }
    Ok(())
}

/// Refuses a job that counts against a limit that nobody has set: its name may be misspelt.
pub(crate) fn knows_limits(turn: &Turn<'_>, job: &NewJob) -> Result<()> {
    match job.limits.iter().find(|used| !turn.book.gates.is_defined(&used.name)) {
        Some(unknown) => Err(unknown_limit(&unknown.name)),
        None => Ok(()),
    }
}

fn unknown_limit(name: &str) -> Error {
    Error::invalid("limit", format_args!("there is no limit {name:?}: set it first"))
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
