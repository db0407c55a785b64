//! Pages of jobs.

use jobmill::testing::Harness;
use jobmill::{NewJob, Query, Status};

/// A page of one or two jobs panicked, for the least number of ids read at a time was above the greatest.
#[test]
fn the_smallest_pages_walk_through_every_job() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(t.enqueue(NewJob::json("nobody", &n))?);
    }
    ids.reverse();
    for limit in 1..=8 {
        for query in [Query::new(), Query::new().statuses([Status::Pending, Status::Failed])] {
            let mut found = Vec::new();
            let mut next = Some(query.limit(limit));
            while let Some(query) = next {
                let page = t.client().list(query)?;
                assert!(page.jobs.len() <= limit);
                found.extend(page.jobs.iter().map(|job| job.id));
                next = page.next;
            }
            assert_eq!(found, ids, "pages of {limit}");
        }
    }
    Ok(())
}
