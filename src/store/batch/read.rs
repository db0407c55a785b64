//! What is asked about batches, their items, their requests and their results.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, named_params};
use serde::Serialize;

use crate::model::batch::{BatchItemRecord, BatchRequest, ItemCounts, ItemResult, PollCycle, RequestStatus, Spent};
use crate::model::batch_job::PlanBatch;
use crate::model::cursor::{Cursor, Order};
use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::model::job::Status;
use crate::model::limit::THROTTLE_MAX;
use crate::model::time::Timestamp;
use crate::model::usage::Usage;
use crate::provider::RemoteBatch;
use crate::store::batch::{ItemState, RequestState, some_of};
use crate::store::row::json;

/// What stands in a batch's own row.
pub(crate) struct BatchFacts {
    pub(crate) provider: String,
    pub(crate) step: Option<String>,
    pub(crate) max_steps: u32,
    pub(crate) max_attempts: u32,
    pub(crate) budget_nanos: Option<i64>,
    pub(crate) items: ItemCounts,
    pub(crate) spent: Spent,
    pub(crate) strays: u64,
}

/// How many items failed in one way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FailureCount {
    pub(crate) class: String,
    pub(crate) count: u64,
    /// What the first of them says.
    pub(crate) error: String,
}

/// Which items are listed.
#[derive(Debug)]
pub(crate) struct ItemFilter<'a> {
    /// None: of any.
    pub(crate) statuses: &'a [Status],
    pub(crate) request: Option<BatchRequestId>,
    pub(crate) agent: Option<&'a str>,
}

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0))
}

fn usage(row: &Row<'_>, first: usize) -> rusqlite::Result<Usage> {
    let tokens = |column: usize| row.get::<_, Option<i64>>(first + column).map(|tokens| tokens.map(i64::cast_unsigned));
    let mut usage = Usage::default().cached(tokens(1)?, tokens(2)?).reasoning(tokens(4)?);
    (usage.input, usage.output) = (tokens(0)?, tokens(3)?);
    Ok(usage)
}

/// How many items of a batch stand where.
pub(crate) fn item_counts(conn: &Connection, batch: JobId) -> rusqlite::Result<Option<ItemCounts>> {
    conn.prepare_cached(
        "SELECT waiting, sent, stepping, completed, failed, cancelled, expired FROM jobmill_batch WHERE job = :batch",
    )?
    .query_row(named_params! { ":batch": batch }, |row| counts(row, 0))
    .optional()
}

fn counts(row: &Row<'_>, first: usize) -> rusqlite::Result<ItemCounts> {
    let mut counts = ItemCounts::default();
    for (column, place) in [
        &mut counts.waiting,
        &mut counts.sent,
        &mut counts.stepping,
        &mut counts.completed,
        &mut counts.failed,
        &mut counts.cancelled,
        &mut counts.expired,
    ]
    .into_iter()
    .enumerate()
    {
        *place = count(row, first + column)?;
    }
    Ok(counts)
}

/// What stands in a batch's own row.
pub(crate) fn batch_facts(conn: &Connection, batch: JobId) -> rusqlite::Result<Option<BatchFacts>> {
    conn.prepare_cached(
        "SELECT provider, step, max_steps, max_attempts, budget_nanos, waiting, sent, stepping, completed, failed,
             cancelled, expired, input, cache_read, cache_write, output, reasoning, cost_nanos, unpriced, currency, prices,
             strays
         FROM jobmill_batch WHERE job = :batch",
    )?
    .query_row(named_params! { ":batch": batch }, |row| {
        Ok(BatchFacts {
            provider: row.get(0)?,
            step: row.get(1)?,
            max_steps: row.get(2)?,
            max_attempts: row.get(3)?,
            budget_nanos: row.get(4)?,
            items: counts(row, 5)?,
            spent: Spent {
                usage: usage(row, 12)?,
                cost_nanos: row.get(17)?,
                unpriced: count(row, 18)?,
                currency: row.get(19)?,
                prices: row.get(20)?,
            },
            strays: count(row, 21)?,
        })
    })
    .optional()
}

/// How many sorts of failure a summary names.
const FAILURES_MAX: i64 = 20;

/// The most frequent failures of a batch's items.
pub(crate) fn failures(conn: &Connection, batch: JobId) -> rusqlite::Result<Vec<FailureCount>> {
    conn.prepare_cached(
        "SELECT coalesce(error_class, 'expired'), count(*), coalesce(error, ''), min(id)
         FROM jobmill_batch_item INDEXED BY jobmill_batch_item_state
         WHERE batch = :batch AND state IN (4, 6) GROUP BY 1 ORDER BY 2 DESC LIMIT :limit",
    )?
    .query_map(named_params! { ":batch": batch, ":limit": FAILURES_MAX }, |row| {
        Ok(FailureCount { class: row.get(0)?, count: count(row, 1)?, error: row.get(2)? })
    })?
    .collect()
}

const ITEM: &str = "SELECT item.id, item.batch, item.state, item.key, item.step_number, item.attempt, item.request,
         request.state, route.provider, route.model, item.agent_id, item.finish, item.error_class, item.error,
         item.input, item.cache_read, item.cache_write, item.output, item.reasoning, item.cost_nanos, item.unpriced
     FROM jobmill_batch_item AS item {INDEX} CROSS JOIN jobmill_batch_route AS route ON route.id = item.route
     LEFT JOIN jobmill_batch_request AS request ON request.id = item.request";

/// Reads a page of a batch's items: of all, or of those in one state, with their request at the provider or not yet.
pub(crate) fn plan_items(of_state: bool, order: Order) -> String {
    let (index, state) = match of_state {
        true => ("state", "AND item.state = ?7 AND (?8 IS NULL OR coalesce(request.state > 1, 0) = ?8)"),
        false => ("batch", ""),
    };
    let item = ITEM.replace("{INDEX}", &format!("INDEXED BY jobmill_batch_item_{index}"));
    let direction = if order == Order::Ascending { "ASC" } else { "DESC" };
    format!(
        "{item} WHERE item.batch = ?1 AND item.id > ?2 AND item.id < ?3 {state}
             AND (?4 IS NULL OR item.request = ?4) AND (?5 IS NULL OR item.agent_id = ?5)
         ORDER BY item.id {direction} LIMIT ?6"
    )
}

/// Reads results of a batch, in its order.
pub(crate) const PLAN_RESULTS: &str =
    "SELECT item.id, key, item.state, output.output, error_class, error, finish, step_number, attempt, input,
         cache_read, cache_write, item.output, reasoning, cost_nanos, unpriced
     FROM jobmill_batch_item AS item INDEXED BY jobmill_batch_item_batch
     LEFT JOIN jobmill_batch_output AS output ON output.item = item.id
     WHERE item.batch = :batch AND item.id > :after AND item.state >= 3 ORDER BY item.id LIMIT :limit";

fn item(row: &Row<'_>) -> rusqlite::Result<BatchItemRecord> {
    let (state, request): (ItemState, Option<RequestState>) = (row.get(2)?, row.get(7)?);
    let unpriced: i64 = row.get(20)?;
    Ok(BatchItemRecord {
        id: row.get(0)?,
        batch: row.get(1)?,
        status: state.status(request),
        step_status: state.step_status(),
        key: row.get(3)?,
        step_number: row.get(4)?,
        attempt: row.get(5)?,
        request: row.get(6)?,
        provider: row.get(8)?,
        model: row.get(9)?,
        agent_id: row.get(10)?,
        finish: row.get(11)?,
        error_class: row.get(12)?,
        error: row.get(13)?,
        usage: usage(row, 14)?,
        cost_nanos: if unpriced == 0 { row.get(19)? } else { None },
    })
}

/// What a page of a batch's items is made of: of each status that is asked for, one more than the page holds if there are
/// more.
pub(crate) fn items(
    conn: &Connection,
    batch: JobId,
    filter: &ItemFilter<'_>,
    cursor: &Cursor<BatchItemId>,
) -> rusqlite::Result<Vec<BatchItemRecord>> {
    let (after, before) = (cursor.after.map_or(0, BatchItemId::raw), cursor.before.map_or(i64::MAX, BatchItemId::raw));
    let limit = cursor.limit as i64 + 1;
    let shared: [&dyn ToSql; 6] = [&batch, &after, &before, &filter.request, &filter.agent, &limit];
    if filter.statuses.is_empty() {
        return conn.prepare_cached(&plan_items(false, cursor.order))?.query_map(&shared[..], item)?.collect();
    }
    let mut found = Vec::new();
    for (state, is_out) in states_of(filter.statuses) {
        let mut values = shared.to_vec();
        values.extend([&state as &dyn ToSql, &is_out]);
        for item in conn.prepare_cached(&plan_items(true, cursor.order))?.query_map(&values[..], item)? {
            found.push(item?);
        }
    }
    Ok(found)
}

/// One item.
pub(crate) fn item_by_key(conn: &Connection, batch: JobId, key: &str) -> rusqlite::Result<Option<BatchItemRecord>> {
    let item_row = ITEM.replace("{INDEX}", "INDEXED BY jobmill_batch_item_key");
    conn.prepare_cached(&format!("{item_row} WHERE item.batch = :batch AND item.key = :key"))?
        .query_row(named_params! { ":batch": batch, ":key": key }, item)
        .optional()
}

/// Results of a batch's items that have ended, in the order of the batch, behind one of them: up to `limit`, and fewer if
/// they are large.
pub(crate) fn results(
    conn: &Connection,
    batch: JobId,
    after: BatchItemId,
    limit: usize,
) -> rusqlite::Result<Vec<(BatchItemId, ItemResult)>> {
    let mut statement = conn.prepare_cached(PLAN_RESULTS)?;
    let found =
        statement.query_map(named_params! { ":batch": batch, ":after": after, ":limit": limit as i64 }, |row| {
            let state: ItemState = row.get(2)?;
            let unpriced: i64 = row.get(15)?;
            let step_number: u32 = row.get(7)?;
            let result = ItemResult {
                key: row.get(1)?,
                status: state.status(None),
                output: json(row, 3)?,
                error_class: row.get(4)?,
                error: row.get(5)?,
                finish: row.get(6)?,
                steps: step_number + 1,
                attempts: row.get(8)?,
                usage: usage(row, 9)?,
                cost_nanos: if unpriced == 0 { row.get(14)? } else { None },
            };
            Ok((row.get(0)?, result))
        })?;
    some_of(found, |(_, result)| result.output.as_ref().map_or(0, |output| output.get().len()))
}

/// Reads requests of a batch.
pub(crate) const PLAN_REQUESTS: &str =
    "SELECT id, batch, state, provider, account, model, items, bytes, tokens, remote_id, remote_status, attempt,
         sent_at, polled_at, next_poll_at, ended_at, harvested_at, cancel_requested_at, succeeded, failed, error, latest
     FROM jobmill_batch_request INDEXED BY jobmill_batch_request_batch
     WHERE batch = :batch AND (:mask >> state) & 1 AND id > :after ORDER BY id LIMIT :limit";

/// The requests of a batch, in their order, behind one of them.
pub(crate) fn requests(
    conn: &Connection,
    batch: JobId,
    statuses: &[RequestStatus],
    after: Option<BatchRequestId>,
    limit: usize,
) -> rusqlite::Result<Vec<BatchRequest>> {
    let mut mask = RequestState::ALL
        .into_iter()
        .filter(|state| statuses.contains(&state.status()))
        .fold(0_i64, |mask, state| mask | 1 << state as i64);
    if statuses.is_empty() {
        mask = i64::MAX;
    }
    conn.prepare_cached(PLAN_REQUESTS)?
        .query_map(
            named_params! {
                ":batch": batch, ":mask": mask, ":after": after.map_or(0, BatchRequestId::raw), ":limit": limit as i64,
            },
            |row| {
                let state: RequestState = row.get(2)?;
                let (succeeded, failed): (Option<i64>, Option<i64>) = (row.get(18)?, row.get(19)?);
                Ok(BatchRequest {
                    id: row.get(0)?,
                    batch: row.get(1)?,
                    status: state.status(),
                    provider: row.get(3)?,
                    account: row.get(4)?,
                    model: row.get(5)?,
                    items: count(row, 6)?,
                    bytes: count(row, 7)?,
                    tokens: count(row, 8)?,
                    remote_id: row.get(9)?,
                    remote_status: row.get(10)?,
                    attempt: row.get(11)?,
                    sent_at: row.get(12)?,
                    polled_at: row.get(13)?,
                    next_poll_at: row.get(14)?,
                    ended_at: row.get(15)?,
                    harvested_at: row.get(16)?,
                    cancel_requested_at: row.get(17)?,
                    progress: succeeded.zip(failed).map(|(done, lost)| (done.cast_unsigned(), lost.cast_unsigned())),
                    error: row.get(20)?,
                    latest: json::<RemoteBatch>(row, 21)?.map(|remote| remote.raw),
                })
            },
        )?
        .collect()
}

/// What of the batches' own counts does not fit their items, and which items no request or step holds that ought to.
pub(crate) fn miscounted(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut wrong: Vec<String> = conn
        .prepare(
            "SELECT batch.job, waiting, sent, stepping, completed, failed, cancelled, expired,
                 coalesce(rows.waiting_rows, 0), coalesce(rows.sent_rows, 0), coalesce(rows.stepping_rows, 0),
                 coalesce(rows.completed_rows, 0), coalesce(rows.failed_rows, 0), coalesce(rows.cancelled_rows, 0),
                 coalesce(rows.expired_rows, 0)
             FROM jobmill_batch AS batch JOIN jobmill_job AS job ON job.id = batch.job
             LEFT JOIN (SELECT batch, sum(state = 0) AS waiting_rows, sum(state = 1) AS sent_rows,
                            sum(state = 2) AS stepping_rows, sum(state = 3) AS completed_rows,
                            sum(state = 4) AS failed_rows, sum(state = 5) AS cancelled_rows,
                            sum(state = 6) AS expired_rows
                        FROM jobmill_batch_item GROUP BY batch) AS rows ON rows.batch = batch.job",
        )?
        .query_map([], |row| {
            let seven = |first: usize| (first..first + 7).map(|at| row.get(at)).collect::<rusqlite::Result<Vec<i64>>>();
            Ok((row.get::<_, JobId>(0)?, seven(1)?, seven(8)?))
        })?
        .filter_map(|batch| match batch {
            Ok((_, counts, rows)) if counts == rows => None,
            Ok((id, counts, rows)) => Some(Ok(format!("the batch {id} counts {counts:?}, its items are {rows:?}"))),
            Err(error) => Some(Err(error)),
        })
        .collect::<rusqlite::Result<_>>()?;
    let unheld: i64 = conn.query_row(
        "SELECT count(*) FROM jobmill_batch_item AS item JOIN jobmill_job AS job ON job.id = item.batch
         WHERE (item.state = 1 AND NOT EXISTS (SELECT 1 FROM jobmill_batch_request AS request
                                               WHERE request.id = item.request AND request.state < 5))
             OR (item.state < 3 AND job.state NOT IN (0, 2, 5))",
        [],
        |row| row.get(0),
    )?;
    if unheld > 0 {
        wrong.push(format!("{unheld} items wait for something that never comes"));
    }
    Ok(wrong)
}

/// What holds up a batch, in words: what went wrong with its requests last, accounts that are left alone, what its planner
/// waits for.
pub(crate) fn held_up(conn: &Connection, batch: JobId, now: Timestamp) -> rusqlite::Result<Vec<String>> {
    let mut held_up: Vec<String> = conn
        .prepare_cached(
            "SELECT id, error FROM jobmill_batch_request
             WHERE batch = :batch AND state < 5 AND error IS NOT NULL ORDER BY id LIMIT 10",
        )?
        .query_map(named_params! { ":batch": batch }, |row| {
            Ok(format!("{}: {}", row.get::<_, BatchRequestId>(0)?, row.get::<_, String>(1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let blocked: Vec<String> = conn
        .prepare_cached(
            "SELECT DISTINCT account.account, blocked_until, coalesce(reason, '')
             FROM jobmill_batch_account AS account JOIN jobmill_batch_request AS request USING (account)
             WHERE request.batch = :batch AND blocked_until > :now AND blocked_until <= :latest",
        )?
        .query_map(
            named_params! { ":batch": batch, ":now": now, ":latest": now.saturating_add(THROTTLE_MAX) },
            |row| {
                let (account, until, reason): (String, Timestamp, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(format!("nothing is sent to {account} until {until}: {reason}"))
            },
        )?
        .collect::<rusqlite::Result<_>>()?;
    held_up.extend(blocked);
    let planner: Option<String> = conn
        .prepare_cached(
            "SELECT progress.note FROM jobmill_unique AS held JOIN jobmill_progress AS progress ON progress.job = held.job
             WHERE held.key = :key",
        )?
        .query_row(
            named_params! { ":key": PlanBatch { batch }.scoped_key() },
            |row| row.get(0),
        )
        .optional()?
        .flatten();
    held_up.extend(planner);
    Ok(held_up)
}

/// What the poller's last cycles came to, the newest first.
pub(crate) fn cycles(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<PollCycle>> {
    conn.prepare_cached("SELECT cycle FROM jobmill_batch_cycle ORDER BY id DESC LIMIT :limit")?
        .query_map(named_params! { ":limit": limit as i64 }, |row| Ok(json(row, 0)?.unwrap_or_default()))?
        .collect()
}

/// The states of items that these statuses stand for. Of what belongs to a request, whether that must be out.
fn states_of(statuses: &[Status]) -> impl Iterator<Item = (ItemState, Option<bool>)> {
    let has = |status| statuses.contains(&status);
    ItemState::ALL.into_iter().filter_map(move |state| match state {
        ItemState::Sent => match (has(Status::Pending), has(Status::Running)) {
            (true, true) => Some((state, None)),
            (false, false) => None,
            (_, is_out) => Some((state, Some(is_out))),
        },
        _ => has(state.status(None)).then_some((state, None)),
    })
}
