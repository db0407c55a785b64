//! What the engine and its threads tell of themselves: what it is at, and what has become of each.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{ErrorKind, Result};
use crate::model::batch::PollCycle;
use crate::model::health::{EngineState, PollerHealth, ThreadState};
use crate::model::time::Timestamp;

/// What the engine and its threads tell of themselves.
pub(crate) struct Vitals {
    state: Mutex<EngineState>,
    changed: Condvar,
    pub(crate) dispatcher: Fate,
    pub(crate) poller: Fate,
    pub(crate) listener: Fate,
    polls: Mutex<Polls>,
}

/// What has become of a thread.
#[derive(Default)]
pub(crate) struct Fate(AtomicU8);

#[derive(Default)]
struct Polls {
    /// Since when a cycle is under way, on the monotonic clock.
    began: Option<Duration>,
    last_at: Option<Timestamp>,
    last: Option<PollCycle>,
    error: Option<String>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            state: Mutex::new(EngineState::Initializing),
            changed: Condvar::new(),
            dispatcher: Fate::default(),
            poller: Fate::default(),
            listener: Fate::default(),
            polls: Mutex::default(),
        }
    }
}

impl Vitals {
    pub(crate) fn state(&self) -> EngineState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes forward to a state. One that has been passed stays passed.
    pub(crate) fn advance(&self, state: EngineState) {
        let mut now = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *now = state.max(*now);
        self.changed.notify_all();
    }

    /// Waits until a state is reached or passed, at most for so long if a time is given. Tells whether it is.
    pub(crate) fn wait_for(&self, state: EngineState, timeout: Option<Duration>) -> bool {
        let now = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = |now: &mut EngineState| *now < state;
        match timeout {
            Some(timeout) => {
                let waited = self.changed.wait_timeout_while(now, timeout, before);
                *waited.unwrap_or_else(PoisonError::into_inner).0 >= state
            }
            None => *self.changed.wait_while(now, before).unwrap_or_else(PoisonError::into_inner) >= state,
        }
    }

    pub(crate) fn cycle_begins(&self, now: Duration) {
        self.polls().began = Some(now);
    }

    /// Takes note of what a cycle came to, and tells whether that is another thing than the cycle before: that it failed
    /// or did not.
    pub(crate) fn cycle_ended(&self, at: Timestamp, outcome: &Result<PollCycle>) -> bool {
        let mut polls = self.polls();
        let failed_before = polls.error.is_some();
        (polls.began, polls.last_at) = (None, Some(at));
        // A shutdown that did not wait for it is no failure.
        let failure = outcome.as_ref().err().filter(|error| error.kind() != ErrorKind::Shutdown);
        polls.error = failure.map(ToString::to_string);
        if let Ok(cycle) = outcome
            && cycle.total > 0
        {
            polls.last = Some(cycle.clone());
        }
        polls.error.is_some() != failed_before
    }

    pub(crate) fn poller_health(&self, enabled: bool, providers: usize, now: Duration) -> PollerHealth {
        let polls = self.polls();
        PollerHealth {
            thread: self.poller.get(),
            enabled,
            providers,
            last_cycle_at: polls.last_at,
            last_cycle: polls.last.clone(),
            cycle_for: polls.began.map(|began| now.saturating_sub(began)),
            error: polls.error.clone(),
        }
    }

    fn polls(&self) -> std::sync::MutexGuard<'_, Polls> {
        self.polls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fate {
    const ALL: [ThreadState; 4] =
        [ThreadState::Absent, ThreadState::Running, ThreadState::Ended, ThreadState::Panicked];

    pub(crate) fn get(&self) -> ThreadState {
        Self::ALL[usize::from(self.0.load(Ordering::SeqCst)) % Self::ALL.len()]
    }

    /// Says that a thread is about to be started, or that it could not be.
    pub(crate) fn begins(&self, begins: bool) {
        self.0.store(u8::from(begins), Ordering::SeqCst);
    }

    /// Lives the life of a thread, whose end is noted however it comes. False if it panicked.
    pub(crate) fn live(&self, life: impl FnOnce()) -> bool {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life)).is_ok();
        self.0.store(if ended { 2 } else { 3 }, Ordering::SeqCst);
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_was_passed_does_not_come_back() {
        let vitals = Vitals::default();
        assert_eq!(vitals.state(), EngineState::Initializing);
        assert!(!vitals.wait_for(EngineState::Active, Some(Duration::ZERO)));
        vitals.advance(EngineState::Stopped);
        vitals.advance(EngineState::Active);
        assert_eq!(vitals.state(), EngineState::Stopped);
        assert!(vitals.wait_for(EngineState::Active, None));
    }
}
