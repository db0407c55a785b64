//! The job that deletes what a provider keeps of a request whose results are in the file.

use std::sync::Arc;

use crate::builtin::batch::{Agency, call, failed};
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::CleanRequest;
use crate::store::batch::RequestState;
use crate::store::batch::request::request;

/// The handler of deletions at providers.
pub(crate) struct Cleaner {
    pub(crate) agency: Arc<Agency>,
}

impl Handler for Cleaner {
    type Payload = CleanRequest;
    type Output = ();

    fn run(&self, payload: CleanRequest, ctx: &Context) -> Result<Outcome<()>, Failure> {
        let id = payload.request;
        let row =
            ctx.client().reader().snapshot("cannot read the request", |conn| request(conn, id)).map_err(failed)?;
        // Of one that was deleted here nobody knows any more what to delete there.
        let Some(row) = row.filter(|row| row.state == RequestState::Harvested) else {
            return Ok(Outcome::Done(()));
        };
        let Some(provider) = self.agency.for_account(&row.provider, &row.account) else {
            return Err(Failure::retry(format_args!("the account {} is not here", row.account)));
        };
        let Some(remote) = &row.latest else { return Ok(Outcome::Done(())) };
        // What is gone already is no error, so it may begin anew after a crash between two of them.
        for leftover in provider.leftovers(remote, row.file.as_deref()) {
            provider.delete(&leftover).map_err(|error| match error.retry_after {
                Some(wait) => Failure::retry_after(wait, &error),
                None => Failure::retry(&error),
            })?;
        }
        call(ctx.client().desk(), move |turn| turn.cleaned(id)).map_err(failed)?;
        Ok(Outcome::Done(()))
    }
}
