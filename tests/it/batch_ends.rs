//! LLM batches that do not come to the end that was hoped for: lost, refused as a whole, expired, cancelled too late.

use jobmill::provider::{RefusedItem, RemoteEnd, RemoteState};
use jobmill::testing::Harness;
use jobmill::{Batches, JobId, NewBatch, RequestStatus, Status};
use serde_json::Value;

use crate::batch::{BatchClock, items, pass, start, status, submit, with};
use crate::support::fake::{Fake, succeeded};
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

/// Ends what runs at the provider: it refuses as a whole what holds a bad item, and runs everything else.
fn validate(fake: &Fake, is_bad: impl Fn(u64) -> bool) {
    for held in &mut fake.inside().batches {
        if held.state == RemoteState::Running {
            let bad = held.requests.iter().any(|(_, body)| is_bad(body["n"].as_u64().expect("a number")));
            let refused = RemoteEnd::Invalid("invalid_json_line: as the test wants".to_owned());
            held.state = RemoteState::Ended(if bad { refused } else { RemoteEnd::Completed });
        }
    }
}

fn sizes(fake: &Fake) -> Vec<usize> {
    fake.inside().batches.iter().map(|held| held.requests.len()).collect()
}

/// One bad line made a whole file fail, of which nothing had been run.
#[test]
fn an_item_that_its_provider_names_when_it_refuses_a_batch_fails_alone() -> jobmill::Result<()> {
    let (fake, t) = start();
    let id = submit(&t, 8);
    t.drain()?;
    let named = |place| RefusedItem { place, message: format!("invalid_json_line: number {place}") };
    fake.inside().refused = vec![named(3), named(7)];
    validate(&fake, |_| true);
    pass(&t, 60);
    assert_eq!(sizes(&fake), [8, 6]);
    validate(&fake, |_| false);
    pass(&t, 600);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 6, 2));
    for (key, error) in [("key-2", "invalid_json_line: number 3"), ("key-6", "invalid_json_line: number 7")] {
        let item = t.client().batch_item(id, key)?;
        assert_eq!((item.error_class.as_deref(), item.error.as_deref()), (Some("invalid"), Some(error)));
    }
    assert_eq!(t.client().batch_item(id, "key-0")?.attempt, 1, "what was not run is no attempt");
    Ok(())
}

#[test]
fn a_bad_item_that_nobody_names_is_found_by_halves() -> jobmill::Result<()> {
    let (fake, t) = start();
    // A place that is not in the body names nobody.
    fake.inside().refused = vec![RefusedItem { place: 0, message: "m".to_owned() }];
    let id = t.client().submit(NewBatch::new("fake").max_attempts(1), items(16))?.id();
    t.drain()?;
    for _ in 0..8 {
        validate(&fake, |n| n == 11);
        pass(&t, 60);
    }
    assert_eq!(sizes(&fake), [16, 8, 8, 4, 4, 2, 2, 1, 1]);
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.completed, batch.items.failed), (Status::Completed, 15, 1));
    let item = t.client().batch_item(id, "key-11")?;
    assert_eq!(item.error.as_deref(), Some("invalid_json_line: as the test wants"));
    assert_eq!(t.client().batch_item(id, "key-10")?.attempt, 1);
    Ok(())
}

/// The items are not to blame one by one for what is wrong with all of them.
#[test]
fn a_batch_that_is_refused_whatever_it_holds_is_not_sent_for_ever() -> jobmill::Result<()> {
    let (fake, t) = start();
    fake.inside().limits.items = 1000;
    fake.inside().limits.bytes = 1 << 30;
    let id = submit(&t, 1000);
    t.drain()?;
    for _ in 0..12 {
        validate(&fake, |_| true);
        pass(&t, 60);
    }
    let batch = t.client().batch(id)?;
    assert_eq!((batch.job.status, batch.items.failed), (Status::Failed, 1000));
    assert!((64..=200).contains(&fake.count("create")), "{}", fake.count("create"));
    // Whoever has mended it is given as many tries again.
    t.client().retry(id)?;
    t.drain()?;
    for _ in 0..12 {
        validate(&fake, |n| n == 700);
        pass(&t, 60);
    }
    assert_eq!(t.client().batch(id)?.items.completed, 999);
    Ok(())
}

/// What did not get done in its time did not get done the next time either, for it was as large again.
#[test]
fn what_expires_goes_again_in_smaller_requests() -> jobmill::Result<()> {
    for told in [false, true] {
        let (fake, t) = start();
        fake.answer(move |_, body| match (body["n"] == 0, told) {
            (true, _) => Some(succeeded(&Value::Null)),
            (false, true) => Some(jobmill::provider::ItemOutcome::Expired),
            (false, false) => None,
        });
        let id = submit(&t, 9);
        t.drain()?;
        for _ in 0..2 {
            fake.end_all(&RemoteEnd::Expired);
            pass(&t, 60);
        }
        assert_eq!(sizes(&fake), [9, 5, 3, 3, 2, 2, 1], "told {told}");
        fake.answer(|_, _| Some(succeeded(&Value::Null)));
        fake.complete_all();
        pass(&t, 600);
        assert_eq!((status(&t, id), t.client().batch(id)?.items.completed), (Status::Completed, 9));
    }
    Ok(())
}
