//! Choosing the next jobs and marking them as ours.

use std::collections::VecDeque;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::id::JobId;
use crate::model::job::{Job, Priority};
use crate::model::retry::Backoff;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::lane::{Demand, NextDelayed};
use crate::store::row::{self, JOB_COLUMNS, LaneName, State, job_columns};

/// How many heads of a lane are read at a time when several lanes compete.
const HEADS: usize = 16;

/// A job that this process has claimed, with what its end needs.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) job: Job,
    pub(crate) lane: i64,
    /// The rank of its priority, bettered by its waiting.
    pub(crate) rank: usize,
    /// The fencing token: how often the job had been claimed, this claim included.
    pub(crate) fence: i64,
    pub(crate) backoff: Option<Backoff>,
}

/// The jobs of one lane that are ready, in their order.
struct Stream {
    lane: i64,
    /// Whether these are the lane's delayed jobs, ordered by `run_at`, or the others, ordered by id.
    delayed: bool,
    heads: VecDeque<(i64, JobId)>,
    /// The position behind which the next heads are read.
    read_to: (i64, JobId),
    exhausted: bool,
}

impl Stream {
    fn new(lane: i64, delayed: bool) -> Self {
        Self { lane, delayed, heads: VecDeque::new(), read_to: (0, JobId::from_raw(0)), exhausted: false }
    }

    /// The next job, read from the file if need be.
    fn head(&mut self, conn: &Connection, now: Timestamp, chunk: usize) -> rusqlite::Result<Option<(i64, JobId)>> {
        if self.heads.is_empty() && !self.exhausted {
            self.read(conn, now, chunk)?;
        }
        Ok(self.heads.front().copied())
    }

    fn read(&mut self, conn: &Connection, now: Timestamp, chunk: usize) -> rusqlite::Result<()> {
        let (run_at, id) = self.read_to;
        if self.delayed {
            let mut statement = conn.prepare_cached(PLAN_DELAYED)?;
            let mut rows = statement.query(named_params! {
                ":lane": self.lane, ":run_at": run_at, ":id": id, ":now": now, ":chunk": chunk as i64,
            })?;
            while let Some(row) = rows.next()? {
                self.heads.push_back((row.get(0)?, row.get(1)?));
            }
        } else {
            let mut statement = conn.prepare_cached(PLAN_PENDING)?;
            let mut rows = statement.query(named_params! { ":lane": self.lane, ":id": id, ":chunk": chunk as i64 })?;
            while let Some(row) = rows.next()? {
                let id: JobId = row.get(0)?;
                self.heads.push_back((id.created_at().as_micros(), id));
            }
        }
        self.exhausted = self.heads.len() < chunk;
        self.read_to = self.heads.back().copied().unwrap_or(self.read_to);
        Ok(())
    }
}

/// Reads the next jobs of a lane that may run since they were created.
pub(crate) const PLAN_PENDING: &str =
    "SELECT id FROM jobmill_job WHERE lane = :lane AND state = 1 AND id > :id ORDER BY id LIMIT :chunk";

/// Reads the next jobs of a lane whose own time has come.
pub(crate) const PLAN_DELAYED: &str = "SELECT run_at, id FROM jobmill_job
     WHERE lane = :lane AND state = 7 AND run_at <= :now AND (run_at, id) > (:run_at, :id)
     ORDER BY run_at, id LIMIT :chunk";

/// Reads when the first delayed job of a lane is due.
pub(crate) const PLAN_NEXT_DELAYED: &str =
    "SELECT run_at FROM jobmill_job WHERE lane = :lane AND state = 7 ORDER BY run_at LIMIT 1";

/// Marks one job as ours.
pub(crate) const PLAN_CLAIM: &str = concat!(
    "UPDATE jobmill_job SET state = 2, attempt = attempt + 1, claim = claim + 1, owner = :owner, started_at = :now
     WHERE id = :id AND state IN (1, 7) AND (expires_at IS NULL OR expires_at > :now)
     RETURNING ",
    job_columns!(),
    ", claim, backoff"
);

/// Reads the jobs that time has overtaken.
pub(crate) const PLAN_EXPIRED: &str = "SELECT id, lane, state FROM jobmill_job
     WHERE expires_at <= :now AND expires_at IS NOT NULL AND state IN (0, 1, 7) ORDER BY expires_at LIMIT :limit";

impl Turn<'_> {
    /// Claims the best jobs that the workers want, at most `limit`, in the order in which they should start.
    pub(crate) fn claim(&mut self, demand: &mut dyn Demand, limit: usize) -> rusqlite::Result<Vec<Claim>> {
        let Some(owner) = self.book.owner else {
            return Ok(Vec::new());
        };
        let mut streams = self.ready_streams(demand)?;
        let mut claims = Vec::new();
        let ageing = demand.ageing();
        while claims.len() < limit && !streams.is_empty() {
            let chunk = if streams.len() == 1 { limit - claims.len() } else { HEADS };
            let mut best: Option<((usize, i64, JobId), usize)> = None;
            let mut at = 0;
            while at < streams.len() {
                let stream = &mut streams[at];
                let lane = self.book.lanes.get(stream.lane).filter(|lane| demand.room(lane) > 0);
                let head = match lane {
                    Some(lane) => stream.head(self.conn, self.now, chunk)?.map(|head| (lane.priority, head)),
                    None => None,
                };
                let Some((priority, (run_at, id))) = head else {
                    streams.swap_remove(at);
                    continue;
                };
                let key = (aged_rank(priority, run_at, self.now, ageing), run_at, id);
                if best.is_none_or(|(best_key, _)| key < best_key) {
                    best = Some((key, at));
                }
                at += 1;
            }
            let Some(((rank, _, id), at)) = best else { break };
            streams[at].heads.pop_front();
            let (lane, delayed) = (streams[at].lane, streams[at].delayed);
            let from = if delayed { State::Delayed } else { State::Pending };
            if let Some(claim) = self.claim_one(owner, lane, from, id, rank)? {
                if let Some(lane) = self.book.lanes.get(lane) {
                    demand.took(lane);
                }
                claims.push(claim);
            }
        }
        self.note_next_delayed()?;
        Ok(claims)
    }

    /// The streams that may hold a job for us. What is known to be empty or in the future costs no statement.
    fn ready_streams(&mut self, demand: &dyn Demand) -> rusqlite::Result<Vec<Stream>> {
        let mut streams = Vec::new();
        for lane in self.book.lanes.iter_mut().filter(|lane| lane.served && !lane.paused) {
            if lane.count(State::Delayed) > 0 && lane.next_delayed == NextDelayed::Unknown {
                lane.next_delayed = next_delayed(self.conn, lane.id)?;
            }
            if demand.room(lane) == 0 {
                continue;
            }
            if lane.count(State::Pending) > 0 {
                streams.push(Stream::new(lane.id, false));
            }
            if lane.count(State::Delayed) > 0 && lane.next_delayed <= NextDelayed::NotBefore(self.now.as_micros()) {
                streams.push(Stream::new(lane.id, true));
            }
        }
        Ok(streams)
    }

    /// Learns anew when the lanes that were due come due again.
    fn note_next_delayed(&mut self) -> rusqlite::Result<()> {
        for lane in self.book.lanes.iter_mut().filter(|lane| lane.served && !lane.paused) {
            let due = lane.next_delayed <= NextDelayed::NotBefore(self.now.as_micros());
            if lane.count(State::Delayed) == 0 {
                lane.next_delayed = NextDelayed::NotBefore(i64::MAX);
            } else if due {
                lane.next_delayed = next_delayed(self.conn, lane.id)?;
            }
        }
        Ok(())
    }

    fn claim_one(
        &mut self,
        owner: i64,
        lane: i64,
        from: State,
        id: JobId,
        rank: usize,
    ) -> rusqlite::Result<Option<Claim>> {
        let Some(known) = self.book.lanes.get(lane) else {
            return Ok(None);
        };
        let claimed = self
            .conn
            .prepare_cached(PLAN_CLAIM)?
            .query_row(named_params! { ":id": id, ":owner": owner, ":now": self.now }, |row| {
                let name = LaneName { queue: &known.queue, kind: &known.kind, priority: known.priority };
                let (job, aside) = row::job(row, name)?;
                let claim =
                    Claim { job, lane, rank, fence: row.get(JOB_COLUMNS)?, backoff: row::json(row, JOB_COLUMNS + 1)? };
                Ok((claim, aside))
            })
            .optional()?;
        let Some((mut claim, aside)) = claimed else {
            self.expire_one(id, lane, from)?;
            return Ok(None);
        };
        if aside {
            claim.job.payload = payload_aside(self.conn, id)?;
        }
        self.book.lanes.count(lane, Some(from), Some(State::Running));
        Ok(Some(claim))
    }

    /// Ends jobs whose `expires_at` has passed, at most `limit`, and tells whether there may be more.
    pub(crate) fn expire(&mut self, limit: usize) -> rusqlite::Result<bool> {
        if self.book.next_expiry.is_some_and(|next| next > self.now.as_micros()) {
            return Ok(false);
        }
        let mut statement = self.conn.prepare_cached(PLAN_EXPIRED)?;
        let due: Vec<(JobId, i64, State)> = statement
            .query_map(named_params! { ":now": self.now, ":limit": limit as i64 }, |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for (id, lane, state) in &due {
            self.expire_one(*id, *lane, *state)?;
        }
        let more = due.len() == limit;
        let next: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT expires_at FROM jobmill_job WHERE expires_at IS NOT NULL AND state IN (0, 1, 7)
                 ORDER BY expires_at LIMIT 1",
            )?
            .query_row([], |row| row.get(0))
            .optional()?;
        self.book.next_expiry = Some(next.unwrap_or(i64::MAX));
        Ok(more)
    }

    fn expire_one(&mut self, id: JobId, lane: i64, from: State) -> rusqlite::Result<()> {
        let expired = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = 6, completed_at = :now WHERE id = :id AND state IN (0, 1, 7)",
            )?
            .execute(named_params! { ":id": id, ":now": self.now })?;
        if expired == 1 {
            self.book.lanes.count(lane, Some(from), Some(State::Expired));
            self.out.ended.push(id);
        }
        Ok(())
    }
}

fn next_delayed(conn: &Connection, lane: i64) -> rusqlite::Result<NextDelayed> {
    let next = conn
        .prepare_cached(PLAN_NEXT_DELAYED)?
        .query_row(named_params! { ":lane": lane }, |row| row.get(0))
        .optional()?;
    Ok(NextDelayed::NotBefore(next.unwrap_or(i64::MAX)))
}

/// A payload that was too long for its job's row.
pub(crate) fn payload_aside(conn: &Connection, id: JobId) -> rusqlite::Result<Vec<u8>> {
    let found = conn
        .prepare_cached("SELECT payload FROM jobmill_payload WHERE job = :job")?
        .query_row(named_params! { ":job": id }, |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// The rank of a job that has been ready since `run_at`: one better for each `ageing` that it has waited.
fn aged_rank(priority: Priority, run_at: i64, now: Timestamp, ageing: Option<Duration>) -> usize {
    let Some(ageing) = ageing else {
        return priority.rank();
    };
    let waited = now.since(Timestamp::from_micros(run_at));
    let steps = waited.as_micros() / ageing.as_micros().max(1);
    priority.rank().saturating_sub(usize::try_from(steps).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_counts_one_priority_higher_for_each_bound_that_it_has_waited() {
        let minute = Some(Duration::from_secs(60));
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let rank = |priority, waited: i64| aged_rank(priority, at(1000).as_micros(), at(1000 + waited), minute);
        assert_eq!([0, 59, 60, 119, 120, 180, 9999].map(|s| rank(Priority::Low, s)), [3, 3, 2, 2, 1, 0, 0]);
        assert_eq!(rank(Priority::Critical, 600), 0);
        assert_eq!(rank(Priority::High, -5), 1);
        assert_eq!(aged_rank(Priority::Low, 0, at(1_000_000), None), 3);
    }
}
