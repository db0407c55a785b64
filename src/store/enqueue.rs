//! Putting jobs into the ledger: in a turn, and in a transaction of the application's own.

use rusqlite::{CachedStatement, Connection, Statement, named_params, params};

use crate::model::id::JobId;
use crate::model::job::Priority;
use crate::model::new_job::NewJob;
use crate::model::time::Timestamp;
use crate::store::row::State;
use crate::store::{Turn, at_hand, lane, last_id, unique};

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
        let enqueued = enqueue(self.conn, self.book, &mut self.hot.insert, new, self.now)?;
        if enqueued.is_new()
            && let Some(expires_at) = new.expires_at.and_then(|at| at.resolve(self.now))
        {
            self.book.next_expiry = self.book.next_expiry.map(|next| next.min(expires_at.as_micros()));
        }
        Ok(enqueued)
    }
}

/// Enqueues a job whose rules have been checked, in a transaction of the application's own.
pub(crate) fn enqueue_in(conn: &Connection, new: &NewJob, now: Timestamp) -> rusqlite::Result<Enqueued> {
    enqueue(conn, &mut File, &mut None, new, now)
}

fn enqueue<'c>(
    conn: &'c Connection,
    ledger: &mut impl Ledger,
    statement: &mut Option<CachedStatement<'c>>,
    new: &NewJob,
    now: Timestamp,
) -> rusqlite::Result<Enqueued> {
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
    let place = Place { id, lane, state, run_at };
    insert(at_hand(statement, conn, PLAN_INSERT)?, &place, new, scoped_key.as_deref(), now)?;
    insert_beside(conn, id, new)?;
    ledger.added(conn, lane, id, state, run_at)?;
    Ok(Enqueued::New(id))
}

/// Where a new job stands.
struct Place {
    id: JobId,
    lane: i64,
    state: State,
    run_at: Option<Timestamp>,
}

/// Writes a job's own row. Its parameters go by number, for it is run once for each job.
const PLAN_INSERT: &str = "INSERT INTO jobmill_job (id, lane, state, max_attempts, payload, run_at, expires_at,
         timeout_us, backoff, user_id, agent_id, unique_key, tags, metadata)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";

fn insert(
    statement: &mut Statement<'_>,
    place: &Place,
    new: &NewJob,
    scoped_key: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let parameters = params![
        place.id,
        place.lane,
        place.state,
        new.max_attempts,
        payload_in_row(new),
        place.run_at,
        new.expires_at.map(|at| at.resolve(now).unwrap_or(now)),
        new.timeout.map(|timeout| timeout.as_micros() as i64),
        new.backoff.as_ref().map(json_text),
        new.user_id,
        new.agent_id,
        scoped_key,
        (!new.tags.is_empty()).then(|| json_text(&new.tags)),
        new.metadata.as_ref().and_then(|metadata| metadata.as_ref().ok()).map(json_text),
    ];
    statement.execute(parameters).map(drop)
}

/// Writes what stands in tables of its own.
fn insert_beside(conn: &Connection, id: JobId, new: &NewJob) -> rusqlite::Result<()> {
    if payload_in_row(new).is_none() {
        conn.prepare_cached("INSERT INTO jobmill_payload (job, payload) VALUES (:job, :payload)")?
            .execute(named_params! { ":job": id, ":payload": payload(new) })?;
    }
    for tag in &new.tags {
        conn.prepare_cached("INSERT OR IGNORE INTO jobmill_tag (tag, job) VALUES (:tag, :job)")?
            .execute(named_params! { ":tag": tag, ":job": id })?;
    }
    Ok(())
}

fn payload(new: &NewJob) -> &[u8] {
    new.payload.as_deref().unwrap_or_default()
}

fn payload_in_row(new: &NewJob) -> Option<&[u8]> {
    Some(payload(new)).filter(|payload| payload.len() <= PAYLOAD_IN_ROW_BYTES)
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
