//! The floor and jobmill side by side, measured by Criterion: `cargo bench --bench floor`.
//!
//! The figures that jobmill promises are ratios of interleaved rounds, which `cargo bench --bench figures` prints; this
//! bench is for looking at one operation, and at what a change does to it.

#[path = "figures/floor.rs"]
#[allow(dead_code, reason = "the other bench uses the rest")]
mod floor;
#[path = "figures/ours.rs"]
#[allow(dead_code, reason = "the other bench uses the rest")]
mod ours;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jobmill::{Durability, NewJob, Query};

use floor::Floor;
use ours::Nothing;

const DURABILITIES: [(&str, Durability); 2] = [("normal", Durability::Normal), ("full", Durability::Full)];

fn enqueue(criterion: &mut Criterion) {
    let directory = floor::directory();
    for batch in [1_usize, 1000] {
        let mut group = criterion.benchmark_group(format!("enqueue {batch} in a transaction"));
        group.throughput(Throughput::Elements(batch as u64));
        for (name, durability) in DURABILITIES {
            let mut bare = Floor::open(&floor::fresh(&directory, "floor"), durability);
            group.bench_function(BenchmarkId::new("floor", name), |bencher| {
                bencher.iter(|| {
                    bare.begin();
                    for _ in 0..batch {
                        bare.insert();
                    }
                    bare.commit(batch as i64, 0, 0);
                });
            });
            let engine = ours::storage(&floor::fresh(&directory, "ours"), durability);
            let job = Nothing::new();
            group.bench_function(BenchmarkId::new("jobmill", name), |bencher| {
                bencher.iter(|| engine.client().enqueue_many((0..batch).map(|_| NewJob::of(&job))).expect("an id"));
            });
        }
    }
}

fn life(criterion: &mut Criterion) {
    let directory = floor::directory();
    let mut group = criterion.benchmark_group("whole life of one job, awaited");
    for (name, durability) in DURABILITIES {
        let mut bare = Floor::open(&floor::fresh(&directory, "floor"), durability);
        group.bench_function(BenchmarkId::new("floor", name), |bencher| bencher.iter(|| bare.lives(1, 1)));
        let (builder, _) = ours::builder(&floor::fresh(&directory, "ours"), durability, 2);
        let engine = builder.start().expect("an engine");
        let job = Nothing::new();
        group.bench_function(BenchmarkId::new("jobmill", name), |bencher| {
            bencher.iter(|| {
                let id = engine.client().enqueue(&job).expect("an id").id();
                engine.client().wait(id, Duration::from_secs(60)).expect("an end")
            });
        });
    }
}

fn page(criterion: &mut Criterion) {
    let directory = floor::directory();
    let engine = ours::storage(&floor::fresh(&directory, "page"), Durability::Normal);
    ours::enqueue_many(engine.client(), 100_000, 5000);
    criterion.bench_function("page of 50 of 100,000", |bencher| {
        bencher.iter(|| engine.client().list(Query::new()).expect("a page"));
    });
}

criterion_group!(benches, enqueue, life, page);
criterion_main!(benches);
