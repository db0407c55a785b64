//! What a file tells Prometheus: its text exposition format, version 0.0.4.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write};
use std::time::Duration;

use crate::model::histogram::Histogram;
use crate::model::job::{Priority, Status};
use crate::model::stats::StatusCounts;
use crate::model::tally::Tally;

/// How many pairs of a queue and a kind are told apart, and how many queues. The pairs that had the most jobs are; what
/// the others did is summed up under [`OTHER`]. So no more than 37 370 series come of a file, whatever names it holds.
pub(crate) const MAX_PAIRS: usize = 100;

/// The queue and the kind of what is not told apart.
const OTHER: &str = "other";

/// A longer label is cut.
const MAX_LABEL_BYTES: usize = 128;

/// A lane as it stands, and what was ever done in it.
#[derive(Clone, Copy)]
pub(crate) struct LaneReading<'r> {
    pub(crate) queue: &'r str,
    pub(crate) kind: &'r str,
    pub(crate) priority: Priority,
    pub(crate) counts: StatusCounts,
    pub(crate) ever: &'r Tally,
}

/// All that is told.
#[derive(Clone, Copy)]
pub(crate) struct Exposition<'r> {
    pub(crate) lanes: &'r [LaneReading<'r>],
    /// By queue, how long the job has waited that could have run first. Queues where none waits are left out.
    pub(crate) oldest_waiting: &'r BTreeMap<String, Duration>,
    /// The queues that are paused.
    pub(crate) paused: &'r [String],
}

/// A series of jobs: its labels, and what is summed up under them.
#[derive(Default)]
struct Group {
    labels: String,
    counts: StatusCounts,
    ever: Tally,
}

#[derive(Clone, Copy, Default)]
struct Queue {
    oldest_waiting: Duration,
    paused: bool,
}

impl Exposition<'_> {
    /// The text, to be sent as `text/plain; version=0.0.4`.
    ///
    /// Lanes of the same labels are summed up, so that no series is told twice. Counters and histograms are of all
    /// time. Times are in seconds.
    pub(crate) fn to_text(self) -> String {
        let pairs = self.pairs();
        let groups = self.groups(&pairs);
        let queues = self.queues(&pairs);
        let mut text = Text::default();

        text.family("jobmill_jobs", "gauge", "Jobs by where they stand.");
        for group in &groups {
            for status in Status::ALL {
                text.sample(&labelled(&group.labels, "status", status.as_str()), group.counts.of(status));
            }
        }
        text.counter("jobmill_jobs_enqueued_total", "Jobs enqueued.", &groups, |ever| ever.enqueued);
        text.family("jobmill_jobs_ended_total", "counter", "Jobs ended, by how.");
        for Group { labels, ever, .. } in &groups {
            for (status, count) in [
                (Status::Completed, ever.completed),
                (Status::Failed, ever.failed),
                (Status::Cancelled, ever.cancelled),
                (Status::Expired, ever.expired),
            ] {
                text.sample(&labelled(labels, "status", status.as_str()), count);
            }
        }
        for (name, help, count) in [
            ("started", "Attempts begun.", (|ever| ever.started) as fn(&Tally) -> u64),
            ("retried", "Attempts that failed and are followed by another.", |ever| ever.retried),
            ("snoozed", "Attempts put off by their handler.", |ever| ever.snoozed),
            ("returned", "Attempts given back unspent.", |ever| ever.returned),
            ("rescued", "Attempts whose process died.", |ever| ever.rescued),
        ] {
            text.counter(&format!("jobmill_attempts_{name}_total"), help, &groups, count);
        }
        text.histogram(
            "jobmill_job_waiting_seconds",
            "How long jobs waited from when they could run to their start.",
            groups.iter().map(|group| (&*group.labels, &group.ever.waited)),
        );
        text.histogram(
            "jobmill_attempt_running_seconds",
            "How long attempts ran.",
            groups.iter().map(|group| (&*group.labels, &group.ever.ran)),
        );
        // Most queues and kinds have no schedules, and no series of them.
        let ticked = |group: &&Group| {
            let Tally { ticked, ticks_missed, ticks_skipped, .. } = group.ever;
            ticked + ticks_missed + ticks_skipped > 0
        };
        text.family("jobmill_schedule_ticks_total", "counter", "Ticks of schedules, by what became of them.");
        for Group { labels, ever, .. } in groups.iter().filter(ticked) {
            for (outcome, count) in
                [("enqueued", ever.ticked), ("missed", ever.ticks_missed), ("skipped", ever.ticks_skipped)]
            {
                text.sample(&labelled(labels, "outcome", outcome), count);
            }
        }
        text.histogram(
            "jobmill_schedule_tick_late_seconds",
            "How late ticks of schedules were when their jobs were enqueued.",
            groups.iter().filter(ticked).map(|group| (&*group.labels, &group.ever.tick_lateness)),
        );

        let help = "How long the job has waited that could have run first, 0 if none waits.";
        text.family("jobmill_queue_oldest_waiting_seconds", "gauge", help);
        for (labels, queue) in &queues {
            text.sample(labels, queue.oldest_waiting.as_secs_f64());
        }
        text.family("jobmill_queue_paused", "gauge", "1 if the queue is paused, 0 if not.");
        for (labels, queue) in &queues {
            text.sample(labels, u8::from(queue.paused));
        }
        text.written
    }

    /// The pairs of queue and kind that are told apart: those with the most jobs. What was ever enqueued decides as
    /// far as it is known, for it only grows, so that pairs do not come and go.
    fn pairs(&self) -> BTreeSet<(&str, &str)> {
        let mut sizes: HashMap<(&str, &str), u64> = HashMap::new();
        for lane in self.lanes {
            let size = sizes.entry((cut(lane.queue), cut(lane.kind))).or_default();
            *size = size.saturating_add(lane.ever.enqueued.max(lane.counts.total()));
        }
        let mut pairs: Vec<_> = sizes.into_iter().collect();
        pairs.sort_unstable_by(|(name, size), (other, other_size)| other_size.cmp(size).then(name.cmp(other)));
        pairs.into_iter().take(MAX_PAIRS).map(|(pair, _)| pair).collect()
    }

    fn groups(&self, pairs: &BTreeSet<(&str, &str)>) -> Vec<Group> {
        let mut groups: BTreeMap<(&str, &str, Priority), Group> = BTreeMap::new();
        for lane in self.lanes {
            let pair = (cut(lane.queue), cut(lane.kind));
            let (queue, kind) = if pairs.contains(&pair) { pair } else { (OTHER, OTHER) };
            let group = groups.entry((queue, kind, lane.priority)).or_insert_with(|| Group {
                labels: labelled(&labelled(&label("queue", queue), "kind", kind), "priority", lane.priority.as_str()),
                ..Group::default()
            });
            group.counts += lane.counts;
            group.ever.merge(lane.ever);
        }
        groups.into_values().collect()
    }

    /// Queues by their labels. Those of the pairs that are told apart come first, then others as far as there is room.
    fn queues(&self, pairs: &BTreeSet<(&str, &str)>) -> Vec<(String, Queue)> {
        let lanes = self.lanes.iter().map(|lane| lane.queue);
        let waiting = self.oldest_waiting.keys().map(String::as_str);
        let paused: BTreeSet<&str> = self.paused.iter().map(String::as_str).collect();
        let all: BTreeSet<&str> = lanes.chain(waiting).chain(paused.iter().copied()).collect();
        let mut named: BTreeSet<&str> = pairs.iter().map(|(queue, _)| *queue).collect();
        let mut queues: BTreeMap<&str, Queue> = BTreeMap::new();
        for queue in all {
            let mut name = cut(queue);
            if !named.contains(name) {
                if named.len() < MAX_PAIRS {
                    named.insert(name);
                } else {
                    name = OTHER;
                }
            }
            let sum = queues.entry(name).or_default();
            let oldest = self.oldest_waiting.get(queue).copied().unwrap_or_default();
            sum.oldest_waiting = sum.oldest_waiting.max(oldest);
            sum.paused |= paused.contains(queue);
        }
        queues.into_iter().map(|(name, queue)| (label("queue", name), queue)).collect()
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_LABEL_BYTES)]
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", escaped(value))
}

fn labelled(labels: &str, name: &str, value: &str) -> String {
    format!("{labels},{}", label(name, value))
}

/// A label's value as it stands between quotes.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    let mut text = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.into()
}

/// The text as far as it is written, family after family.
#[derive(Default)]
struct Text {
    written: String,
    name: String,
}

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        name.clone_into(&mut self.name);
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    /// A series of the family that was begun.
    fn sample(&mut self, labels: &str, value: impl fmt::Display) {
        self.sample_of("", labels, value);
    }

    fn sample_of(&mut self, suffix: &str, labels: &str, value: impl fmt::Display) {
        let name = std::mem::take(&mut self.name);
        self.line(format_args!("{name}{suffix}{{{labels}}} {value}"));
        self.name = name;
    }

    fn counter(&mut self, name: &str, help: &str, groups: &[Group], count: impl Fn(&Tally) -> u64) {
        self.family(name, "counter", help);
        for group in groups {
            self.sample(&group.labels, count(&group.ever));
        }
    }

    fn histogram<'h>(&mut self, name: &str, help: &str, all: impl Iterator<Item = (&'h str, &'h Histogram)>) {
        self.family(name, "histogram", help);
        for (labels, histogram) in all {
            let mut so_far: u64 = 0;
            for (bound, count) in histogram.buckets() {
                so_far = so_far.saturating_add(count);
                let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
                self.sample_of("_bucket", &labelled(labels, "le", &bound), so_far);
            }
            self.sample_of("_sum", labels, histogram.sum().as_secs_f64());
            self.sample_of("_count", labels, so_far);
        }
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.written, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use openmetrics_parser::PrometheusValue;
    use openmetrics_parser::prometheus::parse_prometheus;

    use super::*;

    /// Every series that an independent parser finds, histograms as their count and sum.
    fn parsed(text: &str) -> BTreeMap<String, f64> {
        let exposition = parse_prometheus(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let mut series = BTreeMap::new();
        for family in exposition.families.values() {
            assert!(!family.help.is_empty(), "{}", family.family_name);
            for sample in family.iter_samples() {
                let labels = sample.get_labelset().unwrap();
                let mut labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                labels.sort_unstable();
                let name = format!("{}{{{}}}", family.family_name, labels.join(","));
                match &sample.value {
                    PrometheusValue::Gauge(value) => series.insert(name, value.as_f64()),
                    PrometheusValue::Counter(value) => series.insert(name, value.value.as_f64()),
                    PrometheusValue::Histogram(value) => {
                        let counts: Vec<f64> = value.buckets.iter().map(|bucket| bucket.count.as_f64()).collect();
                        assert!(counts.is_sorted(), "{name} is cumulative: {counts:?}");
                        assert!(value.buckets.iter().map(|bucket| bucket.upper_bound).is_sorted(), "{name}");
                        assert_eq!(counts.len(), Histogram::BOUNDS.len() + 1);
                        assert_eq!(value.buckets.last().map(|bucket| bucket.upper_bound), Some(f64::INFINITY));
                        assert_eq!(value.count.map(|count| count as f64), counts.last().copied(), "{name}");
                        series.insert(format!("sum of {name}"), value.sum.unwrap().as_f64());
                        series.insert(name, value.count.unwrap() as f64)
                    }
                    other => panic!("{name} is {other:?}"),
                };
            }
        }
        series
    }

    fn reading<'r>(queue: &'r str, kind: &'r str, ever: &'r Tally) -> LaneReading<'r> {
        LaneReading { queue, kind, priority: Priority::Default, counts: StatusCounts::default(), ever }
    }

    fn text_of(lanes: &[LaneReading<'_>]) -> String {
        Exposition { lanes, oldest_waiting: &BTreeMap::new(), paused: &[] }.to_text()
    }

    #[test]
    fn a_small_file_reads_so() {
        let ever = Tally::sample();
        let counts = StatusCounts { pending: 7, running: 2, completed: 70, failed: 5, ..StatusCounts::default() };
        let lanes = [LaneReading { counts, priority: Priority::High, ..reading("mail", "letter", &ever) }];
        let oldest_waiting = BTreeMap::from([("mail".to_owned(), Duration::from_millis(1500))]);
        let paused = ["web".to_owned()];
        let text = Exposition { lanes: &lanes, oldest_waiting: &oldest_waiting, paused: &paused }.to_text();
        // A checkout may have given the file other ends of lines.
        assert_eq!(text, include_str!("prometheus/small.txt").replace("\r\n", "\n"));

        let series = parsed(&text);
        let lane = "kind=letter,priority=high,queue=mail";
        assert_eq!(series[&format!("jobmill_jobs{{{lane},status=pending}}")], 7.0);
        assert_eq!(series[&format!("jobmill_jobs_ended_total{{{lane},status=completed}}")], 70.0);
        assert_eq!(series[&format!("jobmill_attempts_retried_total{{{lane}}}")], 15.0);
        assert_eq!(series[&format!("jobmill_attempt_running_seconds{{{lane}}}")], 2.0);
        assert_eq!(series[&format!("sum of jobmill_attempt_running_seconds{{{lane}}}")], 2.03);
        let missed = "jobmill_schedule_ticks_total{kind=letter,outcome=missed,priority=high,queue=mail}";
        assert_eq!(series[missed], 9.0);
        assert_eq!(series[&format!("jobmill_schedule_tick_late_seconds{{{lane}}}")], 1.0);
        assert_eq!(series["jobmill_queue_oldest_waiting_seconds{queue=mail}"], 1.5);
        assert_eq!(series["jobmill_queue_paused{queue=web}"], 1.0);
        assert_eq!(series["jobmill_queue_paused{queue=mail}"], 0.0);
    }

    #[test]
    fn an_empty_file_has_families_without_series() {
        let text = text_of(&[]);
        assert!(text.lines().all(|line| line.starts_with("# ")), "{text}");
        assert!(parsed(&text).is_empty());
    }

    #[test]
    fn every_family_is_told_once_and_its_series_stand_together() {
        let ever = Tally::sample();
        let lanes = ["a", "b"].map(|queue| reading(queue, "letter", &ever));
        let text = text_of(&lanes);
        let mut families = Vec::new();
        for line in text.lines() {
            match line.strip_prefix("# HELP ").or(line.strip_prefix("# TYPE ")) {
                Some(rest) => families.push(rest.split(' ').next().unwrap()),
                None => assert!(line.starts_with(families.last().unwrap()), "{line}"),
            }
        }
        let told = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(told, 2 * families.len(), "HELP and TYPE once each: {families:?}");
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        for (name, kind) in names.map(|line| line.split_once(' ').unwrap()) {
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        }
        parsed(&text);
    }

    #[test]
    fn labels_are_escaped_and_cut() {
        let long = "ö".repeat(100);
        let ever = Tally { enqueued: 3, ..Tally::default() };
        let names = ["a\"b", "a\\b", "a\\nb", "a\nb", "\\", "a,b={}", "", "日本", "tab\t", &long];
        let lanes: Vec<_> = names.iter().map(|name| reading(name, name, &ever)).collect();
        let series = parsed(&text_of(&lanes));
        for name in names {
            let name = if name == long { "ö".repeat(64) } else { name.to_owned() };
            let found = format!("jobmill_jobs_enqueued_total{{kind={name},priority=default,queue={name}}}");
            assert_eq!(series.get(&found), Some(&3.0), "{name:?} in {:?}", series.keys().collect::<Vec<_>>());
        }
        assert_eq!(cut(&format!("x{long}")).len(), 127, "a character is not cut in two");
    }

    #[test]
    fn lanes_whose_labels_are_the_same_once_cut_are_one_series() {
        let [one, other] = ["one", "other"].map(|end| format!("{}{end}", "q".repeat(MAX_LABEL_BYTES)));
        let ever = Tally { enqueued: 3, ..Tally::default() };
        let paused = [one.clone()];
        let lanes = [reading(&one, "letter", &ever), reading(&other, "letter", &ever)];
        let oldest_waiting = BTreeMap::from([(other.clone(), Duration::from_secs(2))]);
        let text = Exposition { lanes: &lanes, oldest_waiting: &oldest_waiting, paused: &paused }.to_text();
        let series = parsed(&text);
        let name = "q".repeat(MAX_LABEL_BYTES);
        let lane = format!("jobmill_jobs_enqueued_total{{kind=letter,priority=default,queue={name}}}");
        assert_eq!(series[&lane], 6.0);
        assert_eq!(series[&format!("jobmill_queue_paused{{queue={name}}}")], 1.0);
        assert_eq!(series[&format!("jobmill_queue_oldest_waiting_seconds{{queue={name}}}")], 2.0);
    }

    #[test]
    fn the_largest_pairs_are_told_apart_and_the_rest_is_summed_up() {
        let names: Vec<String> = (0..MAX_PAIRS + 20).map(|n| format!("q{n:03}")).collect();
        let tallies: Vec<Tally> =
            (0..names.len() as u64).map(|n| Tally { enqueued: 1000 - n, ..Tally::default() }).collect();
        let mut lanes: Vec<_> = names.iter().zip(&tallies).map(|(name, ever)| reading(name, "letter", ever)).collect();
        // A queue and a kind that are really called so join the rest, which has their labels.
        let named_other = Tally { enqueued: 5000, ..Tally::default() };
        lanes.push(reading(OTHER, OTHER, &named_other));
        // Jobs that were there before they were tallied count as well.
        let none = Tally::default();
        let old = StatusCounts { completed: 9000, ..StatusCounts::default() };
        lanes.push(LaneReading { counts: old, ..reading("old", "letter", &none) });
        let ages = (1..=120).rev().map(Duration::from_secs);
        let oldest_waiting = names.iter().cloned().zip(ages).collect();
        let paused = [names[MAX_PAIRS + 5].clone()];
        let text = Exposition { lanes: &lanes, oldest_waiting: &oldest_waiting, paused: &paused }.to_text();
        let series = parsed(&text);

        let enqueued = |queue: &str, kind: &str| {
            series.get(&format!("jobmill_jobs_enqueued_total{{kind={kind},priority=default,queue={queue}}}")).copied()
        };
        let told: f64 = series.iter().filter(|(name, _)| name.starts_with("jobmill_jobs_enq")).map(|(_, n)| n).sum();
        let all: u64 = lanes.iter().map(|lane| lane.ever.enqueued).sum();
        assert_eq!(told, all as f64, "nothing is left out");
        // Two of the hundred places are taken by the two that were pushed.
        assert_eq!(enqueued("q097", "letter"), Some(903.0));
        assert_eq!(enqueued("q098", "letter"), None);
        assert_eq!(enqueued("old", "letter"), Some(0.0));
        let rest: u64 = tallies[98..].iter().map(|tally| tally.enqueued).sum();
        assert_eq!(enqueued(OTHER, OTHER), Some((rest + 5000) as f64));
        let jobs = "jobmill_jobs{kind=letter,priority=default,queue=old,status=completed}";
        assert_eq!(series[jobs], 9000.0);

        assert_eq!(series.keys().filter(|name| name.starts_with("jobmill_queue_paused")).count(), MAX_PAIRS);
        assert_eq!(series["jobmill_queue_paused{queue=other}"], 1.0);
        assert_eq!(series["jobmill_queue_oldest_waiting_seconds{queue=other}"], 22.0, "the longest of the rest");
        assert_eq!(series["jobmill_queue_oldest_waiting_seconds{queue=q097}"], 23.0);
    }

    #[test]
    fn a_file_of_many_names_gives_no_more_series_than_is_said() {
        let ever = Tally::sample();
        let names: Vec<String> = (0..300).map(|n| format!("q{n}")).collect();
        let lanes: Vec<_> = names
            .iter()
            .flat_map(|name| Priority::ALL.map(|priority| LaneReading { priority, ..reading(name, name, &ever) }))
            .collect();
        let oldest_waiting = names.iter().map(|name| (name.clone(), Duration::ZERO)).collect();
        let text = Exposition { lanes: &lanes, oldest_waiting: &oldest_waiting, paused: &names }.to_text();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(series, 37_370);
    }
}
