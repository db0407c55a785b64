//! Who waits for how long, by priority and by user, under each rule of choice: a simulation in which time passes only as jobs
//! say, so that its figures are the same on every machine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobmill::{
    Client, Clock, Context, Durability, Engine, EngineBuilder, Failure, NewJob, Payload, Preference, Priority,
    Timestamp, Workers,
};
use serde::{Deserialize, Serialize};

use crate::floor;
use crate::report::{Report, percentile};

/// How many jobs come.
const JOBS: usize = 6000;
/// What comes in a second takes this part of one: now and then many wait.
const LOAD: f64 = 0.95;

/// A clock that stands still but for what jobs take.
#[derive(Clone)]
struct Simulated(Arc<AtomicI64>);

const BEGAN: i64 = 1_790_000_000_000_000;

impl Simulated {
    fn set(&self, at: i64) {
        self.0.fetch_max(at, Ordering::SeqCst);
    }
}

impl Clock for Simulated {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros((self.0.load(Ordering::SeqCst) - BEGAN).unsigned_abs())
    }
}

/// A job that takes so many microseconds.
#[derive(Clone, Serialize, Deserialize)]
struct Short(i64);

impl Payload for Short {
    const KIND: &'static str = "short";
}

#[derive(Clone, Serialize, Deserialize)]
struct Long(i64);

impl Payload for Long {
    const KIND: &'static str = "long";
}

/// A job that is to come.
struct Arrival {
    at: i64,
    job: NewJob,
    busy: bool,
}

/// The same random numbers in each run (Knuth's MMIX).
struct Dice(u64);

impl Dice {
    fn part(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Jobs that come at random: four in five take 0.2 s, the others 3.2 s; one user enqueues six of ten, and all at once.
fn arrivals() -> Vec<Arrival> {
    let mut dice = Dice(11);
    let mut at = BEGAN as f64;
    let mean_us = 0.8 * 200_000.0 + 0.2 * 3_200_000.0;
    let mut arrivals = Vec::new();
    while arrivals.len() < JOBS {
        at += -(1.0 - dice.part()).ln() * mean_us / LOAD;
        let priority = match dice.part() {
            part if part < 0.05 => Priority::Critical,
            part if part < 0.25 => Priority::High,
            part if part < 0.7 => Priority::Default,
            _ => Priority::Low,
        };
        let job = if dice.part() < 0.8 { NewJob::of(&Short(200_000)) } else { NewJob::of(&Long(3_200_000)) };
        let user = match dice.part() {
            part if part < 0.6 => "busy".to_owned(),
            part => format!("user-{}", (part * 10.0) as u32),
        };
        let busy = user == "busy";
        arrivals.push(Arrival { at: at as i64, job: job.priority(priority).user(user), busy });
    }
    // What the busy user enqueues of a hundred jobs comes with the first of them.
    let mut first = None;
    for (number, arrival) in arrivals.iter_mut().enumerate() {
        if number % 100 == 0 {
            first = Some(arrival.at);
        }
        if arrival.busy {
            arrival.at = first.unwrap_or(arrival.at);
        }
    }
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

/// The jobs that are still to come, and how long those waited that have run.
struct World {
    clock: Simulated,
    coming: Mutex<std::iter::Peekable<std::vec::IntoIter<Arrival>>>,
    waits: Mutex<BTreeMap<String, Vec<f64>>>,
}

impl World {
    /// Enqueues what has come by now.
    fn arrive(&self, client: &Client) {
        let mut coming = self.coming.lock().expect("no panic");
        let now = self.clock.now().as_micros();
        while let Some(arrival) = coming.next_if(|arrival| arrival.at <= now) {
            // It came while the last job ran.
            client.enqueue(arrival.job.run_at(Timestamp::from_micros(arrival.at))).expect("an enqueueing");
        }
    }

    /// Lets time pass until the next job comes, and tells whether there is one.
    fn wait(&self) -> bool {
        match self.coming.lock().expect("no panic").peek() {
            Some(next) => self.clock.set(next.at),
            None => return false,
        }
        true
    }

    fn run(&self, takes: i64, ctx: &Context) -> Result<(), Failure> {
        let job = ctx.job();
        let waited_s = self.clock.now().since(job.run_at).as_secs_f64();
        let mut waits = self.waits.lock().expect("no panic");
        let user = match job.user_id.as_deref() {
            Some("busy") => "the busy user",
            _ => "the other users",
        };
        for group in ["all", job.priority.as_str(), user, job.kind.as_deref().unwrap_or_default()] {
            waits.entry(group.to_owned()).or_default().push(waited_s);
        }
        self.clock.set(self.clock.now().as_micros() + takes);
        drop(waits);
        self.arrive(ctx.client());
        Ok(())
    }
}

fn simulate(describe: impl Fn(EngineBuilder) -> EngineBuilder) -> BTreeMap<String, Vec<f64>> {
    let directory = floor::directory();
    let clock = Simulated(Arc::new(AtomicI64::new(BEGAN)));
    let coming = Mutex::new(arrivals().into_iter().peekable());
    let world = Arc::new(World { clock: clock.clone(), coming, waits: Mutex::default() });
    let (short, long) = (world.clone(), world.clone());
    let builder = Engine::builder(directory.path().join("simulated.db"))
        .durability(Durability::Normal)
        .clock(clock)
        .workers(Workers::new(1))
        .without_rates()
        .handle(move |job: Short, ctx: &Context| short.run(job.0, ctx))
        .handle(move |job: Long, ctx: &Context| long.run(job.0, ctx));
    let engine = describe(builder).inline().expect("an engine");
    while world.wait() {
        world.arrive(engine.client());
        engine.drain().expect("a drain");
    }
    drop(engine);
    std::mem::take(&mut *world.waits.lock().expect("no panic"))
}

pub fn simulation(_: &mut Report) {
    type Rule = (&'static str, fn(EngineBuilder) -> EngineBuilder);
    let rules: [Rule; 5] = [
        ("by priority alone", |builder| builder),
        ("ageing, 60 s", |builder| builder.ageing(Duration::from_secs(60))),
        ("users take turns", EngineBuilder::fair_by_user),
        ("short ones first", |builder| builder.prefer(Preference::ShortestFirst { weight: 10 })),
        ("all three", |builder| {
            let fair = builder.fair_by_user().ageing(Duration::from_secs(60));
            fair.prefer(Preference::ShortestFirst { weight: 10 })
        }),
    ];
    println!("{JOBS} jobs for one worker, at {LOAD} of what it can do; waits in seconds of simulated time");
    for (name, describe) in rules {
        println!("{name:<20} {:<18} {:>8} {:>10} {:>10} {:>10} {:>10}", "", "jobs", "mean", "p50", "p95", "longest");
        let mut waits = simulate(describe);
        let groups = ["all", "critical", "high", "default", "low", "the busy user", "the other users", "short", "long"];
        for group in groups {
            let waits = waits.get_mut(group).expect("each group has jobs");
            let mean = waits.iter().sum::<f64>() / waits.len() as f64;
            let [p50, p95, longest] = [0.5, 0.95, 1.0].map(|part| percentile(waits, part));
            println!("{:<20} {group:<18} {:>8} {mean:>10.1} {p50:>10.1} {p95:>10.1} {longest:>10.1}", "", waits.len());
        }
    }
}
