//! Several processes on one file, killed again and again while schedules tick: each tick has one job.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam_channel::after;
use jobmill::{
    Client, Context, Durability, Engine, Failure, Missed, MissedBy, NewJob, Order, Payload, Query, Schedule, Status,
    TickOutcome,
};
use serde::{Deserialize, Serialize};

/// Where a child finds its file.
const FILE: &str = "TEST_SCHEDULES_FILE";
/// How long a test waits for what must come. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(20);
const NAMES: [&str; 3] = ["a", "b", "c"];
const PROCESSES: usize = 3;
const KILLS: usize = 12;

#[derive(Serialize, Deserialize)]
struct Nothing;

impl Payload for Nothing {
    const KIND: &'static str = "nothing";
}

fn nothing(_: Nothing, _: &Context) -> Result<(), Failure> {
    Ok(())
}

/// Runs as a child if it is told to, until it is killed.
#[test]
fn as_a_child() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let engine = Engine::builder(PathBuf::from(file)).durability(Durability::Normal).handle(nothing).start();
    let _engine = engine.expect("an engine");
    let (_kept, never) = crossbeam_channel::bounded::<()>(0);
    let _ = never.recv();
}

/// A child, killed at the latest when it is dropped.
struct Victim(Child);

impl Victim {
    fn start(file: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command.args(["--exact", "as_a_child", "--nocapture"]).env(FILE, file);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        Self(command.spawn().expect("a child"))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something holds of which no event tells.
#[track_caller]
fn wait_until(holds: impl Fn() -> bool) {
    let patience = after(PATIENCE);
    while !holds() {
        crossbeam_channel::select! {
            recv(patience) -> _ => panic!("it never came so far"),
            recv(after(Duration::from_millis(2))) -> _ => {}
        }
    }
}

#[test]
fn each_tick_has_one_job_however_many_processes_tick_and_die() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("jobs.db");
    let client = Client::open_with(&file, Durability::Normal).expect("a client");
    let ids = NAMES.map(|name| {
        let schedule = Schedule::every(name, INTERVAL, NewJob::of(&Nothing)).missed(Missed::All(Schedule::MAX_MISSED));
        client.schedule(&schedule).expect("a schedule").id()
    });
    let enqueued = || ids.iter().map(|id| client.schedule_by_id(*id).expect("a schedule").enqueued).sum::<u64>();
    let mut victims: Vec<Victim> = (0..PROCESSES).map(|_| Victim::start(&file)).collect();
    for kill in 0..KILLS {
        let before = enqueued();
        wait_until(|| enqueued() > before + 2 + (kill as u64 * 7) % 11);
        victims[kill % PROCESSES] = Victim::start(&file);
    }
    ids.iter().for_each(|id| client.pause_schedule(*id).expect("a pause"));
    let unended = || client.stats().expect("counts").depth() + client.stats().expect("counts").active();
    wait_until(|| unended() == 0);
    drop(victims);

    let mut ticks: HashMap<_, Vec<i64>> = HashMap::new();
    for job in client.jobs(Query::new().order(Order::Ascending)).expect("jobs") {
        let job = job.expect("a job");
        assert_eq!(job.status, Status::Completed, "{:?}", job.error);
        let tick = job.scheduled_for.expect("a tick").as_micros();
        ticks.entry(job.schedule.expect("a schedule")).or_default().push(tick);
    }
    for id in ids {
        let record = client.schedule_by_id(id).expect("a schedule");
        let ran = &ticks[&id];
        // Ticks that had come when it was paused, and that nobody had come to enqueue, are its last.
        let last = client.ticks(id).expect("a history").first().map(|tick| tick.outcome);
        let paused = match last {
            Some(TickOutcome::Missed { count, by: MissedBy::Pause, .. }) => count.expect("few"),
            _ => 0,
        };
        assert_eq!((record.enqueued, record.missed), (ran.len() as u64, paused));
        let gaps: Vec<i64> = ran.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap != 20_000).collect();
        assert!(gaps.is_empty(), "each tick once, in order: {gaps:?}");
        assert_eq!(ran[0] - record.anchor.as_micros(), 20_000);
    }
    assert_eq!(client.verify().expect("a look"), Vec::<String>::new());
}
