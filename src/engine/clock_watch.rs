//! Notices when the wall clock has jumped, or when the machine has slept.

use std::time::Duration;

use crate::model::time::Timestamp;

/// By how much the wall clock must gain on the steady one, or fall behind it, between two looks. A clock that is
/// corrected in small steps does not.
const JUMP: Duration = Duration::from_secs(3);
/// How long nobody must have looked who looks many times a second. Where the steady clock goes on while the machine
/// sleeps, this tells of it.
const SLEEP: Duration = Duration::from_secs(30);

/// Compares the wall clock with the steady one.
#[derive(Debug, Default)]
pub(crate) struct ClockWatch {
    /// What both showed at the last look.
    last: Option<(Timestamp, Duration)>,
}

/// What was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noticed {
    /// The wall clock has been set forward by so much, or the machine has slept.
    Forward(Duration),
    /// The wall clock has been set back by so much.
    Back(Duration),
    /// Nobody has looked for so long.
    Slept(Duration),
}

impl ClockWatch {
    /// Looks at both clocks. `always`: it is looked many times a second, unless the machine or the process rests.
    pub(crate) fn look(&mut self, now: Timestamp, monotonic: Duration, always: bool) -> Option<Noticed> {
        let (last_now, last_monotonic) = self.last.replace((now, monotonic))?;
        let passed = monotonic.saturating_sub(last_monotonic);
        let expected = last_now.saturating_add(passed);
        if now.since(expected) > JUMP {
            Some(Noticed::Forward(now.since(expected)))
        } else if expected.since(now) > JUMP {
            Some(Noticed::Back(expected.since(now)))
        } else {
            (always && passed > SLEEP).then_some(Noticed::Slept(passed))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_and_sleep_are_told_from_time_that_passes() {
        let at = |secs: u64| Timestamp::EPOCH.saturating_add(Duration::from_secs(secs));
        let secs = Duration::from_secs;
        for (now, monotonic, always, expected) in [
            (1010, 10, true, None),
            (1013, 10, true, None),
            (1014, 10, true, Some(Noticed::Forward(secs(4)))),
            (1007, 10, true, None),
            (1006, 10, true, Some(Noticed::Back(secs(4)))),
            (500, 10, true, Some(Noticed::Back(secs(510)))),
            (9000, 0, true, Some(Noticed::Forward(secs(8000)))),
            (1030, 30, true, None),
            (1031, 31, true, Some(Noticed::Slept(secs(31)))),
            (1031, 31, false, None),
            (1036, 31, false, Some(Noticed::Forward(secs(5)))),
        ] {
            let mut watch = ClockWatch::default();
            assert_eq!(watch.look(at(1000), secs(0), always), None);
            assert_eq!(watch.look(at(now), secs(monotonic), always), expected, "{now} {monotonic}");
            assert_eq!(watch.look(at(now + 1), secs(monotonic + 1), always), None, "it is told once");
        }
    }
}
