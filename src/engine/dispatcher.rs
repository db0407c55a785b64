//! The thread that takes turns, and owns time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::desk::{Desk, Finish, Rest};
use crate::engine::maintenance::Maintenance;
use crate::engine::pool::Pool;
use crate::engine::worker::timed_out;
use crate::store::finish::{Retry, Verdict};

/// How often an idle dispatcher looks whether another process has committed something.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// The same, while a commit of the application's own is expected.
const LOOK_EAGERLY: Duration = Duration::from_micros(250);
/// The wait after a turn that failed, doubled each time up to the longest.
const FAILED_WAIT: Duration = Duration::from_millis(20);
const FAILED_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often time-outs and duties are looked at.
const DUTIES_EVERY: Duration = Duration::from_millis(2);
/// How many failed turns the shutdown bears before it gives up what could not be written.
const LAST_TURNS: u32 = 20;

/// The dispatcher's own belongings.
pub(crate) struct Dispatcher {
    pub(crate) desk: Arc<Desk>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) maintenance: Maintenance,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Dispatcher {
    /// Takes turns until it is told to stop, and then until nothing waits any more.
    pub(crate) fn run(mut self) {
        let _closes = ClosesOnPanic(self.desk.clone());
        let mut rest = Duration::ZERO;
        let mut failed_wait = FAILED_WAIT;
        let mut duties_at = Duration::ZERO;
        while !self.stop.load(Ordering::SeqCst) {
            let attended = self.attend(rest);
            let failed = attended.as_ref().map_or(true, |look| look.failed);
            rest = if failed {
                let wait = failed_wait;
                failed_wait = (2 * failed_wait).min(FAILED_WAIT_MAX);
                wait
            } else {
                failed_wait = FAILED_WAIT;
                attended.map_or(LOOK_EVERY, |look| self.rest(look))
            };
            let now = self.desk.clock().monotonic();
            if now >= duties_at {
                duties_at = now + DUTIES_EVERY;
                if enforce(&self.desk, &self.pool) {
                    rest = Duration::ZERO;
                }
                self.maintenance.tick();
            }
        }
        for _ in 0..LAST_TURNS {
            match self.attend(Duration::ZERO) {
                Ok(look) if !look.failed => break,
                _ => {}
            }
        }
    }

    fn attend(&self, rest: Duration) -> crate::error::Result<Rest> {
        self.desk.attend(rest).inspect_err(|error| log::error!("the dispatcher cannot look at the database: {error}"))
    }

    fn rest(&self, look: Rest) -> Duration {
        if look.more {
            return Duration::ZERO;
        }
        let longest = if look.eager { LOOK_EAGERLY } else { LOOK_EVERY };
        match look.due {
            Some(due) => due.since(self.desk.clock().now()).min(longest),
            None => longest,
        }
    }
}

/// Closes the desk of a dispatcher that panics, for nobody else would answer those who wait.
struct ClosesOnPanic(Arc<Desk>);

impl Drop for ClosesOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("the dispatcher panicked, which closes the engine");
            self.0.close();
        }
    }
}

/// Ends the attempts whose time is up, and gives back what was claimed ahead for nobody. Tells whether that left
/// anything to write.
pub(crate) fn enforce(desk: &Desk, pool: &Pool) -> bool {
    let mut ends = Vec::new();
    for run in pool.overdue() {
        let job = &run.claim.job;
        log::warn!("{} {} ignores its timeout: attempt {} is abandoned", job.kind, job.id, job.attempt);
        let error = "the time of the attempt is up, and its handler ignores it".to_owned();
        let verdict = timed_out(error, Retry::Backoff);
        ends.push(Finish { claim: run.claim.clone(), verdict, worker: Some(run.worker) });
    }
    ends.extend(pool.stale().into_iter().map(|claim| Finish { claim, verdict: Verdict::Returned, worker: None }));
    let any = !ends.is_empty();
    desk.finish_next_turn(ends);
    any
}
