//! Results are applied to their items: each once, whatever comes twice, late or for nobody.

use rusqlite::{CachedStatement, OptionalExtension, Row, named_params, params};
use serde_json::value::RawValue;

use crate::model::batch_job::StepItem;
use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::model::job::Priority;
use crate::model::new_batch::NextRequest;
use crate::model::new_job::NewJob;
use crate::model::usage::{PriceTable, Usage};
use crate::provider::{ItemError, ItemOutcome};
use crate::store::Turn;
use crate::store::batch::request::RequestRow;
use crate::store::batch::{Change, ItemState, Mark, file_tag, tokens};
use crate::store::row::json;

/// How much is kept of a line that belongs to no item, in bytes.
const STRAY_BYTES: usize = 2000;
/// How much is kept of what went wrong, in bytes.
const ERROR_BYTES: usize = 2000;

/// A line of results, as it goes into the ledger.
pub(crate) struct ResultRow {
    /// None: the line cannot be read.
    pub(crate) custom_id: Option<String>,
    pub(crate) outcome: Option<ItemOutcome>,
    /// The line's beginning, or what is wrong with it.
    pub(crate) line: String,
}

/// What a chunk of results came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Items that the chunk took further.
    pub(crate) items: u64,
    /// An item says that the account is at fault.
    pub(crate) account: bool,
}

/// What holds for all items of a batch.
pub(super) struct Terms {
    pub(super) step: Option<String>,
    max_attempts: u32,
    cancelled: bool,
    queue: String,
    priority: Priority,
    user: Option<String>,
}

/// An item, as its result must find it.
struct Item {
    batch: JobId,
    state: ItemState,
    request: Option<BatchRequestId>,
    step_number: u32,
    sends: u32,
    attempt: u32,
    applied: u32,
    applied_by: Option<BatchRequestId>,
    model: String,
}

impl Item {
    /// Whether this result was counted before: it is read once more, after a crash or a connection that broke.
    fn was_told(&self, mark: &Mark, request: &RequestRow) -> bool {
        // A twin holds items that were bound to another request, and is paid beside it.
        let twin = request.items == 0;
        match mark.sends == self.applied {
            true => self.applied_by == Some(request.id),
            false => mark.sends < self.applied && !twin,
        }
    }

    /// Whether a result takes the item further.
    fn awaits(&self, mark: &Mark, request: &RequestRow, outcome: &ItemOutcome) -> bool {
        if self.state == ItemState::Sent && self.request == Some(request.id) && self.sends == mark.sends {
            return true;
        }
        // An older attempt that succeeds after all wins over a newer one that has not yet.
        matches!(outcome, ItemOutcome::Succeeded { .. })
            && self.step_number == mark.step_number
            && matches!(self.state, ItemState::Waiting | ItemState::Sent)
    }
}

fn item(find: &mut CachedStatement<'_>, id: BatchItemId) -> rusqlite::Result<Option<Item>> {
    let read = |row: &Row<'_>| {
        Ok(Item {
            batch: row.get(0)?,
            state: row.get(1)?,
            request: row.get(2)?,
            step_number: row.get(3)?,
            sends: row.get(4)?,
            attempt: row.get(5)?,
            applied: row.get(6)?,
            applied_by: row.get(7)?,
            model: row.get(8)?,
        })
    };
    find.query_row(params![id], read).optional()
}

/// Reads an item that a result is for.
pub(crate) const PLAN_ITEM: &str =
    "SELECT item.batch, state, request, step_number, sends, attempt, applied, applied_by,
         route.model
     FROM jobmill_batch_item AS item JOIN jobmill_batch_route AS route ON route.id = item.route
     WHERE item.id = ?1";

/// Takes an item further by a result. What its failed attempts have used up stays in the sum.
pub(crate) const PLAN_APPLY: &str = "UPDATE jobmill_batch_item
     SET state = ?2, attempt = ?3, finish = ?4, error_class = ?5, error = ?6, step_job = ?7,
         input = CASE WHEN ?8 IS NULL THEN input ELSE CAST(coalesce(input, 0) + ?8 AS INTEGER) END,
         cache_read = CASE WHEN ?9 IS NULL THEN cache_read ELSE CAST(coalesce(cache_read, 0) + ?9 AS INTEGER) END,
         cache_write = CASE WHEN ?10 IS NULL THEN cache_write ELSE CAST(coalesce(cache_write, 0) + ?10 AS INTEGER) END,
         output = CASE WHEN ?11 IS NULL THEN output ELSE CAST(coalesce(output, 0) + ?11 AS INTEGER) END,
         reasoning = CASE WHEN ?12 IS NULL THEN reasoning ELSE CAST(coalesce(reasoning, 0) + ?12 AS INTEGER) END,
         cost_nanos = CAST(cost_nanos + ?13 AS INTEGER), unpriced = unpriced + ?14, applied = ?15, applied_by = ?16,
         request_items_max = ?17
     WHERE id = ?1";

/// What the step of an item has decided.
pub(crate) enum Decision {
    /// It is done, with its reply or with this JSON as its output.
    Done(Option<String>),
    /// It goes on.
    Next(NextRequest),
    /// It failed, for this reason.
    Fail(String),
}

/// What becomes of an item.
struct Verdict {
    state: ItemState,
    attempt: u32,
    finish: Option<&'static str>,
    class: Option<&'static str>,
    error: Option<String>,
}

impl Turn<'_> {
    /// Applies a chunk of a request's results.
    pub(crate) fn apply_results(
        &mut self,
        request: &RequestRow,
        rows: &[ResultRow],
        prices: Option<&PriceTable>,
    ) -> rusqlite::Result<Applied> {
        let (Some(tag), Some(terms)) = (file_tag(self.conn)?, self.terms(request.batch)?) else {
            // The batch has been deleted. What was paid for it, nobody asks any more.
            return Ok(Applied::default());
        };
        let conn = self.conn;
        let mut find = conn.prepare_cached(PLAN_ITEM)?;
        let mut apply = conn.prepare_cached(PLAN_APPLY)?;
        let mut keep =
            conn.prepare_cached("INSERT OR REPLACE INTO jobmill_batch_output (item, output) VALUES (?1, ?2)")?;
        let (mut change, mut applied) = (Change::default(), Applied::default());
        for row in rows {
            let (Some(custom_id), Some(outcome)) = (&row.custom_id, &row.outcome) else {
                self.stray(request, row, "unreadable", None, &mut change)?;
                continue;
            };
            let mark = Mark::parse(custom_id).filter(|mark| mark.tag == tag);
            let item = match &mark {
                Some(mark) => item(&mut find, mark.item)?.filter(|item| item.batch == request.batch),
                None => None,
            };
            let usage = usage_of(outcome);
            let Some((mark, item)) = mark.zip(item) else {
                self.stray(request, row, "unknown", Some((usage, None)), &mut change)?;
                continue;
            };
            if item.was_told(&mark, request) {
                continue;
            }
            let cost = usage.and_then(|usage| prices.and_then(|prices| prices.cost_nanos(&item.model, usage)));
            if !item.awaits(&mark, request, outcome) {
                let why = if item.state == ItemState::Sent { "superseded" } else { "duplicate" };
                self.stray(request, row, why, Some((usage, cost)), &mut change)?;
                continue;
            }
            let verdict = verdict(&terms, &item, outcome);
            applied.items += 1;
            applied.account |= matches!(outcome, ItemOutcome::Errored { class: ItemError::Account, .. });
            let step_job = match (&terms.step, verdict.state) {
                (Some(step), ItemState::Stepping) => {
                    Some(self.step_later(step, &terms, mark.item, item.step_number)?)
                }
                _ => None,
            };
            let told = usage.copied().unwrap_or_default();
            apply.execute(params![
                mark.item,
                verdict.state,
                verdict.attempt,
                verdict.finish,
                verdict.class,
                verdict.error,
                step_job,
                tokens(told.input),
                tokens(told.cache_read),
                tokens(told.cache_write),
                tokens(told.output),
                tokens(told.reasoning),
                cost.unwrap_or(0),
                i64::from(usage.is_some() && cost.is_none()),
                mark.sends,
                request.id,
                matches!(outcome, ItemOutcome::Expired).then(|| half(request)).flatten(),
            ])?;
            if let ItemOutcome::Succeeded { reply, .. } = outcome {
                keep.execute(params![mark.item, reply.get()])?;
            }
            if let Some(usage) = usage {
                change.spent(usage, cost);
            }
            change.item(Some(item.state), Some(verdict.state));
        }
        change.write(self.conn, request.batch)?;
        self.note_applied(request, applied, prices)?;
        Ok(applied)
    }

    /// Notes of a request that results of it were applied, and of its batch by which prices.
    fn note_applied(
        &mut self,
        request: &RequestRow,
        applied: Applied,
        prices: Option<&PriceTable>,
    ) -> rusqlite::Result<()> {
        if applied.items > 0 {
            // What moves on need not wait longer each time that it stumbles.
            self.conn
                .prepare_cached("UPDATE jobmill_batch_request SET failures = 0 WHERE id = :id AND failures > 0")?
                .execute(named_params! { ":id": request.id })?;
        }
        if let Some(prices) = prices {
            self.conn
                .prepare_cached("UPDATE jobmill_batch SET currency = :currency, prices = :version WHERE job = :batch")?
                .execute(named_params! {
                    ":batch": request.batch, ":currency": prices.currency(), ":version": prices.version(),
                })?;
        }
        Ok(())
    }

    /// Ends up to `limit` items of a request whose results have all been read and which had none, and tells whether any are
    /// left. They are sent again while attempts are left, unless the batch or the request was cancelled.
    pub(crate) fn finish_missing(
        &mut self,
        request: &RequestRow,
        to: ItemState,
        limit: usize,
    ) -> rusqlite::Result<bool> {
        let Some(terms) = self.terms(request.batch)? else { return Ok(false) };
        let to = if terms.cancelled { ItemState::Cancelled } else { to };
        let (class, error) = match to {
            ItemState::Cancelled => (None, None),
            ItemState::Expired => (None, Some("its time was up")),
            _ => (Some(class_word(ItemError::Missing)), Some("the provider gave no result for it")),
        };
        let finished: Vec<ItemState> = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_item
                 SET state = CASE WHEN :to <> 5 AND attempt < :max_attempts THEN 0 ELSE :to END,
                     error_class = :class, error = :error, request_items_max = :request_items_max
                 WHERE id IN (SELECT id FROM jobmill_batch_item WHERE request = :request AND state = 1 LIMIT :limit)
                 RETURNING state",
            )?
            .query_map(
                named_params! {
                    ":request": request.id, ":to": to, ":max_attempts": terms.max_attempts, ":class": class,
                    ":error": error, ":limit": limit as i64,
                    ":request_items_max": (to == ItemState::Expired).then(|| half(request)).flatten(),
                },
                |row| row.get(0),
            )?
            .collect::<rusqlite::Result<_>>()?;
        let mut change = Change::default();
        finished.iter().for_each(|state| change.item(Some(ItemState::Sent), Some(*state)));
        change.write(self.conn, request.batch)?;
        Ok(finished.len() == limit)
    }

    /// Ends up to `limit` items of a request of which nobody knows what became, and tells whether any are left.
    pub(crate) fn lose_items(
        &mut self,
        batch: JobId,
        request: BatchRequestId,
        why: &str,
        limit: usize,
    ) -> rusqlite::Result<bool> {
        let (to, class, error) = match self.is_cancel_requested(batch)? {
            true => (ItemState::Cancelled, None, None),
            false => (ItemState::Failed, Some(class_word(ItemError::Missing)), Some(cut(why, ERROR_BYTES))),
        };
        // What it cost is not nothing: it is not known.
        let lost = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_item
                 SET state = :to, error_class = :class, error = :error, unpriced = unpriced + 1
                 WHERE id IN (SELECT id FROM jobmill_batch_item WHERE request = :request AND state = 1 LIMIT :limit)",
            )?
            .execute(named_params! {
                ":request": request, ":to": to, ":class": class, ":error": error, ":limit": limit as i64,
            })?;
        let mut change = Change::default();
        change.items(ItemState::Sent, to, lost);
        change.unknown(lost);
        change.write(self.conn, batch)?;
        Ok(lost == limit)
    }

    pub(super) fn terms(&self, batch: JobId) -> rusqlite::Result<Option<Terms>> {
        self.conn
            .prepare_cached(
                "SELECT batch.step, batch.max_attempts, job.cancel_requested_at IS NOT NULL OR job.state <> 2, lane.queue,
                     lane.priority, (SELECT user_id FROM jobmill_share WHERE jobmill_share.id = job.share)
                 FROM jobmill_batch AS batch JOIN jobmill_job AS job ON job.id = batch.job
                 JOIN jobmill_lane AS lane ON lane.id = job.lane WHERE batch.job = :batch",
            )?
            .query_row(named_params! { ":batch": batch }, |row| {
                Ok(Terms {
                    step: row.get(0)?,
                    max_attempts: row.get(1)?,
                    cancelled: row.get(2)?,
                    queue: row.get(3)?,
                    priority: row.get(4)?,
                    user: row.get(5)?,
                })
            })
            .optional()
    }

    pub(super) fn step_later(
        &mut self,
        step: &str,
        terms: &Terms,
        item: BatchItemId,
        step_number: u32,
    ) -> rusqlite::Result<JobId> {
        let mut job = NewJob::json(step.to_owned(), &StepItem { item, step_number })
            .queue(terms.queue.clone())
            .priority(terms.priority);
        job.user_id.clone_from(&terms.user);
        self.enqueue(&job).map(|enqueued| enqueued.id())
    }

    /// Keeps a line that takes no item further. If it was paid for, that counts.
    fn stray(
        &mut self,
        request: &RequestRow,
        row: &ResultRow,
        why: &str,
        paid: Option<(Option<&Usage>, Option<i64>)>,
        change: &mut Change,
    ) -> rusqlite::Result<()> {
        let cost = paid.and_then(|(_, cost)| cost);
        let kept = self
            .conn
            .prepare_cached(
                "INSERT OR IGNORE INTO jobmill_batch_stray (request, custom_id, why, line, cost_nanos)
                 VALUES (:request, :custom_id, :why, :line, :cost)",
            )?
            .execute(named_params! {
                ":request": request.id, ":custom_id": row.custom_id, ":why": why,
                ":line": cut(&row.line, STRAY_BYTES), ":cost": cost,
            })?;
        // Read once more after a crash, it is no other stray.
        if kept == 1 {
            change.stray();
            if let Some((Some(usage), cost)) = paid {
                change.spent(usage, cost);
            }
        }
        Ok(())
    }

    /// Takes an item further as its step has decided. False: it is not at that step any more, or another job is.
    pub(crate) fn step_item(
        &mut self,
        item: BatchItemId,
        step_number: u32,
        job: JobId,
        decided: &Decision,
    ) -> rusqlite::Result<bool> {
        let known: Option<(JobId, u32)> = self
            .conn
            .prepare_cached(
                "SELECT batch, (SELECT max_steps FROM jobmill_batch WHERE job = batch) FROM jobmill_batch_item
                 WHERE id = :item AND state = 2 AND step_number = :step_number AND step_job = :job",
            )?
            .query_row(named_params! { ":item": item, ":step_number": step_number, ":job": job }, |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((batch, max_steps)) = known else { return Ok(false) };
        let to = match decided {
            Decision::Fail(_) => ItemState::Failed,
            Decision::Next(_) if self.is_cancel_requested(batch)? => ItemState::Cancelled,
            Decision::Next(_) if step_number + 1 < max_steps => ItemState::Waiting,
            _ => ItemState::Completed,
        };
        let error = match decided {
            Decision::Fail(error) => Some(cut(error, ERROR_BYTES)),
            _ => None,
        };
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_item
                 SET state = :to, step_job = NULL, error = :error, error_class = CASE WHEN :to = 4 THEN 'step' END,
                     step_number = step_number + (:to = 0), attempt = CASE WHEN :to = 0 THEN 0 ELSE attempt END,
                     finish = CASE WHEN :to = 0 THEN NULL ELSE finish END
                 WHERE id = :item AND state = 2",
            )?
            .execute(named_params! { ":item": item, ":to": to, ":error": error })?;
        match decided {
            Decision::Done(Some(output)) => {
                self.conn
                    .prepare_cached(
                        "INSERT OR REPLACE INTO jobmill_batch_output (item, output) VALUES (:item, :output)",
                    )?
                    .execute(named_params! { ":item": item, ":output": output })?;
            }
            Decision::Next(next) if to == ItemState::Waiting => self.go_on(batch, item, next)?,
            _ => {}
        }
        let mut change = Change::default();
        change.item(Some(ItemState::Stepping), Some(to));
        change.write(self.conn, batch)?;
        self.settle(batch)?;
        Ok(true)
    }

    /// Gives an item its next request.
    fn go_on(&self, batch: JobId, item: BatchItemId, next: &NextRequest) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_batch_body SET body = :body, state = :state WHERE item = :item")?
            .execute(named_params! { ":item": item, ":body": next.body, ":state": next.state })?;
        self.conn
            .prepare_cached("UPDATE jobmill_batch_item SET tokens = :tokens, max_output = :max_output WHERE id = :item")?
            .execute(named_params! {
                ":item": item, ":tokens": next.tokens.cast_signed(), ":max_output": next.max_output.map(u64::cast_signed),
            })?;
        let Some((old, new)) = &next.remodel else { return Ok(()) };
        // One whose model was set by hand is reckoned by that, whatever its requests say.
        let way: Option<(String, String)> = self
            .conn
            .prepare_cached(
                "SELECT provider, endpoint FROM jobmill_batch_route
                 WHERE id = (SELECT route FROM jobmill_batch_item WHERE id = :item) AND model = :old",
            )?
            .query_row(named_params! { ":item": item, ":old": old }, |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((provider, endpoint)) = way else { return Ok(()) };
        let route = self.route(batch, (&provider, &endpoint, new))?;
        self.conn
            .prepare_cached("UPDATE jobmill_batch_item SET route = :route WHERE id = :item")?
            .execute(named_params! { ":item": item, ":route": route })
            .map(drop)
    }

    /// Fails items whose step's job has come to an end without a word, if it has not been taken up again.
    pub(crate) fn fail_lost_steps(&mut self, lost: Vec<LostStep>) -> rusqlite::Result<()> {
        for LostStep { item, step_number, job, error } in lost {
            let is_open = self
                .conn
                .prepare_cached("SELECT 1 FROM jobmill_job WHERE id = :job AND state NOT IN (3, 4, 5, 6)")?
                .exists(named_params! { ":job": job })?;
            if !is_open {
                let error = error.unwrap_or_else(|| "the job of its step was cancelled or deleted".to_owned());
                self.step_item(item, step_number, job, &Decision::Fail(error))?;
            }
        }
        Ok(())
    }
}

/// How many items may go together at most of those for which a request's time was not enough: half as many as it held.
fn half(request: &RequestRow) -> Option<i64> {
    (request.items > 0).then(|| request.items.div_ceil(2).cast_signed())
}

/// An item whose step's job has come to an end without a word.
pub(crate) struct LostStep {
    item: BatchItemId,
    step_number: u32,
    job: JobId,
    error: Option<String>,
}

/// Up to `limit` items whose step's job has come to an end without a word.
pub(crate) fn lost_steps(conn: &rusqlite::Connection, limit: usize) -> rusqlite::Result<Vec<LostStep>> {
    conn.prepare_cached(
        "SELECT item.id, item.step_number, item.step_job, job.error
         FROM jobmill_batch_item AS item INDEXED BY jobmill_batch_item_step
         LEFT JOIN jobmill_job AS job ON job.id = item.step_job
         WHERE item.state = 2 AND (job.id IS NULL OR job.state IN (3, 4, 5, 6)) LIMIT :limit",
    )?
    .query_map(named_params! { ":limit": limit as i64 }, |row| {
        Ok(LostStep { item: row.get(0)?, step_number: row.get(1)?, job: row.get(2)?, error: row.get(3)? })
    })?
    .collect()
}

/// What a result tells of tokens, if anybody was paid for it.
fn usage_of(outcome: &ItemOutcome) -> Option<&Usage> {
    match outcome {
        ItemOutcome::Succeeded { usage, .. } => Some(usage),
        ItemOutcome::Errored { usage, .. } if !usage.is_unknown() => Some(usage),
        _ => None,
    }
}

fn verdict(terms: &Terms, item: &Item, outcome: &ItemOutcome) -> Verdict {
    let attempt = item.attempt;
    let again = !terms.cancelled && attempt < terms.max_attempts;
    match outcome {
        ItemOutcome::Succeeded { finish, .. } => {
            let state = match (&terms.step, terms.cancelled) {
                (None, _) => ItemState::Completed,
                (Some(_), true) => ItemState::Cancelled,
                (Some(_), false) => ItemState::Stepping,
            };
            Verdict { state, attempt, finish: Some(word(finish)), class: None, error: None }
        }
        ItemOutcome::Errored { class, code, message, .. } => {
            let own_fault = *class != ItemError::Account;
            let state = match () {
                () if !own_fault && !terms.cancelled => ItemState::Waiting,
                () if class.is_retryable() && again => ItemState::Waiting,
                () => ItemState::Failed,
            };
            let error = cut(&format!("{code}: {message}"), ERROR_BYTES).to_owned();
            let attempt = if own_fault { attempt } else { attempt.saturating_sub(1) };
            Verdict { state, attempt, finish: None, class: Some(class_word(*class)), error: Some(error) }
        }
        ItemOutcome::Cancelled => {
            Verdict { state: ItemState::Cancelled, attempt, finish: None, class: None, error: None }
        }
        ItemOutcome::Expired => {
            let state = if again { ItemState::Waiting } else { ItemState::Expired };
            Verdict { state, attempt, finish: None, class: None, error: Some("its time was up".to_owned()) }
        }
    }
}

/// What kind of failure it is, as a word.
pub(crate) fn class_word(class: ItemError) -> &'static str {
    match class {
        ItemError::Invalid => "invalid",
        ItemError::Content => "content",
        ItemError::RateLimited => "rate_limited",
        ItemError::Server => "server",
        ItemError::Account => "account",
        ItemError::Missing => "missing",
        ItemError::Unknown => "unknown",
    }
}

fn word(finish: &crate::provider::Finish) -> &'static str {
    use crate::provider::Finish;
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolUse => "tool_use",
        Finish::Refusal => "refusal",
        Finish::Other => "other",
    }
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// A reply and what goes with it, as a step takes them.
pub(crate) struct ReplyRow {
    pub(crate) batch: JobId,
    pub(crate) key: String,
    pub(crate) agent_id: Option<String>,
    pub(crate) request: Box<RawValue>,
    pub(crate) reply: Box<RawValue>,
    pub(crate) state: Option<Box<RawValue>>,
}

/// What the step of an item is to decide about, which is this job. None: it is not at that step, or another job is: a job
/// of that kind is soon enqueued by anybody, and an item that was retried has another than before.
pub(crate) fn reply(
    conn: &rusqlite::Connection,
    item: BatchItemId,
    step_number: u32,
    job: JobId,
) -> rusqlite::Result<Option<ReplyRow>> {
    conn.prepare_cached(
        "SELECT batch, key, agent_id, body.body, output.output, body.state
         FROM jobmill_batch_item AS item JOIN jobmill_batch_body AS body ON body.item = item.id
         JOIN jobmill_batch_output AS output ON output.item = item.id
         WHERE item.id = :item AND item.state = 2 AND step_number = :step_number AND step_job = :job",
    )?
    .query_row(named_params! { ":item": item, ":step_number": step_number, ":job": job }, |row| {
        Ok(ReplyRow {
            batch: row.get(0)?,
            key: row.get(1)?,
            agent_id: row.get(2)?,
            request: super::plan::raw_json(row, 3)?,
            reply: super::plan::raw_json(row, 4)?,
            state: json(row, 5)?,
        })
    })
    .optional()
}
