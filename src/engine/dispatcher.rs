//! The thread that takes turns, and owns time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::desk::{Desk, Finish, Rest};
use crate::engine::maintenance::Maintenance;
use crate::engine::pool::Pool;
use crate::engine::vitals::Vitals;
use crate::engine::worker::timed_out;
use crate::handler::context::NOTE_EVERY;
use crate::model::health::EngineState;
use crate::store::finish::{Retry, Verdict};
use crate::store::jittered;

/// The longest rest while jobs run, over which somebody must watch.
const REST_WHILE_BUSY: Duration = Duration::from_millis(4);
/// The wait after a turn that failed, doubled each time up to the longest.
const FAILED_WAIT: Duration = Duration::from_millis(20);
const FAILED_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often timeouts and duties are looked at, while jobs run and while none do.
const DUTIES_EVERY: Duration = Duration::from_millis(2);
const DUTIES_IDLE: Duration = Duration::from_millis(50);
/// How many failed turns the shutdown bears before it gives up what could not be written.
const LAST_TURNS: u32 = 20;
/// After how long it gives up, however few they were.
const LAST_TURNS_TIME: Duration = Duration::from_secs(1);

/// The dispatcher's own belongings.
pub(crate) struct Dispatcher {
    pub(crate) desk: Arc<Desk>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) maintenance: Maintenance,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) vitals: Arc<Vitals>,
}

impl Dispatcher {
    /// Takes turns until it is told to stop, and then until nothing waits any more.
    pub(crate) fn run(self) {
        let (desk, pool, vitals) = (self.desk.clone(), self.pool.clone(), self.vitals.clone());
        if !vitals.dispatcher.live(|| self.take_turns()) {
            // A bug of ours. What is not committed will be rescued by the next engine on the file.
            log::error!("the dispatcher panicked: the engine is closed");
            vitals.advance(EngineState::ShuttingDown);
            pool.close();
            desk.close();
        }
    }

    fn take_turns(mut self) {
        let (mut rest, mut busy) = (Duration::ZERO, false);
        let mut failed_wait = FAILED_WAIT;
        let (mut duties_at, mut notes_at) = (Duration::ZERO, Duration::ZERO);
        while !self.stop.load(Ordering::SeqCst) {
            let attended = self.attend(rest, busy);
            let failed = attended.as_ref().map_or(true, |look| look.failed);
            busy = attended.as_ref().is_ok_and(|look| look.busy);
            rest = if failed {
                let wait = jittered(failed_wait, now_ns(&self.desk));
                failed_wait = (2 * failed_wait).min(FAILED_WAIT_MAX);
                wait
            } else {
                failed_wait = FAILED_WAIT;
                attended.map_or(FAILED_WAIT, |look| self.rest(look))
            };
            let now = self.desk.clock().monotonic();
            if now >= duties_at {
                duties_at = now + if self.pool.is_idle() { DUTIES_IDLE } else { DUTIES_EVERY };
                if enforce(&self.desk, &self.pool) {
                    rest = Duration::ZERO;
                }
                if now >= notes_at && !self.pool.is_idle() {
                    notes_at = now + NOTE_EVERY;
                    if self.desk.note_next_turn(|| self.pool.notes()) {
                        rest = Duration::ZERO;
                    }
                }
                self.maintenance.tick();
            }
        }
        let began = self.desk.clock().monotonic();
        for _ in 0..LAST_TURNS {
            match self.attend(Duration::ZERO, false) {
                Ok(look) if !look.failed => break,
                // Each of them may wait for another writer.
                _ if self.desk.clock().monotonic().saturating_sub(began) > LAST_TURNS_TIME => break,
                _ => {}
            }
        }
    }

    fn attend(&self, rest: Duration, busy: bool) -> crate::error::Result<Rest> {
        self.desk.attend(rest, busy).inspect_err(|error| {
            let level = if self.desk.contact().is_troubled() { log::Level::Debug } else { log::Level::Error };
            log::log!(level, "the dispatcher cannot look at the database: {error}");
        })
    }

    fn rest(&self, look: Rest) -> Duration {
        if look.more {
            return Duration::ZERO;
        }
        if self.pool.is_idle() { look.wait } else { look.wait.min(REST_WHILE_BUSY) }
    }
}

fn now_ns(desk: &Desk) -> u64 {
    u64::try_from(desk.clock().monotonic().as_nanos()).unwrap_or(u64::MAX)
}

/// Ends the attempts whose time is up, and gives back what was claimed ahead for nobody. Tells whether that left
/// anything to write.
pub(crate) fn enforce(desk: &Desk, pool: &Pool) -> bool {
    pool.spread();
    let mut ends = Vec::new();
    for run in pool.overdue() {
        let job = &run.claim.job;
        log::warn!("{} {} ignores its timeout: attempt {} is abandoned", job.kind_name(), job.id, job.attempt);
        let error = "the time of the attempt is up, and its handler ignores it".to_owned();
        let verdict = timed_out(error, Retry::Backoff);
        let (claim, worker, slot) = (run.claim.clone(), Some(run.worker), Some(run.slot));
        ends.push(Finish { claim, verdict, worker, slot, note: None });
    }
    let stale = pool.stale().into_iter();
    ends.extend(stale.map(|claim| Finish { claim, verdict: Verdict::Returned, worker: None, slot: None, note: None }));
    let any = !ends.is_empty();
    desk.finish_next_turn(ends);
    any
}
