//! What a start sets in the file: limits, bounds of queues and schedules.

use crate::client::{Client, unknown_limit};
use crate::error::Result;
use crate::model::limit::Limit;
use crate::model::schedule::Schedule;
use crate::store::connect::storage_error;
use crate::store::schedule::change::Texts;

impl Client {
    /// Sets these limits, bounds these queues and stores these schedules, whose own rules have been checked: all of it or
    /// nothing. A schedule may name a limit that is set with it.
    ///
    /// # Errors
    /// `Invalid` if a schedule names a limit that nobody has set.
    pub(crate) fn set_up(&self, limits: &[Limit], queues: &[Limit], schedules: &[Schedule]) -> Result<()> {
        if limits.is_empty() && queues.is_empty() && schedules.is_empty() {
            return Ok(());
        }
        let (limits, queues, caller) = (limits.to_vec(), queues.to_vec(), self.caller.clone());
        let schedules: Vec<(Schedule, Texts)> =
            schedules.iter().map(|schedule| Ok((schedule.clone(), Texts::of(schedule)?))).collect::<Result<_>>()?;
        self.desk().call(move |turn| {
            // Asked before anything is written: a turn goes on with what others have to write when something is refused.
            for (schedule, _) in &schedules {
                let is_set =
                    |name: &str| turn.book.gates.is_defined(name) || limits.iter().any(|limit| limit.name == name);
                if let Some(unknown) = schedule.job.limits.iter().find(|used| !is_set(&used.name)) {
                    return Err(schedule.told_of(unknown_limit(&unknown.name)));
                }
            }
            for limit in &limits {
                turn.set_limit(limit, &caller).map_err(|error| storage_error("cannot set the limit", error))?;
            }
            for limit in &queues {
                turn.limit_queue(limit, &caller).map_err(|error| storage_error("cannot bound the queue", error))?;
            }
            for (schedule, texts) in &schedules {
                turn.put_schedule_of_start(schedule, texts, &caller)?;
            }
            Ok(())
        })
    }
}
