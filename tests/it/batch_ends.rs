//! LLM batches that do not come to the end that was hoped for: lost, refused as a whole, expired, cancelled too late.

use jobmill::testing::Harness;
use jobmill::{Batches, JobId, NewBatch, RequestStatus, Status};

use crate::batch::{BatchClock, items, pass, start, status, submit, with};
use crate::support::fake::Fake;
use crate::support::secs;

/// Lets hours pass, with a look every quarter of one.
fn hours(t: &Harness, hours: u64) {
    for _ in 0..hours * 4 {
        t.advance(secs(900));
        t.drain().expect("a drain");
        t.engine().poll().expect("a poll");
        t.drain().expect("a drain");
    }
}

fn statuses(t: &Harness, id: JobId) -> Vec<RequestStatus> {
    t.client().batch_requests(id, &[], None, 100).expect("requests").iter().map(|request| request.status).collect()
}

/// A batch that its provider had deleted, or whose results were past their time, was asked about for ever.
#[test]
fn a_batch_that_its_provider_has_not_known_for_a_day_ends_and_is_not_paid_again() -> jobmill::Result<()> {
    for ended in [false, true] {
        let (fake, t) = start();
        let id = submit(&t, 2);
        t.drain()?;
        if ended {
            fake.complete_all();
            t.advance(secs(60));
            t.engine().poll()?;
        }
        let kept = std::mem::take(&mut fake.inside().batches);
        hours(&t, 20);
        assert_eq!(status(&t, id), Status::Running, "a key of another workspace is answered the same way");
        hours(&t, 6);
        let batch = t.client().batch(id)?;
        assert_eq!((batch.job.status, batch.items.failed, fake.count("create")), (Status::Failed, 2, 1));
        let item = t.client().batch_item(id, "key-0")?;
        let error = item.error.unwrap_or_default();
        assert_eq!(item.error_class.as_deref(), Some("missing"));
        assert!(error.contains("no such batch"), "{error}");
        assert_eq!(statuses(&t, id), [RequestStatus::Refused]);
        // Who would rather pay twice says so.
        fake.inside().batches = kept;
        t.client().retry(id)?;
        t.drain()?;
        fake.complete_all();
        pass(&t, 600);
        assert_eq!((t.client().batch(id)?.items.completed, fake.count("create")), (2, 2));
    }
    Ok(())
}

#[test]
fn a_batch_that_its_provider_knows_again_is_not_given_up() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 2);
    t.drain()?;
    for _ in 0..3 {
        let kept = std::mem::take(&mut fake.inside().batches);
        hours(&t, 20);
        fake.inside().batches = kept;
        hours(&t, 1);
    }
    assert_eq!(status(&t, id), Status::Running);
    fake.complete_all();
    hours(&t, 1);
    assert_eq!((status(&t, id), fake.count("create")), (Status::Completed, 1));
    Ok(())
}

/// Neither a poll nor a cancellation ever came to an end.
#[test]
fn a_cancelled_batch_that_its_provider_does_not_know_ends_soon() -> jobmill::Result<()> {
    for ended in [false, true] {
        let (fake, t) = start();
        let id = submit(&t, 2);
        t.drain()?;
        if ended {
            fake.complete_all();
            t.advance(secs(60));
            t.engine().poll()?;
        }
        fake.inside().batches.clear();
        t.client().cancel(id)?;
        t.drain()?;
        assert_eq!(status(&t, id), Status::Running, "one answer is not believed");
        pass(&t, 1200);
        assert_eq!((status(&t, id), t.client().batch(id)?.items.cancelled), (Status::Cancelled, 2));
    }
    Ok(())
}

#[test]
fn a_clock_that_is_set_ahead_loses_no_batch() -> jobmill::Result<()> {
    let fake = Fake::new("fake");
    let t = with(&fake, Batches::new().lost_after(secs(60)));
    fake.inside().now = t.client().batch_clock();
    let id = submit(&t, 2);
    t.drain()?;
    let kept = std::mem::take(&mut fake.inside().batches);
    for _ in 0..2 {
        t.advance(secs(30 * 86_400));
        t.engine().poll()?;
    }
    fake.inside().batches = kept;
    fake.complete_all();
    hours(&t, 7);
    assert_eq!((status(&t, id), fake.count("create")), (Status::Completed, 1));
    let refused = Harness::new(|builder| builder.batches(Batches::new().lost_after(secs(0))));
    assert!(refused.is_err());
    Ok(())
}
