//! What is done to all jobs of a query, a slice at a time.

use serde::Serialize;

use crate::client::Client;
use crate::error::Result;
use crate::model::cursor::Order;
use crate::model::history::Caller;
use crate::model::id::JobId;
use crate::model::job::Priority;
use crate::model::page::Query;
use crate::model::rules::check_queue;
use crate::store::connect::storage_error;
use crate::store::operate::{Move, Refused};
use crate::store::{Turn, list};

/// How many jobs one turn changes, so that it is short and others get theirs.
const SLICE_JOBS: usize = 200;

/// What was done to the jobs of a selection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Bulk {
    /// Jobs that were changed, or whose running handlers were asked to stop.
    pub changed: usize,
    /// Jobs that passed the query and whose status forbade the change, or that had changed meanwhile.
    pub refused: usize,
}

/// The jobs that a query lists, to do something to all of them. The limit of the query does not count.
///
/// Each action goes through the jobs that were there when it began, the oldest first, in slices of 200 and a transaction
/// each, so that others are never kept waiting for long. If one fails, what was done before stays done.
///
/// ```
/// # fn main() -> jobmill::Result<()> {
/// # let directory = tempfile::tempdir().expect("a temporary directory");
/// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
/// use jobmill::{Query, Status};
///
/// let failed = Query::new().queues(["mail"]).statuses([Status::Failed]);
/// let done = client.select(failed)?.retry()?;
/// println!("{} jobs will be tried again", done.changed);
/// # Ok(())
/// # }
/// ```
#[must_use = "a selection does nothing by itself"]
#[derive(Debug)]
pub struct Selection {
    client: Client,
    query: Query,
}

impl Selection {
    pub(super) fn new(client: Client, query: Query) -> Self {
        Self { client, query }
    }

    /// Cancels them, as [`Client::cancel`] does.
    ///
    /// # Errors
    /// `Storage`, `Busy` and `Shutdown` as their names say.
    pub fn cancel(&self) -> Result<Bulk> {
        self.each(|turn, id, caller| turn.cancel(id, caller).map(|cancelled| cancelled.map(drop)))
    }

    /// Makes those pending once more that failed, were cancelled or expired, as [`Client::retry`] does.
    ///
    /// # Errors
    /// `Storage`, `Busy` and `Shutdown` as their names say.
    pub fn retry(&self) -> Result<Bulk> {
        self.each(|turn, id, caller| turn.retry(id, caller))
    }

    /// Deletes them, as [`Client::delete`] does.
    ///
    /// # Errors
    /// `Storage`, `Busy` and `Shutdown` as their names say.
    pub fn delete(&self) -> Result<Bulk> {
        self.each(|turn, id, caller| turn.delete(id, caller).map(|deleted| deleted.map(drop)))
    }

    /// Gives those that wait another priority.
    ///
    /// # Errors
    /// `Storage`, `Busy` and `Shutdown` as their names say.
    pub fn set_priority(&self, priority: Priority) -> Result<Bulk> {
        let to = Move { priority: Some(priority), queue: None };
        self.each(move |turn, id, caller| turn.relocate(id, &to, caller))
    }

    /// Puts those that wait into another queue.
    ///
    /// # Errors
    /// `Invalid` if the name breaks the rule for names; `Storage`, `Busy` and `Shutdown` as their names say.
    pub fn set_queue(&self, queue: &str) -> Result<Bulk> {
        check_queue(queue)?;
        let to = Move { priority: None, queue: Some(queue.to_owned()) };
        self.each(move |turn, id, caller| turn.relocate(id, &to, caller))
    }

    fn each(
        &self,
        work: impl Fn(&mut Turn<'_>, JobId, &Caller) -> rusqlite::Result<Result<(), Refused>> + Clone + Send + 'static,
    ) -> Result<Bulk> {
        let desk = self.client.desk();
        // Those that come while it goes on are not hunted.
        let newest = self.last_id()?;
        let mut query = self.query.clone().order(Order::Ascending).limit(SLICE_JOBS);
        let before = query.cursor.before.map_or(i64::MAX, JobId::raw).min(newest.saturating_add(1));
        query.cursor.before = Some(JobId::from_raw(before));
        let mut bulk = Bulk::default();
        loop {
            let ids = self.client.reader().snapshot("cannot select jobs", |conn| list::ids(conn, &query))?;
            let Some(last) = ids.last().copied() else {
                return Ok(bulk);
            };
            let is_last_slice = ids.len() < SLICE_JOBS;
            let (work, caller, asked) = (work.clone(), self.client.caller().clone(), query.clone());
            let slice = desk.call(move |turn| {
                let storage = |error| storage_error("cannot change a job", error);
                let mut slice = Bulk::default();
                for id in ids {
                    // Somebody may have changed it since we looked.
                    let passes = list::passes(turn.conn, &asked, id).map_err(storage)?;
                    if passes && work(turn, id, &caller).map_err(storage)?.is_ok() {
                        slice.changed += 1;
                    } else {
                        slice.refused += 1;
                    }
                }
                Ok(slice)
            })?;
            bulk.changed += slice.changed;
            bulk.refused += slice.refused;
            if is_last_slice {
                return Ok(bulk);
            }
            query = query.following(last);
        }
    }

    fn last_id(&self) -> Result<i64> {
        self.client.reader().snapshot("cannot read the newest id", crate::store::last_id)
    }
}
