//! The figures that jobmill promises, each as a ratio to something measured in the same run.
//!
//! `cargo bench --bench figures` prints them all; names after `--` choose sections, as in
//! `cargo bench --bench figures -- enqueue drain`. `BENCH_ROUNDS` sets the rounds (5), and `BENCH_ROWS` the rows of
//! the largest tables (10,000,000). Files lie in a temporary directory (`TMPDIR`).

mod asking;
mod batches;
mod callbacks;
mod floor;
mod idle;
mod ledger;
mod limits;
mod ours;
mod report;
mod scale;
mod schedules;
mod simulation;
mod throughput;
mod workflows;

use report::Report;

/// A name, and what prints its figures.
type Section = (&'static str, fn(&mut Report));

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if let Some(role) = std::env::var_os("BENCH_CHILD") {
        return idle::child(&role.to_string_lossy());
    }
    let mut report = Report::new();
    let sections: [Section; 18] = [
        ("enqueue", throughput::enqueue),
        ("many", throughput::enqueue_many),
        ("drain", throughput::drain),
        ("life", throughput::life),
        ("counting", throughput::counting),
        ("claim", scale::claim),
        ("history", scale::history),
        ("page", asking::page),
        ("ledger", ledger::ledger),
        ("callbacks", callbacks::callbacks),
        ("batches", batches::batches),
        ("workflows", workflows::workflows),
        ("limits", limits::limits),
        ("simulation", simulation::simulation),
        ("schedules", schedules::schedules),
        ("latency", idle::latency),
        ("memory", idle::memory),
        ("idle", idle::idle),
    ];
    for (name, section) in sections {
        if chosen.is_empty() || chosen.iter().any(|word| word == name) {
            report.section(name);
            section(&mut report);
        }
    }
    report.close();
}
