//! Pages of jobs: each filter becomes streams of ids from index ranges, and a job passes that is in all of them.
//!
//! What a lane or a share tells (user, status, type, kind, queue, priority, background) is one filter: the ranges of the
//! lanes or shares that pass, whose lengths are known from their counters. Agents, source, stop reason and tags are a
//! filter each. The streams are ordered by id, so that each skips to where the others stand, and what is read is bounded
//! by the rarest of them.

use std::collections::{BinaryHeap, HashSet, VecDeque};

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::model::cursor::Order;
use crate::model::failure_reason::FailureReason;
use crate::model::id::{JobId, ScheduleId};
use crate::model::page::{Page, Query};
use crate::model::stop_reason::StopReason;
use crate::store::flow;
use crate::store::read::{LaneRow, ShareRow, job, lane_row, lanes, shares_of};
use crate::store::row::State;

/// How many ids a stream reads at first, if there are many, and at most.
const CHUNK_MIN: usize = 4;
const CHUNK_MAX: usize = 512;
/// A filter by lane or share that every n-th job passes is asked of each row that the other filters let through; one that
/// fewer pass takes part with streams of its own.
const DENSE: i64 = 16;

/// The statements that read ids of a range between two ids, in both orders.
macro_rules! plans {
    ($id:literal from $range:literal) => {
        [
            concat!(
                "SELECT ",
                $id,
                " FROM ",
                $range,
                " AND ",
                $id,
                " > ?1 AND ",
                $id,
                " < ?2 ORDER BY ",
                $id,
                " LIMIT ?3"
            ),
            concat!(
                "SELECT ",
                $id,
                " FROM ",
                $range,
                " AND ",
                $id,
                " > ?1 AND ",
                $id,
                " < ?2 ORDER BY ",
                $id,
                " DESC LIMIT ?3"
            ),
        ]
    };
}

pub(crate) const PLAN_ALL: [&str; 2] = plans!("id" from "jobmill_job WHERE TRUE");
pub(crate) const PLAN_LANE: [&str; 2] =
    plans!("id" from "jobmill_job INDEXED BY jobmill_job_place WHERE lane = ?4 AND state = ?5");
pub(crate) const PLAN_SHARE: [&str; 2] =
    plans!("id" from "jobmill_job INDEXED BY jobmill_job_share WHERE share = ?4 AND state = ?5");
pub(crate) const PLAN_AGENT: [&str; 2] =
    plans!("id" from "jobmill_job INDEXED BY jobmill_job_agent WHERE agent_id = ?4");
pub(crate) const PLAN_SOURCE: [&str; 2] =
    plans!("id" from "jobmill_job INDEXED BY jobmill_job_source WHERE source_id = ?4");
pub(crate) const PLAN_STOP_REASON: [&str; 2] =
    plans!("id" from "jobmill_job INDEXED BY jobmill_job_stop_reason WHERE stop_reason = ?4");
pub(crate) const PLAN_FLOW: [&str; 2] = plans!("id" from "jobmill_job INDEXED BY jobmill_job_flow WHERE flow = ?4");
pub(crate) const PLAN_SCHEDULE: [&str; 2] =
    plans!("id" from "jobmill_job INDEXED BY jobmill_job_schedule WHERE schedule = ?4");
pub(crate) const PLAN_FAILURE: [&str; 2] =
    plans!("id" from "jobmill_job INDEXED BY jobmill_job_end_reason WHERE end_reason = ?4");
pub(crate) const PLAN_TAG: [&str; 2] = plans!("job" from "jobmill_tag WHERE tag = ?4");

/// What one index range holds.
#[derive(Clone, Copy)]
enum Range<'q> {
    All,
    Lane(i64, State),
    Share(i64, State),
    Agent(&'q str),
    Source(&'q str),
    StopReason(&'q str),
    Failure(FailureReason),
    Tag(&'q str),
    Flow(i64),
    Schedule(ScheduleId),
}

/// Ids from one index range, in the page's order, read a chunk at a time.
struct Stream<'q> {
    range: Range<'q>,
    after: i64,
    before: i64,
    heads: VecDeque<i64>,
    chunk: usize,
    exhausted: bool,
}

impl Stream<'_> {
    /// The first id, read from the file if need be.
    fn head(&mut self, conn: &Connection, order: Order) -> rusqlite::Result<Option<i64>> {
        if self.heads.is_empty() && !self.exhausted {
            self.read(conn, order)?;
            self.chunk = (2 * self.chunk).min(CHUNK_MAX);
        }
        Ok(self.heads.front().copied())
    }

    /// Drops what comes before `to`.
    fn skip_to(&mut self, to: i64, order: Order) {
        let early = |id: &i64| match order {
            Order::Ascending => *id < to,
            Order::Descending => *id > to,
        };
        while self.heads.front().is_some_and(early) {
            self.heads.pop_front();
        }
        if self.heads.is_empty() && !self.exhausted {
            self.chunk = CHUNK_MIN;
            match order {
                Order::Ascending => self.after = self.after.max(to - 1),
                Order::Descending => self.before = self.before.min(to.saturating_add(1)),
            }
        }
    }

    fn read(&mut self, conn: &Connection, order: Order) -> rusqlite::Result<()> {
        let (after, before, limit) = (self.after, self.before, self.chunk as i64);
        let pick = |plans: [&'static str; 2]| conn.prepare_cached(plans[usize::from(order == Order::Descending)]);
        let id = |row: &rusqlite::Row<'_>| row.get(0);
        let by_word = |plans, word: &str| -> rusqlite::Result<Vec<i64>> {
            pick(plans)?.query_map(params![after, before, limit, word], id)?.collect()
        };
        let by_state = |plans, of: i64, state: State| -> rusqlite::Result<Vec<i64>> {
            pick(plans)?.query_map(params![after, before, limit, of, state], id)?.collect()
        };
        let ids = match self.range {
            Range::All => pick(PLAN_ALL)?.query_map(params![after, before, limit], id)?.collect::<Result<_, _>>()?,
            Range::Lane(lane, state) => by_state(PLAN_LANE, lane, state)?,
            Range::Share(share, state) => by_state(PLAN_SHARE, share, state)?,
            Range::Agent(agent) => by_word(PLAN_AGENT, agent)?,
            Range::Source(source) => by_word(PLAN_SOURCE, source)?,
            Range::StopReason(reason) => by_word(PLAN_STOP_REASON, reason)?,
            Range::Failure(reason) => {
                pick(PLAN_FAILURE)?.query_map(params![after, before, limit, reason], id)?.collect::<Result<_, _>>()?
            }
            Range::Tag(tag) => by_word(PLAN_TAG, tag)?,
            Range::Flow(flow) => {
                pick(PLAN_FLOW)?.query_map(params![after, before, limit, flow], id)?.collect::<Result<_, _>>()?
            }
            Range::Schedule(schedule) => pick(PLAN_SCHEDULE)?
                .query_map(params![after, before, limit, schedule], id)?
                .collect::<Result<_, _>>()?,
        };
        self.exhausted = ids.len() < self.chunk;
        if let Some(last) = ids.last() {
            match order {
                Order::Ascending => self.after = *last,
                Order::Descending => self.before = *last,
            }
        }
        self.heads = ids.into();
        Ok(())
    }
}

/// The ids of several ranges that have none in common, in the page's order.
struct Union<'q> {
    streams: Vec<Stream<'q>>,
    /// The streams by their first ids, the first of all on top. Not filled before the first look.
    heads: Option<BinaryHeap<(i64, usize)>>,
}

impl<'q> Union<'q> {
    fn of(ranges: Vec<Range<'q>>, query: &Query) -> Self {
        let (after, before) = query.bounds();
        let chunk = (2 * (query.cursor.limit + 1) / ranges.len().max(1))
            .clamp(CHUNK_MIN, query.cursor.limit.max(CHUNK_MIN) + 1);
        let stream = |range| Stream { range, after, before, heads: VecDeque::new(), chunk, exhausted: false };
        Self { streams: ranges.into_iter().map(stream).collect(), heads: None }
    }

    /// The first id that is not before `from`.
    fn seek(&mut self, conn: &Connection, order: Order, from: Option<i64>) -> rusqlite::Result<Option<i64>> {
        let rank = |id: i64| if order == Order::Ascending { -id } else { id };
        let heads = match &mut self.heads {
            Some(heads) => heads,
            unread => {
                let mut heads = BinaryHeap::with_capacity(self.streams.len());
                for (at, stream) in self.streams.iter_mut().enumerate() {
                    if let Some(from) = from {
                        stream.skip_to(from, order);
                    }
                    if let Some(head) = stream.head(conn, order)? {
                        heads.push((rank(head), at));
                    }
                }
                unread.insert(heads)
            }
        };
        while let Some(&(first, at)) = heads.peek() {
            let Some(from) = from.filter(|from| first > rank(*from)) else {
                return Ok(Some(rank(first)));
            };
            heads.pop();
            let stream = &mut self.streams[at];
            stream.skip_to(from, order);
            if let Some(head) = stream.head(conn, order)? {
                heads.push((rank(head), at));
            }
        }
        Ok(None)
    }
}

/// What lanes or shares tell of a job, asked of its row.
struct PlaceTest {
    lanes: HashSet<i64>,
    shares: Option<HashSet<i64>>,
    states: Vec<State>,
}

impl PlaceTest {
    fn passes(&self, conn: &Connection, id: i64) -> rusqlite::Result<bool> {
        let found: Option<(i64, State, Option<i64>)> = conn
            .prepare_cached("SELECT lane, state, share FROM jobmill_job WHERE id = :id")?
            .query_row(named_params! { ":id": id }, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        Ok(found.is_some_and(|(lane, state, share)| {
            self.lanes.contains(&lane)
                && self.states.contains(&state)
                && self.shares.as_ref().is_none_or(|shares| share.is_some_and(|share| shares.contains(&share)))
        }))
    }
}

/// The jobs that pass a query, in its order.
pub(crate) struct Matches<'q> {
    filters: Vec<Union<'q>>,
    test: Option<PlaceTest>,
    order: Order,
    /// The first id that may come next.
    from: Option<i64>,
    ended: bool,
}

impl<'q> Matches<'q> {
    /// The jobs that pass a query whose rules have been checked.
    pub(crate) fn of(conn: &Connection, query: &'q Query) -> rusqlite::Result<Self> {
        let lanes = lanes(conn)?;
        let wanted: Vec<&LaneRow> = lanes.iter().filter(|lane| lane_passes(query, lane)).collect();
        let states: Vec<State> = State::ALL
            .into_iter()
            .filter(|state| query.statuses.is_empty() || query.statuses.contains(&state.status()))
            .collect();
        let shares: Option<Vec<ShareRow>> = match &query.user {
            Some(user) => {
                let ids: HashSet<i64> = wanted.iter().map(|lane| lane.id).collect();
                let shares = shares_of(conn, user)?.into_iter();
                Some(shares.filter(|share| ids.contains(&share.lane)).collect())
            }
            None => None,
        };
        let counted = |counts: &[i64; State::COUNT]| -> Vec<(State, i64)> {
            let counts = states.iter().map(|state| (*state, counts[*state as usize]));
            counts.filter(|(_, count)| *count > 0).collect()
        };
        let ranges: Vec<(Range<'_>, i64)> = match &shares {
            Some(shares) => shares
                .iter()
                .flat_map(|share| {
                    counted(&share.counts).into_iter().map(|(state, n)| (Range::Share(share.id, state), n))
                })
                .collect(),
            None => wanted
                .iter()
                .flat_map(|lane| counted(&lane.counts).into_iter().map(|(state, n)| (Range::Lane(lane.id, state), n)))
                .collect(),
        };
        let total: i64 = lanes.iter().flat_map(|lane| lane.counts).sum();
        let matching: i64 = ranges.iter().map(|(_, count)| count).sum();
        let everything = shares.is_none() && wanted.len() == lanes.len() && states.len() == State::COUNT;

        let mut filters: Vec<Union<'q>> = facets(query).into_iter().map(|ranges| Union::of(ranges, query)).collect();
        if let Some(workflow) = query.workflow {
            let flows = flow::parts(conn, workflow.raw())?.into_iter().map(Range::Flow).collect();
            filters.push(Union::of(flows, query));
        }
        let mut test = None;
        if everything {
            if filters.is_empty() {
                filters.push(Union::of(vec![Range::All], query));
            }
        } else if filters.is_empty() || matching.saturating_mul(DENSE) < total {
            filters.push(Union::of(ranges.into_iter().map(|(range, _)| range).collect(), query));
        } else {
            test = Some(PlaceTest {
                lanes: wanted.iter().map(|lane| lane.id).collect(),
                shares: shares.map(|shares| shares.iter().map(|share| share.id).collect()),
                states,
            });
        }
        Ok(Self { filters, test, order: query.cursor.order, from: None, ended: false })
    }

    /// The next job that passes.
    pub(crate) fn next(&mut self, conn: &Connection) -> rusqlite::Result<Option<JobId>> {
        while !self.ended {
            let Some(id) = self.next_in_all(conn)? else {
                self.ended = true;
                break;
            };
            self.from = match self.order {
                Order::Ascending => Some(id + 1),
                Order::Descending => Some(id - 1),
            };
            let passes = match &self.test {
                Some(test) => test.passes(conn, id)?,
                None => true,
            };
            if passes {
                return Ok(Some(JobId::from_raw(id)));
            }
        }
        Ok(None)
    }

    /// The next id that is in every filter's streams.
    fn next_in_all(&mut self, conn: &Connection) -> rusqlite::Result<Option<i64>> {
        let mut agreed = 0;
        let mut at = 0;
        while agreed < self.filters.len() {
            let Some(id) = self.filters[at].seek(conn, self.order, self.from)? else {
                return Ok(None);
            };
            agreed = if self.from == Some(id) { agreed + 1 } else { 1 };
            self.from = Some(id);
            at = (at + 1) % self.filters.len();
        }
        Ok(self.from)
    }
}

fn lane_passes(query: &Query, lane: &LaneRow) -> bool {
    (query.queues.is_empty() || query.queues.contains(&lane.queue))
        && (query.kinds.is_empty() || query.kinds.contains(&lane.kind))
        && (query.priorities.is_empty() || query.priorities.contains(&lane.priority))
        && (query.job_types.is_empty() || query.job_types.contains(&lane.job_type))
        && query.background.is_none_or(|background| background == lane.background)
        && query.tracked.is_none_or(|tracked| tracked == lane.kind.is_empty())
        && (query.user.is_none() || lane.owned)
}

/// The filters that lanes and shares know nothing of, each as the ranges that together hold what passes.
fn facets(query: &Query) -> Vec<Vec<Range<'_>>> {
    let mut facets: Vec<Vec<Range<'_>>> = Vec::new();
    if !query.agents.is_empty() {
        // The same agent twice would be read twice.
        let agents: HashSet<&str> = query.agents.iter().map(String::as_str).collect();
        facets.push(agents.into_iter().map(Range::Agent).collect());
    }
    facets.extend(query.source_id.iter().map(|source| vec![Range::Source(source)]));
    facets.extend(query.stop_reason.iter().map(|reason| vec![Range::StopReason(reason.as_str())]));
    if !query.failure_reasons.is_empty() {
        let reasons: HashSet<FailureReason> = query.failure_reasons.iter().copied().collect();
        facets.push(reasons.into_iter().map(Range::Failure).collect());
    }
    facets.extend(query.schedule.iter().map(|schedule| vec![Range::Schedule(*schedule)]));
    facets.extend(query.tags.iter().map(|tag| vec![Range::Tag(tag)]));
    facets
}

/// Reads one page. The query's rules have been checked.
pub(crate) fn list(conn: &Connection, query: &Query) -> rusqlite::Result<Page> {
    let mut matches = Matches::of(conn, query)?;
    let mut jobs = Vec::with_capacity(query.cursor.limit.min(64));
    let mut has_more = false;
    while let Some(id) = matches.next(conn)? {
        if jobs.len() == query.cursor.limit {
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

/// Reads the ids alone of the jobs of one page.
pub(crate) fn ids(conn: &Connection, query: &Query) -> rusqlite::Result<Vec<JobId>> {
    let mut matches = Matches::of(conn, query)?;
    let mut ids = Vec::new();
    while ids.len() < query.cursor.limit {
        let Some(id) = matches.next(conn)? else { break };
        ids.push(id);
    }
    Ok(ids)
}

/// Whether a job passes the filters of a query still, its cursors and times apart, which do not change.
pub(crate) fn passes(conn: &Connection, query: &Query, id: JobId) -> rusqlite::Result<bool> {
    struct Facts {
        lane: LaneRow,
        state: State,
        user: Option<String>,
        agent: Option<String>,
        source: Option<String>,
        stop_reason: Option<String>,
        flow: Option<i64>,
        failure: Option<FailureReason>,
        schedule: Option<ScheduleId>,
    }
    let facts = conn
        .prepare_cached(
            "SELECT lane.id, queue, kind, priority, job_type, background, owned, state, user_id, agent_id, source_id,
                 stop_reason, end_reason, flow, schedule
             FROM jobmill_job AS job JOIN jobmill_lane AS lane ON lane.id = job.lane
             LEFT JOIN jobmill_share AS share ON share.id = job.share
             WHERE job.id = :id",
        )?
        .query_row(named_params! { ":id": id }, |row| {
            Ok(Facts {
                lane: lane_row(row)?,
                state: row.get(7)?,
                user: row.get(8)?,
                agent: row.get(9)?,
                source: row.get(10)?,
                stop_reason: row.get(11)?,
                failure: row.get(12)?,
                flow: row.get(13)?,
                schedule: row.get(14)?,
            })
        })
        .optional()?;
    let Some(facts) = facts else { return Ok(false) };
    if let Some(workflow) = query.workflow {
        let is_of = match facts.flow {
            Some(flow) => flow::workflow_of(conn, flow)? == Some(workflow.raw()),
            None => false,
        };
        if !is_of {
            return Ok(false);
        }
    }
    let is =
        |wanted: Option<&str>, value: &Option<String>| wanted.is_none_or(|wanted| value.as_deref() == Some(wanted));
    let by_row = lane_passes(query, &facts.lane)
        && (query.statuses.is_empty() || query.statuses.contains(&facts.state.status()))
        && is(query.user.as_deref(), &facts.user)
        && (query.agents.is_empty() || facts.agent.is_some_and(|agent| query.agents.contains(&agent)))
        && is(query.source_id.as_deref(), &facts.source)
        && (query.schedule.is_none() || query.schedule == facts.schedule)
        && (query.failure_reasons.is_empty() || facts.failure.is_some_and(|it| query.failure_reasons.contains(&it)))
        && is(query.stop_reason.as_ref().map(StopReason::as_str), &facts.stop_reason);
    if !by_row {
        return Ok(false);
    }
    let mut tagged = conn.prepare_cached("SELECT 1 FROM jobmill_tag WHERE tag = :tag AND job = :job")?;
    for tag in &query.tags {
        if !tagged.exists(named_params! { ":tag": tag, ":job": id })? {
            return Ok(false);
        }
    }
    Ok(true)
}
