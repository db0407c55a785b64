//! What Prometheus is told: equal to what was done, and bounded.

use std::collections::BTreeMap;

use jobmill::testing::Harness;
use jobmill::{Client, Durability, NewJob, Query, Window};
use openmetrics_parser::PrometheusValue;
use openmetrics_parser::prometheus::parse_prometheus;

use crate::metrics::{Account, DAY, HOUR, Sums, program};
use crate::support::{now, secs};

/// Every series of a text, as an independent parser reads it: its labels and its value, histograms as their count.
fn series(text: &str) -> BTreeMap<String, f64> {
    let exposition = parse_prometheus(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut series = BTreeMap::new();
    for family in exposition.families.values() {
        for sample in family.iter_samples() {
            let labels = sample.get_labelset().expect("labels");
            let mut labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            labels.sort_unstable();
            let name = format!("{}{{{}}}", family.family_name, labels.join(","));
            let value = match &sample.value {
                PrometheusValue::Gauge(value) => value.as_f64(),
                PrometheusValue::Counter(value) => value.value.as_f64(),
                PrometheusValue::Histogram(value) => value.count.expect("a count") as f64,
                other => panic!("{name} is {other:?}"),
            };
            assert_eq!(series.insert(name.clone(), value), None, "{name} is told once");
        }
    }
    series
}

/// Jobs by their lane and status, by a look at each.
fn gauges(client: &Client) -> jobmill::Result<BTreeMap<String, f64>> {
    let mut gauges = BTreeMap::new();
    for job in client.jobs(Query::new().limit(1000))? {
        let job = job?;
        let kind = job.kind.unwrap_or_default();
        let name =
            format!("jobmill_jobs{{kind={kind},priority={},queue={},status={}}}", job.priority, job.queue, job.status);
        *gauges.entry(name).or_insert(0.0) += 1.0;
    }
    Ok(gauges)
}

#[test]
fn what_prometheus_is_told_is_what_was_done_and_its_counters_never_fall() -> jobmill::Result<()> {
    for seed in 30..32 {
        let mut program = program(seed)?;
        let mut all = Sums::new();
        let mut last: BTreeMap<String, f64> = BTreeMap::new();
        let mut account = Account::new(program.t.client())?;
        for round in 0..6 {
            let client = program.t.client().clone();
            account.subscribe(&client)?;
            for _ in 0..40 {
                program.step()?;
                account.listen(&client);
            }
            for (lane, counts) in account.take(&client) {
                all.entry(lane).or_default().add(&counts);
            }
            let context = format!("seed {seed}, round {round}");
            let told = series(&client.prometheus()?);
            let mut jobs: BTreeMap<String, f64> = told
                .iter()
                .filter(|(name, _)| name.starts_with("jobmill_jobs{"))
                .map(|(n, v)| (n.clone(), *v))
                .collect();
            jobs.retain(|_, count| *count > 0.0);
            assert_eq!(jobs, gauges(&client)?, "{context}");
            let stats = client.stats()?;
            assert_eq!(jobs.values().sum::<f64>(), stats.total.total() as f64, "{context}");
            for ((queue, kind, priority), counts) in &all {
                let labels = format!("kind={kind},priority={priority},queue={queue}");
                let of = |name: &str| told[&format!("jobmill_{name}{{{labels}}}")];
                let ended = |status: &str| told[&format!("jobmill_jobs_ended_total{{{labels},status={status}}}")];
                assert_eq!(of("jobs_enqueued_total"), counts.enqueued as f64, "{context}");
                assert_eq!(of("attempts_started_total"), counts.started as f64, "{context}");
                assert_eq!(of("attempts_retried_total"), counts.retried as f64, "{context}");
                assert_eq!(of("attempts_snoozed_total"), counts.snoozed as f64, "{context}");
                assert_eq!(of("attempts_returned_total"), counts.returned as f64, "{context}");
                assert_eq!(of("job_waiting_seconds"), counts.waited.count() as f64, "{context}");
                assert_eq!(of("attempt_running_seconds"), counts.ran.count() as f64, "{context}");
                assert_eq!(ended("completed"), counts.completed as f64, "{context}");
                assert_eq!(ended("failed"), counts.failed as f64, "{context}");
                assert_eq!(ended("cancelled"), counts.cancelled as f64, "{context}");
                assert_eq!(ended("expired"), counts.expired as f64, "{context}");
            }
            for (queue, since) in &stats.oldest_waiting {
                let waits = told[&format!("jobmill_queue_oldest_waiting_seconds{{queue={queue}}}")];
                assert_eq!(waits, now(&program.t).since(*since).as_secs_f64(), "{context}");
            }
            let paused: Vec<&String> = stats.paused.iter().collect();
            for queue in stats.queues.keys() {
                let told = told[&format!("jobmill_queue_paused{{queue={queue}}}")];
                assert_eq!(told, f64::from(u8::from(paused.contains(&queue))), "{context}");
            }
            for (name, before) in &last {
                if name.contains("_total{") || name.contains("_seconds{kind") {
                    assert!(told[name] >= *before, "{context}: {name} fell from {before}");
                }
            }
            last = told;
            program.t.advance(secs([10, HOUR, DAY][round % 3]));
            // What comes due at a start is told before anybody can subscribe.
            program.t.drain()?;
            account.listen(&client);
            client.metrics(Window::Minute)?;
            if round % 2 == 0 { program.t.restart()? } else { program.t.crash()? }
        }
    }
    Ok(())
}

#[test]
fn two_hundred_kinds_are_counted_and_the_labels_are_bounded() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder.durability(Durability::Normal))?;
    let client = t.client();
    let jobs = (0..200).flat_map(|kind| {
        let job = NewJob::json(format!("kind-{kind:03}"), &kind).queue(if kind % 2 == 0 { "even" } else { "odd" });
        // The later ones have the more jobs.
        (0..=kind / 50).map(move |_| job.clone())
    });
    let ids = client.enqueue_many(jobs)?;
    for id in ids.iter().step_by(10) {
        client.cancel(id.id())?;
    }
    let metrics = client.metrics(Window::Minute)?;
    assert_eq!((metrics.kinds.len(), metrics.queues.len()), (200, 2));
    assert_eq!((metrics.total.enqueued, metrics.total.cancelled), (500, 50));
    assert_eq!((metrics.kinds["kind-000"].enqueued, metrics.kinds["kind-199"].enqueued), (1, 4));
    assert_eq!(metrics.kinds.values().map(|rates| rates.enqueued).sum::<u64>(), 500);
    let stats = client.stats()?;
    assert_eq!((stats.kinds.len(), stats.total.pending, stats.total.cancelled), (200, 450, 50));

    let told = series(&client.prometheus()?);
    let kinds: std::collections::BTreeSet<&str> =
        told.keys().filter_map(|name| name.split("kind=").nth(1)?.split(',').next()).collect();
    assert_eq!(kinds.len(), 101, "the hundred with the most jobs, and the others");
    assert!(kinds.contains("kind-199") && kinds.contains("other") && !kinds.contains("kind-000"));
    let sum = |begins: &str, ends: &str| -> f64 {
        told.iter().filter(|(name, _)| name.starts_with(begins) && name.ends_with(ends)).map(|(_, value)| value).sum()
    };
    assert_eq!(sum("jobmill_jobs{", "status=pending}"), 450.0, "nothing is lost");
    assert_eq!(sum("jobmill_jobs_enqueued_total{", "}"), 500.0);
    Ok(())
}

#[test]
fn names_that_are_odd_stand_in_the_text_as_they_are() -> jobmill::Result<()> {
    let t = Harness::new(|builder| builder)?;
    let names = ["a\"b", "back\\slash", "ü 😀", "{x=\"y\"}", "# HELP", &"long".repeat(32)];
    for name in names {
        t.enqueue(NewJob::json(name.to_owned(), &1).queue(name.to_owned()))?;
    }
    let text = t.client().prometheus()?;
    parse_prometheus(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for name in names {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        assert!(text.contains(&format!("jobmill_jobs_enqueued_total{{queue=\"{name}\",kind=\"{name}\"")), "{name}");
    }
    Ok(())
}
