//! What an idle engine costs, how soon it wakes, and how much memory a long queue takes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jobmill::{Client, Clock, Context, Durability, Engine, Failure, NewJob, Payload, SystemClock, Workers};
use serde::{Deserialize, Serialize};

use crate::floor;
use crate::ours;
use crate::report::{Report, Target, percentile, rest};

/// A job that carries the moment of its enqueueing, in microseconds since the epoch.
#[derive(Serialize, Deserialize)]
struct Stamp(i64);

impl Payload for Stamp {
    const KIND: &'static str = "stamp";
}

fn now_us() -> i64 {
    SystemClock.now().as_micros()
}

/// The environment variable that names the file to a child process.
const PATH: &str = "BENCH_PATH";

/// Runs this program once more, in a role.
fn spawn(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .env("BENCH_CHILD", role)
        .env(PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child process")
}

/// What a child process says last.
fn last_line(child: Child) -> String {
    let output = child.wait_with_output().expect("a child process that ends");
    assert!(output.status.success(), "a child process failed");
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned()
}

pub fn child(role: &str) {
    let path = std::env::var_os(PATH).expect("a path");
    let path = Path::new(&path);
    match role {
        "enqueue" => {
            let client = Client::open_with(path, Durability::Normal).expect("a client");
            for line in std::io::stdin().lock().lines() {
                line.expect("a line");
                client.enqueue(&Stamp(now_us())).expect("an enqueueing");
            }
        }
        "drain" => {
            let (builder, _) = ours::builder(path, Durability::Normal, 4);
            let engine = builder.start().expect("an engine");
            ours::wait_until_done(engine.client());
            println!("{}", status_kib("VmHWM"));
        }
        "idle" => {
            let seconds: u64 =
                std::env::var("BENCH_IDLE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
            let (builder, _) = ours::builder(path, Durability::Normal, 4);
            let _engine = builder.start().expect("an engine");
            rest(Duration::from_secs(1));
            let (cpu, memory, file) = (cpu_seconds(), status_kib("VmRSS"), file_bytes(path));
            rest(Duration::from_secs(seconds));
            let cpu = (cpu_seconds() - cpu) / seconds as f64;
            println!("{cpu} {} {}", status_kib("VmRSS") - memory, file_bytes(path) - file);
        }
        _ => panic!("unknown role {role}"),
    }
}

/// A line of Linux' /proc/self/status, in KiB.
fn status_kib(name: &str) -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of that name");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Processor time of this process's threads, of Linux' /proc/self/task/*/schedstat, in nanoseconds there. The ticks of
/// /proc/self/stat would count whoever is awake at a tick, and timers wake threads at ticks.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanos = tasks.map(|task| {
        let stat = std::fs::read_to_string(task.expect("a thread").path().join("schedstat")).unwrap_or_default();
        stat.split(' ').next().and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0)
    });
    nanos.sum::<f64>() / 1e9
}

fn file_bytes(path: &Path) -> i64 {
    ["", "-wal"]
        .iter()
        .map(|suffix| std::fs::metadata(format!("{}{suffix}", path.display())).map_or(0, |file| file.len() as i64))
        .sum()
}

pub fn latency(report: &mut Report) {
    let directory = floor::directory();
    let path = floor::fresh(&directory, "latency");
    let (sender, receiver) = crossbeam_channel::bounded::<i64>(16);
    let engine = Engine::builder(&path)
        .durability(Durability::Normal)
        .workers(Workers::new(2))
        .handle(move |job: Stamp, _: &Context| -> Result<(), Failure> {
            let _ = sender.try_send(now_us() - job.0);
            Ok(())
        })
        .start()
        .expect("an engine");
    let mut measure = |name: &str, targets: [Option<f64>; 2], send: &mut dyn FnMut()| {
        let mut times = Vec::new();
        for _ in 0..400 {
            rest(Duration::from_millis(15));
            send();
            times.push(receiver.recv().expect("a start") as f64 / 1e3);
        }
        for (part, target) in [0.5, 0.99].into_iter().zip(targets) {
            if let Some(target) = target {
                let name = format!("enqueue to start, {name}, p{:.0}", part * 100.0);
                report.value(&name, percentile(&mut times, part), "ms", Target::AtMost(target));
            }
        }
    };
    let client = engine.client();
    measure("idle engine", [Some(0.4), Some(2.0)], &mut || {
        client.enqueue(&Stamp(now_us())).expect("an enqueueing");
    });
    let mut conn = client.connection().expect("a connection");
    measure("in the application's transaction", [None, Some(5.0)], &mut || {
        let tx = conn.transaction().expect("a transaction");
        client.enqueue_in(&tx, NewJob::of(&Stamp(now_us()))).expect("an enqueueing");
        tx.commit().expect("a commit");
    });
    let mut other = spawn("enqueue", &path);
    let mut lines = other.stdin.take().expect("its input");
    measure("from another process", [None, Some(5.0)], &mut || {
        lines.write_all(b"\n").expect("a line");
        lines.flush().expect("a line");
    });
    drop(lines);
    let mut rest_of_output = BufReader::new(other.stdout.take().expect("its output"));
    rest_of_output.read_line(&mut String::new()).expect("its end");
    other.wait().expect("its end");
}

pub fn memory(report: &mut Report) {
    let directory = floor::directory();
    let path = floor::fresh(&directory, "memory");
    let peak = |path: &Path| last_line(spawn("drain", path)).parse::<f64>().expect("a number") / 1024.0;
    let empty = peak(&path);
    let engine = ours::storage(&path, Durability::Normal);
    ours::enqueue_many(engine.client(), 1_000_000, 5000);
    drop(engine);
    let full = peak(&path);
    println!("peak memory of an empty engine: {empty:.1} MiB");
    report.value("peak memory draining 1,000,000, over the empty engine", full - empty, "MiB", Target::AtMost(32.0));
}

pub fn idle(report: &mut Report) {
    let directory = floor::directory();
    let path = floor::fresh(&directory, "idle");
    let line = last_line(spawn("idle", &path));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    report.value("idle engine, processor", numbers[0] * 100.0, "% of a core", Target::AtMost(0.5));
    report.value("idle engine, growth of memory", numbers[1], "KiB", Target::AtMost(256.0));
    report.value("idle engine, growth of the file", numbers[2], "bytes", Target::AtMost(0.0));
}
