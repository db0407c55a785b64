//! Which handler runs which kind, and how long its jobs take.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::handler::context::{Context, encode};
use crate::handler::{Failure, Handler, IntoOutcome, Outcome};
use crate::model::new_job::Payload;
use crate::model::rules::check_kind;
use crate::panics;

/// What an attempt gives: an outcome whose value is JSON already.
pub(crate) type RawOutcome = Result<Outcome<Vec<u8>>, Failure>;

pub(crate) type Run = Box<dyn Fn(&Context) -> RawOutcome + Send + Sync>;

/// Every handler of an engine, by kind.
#[derive(Default)]
pub(crate) struct Registry {
    entries: HashMap<String, Entry>,
}

struct Entry {
    run: Run,
    /// How long an attempt takes, a moving mean in nanoseconds. 0 if none has been measured.
    mean_ns: AtomicU64,
}

impl Registry {
    /// Adds a handler of the application's.
    pub(crate) fn add<H: Handler>(&mut self, handler: H) -> Result<()> {
        check_kind(<H::Payload as Payload>::KIND)?;
        self.add_own(handler)
    }

    /// Adds a handler of the application's or of ours.
    pub(crate) fn add_own<H: Handler>(&mut self, handler: H) -> Result<()> {
        let run = move |ctx: &Context| {
            let payload = ctx.payload::<H::Payload>()?;
            match handler.run(payload, ctx)? {
                Outcome::Done(output) => encode(&output).map(Outcome::Done),
                Outcome::Snooze(wait) => Ok(Outcome::Snooze(wait)),
                Outcome::Cancel(reason) => Ok(Outcome::Cancel(reason)),
            }
        };
        self.add_raw(<H::Payload as Payload>::KIND, Box::new(run))
    }

    /// Adds what runs a kind.
    pub(crate) fn add_raw(&mut self, kind: &str, run: Run) -> Result<()> {
        let entry = Entry { run, mean_ns: AtomicU64::new(0) };
        match self.entries.insert(kind.to_owned(), entry) {
            None => Ok(()),
            Some(_) => Err(Error::invalid("handle", format_args!("the kind {kind} has a handler already"))),
        }
    }

    pub(crate) fn kinds(&self) -> HashSet<String> {
        self.entries.keys().cloned().collect()
    }

    /// Runs the handler of the context's job. A panic becomes a failure with its message.
    pub(crate) fn run(&self, ctx: &Context) -> RawOutcome {
        let Some(entry) = self.entries.get(ctx.job().kind_name()) else {
            // Only served lanes are claimed.
            return Err(Failure::retry(format_args!("no handler for the kind {}", ctx.job().kind_name())));
        };
        panics::caught(|| (entry.run)(ctx)).unwrap_or_else(|message| Err(Failure::retry(message)))
    }

    /// Takes note of how long an attempt took.
    pub(crate) fn measured(&self, kind: &str, took: Duration) {
        if let Some(entry) = self.entries.get(kind) {
            let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
            let mean_ns = entry.mean_ns.load(Ordering::Relaxed);
            let next = if mean_ns == 0 { took_ns } else { mean_ns - mean_ns / 8 + took_ns / 8 };
            entry.mean_ns.store(next.max(1), Ordering::Relaxed);
        }
    }

    /// How long an attempt of this kind takes, if any has been measured.
    pub(crate) fn mean(&self, kind: &str) -> Option<Duration> {
        let mean_ns = self.entries.get(kind)?.mean_ns.load(Ordering::Relaxed);
        (mean_ns > 0).then(|| Duration::from_nanos(mean_ns))
    }
}

/// A function or closure as a handler.
pub(crate) struct FnHandler<F, P, R> {
    run: F,
    types: PhantomData<fn(P) -> R>,
}

impl<F, P, R> FnHandler<F, P, R> {
    pub(crate) fn new(run: F) -> Self {
        Self { run, types: PhantomData }
    }
}

impl<F, P, R> Handler for FnHandler<F, P, R>
where
    F: Fn(P, &Context) -> Result<R, Failure> + Send + Sync + 'static,
    P: Payload + 'static,
    R: IntoOutcome + 'static,
{
    type Payload = P;
    type Output = R::Output;

    fn run(&self, payload: P, ctx: &Context) -> Result<Outcome<R::Output>, Failure> {
        (self.run)(payload, ctx).map(R::into_outcome)
    }
}
