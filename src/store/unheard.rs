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
}
