//! Pages of jobs: each filter becomes a few index ranges, merged by id.

use std::collections::VecDeque;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::id::JobId;
use crate::model::page::{Order, Page, Query};
use crate::store::read::{LaneRow, job, lanes};
use crate::store::row::State;

/// Reads ids of one state in one lane, the oldest first.
pub(crate) const PLAN_LANE_ASCENDING: &str = "SELECT id FROM jobmill_job
     WHERE lane = :lane AND state = :state AND id > :after AND id < :before ORDER BY id LIMIT :chunk";
/// The same, the newest first.
pub(crate) const PLAN_LANE_DESCENDING: &str = "SELECT id FROM jobmill_job
     WHERE lane = :lane AND state = :state AND id > :after AND id < :before ORDER BY id DESC LIMIT :chunk";
/// Reads ids of all jobs, the oldest first.
pub(crate) const PLAN_ALL_ASCENDING: &str =
    "SELECT id FROM jobmill_job WHERE id > :after AND id < :before ORDER BY id LIMIT :chunk";
/// The same, the newest first.
pub(crate) const PLAN_ALL_DESCENDING: &str =
    "SELECT id FROM jobmill_job WHERE id > :after AND id < :before ORDER BY id DESC LIMIT :chunk";
/// Reads ids of jobs that bear a tag, the oldest first.
pub(crate) const PLAN_TAG_ASCENDING: &str = "SELECT job FROM jobmill_tag
     WHERE tag = :tag AND job > :after AND job < :before ORDER BY job LIMIT :chunk";
/// The same, the newest first.
pub(crate) const PLAN_TAG_DESCENDING: &str = "SELECT job FROM jobmill_tag
     WHERE tag = :tag AND job > :after AND job < :before ORDER BY job DESC LIMIT :chunk";

/// What one index range holds.
#[derive(Clone, Copy)]
enum Range<'q> {
    All,
    Lane { lane: i64, state: State },
    Tag(&'q str),
}

/// Ids from one index range, in the page's order, read a chunk at a time.
struct Stream<'q> {
    range: Range<'q>,
    order: Order,
    after: i64,
    before: i64,
    heads: VecDeque<JobId>,
    exhausted: bool,
}

impl Stream<'_> {
    fn peek(&mut self, conn: &Connection, chunk: usize) -> rusqlite::Result<Option<JobId>> {
        if self.heads.is_empty() && !self.exhausted {
            self.read(conn, chunk)?;
        }
        Ok(self.heads.front().copied())
    }

    fn read(&mut self, conn: &Connection, chunk: usize) -> rusqlite::Result<()> {
        let (after, before, limit) = (self.after, self.before, chunk as i64);
        let id = |row: &rusqlite::Row<'_>| row.get(0);
        let pick = |ascending, descending| match self.order {
            Order::Ascending => conn.prepare_cached(ascending),
            Order::Descending => conn.prepare_cached(descending),
        };
        let ids: Vec<JobId> = match self.range {
            Range::All => pick(PLAN_ALL_ASCENDING, PLAN_ALL_DESCENDING)?
                .query_map(named_params! { ":after": after, ":before": before, ":chunk": limit }, id)?
                .collect::<rusqlite::Result<_>>()?,
            Range::Lane { lane, state } => pick(PLAN_LANE_ASCENDING, PLAN_LANE_DESCENDING)?
                .query_map(
                    named_params! {
                        ":lane": lane, ":state": state, ":after": after, ":before": before, ":chunk": limit,
                    },
                    id,
                )?
                .collect::<rusqlite::Result<_>>()?,
            Range::Tag(tag) => pick(PLAN_TAG_ASCENDING, PLAN_TAG_DESCENDING)?
                .query_map(named_params! { ":tag": tag, ":after": after, ":before": before, ":chunk": limit }, id)?
                .collect::<rusqlite::Result<_>>()?,
        };
        self.exhausted = ids.len() < chunk;
        if let Some(last) = ids.last() {
            match self.order {
                Order::Ascending => self.after = last.raw(),
                Order::Descending => self.before = last.raw(),
            }
        }
        self.heads.extend(ids);
        Ok(())
    }
}

/// Reads one page. The query's rules have been checked.
pub(crate) fn list(conn: &Connection, query: &Query) -> rusqlite::Result<Page> {
    let lanes = lanes(conn)?;
    let wanted = |lane: &LaneRow| {
        (query.queues.is_empty() || query.queues.contains(&lane.queue))
            && (query.kinds.is_empty() || query.kinds.contains(&lane.kind))
            && (query.priorities.is_empty() || query.priorities.contains(&lane.priority))
    };
    let states: Vec<State> = State::ALL
        .into_iter()
        .filter(|state| query.statuses.is_empty() || query.statuses.contains(&state.status()))
        .collect();
    let any_lane = query.queues.is_empty() && query.kinds.is_empty() && query.priorities.is_empty();
    let ranges: Vec<Range<'_>> = if let Some(tag) = query.tags.first() {
        vec![Range::Tag(tag)]
    } else if any_lane && states.len() == State::COUNT {
        vec![Range::All]
    } else {
        let lanes = lanes.iter().filter(|lane| wanted(lane));
        lanes
            .flat_map(|lane| states.iter().map(move |&state| (lane, state)))
            .filter(|(lane, state)| lane.counts[*state as usize] > 0)
            .map(|(lane, state)| Range::Lane { lane: lane.id, state })
            .collect()
    };
    let mut streams: Vec<Stream<'_>> = ranges
        .into_iter()
        .map(|range| Stream {
            range,
            order: query.order,
            after: query.after.map_or(0, JobId::raw),
            before: query.before.map_or(i64::MAX, JobId::raw),
            heads: VecDeque::new(),
            exhausted: false,
        })
        .collect();
    let chunk = (2 * (query.limit + 1) / streams.len().max(1)).max(4).min(query.limit + 1);
    let mut jobs = Vec::with_capacity(query.limit.min(64));
    let mut has_more = false;
    while let Some(id) = next(conn, &mut streams, query.order, chunk)? {
        if !query.tags.is_empty() && !passes(conn, query, &lanes, &wanted, &states, id)? {
            continue;
        }
        if jobs.len() == query.limit {
            has_more = true;
            break;
        }
        jobs.extend(job(conn, id)?);
    }
    let next = match jobs.last() {
        Some(last) if has_more => Some(query.clone().following(last.id)),
        _ => None,
    };
    Ok(Page { jobs, next })
}

/// Takes the first id of all streams.
fn next(
    conn: &Connection,
    streams: &mut Vec<Stream<'_>>,
    order: Order,
    chunk: usize,
) -> rusqlite::Result<Option<JobId>> {
    let mut best: Option<(JobId, usize)> = None;
    let mut at = 0;
    while at < streams.len() {
        let Some(id) = streams[at].peek(conn, chunk)? else {
            streams.swap_remove(at);
            continue;
        };
        let better = best.is_none_or(|(best, _)| match order {
            Order::Ascending => id < best,
            Order::Descending => id > best,
        });
        if better {
            best = Some((id, at));
        }
        at += 1;
    }
    if let Some((_, at)) = best {
        streams[at].heads.pop_front();
    }
    Ok(best.map(|(id, _)| id))
}

/// Whether a job found by its first tag passes every other filter.
fn passes(
    conn: &Connection,
    query: &Query,
    lanes: &[LaneRow],
    wanted: &impl Fn(&LaneRow) -> bool,
    states: &[State],
    id: JobId,
) -> rusqlite::Result<bool> {
    let place: Option<(i64, State)> = conn
        .prepare_cached("SELECT lane, state FROM jobmill_job WHERE id = :id")?
        .query_row(named_params! { ":id": id }, |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((lane, state)) = place else {
        return Ok(false);
    };
    if !states.contains(&state) || !lanes.iter().any(|known| known.id == lane && wanted(known)) {
        return Ok(false);
    }
    for tag in &query.tags[1..] {
        let bears = conn
            .prepare_cached("SELECT 1 FROM jobmill_tag WHERE tag = :tag AND job = :job")?
            .exists(named_params! { ":tag": tag, ":job": id })?;
        if !bears {
            return Ok(false);
        }
    }
    Ok(true)
}
