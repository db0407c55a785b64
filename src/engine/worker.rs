//! What a worker does: takes a claimed job, runs its handler, hands in the end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::client::Client;
use crate::desk::Finish;
use crate::engine::pool::{Ended, Next, Pool};
use crate::handler::context::{Context, Run, States, Stop};
use crate::handler::registry::{RawOutcome, Registry};
use crate::handler::{Failure, Outcome};
use crate::liveness::Liveness;
use crate::model::attempt::AttemptOutcome;
use crate::store::finish::{Retry, Verdict};

/// What every worker of an engine shares.
pub(crate) struct Shop {
    pub(crate) client: Client,
    pub(crate) registry: Arc<Registry>,
    pub(crate) states: Arc<States>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) shutting_down: Arc<AtomicBool>,
}

impl Shop {
    /// A worker's life: runs jobs until there are none for long, or the engine closes.
    pub(crate) fn work(&self, worker: u32) {
        while let Next::Run(run) = self.pool.next(worker) {
            if !self.run(&run) {
                // The place has been given to another thread long since.
                return;
            }
        }
    }

    /// Runs one attempt and hands in its end. False if it had been abandoned, and its outcome does not count.
    pub(crate) fn run(&self, run: &Arc<Run>) -> bool {
        let job = &run.claim.job;
        self.liveness.begun(run.slot, job.id.raw(), run.claim.fence);
        log::debug!("{} {} begins attempt {}", job.kind_name(), job.id, job.attempt);
        let ctx = Context::new(run.clone(), self.client.clone(), self.states.clone(), self.shutting_down.clone());
        let outcome = match run.stop() {
            // It was cancelled before it could begin.
            Some(Stop::Cancelled) => Ok(Outcome::Cancel("cancelled before it began".to_owned())),
            _ => self.registry.run(&ctx),
        };
        let overdue = self.is_overdue(run);
        let left = match self.pool.end(run) {
            Ended::Abandoned => {
                log::warn!("the abandoned attempt {} of {} has ended at last", job.attempt, job.id);
                return false;
            }
            ended => ended,
        };
        let note = run.take_note();
        if run.has_ended() {
            if let Some(note) = note {
                self.client.desk().note(note);
            }
            log::debug!("{} {} ends attempt {}: completed in a transaction", job.kind_name(), job.id, job.attempt);
            self.pool.settled(&[run.slot]);
            return true;
        }
        let verdict = verdict(run, outcome, overdue);
        log::debug!("{} {} ends attempt {}: {verdict}", job.kind_name(), job.id, job.attempt);
        let finish = Finish { claim: run.claim.clone(), verdict, worker: Some(run.worker), slot: Some(run.slot), note };
        match left {
            Ended::LastOne => self.client.desk().finish_last(finish),
            _ => self.client.desk().finish(finish),
        }
        true
    }

    /// Ends what a worker was at whose thread has ended by a bug of ours: the attempt failed.
    pub(crate) fn bereave(&self, worker: u32) {
        let Some(run) = self.pool.lost(worker) else { return };
        let error = "the worker panicked outside of the handler".to_owned();
        let verdict = Verdict::Failed { error, outcome: AttemptOutcome::Failed, retry: Retry::Backoff };
        let (claim, worker, slot) = (run.claim.clone(), Some(run.worker), Some(run.slot));
        self.client.desk().finish(Finish { claim, verdict, worker, slot, note: run.take_note() });
    }

    fn is_overdue(&self, run: &Run) -> bool {
        let now = self.client.desk().clock().monotonic();
        run.deadline().is_some_and(|deadline| deadline <= now)
    }
}

/// What the ledger is told of an attempt.
fn verdict(run: &Run, outcome: RawOutcome, overdue: bool) -> Verdict {
    // A message is read with its job's row, in pages of a thousand.
    let cut = |mut message: String| {
        message.truncate(message.floor_char_boundary(Failure::MAX_MESSAGE_BYTES));
        message
    };
    let outcome = outcome.map_err(|failure| Failure { message: cut(failure.message), ..failure });
    match outcome {
        Ok(Outcome::Done(result)) => Verdict::Completed { result: Some(result) },
        Ok(Outcome::Snooze(wait)) => Verdict::Snoozed { wait },
        Ok(Outcome::Cancel(reason)) => Verdict::Cancelled { reason: Some(cut(reason)) },
        Err(failure) => match run.stop() {
            Some(Stop::Cancelled) => Verdict::Cancelled { reason: Some(failure.message) },
            Some(Stop::ShutDown) => Verdict::Returned,
            Some(Stop::TimedOut) => timed_out(failure.message, failure.retry),
            None if overdue => timed_out(failure.message, failure.retry),
            None => Verdict::Failed { error: failure.message, outcome: AttemptOutcome::Failed, retry: failure.retry },
        },
    }
}

/// What the ledger is told of an attempt whose time was up.
pub(crate) fn timed_out(error: String, retry: Retry) -> Verdict {
    Verdict::Failed { error, outcome: AttemptOutcome::TimedOut, retry }
}
