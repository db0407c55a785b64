//! The job that cancels what is open of a batch.

use std::sync::Arc;

use crate::builtin::batch::{Agency, POLL_WAIT_MAX, SLICE, call, failed, in_slices};
use crate::error::Result;
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::batch_job::CancelBatch;
use crate::model::id::JobId;
use crate::provider::{CallClass, RemoteState};
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
                    // One that was found at its provider meanwhile comes here again as what it is then.
                    in_slices(desk, move |turn| {
                        Ok(turn.is_being_cancelled(batch)?
                            && turn.is_unsent(id)?
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
        let (told, refusal) = match provider.cancel(remote_id) {
            Ok(remote) => (Ok(remote), None),
            Err(error) if error.is_retryable() => (Err(error), None),
            // That it cannot be cancelled may mean that it has ended: where it stands decides.
            Err(error) => (provider.poll(remote_id), Some(error)),
        };
        let (row, wait) = (row.clone(), provider.limits().poll_min.min(POLL_WAIT_MAX));
        let desk = ctx.client().desk();
        match (told, refusal) {
            (Ok(remote), Some(refusal)) if goes_on(&remote.state) && refusal.class != CallClass::Unsupported => {
                call(desk, move |turn| turn.polled(&row, &remote, wait))?;
                Ok(Err(format!("it goes on: {refusal}")))
            }
            // What its provider cannot cancel is read when it ends.
            (Ok(remote), _) => {
                call(desk, move |turn| turn.cancelled_remotely(&row, &remote, wait))?;
                Ok(Ok(()))
            }
            (Err(error), _) => Ok(Err(error.to_string())),
        }
    }
}

fn goes_on(state: &RemoteState) -> bool {
    !matches!(state, RemoteState::Cancelling | RemoteState::Ended(_))
}
