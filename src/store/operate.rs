//! What is done to jobs and queues from outside: cancel, retry, pause, resume.

use rusqlite::{OptionalExtension, named_params};

use crate::model::attempt::AttemptOutcome;
use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::finish::{PastAttempt, record_attempt};
use crate::store::row::State;
use crate::store::unique;

/// What a request to cancel came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cancelled {
    /// The job is cancelled.
    Now,
    /// The job runs, and its handler has been asked to stop.
    Requested,
    /// The job was cancelled before.
    Already,
}

/// Why a job was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NotFound,
    /// Its status forbids it.
    Status(Status),
    /// Another job holds its unique key.
    KeyHeldBy(JobId),
}

impl Turn<'_> {
    /// Cancels a job that waits, or asks a running one to stop.
    pub(crate) fn cancel(&mut self, id: JobId) -> rusqlite::Result<Result<Cancelled, Refused>> {
        let row: Option<(i64, State, Option<i64>)> = self
            .conn
            .prepare_cached("SELECT lane, state, owner FROM jobmill_job WHERE id = :id")?
            .query_row(named_params! { ":id": id }, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((lane, state, owner)) = row else {
            return Ok(Err(Refused::NotFound));
        };
        match state {
            State::Created | State::Pending | State::Delayed => {
                self.conn
                    .prepare_cached(
                        "UPDATE jobmill_job SET state = 5, completed_at = :now, cancel_requested_at = :now
                         WHERE id = :id AND state IN (0, 1, 7)",
                    )?
                    .execute(named_params! { ":id": id, ":now": self.now })?;
                self.book.lanes.count(lane, Some(state), Some(State::Cancelled));
                self.out.ended.push(id);
                Ok(Ok(Cancelled::Now))
            }
            State::Running => {
                self.conn
                    .prepare_cached(
                        "UPDATE jobmill_job SET cancel_requested_at = coalesce(cancel_requested_at, :now)
                         WHERE id = :id AND state = 2",
                    )?
                    .execute(named_params! { ":id": id, ":now": self.now })?;
                if owner == self.book.owner {
                    self.out.stop.push(id);
                } else {
                    self.conn
                        .prepare_cached("INSERT OR REPLACE INTO jobmill_signal (job, owner) VALUES (:job, :owner)")?
                        .execute(named_params! { ":job": id, ":owner": owner })?;
                }
                Ok(Ok(Cancelled::Requested))
            }
            State::Cancelled => Ok(Ok(Cancelled::Already)),
            ended => Ok(Err(Refused::Status(ended.status()))),
        }
    }

    /// Takes the signals that others have left for our running jobs.
    pub(crate) fn take_signals(&mut self) -> rusqlite::Result<()> {
        let Some(owner) = self.book.owner else {
            return Ok(());
        };
        if !std::mem::take(&mut self.book.look_for_signals) {
            return Ok(());
        }
        let mut statement =
            self.conn.prepare_cached("DELETE FROM jobmill_signal WHERE owner = :owner RETURNING job")?;
        let mut rows = statement.query(named_params! { ":owner": owner })?;
        while let Some(row) = rows.next()? {
            self.out.stop.push(row.get(0)?);
        }
        Ok(())
    }

    /// Makes a job that failed, was cancelled or expired pending once more, with one attempt at least.
    pub(crate) fn retry(&mut self, id: JobId) -> rusqlite::Result<Result<(), Refused>> {
        struct Ended {
            lane: i64,
            state: State,
            attempt: u32,
            fence: i64,
            started_at: Option<Timestamp>,
            completed_at: Option<Timestamp>,
            error: Option<String>,
            owner: Option<i64>,
            worker: Option<u32>,
            unique_key: Option<String>,
        }
        let ended = self
            .conn
            .prepare_cached(
                "SELECT lane, state, attempt, claim, started_at, completed_at, error, owner, worker, unique_key
                 FROM jobmill_job WHERE id = :id",
            )?
            .query_row(named_params! { ":id": id }, |row| {
                Ok(Ended {
                    lane: row.get(0)?,
                    state: row.get(1)?,
                    attempt: row.get(2)?,
                    fence: row.get(3)?,
                    started_at: row.get(4)?,
                    completed_at: row.get(5)?,
                    error: row.get(6)?,
                    owner: row.get(7)?,
                    worker: row.get(8)?,
                    unique_key: row.get(9)?,
                })
            })
            .optional()?;
        let Some(ended) = ended else {
            return Ok(Err(Refused::NotFound));
        };
        let outcome = match ended.state {
            State::Failed => AttemptOutcome::Failed,
            State::Cancelled => AttemptOutcome::Cancelled,
            State::Expired => AttemptOutcome::Expired,
            other => return Ok(Err(Refused::Status(other.status()))),
        };
        if let Some(key) = &ended.unique_key
            && let Some(holder) = unique::retake(self.conn, key, id, self.now)?
        {
            return Ok(Err(Refused::KeyHeldBy(holder)));
        }
        // A job that ended while it waited has no attempt to tell of.
        if let (Some(started_at), Some(owner)) = (ended.started_at, ended.owner) {
            record_attempt(
                self.conn,
                &PastAttempt {
                    job: id,
                    fence: ended.fence,
                    number: ended.attempt,
                    started_at,
                    ended_at: ended.completed_at.unwrap_or(self.now),
                    outcome,
                    error: ended.error.as_deref(),
                    owner: Some(owner),
                    worker: ended.worker,
                },
            )?;
        }
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = 7, run_at = :now, max_attempts = max(max_attempts, attempt + 1),
                     completed_at = NULL, cancel_requested_at = NULL,
                     expires_at = CASE WHEN expires_at <= :now THEN NULL ELSE expires_at END
                 WHERE id = :id AND state IN (4, 5, 6)",
            )?
            .execute(named_params! { ":id": id, ":now": self.now })?;
        self.waits(ended.lane, ended.state, State::Delayed, self.now);
        Ok(Ok(()))
    }

    /// Stops or restarts the claiming from a queue, in every process.
    pub(crate) fn pause(&mut self, queue: &str, paused: bool) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_queue (name, paused_at) VALUES (:name, :paused_at)
                 ON CONFLICT (name) DO UPDATE
                 SET paused_at = CASE WHEN excluded.paused_at IS NULL THEN NULL
                                      ELSE coalesce(paused_at, excluded.paused_at) END",
            )?
            .execute(named_params! { ":name": queue, ":paused_at": paused.then_some(self.now) })?;
        self.book.lanes.pause(queue, paused);
        Ok(())
    }
}
