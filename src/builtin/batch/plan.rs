//! The job that puts items which wait into requests, as large as their provider takes them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::builtin::batch::body::Encoder;
use crate::builtin::batch::{Agency, SLICE, call, failed, in_slices, until};
use crate::error::Result;
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::PlanBatch;
use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::model::new_batch::OUTPUT_GUESS;
use crate::model::usage::Usage;
use crate::provider::{Account, Limits, Provider};
use crate::store::batch::account;
use crate::store::batch::file_tag;
use crate::store::batch::plan::{self, Begin, NewRequest, PlanState, Room, Route, Sealed, WaitingItem};

/// How many items are read and bound at a time.
const CHUNK: usize = 200;
/// How long items wait that another batch was quicker than.
const WAIT_FOR_TURN: Duration = Duration::from_secs(1);
/// How long items wait for room at an account, or for a provider that is not here.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(10);
const WAIT_FOR_PROVIDER: Duration = Duration::from_secs(60);
const TOO_LITTLE_ROOM: &str = "as much as is allowed is under way at the account";
/// How often items look whether the block of their account was lifted before its time.
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// The handler of plans.
pub(crate) struct Planner {
    pub(crate) agency: Arc<Agency>,
}

/// Items that may share a request.
struct Group<'a> {
    provider: &'a dyn Provider,
    account: Account,
    limits: Limits,
    endpoint: String,
    model: Option<String>,
    routes: HashSet<i64>,
}

/// What became of a group.
enum Planned {
    /// A request is on its way, and there may be more.
    Request,
    /// None of its items waits.
    Nothing,
    /// Its items must wait.
    Wait(Duration, String),
}

/// How much may go into one request.
struct Allowance {
    room: Room,
    items: u64,
    tokens: u64,
    /// Nothing of the account's model is under way: an item that is larger than any room goes alone.
    alone: bool,
}

/// Whether an item goes into a request.
enum Taken {
    Yes,
    /// Into no request at all: a word and the rule.
    Never(&'static str, String),
    /// Into another.
    Full(Full),
}

/// Why nothing more goes into a request.
#[derive(Clone, Copy)]
enum Full {
    Room,
    Budget,
}

/// A request that is being filled.
struct Filling<'a> {
    planner: &'a Planner,
    state: &'a PlanState,
    group: &'a Group<'a>,
    allowance: &'a Allowance,
    encoder: Encoder,
    buffer: Vec<u8>,
    sealed: Sealed,
    hash: Sha256,
    /// The most items of it, by the items in it.
    together: u64,
}

impl<'a> Filling<'a> {
    fn new(
        planner: &'a Planner,
        state: &'a PlanState,
        group: &'a Group<'a>,
        allowance: &'a Allowance,
        encoder: Encoder,
    ) -> Self {
        let sealed = Sealed { items: 0, bytes: 0, tokens: 0, reserved_nanos: 0, sha256: [0; 32] };
        let together = allowance.items;
        Self { planner, state, group, allowance, encoder, buffer: Vec::new(), sealed, hash: Sha256::new(), together }
    }

    fn take(&mut self, item: &WaitingItem) -> Taken {
        self.buffer.clear();
        let encoded = self.encoder.encode(self.group.provider, item, item.sends + 1, &mut self.buffer);
        if let Err(rule) = encoded {
            return Taken::Never("invalid", rule);
        }
        let (limits, first) = (&self.group.limits, self.sealed.items == 0);
        let bytes = self.sealed.bytes + self.buffer.len() as u64 + self.encoder.close().len() as u64;
        if bytes > limits.bytes && first {
            return Taken::Never("invalid", format!("is larger than {} bytes", limits.bytes));
        }
        let model = self.encoder.model(item);
        let cost = self.planner.cost(model, item);
        let spent = self.state.committed_nanos.saturating_add(self.sealed.reserved_nanos);
        match (self.state.budget_nanos, cost) {
            (Some(_), None) => {
                return Taken::Never("budget", format!("no price is known of {model:?}, and the batch has a budget"));
            }
            (Some(budget), Some(cost)) if spent.saturating_add(cost) > budget => return Taken::Full(Full::Budget),
            _ => {}
        }
        let tokens = self.sealed.tokens + item.tokens;
        let together = self.together.min(item.request_items_max.unwrap_or(u64::MAX));
        if self.sealed.items >= together
            || bytes > limits.bytes
            || (tokens > self.allowance.tokens && !(self.allowance.alone && first))
        {
            return Taken::Full(Full::Room);
        }
        self.together = together;
        self.encoder.took();
        self.hash.update(&self.buffer);
        self.sealed.items += 1;
        self.sealed.bytes += self.buffer.len() as u64;
        self.sealed.tokens = tokens;
        self.sealed.reserved_nanos = self.sealed.reserved_nanos.saturating_add(cost.unwrap_or(0));
        Taken::Yes
    }

    /// What it has come to.
    fn seal(mut self) -> Sealed {
        self.hash.update(self.encoder.close().as_bytes());
        self.sealed.bytes += self.encoder.close().len() as u64;
        self.sealed.sha256 = self.hash.finalize().into();
        self.sealed
    }
}

impl Handler for Planner {
    type Payload = PlanBatch;
    type Output = ();

    fn run(&self, payload: PlanBatch, ctx: &Context) -> Result<Outcome<()>, Failure> {
        self.plan(payload.batch, ctx).map_err(failed)
    }
}

impl Planner {
    fn plan(&self, batch: JobId, ctx: &Context) -> Result<Outcome<()>> {
        let (desk, planner) = (ctx.client().desk(), ctx.id());
        loop {
            if ctx.check().is_err() || ctx.is_shutting_down() {
                return Ok(Outcome::Snooze(Duration::ZERO));
            }
            let state = match call(desk, move |turn| turn.begin_plan(batch, planner))? {
                Begin::Closed => return Ok(Outcome::Done(())),
                Begin::Busy => return Ok(Outcome::Snooze(Duration::from_millis(500))),
                Begin::Go(state) => state,
            };
            if let Some(left) = state.left {
                // Its body was never reckoned to the end, and nothing of it has left.
                // Unless its planner lives after all, and has just frozen it.
                in_slices(desk, move |turn| Ok(turn.is_planning(left)? && turn.unbind(batch, left, false, SLICE)?))?;
                call(desk, move |turn| match turn.is_planning(left)? {
                    true => turn.refuse(left, "its planning was cut off"),
                    false => Ok(()),
                })?;
                continue;
            }
            let mut wait: Option<(Duration, String)> = None;
            let mut any = false;
            for group in self.groups(&state.routes) {
                let planned = match group {
                    Ok(group) => self.plan_group(batch, &state, &group, ctx)?,
                    Err((provider, routes)) => self.without_provider(batch, &provider, &routes, ctx)?,
                };
                match planned {
                    Planned::Request => any = true,
                    Planned::Nothing => {}
                    Planned::Wait(time, why) if wait.as_ref().is_none_or(|(shortest, _)| time < *shortest) => {
                        wait = Some((time, why));
                    }
                    Planned::Wait(..) => {}
                }
                if any {
                    // What is committed has changed.
                    break;
                }
            }
            if any {
                continue;
            }
            call(desk, move |turn| turn.settle_without_plan(batch))?;
            return Ok(match wait {
                Some((time, _)) if call(desk, move |turn| turn.leave_plan(batch, planner, time))? => Outcome::Done(()),
                Some((time, why)) => {
                    log::info!("{batch}: {why}");
                    ctx.progress_note(0, None, why);
                    Outcome::Snooze(time)
                }
                None => Outcome::Done(()),
            });
        }
    }

    /// The items of a batch by what may share a request, and the names of providers that are not here.
    fn groups<'a>(&'a self, routes: &[Route]) -> Vec<std::result::Result<Group<'a>, (String, HashSet<i64>)>> {
        let mut groups: Vec<std::result::Result<Group<'a>, (String, HashSet<i64>)>> = Vec::new();
        for route in routes {
            let Some((provider, account)) = self.agency.provider(&route.provider) else {
                groups.push(Err((route.provider.clone(), HashSet::from([route.id]))));
                continue;
            };
            let limits = provider.limits();
            let endpoint = match &*route.endpoint {
                "" => limits.endpoints.first().cloned().unwrap_or_default(),
                named => named.to_owned(),
            };
            let model = limits.one_model.then(|| route.model.clone());
            let same = groups
                .iter_mut()
                .flatten()
                .find(|group| group.account == account && group.endpoint == endpoint && group.model == model);
            match same {
                Some(group) => drop(group.routes.insert(route.id)),
                None => groups.push(Ok(Group {
                    provider: &**provider,
                    account,
                    limits,
                    endpoint,
                    model,
                    routes: HashSet::from([route.id]),
                })),
            }
        }
        groups
    }

    fn without_provider(&self, batch: JobId, provider: &str, routes: &HashSet<i64>, ctx: &Context) -> Result<Planned> {
        let waits = self.next_items(batch, routes, BatchItemId::from_raw(0), ctx)?.0.is_empty();
        let why = format!("no provider named {provider} is here");
        Ok(if waits { Planned::Nothing } else { Planned::Wait(WAIT_FOR_PROVIDER, why) })
    }

    /// The next items of a group, and the last of them.
    fn next_items(
        &self,
        batch: JobId,
        routes: &HashSet<i64>,
        after: BatchItemId,
        ctx: &Context,
    ) -> Result<(Vec<WaitingItem>, Option<BatchItemId>)> {
        let items = ctx
            .client()
            .reader()
            .snapshot("cannot read the items", |conn| plan::waiting(conn, batch, routes, after, CHUNK))?;
        let last = items.last().map(|item| item.id);
        Ok((items, last))
    }

    /// Puts as many items of a group into one request as may go together now.
    fn plan_group(&self, batch: JobId, state: &PlanState, group: &Group<'_>, ctx: &Context) -> Result<Planned> {
        let (mut items, mut seen) = self.next_items(batch, &group.routes, BatchItemId::from_raw(0), ctx)?;
        if items.is_empty() {
            return Ok(Planned::Nothing);
        }
        let (allowance, tag) = match self.allowance(state, group, ctx)? {
            Ok(allowed) => allowed,
            Err((wait, why)) => return Ok(Planned::Wait(wait, why)),
        };
        let desk = ctx.client().desk();
        let encoder = Encoder::new(group.provider, tag, state.routes.clone(), group.endpoint.clone());
        let mut filling = Filling::new(self, state, group, &allowance, encoder);
        let Some(request) = self.open(batch, group, ctx)? else { return Ok(Planned::Nothing) };
        let mut full = None;
        while full.is_none() && !items.is_empty() {
            let (mut slice, mut broken) = (Vec::new(), Vec::new());
            for item in &items {
                match filling.take(item) {
                    Taken::Yes => slice.push((item.id, item.sends)),
                    Taken::Never(class, rule) => broken.push((item.id, class, rule)),
                    Taken::Full(why) => {
                        full = Some(why);
                        break;
                    }
                }
            }
            let bound = call(desk, move |turn| {
                for (item, class, rule) in &broken {
                    turn.fail_waiting(batch, *item, class, rule)?;
                }
                let bound = turn.bind(batch, request, &slice)?;
                if !bound {
                    turn.drop_empty(request)?;
                }
                Ok(bound)
            })?;
            if !bound || ctx.is_shutting_down() {
                return Ok(Planned::Request);
            }
            if full.is_none() {
                let Some(last) = seen else { break };
                (items, seen) = self.next_items(batch, &group.routes, last, ctx)?;
            }
        }
        let sealed = filling.seal();
        if sealed.items == 0 {
            call(desk, move |turn| turn.drop_empty(request))?;
            return match full {
                Some(Full::Budget) => self.over_budget(batch, state, &items, ctx),
                Some(Full::Room) => Ok(Planned::Wait(WAIT_FOR_ROOM, TOO_LITTLE_ROOM.to_owned())),
                None => Ok(Planned::Nothing),
            };
        }
        if call(desk, move |turn| turn.seal(batch, request, &sealed, &allowance.room))? {
            return Ok(Planned::Request);
        }
        in_slices(desk, move |turn| turn.unbind(batch, request, false, SLICE))?;
        call(desk, move |turn| turn.drop_empty(request))?;
        Ok(Planned::Wait(WAIT_FOR_TURN, "another batch has taken the room at the account".to_owned()))
    }

    /// How much may go to a group's account now, and the file's tag; or how long to wait, and why.
    fn allowance(
        &self,
        state: &PlanState,
        group: &Group<'_>,
        ctx: &Context,
    ) -> Result<std::result::Result<(Allowance, i64), (Duration, String)>> {
        let (reader, now) = (ctx.client().reader(), ctx.client().desk().clock().now());
        let fingerprint = group.account.fingerprint.as_str();
        let (blocked, learnt, under_way, of_model, tag) = reader.snapshot("cannot read the account", |conn| {
            Ok((
                plan::blocked(conn, fingerprint, now)?,
                account::learnt(conn, fingerprint)?,
                plan::under_way(conn, fingerprint, None)?,
                plan::under_way(conn, fingerprint, group.model.as_deref())?,
                file_tag(conn)?.unwrap_or_default(),
            ))
        })?;
        if let Some((at, why)) = blocked {
            return Ok(Err((until(at, now).min(LOOK_EVERY), why)));
        }
        let settings = &self.agency.settings;
        let cap = |own: Option<u64>, set: Option<u64>| own.unwrap_or(u64::MAX).min(set.unwrap_or(u64::MAX));
        let room = Room {
            account: group.account.fingerprint.clone(),
            model: group.model.clone(),
            items: cap(group.limits.items_in_flight, settings.items_in_flight),
            tokens: cap(group.limits.tokens_in_flight, settings.tokens_in_flight),
        };
        let items = room.items.saturating_sub(under_way.items).min(group.limits.items as u64);
        let items = items.min(learnt.items.unwrap_or(u64::MAX)).min(state.request_items.unwrap_or(u64::MAX));
        let tokens = room.tokens.saturating_sub(of_model.tokens).min(learnt.tokens.unwrap_or(u64::MAX));
        let alone = of_model.tokens == 0;
        if items == 0 || (tokens == 0 && !alone) {
            return Ok(Err((WAIT_FOR_ROOM, TOO_LITTLE_ROOM.to_owned())));
        }
        Ok(Ok((Allowance { room, items, tokens, alone }, tag)))
    }

    fn open(&self, batch: JobId, group: &Group<'_>, ctx: &Context) -> Result<Option<BatchRequestId>> {
        let (account, endpoint, model) = (group.account.clone(), group.endpoint.clone(), group.model.clone());
        let (planner, local) = (ctx.id(), group.limits.local);
        call(ctx.client().desk(), move |turn| {
            turn.open_request(
                batch,
                planner,
                &NewRequest {
                    provider: &account.provider,
                    account: &account.fingerprint,
                    base_url: &account.base_url,
                    api_version: account.api_version.as_deref(),
                    endpoint: &endpoint,
                    model: model.as_deref(),
                    local,
                },
            )
        })
    }

    /// What an item may cost at most.
    fn cost(&self, model: &str, item: &WaitingItem) -> Option<i64> {
        let most = Usage::of(item.tokens, item.max_output.unwrap_or(OUTPUT_GUESS));
        self.agency.settings.prices.as_ref()?.cost_nanos(model, &most)
    }

    /// What does not fit into the budget waits while something may come back of what is reserved, and fails then.
    fn over_budget(&self, batch: JobId, state: &PlanState, items: &[WaitingItem], ctx: &Context) -> Result<Planned> {
        let desk = ctx.client().desk();
        let (is_open, committed) =
            call(desk, move |turn| Ok((turn.has_open_requests(batch)?, turn.committed(batch)?)))?;
        if is_open {
            return Ok(Planned::Wait(WAIT_FOR_ROOM, "the batch's budget is reserved".to_owned()));
        }
        if committed < state.committed_nanos {
            // What was reserved when this plan began has come to its end meanwhile, and cost less.
            return Ok(Planned::Request);
        }
        let left = state.budget_nanos.unwrap_or(i64::MAX).saturating_sub(state.committed_nanos);
        let model = |item: &WaitingItem| state.routes.iter().find(|route| route.id == item.route);
        let too_much = |item: &&WaitingItem| {
            model(item).and_then(|route| self.cost(&route.model, item)).is_none_or(|cost| cost > left)
        };
        let ids: Vec<BatchItemId> = items.iter().filter(too_much).map(|item| item.id).collect();
        call(desk, move |turn| {
            ids.iter().try_for_each(|id| turn.fail_waiting(batch, *id, "budget", "might cost more than the batch may"))
        })?;
        Ok(Planned::Request)
    }
}
