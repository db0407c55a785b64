//! Items that wait are put into requests.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, named_params, params};
use serde_json::value::RawValue;

use crate::model::id::{BatchItemId, BatchRequestId, JobId, digits, row_after};
use crate::model::limit::THROTTLE_MAX;
use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::batch::{Change, ItemState, RequestState, make_file_tag, some_of};

/// Where items of a batch go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) id: i64,
    pub(crate) provider: String,
    pub(crate) endpoint: String,
    pub(crate) model: String,
}

/// An item that waits, as far as a plan must know it.
pub(crate) struct WaitingItem {
    pub(crate) id: BatchItemId,
    pub(crate) route: i64,
    pub(crate) step_number: u32,
    pub(crate) sends: u32,
    pub(crate) tokens: u64,
    pub(crate) max_output: Option<u64>,
    /// The most items of a request that it may go in.
    pub(crate) request_items_max: Option<u64>,
    pub(crate) body: Box<RawValue>,
}

/// What a plan must know of a batch.
pub(crate) struct PlanState {
    pub(crate) routes: Vec<Route>,
    pub(crate) budget_nanos: Option<i64>,
    /// The most items of one request.
    pub(crate) request_items: Option<u64>,
    /// What is paid, and what open requests may come to.
    pub(crate) committed_nanos: i64,
    /// A request that a planner before us has left half done.
    pub(crate) left: Option<BatchRequestId>,
}

/// How a plan may begin.
pub(crate) enum Begin {
    /// The batch has ended, is being cancelled, or is not released.
    Closed,
    /// Another planner is at it.
    Busy,
    Go(PlanState),
}

/// What a new request is made of.
pub(crate) struct NewRequest<'a> {
    pub(crate) provider: &'a str,
    pub(crate) account: &'a str,
    pub(crate) base_url: &'a str,
    pub(crate) api_version: Option<&'a str>,
    pub(crate) endpoint: &'a str,
    pub(crate) model: Option<&'a str>,
    /// It runs here, while its results are read.
    pub(crate) local: bool,
}

/// What a request has come to when it is complete.
pub(crate) struct Sealed {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    pub(crate) tokens: u64,
    pub(crate) reserved_nanos: i64,
    pub(crate) sha256: [u8; 32],
}

/// How much may be under way at an account.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) account: String,
    /// The tokens are those of one model, if one is given.
    pub(crate) model: Option<String>,
    pub(crate) items: u64,
    pub(crate) tokens: u64,
}

/// What is under way at an account, over all batches.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UnderWay {
    pub(crate) items: u64,
    pub(crate) tokens: u64,
}

impl Turn<'_> {
    /// Begins a plan, unless somebody else is at one.
    pub(crate) fn begin_plan(&mut self, batch: JobId, planner: JobId) -> rusqlite::Result<Begin> {
        if !self.is_batch_open(batch)? {
            return Ok(Begin::Closed);
        }
        let left: Option<(BatchRequestId, Option<i64>)> = self
            .conn
            .prepare_cached(
                "SELECT id, poll_owner FROM jobmill_batch_request WHERE batch = :batch AND state = 0 LIMIT 1",
            )?
            .query_row(named_params! { ":batch": batch }, |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((_, Some(other))) = left
            && other != planner.raw()
        {
            let at_it: Option<i64> = self
                .conn
                .prepare_cached("SELECT state FROM jobmill_job WHERE id = :id AND state = 2")?
                .query_row(named_params! { ":id": other }, |row| row.get(0))
                .optional()?;
            if at_it.is_some() {
                return Ok(Begin::Busy);
            }
        }
        let (budget_nanos, request_items) = self
            .conn
            .prepare_cached("SELECT budget_nanos, request_items FROM jobmill_batch WHERE job = :batch")?
            .query_row(named_params! { ":batch": batch }, |row| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?)))?;
        Ok(Begin::Go(PlanState {
            routes: routes(self.conn, batch)?,
            budget_nanos,
            request_items: request_items.map(i64::cast_unsigned),
            committed_nanos: self.committed(batch)?,
            left: left.map(|(id, _)| id),
        }))
    }

    /// What is paid of a batch, and what its open requests may come to.
    pub(crate) fn committed(&self, batch: JobId) -> rusqlite::Result<i64> {
        let paid: i64 = self
            .conn
            .prepare_cached("SELECT cost_nanos FROM jobmill_batch WHERE job = :batch")?
            .query_row(named_params! { ":batch": batch }, |row| row.get(0))?;
        Ok(paid.saturating_add(reserved(self.conn, batch)?))
    }

    /// Opens a request, whose items are still to come. None: the batch is closed.
    pub(crate) fn open_request(
        &mut self,
        batch: JobId,
        planner: JobId,
        new: &NewRequest<'_>,
    ) -> rusqlite::Result<Option<BatchRequestId>> {
        if !self.is_batch_open(batch)? {
            return Ok(None);
        }
        let last: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(id), 0) FROM jobmill_batch_request")?
            .query_row([], |row| row.get(0))?;
        let id = row_after(last, self.now);
        let key = format!("jm-{}-{}", digits(make_file_tag(self.conn)?), digits(id));
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_batch_request
                     (id, batch, state, provider, account, base_url, api_version, endpoint, model, local, key, poll_owner)
                 VALUES (:id, :batch, 0, :provider, :account, :base_url, :api_version, :endpoint, :model, :local, :key,
                     :planner)",
            )?
            .execute(named_params! {
                ":id": id, ":batch": batch, ":provider": new.provider, ":account": new.account,
                ":base_url": new.base_url, ":api_version": new.api_version, ":endpoint": new.endpoint,
                ":model": new.model, ":local": new.local, ":key": key, ":planner": planner,
            })?;
        Ok(Some(BatchRequestId::from_raw(id)))
    }

    /// Whether a request is open still: another may have ended it, who took its planner for dead.
    pub(crate) fn is_planning(&self, request: BatchRequestId) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_batch_request WHERE id = :id AND state = 0")?
            .exists(named_params! { ":id": request })
    }

    /// Binds items to a request that is open. Each was sent so often before. False: the batch is closed, or the request.
    pub(crate) fn bind(
        &mut self,
        batch: JobId,
        request: BatchRequestId,
        items: &[(BatchItemId, u32)],
    ) -> rusqlite::Result<bool> {
        if !self.is_batch_open(batch)? || !self.is_planning(request)? {
            return Ok(false);
        }
        let mut statement = self.conn.prepare_cached(
            "UPDATE jobmill_batch_item
             SET state = 1, request = ?2, sends = sends + 1, attempt = attempt + 1
             WHERE id = ?1 AND state = 0 AND sends = ?3",
        )?;
        let mut change = Change::default();
        for (id, sends) in items {
            if statement.execute(params![id, request, sends])? != 1 {
                // Somebody else has it, and what was reckoned for this request is wrong. Those before it are bound.
                change.write(self.conn, batch)?;
                return Ok(false);
            }
            change.item(Some(ItemState::Waiting), Some(ItemState::Sent));
        }
        change.write(self.conn, batch)?;
        Ok(true)
    }

    /// Freezes a request. From here on it is sent, whatever crashes. False: the batch is closed, or another request has
    /// taken the room at the account meanwhile, or what was left of the budget.
    pub(crate) fn seal(
        &mut self,
        batch: JobId,
        request: BatchRequestId,
        sealed: &Sealed,
        room: &Room,
    ) -> rusqlite::Result<bool> {
        if !self.is_batch_open(batch)? || !self.is_planning(request)? {
            return Ok(false);
        }
        let all = under_way(self.conn, &room.account, None)?;
        let of_model = under_way(self.conn, &room.account, room.model.as_deref())?;
        let alone = of_model.tokens == 0;
        if all.items + sealed.items > room.items || (of_model.tokens + sealed.tokens > room.tokens && !alone) {
            return Ok(false);
        }
        let left: Option<i64> = self
            .conn
            .prepare_cached("SELECT budget_nanos - cost_nanos FROM jobmill_batch WHERE job = :batch")?
            .query_row(named_params! { ":batch": batch }, |row| row.get(0))?;
        let held = reserved(self.conn, batch)?;
        if left.is_some_and(|left| held.saturating_add(sealed.reserved_nanos) > left) {
            return Ok(false);
        }
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET state = 1, items = :items, bytes = :bytes, tokens = :tokens, reserved_nanos = :reserved_nanos,
                     body_sha256 = :sha256, poll_owner = NULL
                 WHERE id = :id AND state = 0",
            )?
            .execute(named_params! {
                ":id": request, ":items": sealed.items.cast_signed(), ":bytes": sealed.bytes.cast_signed(),
                ":tokens": sealed.tokens.cast_signed(), ":reserved_nanos": sealed.reserved_nanos,
                ":sha256": sealed.sha256,
            })?;
        self.send_later(request)?;
        Ok(true)
    }

    /// Fails an item that waits and can never be sent.
    pub(crate) fn fail_waiting(
        &mut self,
        batch: JobId,
        item: BatchItemId,
        class: &str,
        error: &str,
    ) -> rusqlite::Result<()> {
        let failed = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_item SET state = 4, error_class = :class, error = :error
                 WHERE id = :id AND state = 0",
            )?
            .execute(named_params! { ":id": item, ":class": class, ":error": error })?;
        let mut change = Change::default();
        if failed == 1 {
            change.item(Some(ItemState::Waiting), Some(ItemState::Failed));
        }
        change.write(self.conn, batch)
    }

    /// Lets go of up to `limit` items of a request, and tells whether any are left. They wait again, and if the attempt
    /// is not theirs to pay for, it does not count.
    pub(crate) fn unbind(
        &mut self,
        batch: JobId,
        request: BatchRequestId,
        spent: bool,
        limit: usize,
    ) -> rusqlite::Result<bool> {
        let freed = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_item
                 SET state = 0, attempt = CASE WHEN :spent THEN attempt ELSE max(attempt - 1, 0) END
                 WHERE id IN (SELECT id FROM jobmill_batch_item WHERE request = :request AND state = 1 LIMIT :limit)",
            )?
            .execute(named_params! { ":request": request, ":spent": spent, ":limit": limit as i64 })?;
        let mut change = Change::default();
        change.items(ItemState::Sent, ItemState::Waiting, freed);
        change.write(self.conn, batch)?;
        Ok(freed == limit)
    }

    /// Removes a request that found no item. One that has some stays.
    pub(crate) fn drop_empty(&mut self, request: BatchRequestId) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "DELETE FROM jobmill_batch_request
                 WHERE id = :id AND state = 0
                     AND NOT EXISTS (SELECT 1 FROM jobmill_batch_item WHERE request = :id AND state = 1)",
            )?
            .execute(named_params! { ":id": request })
            .map(drop)
    }

    /// Whether anything of a batch is at a provider or on its way.
    pub(crate) fn has_open_requests(&mut self, batch: JobId) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_batch_request WHERE batch = :batch AND state < 5")?
            .exists(named_params! { ":batch": batch })
    }

    /// Ends a request of which nothing has left.
    pub(crate) fn refuse(&mut self, request: BatchRequestId, why: &str) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET state = :refused, error = :why, ended_at = :now, next_poll_at = NULL, poll_owner = NULL,
                     reserved_nanos = 0
                 WHERE id = :id AND state IN (0, 1)",
            )?
            .execute(named_params! {
                ":id": request, ":why": why, ":now": self.now, ":refused": RequestState::Refused,
            })
            .map(drop)
    }
}

/// What the open requests of a batch may come to.
fn reserved(conn: &Connection, batch: JobId) -> rusqlite::Result<i64> {
    // The database's own sum fails where no number holds it.
    conn.prepare_cached("SELECT reserved_nanos FROM jobmill_batch_request WHERE batch = :batch AND state < 5")?
        .query_map(named_params! { ":batch": batch }, |row| row.get::<_, i64>(0))?
        .try_fold(0_i64, |sum, nanos| nanos.map(|nanos| sum.saturating_add(nanos)))
}

/// The ways of a batch's items.
pub(crate) fn routes(conn: &Connection, batch: JobId) -> rusqlite::Result<Vec<Route>> {
    conn.prepare_cached(
        "SELECT id, provider, endpoint, model FROM jobmill_batch_route WHERE batch = :batch ORDER BY id",
    )?
    .query_map(named_params! { ":batch": batch }, |row| {
        Ok(Route { id: row.get(0)?, provider: row.get(1)?, endpoint: row.get(2)?, model: row.get(3)? })
    })?
    .collect()
}

/// Reads items of some ways that wait, in their order, behind one of them.
pub(crate) const PLAN_WAITING: &str = "SELECT item.id, route, step_number, sends, tokens, max_output, body.body,
         request_items_max
     FROM jobmill_batch_item AS item INDEXED BY jobmill_batch_item_state
     JOIN jobmill_batch_body AS body ON body.item = item.id
     WHERE batch = :batch AND item.state = 0 AND item.id > :after
         AND route IN (SELECT value FROM json_each(:routes)) ORDER BY item.id LIMIT :limit";

/// Items that wait to go one of these ways, in their order, behind one of them: up to `limit`, and fewer if they are large.
pub(crate) fn waiting(
    conn: &Connection,
    batch: JobId,
    routes: &HashSet<i64>,
    after: BatchItemId,
    limit: usize,
) -> rusqlite::Result<Vec<WaitingItem>> {
    let routes = serde_json::to_string(routes).unwrap_or_default();
    let mut statement = conn.prepare_cached(PLAN_WAITING)?;
    let values = named_params! { ":batch": batch, ":routes": routes, ":after": after, ":limit": limit as i64 };
    some_of(statement.query_map(values, waiting_item)?, |item| item.body.get().len())
}

fn waiting_item(row: &rusqlite::Row<'_>) -> rusqlite::Result<WaitingItem> {
    Ok(WaitingItem {
        id: row.get(0)?,
        route: row.get(1)?,
        step_number: row.get(2)?,
        sends: row.get(3)?,
        tokens: row.get::<_, i64>(4)?.cast_unsigned(),
        max_output: row.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned),
        body: raw_json(row, 6)?,
        request_items_max: row.get::<_, Option<i64>>(7)?.map(i64::cast_unsigned),
    })
}

/// JSON that we have written.
pub(crate) fn raw_json(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Box<RawValue>> {
    let text: String = row.get(column)?;
    RawValue::from_string(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// What is under way at an account, of one model if one is given.
pub(crate) fn under_way(conn: &Connection, account: &str, model: Option<&str>) -> rusqlite::Result<UnderWay> {
    conn.prepare_cached(
        "SELECT coalesce(sum(items), 0), coalesce(sum(tokens), 0)
         FROM jobmill_batch_request INDEXED BY jobmill_batch_request_open
         WHERE account = :account AND state < 5 AND (:model IS NULL OR model IS :model)",
    )?
    .query_row(named_params! { ":account": account, ":model": model }, |row| {
        let sum = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(UnderWay { items: sum(0)?, tokens: sum(1)? })
    })
}

/// Reads items of a request, in their order, behind one of them.
pub(crate) const PLAN_BOUND: &str = "SELECT item.id, route, step_number, sends, tokens, max_output, body.body,
         request_items_max
     FROM jobmill_batch_item AS item INDEXED BY jobmill_batch_item_request
     JOIN jobmill_batch_body AS body ON body.item = item.id
     WHERE request = :request AND item.state = 1 AND item.id > :after ORDER BY item.id LIMIT :limit";

/// Items of a request that have no result, in their order, behind one of them: up to `limit`, and fewer if they are large.
pub(crate) fn bound(
    conn: &Connection,
    request: BatchRequestId,
    after: BatchItemId,
    limit: usize,
) -> rusqlite::Result<Vec<WaitingItem>> {
    let mut statement = conn.prepare_cached(PLAN_BOUND)?;
    let values = named_params! { ":request": request, ":after": after, ":limit": limit as i64 };
    some_of(statement.query_map(values, waiting_item)?, |item| item.body.get().len())
}

/// Whether nothing is planned before this moment, and why. What goes beyond the longest time is of a clock that was set back
/// since.
pub(crate) fn blocked(
    conn: &Connection,
    account: &str,
    now: Timestamp,
) -> rusqlite::Result<Option<(Timestamp, String)>> {
    conn.prepare_cached(
        "SELECT blocked_until, coalesce(reason, '') FROM jobmill_batch_account
         WHERE account = :account AND blocked_until > :now AND blocked_until <= :latest",
    )?
    .query_row(named_params! { ":account": account, ":now": now, ":latest": now.saturating_add(THROTTLE_MAX) }, |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
    .optional()
}

/// The items of a request by their places in its body, the first of which is 1. None, if one of these places is not in it,
/// or an item has gone elsewhere meanwhile, so that none can be told for certain.
pub(crate) fn at_places(
    conn: &Connection,
    (batch, request, items): (JobId, BatchRequestId, u64),
    places: &[u64],
) -> rusqlite::Result<Option<Vec<BatchItemId>>> {
    let ids: Vec<BatchItemId> = conn
        .prepare_cached(
            "SELECT id FROM jobmill_batch_item INDEXED BY jobmill_batch_item_batch
             WHERE batch = :batch AND request = :request ORDER BY id",
        )?
        .query_map(named_params! { ":batch": batch, ":request": request }, |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if ids.len() as u64 != items {
        return Ok(None);
    }
    let at = |place: &u64| ids.get(usize::try_from(place.checked_sub(1)?).ok()?).copied();
    Ok(places.iter().map(at).collect())
}

/// How many requests of a batch its providers have refused as a whole since it began, or was retried.
pub(crate) fn refusals(conn: &Connection, batch: JobId) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "SELECT count(*) FROM jobmill_batch_request
         WHERE batch = :batch AND state = 6 AND remote_end ->> '$.invalid' IS NOT NULL
             AND ended_at >= (SELECT started_at FROM jobmill_job WHERE id = :batch)",
    )?
    .query_row(named_params! { ":batch": batch }, |row| row.get::<_, i64>(0))
    .map(|count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// Whether a request is the last that held an item, whatever has become of the item since.
pub(crate) fn was_bound(conn: &Connection, item: BatchItemId, request: BatchRequestId) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM jobmill_batch_item WHERE id = :item AND request = :request")?
        .exists(named_params! { ":item": item, ":request": request })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Store;
    use crate::store::connect::Durability;

    /// Hundreds of requests with a picture in each would be more than a small machine has room for.
    #[test]
    fn large_bodies_are_read_a_few_at_a_time() -> rusqlite::Result<()> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("jobs.db");
        let store =
            Store::open(&path, Durability::Normal, Duration::ZERO, std::sync::Arc::new(crate::clock::SystemClock))
                .expect("a store");
        let conn = store.connection();
        let long = format!("\"{}\"", "x".repeat(1 << 20));
        for id in 1..=12 {
            let (state, body) = (i64::from(id > 6), if id % 6 == 0 { "\"x\"" } else { long.as_str() });
            conn.execute(
                "INSERT INTO jobmill_batch_item (id, batch, state, route, tokens, key, request)
                 VALUES (?1, 7, ?2, 1, 1, ?1, 8)",
                params![id, state],
            )?;
            conn.execute("INSERT INTO jobmill_batch_body (item, body) VALUES (?1, ?2)", params![id, body])?;
        }
        let routes = HashSet::from([1]);
        let ids = |items: Vec<WaitingItem>| items.into_iter().map(|item| item.id.raw()).collect::<Vec<_>>();
        let waiting = |after| waiting(conn, JobId::from_raw(7), &routes, BatchItemId::from_raw(after), 200).map(ids);
        assert_eq!([waiting(0)?, waiting(4)?, waiting(6)?], [vec![1, 2, 3, 4], vec![5, 6], vec![]]);
        let bound = |after| bound(conn, BatchRequestId::from_raw(8), BatchItemId::from_raw(after), 200).map(ids);
        assert_eq!([bound(0)?, bound(10)?, bound(12)?], [vec![7, 8, 9, 10], vec![11, 12], vec![]]);
        Ok(())
    }
}
