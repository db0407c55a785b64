//! The job that lets the items of an ended batch go once more, those that did not in the turn that was asked for it.

use crate::builtin::batch::{call, failed, in_slices};
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::RetryBatch;

/// The handler of retries.
pub(crate) struct Retrier;

impl Handler for Retrier {
    type Payload = RetryBatch;
    type Output = ();

    fn run(&self, payload: RetryBatch, ctx: &Context) -> Result<Outcome<()>, Failure> {
        let (desk, batch) = (ctx.client().desk(), payload.batch);
        in_slices(desk, move |turn| turn.retry_items(batch)).map_err(failed)?;
        call(desk, move |turn| turn.settle(batch)).map_err(failed)?;
        Ok(Outcome::Done(()))
    }
}
