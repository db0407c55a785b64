//! Putting jobs into the ledger: in a turn, and in a transaction of the application's own.

use rusqlite::{Connection, ToSql, named_params, params};
use serde_json::{Map, Value};

use crate::model::id::JobId;
use crate::model::job::{Job, Priority, Status};
use crate::model::new_job::NewJob;
use crate::model::time::Timestamp;
use crate::store::row::Claim;
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
trait Ledger<'c> {
    fn conn(&self) -> &'c Connection;
    fn lane(&mut self, new: &NewJob) -> rusqlite::Result<i64>;
    fn next_id(&mut self, now: Timestamp) -> rusqlite::Result<JobId>;
    /// Claims the job of this place as it is written, if that may be: sets its state and owner.
    fn claim(&mut self, place: &mut Place);
    fn insert(&mut self, row: &[&dyn ToSql]) -> rusqlite::Result<()>;
    fn added(&mut self, place: &Place, new: &NewJob) -> rusqlite::Result<()>;
}

impl<'c> Ledger<'c> for Turn<'c> {
    fn conn(&self) -> &'c Connection {
        self.conn
    }

    fn lane(&mut self, new: &NewJob) -> rusqlite::Result<i64> {
        self.book.lanes.find_or_create(self.conn, &new.queue, &new.kind, new.priority)
    }

    fn next_id(&mut self, now: Timestamp) -> rusqlite::Result<JobId> {
        Ok(JobId::after(self.book.last_id, now))
    }

    fn claim(&mut self, place: &mut Place) {
        if place.state != State::Pending {
            return;
        }
        place.owner = self.may_claim_at_once(place.lane);
        match place.owner {
            Some(_) => place.state = State::Running,
            // From here on somebody waits.
            None => self.nothing_waits = false,
        }
    }

    fn insert(&mut self, row: &[&dyn ToSql]) -> rusqlite::Result<()> {
        at_hand(&mut self.hot.insert, self.conn, PLAN_INSERT)?.execute(row).map(drop)
    }

    fn added(&mut self, place: &Place, new: &NewJob) -> rusqlite::Result<()> {
        self.book.last_id = place.id.raw();
        self.book.lanes.count(place.lane, None, Some(place.state));
        if let (Some(lane), Some(run_at)) = (self.book.lanes.get_mut(place.lane), place.run_at) {
            lane.note_delayed(run_at.as_micros());
        }
        match place.expires_at {
            Some(expires_at) if place.owner.is_none() => {
                self.book.next_expiry = self.book.next_expiry.map(|next| next.min(expires_at.as_micros()));
            }
            _ => {}
        }
        if place.owner.is_some() {
            self.out.claims.push(Claim {
                job: running(place, new, self.now),
                lane: place.lane,
                rank: new.priority.rank(),
                fence: 1,
                backoff: new.backoff,
            });
        }
        Ok(())
    }
}

/// The ledger as it stands in the file.
struct File<'c>(&'c Connection);

impl<'c> Ledger<'c> for File<'c> {
    fn conn(&self) -> &'c Connection {
        self.0
    }

    fn lane(&mut self, new: &NewJob) -> rusqlite::Result<i64> {
        lane::find_or_create(self.0, &new.queue, &new.kind, new.priority)
    }

    fn next_id(&mut self, now: Timestamp) -> rusqlite::Result<JobId> {
        Ok(JobId::after(last_id(self.0)?, now))
    }

    fn claim(&mut self, _: &mut Place) {}

    fn insert(&mut self, row: &[&dyn ToSql]) -> rusqlite::Result<()> {
        self.0.prepare_cached(PLAN_INSERT)?.execute(row).map(drop)
    }

    fn added(&mut self, place: &Place, _: &NewJob) -> rusqlite::Result<()> {
        let mut change = [0; State::COUNT];
        change[place.state as usize] = 1;
        lane::add(self.0, place.lane, &change)
    }
}

impl Turn<'_> {
    /// Enqueues a job whose rules have been checked. If a worker is free for it and nobody waits, it is claimed as it
    /// is written.
    pub(crate) fn enqueue(&mut self, new: &NewJob) -> rusqlite::Result<Enqueued> {
        let now = self.now;
        enqueue(self, new, now)
    }
}

/// Enqueues a job whose rules have been checked, in a transaction of the application's own.
pub(crate) fn enqueue_in(conn: &Connection, new: &NewJob, now: Timestamp) -> rusqlite::Result<Enqueued> {
    enqueue(&mut File(conn), new, now)
}

/// Where a new job stands.
struct Place {
    id: JobId,
    lane: i64,
    state: State,
    run_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    /// Who has claimed it already.
    owner: Option<i64>,
}

/// Writes a job's own row. Its parameters go by number, for it is run once for each job.
pub(crate) const PLAN_INSERT: &str =
    "INSERT INTO jobmill_job (id, lane, state, max_attempts, payload, run_at, expires_at,
         timeout_us, backoff, user_id, agent_id, unique_key, tags, metadata, attempt, claim, owner, started_at)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?15, ?16, ?17)";

fn enqueue<'c>(ledger: &mut impl Ledger<'c>, new: &NewJob, now: Timestamp) -> rusqlite::Result<Enqueued> {
    let conn = ledger.conn();
    let lane = ledger.lane(new)?;
    let id = ledger.next_id(now)?;
    let mut scoped_key = None;
    if let Some(unique) = &new.unique {
        let key = unique.scoped_key(&new.queue, &new.kind, new.user_id.as_deref());
        if let Some(holder) = unique::take(conn, unique, &key, id, now)? {
            return Ok(Enqueued::Existing(holder));
        }
        scoped_key = Some(key);
    }
    let run_at = new.run_at.resolve(now);
    let expires_at = new.expires_at.map(|at| at.resolve(now).unwrap_or(now));
    let state = if run_at.is_some() { State::Delayed } else { State::Pending };
    let mut place = Place { id, lane, state, run_at, expires_at, owner: None };
    if expires_at.is_none_or(|expires_at| expires_at > now) {
        ledger.claim(&mut place);
    }
    let payload = payload(new);
    let in_row = payload.len() <= PAYLOAD_IN_ROW_BYTES;
    let claimed = place.owner.is_some();
    ledger.insert(params![
        id,
        lane,
        place.state,
        new.max_attempts,
        in_row.then_some(payload),
        run_at,
        expires_at,
        new.timeout.map(|timeout| timeout.as_micros() as i64),
        new.backoff.as_ref().map(json_text),
        new.user_id,
        new.agent_id,
        scoped_key,
        (!new.tags.is_empty()).then(|| json_text(&new.tags)),
        metadata(new).map(json_text),
        claimed,
        place.owner,
        claimed.then_some(now),
    ])?;
    if !in_row {
        conn.prepare_cached("INSERT INTO jobmill_payload (job, payload) VALUES (:job, :payload)")?
            .execute(named_params! { ":job": id, ":payload": payload })?;
    }
    for tag in &new.tags {
        conn.prepare_cached("INSERT OR IGNORE INTO jobmill_tag (tag, job) VALUES (:tag, :job)")?
            .execute(named_params! { ":tag": tag, ":job": id })?;
    }
    ledger.added(&place, new)?;
    Ok(Enqueued::New(id))
}

/// The record of a job that was claimed as it was written.
fn running(place: &Place, new: &NewJob, now: Timestamp) -> Job {
    Job {
        id: place.id,
        kind: new.kind.to_string(),
        queue: new.queue.to_string(),
        priority: new.priority,
        status: Status::Running,
        attempt: 1,
        max_attempts: new.max_attempts,
        run_at: place.run_at.unwrap_or(place.id.created_at()),
        started_at: Some(now),
        completed_at: None,
        expires_at: place.expires_at,
        timeout: new.timeout,
        cancel_requested_at: None,
        user_id: new.user_id.clone(),
        agent_id: new.agent_id.clone(),
        unique_key: new.unique.as_ref().map(|unique| unique.key.clone()),
        tags: new.tags.clone(),
        metadata: metadata(new).cloned(),
        error: None,
        progress: None,
        ttft: None,
        payload: payload(new).to_owned(),
        result: None,
    }
}

fn payload(new: &NewJob) -> &[u8] {
    new.payload.as_deref().unwrap_or_default()
}

fn metadata(new: &NewJob) -> Option<&Map<String, Value>> {
    new.metadata.as_ref()?.as_ref().ok()
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
