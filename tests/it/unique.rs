//! Unique keys keep a second job of the same sort away: in every scope, status and period, in bulk and across clients.

use jobmill::rusqlite::TransactionBehavior;
use jobmill::testing::Harness;
use jobmill::{
    Client, Context, Engine, Enqueued, ErrorKind, Failure, JobId, NewJob, Outcome, Reason, Retention, Status, Unique,
    UniqueScope,
};

use crate::support::{Echo, Other, echo, file, other, refused, secs, sound, unadmit};

fn plain() -> jobmill::Result<Harness> {
    Harness::new(|builder| builder.handle(echo).handle(other))
}

fn keyed(key: &str) -> NewJob {
    Echo::job("x").unique(Unique::key(key))
}

#[test]
fn a_second_job_is_kept_away_until_the_first_has_ended() -> jobmill::Result<()> {
    let t = plain()?;
    let first = t.client().enqueue(keyed("k"))?;
    assert!(first.is_new());
    assert_eq!(t.client().enqueue(keyed("k").queue("elsewhere"))?, Enqueued::Existing(first.id()));
    assert!(t.client().enqueue(keyed("another"))?.is_new());
    assert_eq!(t.client().stats()?.total.total(), 2, "nothing was written");
    t.drain()?;
    let second = t.client().enqueue(keyed("k"))?;
    assert!(second.is_new() && second.id() != first.id());
    assert_eq!(t.client().get(second.id())?.unique_key.as_deref(), Some("k"));
    sound(t.client());
    Ok(())
}

#[test]
fn a_key_is_compared_within_its_scope() -> jobmill::Result<()> {
    /// A kind, a queue, and a user or none.
    type Place = (&'static str, &'static str, Option<&'static str>);
    const FIRST: Place = ("echo", "a", Some("u"));
    const OTHERS: [Place; 5] = [
        ("echo", "b", Some("v")),
        ("echo", "b", None),
        ("other", "a", Some("v")),
        ("other", "b", Some("u")),
        ("echo", "b", Some("u")),
    ];
    let table = [
        (UniqueScope::Kind, [false, false, true, true, false]),
        (UniqueScope::Queue, [true, true, false, true, true]),
        (UniqueScope::User, [true, true, true, false, false]),
        (UniqueScope::KindAndUser, [true, true, true, true, false]),
        (UniqueScope::Everything, [false, false, false, false, false]),
    ];
    for (scope, are_new) in table {
        for (place, is_new) in OTHERS.into_iter().zip(are_new) {
            let t = plain()?;
            let enqueue = |(kind, queue, user): Place| {
                let job = NewJob::json(kind, &1).queue(queue).unique(Unique::key("k").scope(scope));
                t.client().enqueue(match user {
                    Some(user) => job.user(user),
                    None => job,
                })
            };
            let first = enqueue(FIRST)?;
            let second = enqueue(place)?;
            assert_eq!(second.is_new(), is_new, "{scope:?} {place:?}");
            assert_eq!(second.id() == first.id(), !is_new);
        }
    }
    Ok(())
}

#[test]
fn keys_of_different_scopes_never_meet() -> jobmill::Result<()> {
    let t = plain()?;
    let scopes =
        [UniqueScope::Kind, UniqueScope::Queue, UniqueScope::User, UniqueScope::KindAndUser, UniqueScope::Everything];
    for scope in scopes {
        let job = Echo::job("").queue("echo").user("echo").unique(Unique::key("k").scope(scope));
        let enqueued = t.client().enqueue(job)?;
        assert!(enqueued.is_new(), "{scope:?}");
        assert_eq!(t.client().get(enqueued.id())?.unique_key.as_deref(), Some("k"), "{scope:?}");
    }
    // A key cannot be made to look like another scope's, whatever it holds.
    for key in ["echo\u{1f}k", "kind\u{1f}echo\u{1f}k", "k\u{0}", "k ", "K", "%"] {
        let enqueued = t.client().enqueue(keyed(key))?;
        assert!(enqueued.is_new(), "{key:?}");
        assert_eq!(t.client().get(enqueued.id())?.unique_key.as_deref(), Some(key));
        assert!(!t.client().enqueue(keyed(key))?.is_new(), "{key:?}");
    }
    Ok(())
}

/// Brings a job with a key into a status. The handler of `Echo` ends as its text says.
fn in_status(t: &Harness, status: Status, unique: Unique) -> jobmill::Result<JobId> {
    let job = |text: &str| Echo::job(text).unique(unique.clone());
    match status {
        Status::Created => {
            let id = t.enqueue(job("").queue("paused"))?;
            unadmit(t.client(), id);
            Ok(id)
        }
        Status::Pending => t.enqueue(job("").queue("paused")),
        Status::Cancelled => {
            let id = t.enqueue(job("").queue("paused"))?;
            t.client().cancel(id)?;
            Ok(id)
        }
        Status::Expired => t.enqueue(job("").queue("paused").expires_in(secs(0))),
        ended => {
            let id = t.enqueue(job(ended.as_str()))?;
            t.drain()?;
            Ok(id)
        }
    }
}

#[test]
fn a_job_holds_its_key_in_the_statuses_that_it_names() -> jobmill::Result<()> {
    let ends =
        [Status::Created, Status::Pending, Status::Completed, Status::Failed, Status::Cancelled, Status::Expired];
    for holds in ends {
        for stands in ends {
            let t = Harness::new(|builder| {
                builder.handle(|job: Echo, _: &Context| -> Result<(), Failure> {
                    if job.0 == "failed" { Err(Failure::fatal("no")) } else { Ok(()) }
                })
            })?;
            t.client().pause("paused")?;
            let unique = Unique::key("k").while_in([holds]);
            let id = in_status(&t, stands, unique.clone())?;
            assert_eq!(t.client().get(id)?.status, stands);
            let again = t.client().enqueue(Echo::job("again").unique(unique))?;
            assert_eq!(again.is_new(), holds != stands, "one that is {stands} holds its key while {holds}");
        }
    }
    Ok(())
}

#[test]
fn a_delayed_job_is_a_pending_one() -> jobmill::Result<()> {
    let t = plain()?;
    let unique = Unique::key("k").while_in([Status::Pending]);
    let id = t.enqueue(Echo::job("").delay(secs(60)).unique(unique.clone()))?;
    assert_eq!(t.client().enqueue(Echo::job("").unique(unique))?, Enqueued::Existing(id));
    Ok(())
}

#[test]
fn a_running_job_holds_its_key_if_it_says_so() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Other, ctx: &Context| -> Result<bool, Failure> {
            let unique = Unique::key(job.0.to_string());
            let unique = if job.0 == 0 { unique } else { unique.while_in([Status::Created, Status::Pending]) };
            let again = ctx.client().enqueue(NewJob::of(&Other(job.0)).delay(secs(60)).unique(unique))?;
            assert!(again.is_new() || again.id() == ctx.id());
            Ok(again.is_new())
        })
    })?;
    let holds = t.enqueue(NewJob::of(&Other(0)).unique(Unique::key("0")))?;
    let waiting = Unique::key("1").while_in([Status::Created, Status::Pending]);
    let lets_go = t.enqueue(NewJob::of(&Other(1)).unique(waiting))?;
    t.drain()?;
    assert!(!t.client().get(holds)?.result::<bool>()?);
    assert!(t.client().get(lets_go)?.result::<bool>()?);
    Ok(())
}

#[test]
fn a_key_is_let_go_after_its_period_whatever_the_job_does() -> jobmill::Result<()> {
    let t = plain()?;
    let daily = || Unique::key("k").period(secs(100)).while_in([Status::Pending, Status::Running, Status::Completed]);
    let first = t.client().enqueue(Echo::job("").unique(daily()))?;
    t.drain()?;
    t.advance(secs(99));
    assert_eq!(t.client().enqueue(Echo::job("").unique(daily()))?, Enqueued::Existing(first.id()), "completed");
    t.advance(secs(1));
    let second = t.client().enqueue(Echo::job("").queue("paused").unique(daily()).delay(secs(9999)))?;
    assert!(second.is_new());
    t.advance(secs(99));
    assert_eq!(t.client().enqueue(Echo::job("").unique(daily()))?, Enqueued::Existing(second.id()));
    t.advance(secs(1));
    assert!(t.client().enqueue(Echo::job("").unique(daily()))?.is_new(), "though the second is pending still");
    Ok(())
}

#[test]
fn keys_hold_within_one_call_and_one_transaction() -> jobmill::Result<()> {
    let t = plain()?;
    let earlier = t.enqueue(keyed("c"))?;
    let jobs = ["a", "b", "a", "c", "b", "a"].map(keyed);
    let enqueued = t.client().enqueue_many(jobs)?;
    let (a, b) = (enqueued[0].id(), enqueued[1].id());
    assert_eq!(
        enqueued,
        [
            Enqueued::New(a),
            Enqueued::New(b),
            Enqueued::Existing(a),
            Enqueued::Existing(earlier),
            Enqueued::Existing(b),
            Enqueued::Existing(a)
        ]
    );
    let written = t.client().write(|tx| tx.enqueue(keyed("a")))?;
    assert_eq!(written, Enqueued::Existing(a));
    assert_eq!(t.client().stats()?.total.pending, 3);
    assert_eq!(t.drain()?, 3);
    sound(t.client());
    Ok(())
}

#[test]
fn two_clients_on_one_file_share_the_keys() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let [one, two] = [Client::open(&path)?, Client::open(&path)?];
    let first = one.enqueue(keyed("k"))?;
    assert_eq!(two.enqueue(keyed("k"))?, Enqueued::Existing(first.id()));
    let mut conn = two.connection()?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction");
    assert_eq!(two.enqueue_in(&tx, keyed("k"))?, Enqueued::Existing(first.id()));
    tx.commit().expect("a commit");
    two.cancel(first.id())?;
    assert!(one.enqueue(keyed("k"))?.is_new());
    sound(&one);
    Ok(())
}

#[test]
fn of_many_that_race_for_a_key_one_gets_it() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).start()?;
    let stranger = Client::open(&path)?;
    let start = std::sync::Barrier::new(6);
    for round in 0..10 {
        let race = |client: &Client| {
            start.wait();
            client.enqueue(NewJob::json("nobody's", &round).unique(Unique::key(round.to_string()))).expect("an answer")
        };
        let answers: Vec<Enqueued> = std::thread::scope(|scope| {
            let clients = [engine.client(), &stranger, engine.client(), &stranger, engine.client(), &stranger];
            let threads = clients.map(|client| scope.spawn(|| race(client)));
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(answers.iter().filter(|answer| answer.is_new()).count(), 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.id() == answers[0].id()));
    }
    assert_eq!(stranger.stats()?.total.pending, 10);
    sound(&stranger);
    Ok(())
}

#[test]
fn a_job_whose_key_is_taken_is_not_retried() -> jobmill::Result<()> {
    let t = plain()?;
    let first = t.enqueue(keyed("k"))?;
    t.client().cancel(first)?;
    let second = t.enqueue(keyed("k"))?;
    refused(
        t.client().retry(first),
        ErrorKind::Conflict,
        &format!("{first} cannot be retried, for {second} holds its unique key"),
    );
    t.check(first, "cancelled");
    t.drain()?;
    t.client().retry(first)?;
    assert_eq!(t.client().enqueue(keyed("k"))?, Enqueued::Existing(first), "it holds its key again");
    t.drain()?;
    t.check(first, "completed, attempt 1");
    assert!(t.client().enqueue(keyed("k"))?.is_new());
    sound(t.client());
    Ok(())
}

/// The key of a job went with the pruning of another that had held it since. Retried, the job ran without a key.
#[test]
fn a_retried_job_has_its_key_even_if_its_last_holder_is_pruned() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        let retention = Retention { completed: Some(secs(60)), ..Retention::FOREVER };
        builder.retention(retention).handle(|job: Echo, _: &Context| -> Result<Outcome<()>, Failure> {
            if job.0 == "fail" { Err(Failure::fatal("no")) } else { Ok(Outcome::Done(())) }
        })
    })?;
    let failed = t.enqueue(Echo::job("fail").unique(Unique::key("k")))?;
    t.drain()?;
    let pruned = t.enqueue(keyed("k"))?;
    t.drain()?;
    t.advance(secs(61));
    t.engine().maintain()?;
    refused(t.client().get(pruned), ErrorKind::NotFound, "there is no job");
    t.client().retry(failed)?;
    assert_eq!(t.client().enqueue(keyed("k"))?, Enqueued::Existing(failed));
    sound(t.client());
    Ok(())
}

#[test]
fn an_ended_job_tells_which_one_has_taken_its_key_since() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let job = || Echo::job("").unique(Unique::key("one").scope(UniqueScope::Everything));
    let first = t.enqueue(job().user("ada"))?;
    t.client().cancel(first)?;
    assert_eq!(t.client().explain(first)?.reasons, [Reason::Ended { status: Status::Cancelled }]);
    let second = t.enqueue(job().user("bob"))?;
    let why = |client: &Client| client.explain(first).map(|why| why.reasons.last().cloned());
    assert_eq!(why(t.client())?, Some(Reason::DuplicateOf { id: Some(second) }));
    assert_eq!(why(&t.client().for_user("ada")?)?, Some(Reason::DuplicateOf { id: None }));
    t.client().cancel(second)?;
    assert_eq!(why(t.client())?, Some(Reason::Ended { status: Status::Cancelled }));
    Ok(())
}
