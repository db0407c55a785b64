//! The job that delivers a callback.

use crate::builtin::callback::courier::{Courier, Message};
use crate::builtin::callback::verdict::{Delivered, Undelivered};
use crate::handler::context::Context;
use crate::handler::{Failure, Handler, Outcome};
use crate::model::delivery::{Delivery, Try};

/// The handler of deliveries.
pub(crate) struct DeliverCallback {
    pub(crate) courier: Courier,
}

impl Handler for DeliverCallback {
    type Payload = Delivery;
    /// The status that the receiver answered.
    type Output = u16;

    fn run(&self, delivery: Delivery, ctx: &Context) -> Result<Outcome<u16>, Failure> {
        ctx.check()?;
        let message = Message {
            id: delivery.message_id(ctx.id()),
            url: delivery.url,
            body: delivery.body.get().as_bytes().to_vec(),
        };
        let (job_id, now) = (delivery.job_id, ctx.client().desk().clock().now());
        match self.courier.deliver(&message, now) {
            Ok(Delivered { status }) => {
                ctx.tried(Try { job_id, sent_at: now, status_code: Some(status), error: None });
                Ok(Outcome::Done(status))
            }
            Err(Undelivered { status, error, retry, retry_after }) => {
                ctx.tried(Try { job_id, sent_at: now, status_code: status, error: Some(error.clone()) });
                let settings = self.courier.settings();
                if !retry || ctx.attempt() >= settings.max_attempts {
                    return Err(Failure::fatal(error));
                }
                let wait = retry_after.unwrap_or_else(|| settings.backoff.wait(ctx.id(), ctx.attempt()));
                Err(Failure::retry_after(wait, error))
            }
        }
    }
}
