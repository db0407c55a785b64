//! The job that ends a batch of which much has failed: it sums up the failures beside the writer, which others wait for.

use crate::builtin::batch::{call, failed};
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::EndBatch;
use crate::store::batch::read;

/// The handler of ends.
pub(crate) struct Ender;

impl Handler for Ender {
    type Payload = EndBatch;
    type Output = ();

    fn run(&self, payload: EndBatch, ctx: &Context) -> Result<Outcome<()>, Failure> {
        let batch = payload.batch;
        let reader = ctx.client().reader();
        let errors = reader.snapshot("cannot read the failures", |conn| read::failures(conn, batch)).map_err(failed)?;
        call(ctx.client().desk(), move |turn| turn.end_with(batch, errors)).map_err(failed)?;
        Ok(Outcome::Done(()))
    }
}
