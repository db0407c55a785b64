//! The job that reads the results of a request which has ended: in chunks, as often as need be, to the last.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::builtin::batch::body::{Encoder, OpenItems};
use crate::builtin::batch::{Agency, SLICE, backoff, call, failed, in_slices};
use crate::error::{Error, Result};
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::{HarvestRequest, RunRequest};
use crate::model::id::BatchRequestId;
use crate::model::time::Timestamp;
use crate::provider::{CallClass, Provider, RemoteEnd, ResultLine};
use crate::store::batch::account::Learnt;
use crate::store::batch::request::{RequestRow, request};
use crate::store::batch::results::{Applied, ResultRow};
use crate::store::batch::{ItemState, RequestState, file_tag, plan};

/// How many results are written in one transaction, and how many bytes of them.
const CHUNK_ROWS: usize = 500;
const CHUNK_BYTES: usize = 4 << 20;
/// How long a result of a local provider waits for others to be written with.
const CHUNK_WAIT: Duration = Duration::from_millis(100);
/// How much is kept of a line that may belong to no item, in bytes.
const LINE_BYTES: usize = 2000;
/// How long a quota is left alone after it was reached.
const QUOTA_WAIT: Duration = Duration::from_secs(60);

/// How often a batch may be refused as a whole before what is refused is not parted any more: that many refusals find a
/// few bad items among thousands, and more of them mean that the items are not to blame one by one.
const REFUSALS_MAX: usize = 64;

/// The handler of harvests.
pub(crate) struct Harvester {
    pub(crate) agency: Arc<Agency>,
}

impl Handler for Harvester {
    type Payload = HarvestRequest;
    type Output = ();

    fn run(&self, payload: HarvestRequest, ctx: &Context) -> Result<Outcome<()>, Failure> {
        self.harvest(payload.request, ctx).map_err(failed)
    }
}

/// The handler of requests that a local provider runs while their results are read.
pub(crate) struct Runner(pub(crate) Harvester);

impl Handler for Runner {
    type Payload = RunRequest;
    type Output = ();

    fn run(&self, payload: RunRequest, ctx: &Context) -> Result<Outcome<()>, Failure> {
        self.0.harvest(payload.request, ctx).map_err(failed)
    }
}

/// What gathers results until they are written.
struct Basket<'a> {
    row: Arc<RequestRow>,
    agency: &'a Arc<Agency>,
    ctx: &'a Context,
    rows: Vec<ResultRow>,
    bytes: usize,
    since: Duration,
    /// Each result is written soon.
    local: bool,
    sum: Applied,
    failed: Option<Error>,
    /// Nothing more is read, for the engine shuts down and all can be read again.
    stopped: bool,
    /// Nothing more is begun of a batch that runs here, for it is cancelled.
    over: &'a AtomicBool,
}

impl Basket<'_> {
    fn take(&mut self, line: ResultLine<'_>) -> ControlFlow<()> {
        let (custom_id, outcome, raw) = match line {
            ResultLine::Result { custom_id, outcome, raw } => {
                self.bytes += raw.len();
                (Some(custom_id.to_owned()), Some(outcome), raw)
            }
            ResultLine::Unreadable { raw, problem } => {
                log::warn!("{}: a line of its results cannot be read: {problem}", self.row.id);
                (None, None, raw)
            }
            ResultLine::Lull => {
                self.write();
                return self.goes_on();
            }
        };
        let row = ResultRow { custom_id, outcome, line: raw[..raw.floor_char_boundary(LINE_BYTES)].to_owned() };
        let now = self.ctx.client().desk().clock().monotonic();
        if self.rows.is_empty() {
            self.since = now;
        }
        self.rows.push(row);
        let old = self.local && now.saturating_sub(self.since) >= CHUNK_WAIT;
        if self.rows.len() >= CHUNK_ROWS || self.bytes >= CHUNK_BYTES || old {
            self.write();
        }
        self.goes_on()
    }

    fn goes_on(&self) -> ControlFlow<()> {
        if self.failed.is_some() || self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn write(&mut self) {
        if self.rows.is_empty() || self.failed.is_some() {
            return;
        }
        self.bytes = 0;
        let (rows, local) = (std::mem::take(&mut self.rows), self.local);
        let (row, agency) = (self.row.clone(), self.agency.clone());
        let written = call(self.ctx.client().desk(), move |turn| {
            let applied = turn.apply_results(&row, &rows, agency.settings.prices.as_ref())?;
            // What runs elsewhere is all read, for it was paid. What would run here does not.
            Ok((applied, local && turn.is_cancel_requested(row.batch)?))
        });
        match written {
            Ok((applied, cancelled)) => {
                self.sum.items += applied.items;
                self.agency.items_updated.fetch_add(applied.items, Ordering::Relaxed);
                self.sum.account |= applied.account;
                self.over.fetch_or(cancelled, Ordering::Relaxed);
                // What runs here when the engine shuts down comes to its end, and would be paid twice if it did not count.
                self.stopped |= !self.local && self.ctx.is_shutting_down();
            }
            Err(error) => self.failed = Some(error),
        }
    }
}

impl Harvester {
    fn harvest(&self, id: BatchRequestId, ctx: &Context) -> Result<Outcome<()>> {
        let (desk, reader) = (ctx.client().desk(), ctx.client().reader());
        let row = reader.snapshot("cannot read the request", |conn| request(conn, id))?;
        let Some(row) = row.filter(|row| row.state == RequestState::Ended) else {
            return Ok(Outcome::Done(()));
        };
        match &row.end {
            Some(RemoteEnd::Invalid(why)) => return self.refused(&row, why, ctx),
            Some(RemoteEnd::Quota(why)) => return self.over_quota(&row, why, ctx),
            Some(RemoteEnd::Broken(why)) => return self.broken(&row, why, ctx),
            Some(RemoteEnd::Lost(why)) => return self.lost(&row, why, ctx),
            _ => {}
        }
        let Some(provider) = self.agency.for_account(&row.provider, &row.account) else {
            let why = format!("the account {} is not here", row.account);
            call(desk, move |turn| turn.request_failed(&row, &why))?;
            return Ok(Outcome::Snooze(Duration::from_secs(60)));
        };
        let Some(remote) = row.latest.clone() else {
            return Err(Error::invalid(
                "latest",
                format_args!("{id} has ended and nothing tells where its results are"),
            ));
        };
        let (tag, routes) = reader.snapshot("cannot read the batch", |conn| {
            Ok((file_tag(conn)?.unwrap_or_default(), plan::routes(conn, row.batch)?))
        })?;
        let encoder = Encoder::new(&**provider, tag, routes, row.endpoint.clone());
        let over = AtomicBool::new(false);
        let mut todo = OpenItems::new(ctx, &row, encoder, &over);
        let mut basket = Basket {
            row: Arc::new(row.clone()),
            agency: &self.agency,
            ctx,
            rows: Vec::new(),
            bytes: 0,
            since: Duration::ZERO,
            local: provider.limits().local,
            sum: Applied::default(),
            failed: None,
            stopped: false,
            over: &over,
        };
        let read = provider.results(&remote, &mut todo, &mut |line| basket.take(line));
        basket.write();
        let Basket { sum, failed, stopped, .. } = basket;
        if let Some(error) = failed {
            return Err(error);
        }
        if sum.account {
            let account = row.account.clone();
            call(desk, move |turn| turn.block(&account, None, "requests failed for the account's sake"))?;
        }
        if ctx.is_shutting_down() && (stopped || todo_is_left(provider.as_ref(), &row, ctx)?) {
            return Ok(Outcome::Snooze(Duration::ZERO));
        }
        todo.end()?;
        if let Err(error) = read {
            let wait = error.retry_after.unwrap_or_else(|| backoff(row.failures));
            log::warn!("{id}: its results cannot be read now: {error}");
            warn_of_retention(&row, provider.limits().retention, desk.clock().now());
            let (text, not_found) = (error.to_string(), error.is_not_found());
            let account = error.class == CallClass::Account;
            let patience = self.agency.settings.lost_after;
            // Whether a local endpoint serves again shows when this is tried again.
            let pause = provider.limits().local.then_some(wait);
            let lost = call(desk, move |turn| {
                if account {
                    turn.block(&row.account, pause, &text)?;
                }
                turn.request_failed(&row, &text)?;
                Ok(not_found && turn.not_known(&row, &text, patience)?)
            })?;
            return Ok(Outcome::Snooze(if lost { Duration::ZERO } else { wait }));
        }
        let to = match &row.end {
            Some(RemoteEnd::Cancelled) => ItemState::Cancelled,
            Some(RemoteEnd::Expired) => ItemState::Expired,
            _ => ItemState::Failed,
        };
        let missing = row.clone();
        in_slices(desk, move |turn| turn.finish_missing(&missing, to, SLICE))?;
        log::info!("{id}: {} items have their results", sum.items);
        let clean = self.agency.settings.delete_after_harvest;
        let heals = provider.limits().local && !sum.account;
        call(desk, move |turn| {
            if heals {
                turn.unblock(&row.account)?;
            }
            turn.harvested(&row, clean)
        })?;
        Ok(Outcome::Done(()))
    }

    /// The input was refused as a whole, and nothing was run. The items that its provider names fail, and the others go
    /// again. If it names none, they go again in halves, so that what is refused stands alone in the end, and fails.
    fn refused(&self, row: &RequestRow, why: &str, ctx: &Context) -> Result<Outcome<()>> {
        let (desk, reader) = (ctx.client().desk(), ctx.client().reader());
        let (batch, id, items, error) = (row.batch, row.id, row.items, why.to_owned());
        let provider = self.agency.for_account(&row.provider, &row.account);
        let (places, messages): (Vec<u64>, Vec<String>) = provider
            .zip(row.latest.as_ref())
            .map(|(provider, latest)| provider.refused_items(latest))
            .unwrap_or_default()
            .into_iter()
            .map(|item| (item.place, item.message))
            .unzip();
        let (named, refusals) = reader.snapshot("cannot read the items", |conn| {
            let named = if places.is_empty() { None } else { plan::at_places(conn, (batch, id, items), &places)? };
            Ok((named.unwrap_or_default(), plan::refusals(conn, batch)?))
        })?;
        let half = if named.is_empty() { Some(items.div_ceil(2).max(1)) } else { None };
        let alone = named.is_empty() && items <= 1;
        let named: Vec<_> = named.into_iter().zip(messages).collect();
        call(desk, move |turn| turn.fail_bound(batch, id, &named))?;
        if alone || refusals >= REFUSALS_MAX {
            in_slices(desk, move |turn| {
                turn.end_items(batch, id, ItemState::Failed, (Some("invalid"), Some(&error)), SLICE)
            })?;
        } else {
            in_slices(desk, move |turn| turn.part(batch, id, half, SLICE))?;
        }
        self.over(row, why, ctx)
    }

    /// Too much was under way, and nothing was run. Half as much may pass later.
    fn over_quota(&self, row: &RequestRow, why: &str, ctx: &Context) -> Result<Outcome<()>> {
        let (batch, id) = (row.batch, row.id);
        let (known, reason) = (row.clone(), why.to_owned());
        call(ctx.client().desk(), move |turn| {
            let half = (known.tokens / 2).max(1);
            turn.learn(&known.account, Learnt { tokens: Some(half), items: None })?;
            turn.block(&known.account, Some(QUOTA_WAIT), &reason)
        })?;
        in_slices(ctx.client().desk(), move |turn| turn.unbind(batch, id, false, SLICE))?;
        self.over(row, why, ctx)
    }

    /// The provider failed, and nothing was run.
    fn broken(&self, row: &RequestRow, why: &str, ctx: &Context) -> Result<Outcome<()>> {
        let row_of_items = row.clone();
        in_slices(ctx.client().desk(), move |turn| turn.finish_missing(&row_of_items, ItemState::Failed, SLICE))?;
        self.over(row, why, ctx)
    }

    /// Nobody knows what was run, so nothing is sent again that nobody asks for: it would be paid twice.
    fn lost(&self, row: &RequestRow, why: &str, ctx: &Context) -> Result<Outcome<()>> {
        let (batch, id, why) = (row.batch, row.id, why.to_owned());
        let error = why.clone();
        in_slices(ctx.client().desk(), move |turn| turn.lose_items(batch, id, &error, SLICE))?;
        call(ctx.client().desk(), move |turn| {
            turn.ended_in_vain(id, &why)?;
            turn.settle(batch)
        })?;
        Ok(Outcome::Done(()))
    }

    fn over(&self, row: &RequestRow, why: &str, ctx: &Context) -> Result<Outcome<()>> {
        let (batch, id, why) = (row.batch, row.id, why.to_owned());
        log::warn!("{id}: nothing of it was run: {why}");
        call(ctx.client().desk(), move |turn| {
            turn.ended_in_vain(id, &why)?;
            turn.settle(batch)
        })?;
        Ok(Outcome::Done(()))
    }
}

/// Says loudly that results will be gone for ever if nothing is done.
fn warn_of_retention(row: &RequestRow, kept: Option<Duration>, now: Timestamp) {
    let created_at = row.latest.as_ref().and_then(|latest| latest.created_at).or(row.sent_at);
    if let (Some(kept), Some(created_at)) = (kept, created_at)
        && now.since(created_at) > kept / 2
    {
        log::error!("{}: its results are kept until {} and are not here yet", row.id, created_at.saturating_add(kept));
    }
}

/// Whether a local provider has left items undone.
fn todo_is_left(provider: &dyn Provider, row: &RequestRow, ctx: &Context) -> Result<bool> {
    if !provider.limits().local {
        return Ok(false);
    }
    let (id, first) = (row.id, crate::model::id::BatchItemId::from_raw(0));
    let left = ctx.client().reader().snapshot("cannot read the items", |conn| plan::bound(conn, id, first, 1))?;
    Ok(!left.is_empty())
}
