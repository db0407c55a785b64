//! Thresholds: raised once, cleared once, and told to those who listen.

use std::time::Duration;

use crossbeam_channel::Receiver;
use jobmill::testing::Harness;
use jobmill::{
    Alert, AlertState, Context, Durability, Engine, EngineBuilder, ErrorKind, Event, Failure, JobId, Measure, NewJob,
    Priority, Query, Scope, Status, Threshold, Window,
};

use crate::support::{Echo, Other, PATIENCE, echo, file, now, refused, secs};

/// Fails for good if its number is odd.
fn odd_ones_fail(job: Other, _: &Context) -> Result<(), Failure> {
    if job.0 % 2 == 1 { Err(Failure::fatal("odd")) } else { Ok(()) }
}

fn harness(describe: impl Fn(EngineBuilder) -> EngineBuilder + Send + 'static) -> jobmill::Result<Harness> {
    Harness::new(move |builder| {
        describe(builder.durability(Durability::Normal).handle(echo).handle(odd_ones_fail).without_callbacks())
    })
}

/// The alerts among what waits for a subscriber.
fn alerts(events: &Receiver<Event>) -> Vec<Alert> {
    let alert = |event| match event {
        Event::Alert(alert) => Some(alert),
        _ => None,
    };
    events.try_iter().filter_map(alert).collect()
}

/// One who looks at one threshold after each thing that is done.
struct Watch<'t> {
    t: &'t Harness,
    events: Receiver<Event>,
}

impl<'t> Watch<'t> {
    fn over(t: &'t Harness) -> jobmill::Result<Self> {
        Ok(Self { t, events: t.client().subscribe(10_000)? })
    }

    /// What came of it: `+` an alert, `-` its end, `.` nothing. What is raised is what was told last.
    #[track_caller]
    fn look(&self) -> char {
        self.t.engine().maintain().expect("a look");
        let told = alerts(&self.events);
        let raised = self.t.client().alerts().expect("what is raised");
        match &told[..] {
            [] => '.',
            [alert] if alert.state == AlertState::Raised => {
                assert_eq!(raised, std::slice::from_ref(alert));
                '+'
            }
            [_] => {
                assert_eq!(raised, []);
                '-'
            }
            more => panic!("{more:?}"),
        }
    }
}

/// Brings the number of waiting jobs of a queue to this.
fn fill(t: &Harness, queue: &'static str, status: Status, jobs: usize) -> jobmill::Result<()> {
    let there: Vec<JobId> = t
        .client()
        .list(Query::new().queues([queue]).statuses([status]).limit(1000))?
        .jobs
        .iter()
        .map(|job| job.id)
        .collect();
    for id in there.iter().skip(jobs) {
        t.client().delete(*id)?;
    }
    for _ in there.len()..jobs {
        t.enqueue(NewJob::tracked().queue(queue).status(status).priority(Priority::Low))?;
    }
    Ok(())
}

#[test]
fn a_depth_is_raised_above_its_bound_and_cleared_a_tenth_below_it() -> jobmill::Result<()> {
    for scope in [Scope::from("mail"), Scope::All] {
        for (status, threshold) in [
            (Status::Pending, Threshold::depth(scope.clone(), 20)),
            (Status::Running, Threshold::active(scope.clone(), 20)),
        ] {
            let t = harness(move |builder| builder.threshold(threshold.clone()))?;
            let watch = Watch::over(&t)?;
            let mut told = String::new();
            for jobs in [0, 20, 21, 30, 21, 20, 19, 21, 18, 19, 20, 21, 21, 0] {
                fill(&t, "mail", status, jobs)?;
                told.push(watch.look());
            }
            assert_eq!(told, "..+.....-..+.-", "{scope:?} {status}");
        }
    }
    Ok(())
}

#[test]
fn a_queue_is_watched_apart_from_the_others() -> jobmill::Result<()> {
    let t = harness(|builder| builder.threshold(Threshold::depth("mail", 2)))?;
    let watch = Watch::over(&t)?;
    fill(&t, "web", Status::Pending, 30)?;
    assert_eq!(watch.look(), '.');
    fill(&t, "mail", Status::Pending, 3)?;
    assert_eq!(watch.look(), '+');
    Ok(())
}

#[test]
fn a_long_wait_is_raised_and_cleared_when_it_ends() -> jobmill::Result<()> {
    let t = harness(|builder| builder.threshold(Threshold::oldest_waiting("mail", secs(60))))?;
    let watch = Watch::over(&t)?;
    t.client().pause("mail")?;
    t.enqueue(Echo::job("later").queue("mail").delay(secs(100)))?;
    t.advance(secs(90));
    assert_eq!(watch.look(), '.', "its time has not come");
    t.advance(secs(70));
    assert_eq!(watch.look(), '.', "sixty seconds are the bound");
    t.advance(secs(1));
    assert_eq!(watch.look(), '+');
    t.advance(secs(100));
    assert_eq!(watch.look(), '.');
    t.client().resume("mail")?;
    t.drain()?;
    assert_eq!(watch.look(), '-');
    Ok(())
}

#[test]
fn an_error_rate_is_raised_once_enough_has_ended_and_cleared_when_the_window_has_passed() -> jobmill::Result<()> {
    for scope in [Scope::from("default"), Scope::All] {
        let t = harness(move |builder| {
            builder.threshold(Threshold::error_rate(scope.clone(), Window::Minute, 0.5).min_ended(4))
        })?;
        let watch = Watch::over(&t)?;
        let run = |numbers: &[u64]| -> jobmill::Result<char> {
            t.client().enqueue_many(numbers.iter().map(|n| NewJob::of(&Other(*n))))?;
            t.drain()?;
            Ok(watch.look())
        };
        assert_eq!(run(&[1, 1, 1])?, '.', "three of three are too few");
        assert_eq!(run(&[2, 2, 2])?, '.', "a half is the bound");
        assert_eq!(run(&[1])?, '+', "four of seven");
        assert_eq!(run(&[2])?, '.', "better, but not by a tenth");
        assert_eq!(run(&[2])?, '-', "four of nine");
        assert_eq!(run(&[1, 1, 1, 1])?, '+');
        t.advance(secs(66));
        assert_eq!(watch.look(), '-', "nothing ends, so nothing fails");
    }
    Ok(())
}

#[test]
fn a_completion_rate_is_raised_below_its_bound_while_there_is_something_to_do() -> jobmill::Result<()> {
    let t = harness(|builder| builder.threshold(Threshold::completion_rate("mail", Window::Minute, 0.5)))?;
    let watch = Watch::over(&t)?;
    let run = |jobs: usize| -> jobmill::Result<()> {
        t.client().enqueue_many((0..jobs).map(|_| Echo::job("x").queue("mail")))?;
        t.drain().map(drop)
    };
    run(1)?;
    t.client().metrics(Window::Minute)?;
    t.client().pause("mail")?;
    let waits = t.enqueue(Echo::job("waits").queue("mail"))?;
    t.advance(secs(55));
    assert_eq!(watch.look(), '.', "no whole minute has been counted");
    t.advance(secs(10));
    assert_eq!(watch.look(), '+', "a job waits, and none is completed");
    t.client().cancel(waits)?;
    assert_eq!(watch.look(), '-', "who has nothing to do is not slow");
    t.client().retry(waits)?;
    t.advance(secs(1));
    assert_eq!(watch.look(), '+');
    t.client().resume("mail")?;
    run(31)?;
    assert_eq!(watch.look(), '-', "32 within 65 s, or nothing to do");
    t.client().pause("mail")?;
    t.enqueue(Echo::job("waits").queue("mail"))?;
    t.advance(secs(20));
    assert_eq!(watch.look(), '.', "something to do, and fast enough in the mean of the minute");
    t.advance(secs(50));
    assert_eq!(watch.look(), '+');
    Ok(())
}

#[test]
fn an_alert_says_what_was_seen_and_when() -> jobmill::Result<()> {
    let t = harness(|builder| {
        builder
            .threshold(Threshold::depth("mail", 2).name("mail is stuck"))
            .threshold(Threshold::oldest_waiting(Scope::All, secs(5)))
            .threshold(Threshold::error_rate(Scope::All, Window::Hour, 0.25).min_ended(1))
    })?;
    let events = t.client().subscribe(1000)?;
    fill(&t, "mail", Status::Pending, 3)?;
    t.enqueue(&Other(1))?;
    t.drain()?;
    t.advance(secs(7));
    t.engine().maintain()?;
    let told = alerts(&events);
    let [stuck, waits, errors] = &told[..] else { panic!("{told:?}") };
    assert_eq!(
        (&*stuck.threshold, stuck.measure, stuck.queue.as_deref()),
        ("mail is stuck", Measure::Depth, Some("mail"))
    );
    assert_eq!((stuck.value, stuck.bound, stuck.at), (3.0, 2.0, now(&t)));
    assert_eq!((waits.measure, waits.queue.as_deref(), waits.value), (Measure::OldestWaiting, None, 7.0));
    assert_eq!((errors.measure, errors.value, errors.bound), (Measure::ErrorRate, 1.0, 0.25));
    let words: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        [
            "mail is stuck: 3",
            "oldest waiting of all queues above 5s: 7",
            "error rate of all queues above 0.25 in the last hour: 1",
        ]
    );
    assert_eq!(t.client().alerts()?, told, "all that is raised");
    fill(&t, "mail", Status::Pending, 0)?;
    t.engine().maintain()?;
    let told = alerts(&events);
    let words: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["mail is stuck: well again at 0", "oldest waiting of all queues above 5s: well again at 0"]);
    assert!(told.iter().all(|alert| alert.state == AlertState::Cleared));
    assert_eq!(t.client().alerts()?, std::slice::from_ref(errors));
    Ok(())
}

#[test]
fn what_is_still_past_its_bound_after_a_restart_is_raised_anew() -> jobmill::Result<()> {
    let mut t = harness(|builder| builder.threshold(Threshold::depth("mail", 0)))?;
    fill(&t, "mail", Status::Pending, 1)?;
    assert_eq!(Watch::over(&t)?.look(), '+');
    assert_eq!(t.client().alerts()?.len(), 1);
    t.restart()?;
    assert_eq!(t.client().alerts()?, [], "nobody has looked yet");
    assert_eq!(Watch::over(&t)?.look(), '+');
    t.crash()?;
    assert_eq!(Watch::over(&t)?.look(), '+');
    Ok(())
}

#[test]
fn an_engine_with_threads_looks_by_itself() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).threshold(Threshold::depth(Scope::All, 0)).start()?;
    let client = engine.client();
    let events = client.subscribe(100)?;
    let next = || loop {
        match events.recv_timeout(PATIENCE).expect("an alert that comes") {
            Event::Alert(alert) => return alert.state,
            _ => continue,
        }
    };
    let id = client.enqueue(NewJob::json("nobody's", &1))?.id();
    assert_eq!(next(), AlertState::Raised);
    assert_eq!(client.alerts()?.len(), 1);
    client.cancel(id)?;
    assert_eq!(next(), AlertState::Cleared);
    assert_eq!(client.alerts()?, []);
    engine.shutdown(PATIENCE)?;
    assert!(events.iter().all(|event| !matches!(event, Event::Alert(_))), "once each");
    Ok(())
}

#[test]
fn bad_thresholds_are_refused_at_the_start_with_the_field_and_the_rule() -> jobmill::Result<()> {
    let depth = || Threshold::depth("mail", 1);
    let long = "x".repeat(129);
    let error_rate = |part| Threshold::error_rate("mail", Window::Minute, part);
    let completion_rate = |rate| Threshold::completion_rate("mail", Window::Minute, rate);
    let name = "threshold.name: must be 1 to 128 bytes without control characters";
    let queue = "threshold.queue: must be 1 to 128 bytes without control characters";
    let part = "threshold.bound: must be a number from 0 to less than 1";
    let rate = "threshold.bound: must be a number greater than 0";
    let mut bad = vec![
        (depth().name(""), name),
        (depth().name("a\nb"), name),
        (depth().name(long.clone()), name),
        (Threshold::depth("", 1), queue),
        (Threshold::active(long, 1), queue),
        (Threshold::oldest_waiting("mail", Duration::MAX), "threshold.bound: must be"),
        (depth().min_ended(3), "threshold.min_ended: may be set for an error rate only"),
        (error_rate(0.5).min_ended(0), "threshold.min_ended: must be at least 1"),
    ];
    bad.extend([-0.1, 1.0, 2.0, f64::NAN, f64::INFINITY].map(|bound| (error_rate(bound), part)));
    bad.extend([0.0, -1.0, f64::NAN, f64::INFINITY].map(|bound| (completion_rate(bound), rate)));
    let (_directory, path) = file();
    for (threshold, says) in bad {
        for start in [EngineBuilder::start, EngineBuilder::inline] {
            let engine = start(Engine::builder(&path).threshold(depth()).threshold(threshold.clone()));
            refused(engine.map(drop), ErrorKind::Invalid, says);
        }
    }
    let twice = Engine::builder(&path).threshold(depth()).threshold(depth());
    refused(
        twice.inline().map(drop),
        ErrorKind::Invalid,
        "threshold.name: must not be used twice: depth of mail above 1",
    );
    let many =
        |count| (0..count).fold(Engine::builder(&path), |builder, n| builder.threshold(Threshold::depth("q", n)));
    refused(many(257).inline().map(drop), ErrorKind::Invalid, "thresholds: must be no more than 256");
    assert!(!path.exists(), "nothing was opened");
    many(256).inline()?.maintain()
}

#[test]
fn who_sets_no_threshold_pays_for_none() -> jobmill::Result<()> {
    // How many commits a round of maintenance takes, after something was counted and when nothing was.
    let commits = |thresholds: u64| -> jobmill::Result<[u64; 2]> {
        let t = harness(move |builder| {
            (0..thresholds).fold(builder, |builder, n| {
                builder.threshold(Threshold::error_rate(format!("q{n}"), Window::Minute, 0.5))
            })
        })?;
        let round = || -> jobmill::Result<u64> {
            let before = t.faults().commits();
            t.engine().maintain()?;
            Ok(t.faults().commits() - before)
        };
        t.enqueue(Echo::job("x"))?;
        t.drain()?;
        t.client().alerts()?;
        let counted = round()?;
        t.client().metrics(Window::Minute)?;
        Ok([counted, round()?])
    };
    let [counted, idle] = commits(0)?;
    assert_eq!(counted, idle, "nothing is written for the sake of a look");
    assert_eq!(commits(1)?, [counted + 1, idle], "what was counted, once");
    assert_eq!(commits(100)?, [counted + 1, idle], "however many they are");
    Ok(())
}
