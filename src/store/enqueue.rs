//! Putting jobs into the ledger: in a turn, and in a transaction of the application's own.

use rusqlite::{Connection, named_params};

use crate::model::id::JobId;
use crate::model::job::Priority;
use crate::model::new_job::NewJob;
use crate::model::time::Timestamp;
use crate::store::row::State;
use crate::store::{Turn, lane, last_id, unique};

/// Payloads longer than this have a table of their own, so that a change of status does not write them anew. A page
/// has 4096 bytes.
const PAYLOAD_IN_ROW_BYTES: usize = 3000;

/// What became of a job that was to be enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enqueued {
    /// It is in the ledger, under this id.
    New(JobId),
    /// Nothing was written, for this job holds its unique key.
    Existing(JobId),
}

impl Enqueued {
    /// The id of the job that stands in the ledger.
    pub fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Existing(id) => id,
        }
    }

    /// Whether the job is a new one.
    pub fn is_new(self) -> bool {
        matches!(self, Self::New(_))
    }
}

/// Where lanes, ids and counts come from: a turn has them in memory, a transaction of the application's reads them.
trait Ledger {
    fn lane(&mut self, conn: &Connection, new: &NewJob) -> rusqlite::Result<i64>;
    fn next_id(&mut self, conn: &Connection, now: Timestamp) -> rusqlite::Result<JobId>;
    fn added(
        &mut self,
        conn: &Connection,
        lane: i64,
        id: JobId,
        state: State,
        run_at: Option<Timestamp>,
    ) -> rusqlite::Result<()>;
}

impl Ledger for super::Book {
    fn lane(&mut self, conn: &Connection, new: &NewJob) -> rusqlite::Result<i64> {
        self.lanes.find_or_create(conn, &new.queue, &new.kind, new.priority)
    }

    fn next_id(&mut self, _: &Connection, now: Timestamp) -> rusqlite::Result<JobId> {
        Ok(JobId::after(self.last_id, now))
    }

    fn added(
        &mut self,
        _: &Connection,
        lane: i64,
        id: JobId,
        state: State,
        run_at: Option<Timestamp>,
    ) -> rusqlite::Result<()> {
        self.last_id = id.raw();
        self.lanes.count(lane, None, Some(state));
        if let (Some(lane), Some(run_at)) = (self.lanes.get_mut(lane), run_at) {
            lane.note_delayed(run_at.as_micros());
        }
        Ok(())
    }
}

/// The ledger as it stands in the file.
struct File;

impl Ledger for File {
    fn lane(&mut self, conn: &Connection, new: &NewJob) -> rusqlite::Result<i64> {
        lane::find_or_create(conn, &new.queue, &new.kind, new.priority)
    }

    fn next_id(&mut self, conn: &Connection, now: Timestamp) -> rusqlite::Result<JobId> {
        Ok(JobId::after(last_id(conn)?, now))
    }

    fn added(
        &mut self,
        conn: &Connection,
        lane: i64,
        _: JobId,
        state: State,
        _: Option<Timestamp>,
    ) -> rusqlite::Result<()> {
        let mut change = [0; State::COUNT];
        change[state as usize] = 1;
        lane::add(conn, lane, &change)
    }
}

impl Turn<'_> {
    /// Enqueues a job whose rules have been checked.
    pub(crate) fn enqueue(&mut self, new: &NewJob) -> rusqlite::Result<Enqueued> {
        let enqueued = enqueue(self.conn, self.book, new, self.now)?;
        if enqueued.is_new()
            && let Some(expires_at) = new.expires_at.map(|at| at.resolve(self.now).unwrap_or(self.now))
        {
            self.book.next_expiry = self.book.next_expiry.map(|next| next.min(expires_at.as_micros()));
        }
        Ok(enqueued)
    }
}

/// Enqueues a job whose rules have been checked, in a transaction of the application's own.
pub(crate) fn enqueue_in(conn: &Connection, new: &NewJob, now: Timestamp) -> rusqlite::Result<Enqueued> {
    enqueue(conn, &mut File, new, now)
}

fn enqueue(conn: &Connection, ledger: &mut impl Ledger, new: &NewJob, now: Timestamp) -> rusqlite::Result<Enqueued> {
    let lane = ledger.lane(conn, new)?;
    let id = ledger.next_id(conn, now)?;
    let scoped_key = match &new.unique {
        Some(unique) => {
            let key = unique.scoped_key(&new.queue, &new.kind, new.user_id.as_deref());
            if let Some(holder) = unique::take(conn, unique, &key, id, now)? {
                return Ok(Enqueued::Existing(holder));
            }
            Some(key)
        }
        None => None,
    };
    let run_at = new.run_at.resolve(now);
    let state = if run_at.is_some() { State::Delayed } else { State::Pending };
    insert(conn, id, lane, state, new, scoped_key.as_deref(), now)?;
    ledger.added(conn, lane, id, state, run_at)?;
    Ok(Enqueued::New(id))
}

fn insert(
    conn: &Connection,
    id: JobId,
    lane: i64,
    state: State,
    new: &NewJob,
    scoped_key: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let payload = new.payload.as_deref().unwrap_or_default();
    let in_row = payload.len() <= PAYLOAD_IN_ROW_BYTES;
    conn.prepare_cached(
        "INSERT INTO jobmill_job (id, lane, state, max_attempts, run_at, expires_at, timeout_us, backoff, user_id,
             agent_id, unique_key, tags, metadata, payload)
         VALUES (:id, :lane, :state, :max_attempts, :run_at, :expires_at, :timeout_us, :backoff, :user_id,
             :agent_id, :unique_key, :tags, :metadata, :payload)",
    )?
    .execute(named_params! {
        ":id": id,
        ":lane": lane,
        ":state": state,
        ":max_attempts": new.max_attempts,
        ":run_at": new.run_at.resolve(now),
        ":expires_at": new.expires_at.map(|at| at.resolve(now).unwrap_or(now)),
        ":timeout_us": new.timeout.map(|timeout| timeout.as_micros() as i64),
        ":backoff": new.backoff.as_ref().map(json_text),
        ":user_id": new.user_id,
        ":agent_id": new.agent_id,
        ":unique_key": scoped_key,
        ":tags": (!new.tags.is_empty()).then(|| json_text(&new.tags)),
        ":metadata": new.metadata.as_ref().and_then(|metadata| metadata.as_ref().ok()).map(json_text),
        ":payload": in_row.then_some(payload),
    })?;
    if !in_row {
        conn.prepare_cached("INSERT INTO jobmill_payload (job, payload) VALUES (:job, :payload)")?
            .execute(named_params! { ":job": id, ":payload": payload })?;
    }
    for tag in &new.tags {
        conn.prepare_cached("INSERT OR IGNORE INTO jobmill_tag (tag, job) VALUES (:tag, :job)")?
            .execute(named_params! { ":tag": tag, ":job": id })?;
    }
    Ok(())
}

/// JSON of a value that has been checked to have one.
fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl rusqlite::ToSql for Priority {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok((self.rank() as i64).into())
    }
}
