//! A batch is made: its job, its items in slices, and the word that they may go.

use std::collections::HashMap;

use rusqlite::{named_params, params};

use crate::model::history::Caller;
use crate::model::id::{BatchItemId, JobId, row_after};
use crate::model::job::Status;
use crate::model::new_batch::{NewBatch, ReadyItem};
use crate::model::new_job::NewJob;
use crate::store::Turn;
use crate::store::batch::{Change, ItemState, make_file_tag};
use crate::store::enqueue::Enqueued;

/// Why an item was not added.
pub(crate) enum NotAdded {
    /// The batch is under way, or has ended.
    Closed,
    /// Another item of the batch has this key.
    KeyTwice(String),
}

impl Turn<'_> {
    /// Records a batch without items, which waits for them.
    pub(crate) fn create_batch(&mut self, new: &NewBatch, job: &NewJob) -> rusqlite::Result<Enqueued> {
        make_file_tag(self.conn)?;
        let enqueued = self.enqueue(job)?;
        if let Enqueued::New(id) = enqueued {
            self.conn
                .prepare_cached(
                    "INSERT INTO jobmill_batch (job, provider, step, max_steps, max_attempts, budget_nanos,
                         request_items)
                     VALUES (:job, :provider, :step, :max_steps, :max_attempts, :budget_nanos, :request_items)",
                )?
                .execute(named_params! {
                    ":job": id, ":provider": new.provider, ":step": new.step, ":max_steps": new.max_steps,
                    ":max_attempts": new.max_attempts, ":budget_nanos": new.budget_nanos(),
                    ":request_items": new.request_items.map(u64::cast_signed),
                })?;
        }
        Ok(enqueued)
    }

    /// Adds items to a batch that waits for them.
    pub(crate) fn add_items(
        &mut self,
        batch: JobId,
        provider: &str,
        items: &[ReadyItem],
    ) -> rusqlite::Result<Result<(), NotAdded>> {
        if self.standing(batch, &Caller::default())?.is_none_or(|batch| batch.state.status() != Status::Created) {
            return Ok(Err(NotAdded::Closed));
        }
        let mut last: i64 = self
            .conn
            .prepare_cached("SELECT coalesce(max(id), 0) FROM jobmill_batch_item")?
            .query_row([], |row| row.get(0))?;
        let mut routes: HashMap<(&str, &str, &str), i64> = HashMap::new();
        let mut change = Change::default();
        let mut insert = self.conn.prepare_cached(
            "INSERT OR IGNORE INTO jobmill_batch_item (id, batch, state, route, tokens, max_output, key, agent_id)
             VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7)",
        )?;
        let mut body =
            self.conn.prepare_cached("INSERT INTO jobmill_batch_body (item, body, state) VALUES (?1, ?2, ?3)")?;
        for item in items {
            let way = (item.provider.as_deref().unwrap_or(provider), &*item.endpoint, &*item.model);
            let route = match routes.get(&way) {
                Some(route) => *route,
                None => {
                    let route = self.route(batch, way)?;
                    routes.insert(way, route);
                    route
                }
            };
            last = row_after(last, self.now);
            let id = BatchItemId::from_raw(last);
            let max_output = item.max_output.map(u64::cast_signed);
            let added = insert.execute(params![
                id,
                batch,
                route,
                item.tokens.cast_signed(),
                max_output,
                item.key,
                item.agent_id
            ])?;
            if added == 0 {
                return Ok(Err(NotAdded::KeyTwice(item.key.clone())));
            }
            body.execute(params![id, item.body.get(), item.state.as_ref().map(|state| state.get())])?;
            change.item(None, Some(ItemState::Waiting));
        }
        change.write(self.conn, batch)?;
        Ok(Ok(()))
    }

    /// The way of a batch's items to a provider, its endpoint and a model.
    pub(super) fn route(&self, batch: JobId, (provider, endpoint, model): (&str, &str, &str)) -> rusqlite::Result<i64> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_batch_route (batch, provider, endpoint, model)
                 VALUES (:batch, :provider, :endpoint, :model)
                 ON CONFLICT (batch, provider, endpoint, model) DO UPDATE SET model = excluded.model
                 RETURNING id",
            )?
            .query_row(
                named_params! { ":batch": batch, ":provider": provider, ":endpoint": endpoint, ":model": model },
                |row| row.get(0),
            )
    }

    /// Lets a batch go whose items are complete. False: it is under way, or has ended.
    pub(crate) fn release_batch(&mut self, batch: JobId) -> rusqlite::Result<bool> {
        let Some(standing) = self.standing(batch, &Caller::default())? else { return Ok(false) };
        if standing.state.status() != Status::Created {
            return Ok(false);
        }
        self.start_batch(&standing)?;
        self.settle(batch)?;
        Ok(true)
    }
}
