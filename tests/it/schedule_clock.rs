//! Two engines on one file while their clock jumps: each tick has one job, and none is lost but by its policy.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jobmill::testing::ManualClock;
use jobmill::{Clock, Durability, Engine, Missed, NewJob, Order, Query, Schedule, ScheduleId, Timestamp};

use crate::support::{Dice, PATIENCE, file, secs};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// Where the other process finds the file.
const FILE: &str = "TEST_SCHEDULE_CLOCK_FILE";
/// What it says when it has done what it was told.
const DONE: &str = "it is done";

/// A job that nobody here runs.
fn job() -> NewJob {
    NewJob::json("nobody's", &())
}

/// An engine without threads, and its clock.
struct Own {
    path: PathBuf,
    clock: ManualClock,
    engine: Engine,
}

impl Own {
    fn open(path: &Path) -> Self {
        let clock = ManualClock::default();
        let builder = Engine::builder(path).durability(Durability::Normal).clock(clock.clone());
        Self { path: path.to_owned(), clock, engine: builder.inline().expect("an engine") }
    }

    /// Does what a line tells.
    fn obey(&mut self, line: &str) {
        let (word, micros) = line.split_once(' ').expect("a word and a number");
        let micros: i64 = micros.parse().expect("a number");
        match word {
            "advance" => self.clock.advance(std::time::Duration::from_micros(micros.unsigned_abs())),
            "jump" => self.clock.jump(Timestamp::from_micros(micros)),
            "drain" => drop(self.engine.drain().expect("a drain")),
            "restart" => {
                self.engine.shutdown(PATIENCE).expect("a shutdown");
                let builder = Engine::builder(&self.path).durability(Durability::Normal);
                self.engine = builder.clock(self.clock.clone()).inline().expect("an engine");
            }
            other => panic!("{other}"),
        }
    }
}

/// Runs as the other process if it is told to, until its input ends.
#[test]
fn as_the_other_engine() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let mut own = Own::open(Path::new(&path));
    for line in std::io::stdin().lines() {
        own.obey(&line.expect("a line"));
        println!("{DONE}");
    }
}

/// The same in another process, killed at the latest when it is dropped.
struct Other {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command.args(["schedule_clock::as_the_other_engine", "--exact", "--nocapture"]).env(FILE, path);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("a child");
        let answers = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, answers }
    }

    fn obey(&mut self, line: &str) {
        writeln!(self.child.stdin.as_ref().expect("its input"), "{line}").expect("a living child");
        let mut answer = String::new();
        while !answer.contains(DONE) {
            answer.clear();
            assert!(self.answers.read_line(&mut answer).expect("an answer") > 0, "the other process ended");
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two engines in two processes, whose clocks show the same.
struct Pair {
    own: Own,
    other: Option<Other>,
}

impl Pair {
    fn open(path: &Path) -> Self {
        let own = Own::open(path);
        Self { own, other: Some(Other::start(path)) }
    }

    /// Has one of them do something.
    fn one(&mut self, which: usize, line: &str) {
        match &mut self.other {
            _ if which == 0 => self.own.obey(line),
            Some(other) => other.obey(line),
            None => {}
        }
    }

    fn both(&mut self, line: &str) {
        (0..2).for_each(|which| self.one(which, line));
    }

    fn now(&self) -> Timestamp {
        self.own.clock.now()
    }

    fn advance(&mut self, seconds: u64) {
        self.both(&format!("advance {}", seconds * 1_000_000));
    }

    fn back(&mut self, seconds: u64) {
        let to = self.now().saturating_sub(secs(seconds));
        self.both(&format!("jump {}", to.as_micros()));
    }

    fn forward(&mut self, seconds: u64) {
        let to = self.now().saturating_add(secs(seconds));
        self.both(&format!("jump {}", to.as_micros()));
    }

    fn drain(&mut self, which: usize) {
        self.one(which, "drain 0");
    }
}

/// The ticks of each schedule that have jobs.
fn ticks_with_jobs(engine: &Engine) -> BTreeMap<ScheduleId, BTreeSet<Timestamp>> {
    let mut ticks: BTreeMap<ScheduleId, BTreeSet<Timestamp>> = BTreeMap::new();
    for job in engine.client().jobs(Query::new().order(Order::Ascending)).expect("jobs") {
        let job = job.expect("a job");
        let (schedule, tick) = (job.schedule.expect("a schedule"), job.scheduled_for.expect("a tick"));
        assert!(ticks.entry(schedule).or_default().insert(tick), "{tick} of {schedule} has two jobs");
    }
    ticks
}

/// Every tick of a schedule up to a moment.
fn all_ticks(engine: &Engine, id: ScheduleId, until: Timestamp) -> BTreeSet<Timestamp> {
    let record = engine.client().schedule_by_id(id).expect("a schedule");
    let (mut all, mut from) = (BTreeSet::new(), record.anchor);
    loop {
        let some = record.preview(from, 1000).expect("ticks");
        let ends = some.last().is_none_or(|last| *last > until);
        from = some.last().copied().unwrap_or(from);
        all.extend(some.into_iter().filter(|tick| *tick <= until));
        if ends {
            return all;
        }
    }
}

#[test]
fn no_tick_is_doubled_or_lost_by_a_clock_that_jumps() -> jobmill::Result<()> {
    for seed in 0..6 {
        let mut dice = Dice(seed);
        let (_directory, path) = file();
        let mut pair = Pair::open(&path);
        let put = |schedule: &Schedule| pair.own.engine.client().schedule(schedule).map(|done| done.id());
        let all = Missed::All(Schedule::MAX_MISSED);
        let complete = [
            put(&Schedule::every("every", secs(900), job()).missed(all))?,
            put(&Schedule::every("jitter", secs(1200), job()).missed(all).jitter(secs(600)))?,
            put(&Schedule::cron("cron", "0,20 * * * *", job()).missed(all).time_zone("Europe/Berlin"))?,
            put(&Schedule::cron("daily", "30 2 * * *", job()).missed(all).time_zone("Europe/Berlin"))?,
        ];
        let once = put(&Schedule::at("once", pair.now().saturating_add(secs(DAY / 2)), job()))?;
        let one = put(&Schedule::every("one", secs(900), job()))?;
        let mut highest = pair.now();
        for step in 0..60 {
            match dice.below(8) {
                0 => pair.forward(DAY),
                1 => pair.back(HOUR),
                2 => {
                    pair.forward(DAY);
                    pair.drain(dice.below(2));
                    highest = highest.max(pair.now());
                    pair.back(DAY);
                }
                3 => {
                    pair.back(HOUR);
                    pair.drain(dice.below(2));
                    pair.forward(HOUR);
                }
                4 => pair.back(dice.below(5) as u64),
                _ => pair.advance(dice.below(2000) as u64),
            }
            match dice.below(6) {
                0 => {}
                5 if step % 3 == 0 => pair.one(dice.below(2), "restart 0"),
                which => {
                    pair.drain(which % 2);
                    highest = highest.max(pair.now());
                }
            }
        }
        // The clock is put right, and time passes until it shows what it has shown.
        pair.back(2 * HOUR);
        pair.both("drain 0");
        while pair.now() <= highest.saturating_add(secs(2 * HOUR)) {
            pair.advance(600);
            pair.drain(dice.below(2));
        }
        let engine = &pair.own.engine;
        let ticks = ticks_with_jobs(engine);
        for id in complete {
            let expected = all_ticks(engine, id, pair.now().saturating_sub(secs(1200)));
            let name = engine.client().schedule_by_id(id)?.schedule.name().to_owned();
            let lost: Vec<_> = expected.difference(&ticks[&id]).collect();
            assert!(lost.is_empty(), "{seed}: {lost:?} of {name} are lost");
        }
        assert_eq!(ticks[&once].len(), 1);
        let record = engine.client().schedule_by_id(one)?;
        assert_eq!(record.enqueued as usize, ticks[&one].len());
        let come = all_ticks(engine, one, pair.now()).len();
        assert!(record.enqueued + record.missed >= come as u64, "{seed}: {come} have come, {record:?}");
        assert_eq!(engine.client().verify()?, Vec::<String>::new());
    }
    Ok(())
}

/// The engine that has seen the clock ahead is gone, and the one that goes on saw nothing of it.
#[test]
fn a_clock_that_only_a_dead_engine_saw_ahead_silences_no_schedule() -> jobmill::Result<()> {
    let (_directory, path) = file();
    let mut pair = Pair::open(&path);
    let id = pair.own.engine.client().schedule(&Schedule::every("test", secs(600), job()))?.id();
    pair.both("drain 0");
    pair.forward(DAY);
    pair.drain(1);
    pair.other = None;
    pair.back(DAY);
    let started = pair.now();
    for _ in 0..5 {
        pair.advance(300);
        pair.drain(0);
    }
    let ticks = ticks_with_jobs(&pair.own.engine).remove(&id).expect("ticks");
    let expected: Vec<Timestamp> = [1, 2].map(|n| started.saturating_add(secs(600 * n))).into();
    let ran: Vec<Timestamp> = ticks.into_iter().filter(|tick| *tick <= pair.now()).collect();
    assert_eq!(ran, expected);
    Ok(())
}
