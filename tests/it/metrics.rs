//! Rates over the last minute, hour and day, and what Prometheus is told: equal to what was done, whoever did it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use jobmill::testing::{Fault, Harness};
use jobmill::{
    Cause, Change, Client, Context, Durability, Engine, ErrorKind, Event, Failure, Histogram, JobId, Metrics, NewJob,
    Outcome, Priority, Rates, Retention, Scope, Status, Threshold, Timestamp, Window, Workers,
};

use crate::mirror::{Act, Program, act};
use crate::support::{
    Block, Echo, Hands, Other, PATIENCE, block, echo, file, gate, now, other, query, refused, secs, sound, until,
    with_hands,
};

const MINUTE: u64 = 60;
pub(crate) const HOUR: u64 = 3_600;
pub(crate) const DAY: u64 = 86_400;

/// A queue, a kind and a priority.
pub(crate) type Lane = (String, String, Priority);

/// What was done to some jobs, counted from what was told of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) enqueued: u64,
    pub(crate) started: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) expired: u64,
    pub(crate) retried: u64,
    pub(crate) snoozed: u64,
    pub(crate) returned: u64,
    pub(crate) rescued: u64,
    pub(crate) waited: Histogram,
    pub(crate) ran: Histogram,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.enqueued, other.enqueued),
            (&mut self.started, other.started),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.expired, other.expired),
            (&mut self.retried, other.retried),
            (&mut self.snoozed, other.snoozed),
            (&mut self.returned, other.returned),
            (&mut self.rescued, other.rescued),
        ] {
            *sum += more;
        }
        self.waited.merge(&other.waited);
        self.ran.merge(&other.ran);
    }

    pub(crate) fn of(rates: &Rates) -> Self {
        Self {
            enqueued: rates.enqueued,
            started: rates.started,
            completed: rates.completed,
            failed: rates.failed,
            cancelled: rates.cancelled,
            expired: rates.expired,
            retried: rates.retried,
            snoozed: rates.snoozed,
            returned: rates.returned,
            rescued: rates.rescued,
            waited: rates.waited.clone(),
            ran: rates.ran.clone(),
        }
    }
}

pub(crate) type Sums = BTreeMap<Lane, Counts>;

fn total(sums: &Sums) -> Counts {
    let mut total = Counts::default();
    sums.values().for_each(|counts| total.add(counts));
    total
}

/// What has been done, as a subscriber hears of it.
pub(crate) struct Account {
    pub(crate) events: Receiver<Event>,
    /// When jobs that wait could first run, and when those that run were claimed.
    pub(crate) since: HashMap<JobId, Timestamp>,
    pub(crate) sums: Sums,
}

impl Account {
    pub(crate) fn new(client: &Client) -> jobmill::Result<Self> {
        Ok(Self { events: client.subscribe(65_536)?, since: HashMap::new(), sums: Sums::new() })
    }

    /// Listens to another engine on the same file.
    pub(crate) fn subscribe(&mut self, client: &Client) -> jobmill::Result<()> {
        self.events = client.subscribe(65_536)?;
        Ok(())
    }

    /// Takes what was told since the last time. Of a job that is new, the file tells when it may run.
    pub(crate) fn listen(&mut self, client: &Client) {
        for event in self.events.try_iter().collect::<Vec<_>>() {
            match event {
                Event::Changed(change) => self.note(&change, client),
                Event::Elsewhere => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn note(&mut self, change: &Change, client: &Client) {
        let lane = (change.queue.to_string(), change.kind.to_string(), change.priority);
        let counts = self.sums.entry(lane).or_default();
        let was_claimed = change.from == Some(Status::Running) && !change.kind.is_empty();
        if was_claimed && change.to != Some(Status::Running) {
            let claimed_at = self.since.remove(&change.id).expect("a claim");
            if !matches!(change.cause, Cause::Returned | Cause::Rescued) {
                counts.ran.record(change.at.since(claimed_at));
            }
        }
        match change.cause {
            Cause::Enqueued => {
                counts.enqueued += 1;
                let run_at = client.get(change.id).ok().filter(|job| job.status == Status::Pending && job.attempt == 0);
                self.since.insert(change.id, run_at.map_or(change.at, |job| job.run_at));
            }
            Cause::Claimed => {
                let ready_at = self.since.insert(change.id, change.at).expect("a job that waits");
                counts.waited.record(change.at.since(ready_at));
            }
            Cause::Retried => counts.retried += 1,
            Cause::Snoozed => counts.snoozed += 1,
            Cause::Returned => counts.returned += 1,
            Cause::Rescued => counts.rescued += 1,
            _ => {}
        }
        match change.cause {
            // Both waits of these jobs are of a second.
            Cause::Retried | Cause::Snoozed => {
                self.since.insert(change.id, change.at.saturating_add(secs(1)));
            }
            Cause::Operator if change.from != change.to => {
                self.since.insert(change.id, change.at);
            }
            _ => {}
        }
        if change.from != change.to {
            match change.to {
                Some(Status::Running) => counts.started += 1,
                Some(Status::Completed) => counts.completed += 1,
                Some(Status::Failed) => counts.failed += 1,
                Some(Status::Cancelled) => counts.cancelled += 1,
                Some(Status::Expired) => counts.expired += 1,
                _ => {}
            }
        }
    }

    /// What was done since this was last asked.
    pub(crate) fn take(&mut self, client: &Client) -> Sums {
        self.listen(client);
        let mut sums = std::mem::take(&mut self.sums);
        sums.retain(|_, counts| *counts != Counts::default());
        sums
    }
}

/// Asserts that the rates are those of what was done, in sum and apart.
#[track_caller]
fn assert_rates(metrics: &Metrics, done: &Sums, context: &str) {
    let mut queues: BTreeMap<String, Counts> = BTreeMap::new();
    let mut kinds: BTreeMap<String, Counts> = BTreeMap::new();
    let mut priorities: BTreeMap<Priority, Counts> = BTreeMap::new();
    for ((queue, kind, priority), counts) in done {
        queues.entry(queue.clone()).or_default().add(counts);
        kinds.entry(kind.clone()).or_default().add(counts);
        priorities.entry(*priority).or_default().add(counts);
    }
    assert_eq!(Counts::of(&metrics.total), total(done), "{context}");
    assert_eq!(named(&metrics.queues), queues, "{context}");
    assert_eq!(named(&metrics.kinds), kinds, "{context}");
    assert_eq!(named(&metrics.priorities), priorities, "{context}");
}

fn named<K: Ord + Clone>(rates: &BTreeMap<K, Rates>) -> BTreeMap<K, Counts> {
    rates.iter().map(|(name, rates)| (name.clone(), Counts::of(rates))).collect()
}

/// A program of which all is told.
pub(crate) fn program(seed: u64) -> jobmill::Result<Program> {
    let mut program = Program::new(seed)?;
    program.acts.retain(|act| !matches!(act, Act::CompletesInOwnTransaction));
    Ok(program)
}

#[test]
fn rates_are_those_of_what_was_done_in_the_last_minute_hour_and_day() -> jobmill::Result<()> {
    for seed in 20..23 {
        let mut program = program(seed)?;
        let client = program.t.client().clone();
        let mut account = Account::new(&client)?;
        // Counting begins.
        client.metrics(Window::Minute)?;
        let began = now(&program.t);
        let mut bursts: Vec<(Timestamp, Sums)> = Vec::new();
        for pause in [0, 70, 600, 2 * HOUR, HOUR / 2, 22 * HOUR] {
            program.t.advance(secs(pause));
            let from = now(&program.t);
            for _ in 0..60 {
                program.step()?;
                account.listen(&client);
            }
            // What is counted belongs to the moment in which it is asked for.
            let at = now(&program.t);
            assert!(at.since(from) < secs(50), "a burst is short enough for a window");
            bursts.push((at, account.take(&client)));
            for window in Window::ALL {
                let metrics = client.metrics(window)?;
                let mut done = Sums::new();
                for (_, sums) in bursts.iter().filter(|(burst, _)| at.since(*burst) <= window.length()) {
                    for (lane, counts) in sums {
                        done.entry(lane.clone()).or_default().add(counts);
                    }
                }
                let context = format!("seed {seed}, the last {window} of burst {}", bursts.len());
                assert_rates(&metrics, &done, &context);
                let covered = metrics.total.covered;
                assert_eq!(covered, at.since(metrics.since), "{context}");
                assert!(covered <= at.since(began) || covered >= window.length(), "{context}");
                let Counts { completed, failed, retried, enqueued, started, .. } = total(&done);
                let rate = |count: u64| count as f64 / covered.as_secs_f64();
                assert_eq!(metrics.total.completion_rate(), rate(completed), "{context}");
                assert_eq!(metrics.total.enqueue_rate(), rate(enqueued), "{context}");
                assert_eq!(metrics.total.start_rate(), rate(started), "{context}");
                let errors = (failed + retried) as f64 / (completed + failed + retried) as f64;
                assert_eq!(metrics.total.error_rate(), Some(errors), "{context}");
            }
        }
        let all = bursts.iter().map(|(_, sums)| total(sums)).fold(Counts::default(), |mut all, burst| {
            all.add(&burst);
            all
        });
        assert!(
            all.ran.count() > 60 && all.ran.mean() > Some(Duration::from_millis(5)) && all.waited.max() > Some(secs(9)),
            "{all:?}"
        );
        assert!(all.completed * all.failed * all.cancelled * all.expired * all.retried * all.snoozed > 0, "{all:?}");
        sound(&client);
    }
    Ok(())
}

#[test]
fn waiting_and_running_times_are_estimated_from_their_histograms() -> jobmill::Result<()> {
    let t = with_hands(|builder| {
        let builder = builder.durability(Durability::Normal).workers(Workers::new(1));
        builder.handle(|job: Other, ctx: &Context| -> Result<(), Failure> {
            ctx.state::<Hands>()?.pass(Duration::from_millis(job.0));
            Ok(())
        })
    })?;
    // A hundred jobs that run for 10 ms, 20 ms, ... 1 s, each after it has waited for 3 s.
    for n in 1..=100 {
        t.enqueue(&Other(10 * n))?;
        t.advance(secs(3));
        t.drain()?;
    }
    let metrics = t.client().metrics(Window::Hour)?;
    let (waited, ran) = (&metrics.total.waited, &metrics.total.ran);
    assert_eq!((waited.count(), waited.sum(), waited.max()), (100, secs(300), Some(secs(3))));
    assert_eq!(ran.quantile(0.5), Some(Duration::from_millis(500)));
    assert_eq!(ran.quantile(0.99), Some(Duration::from_millis(990)));
    assert_eq!(ran.mean(), Some(Duration::from_millis(505)));
    assert_eq!(metrics.kinds["other"], metrics.total);
    assert_eq!(metrics.queues["default"], metrics.total);
    Ok(())
}

#[test]
fn what_was_done_falls_out_of_the_minute_then_of_the_hour_then_of_the_day() -> jobmill::Result<()> {
    for phase_us in [0, 1, 2_500_000, 4_999_999, 59_999_999, 899_999_999] {
        let t = Harness::new(|builder| builder.handle(echo).durability(Durability::Normal))?;
        t.advance(Duration::from_micros(phase_us));
        t.enqueue(Echo::job("x"))?;
        t.drain()?;
        t.client().metrics(Window::Minute)?;
        let done = now(&t);
        let windows = |after: u64| -> jobmill::Result<[u64; 3]> {
            t.clock().jump(done.saturating_add(secs(after)));
            let count = |window| t.client().metrics(window).map(|metrics| metrics.total.completed);
            Ok([count(Window::Minute)?, count(Window::Hour)?, count(Window::Day)?])
        };
        for (after, expected) in [
            (0, [1, 1, 1]),
            (MINUTE, [1, 1, 1]),
            (MINUTE + 5, [0, 1, 1]),
            (HOUR, [0, 1, 1]),
            (HOUR + MINUTE, [0, 0, 1]),
            (DAY, [0, 0, 1]),
            (DAY + 15 * MINUTE, [0, 0, 0]),
        ] {
            assert_eq!(windows(after)?, expected, "{after} s later, phase {phase_us}");
        }
        let nothing = t.client().metrics(Window::Day)?;
        assert!(nothing.queues.is_empty() && nothing.kinds.is_empty() && nothing.priorities.is_empty());
        assert_eq!((nothing.total.error_rate(), nothing.total.completion_rate()), (None, 0.0));
        assert_eq!(nothing.total.waited.quantile(0.5), None);
    }
    Ok(())
}

#[test]
fn rates_are_kept_by_a_restart_and_all_but_the_last_second_by_a_crash() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.handle(echo))?;
    let run = |t: &Harness, jobs: usize| -> jobmill::Result<()> {
        t.client().enqueue_many((0..jobs).map(|_| Echo::job("x")))?;
        t.drain().map(drop)
    };
    let completed = |t: &Harness| t.client().metrics(Window::Hour).map(|metrics| metrics.total.completed);
    run(&t, 10)?;
    t.restart()?;
    assert_eq!(completed(&t)?, 10);
    run(&t, 5)?;
    t.restart()?;
    t.restart()?;
    assert_eq!(completed(&t)?, 15);
    // Whatever turn comes a second later writes what was counted.
    t.advance(secs(1));
    run(&t, 7)?;
    t.advance(secs(1));
    t.client().pause("q")?;
    run(&t, 3)?;
    t.crash()?;
    assert_eq!(completed(&t)?, 22, "the three of the last second are missing");
    assert_eq!(t.client().stats()?.total.completed, 25, "and nothing else");
    Ok(())
}

#[test]
fn what_a_failed_turn_was_to_write_is_written_by_the_next() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    t.enqueue(Echo::job("x"))?;
    t.drain()?;
    t.faults().fail(1, Fault::Before);
    refused(t.client().metrics(Window::Minute), ErrorKind::Storage, "");
    assert_eq!(t.client().metrics(Window::Minute)?.total.completed, 1);
    // A turn that was to write them by the way.
    t.enqueue(Echo::job("x"))?;
    t.drain()?;
    t.advance(secs(2));
    t.faults().fail(1, Fault::Before);
    refused(t.enqueue(Echo::job("fails")), ErrorKind::Storage, "");
    assert_eq!(t.client().metrics(Window::Minute)?.total.completed, 2);
    Ok(())
}

#[test]
fn an_engine_writes_by_itself_what_it_has_counted() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).start()?;
    let client = engine.client();
    let id = client.enqueue(Echo::job("x"))?.id();
    client.wait(id, PATIENCE)?;
    let written = "SELECT count(*) FROM jobmill_tally WHERE resolution = 0 AND tally LIKE '%\"completed\":1%'";
    until("the end is counted in the file", || query::<i64>(client, written) == 1);
    Ok(())
}

#[test]
fn two_processes_count_together() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let engine = Engine::builder(&path).handle(echo).inline()?;
    let stranger = Client::open(&path)?;
    for _ in 0..3 {
        engine.client().enqueue(Echo::job("ours"))?;
    }
    for _ in 0..5 {
        stranger.enqueue(Echo::job("theirs").queue("theirs"))?;
    }
    stranger.cancel(stranger.enqueue(Echo::job("theirs").queue("theirs"))?.id())?;
    engine.drain()?;
    // Each writes what it has counted itself when it is asked.
    stranger.metrics(Window::Minute)?;
    let ours = engine.client().metrics(Window::Minute)?;
    let theirs = stranger.metrics(Window::Minute)?;
    assert_eq!(Counts::of(&ours.total), Counts::of(&theirs.total));
    let Rates { enqueued, started, completed, cancelled, .. } = ours.total;
    assert_eq!((enqueued, started, completed, cancelled), (9, 8, 8, 1));
    assert_eq!((ours.queues["default"].enqueued, ours.queues["theirs"].enqueued), (3, 6));
    Ok(())
}

/// A program that only enqueues and ends was never counted.
#[test]
fn a_client_without_an_engine_writes_what_it_has_counted_when_it_ends() -> jobmill::Result<()> {
    let (_directory, path) = file();
    {
        let client = Client::open(&path)?;
        let clone = client.clone();
        client.enqueue(Echo::job("x"))?;
        drop(client);
        clone.enqueue(Echo::job("x"))?;
    }
    assert_eq!(Client::open(&path)?.metrics(Window::Minute)?.total.enqueued, 2);
    Ok(())
}

/// A closure that rode in a turn and asked for the rates waited for its own end, for ever.
#[test]
fn rates_can_be_asked_for_in_the_midst_of_a_turn() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (sender, answer) = bounded(1);
    let client = Client::open(&path)?;
    let asks = std::thread::Builder::new().spawn(move || {
        client.enqueue(Echo::job("before")).expect("a job");
        let asked = client.clone();
        let told = client.write(move |tx| -> jobmill::Result<(u64, String)> {
            tx.enqueue(Echo::job("in the midst"))?;
            Ok((asked.metrics(Window::Minute)?.total.enqueued, asked.prometheus()?))
        });
        let after = client.metrics(Window::Minute).map(|metrics| metrics.total.enqueued);
        let _ = sender.send((told, after));
    });
    let (told, after) = answer.recv_timeout(PATIENCE).expect("an answer");
    asks.expect("a thread").join().expect("no panic");
    assert!(told?.0 <= 1, "what is not committed is not counted");
    assert_eq!(after?, 2);
    Ok(())
}

#[test]
fn what_transactions_of_the_applications_own_do_is_counted_once_if_they_are_committed() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(act).handle(echo).without_callbacks())?;
    let client = t.client();
    let mut conn = client.connection()?;
    let enqueue = |conn: &mut jobmill::rusqlite::Connection, job: NewJob, commits: bool| -> jobmill::Result<()> {
        let tx = conn.transaction().expect("a transaction");
        client.enqueue_in(&tx, job)?;
        if commits { tx.commit() } else { tx.rollback() }.expect("an end of the transaction");
        Ok(())
    };
    enqueue(&mut conn, Echo::job("x"), true)?;
    enqueue(&mut conn, Echo::job("x"), false)?;
    let counts = |client: &Client| client.metrics(Window::Minute).map(|metrics| Counts::of(&metrics.total));
    assert_eq!(counts(client)?, Counts { enqueued: 1, ..Counts::default() });
    assert_eq!(counts(client)?, Counts { enqueued: 1, ..Counts::default() }, "asking again counts nothing again");

    // A job that came with its end.
    for status in [Status::Running, Status::Completed, Status::Failed, Status::Cancelled, Status::Expired] {
        enqueue(&mut conn, NewJob::tracked().status(status), true)?;
    }
    let expected =
        Counts { enqueued: 6, started: 1, completed: 1, failed: 1, cancelled: 1, expired: 1, ..Counts::default() };
    assert_eq!(counts(client)?, expected);

    // A handler that completes its job in its own transaction, with a callback that this calls for.
    t.client().enqueue(NewJob::of(&Act::CompletesInOwnTransaction).callback_url("https://example.com/told"))?;
    t.advance(secs(2));
    t.drain()?;
    let told = counts(client)?;
    assert_eq!((told.enqueued, told.started, told.completed), (8, 3, 3), "one echo, one act, one tracked");
    assert_eq!((told.waited.count(), told.ran.count()), (2, 2));
    Ok(())
}

#[test]
fn a_clock_that_is_set_does_no_harm() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.handle(echo).handle(other).retention(Retention::FOREVER))?;
    let start = now(&t);
    let mut done: u64 = 0;
    let jumps: [i64; 12] = [0, -30, 40, -3_600, 3_700, -86_400, 90_000, 30 * 86_400, -31 * 86_400, 600, -1, 86_400];
    for (step, jump) in jumps.into_iter().enumerate() {
        let at = Timestamp::from_micros(now(&t).as_micros() + jump * 1_000_000);
        t.clock().jump(at);
        t.client().enqueue_many((0..3).map(|n| NewJob::of(&Other(n))))?;
        t.drain()?;
        done += 3;
        for window in Window::ALL {
            let metrics = t.client().metrics(window)?;
            let context = format!("step {step}, {jump} s, {window}");
            assert!((3..=done).contains(&metrics.total.completed), "{context}: {metrics:?}");
            assert!(metrics.total.covered <= window.length() + secs(900), "{context}: {:?}", metrics.total.covered);
            assert!(metrics.total.completion_rate() >= 0.0 && metrics.total.completion_rate().is_finite(), "{context}");
            assert!(metrics.since <= at, "{context}");
        }
        assert!(t.client().prometheus()?.contains(&format!("status=\"completed\"}} {done}\n")), "step {step}");
        t.engine().maintain()?;
        if step % 4 == 3 {
            t.restart()?;
        }
    }
    assert!(start < now(&t));
    sound(t.client());
    Ok(())
}

/// What was done before the clock was set back counted as done in the last minute until the clock had come there again.
#[test]
fn what_lies_ahead_of_a_clock_that_was_set_back_is_in_no_window() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let run = |jobs: usize| -> jobmill::Result<()> {
        t.client().enqueue_many((0..jobs).map(|_| Echo::job("x")))?;
        t.drain()?;
        t.client().metrics(Window::Minute).map(drop)
    };
    run(10)?;
    let ahead = now(&t);
    t.clock().jump(ahead.saturating_sub(secs(2 * DAY)));
    for window in Window::ALL {
        assert_eq!(t.client().metrics(window)?.total.completed, 0, "{window}");
    }
    t.advance(secs(1));
    run(2)?;
    t.advance(secs(1));
    for window in Window::ALL {
        let total = t.client().metrics(window)?.total;
        assert_eq!((total.completed, total.covered), (2, secs(2)), "{window}: counting begins anew");
        assert_eq!(total.completion_rate(), 1.0, "{window}");
    }
    let ahead_of_now =
        "SELECT count(*) FROM jobmill_tally WHERE resolution > 0 AND bucket > 1767225600000000 - 86400000000";
    t.engine().maintain()?;
    assert_eq!(query::<i64>(t.client(), ahead_of_now), 0, "and is not kept until then");
    Ok(())
}

#[test]
fn old_tallies_are_removed_so_that_their_number_is_bounded() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(echo).handle(other).durability(Durability::Normal).retention(Retention::FOREVER)
    })?;
    let rows = || query::<i64>(t.client(), "SELECT count(*) FROM jobmill_tally");
    let mut most = 0;
    for round in 0..200 {
        t.enqueue(Echo::job("x"))?;
        t.enqueue(NewJob::of(&Other(round)).priority(Priority::High))?;
        t.drain()?;
        t.client().metrics(Window::Minute)?;
        t.advance(secs(if round % 2 == 0 { 7 } else { 1_500 }));
        most = most.max(rows());
        if round % 4 == 0 {
            t.engine().maintain()?;
        }
    }
    let lanes = 2;
    let bound = lanes * (14 + 62 + 98 + 1);
    assert!(most <= bound, "{most} rows");
    assert!(most > lanes * 60, "the day is kept: {most} rows");
    t.advance(secs(2 * DAY));
    t.engine().maintain()?;
    assert_eq!(rows(), lanes, "one for all time is left");
    Ok(())
}

/// Asking for rates waited for the write lock, and failed if somebody kept it.
#[test]
fn rates_are_told_while_somebody_else_writes() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(act).busy_timeout(Duration::from_millis(1)))?;
    t.enqueue(&Act::ALL[0])?;
    t.drain()?;
    t.client().metrics(Window::Minute)?;
    t.enqueue(&Act::ALL[0])?;
    let conn = t.client().connection()?;
    conn.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    assert_eq!(t.client().metrics(Window::Minute)?.total.enqueued, 1, "the newest is not in the file yet");
    assert!(t.client().prometheus()?.contains("jobmill_jobs_enqueued_total{"));
    conn.execute_batch("ROLLBACK").expect("an end");
    assert_eq!(t.client().metrics(Window::Minute)?.total.enqueued, 2);
    Ok(())
}

/// Transactions of the application's own left tallies that nobody ever took.
#[test]
fn without_rates_nothing_is_written_but_the_jobs() -> jobmill::Result<()> {
    let mut t = Harness::new(|builder| builder.handle(act).handle(echo).without_rates())?;
    for act in Act::ALL {
        t.enqueue(&act)?;
    }
    let mut conn = t.client().connection()?;
    let tx = conn.transaction().expect("a transaction");
    t.client().enqueue_in(&tx, Echo::job("x"))?;
    tx.commit().expect("a commit");
    drop(conn);
    t.drain()?;
    t.advance(secs(5));
    t.drain()?;
    let metrics = t.client().metrics(Window::Day)?;
    assert_eq!(metrics.total.enqueued, 0);
    let text = t.client().prometheus()?;
    assert!(text.contains("jobmill_jobs{") && text.contains("jobmill_jobs_enqueued_total{"), "the gauges stay");
    t.restart()?;
    t.engine().maintain()?;
    assert_eq!(query::<i64>(t.client(), "SELECT count(*) FROM jobmill_tally"), 0);
    assert!(t.client().stats()?.total.completed > 5);
    Ok(())
}

#[test]
fn an_idle_engine_writes_nothing() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder
            .handle(act)
            .handle(echo)
            .retention(Retention::FOREVER)
            .threshold(Threshold::error_rate(Scope::All, Window::Day, 0.1))
            .threshold(Threshold::depth("default", 0))
    })?;
    for act in Act::ALL {
        t.enqueue(&act)?;
    }
    t.enqueue(NewJob::json("nobody's", &1))?;
    for _ in 0..3 {
        t.drain()?;
        t.advance(secs(2));
    }
    // What was counted is written, and goes when no window reaches it any more.
    t.client().metrics(Window::Minute)?;
    t.advance(secs(2 * DAY));
    t.engine().maintain()?;
    let watcher = t.client().connection()?;
    let version = || -> i64 { watcher.query_row("PRAGMA data_version", [], |row| row.get(0)).expect("a version") };
    let length = |suffix: &str| {
        let path = format!("{}{suffix}", t.path().as_ref().display());
        std::fs::metadata(path).expect("a file").len()
    };
    let before = (version(), length(""), length("-wal"));
    for _ in 0..100 {
        t.advance(secs(61));
        t.drain()?;
        t.engine().maintain()?;
        t.client().stats()?;
        t.client().metrics(Window::Minute)?;
        t.client().prometheus()?;
    }
    assert_eq!((version(), length(""), length("-wal")), before);
    Ok(())
}

#[test]
fn a_bound_client_is_shown_no_rates_of_others() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let ann = t.client().for_user("ann")?;
    let says = "a client that is bound to a user may not ";
    for window in Window::ALL {
        refused(ann.metrics(window), ErrorKind::Forbidden, says);
    }
    refused(ann.prometheus(), ErrorKind::Forbidden, says);
    refused(ann.alerts(), ErrorKind::Forbidden, says);
    refused(ann.users(None, 10), ErrorKind::Forbidden, says);
    Ok(())
}

#[test]
fn a_shutdown_and_a_rescue_are_counted_as_what_they_are() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let (gate, keeper) = gate();
    let engine = Engine::builder(&path)
        .workers(Workers::new(1))
        .state(gate)
        .handle(block)
        .handle(|_: Echo, _: &Context| -> Result<Outcome<()>, Failure> { Ok(Outcome::Snooze(secs(60))) })
        .start()?;
    engine.client().enqueue(Echo::job("snoozes"))?;
    engine.client().enqueue(Block::job("a"))?;
    keeper.next();
    engine.shutdown(Duration::ZERO)?;
    drop(keeper);
    let rates = Client::open(&path)?.metrics(Window::Minute)?.total;
    assert_eq!((rates.enqueued, rates.snoozed, rates.completed, rates.error_rate()), (2, 1, 0, None));
    // A claim that no worker took in time was given back as well.
    assert!(rates.returned >= 1);
    assert_eq!((rates.started, rates.waited.count()), (rates.returned + 1, rates.returned + 1));
    assert_eq!(rates.ran.count(), 1);
    Ok(())
}
