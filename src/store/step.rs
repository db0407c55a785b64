//! One step of a job's life, and all who must learn of it.

use std::time::Duration;

use crate::model::event::{Cause, Transition};
use crate::model::id::JobId;
use crate::store::place::Place;
use crate::store::row::State;
use crate::store::{Turn, callback, edge};

/// A step that has just been written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) job: JobId,
    pub(crate) place: Place,
    /// None: the job is new.
    pub(crate) from: Option<State>,
    /// None: the job is gone.
    pub(crate) to: Option<State>,
    pub(crate) cause: Cause,
    pub(crate) attempt: u32,
    /// For how long it could have run before it did.
    pub(crate) waited: Option<Duration>,
    /// For how long its attempt ran.
    pub(crate) ran: Option<Duration>,
}

impl Turn<'_> {
    /// Counts a step and notes it for those who hear of it after the commit.
    pub(crate) fn step(&mut self, step: Step) -> rusqlite::Result<()> {
        self.book.count(step.place, step.from, step.to);
        if step.place.limited {
            self.step_through_gates(&step)?;
        }
        self.out.transitions.push(Transition {
            job: step.job,
            lane: step.place.lane,
            share: step.place.share,
            from: step.from.map(State::status),
            to: step.to.map(State::status),
            cause: step.cause,
            at: self.now,
            attempt: step.attempt,
            waited: step.waited,
            ran: step.ran,
        });
        Ok(())
    }

    /// Takes a step to the end of a job that may have asked for a callback.
    pub(crate) fn last_step(&mut self, step: Step) -> rusqlite::Result<()> {
        self.step(step)?;
        self.ended(step.job);
        if let Some(to) = step.to
            && edge::tell(self.conn, step.job, step.place, to as i64)?
        {
            self.book.flows.has_work = true;
        }
        if let Some(delivery) = callback::due(self.conn, step.job)? {
            self.enqueue(&delivery.new_job())?;
        }
        self.bury_doomed(step.job)
    }

    /// Notes that a job has come to its end.
    pub(crate) fn ended(&mut self, job: JobId) {
        self.out.ended.push(job);
    }
}
