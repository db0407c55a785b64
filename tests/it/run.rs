//! Jobs run, and end in every way there is.

use std::time::Duration;

use jobmill::testing::Harness;
use jobmill::{Context, Engine, Failure, NewJob, Outcome, Payload, Status};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Echo(String);

impl Payload for Echo {
    const KIND: &'static str = "echo";
}

fn echo(job: Echo, _: &Context) -> Result<String, Failure> {
    Ok(job.0)
}

#[test]
fn a_job_runs_and_its_result_is_kept() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.handle(echo))?;
    let id = t.enqueue(&Echo("hello".into()))?;
    t.check(id, "pending");
    t.drain()?;
    t.check(id, "completed, attempt 1");
    assert_eq!(t.client().get(id)?.result::<String>()?, "hello");
    assert!(t.client().verify()?.is_empty());
    Ok(())
}

#[test]
fn threads_run_jobs() -> jobmill::Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::builder(directory.path().join("jobs.db")).handle(echo).start()?;
    let ids = engine.client().enqueue_many((0..1000).map(|n| NewJob::of(&Echo(n.to_string()))))?;
    for id in ids {
        let job = engine.client().wait(id.id(), Duration::from_secs(20))?;
        assert_eq!(job.status, Status::Completed);
    }
    engine.shutdown(Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn planned_endings() -> jobmill::Result<()> {
    let t = Harness::new(|builder| {
        builder.handle(|job: Echo, ctx: &Context| -> Result<Outcome<()>, Failure> {
            match job.0.as_str() {
                "snooze" if ctx.job().run_at == ctx.job().created_at() => Ok(Outcome::Snooze(Duration::from_secs(9))),
                "cancel" => Ok(Outcome::Cancel("no use".into())),
                "fatal" => Err(Failure::fatal("never")),
                "panic" => panic!("oh {}", "no"),
                _ => Ok(Outcome::Done(())),
            }
        })
    })?;
    let snooze = t.enqueue(&Echo("snooze".into()))?;
    let cancel = t.enqueue(&Echo("cancel".into()))?;
    let fatal = t.enqueue(&Echo("fatal".into()))?;
    let panic = t.enqueue(NewJob::of(&Echo("panic".into())).max_attempts(1))?;
    t.drain()?;
    t.check(snooze, "pending, due in 9s");
    t.check(cancel, "cancelled");
    t.check(fatal, "failed, attempt 1: never");
    let error = t.client().get(panic)?.error.unwrap_or_default();
    assert!(error.starts_with("panicked at tests/it/run.rs:") && error.ends_with(": oh no"), "{error}");
    t.advance(Duration::from_secs(9));
    t.drain()?;
    t.check(snooze, "completed, attempt 1");
    Ok(())
}
