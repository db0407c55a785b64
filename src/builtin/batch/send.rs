//! The job that takes a request to its provider, and finds out what became of it if no answer came.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::builtin::batch::body::{BodyReader, Encoder, NoItems};
use crate::builtin::batch::{
    Agency, CLOCK_SKEW, POLL_WAIT_MAX, SLICE, WhenUnknown, backoff, call, failed, in_slices, until,
};
use crate::error::Result;
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::SendRequest;
use crate::model::id::BatchRequestId;
use crate::model::time::Timestamp;
use crate::provider::{
    Body, CallClass, CallError, Create, Fate, Provider, RemoteBatch, RemoteState, ResultLine, Sought,
};
use crate::store::batch::account::Learnt;
use crate::store::batch::request::{MISSES_MIN, MaySend, RequestRow, is_elsewhere, request};
use crate::store::batch::{ItemState, Mark, RequestState, file_tag, plan};

/// How long the first in line waits for another creation at its account, and the longest that one in line does. Whoever is
/// done calls the next; this is for when nobody calls.
const WAIT_FOR_TURN: Duration = Duration::from_millis(500);
const WAIT_FOR_TURN_MAX: Duration = Duration::from_secs(60);
/// How often a request looks whether the block of its account was lifted before its time.
const BLOCKED_LOOK_EVERY: Duration = Duration::from_secs(300);
/// How long a request waits for an account whose key is not here.
const WAIT_FOR_ACCOUNT: Duration = Duration::from_secs(60);
/// How long an account is left alone when a request was not what was planned, lest it go on for ever in no time.
const WAIT_FOR_CHANGED: Duration = Duration::from_secs(10);
/// The first poll of a batch, unless its provider wants it later.
const FIRST_POLL: Duration = Duration::from_secs(30);
/// After how many failures in a row nothing is sent to an account for a while.
const FAILURES_IN_A_ROW: u32 = 3;
/// How often the body of a batch is uploaded anew that its provider does not find.
const UPLOADS_MAX: u32 = 3;
/// How often batches that might be ours are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The handler of submissions.
pub(crate) struct Sender {
    pub(crate) agency: Arc<Agency>,
}

/// One submission at work.
struct Submission<'a> {
    row: RequestRow,
    provider: &'a dyn Provider,
    agency: &'a Agency,
    ctx: &'a Context,
}

impl Handler for Sender {
    type Payload = SendRequest;
    type Output = ();

    fn run(&self, payload: SendRequest, ctx: &Context) -> Result<Outcome<()>, Failure> {
        self.send(payload.request, ctx).map_err(failed)
    }
}

impl Sender {
    fn send(&self, id: BatchRequestId, ctx: &Context) -> Result<Outcome<()>> {
        loop {
            if ctx.is_shutting_down() {
                return Ok(Outcome::Snooze(Duration::ZERO));
            }
            let row = ctx.client().reader().snapshot("cannot read the request", |conn| request(conn, id))?;
            let Some(row) = row.filter(|row| matches!(row.state, RequestState::Submitting | RequestState::Sent)) else {
                return Ok(Outcome::Done(()));
            };
            let Some(provider) = self.agency.for_account(&row.provider, &row.account) else {
                let why = format!("the account {} is not here", row.account);
                log::warn!("{id}: {why}");
                call(ctx.client().desk(), move |turn| turn.request_failed(&row, &why))?;
                return Ok(Outcome::Snooze(WAIT_FOR_ACCOUNT));
            };
            let sent = row.state == RequestState::Sent;
            let submission = Submission { row, provider: &**provider, agency: &self.agency, ctx };
            let outcome = if sent { submission.resolve()? } else { submission.submit()? };
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
        }
    }
}

/// None: the request stands elsewhere now, and is to be looked at again.
type Next = Result<Option<Outcome<()>>>;

impl Submission<'_> {
    fn now(&self) -> Timestamp {
        self.ctx.client().desk().clock().now()
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut crate::store::Turn<'_>, &RequestRow) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let row = self.row.clone();
        call(self.ctx.client().desk(), move |turn| work(turn, &row))
    }

    fn body(&self) -> Result<BodyReader<'_>> {
        let (reader, batch) = (self.ctx.client().reader(), self.row.batch);
        let (tag, routes) = reader.snapshot("cannot read the batch", |conn| {
            Ok((file_tag(conn)?.unwrap_or_default(), plan::routes(conn, batch)?))
        })?;
        let encoder = Encoder::new(self.provider, tag, routes, self.row.endpoint.clone());
        Ok(BodyReader::new(self.provider, reader, self.row.id, encoder, self.row.sha256.clone()))
    }

    /// Uploads the body if need be, and has the batch created.
    fn submit(&self) -> Next {
        let now = self.now();
        let account = self.row.account.clone();
        let blocked = self
            .ctx
            .client()
            .reader()
            .snapshot("cannot read the account", |conn| plan::blocked(conn, &account, now))?;
        if let Some((at, why)) = blocked {
            self.ctx.progress_note(0, None, why);
            return Ok(Some(Outcome::Snooze(until(at, now).min(BLOCKED_LOOK_EVERY))));
        }
        let limits = self.provider.limits();
        if limits.uploads && self.row.file.is_none() {
            return match self.upload()? {
                Some(Ok(file)) => self.write(move |turn, row| turn.uploaded(row.id, &file)).map(|()| None),
                // A file that nobody knows of costs nothing, and is looked for by its name the next time.
                Some(Err(error)) => self.not_done(&error, Fate::Rejected),
                None => self.changed(),
            };
        }
        match self.write(move |turn, row| turn.mark_sent(row, limits.create_timeout))? {
            MaySend::Yes => {}
            MaySend::NotYet(place) => return Ok(Some(Outcome::Snooze(wait_for_turn(place)))),
            // Whoever cancels has passed it by while nobody knew whether it had been sent, and comes once more.
            MaySend::No => {
                self.write(|turn, row| turn.cancel_later_if_asked(row.batch))?;
                return Ok(Some(Outcome::Done(())));
            }
        }
        self.create()
    }

    /// Has the batch created, which is in the file as sent.
    fn create(&self) -> Next {
        let created = match &self.row.file {
            Some(file) => {
                self.provider.create(Create::with_file(&self.row.key, &self.row.endpoint, self.row.items, file))
            }
            None => {
                let mut reader = self.body()?;
                let body = Body { length: self.row.bytes, reader: &mut reader };
                let create = Create::with_body(&self.row.key, &self.row.endpoint, self.row.items, body);
                let created = self.provider.create(create);
                if created.is_err() && reader.is_changed() {
                    return self.changed();
                }
                created
            }
        };
        match created {
            Ok(remote) => {
                log::info!("{}: {} items are at {} as {}", self.row.id, self.row.items, self.row.provider, remote.id);
                self.adopt(remote)
            }
            Err(error) => {
                log::warn!("{}: its creation failed, try {}: {error}", self.row.id, self.row.attempt + 1);
                let fate = error.fate;
                self.not_done(&error, fate)
            }
        }
    }

    /// Uploads the body. None: it is not what was frozen any more.
    fn upload(&self) -> Result<Option<std::result::Result<String, CallError>>> {
        let name = format!("{}.jsonl", self.row.key);
        if self.row.uploaded_at.is_some() {
            match self.provider.find_upload(&name) {
                Ok(files) => {
                    if let Some(file) = files.into_iter().next() {
                        return Ok(Some(Ok(file)));
                    }
                }
                Err(error) => return Ok(Some(Err(error))),
            }
        }
        self.write(|turn, row| turn.upload_begins(row.id))?;
        let mut reader = self.body()?;
        let uploaded = self.provider.upload(&name, Body { length: self.row.bytes, reader: &mut reader });
        Ok(if uploaded.is_err() && reader.is_changed() { None } else { Some(uploaded) })
    }

    /// The body is not what was frozen: an older sending of an item has succeeded meanwhile, or another release encodes
    /// otherwise. It cannot have been sent to its end now, and its items go anew.
    fn changed(&self) -> Next {
        if self.row.state == RequestState::Sent {
            // It had been sent before, as it was then.
            self.write(|turn, row| turn.end_lease(&row.account, row.id))?;
            return self.look();
        }
        let why = "its items have changed since it was planned";
        self.write(move |turn, row| turn.block(&row.account, Some(WAIT_FOR_CHANGED), why).map(drop))?;
        self.release(why, Learnt::default())
    }

    fn adopt(&self, remote: RemoteBatch) -> Next {
        let wait = FIRST_POLL
            .min(self.agency.settings.poll_interval)
            .max(remote.retry_after.unwrap_or_default())
            .max(self.provider.limits().poll_min)
            .min(POLL_WAIT_MAX);
        let ours = self.write(move |turn, row| {
            let ours = turn.adopt(row, &remote, wait)?;
            if !ours {
                // An operator has named another meanwhile. Unless it is some other request's, it is paid for our items.
                turn.record_twin(row, &remote)?;
            }
            Ok(ours)
        })?;
        if !ours {
            log::error!("{}: it is known as another batch, or its batch belongs to another request", self.row.id);
        }
        self.ctx.client().desk().wake_poller();
        Ok(Some(Outcome::Done(())))
    }

    /// What follows from a call that failed, by what the provider can have done.
    fn not_done(&self, error: &CallError, fate: Fate) -> Next {
        let text = error.to_string();
        if fate == Fate::Ambiguous {
            self.write(move |turn, row| turn.request_failed(row, &text))?;
            return Ok(Some(Outcome::Snooze(error.retry_after.unwrap_or_else(|| backoff(self.row.failures)))));
        }
        // That the second sending had no effect tells nothing of the first.
        let again = self.row.state == RequestState::Sent;
        let refused = move |turn: &mut crate::store::Turn<'_>, row: &RequestRow, text: &str| match again {
            true => turn.request_failed(row, text),
            false => turn.not_sent(row, text),
        };
        if again && error.class != CallClass::Account && !error.is_retryable() {
            self.write(move |turn, row| turn.request_failed(row, &text))?;
            return self.look();
        }
        match error.class {
            CallClass::Account => {
                let wait = error.retry_after;
                let until_at = self.write(move |turn, row| {
                    refused(turn, row, &text)?;
                    turn.block(&row.account, wait, &text)
                })?;
                Ok(Some(Outcome::Snooze(until(until_at, self.now()))))
            }
            // One of the items may be to blame. Whoever reads what a request came to parts them.
            CallClass::Invalid if error.fate == Fate::Rejected && self.row.items > 1 && self.row.file.is_none() => {
                self.write(move |turn, row| turn.refused_at_once(row, &text))?;
                Ok(Some(Outcome::Done(())))
            }
            CallClass::TooLarge if self.row.items > 1 => {
                let half = self.row.items / 2;
                self.release(&text, Learnt { items: Some(half), tokens: None })
            }
            // A list may lag behind an upload, and a file be deleted. Nothing was run, and no item is to blame.
            CallClass::NotFound if self.row.file.is_some() && self.row.attempt < UPLOADS_MAX => {
                self.write(move |turn, row| {
                    turn.not_sent(row, &text)?;
                    turn.forget_upload(row.id)
                })?;
                Ok(Some(Outcome::Snooze(backoff(self.row.attempt))))
            }
            class if error.is_retryable() || class == CallClass::NotFound && self.row.file.is_none() => {
                // What holds for the whole account, each of its requests need not find out for itself.
                let limited = class == CallClass::RateLimited;
                let breaks = limited || self.row.failures + 1 >= FAILURES_IN_A_ROW;
                let wait = error.retry_after.unwrap_or_else(|| backoff(self.row.failures));
                self.write(move |turn, row| {
                    refused(turn, row, &text)?;
                    if breaks { turn.block(&row.account, Some(wait), &text).map(drop) } else { Ok(()) }
                })?;
                Ok(Some(Outcome::Snooze(wait)))
            }
            _ => self.fail(&text),
        }
    }

    /// Lets the items go into other requests.
    fn release(&self, why: &str, learnt: Learnt) -> Next {
        let (batch, id, why) = (self.row.batch, self.row.id, why.to_owned());
        self.write({
            let why = why.clone();
            move |turn, row| {
                turn.learn(&row.account, learnt)?;
                turn.not_sent(row, &why)
            }
        })?;
        in_slices(self.ctx.client().desk(), move |turn| {
            Ok(turn.is_unsent(id)? && turn.unbind(batch, id, false, SLICE)?)
        })?;
        self.write(move |turn, row| {
            turn.refuse(row.id, &why)?;
            turn.settle(row.batch)
        })?;
        Ok(Some(Outcome::Done(())))
    }

    /// Fails the items, for the provider will never take them.
    fn fail(&self, why: &str) -> Next {
        let (batch, id, why) = (self.row.batch, self.row.id, why.to_owned());
        self.write({
            let why = why.clone();
            move |turn, row| turn.not_sent(row, &why)
        })?;
        let error = why.clone();
        in_slices(self.ctx.client().desk(), move |turn| {
            let why = (Some("invalid"), Some(&*error));
            Ok(turn.is_unsent(id)? && turn.end_items(batch, id, ItemState::Failed, why, SLICE)?)
        })?;
        self.write(move |turn, row| {
            turn.refuse(row.id, &why)?;
            turn.settle(row.batch)
        })?;
        Ok(Some(Outcome::Done(())))
    }

    /// Finds out whether the creation has made a batch. Never sends anything before it is known.
    fn resolve(&self) -> Next {
        let limits = self.provider.limits();
        if limits.local {
            self.write(|turn, row| turn.not_sent(row, "no answer came, and nothing has left"))?;
            return Ok(None);
        }
        if limits.idempotent {
            match self.write(move |turn, row| turn.mark_sent_again(row, limits.create_timeout))? {
                MaySend::Yes => return self.create(),
                MaySend::NotYet(place) => return Ok(Some(Outcome::Snooze(wait_for_turn(place)))),
                // A batch that is cancelled is looked for, and not made to find out whether it was.
                MaySend::No => {}
            }
        }
        self.look()
    }

    /// Looks for the batch at the provider.
    fn look(&self) -> Next {
        let limits = self.provider.limits();
        let (now, sent_at) = (self.now(), self.row.sent_at.unwrap_or_else(|| self.now()));
        let since = sent_at.saturating_sub(CLOCK_SKEW);
        let last = sent_at.saturating_add(limits.create_timeout + CLOCK_SKEW);
        let sought = Sought::new(&self.row.key, self.row.file.as_deref(), self.row.items, since, last).now(now);
        let (candidates, mut doubt) = match self.provider.find(&sought) {
            Ok(candidates) => (candidates, None),
            // A provider that cannot be looked through may have it all the same.
            Err(error) if !error.is_retryable() && error.class != CallClass::Account => {
                (Vec::new(), Some(format!("cannot look for it: {error}")))
            }
            Err(error) => {
                let text = format!("cannot look for it: {error}");
                let wait = error.retry_after.unwrap_or_else(|| backoff(self.row.failures));
                self.write(move |turn, row| turn.request_failed(row, &text))?;
                return Ok(Some(Outcome::Snooze(wait)));
            }
        };
        let (account, id) = (self.row.account.clone(), self.row.id);
        let mut free = Vec::new();
        for candidate in candidates {
            let elsewhere =
                self.ctx.client().reader().snapshot("cannot read the requests", |conn| {
                    is_elsewhere(conn, &account, &candidate.batch.id, id)
                })?;
            if !elsewhere {
                free.push(candidate);
            }
        }
        free.sort_by_key(|candidate| candidate.batch.created_at);
        let (certain, suspects): (Vec<_>, Vec<_>) = free.into_iter().partition(|candidate| candidate.certain);
        let mut certain = certain.into_iter().map(|candidate| candidate.batch);
        if let Some(first) = certain.next() {
            for twin in certain {
                log::error!("{id}: it was made twice, the second is {}", twin.id);
                // It is paid for what it has done, and its results are read.
                let _ =
                    self.provider.cancel(&twin.id).inspect_err(|error| log::warn!("cannot cancel the twin: {error}"));
                self.write(move |turn, row| turn.record_twin(row, &twin))?;
            }
            return self.adopt(first);
        }
        let mut undecided = 0;
        for suspect in suspects {
            if !matches!(suspect.batch.state, RemoteState::Ended(_)) {
                undecided += 1;
                continue;
            }
            match self.proof(&suspect.batch) {
                Some(true) => return self.adopt(suspect.batch),
                Some(false) => {
                    self.write(move |turn, row| turn.note_foreign(&row.account, &suspect.batch.id))?;
                }
                None => undecided += 1,
            }
        }
        if undecided > 0 {
            doubt = Some(format!("{undecided} batches at the provider might be it; their results will tell"));
        }
        let (looks, _) = self.write(|turn, row| turn.missed(row.id))?;
        let (passed, settings) = (now.since(sent_at), &self.agency.settings);
        let grace = (2 * limits.create_timeout).max(settings.unknown_grace);
        let after = match (&doubt, settings.when_unknown) {
            (None, _) => Some(grace),
            (Some(_), WhenUnknown::ResubmitAfter(after)) => Some(after),
            (Some(_), WhenUnknown::WaitForProof | WhenUnknown::Ask) => None,
        };
        let sure = looks >= MISSES_MIN;
        if sure && after.is_some_and(|after| passed >= after) {
            log::warn!("{id}: its creation left no trace for {passed:?}, so it is sent again");
            self.write(|turn, row| turn.not_sent(row, "its creation left no trace"))?;
            return Ok(None);
        }
        if let Some(doubt) = doubt {
            // Whatever it is, it has had its time, and a while to show it.
            let over = passed >= limits.window.max(settings.lost_after).saturating_add(grace);
            let lost = sure && over && settings.when_unknown == WhenUnknown::WaitForProof;
            self.write(move |turn, row| {
                turn.request_failed(row, &doubt)?;
                if lost { turn.lose(row, &doubt).map(drop) } else { Ok(()) }
            })?;
            if lost {
                return Ok(Some(Outcome::Done(())));
            }
        }
        Ok(Some(Outcome::Snooze(LOOK_EVERY.min(self.agency.settings.poll_interval))))
    }

    /// Whether a batch that has ended holds our items: its first result tells. None: it tells nothing now.
    fn proof(&self, batch: &RemoteBatch) -> Option<bool> {
        let mut first = None;
        let looked = self.provider.results(batch, &mut NoItems, &mut |line| match line {
            ResultLine::Result { custom_id, .. } => {
                first = Some(custom_id.to_owned());
                ControlFlow::Break(())
            }
            ResultLine::Unreadable { .. } | ResultLine::Lull => ControlFlow::Continue(()),
        });
        let Some(custom_id) = first else {
            // A batch without results is not one of ours, for each of our items has one.
            return looked.is_ok().then_some(false);
        };
        let reader = self.ctx.client().reader();
        let id = self.row.id;
        reader
            .snapshot("cannot read the item", |conn| {
                let Some(mark) = Mark::parse(&custom_id) else { return Ok(false) };
                Ok(file_tag(conn)? == Some(mark.tag) && plan::was_bound(conn, mark.item, id)?)
            })
            .ok()
    }
}

/// How long one waits that has this place in the line at its account.
fn wait_for_turn(place: u32) -> Duration {
    WAIT_FOR_TURN.saturating_mul(place).min(WAIT_FOR_TURN_MAX)
}
