//! The job that runs the step of an item which has a reply.

use std::sync::Arc;

use crate::builtin::batch::{call, failed};
use crate::handler::context::Context;
use crate::handler::registry::RawOutcome;
use crate::handler::{Failure, Outcome};
use crate::model::batch::{BatchReply, Step};
use crate::model::batch_job::StepItem;
use crate::model::new_batch::NextRequest;
use crate::store::batch::results::{self, Decision};
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
    let before = row.request.clone();
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
        Ok(decided) => decision(decided, before.get()),
        Err(failure) if ctx.is_last_attempt() || failure.retry == Retry::Never => {
            let lost = Decision::Fail(failure.message.clone());
            call(ctx.client().desk(), move |turn| turn.step_item(item, step_number, job, &lost)).map_err(failed)?;
            return Err(failure);
        }
        Err(failure) => return Err(failure),
    };
    call(ctx.client().desk(), move |turn| turn.step_item(item, step_number, job, &decided)).map_err(failed)?;
    Ok(Outcome::Done(b"null".to_vec()))
}

/// What a step has decided about an item whose request was `before`. A request that breaks a rule could never be sent.
fn decision(step: Step, before: &str) -> Decision {
    match step {
        Step::Done => Decision::Done(None),
        Step::DoneWith(output) => Decision::Done(Some(output.to_string())),
        Step::Continue { request, state } => match NextRequest::after(before, &request, state.as_ref()) {
            Ok(next) => Decision::Next(next),
            Err(error) => Decision::Fail(error.to_string()),
        },
        Step::Fail(reason) => Decision::Fail(reason),
    }
}
