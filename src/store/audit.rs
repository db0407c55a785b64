//! What was done to jobs out of the ordinary: written with the change, never changed, kept longer than the job.

use rusqlite::{Connection, named_params};

use crate::model::history::{Action, Caller};
use crate::model::id::JobId;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::row::State;

/// One line of the audit table.
pub(crate) struct Line<'a> {
    pub(crate) action: Action,
    pub(crate) job: Option<JobId>,
    /// The share that the job is of, which tells its user.
    pub(crate) share: Option<i64>,
    pub(crate) actor: Option<&'a str>,
    pub(crate) from: Option<State>,
    pub(crate) to: Option<State>,
    pub(crate) attempt: Option<u32>,
    pub(crate) note: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// A line that tells of one job, with nothing else said yet.
    pub(crate) fn of(job: JobId, action: Action) -> Self {
        Self { action, job: Some(job), share: None, actor: None, from: None, to: None, attempt: None, note: None }
    }

    /// A line that tells of a queue or a schedule, which its note names.
    pub(crate) fn of_queue(action: Action) -> Self {
        Self { action, job: None, share: None, actor: None, from: None, to: None, attempt: None, note: None }
    }

    pub(crate) fn by(mut self, caller: &'a Caller) -> Self {
        self.actor = caller.actor();
        self
    }

    pub(crate) fn share(mut self, share: Option<i64>) -> Self {
        self.share = share;
        self
    }

    pub(crate) fn states(mut self, from: impl Into<Option<State>>, to: impl Into<Option<State>>) -> Self {
        self.from = from.into();
        self.to = to.into();
        self
    }

    /// In which attempt it was done. 0: the job has had none.
    pub(crate) fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = (attempt > 0).then_some(attempt);
        self
    }

    pub(crate) fn note(mut self, note: Option<&'a str>) -> Self {
        self.note = note;
        self
    }
}

impl Turn<'_> {
    /// Writes a line.
    pub(crate) fn audit(&self, line: &Line<'_>) -> rusqlite::Result<()> {
        write(self.conn, self.now, line)
    }

    /// Deletes at most `limit` lines from before a moment, and tells how many went.
    pub(crate) fn forget_audit(&self, before: Timestamp, limit: usize) -> rusqlite::Result<usize> {
        self.conn
            .prepare_cached(
                "DELETE FROM jobmill_audit
                 WHERE id IN (SELECT id FROM jobmill_audit WHERE at < :before ORDER BY at LIMIT :limit)",
            )?
            .execute(named_params! { ":before": before, ":limit": limit as i64 })
    }
}

fn write(conn: &Connection, now: Timestamp, line: &Line<'_>) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO jobmill_audit (at, job, user_id, action, actor, from_state, to_state, attempt, note)
         VALUES (:at, :job, (SELECT user_id FROM jobmill_share WHERE id = :share), :action, :actor, :from, :to, :attempt,
             :note)",
    )?
    .execute(named_params! {
        ":at": now, ":job": line.job, ":share": line.share, ":action": line.action.as_str(), ":actor": line.actor,
        ":from": line.from, ":to": line.to, ":attempt": line.attempt, ":note": line.note,
    })
    .map(drop)
}
