//! Counters, fed by transitions alone.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::model::event::{Cause, Fate, Ticks, Transition};
use crate::model::tally::Tally;

/// Counts what this process commits, by lane, until it is written.
///
/// What is taken belongs to the moment of the taking, so it should be taken at least once a second or so: the finest
/// tallies in the file are for five.
#[derive(Default)]
pub(crate) struct Recorder {
    /// As many as there are lanes, at most.
    tallies: Mutex<HashMap<i64, Tally>>,
}

impl Recorder {
    /// Counts what a turn has committed.
    pub(crate) fn observe(&self, transitions: &[Transition]) {
        if transitions.is_empty() {
            return;
        }
        let mut tallies = self.tallies.lock();
        // Neighbours mostly share a lane, which is then looked up once.
        for run in transitions.chunk_by(|left, right| left.lane == right.lane) {
            let tally = tallies.entry(run[0].lane).or_default();
            run.iter().for_each(|transition| count(tally, transition));
        }
    }

    /// Counts the ticks of schedules that a turn has committed.
    pub(crate) fn observe_ticks(&self, ticks: &[Ticks]) {
        if ticks.is_empty() {
            return;
        }
        let mut tallies = self.tallies.lock();
        for Ticks { lane, fate } in ticks {
            let tally = tallies.entry(*lane).or_default();
            match fate {
                Fate::Enqueued(late) => {
                    tally.ticked += 1;
                    if let Some(late) = late {
                        tally.tick_lateness.record(*late);
                    }
                }
                Fate::Missed(count) => tally.ticks_missed += count,
                Fate::Skipped => tally.ticks_skipped += 1,
            }
        }
    }

    /// Whether nothing is to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.tallies.lock().is_empty()
    }

    /// What was counted since the last time, by lane, to be written.
    pub(crate) fn take(&self) -> HashMap<i64, Tally> {
        let mut taken = std::mem::take(&mut *self.tallies.lock());
        taken.retain(|_, tally| !tally.is_empty());
        taken
    }

    /// Takes back what could not be written.
    pub(crate) fn give_back(&self, taken: HashMap<i64, Tally>) {
        let mut tallies = self.tallies.lock();
        for (lane, tally) in taken {
            tallies.entry(lane).or_default().merge(&tally);
        }
    }
}

/// What a transition counts as.
fn count(tally: &mut Tally, transition: &Transition) {
    let Transition { from, to, cause, waited, ran, .. } = transition;
    match cause {
        Cause::Enqueued => tally.enqueued += 1,
        Cause::Retried => tally.retried += 1,
        Cause::Snoozed => tally.snoozed += 1,
        Cause::Returned => tally.returned += 1,
        Cause::Rescued => tally.rescued += 1,
        _ => {}
    }
    if let Some(to) = to
        && from.as_ref() != Some(to)
    {
        tally.count(*to);
    }
    if let Some(waited) = waited {
        tally.waited.record(*waited);
    }
    if let Some(ran) = ran {
        tally.ran.record(*ran);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::id::JobId;
    use crate::model::job::Status;
    use crate::model::time::Timestamp;

    const WAITED: Duration = Duration::from_millis(3);
    const RAN: Duration = Duration::from_millis(40);

    fn transition(lane: i64, from: Option<Status>, to: Option<Status>, cause: Cause) -> Transition {
        Transition {
            job: JobId::from_raw(1),
            lane,
            share: None,
            from,
            to,
            cause,
            at: Timestamp::EPOCH,
            attempt: 1,
            waited: None,
            ran: None,
        }
    }

    fn claimed(lane: i64) -> Transition {
        let claimed = transition(lane, Some(Status::Pending), Some(Status::Running), Cause::Claimed);
        Transition { waited: Some(WAITED), ..claimed }
    }

    fn completed(lane: i64) -> Transition {
        let ended = transition(lane, Some(Status::Running), Some(Status::Completed), Cause::Ended);
        Transition { ran: Some(RAN), ..ended }
    }

    /// What is counted, as words.
    fn counted(transition: Transition) -> String {
        let mut tally = Tally::default();
        count(&mut tally, &transition);
        let counts = serde_json::to_value(tally).unwrap();
        counts.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_each_transition_counts_as() {
        use Status::{Cancelled, Completed, Created, Expired, Failed, Pending, Running};
        for (from, to, cause, expected) in [
            (None, Some(Created), Cause::Enqueued, "enqueued"),
            (None, Some(Pending), Cause::Enqueued, "enqueued"),
            // A new job that a worker is free for, and a tracked one that begins in any status.
            (None, Some(Running), Cause::Enqueued, "enqueued started"),
            (None, Some(Failed), Cause::Enqueued, "enqueued failed"),
            (Some(Created), Some(Pending), Cause::Operator, ""),
            (Some(Created), Some(Pending), Cause::Admitted, ""),
            (Some(Created), Some(Running), Cause::Operator, "started"),
            (Some(Pending), Some(Running), Cause::Claimed, "started"),
            (Some(Running), Some(Completed), Cause::Ended, "completed"),
            (Some(Running), Some(Failed), Cause::Ended, "failed"),
            (Some(Running), Some(Pending), Cause::Retried, "retried"),
            (Some(Running), Some(Pending), Cause::Snoozed, "snoozed"),
            (Some(Running), Some(Pending), Cause::Returned, "returned"),
            (Some(Running), Some(Pending), Cause::Rescued, "rescued"),
            (Some(Running), Some(Failed), Cause::Rescued, "failed rescued"),
            (Some(Running), Some(Cancelled), Cause::Rescued, "cancelled rescued"),
            (Some(Pending), Some(Cancelled), Cause::Cancelled, "cancelled"),
            (Some(Running), Some(Cancelled), Cause::Cancelled, "cancelled"),
            (Some(Pending), Some(Expired), Cause::Expired, "expired"),
            (Some(Failed), Some(Pending), Cause::Operator, ""),
            (Some(Pending), Some(Pending), Cause::Operator, ""),
            (Some(Running), Some(Running), Cause::Operator, ""),
            (Some(Completed), None, Cause::Deleted, ""),
        ] {
            let mut expected: Vec<&str> = expected.split_whitespace().collect();
            expected.sort_unstable();
            assert_eq!(counted(transition(1, from, to, cause)), expected.join(" "), "{from:?} to {to:?}, {cause}");
        }
    }

    #[test]
    fn times_are_counted_with_the_transition_that_tells_them() {
        let recorder = Recorder::default();
        recorder.observe(&[claimed(1), completed(1)]);
        let tally = &recorder.take()[&1];
        assert_eq!((tally.waited.count(), tally.waited.sum()), (1, WAITED));
        assert_eq!((tally.ran.count(), tally.ran.sum()), (1, RAN));
    }

    #[test]
    fn ticks_count_as_what_became_of_them() {
        let recorder = Recorder::default();
        recorder.observe_ticks(&[]);
        assert!(recorder.is_empty());
        let fates = [Fate::Enqueued(Some(WAITED)), Fate::Enqueued(None), Fate::Missed(7), Fate::Skipped];
        recorder.observe_ticks(&fates.map(|fate| Ticks { lane: 2, fate }));
        let tally = &recorder.take()[&2];
        assert_eq!((tally.ticked, tally.ticks_missed, tally.ticks_skipped), (2, 7, 1));
        assert_eq!((tally.tick_lateness.count(), tally.tick_lateness.sum()), (1, WAITED));
    }

    #[test]
    fn lanes_are_counted_apart_and_taken_once() {
        let recorder = Recorder::default();
        recorder.observe(&[]);
        assert!(recorder.is_empty());
        recorder.observe(&[claimed(1), claimed(1), claimed(2), claimed(1)]);
        assert!(!recorder.is_empty());
        let taken = recorder.take();
        assert_eq!((taken.len(), taken[&1].started, taken[&2].started), (2, 3, 1));
        assert!(recorder.is_empty());
        assert!(recorder.take().is_empty());
    }

    #[test]
    fn what_could_not_be_written_is_counted_with_what_came_since() {
        let recorder = Recorder::default();
        recorder.observe(&[claimed(1), claimed(2)]);
        let taken = recorder.take();
        recorder.observe(&[completed(1), claimed(3)]);
        recorder.give_back(taken);
        let taken = recorder.take();
        assert_eq!((taken[&1].started, taken[&1].completed), (1, 1));
        assert_eq!((taken[&2].started, taken[&3].started), (1, 1));
    }

    #[test]
    fn lanes_where_nothing_counts_are_not_written() {
        let recorder = Recorder::default();
        recorder.observe(&[transition(1, Some(Status::Completed), None, Cause::Deleted)]);
        assert!(recorder.take().is_empty());
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let recorder = Recorder::default();
        let written = Mutex::new(Tally::default());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..500).for_each(|_| recorder.observe(&[claimed(1), completed(1)])));
            }
            scope.spawn(|| {
                for n in 0..200 {
                    match recorder.take() {
                        taken if n % 3 == 0 => recorder.give_back(taken),
                        taken => taken.values().for_each(|tally| written.lock().merge(tally)),
                    }
                }
            });
        });
        recorder.take().values().for_each(|tally| written.lock().merge(tally));
        let written = written.into_inner();
        assert_eq!((written.started, written.completed, written.ran.count()), (1500, 1500, 1500));
    }
}
