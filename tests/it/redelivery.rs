//! Callbacks that are delivered once more because somebody asks for it.

use jobmill::testing::{Fault, Harness};
use jobmill::{Action, ErrorKind, JobUpdate, NewJob, Retention, Status};
use serde_json::json;

use crate::delivery::{ended, harness};
use crate::support::receiver::{Mailbox, here, only_delivery};
use crate::support::{Echo, now, refused, secs, sound};

#[test]
fn a_redelivery_has_the_same_id_and_body_and_goes_where_the_job_says_now() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let id = ended(t.client(), mailbox.url("/first"))?;
    t.drain()?;
    let first = mailbox.only();
    t.advance(secs(60));
    let update = JobUpdate::new().callback_url(mailbox.url("/second").as_str()).metadata(&json!({ "n": 2 }));
    t.client().update(id, update)?;
    assert_eq!(t.drain()?, 0, "a change of the address tells nobody");
    for round in 1..=2 {
        let delivering = t.client().acting_as("ada")?.redeliver(id)?;
        t.drain()?;
        let again = mailbox.only();
        assert_eq!(again.path, "/second");
        assert_eq!((&again.id, &again.body), (&first.id, &first.body), "it tells the same");
        let deliveries = t.client().deliveries(id)?;
        assert_eq!(deliveries.len(), round + 1);
        assert_eq!((deliveries[round].id, &deliveries[round].message_id), (delivering, &first.id));
        assert_eq!(t.client().get(id)?.callback_sent_at, Some(now(&t)));
        t.advance(secs(60));
    }
    let told = t.client().history(id)?;
    let told: Vec<_> = told.iter().filter(|line| line.action == Action::Redelivered).collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|line| line.actor.as_deref() == Some("ada") && line.from == line.to), "{told:?}");

    // One that had no address when it ended is told of for the first time.
    let id = t.enqueue(NewJob::tracked().status(Status::Failed))?;
    refused(t.client().redeliver(id), ErrorKind::Conflict, &format!("{id} has no callback_url"));
    t.client().update(id, JobUpdate::new().callback_url(mailbox.url("/late").as_str()))?;
    let delivering = t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, delivering.to_string());
    sound(t.client());
    Ok(())
}

/// An end that nobody had been told of was redelivered under the id of the end before it, so that a receiver who drops
/// repeats never heard of it.
#[test]
fn an_end_is_not_redelivered_as_the_one_before_it() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let id = t.enqueue(Echo::job("x").callback_url(mailbox.url("/")).delay(secs(1)))?;
    t.client().cancel(id)?;
    t.drain()?;
    let cancelled = mailbox.only();
    assert_eq!(cancelled.body["status"], "cancelled");
    t.client().retry(id)?;
    t.client().update(id, JobUpdate::new().callback_url(None))?;
    t.drain()?;
    mailbox.take(0);
    t.client().update(id, JobUpdate::new().callback_url(mailbox.url("/").as_str()))?;
    t.client().redeliver(id)?;
    t.drain()?;
    let completed = mailbox.only();
    assert_eq!(completed.body["status"], "completed");
    assert_ne!(completed.id, cancelled.id);
    t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, completed.id);
    Ok(())
}

#[test]
fn only_what_has_ended_and_is_ones_own_is_redelivered() -> jobmill::Result<()> {
    let (t, mailbox) = (harness(here()), Mailbox::answering(200));
    let (ada, bob) = (t.client().for_user("ada")?, t.client().for_user("bob")?);
    let id = ada.enqueue(Echo::job("x").callback_url(mailbox.url("/")))?.id();
    let too_early = |status: &str| {
        let error = format!("{id} is {status} and cannot be redelivered");
        refused(t.client().redeliver(id), ErrorKind::Conflict, &error);
        refused(ada.redeliver(id), ErrorKind::Conflict, &error);
    };
    too_early("pending");
    // The claim is written, and the end is not.
    t.faults().fail(2, Fault::Before);
    assert!(t.drain().is_err());
    t.check(id, "running, attempt 1");
    t.client().pause("system")?;
    too_early("running");
    t.client().resume("system")?;
    t.drain()?;
    mailbox.take(1);
    let told = only_delivery(&ada, id);
    assert_eq!(ada.deliveries(id)?, t.client().deliveries(id)?);
    let again = ada.redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, told.message_id);
    assert_eq!(t.client().history(id)?.last().and_then(|line| line.actor.clone()).as_deref(), Some("ada"));

    let missing = format!("there is no job {id}");
    refused(bob.redeliver(id), ErrorKind::NotFound, &missing);
    refused(bob.deliveries(id), ErrorKind::NotFound, &missing);
    // The delivering jobs are the engine's, and nobody's who is bound to a user.
    for client in [&ada, &bob] {
        refused(client.get(again), ErrorKind::NotFound, &format!("there is no job {again}"));
        refused(client.redeliver(again), ErrorKind::NotFound, &format!("there is no job {again}"));
    }
    assert_eq!(ada.stats()?.total.total(), 1);
    refused(t.client().redeliver(again), ErrorKind::Conflict, &format!("{again} has no callback_url"));
    let unknown = "job-0000000000002".parse()?;
    refused(t.client().redeliver(unknown), ErrorKind::NotFound, "there is no job");
    refused(t.client().deliveries(unknown), ErrorKind::NotFound, "there is no job");
    t.drain()?;
    mailbox.take(0);
    Ok(())
}

#[test]
fn a_redelivery_after_the_first_one_was_pruned_is_a_new_message() -> jobmill::Result<()> {
    let mailbox = Mailbox::answering(200);
    let retention = Retention { completed: Some(secs(3600)), ..Retention::FOREVER };
    let t = Harness::new(move |builder| builder.callbacks(here()).retention(retention))?;
    let failed = |name: &str| t.enqueue(NewJob::tracked().status(Status::Failed).callback_url(mailbox.url(name)));
    let id = failed("/")?;
    t.drain()?;
    let first = mailbox.only();
    t.advance(secs(3000));
    t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, first.id);
    t.advance(secs(3000));
    t.engine().maintain()?;
    assert_eq!(only_delivery(t.client(), id).message_id, first.id, "the redelivery is kept still");
    t.client().redeliver(id)?;
    t.drain()?;
    assert_eq!(mailbox.only().id, first.id);
    t.advance(secs(7200));
    t.engine().maintain()?;
    assert_eq!(t.client().deliveries(id)?, []);
    let delivering = t.client().redeliver(id)?;
    t.drain()?;
    let last = mailbox.only();
    assert_eq!((&last.id, &last.body), (&delivering.to_string(), &first.body));
    sound(t.client());
    Ok(())
}
