//! A provider that runs the requests of a batch in this very process.

use std::fmt;
use std::io;
use std::thread::Scope;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::error::in_full;
use crate::model::usage::Usage;
use crate::panics;
use crate::provider::{
    Account, CallClass, CallError, CallResult, Candidate, Create, Fate, Finish, Frame, ItemError, ItemOutcome, Limits,
    Outgoing, OwnedOutgoing, Provider, RemoteBatch, RemoteCounts, RemoteEnd, RemoteState, ResultLine, Sink, Sought,
    Todo,
    slots::{Party, Slots},
};

/// After how long without a result those before it are to wait no longer.
const LULL: Duration = Duration::from_millis(100);

/// A provider that runs the requests of batches in this very process, a bounded number at a time over all of them.
///
/// Nothing leaves the process when a batch is created: its requests run when its results are asked for. Each takes the
/// next that has no result yet as soon as there is room for it, so a slow one holds up no other, and results come in the
/// order in which they are ready. After a crash those that have a result are not run again; those that were being run are.
///
/// When the engine shuts down or the batch is cancelled, no further request is begun. Those that are being run come to their
/// end, and their results count. What the deadline of the shutdown cuts off is run again after the next start.
///
/// # Examples
/// Any function is a provider:
///
/// ```
/// use jobmill::provider::{Local, LocalError, Outgoing};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// struct Passage {
///     text: String,
/// }
///
/// #[derive(Serialize)]
/// struct Counted {
///     words: usize,
/// }
///
/// fn count(request: &Outgoing<'_>) -> Result<Counted, LocalError> {
///     let passage: Passage = request.parse()?; // what cannot be read is not tried again
///     Ok(Counted { words: passage.text.split_whitespace().count() })
/// }
///
/// let provider = Local::function("local", count).concurrency(2);
/// # let _ = provider;
/// ```
pub struct Local {
    account: Account,
    limits: Limits,
    runner: Box<dyn Run>,
    concurrency: usize,
    slots: Slots,
}

/// Runs one request.
pub(super) trait Run: Send + Sync {
    fn run(&self, request: &Outgoing<'_>) -> Result<Reply, Failed>;

    /// Tells of a rule that the request breaks, so that it need not be tried.
    fn check(&self, request: &Outgoing<'_>) -> Result<(), LocalError> {
        let _ = request;
        Ok(())
    }
}

/// Why there is no reply.
pub(super) enum Failed {
    /// It is the request's failure.
    Request(LocalError),
    /// Nobody is there to run requests, this one or another.
    Nobody(CallError),
}

impl From<LocalError> for Failed {
    fn from(error: LocalError) -> Self {
        Self::Request(error)
    }
}

/// A reply, as JSON.
pub(super) type Reply = LocalReply<Box<RawValue>>;

impl Local {
    /// The most requests that may run at a time.
    pub const MAX_CONCURRENCY: usize = 1024;

    /// Runs each request by a function, under the name by which batches ask for the provider.
    ///
    /// It returns anything that serializes, or a [`LocalReply`] of it. An error or a panic of the function is the result
    /// of that request alone. It cannot be interrupted.
    ///
    /// The function by itself is all that there is to test:
    ///
    /// ```
    /// use jobmill::provider::{Local, LocalError, Outgoing};
    ///
    /// fn double(request: &Outgoing<'_>) -> Result<i64, LocalError> {
    ///     let number: i64 = request.parse()?;
    ///     number.checked_mul(2).ok_or_else(|| LocalError::invalid("too large").code("overflow"))
    /// }
    ///
    /// # fn main() -> Result<(), serde_json::Error> {
    /// let body = serde_json::from_str("21")?;
    /// assert_eq!(double(&Outgoing::new("item-1", "", "", body)), Ok(42));
    /// let body = serde_json::from_str("\"text\"")?;
    /// assert!(double(&Outgoing::new("item-2", "", "", body)).is_err());
    ///
    /// let provider = Local::function("local", double);
    /// # let _ = provider;
    /// # Ok(())
    /// # }
    /// ```
    pub fn function<F, R>(name: impl Into<String>, function: F) -> Self
    where
        F: Fn(&Outgoing<'_>) -> Result<R, LocalError> + Send + Sync + 'static,
        R: IntoReply,
    {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let account = Account::new(name, "in-process", "");
        Self::new(account, Vec::new(), Box::new(Function(function))).concurrency(processors)
    }

    pub(super) fn new(account: Account, endpoints: Vec<String>, runner: Box<dyn Run>) -> Self {
        // A batch is not sent anywhere, so only the engine's own bookkeeping bounds its size.
        let mut limits = Limits::new(1_000_000, 1 << 40);
        limits.endpoints = endpoints;
        limits.idempotent = true;
        limits.local = true;
        // It takes as long as its requests take, and to ask for it costs nothing.
        limits.window = Duration::from_secs(366 * 86_400);
        limits.poll_min = Duration::ZERO;
        Self { account, limits, runner, concurrency: 1, slots: Slots::new(1) }
    }

    /// Sets how many requests may run at a time: at least one, at most [`MAX_CONCURRENCY`](Self::MAX_CONCURRENCY), which
    /// stand for what lies beyond them. Defaults to the number of processors for a function, and to
    /// 4 for an endpoint.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests.clamp(1, Self::MAX_CONCURRENCY);
        self.slots = Slots::new(self.concurrency);
        self
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, limits: _, runner: _, concurrency, slots: _ } = self;
        f.debug_struct("Local").field("account", account).field("concurrency", concurrency).finish_non_exhaustive()
    }
}

impl Provider for Local {
    fn account(&self) -> Account {
        self.account.clone()
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn frame(&self) -> Frame {
        Frame { open: "", between: "\n", close: "\n" }
    }

    fn encode(&self, item: &Outgoing<'_>, body: &mut Vec<u8>) -> Result<(), String> {
        #[derive(Serialize)]
        struct Line<'a> {
            custom_id: &'a str,
            body: &'a RawValue,
        }
        self.runner.check(item).map_err(|error| error.message)?;
        let from = body.len();
        let line = Line { custom_id: item.custom_id, body: item.body };
        serde_json::to_writer(&mut *body, &line).map_err(|error| error.to_string())?;
        // Within a string of JSON there is none as such, so what is found stands between tokens.
        for byte in &mut body[from..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        Ok(())
    }

    fn create(&self, new: Create<'_>) -> CallResult<RemoteBatch> {
        Ok(batch(new.key, Some(new.items), RemoteEnd::Completed))
    }

    /// Whether it was created makes no difference, so it is always found.
    fn find(&self, sought: &Sought<'_>) -> CallResult<Vec<Candidate>> {
        Ok(vec![Candidate { batch: batch(sought.key, Some(sought.items), RemoteEnd::Completed), certain: true }])
    }

    fn poll(&self, id: &str) -> CallResult<RemoteBatch> {
        Ok(batch(id, None, RemoteEnd::Completed))
    }

    /// Runs what `todo` gives. Of a batch that is given as cancelled nothing is run, and each request is told to be
    /// cancelled.
    fn results(&self, batch: &RemoteBatch, todo: &mut dyn Todo, sink: &mut Sink<'_>) -> CallResult<()> {
        if batch.state == RemoteState::Ended(RemoteEnd::Cancelled) {
            while let Some(item) = todo.next() {
                let outcome = ItemOutcome::Cancelled;
                let raw = r#"{"error":{"code":"cancelled","message":"the batch was cancelled"}}"#;
                let line = ResultLine::Result { custom_id: &item.custom_id, outcome, raw };
                if sink(line).is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let supply = Mutex::new(Supply { todo, is_over: false });
        let (party, nobody) = (self.slots.open(), Mutex::new(None));
        let crew = Crew { runner: &*self.runner, size: self.concurrency, party, supply, nobody };
        crew.run(sink).map_err(|error| {
            CallError::new(Fate::NotSent, CallClass::Server, format!("no thread can be started: {error}"))
        })?;
        crew.nobody.into_inner().map_or(Ok(()), Err)
    }

    fn cancel(&self, id: &str) -> CallResult<RemoteBatch> {
        Ok(batch(id, None, RemoteEnd::Cancelled))
    }
}

/// A batch that has ended as soon as it is there: nothing keeps its results waiting.
fn batch(key: &str, items: Option<u64>, end: RemoteEnd) -> RemoteBatch {
    let mut batch = RemoteBatch::new(key, RemoteState::Ended(end), "{}");
    batch.raw_status = "ended".to_owned();
    batch.counts = RemoteCounts::new(items, None, None);
    batch
}

/// The threads that run requests for one call.
struct Crew<'a> {
    runner: &'a dyn Run,
    size: usize,
    party: Party<'a>,
    supply: Mutex<Supply<'a>>,
    /// That there is nobody to run requests, if it has turned out so.
    nobody: Mutex<Option<CallError>>,
}

/// Where the next request comes from.
struct Supply<'a> {
    todo: &'a mut dyn Todo,
    is_over: bool,
}

impl Supply<'_> {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        if self.is_over {
            return None;
        }
        // It stays so if there is none, or if the look for it panics.
        self.is_over = true;
        let item = self.todo.next()?;
        self.is_over = false;
        Some(item)
    }
}

impl Crew<'_> {
    /// Runs what there is, and hands in what it comes to on this thread.
    fn run(&self, sink: &mut Sink<'_>) -> io::Result<()> {
        std::thread::scope(|scope| {
            let _closing = Closing(self);
            // As many again may wait for a sink that is busy writing, so that it holds up the threads later. They are lost
            // if the sink breaks, as is what runs then: it breaks only if results cannot be kept.
            let (hand_in, results) = bounded(self.size);
            self.hire(scope, 1, hand_in)?;
            let mut in_lull = true;
            loop {
                let next = if in_lull { results.recv().map_err(Into::into) } else { results.recv_timeout(LULL) };
                in_lull = next.is_err();
                let goes_on = match next {
                    Ok(Ran { custom_id, outcome, raw }) => {
                        sink(ResultLine::Result { custom_id: &custom_id, outcome, raw: &raw })
                    }
                    Err(RecvTimeoutError::Timeout) => sink(ResultLine::Lull),
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                };
                if goes_on.is_break() {
                    return Ok(());
                }
            }
        })
    }

    fn hire<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        number: usize,
        hand_in: Sender<Ran>,
    ) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(format!("jobmill-local-{number}"));
        thread.spawn_scoped(scope, move || self.work(scope, number, hand_in)).map(|_| ())
    }

    /// Runs one request after another. The first thing to do with a request in hand is to see that somebody looks for the
    /// next, so there are never more threads than requests.
    fn work<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, number: usize, hand_in: Sender<Ran>) {
        let mut hires = number < self.size;
        while let Some(slot) = self.party.take() {
            let Some(item) = self.supply.lock().next() else { break };
            if std::mem::take(&mut hires)
                && let Err(error) = self.hire(scope, number + 1, hand_in.clone())
            {
                log::warn!("{number} requests are run at a time and not {}: {error}", self.size);
            }
            let ran = self.run_one(item);
            // Who waits for the sink needs no slot.
            drop(slot);
            let handed_in = match ran {
                Ok(ran) => hand_in.send(ran).is_ok(),
                // The others come to their end, and what they come to counts.
                Err(error) => {
                    self.supply.lock().is_over = true;
                    self.nobody.lock().get_or_insert(error);
                    false
                }
            };
            if !handed_in {
                break;
            }
        }
        // There is nothing to be had for the others either, who may wait for a slot.
        self.party.close();
    }

    /// Runs a request. A panic is an error like any other.
    fn run_one(&self, item: OwnedOutgoing) -> CallResult<Ran> {
        let result = panics::caught(|| self.runner.run(&item.as_outgoing()));
        let panicked = |message| Err(LocalError::new(ItemError::Unknown, message).code("panic").into());
        let result = match result.unwrap_or_else(panicked) {
            Ok(reply) => Ok(reply),
            Err(Failed::Request(error)) => Err(error),
            Err(Failed::Nobody(error)) => return Err(error),
        };
        let (outcome, raw) = match result {
            Ok(LocalReply { value: reply, finish, usage }) => {
                let raw = reply.get().to_owned();
                (ItemOutcome::Succeeded { reply, finish, usage }, raw)
            }
            Err(LocalError { class, code, message, usage }) => {
                let raw = serde_json::json!({ "error": { "code": code, "message": message } }).to_string();
                let usage = usage.map_or_else(Usage::default, |usage| *usage);
                (ItemOutcome::Errored { class, code, message, usage }, raw)
            }
        };
        Ok(Ran { custom_id: item.custom_id, outcome, raw })
    }
}

/// What a request came to, and the answer as it came.
struct Ran {
    custom_id: String,
    outcome: ItemOutcome,
    raw: String,
}

/// Sees to it that nothing more is begun when nobody listens any more, be it that the sink broke or that it panicked.
struct Closing<'a, 't>(&'a Crew<'t>);

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        self.0.supply.lock().is_over = true;
        self.0.party.close();
    }
}

/// A function that runs requests.
struct Function<F>(F);

impl<F, R> Run for Function<F>
where
    F: Fn(&Outgoing<'_>) -> Result<R, LocalError> + Send + Sync,
    R: IntoReply,
{
    fn run(&self, request: &Outgoing<'_>) -> Result<Reply, Failed> {
        let LocalReply { value, finish, usage } = (self.0)(request)?.into_reply();
        let value = to_raw_value(&value).map_err(|error| {
            LocalError::invalid(format_args!("the reply is no JSON: {error}")).code("unserializable")
        })?;
        Ok(LocalReply { value, finish, usage })
    }
}

/// What a function of [`Local::function`] gives, where more is known of it than its value.
///
/// ```
/// use jobmill::Usage;
/// use jobmill::provider::{Finish, Local, LocalReply};
///
/// let shout = |request: &jobmill::provider::Outgoing<'_>| {
///     let text: String = request.parse()?;
///     let cut: String = text.to_uppercase().chars().take(10).collect();
///     let finish = if cut.len() < text.len() { Finish::Length } else { Finish::Stop };
///     Ok(LocalReply::of(cut).finish(finish).usage(Usage::of(text.len() as u64, 10)))
/// };
/// let provider = Local::function("shout", shout);
/// # let _ = provider;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReply<T> {
    value: T,
    finish: Finish,
    usage: Usage,
}

impl<T> LocalReply<T> {
    /// A reply that says all, of which nothing was counted.
    pub fn of(value: T) -> Self {
        Self { value, finish: Finish::Stop, usage: Usage::default() }
    }

    /// Sets why it ends where it does. Defaults to [`Finish::Stop`].
    pub fn finish(mut self, finish: Finish) -> Self {
        self.finish = finish;
        self
    }

    /// Sets what it used up. Defaults to nothing known.
    pub fn usage(mut self, usage: Usage) -> Self {
        self.usage = usage;
        self
    }
}

/// What a function of [`Local::function`] may return as its value: anything that serializes, or a [`LocalReply`] of it.
pub trait IntoReply {
    /// The reply's value.
    type Value: Serialize;

    /// The reply that is meant.
    fn into_reply(self) -> LocalReply<Self::Value>;
}

impl<T: Serialize> IntoReply for T {
    type Value = T;

    fn into_reply(self) -> LocalReply<T> {
        LocalReply::of(self)
    }
}

impl<T: Serialize> IntoReply for LocalReply<T> {
    type Value = T;

    fn into_reply(self) -> Self {
        self
    }
}

/// Why a function of [`Local::function`] gives no value. Every error becomes one by `?`, whose kind nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalError {
    class: ItemError,
    code: String,
    message: String,
    /// In a box, for every `Result` is as large as its error.
    usage: Option<Box<Usage>>,
}

impl LocalError {
    /// An error of this kind, which decides whether the request may be tried again.
    pub fn new(class: ItemError, message: impl fmt::Display) -> Self {
        let code = match class {
            ItemError::Invalid => "invalid",
            ItemError::Content => "content",
            ItemError::RateLimited => "rate_limited",
            ItemError::Server => "server",
            ItemError::Account => "account",
            ItemError::Unknown => "unknown",
            ItemError::Missing => "missing",
        };
        Self { class, code: code.to_owned(), message: message.to_string(), usage: None }
    }

    /// The request is not valid, and is not tried again.
    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(ItemError::Invalid, message)
    }

    /// Sets the word for it by which programs know it. Defaults to the kind's.
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// Sets what was used up nevertheless. Defaults to nothing known.
    pub fn usage(mut self, usage: Usage) -> Self {
        self.usage = Some(Box::new(usage));
        self
    }
}

impl fmt::Display for LocalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The message is the error and each of its sources.
impl<E: std::error::Error> From<E> for LocalError {
    fn from(error: E) -> Self {
        Self::new(ItemError::Unknown, in_full(&error).0)
    }
}

impl<'a> Outgoing<'a> {
    /// Reads the body, for a function of [`Local::function`].
    ///
    /// # Errors
    /// The body is something else: the request is not valid.
    pub fn parse<T: Deserialize<'a>>(&self) -> Result<T, LocalError> {
        serde_json::from_str(self.body.get()).map_err(|error| LocalError::invalid(format_args!("the body: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use crossbeam_channel::Receiver;

    use super::*;

    /// So many requests.
    struct Count(u64);

    impl Todo for Count {
        fn next(&mut self) -> Option<OwnedOutgoing> {
            self.0 = self.0.checked_sub(1)?;
            let body = RawValue::NULL.to_owned();
            Some(OwnedOutgoing { custom_id: self.0.to_string(), endpoint: String::new(), model: String::new(), body })
        }
    }

    #[test]
    fn who_listens_no_more_does_not_wait_for_a_slot_that_another_holds() {
        let provider = Local::function("local", |_| Ok(())).concurrency(1);
        let other = provider.slots.open();
        let (give, given) = bounded(1);
        let (tell, told) = bounded(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sink = |_: ResultLine<'_>| {
                    give.send(other.take()).expect("a receiver");
                    ControlFlow::Break(())
                };
                let batch = batch("b", None, RemoteEnd::Completed);
                provider.results(&batch, &mut Count(100), &mut sink).expect("no error");
                tell.send(()).expect("a receiver");
            });
            let slot = given.recv().expect("the sink is called");
            let has_returned = told.recv_timeout(Duration::from_secs(30)).is_ok();
            drop(slot);
            assert!(has_returned);
        });
    }

    /// Has nobody to run the request 1, and runs the request 0 meanwhile.
    struct Leaves {
        begun: (Sender<()>, Receiver<()>),
        gone: (Sender<()>, Receiver<()>),
    }

    impl Run for Leaves {
        fn run(&self, request: &Outgoing<'_>) -> Result<Reply, Failed> {
            if request.custom_id == "1" {
                self.begun.1.recv().expect("a sender");
                self.gone.0.send(()).expect("a receiver");
                return Err(Failed::Nobody(CallError::new(Fate::NotSent, CallClass::Transport, "nobody is there")));
            }
            self.begun.0.send(()).expect("a receiver");
            self.gone.1.recv().expect("a sender");
            Ok(LocalReply::of(RawValue::NULL.to_owned()))
        }
    }

    #[test]
    fn what_others_came_to_counts_when_there_is_nobody_any_more() {
        let account = Account::new("local", "in-process", "");
        let provider =
            Local::new(account, Vec::new(), Box::new(Leaves { begun: bounded(1), gone: bounded(1) })).concurrency(2);
        let mut came = Vec::new();
        let mut sink = |line: ResultLine<'_>| {
            if let ResultLine::Result { custom_id, .. } = line {
                came.push(custom_id.to_owned());
            }
            ControlFlow::Continue(())
        };
        let batch = batch("b", None, RemoteEnd::Completed);
        let mut todo = Count(2);
        let error = provider.results(&batch, &mut todo, &mut sink).expect_err("nobody");
        assert_eq!((error.message.as_str(), came), ("nobody is there", vec!["0".to_owned()]));
    }

    #[test]
    fn a_result_that_no_other_follows_is_followed_by_a_lull() {
        let (give, given) = bounded(1);
        let provider = Local::function("local", move |request| {
            if request.custom_id == "1" { Ok(()) } else { given.recv().map_err(LocalError::from) }
        });
        let provider = provider.concurrency(2);
        let mut told = Vec::new();
        let mut sink = |line: ResultLine<'_>| {
            match line {
                ResultLine::Result { custom_id, .. } => told.push(custom_id.to_owned()),
                ResultLine::Unreadable { .. } => {}
                ResultLine::Lull => {
                    told.push("lull".to_owned());
                    give.send(()).expect("a receiver");
                }
            }
            ControlFlow::Continue(())
        };
        provider.results(&batch("b", None, RemoteEnd::Completed), &mut Count(2), &mut sink).expect("no error");
        // Another lull follows if the threads take long to find that there is nothing left to do.
        assert_eq!(told[..3], ["1", "lull", "0"]);
    }
}
