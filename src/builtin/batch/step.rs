//! The job that runs the step of an item which has a reply.

use std::sync::Arc;

use crate::builtin::batch::{call, failed};
use crate::handler::context::Context;
use crate::handler::registry::RawOutcome;
use crate::handler::{Failure, Outcome};
use crate::model::batch::{BatchReply, Step};
use crate::model::batch_job::StepItem;
use crate::store::batch::results;
use crate::store::finish::Retry;

/// A step as the application gives it.
pub(crate) type StepFn = Arc<dyn Fn(BatchReply, &Context) -> Result<Step, Failure> + Send + Sync>;

/// Runs a step for the item of the context's job. What it decides is written before the job ends, and counts once.
pub(crate) fn run(step: &StepFn, ctx: &Context) -> RawOutcome {
    let StepItem { item, step_number } = ctx.payload()?;
    let job = ctx.id();
    let row = ctx
        .client()
        .reader()
        .snapshot("cannot read the reply", |conn| results::reply(conn, item, step_number, job))
        .map_err(failed)?;
    // It was decided before, and the job's end was not written; or the batch is cancelled.
    let Some(row) = row else { return Ok(Outcome::Done(b"null".to_vec())) };
    let reply = BatchReply {
        item,
        batch: row.batch,
        key: row.key,
        agent_id: row.agent_id,
        step_number,
        request: row.request,
        reply: row.reply,
        state: row.state,
    };
    let decided = match step(reply, ctx) {
        Ok(decided) => decided,
        Err(failure) if ctx.is_last_attempt() || failure.retry == Retry::Never => {
            let lost = Step::Fail(failure.message.clone());
            call(ctx.client().desk(), move |turn| turn.step_item(item, step_number, job, &lost)).map_err(failed)?;
            return Err(failure);
        }
        Err(failure) => return Err(failure),
    };
    call(ctx.client().desk(), move |turn| turn.step_item(item, step_number, job, &decided)).map_err(failed)?;
    Ok(Outcome::Done(b"null".to_vec()))
}
