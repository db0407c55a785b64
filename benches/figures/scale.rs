//! What many jobs, ahead or behind, do to the speed.

use std::path::Path;
use std::time::Duration;

use jobmill::rusqlite::Connection;
use jobmill::{Clock, Durability, Engine, NewJob, Priority, Retention, SystemClock, Workers};

use crate::floor;
use crate::ours::{self, Nothing};
use crate::report::{Report, Target, now, rate, rounds, rows};

/// How many jobs are run in a round.
const RUN: usize = 10_000;

/// Enqueues jobs without running any.
fn fill(path: &Path, count: usize, job: &NewJob) {
    let engine = ours::storage(path, Durability::Normal);
    for _ in 0..count / 5000 {
        engine.client().enqueue_many((0..5000).map(|_| job.clone())).expect("an enqueueing");
    }
}

fn ready() -> NewJob {
    NewJob::of(&Nothing::new())
}

/// Of a kind that no engine here has a handler for, more urgent than the others.
fn strange() -> NewJob {
    NewJob::json("strange", &floor::payload()).priority(Priority::Critical)
}

fn future() -> NewJob {
    let at = SystemClock.now().saturating_add(Duration::from_secs(365 * 86_400));
    ready().priority(Priority::Critical).run_at(at)
}

/// Jobs a second while the first `RUN` of those that wait are run.
fn claim_rate(path: &Path) -> f64 {
    let (sender, receiver) = crossbeam_channel::bounded::<()>(1);
    let engine = Engine::builder(path)
        .durability(Durability::Normal)
        .workers(Workers::new(4))
        .retention(Retention::FOREVER)
        .state(std::sync::atomic::AtomicUsize::new(0))
        .handle(move |job: Nothing, ctx: &jobmill::Context| -> Result<(), jobmill::Failure> {
            std::hint::black_box(job);
            let ran: &std::sync::atomic::AtomicUsize = ctx.state()?;
            if ran.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 == RUN {
                let _ = sender.try_send(());
            }
            Ok(())
        });
    let began = now();
    let engine = engine.start().expect("an engine");
    receiver.recv().expect("the last job");
    let rate = RUN as f64 / began.elapsed().as_secs_f64();
    engine.shutdown(Duration::from_secs(60)).expect("a shutdown");
    rate
}

pub fn claim(report: &mut Report) {
    let directory = floor::directory();
    let few = directory.path().join("few.db");
    for (name, job, count, refill) in [
        ("1,000,000 ready against 10,000", ready(), 1_000_000, false),
        ("100,000 better ones in the future", future(), 100_000, true),
        ("1,000,000 better ones of a strange kind", strange(), 1_000_000, true),
    ] {
        let many = floor::fresh(&directory, "many");
        fill(&many, count, &job);
        let mut series = Vec::new();
        for _ in 0..rounds() {
            fill(&floor::fresh(&directory, "few"), RUN, &ready());
            let small = claim_rate(&few);
            if refill {
                fill(&many, RUN, &ready());
            }
            series.push((claim_rate(&many), small));
        }
        report.ratio(&format!("claim and finish, {name}"), &series, Target::AtLeast(0.8));
    }
}

/// Writes ended jobs by SQL, a microsecond apart and a year ago, and counts them. One in `rare` failed, and one in
/// `rare` was cancelled.
pub fn fill_history(path: &Path, count: usize, rare: usize) {
    let conn = Connection::open(path).expect("the file");
    conn.pragma_update(None, "synchronous", "OFF").expect("a pragma");
    conn.pragma_update(None, "cache_size", -512 * 1024).expect("a pragma");
    let first = 1_760_000_000_000_000_i64;
    conn.execute_batch(
        "INSERT INTO jobmill_lane (id, queue, kind, priority, job_type, background, owned)
         VALUES (1, 'default', 'nothing', 2, 0, 0, 0) ON CONFLICT DO NOTHING",
    )
    .expect("a lane");
    let mut done = 0;
    while done < count {
        let step = (count - done).min(500_000);
        conn.execute(
            "WITH RECURSIVE n (i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1 + ?2)
             INSERT INTO jobmill_job (id, lane, state, attempt, claim, max_attempts, owner, worker, started_at,
                 completed_at, payload, result)
             SELECT (?3 + i) << 10, 1, CASE i % ?5 WHEN 7 THEN 4 WHEN 3 THEN 5 ELSE 3 END, 1, 1, 10, 1, 1, ?3 + i,
                 ?3 + i, ?4, x'6e756c6c' FROM n",
            jobmill::rusqlite::params![
                done as i64,
                step as i64,
                first,
                serde_json::to_vec(&floor::payload()).expect("a payload"),
                rare as i64,
            ],
        )
        .expect("rows");
        done += step;
    }
    conn.execute_batch(
        "UPDATE jobmill_lane SET completed = (SELECT count(*) FROM jobmill_job WHERE lane = 1 AND state = 3),
             failed = (SELECT count(*) FROM jobmill_job WHERE lane = 1 AND state = 4),
             cancelled = (SELECT count(*) FROM jobmill_job WHERE lane = 1 AND state = 5) WHERE id = 1;
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .expect("counts");
}

pub fn history(report: &mut Report) {
    let directory = floor::directory();
    let mut tables = vec![(1_000_000, 0.8), (rows(), 0.7)];
    tables.dedup_by_key(|table| table.0);
    for (count, target) in tables {
        let old = floor::fresh(&directory, "old");
        fill_history(&old, count, 1000);
        for callers in [1, 16] {
            let lives = if callers == 1 { 8000 } else { 32_000 };
            let run = |path: &Path| {
                let (builder, _) = ours::builder(path, Durability::Normal, 4);
                let engine = builder.retention(Retention::FOREVER).start().expect("an engine");
                rate(lives, || {
                    ours::enqueue(engine.client(), lives, callers);
                    ours::wait_until_done(engine.client());
                })
            };
            let mut series = Vec::new();
            for _ in 0..rounds() {
                let empty = run(&floor::fresh(&directory, "empty"));
                series.push((run(&old), empty));
            }
            report.ratio(
                &format!("whole life, {callers} callers, {count} ended rows against none"),
                &series,
                Target::AtLeast(target),
            );
        }
        floor::remove(&old);
    }
}
