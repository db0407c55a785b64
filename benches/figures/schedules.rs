//! Schedules: how late ticks run when many are due each second, and what a tick costs among few schedules and among many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::{Client, Clock, Context, Durability, Engine, Failure, NewJob, Query, Schedule, SystemClock, Timestamp};

use crate::floor;
use crate::ours::Nothing;
use crate::report::{DURABILITIES, Report, Target, now, percentile, rest, rounds};

const MANY: usize = 100_000;
const FEW: usize = 1_000;
/// How many are due in each second, and for how many seconds.
const DUE: usize = 1_000;
const SECONDS: usize = 8;

/// When handlers have begun, after the tick that they run for, in microseconds.
#[derive(Clone, Default)]
struct Lateness(Arc<Mutex<Vec<f64>>>);

fn lateness(_: Nothing, ctx: &Context) -> Result<(), Failure> {
    let tick = ctx.scheduled_for().ok_or_else(|| Failure::fatal("no tick"))?;
    let late = SystemClock.now().since(tick);
    ctx.state::<Lateness>()?.0.lock().expect("no panic").push(late.as_secs_f64() * 1e3);
    Ok(())
}

/// A clock that is moved by hand.
#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_790_000_000_000_000).saturating_add(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// Stores so many schedules, of each second as many as are due in one, spread over it; beginning at `first`.
fn store(client: &Client, count: usize, first: Timestamp) {
    let every = Duration::from_secs((count / DUE) as u64);
    let apart = Duration::from_micros((1_000_000 / DUE) as u64);
    let threads = 8;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for number in (thread..count).step_by(threads) {
                    let at = first.saturating_add(apart * number as u32);
                    let schedule = Schedule::every(format!("schedule {number}"), every, NewJob::of(&Nothing::new()));
                    client.schedule(&schedule.starts_at(at)).expect("a schedule");
                }
            });
        }
    });
}

fn late(report: &mut Report, name: &str, durability: Durability) {
    let directory = floor::directory();
    let path = floor::fresh(&directory, "schedules");
    let (mut all, mut missed, mut ran) = (Vec::new(), 0, 0);
    let seen = Lateness::default();
    // They are stored by a client, for an engine would begin to tick.
    let client = Client::open_with(&path, Durability::Normal).expect("a file");
    let began = now();
    let first = SystemClock.now().saturating_add(Duration::from_secs(20));
    store(&client, MANY, first);
    report.value(
        &format!("storing {MANY} schedules, 8 callers, NORMAL"),
        began.elapsed().as_secs_f64(),
        "s",
        Target::None,
    );
    let until = first.since(SystemClock.now());
    assert!(until > Duration::from_secs(2), "storing took too long: {:?}", began.elapsed());
    rest(until.saturating_sub(Duration::from_secs(1)));
    let builder = Engine::builder(&path).durability(durability).state(seen.clone()).handle(lateness);
    let engine = builder.start().expect("an engine");
    rest(Duration::from_secs(SECONDS as u64 + 1));
    engine.shutdown(Duration::from_secs(30)).expect("a shutdown");
    all.append(&mut seen.0.lock().expect("no panic"));
    let mut query = Some(jobmill::ScheduleQuery::new().limit(1000));
    while let Some(asked) = query {
        let page = client.schedules(asked).expect("a page");
        missed += page.schedules.iter().map(|record| record.missed).sum::<u64>();
        ran += page.schedules.iter().map(|record| record.enqueued).sum::<u64>();
        query = page.next;
    }
    let title = |what: &str| format!("{MANY} schedules, {DUE} due a second, {name}, {what}");
    report.value(&title("ticks that ran"), ran as f64, "", Target::AtLeast((DUE * (SECONDS - 1)) as f64));
    report.value(&title("ticks missed"), missed as f64, "", Target::AtMost(0.0));
    report.value(&title("late p50"), percentile(&mut all, 0.5), "ms", Target::None);
    report.value(&title("late p99"), percentile(&mut all, 0.99), "ms", Target::AtMost(50.0));
}

/// How many ticks a second an engine without threads deals with, among so many schedules.
fn ticks_a_second(count: usize) -> f64 {
    let directory = floor::directory();
    let path = floor::fresh(&directory, "cost");
    let clock = Hand::default();
    let builder = Engine::builder(&path).durability(Durability::Normal).clock(clock.clone());
    // Nobody runs the jobs, so that nothing but ticks is measured.
    let engine = builder.inline().expect("an engine");
    let first = clock.now().saturating_add(Duration::from_secs(1));
    store(engine.client(), count, first);
    engine.drain().expect("a drain");
    let mut seconds = 0.0;
    for _ in 0..SECONDS {
        clock.advance(1);
        let began = now();
        engine.drain().expect("a drain");
        seconds += began.elapsed().as_secs_f64();
    }
    let jobs = engine.client().stats().expect("counts").total.pending;
    assert_eq!(engine.client().list(Query::new().limit(1)).expect("a page").jobs[0].status, jobmill::Status::Pending);
    jobs as f64 / seconds
}

pub fn schedules(report: &mut Report) {
    for (name, durability) in DURABILITIES {
        late(report, name, durability);
    }
    let costs: Vec<(f64, f64)> = (0..rounds()).map(|_| (ticks_a_second(MANY), ticks_a_second(FEW))).collect();
    report.ratio(&format!("ticks a second among {MANY} schedules, against {FEW}"), &costs, Target::AtLeast(0.8));
}
