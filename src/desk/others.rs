//! Others on the same file: how they are rung, how their commits are noticed, and for how long the dispatcher may rest
//! meanwhile.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::desk::{Core, Desk, nanos};
use crate::model::event::Event;
use crate::ring::{self, Ring};

/// How often a resting dispatcher looks whether another process has committed something: while a commit is expected any
/// moment, if nobody can ring for us, and if others do but a ring may be lost.
const LOOK_EAGERLY: Duration = Duration::from_micros(250);
const LOOK_EVERY: Duration = Duration::from_millis(4);
const LOOK_LISTENING: Duration = Duration::from_millis(50);
/// For how long after an enqueueing in the application's own transaction its commit is looked for eagerly.
const EAGER: Duration = Duration::from_millis(50);
/// Other engines are rung no more often than this. Who has been rung looks eagerly for longer than that.
const RING_EVERY: Duration = Duration::from_millis(2);
const EAGER_AFTER_RING: Duration = Duration::from_millis(4);

/// What a look around came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// How long there will be nothing to do unless somebody hands something in.
    pub(crate) wait: Duration,
    /// The last turn failed, and what it had to do is still to be done.
    pub(crate) failed: bool,
    /// There was something to do.
    pub(crate) busy: bool,
    /// More jobs have expired, more schedules are due, more jobs are let go or more follows ends than one turn could do.
    pub(crate) more: bool,
}

impl Desk {
    /// Tells that the application is about to commit a transaction in which it has enqueued.
    pub(crate) fn expect_commit(&self) {
        self.look_eagerly(EAGER);
        if let Some(mut core) = self.core.try_lock() {
            // Without a dispatcher nobody else keeps our memory of the other engines fresh.
            if self.is_attended() || core.store.look().is_ok() {
                ring::ring(core.store.bells(), Ring::Expected);
            }
        }
    }

    /// Hears that another process has committed something, or that its application is about to.
    pub(crate) fn rung(&self, ring: Ring) {
        self.look_eagerly(match ring {
            Ring::Committed => EAGER_AFTER_RING,
            Ring::Expected => EAGER,
        });
    }

    fn look_eagerly(&self, time: Duration) {
        let until = nanos(self.clock.monotonic().saturating_add(time));
        self.eager_until_ns.fetch_max(until, Ordering::Relaxed);
        self.wake();
    }

    /// Rings for the other engines on the file, unless that has just been done.
    pub(super) fn ring_others(&self, core: &Core) {
        if core.store.bells().is_empty() {
            return;
        }
        let now = self.clock.monotonic();
        let rang_at_ns = self.rang_at_ns.load(Ordering::Relaxed);
        if rang_at_ns == 0 || now.saturating_sub(Duration::from_nanos(rang_at_ns)) >= RING_EVERY {
            self.rang_at_ns.store(nanos(now).max(1), Ordering::Relaxed);
            ring::ring(core.store.bells(), Ring::Committed);
        }
    }

    /// Says whether others can ring for us, so that an idle engine need not look often.
    pub(crate) fn set_listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::SeqCst);
    }

    /// Tells that somebody else has written, if somebody has.
    pub(super) fn tell_of_others(&self, core: &mut Core) {
        if core.store.take_changed_by_others() {
            self.waiters.notify_all();
            self.press.publish(&[Event::Elsewhere]);
            if self.is_eager() {
                // It may be what our own application was about to commit, for which nobody else has rung.
                self.ring_others(core);
            }
        }
    }

    /// Decides for how long the dispatcher may rest. The turn that somebody else takes next finds it written down.
    pub(super) fn rest(&self, core: &Core, busy: bool, failed: bool) -> Rest {
        let now = self.clock.now();
        let longest = if self.is_eager() {
            LOOK_EAGERLY
        } else if self.listening.load(Ordering::SeqCst) {
            LOOK_LISTENING
        } else {
            LOOK_EVERY
        };
        let wait = core.store.next_due(now).map_or(longest, |due| due.since(now).min(longest));
        self.rest_until_us.store(now.saturating_add(wait).as_micros(), Ordering::SeqCst);
        let more = core.store.is_expiry_due(now)
            || self.is_tick_due(core, now)
            || core.store.is_gate_due(now)
            || core.store.has_flow_work()
            || core.missed && self.has_work(core, now);
        Rest { wait, failed, busy, more }
    }

    pub(super) fn is_eager(&self) -> bool {
        self.eager_until_ns.load(Ordering::Relaxed) > nanos(self.clock.monotonic())
    }
}
