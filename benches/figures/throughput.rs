//! How many jobs a second, against the floor.

use jobmill::Durability;

use crate::floor::{self, Floor};
use crate::ours;
use crate::report::{DURABILITIES, Report, Target, rate, rounds};

pub fn enqueue(report: &mut Report) {
    let directory = floor::directory();
    for (name, durability) in DURABILITIES {
        let count = if name == "FULL" { 2000 } else { 10_000 };
        let one_row_each = |mut floor: Floor| {
            rate(count, || {
                for _ in 0..count {
                    floor.begin();
                    floor.insert();
                    floor.commit(1, 0, 0);
                }
            })
        };
        let (mut series, mut uncounted) = (Vec::new(), Vec::new());
        for _ in 0..rounds() {
            let bare = one_row_each(Floor::open(&floor::fresh(&directory, "floor"), durability));
            let engine = ours::storage(&floor::fresh(&directory, "ours"), durability);
            let mill = rate(count, || ours::enqueue(engine.client(), count, 1));
            let barer = Floor::open(&floor::fresh(&directory, "floor"), durability).without_counters();
            series.push((mill, bare));
            uncounted.push((mill, one_row_each(barer)));
        }
        report.ratio(&format!("enqueue, 1 caller, {name}"), &series, Target::AtLeast(0.7));
        report.ratio(&format!("the same against a floor without counters, {name}"), &uncounted, Target::None);
    }
    for (name, durability) in DURABILITIES {
        let count = if name == "FULL" { 16_000 } else { 64_000 };
        let mut series = Vec::new();
        for _ in 0..rounds() {
            let path = floor::fresh(&directory, "floor");
            let floor = Floor::open(&path, durability);
            let bare = rate(count, || floor.enqueue_by_writer_thread(count, 16));
            let engine = ours::storage(&floor::fresh(&directory, "ours"), durability);
            let mill = rate(count, || ours::enqueue(engine.client(), count, 16));
            series.push((mill, bare));
        }
        report.ratio(&format!("enqueue, 16 callers, {name}"), &series, Target::AtLeast(0.7));
    }
}

pub fn enqueue_many(report: &mut Report) {
    let directory = floor::directory();
    for (name, durability) in DURABILITIES {
        let count = 50_000;
        let mut series = Vec::new();
        for _ in 0..rounds() {
            let path = floor::fresh(&directory, "floor");
            let mut floor = Floor::open(&path, durability);
            let bare = rate(count, || {
                for _ in 0..count / 1000 {
                    floor.begin();
                    for _ in 0..1000 {
                        floor.insert();
                    }
                    floor.commit(1000, 0, 0);
                }
            });
            let engine = ours::storage(&floor::fresh(&directory, "ours"), durability);
            let mill = rate(count, || ours::enqueue_many(engine.client(), count, 1000));
            series.push((mill, bare));
        }
        report.ratio(&format!("enqueue_many by 1000, {name}"), &series, Target::AtLeast(0.7));
    }
}

/// The batch of the floor's drain is about what our turns come to.
const DRAIN_BATCH: usize = 256;

pub fn drain(report: &mut Report) {
    let directory = floor::directory();
    for (name, durability) in DURABILITIES {
        let count = 100_000;
        let mut series = Vec::new();
        for _ in 0..rounds() {
            let path = floor::fresh(&directory, "floor");
            let mut floor = Floor::open(&path, durability);
            floor.begin();
            for _ in 0..count {
                floor.insert();
            }
            floor.commit(count as i64, 0, 0);
            let bare = rate(count, || floor.drain(count, DRAIN_BATCH));
            let path = floor::fresh(&directory, "ours");
            let engine = ours::storage(&path, durability);
            ours::enqueue_many(engine.client(), count, 1000);
            drop(engine);
            let (builder, _) = ours::builder(&path, durability, 4);
            let mill = rate(count, || {
                let engine = builder.start().expect("an engine");
                ours::wait_until_done(engine.client());
                drop(engine);
            });
            series.push((mill, bare));
        }
        report.ratio(&format!("drain of 100,000, 4 workers, {name}"), &series, Target::AtLeast(0.6));
    }
}

pub fn life(report: &mut Report) {
    let directory = floor::directory();
    for callers in [1, 16] {
        for (name, durability) in DURABILITIES {
            let count = match (name, callers) {
                ("FULL", 1) => 2000,
                ("FULL", _) => 16_000,
                (_, 1) => 8000,
                _ => 48_000,
            };
            let mut series = Vec::new();
            for _ in 0..rounds() {
                let path = floor::fresh(&directory, "floor");
                let mut floor = Floor::open(&path, durability);
                let bare = rate(count, || floor.lives(count, callers));
                let (builder, _) = ours::builder(&floor::fresh(&directory, "ours"), durability, 4);
                let engine = builder.start().expect("an engine");
                let mill = rate(count, || {
                    ours::enqueue(engine.client(), count, callers);
                    ours::wait_until_done(engine.client());
                });
                series.push((mill, bare));
            }
            report.ratio(&format!("whole life, {callers} callers, {name}"), &series, Target::AtLeast(0.7));
        }
    }
}

/// What counting costs: our lives with rates against lives without, and the floor's lives that keep the counts of a lane
/// against lives that keep none. The audit writes nothing in an ordinary life, which is checked.
pub fn counting(report: &mut Report) {
    let directory = floor::directory();
    for callers in [1, 16] {
        let count = if callers == 1 { 8000 } else { 48_000 };
        let ours = |rates: bool| {
            let path = floor::fresh(&directory, "ours");
            let (builder, _) = ours::builder(&path, Durability::Normal, 4);
            let builder = if rates { builder } else { builder.without_rates() };
            let engine = builder.start().expect("an engine");
            let rate = rate(count, || {
                ours::enqueue(engine.client(), count, callers);
                ours::wait_until_done(engine.client());
            });
            assert!(engine.client().audit(None, 1).expect("the audit").is_empty());
            rate
        };
        let bare = |counted: bool| {
            let floor = Floor::open(&floor::fresh(&directory, "floor"), Durability::Normal);
            let mut floor = if counted { floor } else { floor.without_counters() };
            rate(count, || floor.lives(count, callers))
        };
        let (mut rates, mut counts) = (Vec::new(), Vec::new());
        for round in 0..rounds() {
            // Whoever comes first has the quieter machine now and then.
            let (with, without) =
                if round % 2 == 0 { (ours(true), ours(false)) } else { swap((ours(false), ours(true))) };
            rates.push((with, without));
            counts.push((bare(true), bare(false)));
        }
        report.ratio(&format!("whole life, {callers} callers, with rates"), &rates, Target::AtLeast(0.85));
        report.ratio(&format!("the floor's, {callers} at a time, with counts"), &counts, Target::AtLeast(0.85));
    }
}

fn swap((first, second): (f64, f64)) -> (f64, f64) {
    (second, first)
}
