//! Asking: jobs and pages of them, their history, counts, rates and events.

use std::time::Duration;

use crossbeam_channel::{Receiver, after, select};

use crate::client::jobs::Jobs;
use crate::client::selection::Selection;
use crate::client::{Client, not_found};
use crate::error::{Error, ErrorKind, Result};
use crate::liveness::is_alive;
use crate::model::alert::Alert;
use crate::model::attempt::{Attempt, LogLine};
use crate::model::delivery::CallbackDelivery;
use crate::model::event::Event;
use crate::model::explain::Explanation;
use crate::model::history::HistoryEntry;
use crate::model::id::JobId;
use crate::model::job::Job;
use crate::model::metrics::{Metrics, Window};
use crate::model::page::{Page, Query};
use crate::model::stats::{Stats, StatusCounts};
use crate::model::time::Timestamp;
use crate::store::explain::{self, Outside};
use crate::store::{callback, history, list, read, tally};

/// How often a client without a dispatcher looks for what others have written, while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Client {
    /// A query that this client may ask.
    pub(super) fn restrict(&self, mut query: Query) -> Result<Query> {
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
    pub(super) fn foreign_cursor(&self, conn: &rusqlite::Connection, query: &Query) -> rusqlite::Result<Option<JobId>> {
        let Some(user) = self.user() else { return Ok(None) };
        for cursor in [query.cursor.before, query.cursor.after].into_iter().flatten() {
            if read::is_foreign(conn, cursor, user)? {
                return Ok(Some(cursor));
            }
        }
        Ok(None)
    }

    pub(super) fn check_cursors(&self, query: &Query) -> Result<()> {
        if self.user().is_none() || (query.cursor.before.is_none() && query.cursor.after.is_none()) {
            return Ok(());
        }
        let foreign = self.reader().snapshot("cannot look for the cursor", |conn| self.foreign_cursor(conn, query))?;
        foreign.map_or(Ok(()), |cursor| Err(not_found(cursor)))
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
        self.desk().write_tallies_if_free()?;
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
        self.desk().write_tallies_if_free()?;
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

    /// Tells of every change from now on, after its commit: each job that is enqueued, started, ended, moved, updated,
    /// deleted by this process, each workflow that begins or ends, and that others have changed the file. A client that is
    /// bound to a user hears of that user's jobs and workflows. What the retention removes is not told: its time had come.
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
        let (user, now) = (self.user(), self.desk().clock().now());
        let outside = Outside {
            lacks: &|job, weight| self.desk().lacks(job, weight),
            has_died: &|instance| {
                !is_alive(self.path(), &instance.lock_file, instance.beat_at.map(|beat_at| now.since(beat_at)))
            },
        };
        let why = self
            .reader()
            .of_job("cannot explain the job", id, user, |conn| explain::explain(conn, id, user, now, &outside))?;
        why.ok_or_else(|| not_found(id))
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
}
