//! The same work done by jobmill.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jobmill::{Client, Context, Durability, Engine, EngineBuilder, Failure, NewJob, Payload, Query, Status, Workers};
use serde::{Deserialize, Serialize};

use crate::floor::payload;

/// A job that does nothing.
#[derive(Serialize, Deserialize)]
pub struct Nothing(pub String);

impl Payload for Nothing {
    const KIND: &'static str = "nothing";
}

impl Nothing {
    pub fn new() -> Self {
        Self(payload())
    }
}

/// Counts the handlers that have run.
#[derive(Clone, Default)]
pub struct Ran(pub Arc<AtomicUsize>);

pub fn builder(path: &Path, durability: Durability, workers: usize) -> (EngineBuilder, Ran) {
    let ran = Ran::default();
    let counter = ran.clone();
    let builder = Engine::builder(path).durability(durability).workers(Workers::new(workers)).handle(
        move |job: Nothing, _: &Context| -> Result<(), Failure> {
            std::hint::black_box(job);
            counter.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        },
    );
    (builder, ran)
}

/// An engine without a handler: it stores jobs and runs none.
pub fn storage(path: &Path, durability: Durability) -> Engine {
    Engine::builder(path).durability(durability).start().expect("an engine")
}

/// Enqueues one by one from several threads, each awaiting each commit.
pub fn enqueue(client: &Client, count: usize, callers: usize) {
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                let job = Nothing::new();
                for _ in 0..count / callers {
                    client.enqueue(&job).expect("an enqueueing");
                }
            });
        }
    });
}

pub fn enqueue_many(client: &Client, count: usize, batch: usize) {
    let job = Nothing::new();
    for _ in 0..count / batch {
        client.enqueue_many((0..batch).map(|_| NewJob::of(&job))).expect("an enqueueing");
    }
}

/// Waits until no job waits or runs any more: the newest and, by then, nearly always all.
pub fn wait_until_done(client: &Client) {
    wait_until_done_with(client, &Query::new());
}

/// The same for the jobs of a query.
pub fn wait_until_done_with(client: &Client, query: &Query) {
    let query = query.clone().statuses([Status::Pending, Status::Running]).limit(1);
    loop {
        let open = client.list(query.clone()).expect("a page");
        match open.jobs.first() {
            None => return,
            Some(job) => drop(client.wait(job.id, Duration::from_secs(600)).expect("an end")),
        }
    }
}
