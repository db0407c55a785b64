//! Putting right how long jobs wait that were made to wait under a clock that ran ahead.

use std::time::Duration;

use rusqlite::{Connection, named_params};

use crate::model::id::JobId;
use crate::model::metrics::Window;
use crate::model::time::Timestamp;
use crate::store::lane::Lane;
use crate::store::row::State;
use crate::store::{SET_BACK, Store, Turn};

/// Reads delayed jobs of a lane, the next to come first, when each was last changed, and whether it is known to wait for so long
/// and not for a moment. That is so of those that have run before, and of those that have waited for others and may run
/// since. Of one that was enqueued with a delay nobody can tell whether the moment was meant, unless it is of our own kinds.
pub(crate) const PLAN_DELAYS: &str = "SELECT id, run_at, updated_at, claim > 0 OR run_at IS updated_at
     FROM jobmill_job INDEXED BY jobmill_job_delayed
     WHERE lane = :lane AND state = 7 AND (run_at, id) > (:run_at, :id) ORDER BY run_at, id LIMIT :limit";

/// What is left to be looked at after the clock was set back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DelaysLeft {
    /// By how much it was set back at least.
    by: Duration,
    /// Jobs of this lane have been seen up to a place.
    lane: i64,
    run_at: Timestamp,
    id: JobId,
}

impl DelaysLeft {
    /// All there are, after the clock was set back by so much at least.
    pub(crate) fn all(by: Duration) -> Self {
        Self { by, lane: 0, run_at: Timestamp::EPOCH, id: JobId::from_raw(0) }
    }
}

impl Store {
    /// Whether the clock must have been set back since somebody wrote to the file, as far as that tells.
    pub(crate) fn is_behind(&self, now: Timestamp) -> rusqlite::Result<bool> {
        is_behind(&self.conn, self.book.last_id, now)
    }
}

/// The same: by the newest id, by when engines came and went, and, for one may die that came before the clock ran
/// ahead, by the newest line of the audit and the newest stretch of time in which anything was counted.
pub(crate) fn is_behind(conn: &Connection, last_id: i64, now: Timestamp) -> rusqlite::Result<bool> {
    let seen: Timestamp = conn
        .prepare_cached(
            "SELECT max(coalesce((SELECT max(max(started_at, coalesce(ended_at, 0))) FROM jobmill_instance), 0),
                        coalesce((SELECT max(at) FROM jobmill_audit), 0),
                        coalesce((SELECT max(bucket) FROM jobmill_tally WHERE resolution = :finest), 0))",
        )?
        .query_row(named_params! { ":finest": Window::Minute.resolution().as_seconds() }, |row| row.get(0))?;
    Ok(now.saturating_add(SET_BACK) < seen.max(JobId::from_raw(last_id).created_at()))
}

impl Turn<'_> {
    /// Puts delays right, looking at about `limit` jobs. Gives what is left, and how many were put right.
    pub(crate) fn put_delays_right(
        &mut self,
        mut from: DelaysLeft,
        limit: usize,
    ) -> rusqlite::Result<(Option<DelaysLeft>, usize)> {
        let (mut seen, mut count) = (0, 0);
        let waits = |lane: &&Lane| lane.count(State::Delayed) > 0 && lane.id >= from.lane;
        let mut lanes: Vec<i64> = self.book.lanes.iter().filter(waits).map(|lane| lane.id).collect();
        lanes.sort_unstable();
        for lane in lanes {
            if lane != from.lane {
                // What is due needs nothing.
                from = DelaysLeft { by: from.by, lane, run_at: self.now, id: JobId::from_raw(0) };
            }
            let own = self.is_own(lane);
            let rows: Vec<(JobId, Timestamp, Option<Timestamp>)> = self
                .conn
                .prepare_cached(PLAN_DELAYS)?
                .query_map(
                    named_params! {
                        ":lane": lane, ":run_at": from.run_at, ":id": from.id, ":limit": (limit - seen) as i64,
                    },
                    |row| {
                        let (id, run_at): (JobId, Timestamp) = (row.get(0)?, row.get(1)?);
                        // Ids go on from the newest after the clock was set back. What got such a one has a delay of
                        // the right clock, which ends before the id begins.
                        let created_at = Some(id.created_at()).filter(|created_at| *created_at <= run_at);
                        let since = row.get::<_, Option<Timestamp>>(2)?.or(created_at);
                        let is_meant = !own && !row.get::<_, bool>(3)?;
                        Ok((id, run_at, since.filter(|_| !is_meant)))
                    },
                )?
                .collect::<rusqlite::Result<_>>()?;
            seen += rows.len();
            for (id, run_at, since) in &rows {
                let Some(since) = since.filter(|since| *since > self.now) else { continue };
                let sooner = self.come_sooner(*id, *run_at, from.by.max(since.since(self.now)))?;
                if let Some(lane) = self.book.lanes.get_mut(lane) {
                    lane.note_delayed(sooner.as_micros());
                }
                count += 1;
            }
            if seen == limit
                && let Some((id, run_at, _)) = rows.last()
            {
                return Ok((Some(DelaysLeft { run_at: *run_at, id: *id, ..from }), count));
            }
        }
        Ok((None, count))
    }

    fn come_sooner(&mut self, id: JobId, run_at: Timestamp, by: Duration) -> rusqlite::Result<Timestamp> {
        let sooner = run_at.saturating_sub(by).max(self.now);
        self.conn
            .prepare_cached("UPDATE jobmill_job SET run_at = :run_at, updated_at = :now WHERE id = :id AND state = 7")?
            .execute(named_params! { ":run_at": sooner, ":now": self.now, ":id": id })?;
        Ok(sooner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::error::Result;
    use crate::model::new_job::NewJob;
    use crate::model::rules::SYSTEM_QUEUE;
    use crate::store::connect::storage_error;
    use crate::store::plans::{Fixture, Greedy};

    /// Each start took the id of a job that was enqueued after the clock was set back for the moment at which it came,
    /// and had it run at once.
    #[test]
    fn what_comes_after_the_clock_was_set_back_waits_for_as_long_as_it_is_to() -> Result<()> {
        let mut fixture = Fixture::new()?;
        let (ahead, right) = (fixture.now, fixture.now.saturating_sub(Duration::from_secs(3600)));
        let storage = |error| storage_error("test", error);
        let own = NewJob::json("one", &1).queue(SYSTEM_QUEUE).delay(Duration::from_secs(60));
        for (now, expected) in [(ahead, 1), (right, 0)] {
            fixture.store.turn(now, None, |turn| turn.enqueue(&own).map_err(storage))?;
            for (again, expected) in [(false, expected), (true, 0)] {
                let ((left, count), _) = fixture.store.turn(right, None, |turn| {
                    turn.put_delays_right(DelaysLeft::all(Duration::ZERO), 100).map_err(storage)
                })?;
                assert_eq!((left.is_none(), count), (true, expected), "at {now}, again: {again}");
            }
        }
        Ok(())
    }

    /// What our own kinds wait for is never a moment, but for those that had been claimed and went back unbegun it was
    /// taken for one: they waited for the clock, and a batch with them.
    #[test]
    fn one_of_our_own_kinds_that_goes_back_unbegun_does_not_wait_for_the_clock() -> Result<()> {
        for dies in [false, true] {
            let mut fixture = Fixture::new()?;
            let (mut now, delay) = (fixture.now, Duration::from_secs(60));
            let storage = |error| storage_error("test", error);
            let own = NewJob::json("one", &1).queue(SYSTEM_QUEUE).delay(delay);
            fixture.store.turn(now, None, |turn| turn.enqueue(&own).map_err(storage))?;
            now = now.saturating_add(delay);
            let mut greedy = Greedy { fair: false, by_deadline: false };
            let (_, out) = fixture.store.turn(now, Some(&mut greedy), |turn| turn.claim().map_err(storage))?;
            let [claim] = &out.claims[..] else { panic!("{} claims", out.claims.len()) };

            now = now.saturating_sub(Duration::from_secs(3600));
            fixture.store.turn(now, None, |turn| {
                if dies {
                    turn.rescue(1, &HashSet::new()).map_err(storage).map(drop)
                } else {
                    turn.put_back(claim, false).map_err(storage).map(drop)
                }
            })?;
            assert!(fixture.store.has_ready(now), "its engine dies: {dies}");
        }
        Ok(())
    }
}
