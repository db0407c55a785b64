//! What failed turns have left that may have been written after all.

use std::collections::HashSet;

use crate::model::id::JobId;
use crate::store::row::Claim;

/// What a turn has claimed and whom it was to stop, of which the commit failed. If it was written all the same, nobody runs
/// these jobs, and nobody stops.
#[derive(Default)]
pub(crate) struct Unheard {
    pub(crate) claims: Vec<Claim>,
    pub(crate) stop: Vec<JobId>,
}

impl Unheard {
    /// Notes what a failed turn has left. One that fails again and again claims the same jobs each time.
    pub(crate) fn note(&mut self, claims: Vec<Claim>, stop: Vec<JobId>) {
        let mut known: HashSet<(JobId, i64)> = self.claims.iter().map(|claim| (claim.job.id, claim.fence)).collect();
        self.claims.extend(claims.into_iter().filter(|claim| known.insert((claim.job.id, claim.fence))));
        self.stop.extend(stop);
        self.stop.sort_unstable();
        self.stop.dedup();
    }

    /// Forgets all claims but those at these places, in their order.
    pub(crate) fn keep(&mut self, left: &[usize]) {
        let mut left = left.iter().copied().peekable();
        let mut place = 0;
        self.claims.retain(|_| {
            place += 1;
            left.next_if_eq(&(place - 1)).is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::error::Result;
    use crate::model::new_job::NewJob;
    use crate::store::connect::storage_error;
    use crate::store::plans::{Fixture, Greedy};
    use crate::store::{Fault, Turn};

    /// A claim for each failed turn was kept until one succeeded.
    #[test]
    fn of_turns_that_go_on_failing_no_more_is_kept_than_may_still_come_to_be() -> Result<()> {
        let mut fixture = Fixture::new()?;
        let (store, now) = (&mut fixture.store, &mut fixture.now);
        store.turn(*now, None, |turn| {
            turn.enqueue(&NewJob::json("one", &1)).map_err(|error| storage_error("test", error))
        })?;
        store.inject(Arc::new(|_| Some(Fault::After)));
        let mut greedy = Greedy { fair: false, by_deadline: false };
        for _ in 0..20 {
            *now = now.saturating_add(Duration::from_secs(60));
            let failed =
                store.turn(*now, Some(&mut greedy), |turn| turn.claim().map_err(|error| storage_error("test", error)));
            assert!(failed.is_err());
            assert!(store.unheard.claims.len() <= 2, "{} claims", store.unheard.claims.len());
        }
        Ok(())
    }

    /// Who enqueued while each turn failed left a claim of a job of his own each time, payload and all.
    #[test]
    fn of_jobs_that_are_enqueued_while_turns_fail_no_more_is_kept_than_one_turn_claims() -> Result<()> {
        let mut fixture = Fixture::new()?;
        let (store, now) = (&mut fixture.store, &mut fixture.now);
        store.inject(Arc::new(|commit| (commit < 20).then_some(Fault::Before)));
        for _ in 1..20 {
            *now = now.saturating_add(Duration::from_secs(60));
            assert!(store.turn(*now, Some(&mut greedy()), enqueue_and_claim).is_err());
            assert!(store.unheard.claims.len() <= 1, "{} claims", store.unheard.claims.len());
        }
        let (_, out) = store.turn(*now, Some(&mut greedy()), enqueue_and_claim)?;
        assert_eq!(out.claims.len(), 0, "it came after one that failed");
        let (_, out) = store.turn(*now, Some(&mut greedy()), enqueue_and_claim)?;
        assert_eq!(out.claims.len(), 2);
        Ok(())
    }

    fn greedy() -> Greedy {
        Greedy { fair: false, by_deadline: false }
    }

    fn enqueue_and_claim(turn: &mut Turn<'_>) -> Result<()> {
        let storage = |error| storage_error("test", error);
        turn.enqueue(&NewJob::json("one", &1)).map_err(storage)?;
        turn.claim().map_err(storage).map(drop)
    }
}
