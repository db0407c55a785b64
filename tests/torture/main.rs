//! Kills processes at random moments, hundreds of times if asked to, and judges after each what is left.
//!
//! `TORTURE_ROUNDS` says how many rounds of kills each test goes through (20 unless it is set), and
//! `TORTURE_SEED` repeats the random choices of an earlier run, which prints its seed. What chance the operating
//! system adds by its timing cannot be repeated.

mod child;
mod journal;
mod oracle;
mod rng;

use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use crossbeam_channel::after;
use jobmill::{Client, Clock, Durability, Status, SystemClock};
use tempfile::TempDir;

use crate::child::{Orders, WORKERS, database, plant_poison};
use crate::journal::Journal;
use crate::oracle::Oracle;
use crate::rng::Rng;

const CHILD: &str = "--as-child";
/// A fresh file is begun after so many rounds, for the judge reads all of it each time.
const ROUNDS_A_FILE: u64 = 20;
/// A process that ends by itself is given up after this time.
const PATIENCE: Duration = Duration::from_secs(120);

type Test = (&'static str, fn(u64));

const TESTS: [Test; 3] = [
    ("one_process_is_killed_at_any_moment", |seed| campaign(seed, 1)),
    ("three_processes_on_one_file_are_killed_at_any_moment", |seed| campaign(seed, 3)),
    ("a_job_that_kills_its_process_is_stopped_and_innocent_jobs_are_not", poison),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == CHILD) {
        child::run(&Orders::parse(&arguments[1..]).expect("orders"));
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let tests: Vec<Test> = TESTS.into_iter().filter(|(name, _)| wanted(name)).collect();

    let seed = std::env::var("TORTURE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(Rng::any_seed);
    let began = SystemClock.monotonic();
    println!("\nrunning {} tests, TORTURE_SEED={seed}", tests.len());
    let mut failed = 0;
    for (name, test) in &tests {
        let outcome = std::panic::catch_unwind(|| test(seed));
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(outcome.is_err());
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        tests.len() - failed,
        TESTS.len() - tests.len(),
        (SystemClock.monotonic() - began).as_secs_f64(),
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn rounds() -> u64 {
    std::env::var("TORTURE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20)
}

/// A process that runs this same executable, killed at the latest when it is dropped.
struct Victim {
    process: Child,
    gone: bool,
}

impl Victim {
    fn start(orders: &Orders) -> Self {
        let executable = std::env::current_exe().expect("the path of this executable");
        let process = Command::new(executable)
            .arg(CHILD)
            .args(orders.arguments())
            .stdin(Stdio::null())
            .spawn()
            .expect("a process starts");
        Self { process, gone: false }
    }

    /// Kills it without a word, wherever it is.
    fn kill(mut self, journal: &Journal) {
        journal.line(&format!("dies {}", self.process.id()));
        self.process.kill().expect("the process is killed or has ended");
        self.reap();
    }

    /// Waits until it ends by itself, and notes whether it did so in peace.
    fn wait(mut self, journal: &Journal) -> ExitStatus {
        let deadline = SystemClock.monotonic() + PATIENCE;
        while self.process.try_wait().expect("its status").is_none() {
            assert!(SystemClock.monotonic() < deadline, "a process goes on and on");
            let _ = after(Duration::from_millis(2)).recv();
        }
        let status = self.reap();
        if status.success() {
            journal.line(&format!("left {}", self.process.id()));
        }
        status
    }

    fn reap(&mut self) -> ExitStatus {
        let status = self.process.wait().expect("its status");
        self.gone = true;
        assert_ne!(status.code(), Some(101), "a process panicked");
        status
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if !self.gone {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A directory with an empty database, the application's tables in it, and an empty journal.
fn fresh() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let client = Client::open_with(database(directory.path()), Durability::Normal).expect("a client");
    let conn = client.connection().expect("a connection");
    conn.execute_batch(
        "CREATE TABLE companion (job TEXT PRIMARY KEY); CREATE TABLE effect (job TEXT PRIMARY KEY, token TEXT NOT NULL)",
    )
    .expect("the application's tables");
    directory
}

/// Rounds of kills on one file after another, each file drained at its end.
fn campaign(seed: u64, processes: usize) {
    let mut rng = Rng::new(seed ^ processes as u64);
    let mut left = rounds();
    let (mut deaths, mut attempts) = (0, 0);
    while left > 0 {
        let here = left.min(ROUNDS_A_FILE);
        left -= here;
        let directory = fresh();
        let mut oracle = Oracle::new(directory.path().to_owned());
        for round in 1..=here {
            one_round(&mut rng, directory.path(), processes);
            accept(oracle.judge(false), &directory, &format!("round {round}"));
        }
        drain(&mut rng, directory.path());
        accept(oracle.judge(true), &directory, "the drain");
        accept_unheard(&oracle, &directory);
        deaths += oracle.deaths();
        attempts += oracle.attempts();
    }
    println!("{processes} processes at a time: {deaths} died, {attempts} attempts");
}

/// Starts processes, kills or outlives them one after another, and leaves none alive.
fn one_round(rng: &mut Rng, directory: &Path, processes: usize) {
    let journal = Journal::open(&child::journal(directory));
    let start = |rng: &mut Rng| {
        let life_ms = if rng.percent(25) { rng.within(20..=200) } else { 0 };
        let orders = Orders { directory: directory.to_owned(), seed: rng.next(), life_ms, drain: false };
        (Victim::start(&orders), life_ms)
    };
    let end = |rng: &mut Rng, (victim, life_ms): (Victim, u64), at_once: bool| {
        if life_ms > 0 && rng.percent(70) {
            victim.wait(&journal);
            return;
        }
        if !at_once {
            // The start of an engine, with its rescue, is as good a moment as any.
            let _ = after(rng.millis(5..=220)).recv();
        }
        victim.kill(&journal);
    };
    let mut alive: Vec<(Victim, u64)> = (0..processes).map(|_| start(rng)).collect();
    for _ in 1..processes {
        let at = rng.within(0..=alive.len() as u64 - 1) as usize;
        end(rng, alive.swap_remove(at), false);
        alive.push(start(rng));
    }
    for (nth, victim) in alive.into_iter().enumerate() {
        end(rng, victim, nth > 0);
    }
}

/// Lets one process after another run what there is, until one of them sees the end of it.
fn drain(rng: &mut Rng, directory: &Path) -> u32 {
    let journal = Journal::open(&child::journal(directory));
    let mut processes = 0;
    loop {
        processes += 1;
        let orders = Orders { directory: directory.to_owned(), seed: rng.next(), life_ms: 0, drain: true };
        // Poison among the jobs may kill it.
        if Victim::start(&orders).wait(&journal).success() {
            return processes;
        }
        assert!(processes < 200, "process after process dies");
    }
}

fn poison(seed: u64) {
    const ATTEMPTS: u32 = 3;
    let mut rng = Rng::new(seed);
    let directory = fresh();
    let id = plant_poison(directory.path(), ATTEMPTS, 400);
    let processes = drain(&mut rng, directory.path());
    let mut oracle = Oracle::new(directory.path().to_owned());
    accept(oracle.judge(true), &directory, "the drain");
    let (status, attempts, error) = oracle.end_of(&id.to_string());
    assert_eq!((status, attempts), (Status::Failed, i64::from(ATTEMPTS)));
    assert_eq!(error.as_deref(), Some("the process died while the handler ran"));
    assert_eq!(processes, ATTEMPTS + 1, "each attempt kills one process");
    assert_eq!(oracle.failed(), 1, "no other job suffers for it");
    accept_unheard(&oracle, &directory);
}

/// A death may fall between the mark that a job has begun and the first word of its handler, once a worker. Jobs that
/// were only claimed keep their attempts.
fn accept_unheard(oracle: &Oracle, directory: &TempDir) {
    let unheard = oracle.spent_unheard();
    if unheard > (oracle.deaths() * WORKERS) as i64 {
        let wrong = format!("{unheard} attempts were spent that never began, by {} deaths", oracle.deaths());
        accept(vec![wrong], directory, "the drain");
    }
}

/// Goes on if nothing is wrong; else tells what is, and leaves the files for who looks into it.
fn accept(wrong: Vec<String>, directory: &TempDir, when: &str) {
    if wrong.is_empty() {
        return;
    }
    let kept = std::env::temp_dir().join(format!("jobmill-torture-{}", std::process::id()));
    let copied = copy(directory.path(), &kept);
    eprintln!("after {when}, {} promises are broken; the files are in {} ({copied:?})", wrong.len(), kept.display());
    for line in wrong.iter().take(10) {
        eprintln!("  {line}");
    }
    panic!("promises are broken");
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
