//! The way in for everybody who enqueues, asks and operates. No threads.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{after, select};

use crate::clock::{Clock, SystemClock};
use crate::desk::Desk;
use crate::error::{Error, ErrorKind, Result};
use crate::model::attempt::{Attempt, LogLine};
use crate::model::explain::Explanation;
use crate::model::id::JobId;
use crate::model::job::{Job, Status};
use crate::model::new_job::{NewJob, check_name};
use crate::model::page::{Page, Query};
use crate::model::stats::Stats;
use crate::store::connect::{self, DEFAULT_PATIENCE, Durability, storage_error};
use crate::store::enqueue::{self, Enqueued};
use crate::store::operate::{Cancelled, Refused};
use crate::store::read::Reader;
use crate::store::{Store, Turn, housekeeping, list};

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
        Ok(Self { inner: Arc::new(Inner { desk, reader, path, durability }) })
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
        let job = job.into();
        job.check()?;
        self.desk().call(move |turn| turn.enqueue(&job).map_err(cannot_enqueue))
    }

    /// Enqueues many jobs in one transaction: all or none. Unique keys hold among them too.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`], for the first job that breaks a rule.
    pub fn enqueue_many<J: Into<NewJob>>(&self, jobs: impl IntoIterator<Item = J>) -> Result<Vec<Enqueued>> {
        let jobs = jobs.into_iter().map(Into::into).collect::<Vec<NewJob>>();
        for job in &jobs {
            job.check()?;
        }
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.desk().call(move |turn| {
            jobs.iter().map(|job| turn.enqueue(job)).collect::<rusqlite::Result<_>>().map_err(cannot_enqueue)
        })
    }

    /// Enqueues a job in a transaction of the application's own on the same file: it exists if and when that is
    /// committed. The engine notices the commit by itself.
    ///
    /// # Errors
    /// Those of [`Client::enqueue`].
    pub fn enqueue_in(&self, transaction: &rusqlite::Transaction<'_>, job: impl Into<NewJob>) -> Result<Enqueued> {
        let job = job.into();
        job.check()?;
        let now = self.desk().clock().now();
        let enqueued = enqueue::enqueue_in(transaction, &job, now).map_err(cannot_enqueue)?;
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
        let written = self.desk().call(move |turn| turn.guarded(|turn| work(&mut Transaction { turn })))?;
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Reads a job.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn get(&self, id: JobId) -> Result<Job> {
        self.reader().job(id)?.ok_or_else(|| not_found(id))
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
            match self.reader().status(id)? {
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
    /// `Invalid` if the limit or the cursors break a rule.
    pub fn list(&self, query: Query) -> Result<Page> {
        query.check()?;
        self.reader().snapshot("cannot list jobs", |conn| list::list(conn, &query))
    }

    /// Counts jobs by status, queue, kind and priority, without reading them.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        self.reader().stats()
    }

    /// Tells why a job stands where it stands.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn explain(&self, id: JobId) -> Result<Explanation> {
        self.reader().explain(id, self.desk().clock().now())?.ok_or_else(|| not_found(id))
    }

    /// Every attempt of a job, the oldest first. A snoozed attempt is none.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn attempts(&self, id: JobId) -> Result<Vec<Attempt>> {
        self.reader().attempts(id)?.ok_or_else(|| not_found(id))
    }

    /// The lines that a job's handler has logged, the oldest first.
    ///
    /// # Errors
    /// `NotFound` if no job has this id.
    pub fn log(&self, id: JobId) -> Result<Vec<LogLine>> {
        self.reader().log(id)?.ok_or_else(|| not_found(id))
    }

    /// Cancels a job. A waiting one is cancelled at once; a running one is asked to stop, and holds its worker until it
    /// does. One that is cancelled already stays so.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has ended otherwise.
    pub fn cancel(&self, id: JobId) -> Result<Cancelled> {
        self.desk().call(move |turn| {
            let cancelled = turn.cancel(id).map_err(|error| storage_error("cannot cancel the job", error))?;
            cancelled.map_err(|refused| refusal(id, "cancelled", refused))
        })
    }

    /// Makes a job that failed, was cancelled or expired pending once more, with at least one attempt.
    ///
    /// # Errors
    /// `NotFound` if no job has this id; `Conflict` if it has not ended or is completed, or if another job holds its
    /// unique key by now.
    pub fn retry(&self, id: JobId) -> Result<()> {
        self.desk().call(move |turn| {
            let retried = turn.retry(id).map_err(|error| storage_error("cannot retry the job", error))?;
            retried.map_err(|refused| refusal(id, "retried", refused))
        })
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
        check_name("queue", queue)?;
        let queue = queue.to_owned();
        self.desk().call(move |turn| {
            turn.pause(&queue, paused).map_err(|error| storage_error("cannot change the queue", error))
        })
    }

    /// Opens a connection to the same file for the application's own tables. It waits for other writers in short steps,
    /// and commits are as durable as the engine's.
    ///
    /// # Errors
    /// `Storage` if the file cannot be opened.
    pub fn connection(&self) -> Result<rusqlite::Connection> {
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
        self.reader().snapshot("cannot verify the file", housekeeping::check)
    }
}

/// A write transaction on our writer, in which [`Client::write`] lets the application write. It is a
/// `rusqlite::Connection` by [`Deref`]; it is committed by us.
pub struct Transaction<'a> {
    turn: Turn<'a>,
}

impl<'a> Transaction<'a> {
    /// Enqueues a job in this transaction.
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the field and the rule.
    pub fn enqueue(&mut self, job: impl Into<NewJob>) -> Result<Enqueued> {
        let job = job.into();
        job.check()?;
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

fn refusal(id: JobId, what: &str, refused: Refused) -> Error {
    match refused {
        Refused::NotFound => not_found(id),
        Refused::Status(status @ (Status::Created | Status::Pending | Status::Running)) => {
            Error::new(ErrorKind::Conflict, format!("{id} is {status} and cannot be {what}"))
        }
        Refused::Status(status) => {
            Error::new(ErrorKind::Conflict, format!("{id} is {status} already and cannot be {what}"))
        }
        Refused::KeyHeldBy(holder) => {
            Error::new(ErrorKind::Conflict, format!("{id} cannot be {what}, for {holder} holds its unique key"))
        }
    }
}
