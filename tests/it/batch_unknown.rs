//! LLM batches of which nobody knows whether their provider has them: looked for, proved, sent again, or decided about.

use jobmill::provider::{CallClass, CallError, Fate};
use jobmill::{Batches, ErrorKind, RequestStatus, Status, WhenUnknown};

use crate::support::fake::Creation;
use crate::support::scene::Scene;
use crate::support::{now, secs, tamper};

/// An answer that was lost made other tools send the batch again and pay twice.
#[test]
fn a_batch_whose_answer_was_lost_is_found_by_its_key_and_not_sent_again() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.send(3);
    assert_eq!(t.client().batch_requests(id, &[RequestStatus::Unknown], None, 10)?.len(), 1);
    t.pass(60);
    assert_eq!((t.fake.count("create"), t.fake.count("find")), (1, 1));
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 3);
    Ok(())
}

#[test]
fn a_batch_that_was_lost_on_its_way_is_sent_again_once_that_is_sure() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::Fails(Fate::Ambiguous, CallClass::Transport));
    let id = t.submit(3);
    t.pass(240);
    assert_eq!(t.fake.count("create"), 1, "lists may lag");
    t.pass(240);
    assert_eq!(t.fake.count("create"), 2);
    t.complete(600);
    assert_eq!(t.batch(id).items.completed, 3);
    Ok(())
}

#[test]
fn without_a_key_only_the_results_prove_which_batch_is_ours() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().keeps_keys = false;
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.send(3);
    // Somebody else's batch of the same size lies beside it.
    let mut other = t.fake.inside().batches[0].clone();
    other.id = "somebody's".to_owned();
    other.requests.iter_mut().for_each(|(custom_id, _)| *custom_id = format!("x{custom_id}"));
    t.fake.inside().batches.insert(0, other);
    t.pass(1200);
    assert_eq!((t.fake.count("create"), t.status(id)), (1, Status::Running), "it waits for proof");
    t.complete(1200);
    let batch = t.batch(id);
    assert_eq!((batch.items.completed, batch.strays, t.fake.count("create")), (3, 0, 1));
    Ok(())
}

#[test]
fn who_would_rather_pay_twice_gets_each_item_once() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().when_unknown(WhenUnknown::ResubmitAfter(secs(600))));
    t.fake.inside().keeps_keys = false;
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.submit(3);
    t.pass(300);
    assert_eq!(t.fake.count("create"), 1);
    t.pass(600);
    assert_eq!(t.fake.count("create"), 2);
    t.complete(1200);
    assert_eq!(t.batch(id).items.completed, 3);
    Ok(())
}

/// A list that lags for longer than anybody waits makes a twin: it costs money, and never correctness.
#[test]
fn a_batch_that_was_made_twice_is_paid_twice_and_counts_once() -> jobmill::Result<()> {
    let t = Scene::new();
    let id = t.send_twice(3);
    let requests = t.requests(id);
    assert_eq!((requests.len(), requests[0].remote_id.as_deref()), (2, Some("remote-0")), "the oldest is ours");
    assert!(t.fake.inside().batches[1].cancelled && !t.fake.inside().batches[0].cancelled);
    t.complete(1200);
    let batch = t.batch(id);
    assert_eq!((batch.job.status, batch.items.completed, batch.strays), (Status::Completed, 3, 3));
    assert_eq!(batch.spent.usage.input, Some(60), "it was paid twice");
    assert_eq!(t.item(id, "key-0").usage.input, Some(10), "and each item has its own");
    Ok(())
}

#[test]
fn an_operator_decides_about_a_batch_that_nobody_knows_of() -> jobmill::Result<()> {
    let t = Scene::with(Batches::new().when_unknown(WhenUnknown::Ask));
    t.fake.inside().keeps_keys = false;
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.submit(2);
    t.pass(1200);
    let request = t.client().batch_requests(id, &[RequestStatus::Unknown], None, 1)?[0].id;
    t.client().adopt_request(request, "remote-0")?;
    let again = t.client().abandon_request(request).expect_err("it is known now");
    assert_eq!(again.kind(), ErrorKind::Conflict);
    t.complete(600);
    assert_eq!((t.batch(id).items.completed, t.fake.count("create")), (2, 1));
    Ok(())
}

/// The allowance for clocks that differ is the engine's alone, for every provider.
#[test]
fn a_batch_is_found_at_a_provider_whose_clock_is_minutes_wrong() -> jobmill::Result<()> {
    for minutes in [-4_i64, 4] {
        let t = Scene::new();
        let its_now = now(&t).as_micros() + minutes * 60_000_000;
        {
            let mut inside = t.fake.inside();
            (inside.keeps_keys, inside.now) = (false, jobmill::Timestamp::from_micros(its_now));
            inside.creations.push_back(Creation::AnswerLost);
        }
        let id = t.send(2);
        t.complete(1800);
        assert_eq!((t.status(id), t.fake.count("create")), (Status::Completed, 1), "{minutes}");
    }
    Ok(())
}

#[test]
fn that_a_repetition_is_refused_tells_nothing_of_the_first_sending() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.idempotent = true;
    t.fake.inside().creations.extend([
        Creation::AnswerLost,
        Creation::Fails(Fate::Rejected, CallClass::RateLimited),
        Creation::Fails(Fate::Rejected, CallClass::Account),
    ]);
    let id = t.submit(2);
    t.pass(60);
    assert!(t.fake.count("create") > 1);
    t.client().cancel(id)?;
    t.pass(600);
    assert!(t.fake.inside().batches[0].cancelled, "it is paid, so it is not forgotten");
    Ok(())
}

/// The item of the first result may have been completed by another sending.
#[test]
fn a_batch_is_proved_ours_by_an_item_that_needs_it_no_more() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().keeps_keys = false;
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.send(3);
    tamper(
        t.client(),
        "UPDATE jobmill_batch_item SET state = 3 WHERE key = 'key-0';
         UPDATE jobmill_batch SET sent = sent - 1, completed = completed + 1;",
    );
    t.complete(1200);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Completed, 1));
    Ok(())
}

/// An operator decides while the creation is still under way.
#[test]
fn what_a_creation_made_is_kept_though_an_operator_has_named_another() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::Fails(Fate::Rejected, CallClass::RateLimited));
    let id = t.send(2);
    let request = t.requests(id)[0].id;
    let client = t.client().clone();
    let meddling = move || client.adopt_request(request, "remote-77").expect("nobody knows yet");
    t.fake.inside().on_encode = Some(Box::new(meddling));
    t.pass(60);
    let requests = t.requests(id);
    let held: Vec<_> = requests.iter().map(|request| request.remote_id.as_deref()).collect();
    assert_eq!(held, [Some("remote-77"), Some("remote-0")]);
    t.complete(600);
    assert_eq!((t.status(id), t.batch(id).items.completed), (Status::Completed, 2));
    Ok(())
}

#[test]
fn a_batch_is_adopted_by_an_id_only() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.send(1);
    let request = t.requests(id)[0].id;
    assert_eq!(t.client().adopt_request(request, "").expect_err("a refusal").kind(), ErrorKind::Invalid);
    Ok(())
}

/// Somebody else's batch of the same size, which never ended, was waited for without end.
#[test]
fn what_might_be_ours_is_waited_for_no_longer_than_a_batch_may_run() -> jobmill::Result<()> {
    for (policy, expected) in [
        (WhenUnknown::WaitForProof, Status::Failed),
        (WhenUnknown::Ask, Status::Running),
        (WhenUnknown::WaitForProof, Status::Cancelled),
    ] {
        let t = Scene::with(Batches::new().when_unknown(policy));
        t.fake.inside().keeps_keys = false;
        t.fake.inside().creations.push_back(Creation::AnswerLost);
        let id = t.send(2);
        t.fake.inside().batches[0].id = "somebody's".to_owned();
        if expected == Status::Cancelled {
            t.client().cancel(id)?;
        }
        t.pass_hours(23);
        assert_eq!(t.status(id), Status::Running);
        t.pass_hours(3);
        assert_eq!((t.status(id), t.fake.count("create")), (expected, 1), "{policy:?}");
        if expected == Status::Failed {
            let item = t.item(id, "key-0");
            assert_eq!((item.error_class.as_deref(), item.attempt), (Some("missing"), 1));
        }
    }
    Ok(())
}

/// So was a batch at a provider that cannot look for one.
#[test]
fn a_provider_that_cannot_look_for_a_batch_is_not_asked_for_ever() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let unsupported = CallError::new(Fate::Rejected, CallClass::Unsupported, "there is no list");
    t.fake.inside().finds.extend(vec![unsupported; 1000]);
    let id = t.submit(2);
    t.pass_hours(26);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Failed, 1));
    let error = t.item(id, "key-0").error.unwrap_or_default();
    assert!(error.contains("there is no list"), "{error}");
    Ok(())
}

/// One empty list and a clock that is set ahead were proof enough to send a batch again.
#[test]
fn a_clock_that_is_set_ahead_sends_nothing_twice() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().lags = true;
    t.fake.inside().creations.push_back(Creation::AnswerLost);
    let id = t.send(2);
    for _ in 0..2 {
        t.advance(secs(86_400));
        t.drain()?;
    }
    assert_eq!((t.fake.count("find"), t.fake.count("create")), (2, 1));
    t.fake.inside().lags = false;
    t.advance(secs(60));
    t.drain()?;
    t.complete(600);
    assert_eq!((t.status(id), t.fake.count("create")), (Status::Completed, 1));
    Ok(())
}
