//! What a workflow costs: a fan-out with a fan-in against as many plain jobs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jobmill::{Durability, NewJob, NewWorkflow, Status};

use crate::floor;
use crate::ours::{self, Nothing};
use crate::report::{DURABILITIES, Report, Target, rate, rounds};

/// How many jobs the fan-out has.
const JOBS: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(600);

/// The whole life of a fan-out, from its first job written to the end of the job that follows all of them, against that of
/// jobs which nothing joins, enqueued a thousand at a time.
pub fn workflows(report: &mut Report) {
    let directory = floor::directory();
    for (name, durability) in DURABILITIES {
        let mut joined = Vec::new();
        let mut after = Vec::new();
        for round in 0..rounds() {
            let fan_out = || {
                life(&directory, durability, |client, job| {
                    let parts = (0..JOBS).map(|_| job.clone());
                    client.start_workflow(
                        NewWorkflow::new("fan").jobs("parts", parts).job("last", job.clone()).after("parts"),
                    )
                })
            };
            let fan_out_after_one = || {
                life(&directory, durability, |client, job| {
                    let parts = (0..JOBS).map(|_| job.clone());
                    let fan = NewWorkflow::new("fan").job("first", job.clone()).jobs("parts", parts).after("first");
                    client.start_workflow(fan.job("last", job.clone()).after("parts"))
                })
            };
            // Whoever comes first has the quieter machine now and then.
            let (with, bare, later) = if round % 2 == 0 {
                (fan_out(), plain(&directory, durability), fan_out_after_one())
            } else {
                let bare = plain(&directory, durability);
                let later = fan_out_after_one();
                (fan_out(), bare, later)
            };
            joined.push((with, bare));
            after.push((later, bare));
        }
        report.ratio(&format!("fan-out of 100,000 with fan-in, {name}"), &joined, Target::AtLeast(0.75));
        report.ratio(&format!("the same after a first job, {name}"), &after, Target::AtLeast(0.75));
    }
}

fn life(
    directory: &tempfile::TempDir,
    durability: Durability,
    start: impl Fn(&jobmill::Client, &NewJob) -> jobmill::Result<jobmill::WorkflowId>,
) -> f64 {
    let (builder, ran) = ours::builder(&floor::fresh(directory, "ours"), durability, 4);
    let engine = builder.start().expect("an engine");
    let job = NewJob::of(&Nothing::new());
    let rate = rate(JOBS, || {
        let id = start(engine.client(), &job).expect("a workflow");
        let workflow = engine.client().wait_workflow(id, PATIENCE).expect("its end");
        assert_eq!(workflow.status, Status::Completed);
    });
    assert!(ran.0.load(Ordering::Relaxed) > JOBS);
    rate
}

fn plain(directory: &tempfile::TempDir, durability: Durability) -> f64 {
    let (builder, _) = ours::builder(&floor::fresh(directory, "ours"), durability, 4);
    let engine = builder.start().expect("an engine");
    rate(JOBS, || {
        ours::enqueue_many(engine.client(), JOBS, 1000);
        ours::wait_until_done(engine.client());
    })
}
