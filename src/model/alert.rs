//! When a threshold is passed, and when it is well again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::metrics::{Metrics, Rates, Window};
use crate::model::stats::{Stats, StatusCounts};
use crate::model::threshold::{Measure, Rule, Scope, Threshold};
use crate::model::time::Timestamp;

/// How far back behind its bound a measure must come before its alert is cleared, as a part of the bound.
const MARGIN: f64 = 0.1;

/// Whether an alert begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// The bound was passed.
    Raised,
    /// It is well again.
    Cleared,
}

/// A threshold was passed, or what it watches is well again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Alert {
    /// The name of the threshold.
    pub threshold: Arc<str>,
    /// Whether the alert begins or ends.
    pub state: AlertState,
    /// What is measured.
    pub measure: Measure,
    /// Of which queue. None if of all.
    pub queue: Option<Arc<str>>,
    /// What was seen, in the unit of the measure.
    pub value: f64,
    /// The bound of the threshold, in the unit of the measure.
    pub bound: f64,
    /// When it was seen.
    pub at: Timestamp,
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            AlertState::Raised => write!(f, "{}: {}", self.threshold, self.value),
            AlertState::Cleared => write!(f, "{}: well again at {}", self.threshold, self.value),
        }
    }
}

/// What a watchman looks at.
#[derive(Clone, Copy)]
pub(crate) struct Sight<'s> {
    pub(crate) stats: &'s Stats,
    /// By queue, how long the job has waited that could have run first. Queues where none waits are left out.
    pub(crate) oldest_waiting: &'s BTreeMap<String, Duration>,
    /// Of each window that is [wanted](Watchman::windows). A threshold whose window is missing stays as it is.
    pub(crate) metrics: &'s [Metrics],
}

impl<'s> Sight<'s> {
    fn counts(&self, scope: &Scope) -> StatusCounts {
        match scope {
            Scope::All => self.stats.total,
            Scope::Queue(queue) => self.stats.queues.get(queue).copied().unwrap_or_default(),
        }
    }

    fn oldest_waiting(&self, scope: &Scope) -> Option<Duration> {
        match scope {
            Scope::All => self.oldest_waiting.values().max().copied(),
            Scope::Queue(queue) => self.oldest_waiting.get(queue).copied(),
        }
    }

    fn metrics(&self, window: Window) -> Option<&'s Metrics> {
        self.metrics.iter().find(|metrics| metrics.window == window)
    }
}

/// What a look at a threshold found.
struct Finding {
    value: f64,
    /// The bound is passed.
    passed: bool,
    /// It is well, with the margin.
    well: bool,
}

impl Finding {
    fn above(value: f64, bound: f64) -> Self {
        Self { value, passed: value > bound, well: value <= bound * (1.0 - MARGIN) }
    }

    fn below(value: f64, bound: f64) -> Self {
        Self { value, passed: value < bound, well: value >= bound * (1.0 + MARGIN) }
    }
}

fn rates_of<'m>(metrics: &'m Metrics, scope: &Scope) -> Option<&'m Rates> {
    match scope {
        Scope::All => Some(&metrics.total),
        Scope::Queue(queue) => metrics.queues.get(queue),
    }
}

/// None if what is seen does not tell.
fn look_at(threshold: &Threshold, sight: &Sight<'_>) -> Option<Finding> {
    let scope = &threshold.scope;
    let bound = threshold.bound();
    // A queue that saw no change in the window is not in its map, and did nothing.
    let nothing = Rates::default();
    Some(match threshold.rule {
        Rule::DepthAbove(_) => Finding::above(sight.counts(scope).pending as f64, bound),
        Rule::ActiveAbove(_) => Finding::above(sight.counts(scope).running as f64, bound),
        Rule::OldestWaitingAbove(_) => {
            Finding::above(sight.oldest_waiting(scope).unwrap_or_default().as_secs_f64(), bound)
        }
        Rule::ErrorRateAbove(window, _) => {
            let rates = rates_of(sight.metrics(window)?, scope).unwrap_or(&nothing);
            let min_ended = threshold.min_ended.unwrap_or(Threshold::DEFAULT_MIN_ENDED);
            let finding = Finding::above(rates.error_rate().unwrap_or_default(), bound);
            // Few ends are no ground for an alarm, but good ones are for an end of it.
            Finding { passed: finding.passed && rates.attempts_ended() >= min_ended, ..finding }
        }
        Rule::CompletionRateBelow(window, _) => {
            let metrics = sight.metrics(window)?;
            let idle = sight.oldest_waiting(scope).is_none() && sight.counts(scope).running == 0;
            let whole = metrics.total.covered >= window.length();
            let rates = rates_of(metrics, scope).unwrap_or(&nothing);
            let finding = Finding::below(rates.completion_rate(), bound);
            Finding { passed: finding.passed && whole && !idle, well: finding.well || idle, ..finding }
        }
    })
}

/// Remembers which thresholds are passed, and tells when that changes.
pub(crate) struct Watchman {
    /// Each threshold with its alert, if one is raised.
    posts: Vec<(Threshold, Option<Alert>)>,
}

impl Watchman {
    /// Watches these thresholds, none of which is passed yet. They have been checked.
    pub(crate) fn new(thresholds: Vec<Threshold>) -> Self {
        Self { posts: thresholds.into_iter().map(|threshold| (threshold, None)).collect() }
    }

    /// Whether there is nothing to watch.
    pub(crate) fn is_empty(&self) -> bool {
        self.posts.is_empty()
    }

    /// The windows that a look needs the metrics of.
    pub(crate) fn windows(&self) -> Vec<Window> {
        let looked_at = |window: &Window| self.posts.iter().any(|(threshold, _)| threshold.window() == Some(*window));
        Window::ALL.into_iter().filter(looked_at).collect()
    }

    /// The alerts that are raised and not cleared.
    pub(crate) fn raised(&self) -> impl Iterator<Item = &Alert> {
        self.posts.iter().filter_map(|(_, raised)| raised.as_ref())
    }

    /// Takes a look, and tells what has changed since the last one.
    pub(crate) fn look(&mut self, sight: &Sight<'_>, at: Timestamp) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for (threshold, raised) in &mut self.posts {
            let Some(finding) = look_at(threshold, sight) else { continue };
            let state = match raised {
                None if finding.passed => AlertState::Raised,
                Some(_) if finding.well => AlertState::Cleared,
                _ => continue,
            };
            let alert = Alert {
                threshold: threshold.shown_name(),
                state,
                measure: threshold.measure(),
                queue: threshold.queue().map(Arc::from),
                value: finding.value,
                bound: threshold.bound(),
                at,
            };
            *raised = (state == AlertState::Raised).then(|| alert.clone());
            alerts.push(alert);
        }
        alerts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::Priority;
    use crate::model::tally::Tally;

    /// A file with one queue, `mail`, in which so many jobs stand and so much was done in the last minute.
    #[derive(Clone, Copy, Default)]
    struct Scene {
        pending: u64,
        running: u64,
        oldest_s: Option<u64>,
        completed: u64,
        failed: u64,
        retried: u64,
        /// Seconds since counting began.
        age_s: u64,
    }

    const NOW: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

    impl Scene {
        fn show(self, watchman: &mut Watchman) -> Vec<Alert> {
            let counts = StatusCounts { pending: self.pending, running: self.running, ..StatusCounts::default() };
            let queues = BTreeMap::from([("mail".to_owned(), counts)]);
            let stats = Stats { total: counts, queues, ..Stats::default() };
            let oldest = self.oldest_s.map(|s| ("mail".to_owned(), Duration::from_secs(s)));
            let tally =
                Tally { completed: self.completed, failed: self.failed, retried: self.retried, ..Tally::default() };
            let tallies = (!tally.is_empty()).then_some(("mail", "letter", Priority::Default, &tally));
            let since = NOW.saturating_sub(Duration::from_secs(self.age_s));
            let metrics = Metrics::new(Window::Minute, NOW, since, tallies);
            let sight = Sight { stats: &stats, oldest_waiting: &oldest.into_iter().collect(), metrics: &[metrics] };
            watchman.look(&sight, NOW)
        }
    }

    /// Shows a threshold one scene after another. What it does at each: `+` raises, `-` clears, `.` neither.
    fn watch<const N: usize>(threshold: Threshold, scenes: [Scene; N]) -> String {
        let mut watchman = Watchman::new(vec![threshold]);
        let tell = |scene: Scene| match scene.show(&mut watchman).as_slice() {
            [] => '.',
            [Alert { state: AlertState::Raised, .. }] => '+',
            [Alert { state: AlertState::Cleared, .. }] => '-',
            more => panic!("{more:?}"),
        };
        scenes.into_iter().map(tell).collect()
    }

    #[test]
    fn what_is_above_its_bound_is_raised_once_and_cleared_once() {
        let depths = [0, 1000, 1001, 5000, 1001, 1000, 901, 1001, 900, 901, 1000, 1001, 0];
        for scope in [Scope::from("mail"), Scope::All] {
            let scenes = depths.map(|pending| Scene { pending, ..Scene::default() });
            assert_eq!(watch(Threshold::depth(scope.clone(), 1000), scenes), "..+.....-..+-", "{scope:?}");
            let scenes = depths.map(|running| Scene { running, ..Scene::default() });
            assert_eq!(watch(Threshold::active(scope.clone(), 1000), scenes), "..+.....-..+-", "{scope:?}");
            let scenes = depths.map(|s| Scene { oldest_s: Some(s), ..Scene::default() });
            let threshold = Threshold::oldest_waiting(scope.clone(), Duration::from_secs(1000));
            assert_eq!(watch(threshold, scenes), "..+.....-..+-", "{scope:?}");
        }
    }

    #[test]
    fn a_queue_with_nothing_waiting_has_no_oldest_one() {
        let scenes = [None, Some(61), None].map(|oldest_s| Scene { oldest_s, ..Scene::default() });
        assert_eq!(watch(Threshold::oldest_waiting("mail", Duration::from_secs(60)), scenes), ".+-");
    }

    #[test]
    fn a_bound_of_zero_is_passed_by_one_and_cleared_at_none() {
        let scenes = [0, 1, 1, 0, 3].map(|pending| Scene { pending, ..Scene::default() });
        assert_eq!(watch(Threshold::depth("mail", 0), scenes), ".+.-+");
    }

    #[test]
    fn other_queues_do_not_count() {
        let scene = Scene { pending: 9, running: 9, oldest_s: Some(9), failed: 99, age_s: 600, ..Scene::default() };
        for threshold in [
            Threshold::depth("web", 1),
            Threshold::active("web", 1),
            Threshold::oldest_waiting("web", Duration::from_secs(1)),
            Threshold::error_rate("web", Window::Minute, 0.1),
            Threshold::completion_rate("web", Window::Minute, 1.0),
        ] {
            assert_eq!(watch(threshold.clone(), [scene]), ".", "{threshold}");
        }
    }

    #[test]
    fn an_error_rate_needs_enough_ends_to_be_raised_but_not_to_be_cleared() {
        let scene = |completed, failed, retried| Scene { completed, failed, retried, ..Scene::default() };
        let scenes = [
            scene(0, 1, 0),   // one of one is no alarm
            scene(4, 5, 0),   // nor five of nine
            scene(5, 5, 0),   // half is the bound, and not above it
            scene(5, 3, 3),   // six of eleven
            scene(0, 90, 10), // worse
            scene(54, 46, 0), // better, but not by a tenth
            scene(2, 1, 0),   // one of three
            scene(0, 0, 9),   // few
            scene(0, 0, 10),  // all
            scene(0, 0, 0),   // nothing ends, so nothing fails
        ];
        for scope in [Scope::from("mail"), Scope::All] {
            assert_eq!(watch(Threshold::error_rate(scope, Window::Minute, 0.5), scenes), "...+..-.+-");
        }
        let strict = Threshold::error_rate("mail", Window::Minute, 0.5).min_ended(1);
        assert_eq!(watch(strict, [scene(0, 1, 0)]), "+");
    }

    #[test]
    fn a_completion_rate_is_raised_below_its_bound_while_there_is_work() {
        // The window is 60 s to 65 s long, and just 60 s at this moment.
        assert_eq!(NOW.since(Window::Minute.first_wanted(NOW)), Duration::from_secs(60));
        let scene =
            |completed, running, oldest_s, age_s| Scene { completed, running, oldest_s, age_s, ..Scene::default() };
        let scenes = [
            scene(0, 0, None, 600),      // nothing to do
            scene(0, 1, None, 59),       // counted for too short a time
            scene(600, 1, None, 600),    // 10 per second is the bound, and not below it
            scene(599, 1, None, 600),    // below
            scene(0, 0, Some(1), 600),   // jobs wait
            scene(659, 1, None, 600),    // better, but not by a tenth
            scene(660, 1, None, 600),    // well
            scene(300, 0, Some(0), 600), // below again
            scene(300, 0, None, 600),    // nothing to do
        ];
        for scope in [Scope::from("mail"), Scope::All] {
            assert_eq!(watch(Threshold::completion_rate(scope, Window::Minute, 10.0), scenes), "...+..-+-");
        }
    }

    #[test]
    fn a_window_that_is_not_shown_changes_nothing() {
        let threshold = Threshold::error_rate("mail", Window::Hour, 0.5);
        assert_eq!(watch(threshold, [Scene { failed: 100, ..Scene::default() }]), ".");
    }

    #[test]
    fn thresholds_are_watched_apart_and_tell_what_was_seen() -> serde_json::Result<()> {
        let mut watchman = Watchman::new(vec![
            Threshold::depth("mail", 10),
            Threshold::depth("mail", 20).name("very full"),
            Threshold::error_rate(Scope::All, Window::Minute, 0.5),
            Threshold::completion_rate("mail", Window::Day, 1.0),
        ]);
        assert!(!watchman.is_empty() && Watchman::new(Vec::new()).is_empty());
        assert_eq!(watchman.windows(), [Window::Minute, Window::Day]);
        assert_eq!(watchman.raised().count(), 0);

        let alerts = Scene { pending: 15, failed: 30, completed: 10, ..Scene::default() }.show(&mut watchman);
        let told: Vec<String> = alerts.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["depth of mail above 10: 15", "error rate of all queues above 0.5 in the last minute: 0.75"]);
        assert_eq!(watchman.raised().cloned().collect::<Vec<_>>(), alerts);
        assert_eq!(
            serde_json::to_value(&alerts[0])?,
            serde_json::json!({
                "threshold": "depth of mail above 10", "state": "raised", "measure": "depth", "queue": "mail",
                "value": 15.0, "bound": 10.0, "at": NOW.to_string(),
            })
        );

        let alerts = Scene { pending: 25, ..Scene::default() }.show(&mut watchman);
        let told: Vec<String> = alerts.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["very full: 25", "error rate of all queues above 0.5 in the last minute: well again at 0"]);
        let raised: Vec<&str> = watchman.raised().map(|alert| &*alert.threshold).collect();
        assert_eq!(raised, ["depth of mail above 10", "very full"]);
        Ok(())
    }
}
