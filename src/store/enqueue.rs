//! Putting jobs into the ledger: in a turn, and in a transaction of the application's own.

use rusqlite::{Connection, OptionalExtension, ToSql, named_params, params};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::event::Cause;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::{Job, Status};
use crate::model::new_job::{NewJob, When, source_id};
use crate::model::time::Timestamp;
use crate::model::unique::Unique;
use crate::store::gate::Taken;
use crate::store::place::{LaneKey, Place};
use crate::store::row::{Claim, RunAt, State};
use crate::store::step::Step;
use crate::store::{Turn, at_hand, callback, detail, edge, flow, gate, lane, last_id, line, share, tally, unique};

/// Payloads longer than this have a table of their own, so that a change of status does not write them anew. A page
/// has 4096 bytes.
pub(crate) const PAYLOAD_IN_ROW_BYTES: usize = 3000;

/// What became of a job that was to be enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "id")]
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
pub(crate) trait Ledger<'c> {
    fn conn(&self) -> &'c Connection;
    fn place(&mut self, new: &NewJob) -> rusqlite::Result<Place>;
    fn next_id(&mut self, new: &NewJob, now: Timestamp) -> rusqlite::Result<JobId>;
    /// Sees to what bounds the job of this row: its gates are noted, and if one is closed, it is held there.
    fn bound(&mut self, row: &mut NewRow, new: &NewJob) -> rusqlite::Result<()>;
    /// Claims the job of this row as it is written, if that may be: sets its state and owner.
    fn claim(&mut self, row: &mut NewRow, new: &NewJob);
    fn insert(&mut self, values: &[&dyn ToSql]) -> rusqlite::Result<()>;
    fn added(&mut self, row: &NewRow, new: &NewJob) -> rusqlite::Result<()>;
    /// Takes note that what waits may have nothing to wait for.
    fn has_needs(&mut self);
}

impl<'c> Ledger<'c> for Turn<'c> {
    fn conn(&self) -> &'c Connection {
        self.conn
    }

    fn place(&mut self, new: &NewJob) -> rusqlite::Result<Place> {
        let lane = self.book.lanes.find_or_create(self.conn, LaneKey::of(new))?;
        let share = match &new.user_id {
            Some(user) => Some(self.book.shares.find_or_create(self.conn, lane, user)?),
            None => None,
        };
        Ok(Place { lane, share, flow: new.flow, limited: !new.limits.is_empty() })
    }

    fn next_id(&mut self, new: &NewJob, now: Timestamp) -> rusqlite::Result<JobId> {
        Ok(JobId::after(self.book.last_id, now, new.job_type))
    }

    fn bound(&mut self, row: &mut NewRow, new: &NewJob) -> rusqlite::Result<()> {
        let uses = self.gates_of(&new.limits)?;
        if row.state == State::Pending {
            row.line = self.line_up(row.id, &uses, row.place.lane)?;
            if row.line.is_some() {
                row.state = State::Held;
            } else {
                row.others_wait = self.others_wait(&uses)?;
            }
        }
        row.uses = uses;
        Ok(())
    }

    fn claim(&mut self, row: &mut NewRow, new: &NewJob) {
        if row.state != State::Pending {
            return;
        }
        row.owner = if row.others_wait { None } else { self.may_claim_at_once(row.place.lane, new) };
        match row.owner {
            Some(_) => row.state = State::Running,
            // From here on somebody waits.
            None if !self.is_apart(row.place.lane) => self.nothing_waits = false,
            None => {}
        }
    }

    fn insert(&mut self, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
        at_hand(&mut self.hot.insert, self.conn, PLAN_INSERT)?.execute(values).map(drop)
    }

    fn added(&mut self, row: &NewRow, new: &NewJob) -> rusqlite::Result<()> {
        self.book.last_id = row.id.raw();
        if let (Some(lane), Some(run_at)) = (self.book.lanes.get_mut(row.place.lane), row.run_at) {
            lane.note_delayed(run_at.as_micros());
        }
        match row.expires_at {
            Some(expires_at) if row.owner.is_none() => {
                self.book.next_expiry = self.book.next_expiry.map(|next| next.min(expires_at.as_micros()));
            }
            _ => {}
        }
        let entered = if row.owner.is_some() { State::Pending } else { row.state };
        let step = Step {
            job: row.id,
            place: row.place,
            from: None,
            to: Some(entered),
            cause: Cause::Enqueued,
            attempt: 0,
            waited: None,
            ran: None,
        };
        if entered.status().is_terminal() {
            return self.last_step(step);
        }
        self.step(step)?;
        if row.owner.is_some() {
            let is_fair = self.demand.as_ref().is_some_and(|demand| demand.is_fair_by_user());
            if is_fair && !self.is_apart(row.place.lane) {
                self.book.turns.served(new.user_id.as_deref().unwrap_or_default());
            }
            self.claimed(row.id, row.place, State::Pending, 1, row.id.created_at())?;
            let workflow = match row.place.flow {
                Some(flow) => flow::workflow_of(self.conn, flow)?,
                None => None,
            };
            self.out.claims.push(Claim {
                job: running(row, new, workflow, self.now),
                place: row.place,
                rank: new.priority.rank(),
                fence: 1,
                backoff: new.backoff,
                weight: new.weight,
                cost: new.cost,
            });
        }
        Ok(())
    }

    fn has_needs(&mut self) {
        self.book.flows.has_work = true;
    }
}

/// The ledger as it stands in the file.
struct File<'c> {
    conn: &'c Connection,
    /// Whether what is done is counted for the rates.
    counts: bool,
}

impl<'c> Ledger<'c> for File<'c> {
    fn conn(&self) -> &'c Connection {
        self.conn
    }

    fn place(&mut self, new: &NewJob) -> rusqlite::Result<Place> {
        let lane = lane::find_or_create(self.conn, LaneKey::of(new))?;
        let share = match &new.user_id {
            Some(user) => Some(share::find_or_create(self.conn, lane, user)?),
            None => None,
        };
        Ok(Place { lane, share, flow: new.flow, limited: !new.limits.is_empty() })
    }

    fn next_id(&mut self, new: &NewJob, now: Timestamp) -> rusqlite::Result<JobId> {
        Ok(JobId::after(last_id(self.conn)?, now, new.job_type))
    }

    fn bound(&mut self, row: &mut NewRow, new: &NewJob) -> rusqlite::Result<()> {
        let uses = gate::gates_in(self.conn, &new.limits)?;
        let mut held_at = None;
        if row.state == State::Pending {
            // Whether it may go, the next turn of an engine finds out.
            let first = uses.first().map_or(0, |(gate, _)| *gate);
            let joined = line::join(self.conn, &uses, row.place.lane, first, row.id.raw())?;
            (row.state, row.line, held_at) = (State::Held, Some(joined.line), Some(joined.gate));
        }
        gate::enter_in(self.conn, row.place.lane, &uses, held_at, row.now)?;
        row.uses = uses;
        Ok(())
    }

    fn claim(&mut self, _: &mut NewRow, _: &NewJob) {}

    fn insert(&mut self, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
        self.conn.prepare_cached(PLAN_INSERT)?.execute(values).map(drop)
    }

    fn added(&mut self, row: &NewRow, _: &NewJob) -> rusqlite::Result<()> {
        count_in(self.conn, row.place, None, row.state, row.now)?;
        if self.counts {
            tally::leave(self.conn, row.place.lane, &tally::enqueued(row.state.status()))?;
        }
        if row.state.status().is_terminal()
            && let Some(delivery) = callback::due(self.conn, row.id)?
        {
            enqueue_in(self.conn, &delivery.new_job(), row.now, self.counts)?;
        }
        Ok(())
    }

    fn has_needs(&mut self) {}
}

/// Counts a job that came into a state in a transaction of the application's own.
pub(crate) fn count_in(
    conn: &Connection,
    place: Place,
    from: Option<State>,
    to: State,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let mut change = [0; State::COUNT];
    if let Some(from) = from {
        change[from as usize] -= 1;
    }
    change[to as usize] += 1;
    lane::add(conn, place.lane, &change)?;
    if let Some(id) = place.share {
        lane::add_to_share(conn, id, &change)?;
    }
    match place.flow {
        Some(id) => flow::add(conn, id, &change, now),
        None => Ok(()),
    }
}

impl Turn<'_> {
    /// Whether the jobs of this lane have workers of their own.
    fn is_apart(&self, lane: i64) -> bool {
        self.demand.as_ref().zip(self.book.lanes.get(lane)).is_some_and(|(demand, lane)| demand.is_apart(lane))
    }

    /// Enqueues a job whose rules have been checked. If a worker is free for it and nobody waits, it is claimed as it
    /// is written.
    pub(crate) fn enqueue(&mut self, new: &NewJob) -> rusqlite::Result<Enqueued> {
        let now = self.now;
        enqueue(self, new, now)
    }

    /// The same, and if another job stands in for it, that one runs no later than it would.
    pub(crate) fn enqueue_no_later(&mut self, new: &NewJob) -> rusqlite::Result<()> {
        match self.enqueue(new)? {
            Enqueued::New(_) => Ok(()),
            Enqueued::Existing(holder) => {
                let at = new.run_at.resolve(self.now).unwrap_or(self.now);
                self.hasten(holder, at).map(drop)
            }
        }
    }

    /// Lets a job that waits for its time run at this moment, if that comes first. False: it does not wait for so long.
    pub(crate) fn hasten(&mut self, id: JobId, at: Timestamp) -> rusqlite::Result<bool> {
        let lane: Option<i64> = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_job SET run_at = :at WHERE id = :id AND state = 7 AND run_at > :at RETURNING lane",
            )?
            .query_row(named_params! { ":id": id, ":at": at }, |row| row.get(0))
            .optional()?;
        if let Some(lane) = lane.and_then(|lane| self.book.lanes.get_mut(lane)) {
            lane.note_delayed(at.as_micros());
        }
        Ok(lane.is_some())
    }
}

/// Enqueues a job whose rules have been checked, in a transaction of the application's own. `counts`: for the rates, too.
pub(crate) fn enqueue_in(conn: &Connection, new: &NewJob, now: Timestamp, counts: bool) -> rusqlite::Result<Enqueued> {
    enqueue(&mut File { conn, counts }, new, now)
}

/// What a new job's row will hold that its options do not tell.
pub(crate) struct NewRow {
    id: JobId,
    place: Place,
    state: State,
    now: Timestamp,
    run_at: Option<Timestamp>,
    /// What its row says of that.
    stored_run_at: RunAt,
    expires_at: Option<Timestamp>,
    /// Who has claimed it already.
    owner: Option<i64>,
    /// Its gates with what it takes of each.
    uses: Vec<Taken>,
    /// The line in which it stands, if it is held.
    line: Option<i64>,
    /// One of its gates holds others, which may go before it.
    others_wait: bool,
}

/// Writes a job's own row. Its parameters go by number, for it is run once for each job.
pub(crate) const PLAN_INSERT: &str =
    "INSERT INTO jobmill_job (id, lane, state, max_attempts, payload, run_at, expires_at,
         timeout_us, backoff, share, agent_id, unique_key, tags, metadata, attempt, claim, owner, started_at,
         completed_at, source_id, stop_reason, callback_url, detail, flow, limits, line, weight, cost, schedule)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22,
         ?23, ?24, ?25, ?26, ?27, ?28)";

fn enqueue<'c>(ledger: &mut impl Ledger<'c>, new: &NewJob, now: Timestamp) -> rusqlite::Result<Enqueued> {
    let conn = ledger.conn();
    let place = ledger.place(new)?;
    let id = ledger.next_id(new, now)?;
    let mut scoped_key = None;
    if let Some(unique) = &new.unique {
        let kind = new.kind.as_deref().unwrap_or_default();
        let key = unique.scoped_key(&new.queue, kind, new.user_id.as_deref());
        if let Some(holder) = unique::take(conn, unique, &key, id, now)? {
            return Ok(Enqueued::Existing(holder));
        }
        scoped_key = Some(key);
    }
    let run_at = new.run_at.resolve(now);
    let expires_at = new.expires_at.map(|at| at.resolve(now).unwrap_or(now));
    let state = first_state(new, run_at);
    let stored_run_at = match (new.run_at, run_at) {
        // What follows others is delayed from their end on.
        (When::After(delay), Some(_)) if waits_for_others(new, state) => RunAt::After(delay),
        (_, Some(at)) => RunAt::At(at),
        (_, None) => RunAt::AtOnce,
    };
    let (owner, uses, line) = (None, Vec::new(), None);
    let others_wait = false;
    let mut row = NewRow { id, place, state, now, run_at, stored_run_at, expires_at, owner, uses, line, others_wait };
    if place.limited {
        ledger.bound(&mut row, new)?;
    }
    if expires_at.is_none_or(|expires_at| expires_at > now) {
        ledger.claim(&mut row, new);
    }
    let payload = payload(new);
    let in_row = payload.len() <= PAYLOAD_IN_ROW_BYTES;
    let claimed = row.owner.is_some();
    let metadata = metadata(new);
    let detail = detail::bits(new);
    ledger.insert(params![
        id,
        place.lane,
        row.state,
        new.max_attempts,
        in_row.then_some(payload),
        row.stored_run_at,
        expires_at,
        new.timeout.map(|timeout| timeout.as_micros() as i64),
        new.backoff.as_ref().map(json_text),
        place.share,
        new.agent_id,
        scoped_key,
        (!new.tags.is_empty()).then(|| json_text(&new.tags)),
        metadata.map(json_text),
        claimed,
        row.owner,
        (row.state == State::Running).then_some(now),
        row.state.status().is_terminal().then_some(now),
        metadata.and_then(source_id),
        new.stop_reason.as_ref().map(|reason| reason.as_str()),
        new.callback_url,
        (detail > 0).then_some(detail),
        place.flow,
        place.limited.then(|| gate::text(&row.uses)),
        row.line,
        (new.weight != 1).then_some(new.weight),
        (new.cost != 1).then_some(new.cost),
        new.unique.as_ref().and_then(Unique::of_tick).map(|tick| tick.schedule),
    ])?;
    if detail & detail::HAS_ROW > 0 {
        detail::insert(conn, id, new)?;
    }
    if !in_row {
        conn.prepare_cached("INSERT INTO jobmill_payload (job, payload) VALUES (:job, :payload)")?
            .execute(named_params! { ":job": id, ":payload": payload })?;
    }
    for tag in &new.tags {
        conn.prepare_cached("INSERT OR IGNORE INTO jobmill_tag (tag, job) VALUES (:tag, :job)")?
            .execute(named_params! { ":tag": tag, ":job": id })?;
    }
    ledger.added(&row, new)?;
    if !new.needs.is_empty() {
        edge::bind(conn, id, new)?;
        ledger.has_needs();
    }
    Ok(Enqueued::New(id))
}

/// The state in which a job enters the ledger, if it is not claimed in the same breath.
fn first_state(new: &NewJob, run_at: Option<Timestamp>) -> State {
    let pending = if run_at.is_some() { State::Delayed } else { State::Pending };
    match (&new.kind, new.status) {
        // Of those with a kind these begin so: a batch, which waits for its items, and what follows others.
        _ if !new.needs.is_empty() => State::Created,
        (Some(_), Some(Status::Created)) | (None, None | Some(Status::Created)) => State::Created,
        (Some(_), _) | (None, Some(Status::Pending)) => pending,
        (None, Some(Status::Running)) => State::Running,
        (None, Some(Status::Completed)) => State::Completed,
        (None, Some(Status::Failed)) => State::Failed,
        (None, Some(Status::Cancelled)) => State::Cancelled,
        (None, Some(Status::Expired)) => State::Expired,
    }
}

/// Whether a job is to be admitted when others have ended.
fn waits_for_others(new: &NewJob, state: State) -> bool {
    state == State::Created && new.kind.is_some() && (new.flow.is_some() || !new.needs.is_empty())
}

/// The record of a job that was claimed as it was written.
fn running(row: &NewRow, new: &NewJob, workflow: Option<i64>, now: Timestamp) -> Job {
    let tick = new.unique.as_ref().and_then(Unique::of_tick);
    Job {
        id: row.id,
        job_type: new.job_type,
        kind: new.kind.as_ref().map(ToString::to_string),
        queue: new.queue.to_string(),
        priority: new.priority,
        status: Status::Running,
        failure_reason: None,
        stop_reason: new.stop_reason.clone(),
        background: new.background,
        attempt: 1,
        max_attempts: new.max_attempts,
        run_at: row.run_at.unwrap_or(row.id.created_at()),
        started_at: Some(now),
        completed_at: None,
        expires_at: row.expires_at,
        timeout: new.timeout,
        cancel_requested_at: None,
        updated_at: now.max(row.id.created_at()),
        created_by: new.created_by.clone(),
        updated_by: None,
        user_id: new.user_id.clone(),
        organization_id: new.organization_id.clone(),
        agent_id: new.agent_id.clone(),
        unique_key: new.unique.as_ref().and_then(|unique| unique.own_key()).map(str::to_owned),
        workflow_id: workflow.map(WorkflowId::from_raw),
        schedule: tick.map(|tick| tick.schedule),
        scheduled_for: tick.map(|tick| tick.at),
        tags: new.tags.clone(),
        metadata: metadata(new).cloned(),
        request_config: request_config(new).cloned(),
        callback_url: new.callback_url.clone(),
        callback_sent_at: None,
        callback_status_code: None,
        callback_error: None,
        error: None,
        progress: None,
        ttft: None,
        total_duration: None,
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

fn request_config(new: &NewJob) -> Option<&Value> {
    new.request_config.as_ref()?.as_ref().ok()
}

/// JSON of a value that has been checked to have one.
fn json_text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
