//! The job that cancels what is open of a batch.

use std::sync::Arc;

use crate::builtin::batch::{Agency, SLICE, call, failed, in_slices};
use crate::error::Result;
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::CancelBatch;
use crate::model::id::JobId;
use crate::store::batch::request::RequestRow;
use crate::store::batch::{ItemState, RequestState};

/// The handler of cancellations.
pub(crate) struct Canceller {
    pub(crate) agency: Arc<Agency>,
}

impl Handler for Canceller {
    type Payload = CancelBatch;
    type Output = ();

    fn run(&self, payload: CancelBatch, ctx: &Context) -> Result<Outcome<()>, Failure> {
        let unreachable = self.cancel(payload.batch, ctx).map_err(failed)?;
        match unreachable {
            None => Ok(Outcome::Done(())),
            Some(why) => Err(Failure::retry(why)),
        }
    }
}

impl Canceller {
    /// Cancels what it can, and tells what could not be reached.
    fn cancel(&self, batch: JobId, ctx: &Context) -> Result<Option<String>> {
        let desk = ctx.client().desk();
        // A batch that has ended meanwhile and was retried is not to be cancelled any more: each turn looks.
        in_slices(desk, move |turn| Ok(turn.is_being_cancelled(batch)? && turn.cancel_items(batch, SLICE)?))?;
        let open = call(desk, move |turn| match turn.is_being_cancelled(batch)? {
            true => turn.open_requests(batch),
            false => Ok(Vec::new()),
        })?;
        let mut unreachable = None;
        for row in open {
            let id = row.id;
            match row.state {
                RequestState::Planning | RequestState::Submitting => {
                    in_slices(desk, move |turn| {
                        Ok(turn.is_being_cancelled(batch)?
                            && turn.end_items(batch, id, ItemState::Cancelled, (None, None), SLICE)?)
                    })?;
                    call(desk, move |turn| match turn.is_being_cancelled(batch)? {
                        true => turn.refuse(id, "cancelled before it was sent"),
                        false => Ok(()),
                    })?;
                }
                RequestState::Running if !row.cancel_requested => {
                    if let Err(why) = self.cancel_remote(&row, ctx)? {
                        log::warn!("{id}: cannot be cancelled now: {why}");
                        unreachable = Some(why);
                    }
                }
                // Of what may have been sent, the sender finds out what it is, and comes back here. What has ended is read.
                _ => {}
            }
        }
        call(desk, move |turn| turn.settle_without_plan(batch))?;
        Ok(unreachable)
    }

    fn cancel_remote(&self, row: &RequestRow, ctx: &Context) -> Result<std::result::Result<(), String>> {
        let (Some(provider), Some(remote_id)) = (self.agency.for_account(&row.provider, &row.account), &row.remote_id)
        else {
            return Ok(Err(format!("the account {} is not here", row.account)));
        };
        // That it cannot be cancelled may mean that it has ended: where it stands decides.
        let told = provider.cancel(remote_id).or_else(|error| match error.is_retryable() {
            true => Err(error),
            false => provider.poll(remote_id),
        });
        match told {
            Ok(remote) => {
                let (row, wait) = (row.clone(), provider.limits().poll_min);
                call(ctx.client().desk(), move |turn| turn.cancelled_remotely(&row, &remote, wait))?;
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}
