//! What comes due by itself: the rescue of dead engines' jobs, pruning, checkpoints, vacuum.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::desk::Desk;
use crate::engine::clock_watch::{ClockWatch, Noticed};
use crate::error::{Error, Result};
use crate::liveness::{Liveness, SILENCE_MAX, find_dead};
use crate::model::alert::{AlertState, Sight, Watchman};
use crate::model::event::Event;
use crate::model::id::ScheduleId;
use crate::model::job::Status;
use crate::model::metrics::{Metrics, Window};
use crate::model::retention::Retention;
use crate::model::threshold::Threshold;
use crate::model::time::Timestamp;
use crate::store::connect::{storage_error, with_patience};
use crate::store::delays::DelaysLeft;
use crate::store::housekeeping::PruneRange;
use crate::store::instance::{Instance, is_closed, open_instances};
use crate::store::schedule::read as read_schedules;
use crate::store::{read, tally};

/// How often the engine looks whether another one has died.
const RESCUE_EVERY: Duration = Duration::from_millis(200);
/// How often an engine without a lock tells that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// How often schedules are put right that another engine has reckoned under a clock ahead of ours, at most.
const PUT_RIGHT_EVERY: Duration = Duration::from_secs(60);
/// How often the size of the WAL file is looked at.
const WAL_EVERY: Duration = Duration::from_secs(1);
/// How often the caches of a busy process are emptied.
const CACHE_EVERY: Duration = Duration::from_secs(5);
/// How often a pruning begins.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// How long the writer is left to others between two slices of pruning.
const SLICE_EVERY: Duration = Duration::from_millis(20);
/// How many jobs a slice looks at.
const SLICE_JOBS: usize = 200;
/// How many delayed jobs are looked at in one turn.
const SLICE_DELAYS: usize = 1000;
/// How many keys of limits that no job names are forgotten at a time.
const GATES_GO: usize = 10_000;
/// How many pages are given back to the file system at a time.
const SLICE_PAGES: u32 = 256;
/// Free pages that are kept for the jobs to come.
const FREE_PAGES_KEEP: i64 = 1024;
/// A WAL file longer than this is cut by force, and if that fails, somebody is told.
const WAL_MAX_BYTES: u64 = 64 << 20;
/// How long a forced checkpoint waits for readers.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(20);
/// How often the thresholds are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(1);
const WARN_EVERY: Duration = Duration::from_secs(60);
/// A workflow that is being written, and to which nothing has been added for so long, is nobody's any more.
const DRAFTS_KEEP: Duration = Duration::from_secs(3600);
/// Rows of engines that ended are kept this long, for attempts refer to them.
const INSTANCES_KEEP: Duration = Duration::from_secs(90 * 86_400);

/// When each duty is due next, on the monotonic clock.
pub(crate) struct Maintenance {
    desk: Arc<Desk>,
    database: PathBuf,
    own: i64,
    liveness: Arc<Liveness>,
    retention: Retention,
    /// Whether heartbeats tell that we live.
    heartbeats: bool,
    beat_at: Duration,
    rescue_at: Duration,
    wal_at: Duration,
    cache_at: Duration,
    prune_at: Duration,
    warn_at: Duration,
    watch_at: Duration,
    watchman: Watchman,
    /// What was read of each window for the thresholds, and when, on the monotonic clock.
    seen: Vec<(Duration, Metrics)>,
    /// What is left of the pruning under way.
    pruning: Vec<PruneRange>,
    /// Lines of the audit from before this are still to go.
    auditing: Option<Timestamp>,
    /// Workflows that ended before this, and whose jobs are gone, are still to go.
    forgetting: Option<Timestamp>,
    wal_path: PathBuf,
    clock_watch: ClockWatch,
    /// Schedules behind this one are still to be put right, after the clock was set back.
    schedules_from: Option<ScheduleId>,
    /// Delays that are still to be put right after that.
    delays: Option<DelaysLeft>,
    /// Not before this it is looked again whether another engine's clock ran ahead.
    ahead_at: Duration,
}

impl Maintenance {
    pub(crate) fn new(
        desk: Arc<Desk>,
        database: PathBuf,
        own: i64,
        liveness: Arc<Liveness>,
        retention: Retention,
        heartbeats: bool,
        thresholds: Vec<Threshold>,
    ) -> Self {
        let mut wal_path = database.clone().into_os_string();
        wal_path.push("-wal");
        let now = desk.clock().monotonic();
        Self {
            desk,
            database,
            own,
            liveness,
            retention,
            heartbeats,
            beat_at: now,
            rescue_at: now + RESCUE_EVERY,
            wal_at: now + WAL_EVERY,
            cache_at: now + CACHE_EVERY,
            prune_at: now + PRUNE_EVERY,
            warn_at: now,
            watch_at: now,
            watchman: Watchman::new(thresholds),
            seen: Vec::new(),
            pruning: Vec::new(),
            auditing: None,
            forgetting: None,
            wal_path: wal_path.into(),
            clock_watch: ClockWatch::default(),
            schedules_from: None,
            delays: None,
            ahead_at: now,
        }
    }

    /// Does what is due. Failures are logged, and the duty comes due again.
    pub(crate) fn tick(&mut self) {
        let now = self.desk.clock().monotonic();
        self.watch_clock(true);
        if self.schedules_from.is_some() {
            let outcome = self.put_schedules_right();
            self.log_failure("reckoning of schedules", outcome);
        }
        if self.delays.is_some() {
            let outcome = self.put_delays_right();
            self.log_failure("reckoning of delays", outcome);
        }
        if self.heartbeats && now >= self.beat_at {
            self.beat_at = now + BEAT_EVERY;
            self.log_failure("heartbeat", self.beat());
        }
        if now >= self.rescue_at {
            self.rescue_at = now + RESCUE_EVERY;
            if now >= self.ahead_at && self.desk.with_store(|store| store.ran_ahead(self.desk.clock().now())) {
                // If the clocks of two machines differ, they put each other right for ever.
                self.ahead_at = now + PUT_RIGHT_EVERY;
                self.schedules_from = self.schedules_from.or(Some(ScheduleId::from_raw(0)));
            }
            let outcome = self.rescue();
            self.log_failure("rescue", outcome);
        }
        if now >= self.wal_at {
            self.wal_at = now + WAL_EVERY;
            let outcome = self.bound_wal(now);
            self.log_failure("checkpoint", outcome);
        }
        if now >= self.cache_at {
            self.cache_at = now + CACHE_EVERY;
            let outcome = self.desk.with_store(|store| store.empty_cache().map(drop));
            self.log_failure("emptying of the cache", outcome);
        }
        if now >= self.prune_at {
            let outcome = self.prune();
            self.prune_at = now + if self.is_pruning() { SLICE_EVERY } else { PRUNE_EVERY };
            self.log_failure("pruning", outcome);
        }
        if self.desk.press().is_overdue(now) {
            let outcome = self.desk.write_tallies();
            self.log_failure("counting", outcome);
        }
        if now >= self.watch_at && !self.watchman.is_empty() {
            self.watch_at = now + WATCH_EVERY;
            let outcome = self.watch(false);
            self.log_failure("watch over the thresholds", outcome);
        }
    }

    /// That the file fails has been said already, once.
    fn log_failure(&self, duty: &str, outcome: Result<()>) {
        if let Err(error) = outcome {
            let level = if self.desk.contact().is_troubled() { log::Level::Debug } else { log::Level::Warn };
            log::log!(level, "{duty} failed and is tried again: {error}");
        }
    }

    /// Does everything at once, until nothing is left.
    pub(crate) fn run(&mut self) -> Result<()> {
        self.look_at_clock()?;
        self.rescue()?;
        self.watch(true)?;
        loop {
            self.prune()?;
            if !self.is_pruning() {
                return Ok(());
            }
        }
    }

    /// Looks whether the clock has jumped, or ran ahead for an engine that is gone, and does what that calls for.
    pub(crate) fn look_at_clock(&mut self) -> Result<()> {
        self.watch_clock(false);
        let now = self.desk.clock().now();
        let ran_ahead = self.desk.with_store(|store| {
            store.look()?;
            Ok::<_, Error>(store.ran_ahead(now))
        })?;
        if ran_ahead {
            self.schedules_from = self.schedules_from.or(Some(ScheduleId::from_raw(0)));
        }
        while self.schedules_from.is_some() {
            self.put_schedules_right()?;
        }
        while self.delays.is_some() {
            self.put_delays_right()?;
        }
        Ok(())
    }

    /// Looks whether the clock has jumped, or the machine has slept. Ticks that were missed over it come late, and are
    /// dealt with as their schedules say; those that were reckoned under a clock that ran ahead are to be put right.
    fn watch_clock(&mut self, always: bool) {
        let clock = self.desk.clock();
        match self.clock_watch.look(clock.now(), clock.monotonic(), always) {
            None => {}
            Some(Noticed::Forward(by)) => {
                log::warn!("the clock went forward by {by:?}: it was set, or the machine slept");
            }
            Some(Noticed::Slept(time)) => {
                log::warn!("nothing was looked at for {time:?}: the machine or the process slept");
            }
            Some(Noticed::Back(by)) => {
                log::warn!("the clock was set back by {by:?}");
                self.schedules_from = Some(ScheduleId::from_raw(0));
                self.delays = Some(DelaysLeft::all(by));
            }
        }
    }

    /// Puts a slice of the delays right after the clock was set back.
    fn put_delays_right(&mut self) -> Result<()> {
        let Some(from) = self.delays else { return Ok(()) };
        let (left, count) = self.desk.call_here(move |turn| {
            turn.put_delays_right(from, SLICE_DELAYS).map_err(|error| storage_error("cannot put delays right", error))
        })?;
        self.delays = left;
        if count > 0 {
            log::info!("{count} jobs were made to wait under a clock that ran ahead, and wait no longer for that");
        }
        Ok(())
    }

    /// Puts a slice of the schedules right after the clock was set back.
    fn put_schedules_right(&mut self) -> Result<()> {
        let Some(from) = self.schedules_from else { return Ok(()) };
        let (left, count) = self.desk.call_here(move |turn| {
            turn.put_schedules_right(from, SLICE_JOBS)
                .map_err(|error| storage_error("cannot put schedules right", error))
        })?;
        self.schedules_from = left;
        if count > 0 {
            log::info!("{count} schedules were reckoned under a clock that ran ahead, and are put right");
        }
        Ok(())
    }

    /// Looks at the schedules at the start: at those that nobody can run, and whether the clock ran ahead when they were
    /// reckoned, or when jobs were made to wait.
    pub(crate) fn look_at_schedules(&mut self) -> Result<()> {
        let now = self.desk.clock().now();
        let (unhandled, is_behind) = self.desk.with_store(|store| {
            store.look()?;
            read_schedules::unhandled(store.connection())
                .and_then(|unhandled| Ok((unhandled, store.is_behind(now)?)))
                .map_err(|error| storage_error("cannot read the schedules", error))
        })?;
        self.delays = is_behind.then(|| DelaysLeft::all(Duration::ZERO));
        for (kind, names) in unhandled {
            log::warn!("no open engine has a handler for the kind {kind}, of the schedules {}", names.join(", "));
        }
        self.look_at_clock()
    }

    fn is_pruning(&self) -> bool {
        !self.pruning.is_empty() || self.auditing.is_some() || self.forgetting.is_some()
    }

    /// Tells that we live, if it is not our lock that tells it.
    pub(crate) fn beat(&self) -> Result<()> {
        let own = self.own;
        if !self.heartbeats {
            return Ok(());
        }
        self.desk
            .call_here(move |turn| turn.beat(own).map_err(|error| storage_error("cannot write a heartbeat", error)))
    }

    /// Takes back the jobs of every engine that has died.
    pub(crate) fn rescue(&mut self) -> Result<()> {
        let own = self.own;
        let was_deleted = self.liveness.keep()?;
        let (others, is_closed) = self.desk.with_store(|store| {
            let others = open_instances(store.connection(), Some(own));
            others
                .and_then(|others| Ok((others, is_closed(store.connection(), own)?)))
                .map_err(|error| storage_error("cannot read the instances", error))
        })?;
        if was_deleted {
            log::warn!("somebody deleted our lock file, by which others see that this engine lives; it is made again");
        }
        if is_closed {
            let revived = self.desk.call_here(move |turn| {
                turn.revive(own).map_err(|error| storage_error("cannot open our row again", error))
            })?;
            if revived {
                log::warn!("this engine was taken for dead, and its jobs were given to others; it goes on");
            }
        }
        for instance in others {
            self.rescue_one(&instance)?;
        }
        self.bury_doomed()
    }

    /// Deletes jobs that somebody wanted deleted and that have ended in another process or in a transaction of the
    /// application's.
    fn bury_doomed(&self) -> Result<()> {
        let any = self.desk.with_store(|store| {
            store.look()?;
            Ok(store.has_doomed())
        })?;
        if !any {
            return Ok(());
        }
        self.desk.call_here(|turn| {
            turn.bury_all_doomed().map_err(|error| storage_error("cannot delete jobs that have ended", error))
        })
    }

    fn rescue_one(&self, instance: &Instance) -> Result<()> {
        let silent = instance.beat_at.map(|beat_at| self.desk.clock().now().since(beat_at) > SILENCE_MAX);
        if silent == Some(false) {
            return Ok(());
        }
        let Some(dead) = find_dead(&self.database, &instance.lock_file, silent == Some(true))? else {
            return Ok(());
        };
        let (id, begun) = (instance.id, dead.begun.clone());
        let rescued = self.desk.call_here(move |turn| {
            let storage = |error| storage_error("cannot rescue jobs", error);
            // Another engine may have been quicker, between our look and our turn.
            if !turn.is_open(id).map_err(storage)? {
                return Ok(None);
            }
            turn.rescue(id, &begun).map(Some).map_err(storage)
        })?;
        if let Some(rescued) = rescued {
            log::warn!(
                "the engine of process {} on {} died: {} of its jobs run again, {} had not begun, {} have ended",
                instance.process,
                instance.host,
                rescued.retried,
                rescued.returned,
                rescued.ended
            );
        }
        dead.bury();
        Ok(())
    }

    /// Keeps the WAL file from growing without end. A reader that stays can hold it, but not unnoticed.
    fn bound_wal(&mut self, now: Duration) -> Result<()> {
        let bytes = std::fs::metadata(&self.wal_path).map_or(0, |file| file.len());
        if bytes <= WAL_MAX_BYTES {
            return Ok(());
        }
        let checkpoint = self.desk.with_store(|store| with_patience(CHECKPOINT_PATIENCE, || store.checkpoint()))?;
        if checkpoint.done < checkpoint.in_wal && now >= self.warn_at {
            self.warn_at = now + WARN_EVERY;
            log::warn!(
                "the WAL file has {bytes} bytes and cannot be cut: somebody has been reading for long, {} of {} pages \
                 are checkpointed",
                checkpoint.done,
                checkpoint.in_wal
            );
        }
        Ok(())
    }

    /// Deletes a slice of the jobs that have been kept for long enough.
    fn prune(&mut self) -> Result<()> {
        let now = self.desk.clock().now();
        if !self.is_pruning() {
            let retention = self.retention;
            self.pruning = self.desk.with_store(|store| {
                store.look()?;
                Ok(store.prune_ranges(|state| retention.of(state.status()).map(|time| now.saturating_sub(time))))
            })?;
            self.auditing = retention.audit.map(|time| now.saturating_sub(time));
            self.forgetting = retention.of(Status::Completed).map(|time| now.saturating_sub(time));
            self.desk.call_here(move |turn| {
                let storage = |error| storage_error("cannot forget instances and shares", error);
                turn.forget_instances(now.saturating_sub(INSTANCES_KEEP)).map_err(storage)?;
                turn.forget_old_tallies().map_err(storage)?;
                turn.cancel_abandoned_workflows(now.saturating_sub(DRAFTS_KEEP)).map_err(storage)?;
                turn.forget_idle_gates(GATES_GO).map_err(storage)?;
                turn.forget_empty_shares().map_err(storage)
            })?;
        }
        if let Some(cutoff) = self.auditing {
            let gone = self.desk.call_here(move |turn| {
                turn.forget_audit(cutoff, SLICE_JOBS).map_err(|error| storage_error("cannot prune the audit", error))
            })?;
            if gone < SLICE_JOBS {
                self.auditing = None;
            }
            return Ok(());
        }
        if let Some(cutoff) = self.forgetting {
            let gone = self.desk.call_here(move |turn| {
                let storage = |error| storage_error("cannot forget workflows", error);
                turn.forget_old_workflows(cutoff, SLICE_JOBS).map_err(storage)
            })?;
            if gone < SLICE_JOBS {
                self.forgetting = None;
            }
            return Ok(());
        }
        let Some(&range) = self.pruning.last() else {
            return self.vacuum();
        };
        let (gone, left) = self.desk.call_here(move |turn| {
            turn.prune(range, SLICE_JOBS).map_err(|error| storage_error("cannot prune", error))
        })?;
        // A slice that failed is tried again.
        self.pruning.pop();
        self.pruning.extend(left);
        if gone > 0 {
            log::debug!("{gone} ended jobs pruned");
        }
        if self.pruning.is_empty() { self.vacuum() } else { Ok(()) }
    }

    /// Looks at the thresholds, and tells which have been passed and which are well again. What was read of the longer
    /// windows not long ago is used again, unless all is to be read afresh.
    fn watch(&mut self, afresh: bool) -> Result<()> {
        if self.watchman.is_empty() {
            return Ok(());
        }
        self.desk.write_tallies_if_any()?;
        let (now, looked_at) = (self.desk.clock().now(), self.desk.clock().monotonic());
        let is_seen = |metrics: &(Duration, Metrics)| {
            !afresh && looked_at.saturating_sub(metrics.0) < look_again_after(metrics.1.window)
        };
        self.seen.retain(is_seen);
        let seen = &self.seen;
        let unseen = self.watchman.windows().into_iter().filter(|window| seen.iter().all(|it| it.1.window != *window));
        let unseen: Vec<Window> = unseen.collect();
        let (stats, metrics) = self.desk.with_store(|store| {
            let conn = store.connection();
            let metrics: rusqlite::Result<Vec<Metrics>> =
                unseen.into_iter().map(|window| tally::metrics(conn, window, now)).collect();
            read::stats(conn, None, now)
                .and_then(|stats| metrics.map(|metrics| (stats, metrics)))
                .map_err(|error| storage_error("cannot look at the thresholds", error))
        })?;
        self.seen.extend(metrics.into_iter().map(|metrics| (looked_at, metrics)));
        let metrics: Vec<Metrics> = self.seen.iter().map(|(_, metrics)| metrics.clone()).collect();
        let waiting = stats.oldest_waiting.iter().map(|(queue, since)| (queue.clone(), now.since(*since)));
        let sight = Sight { stats: &stats, oldest_waiting: &waiting.collect(), metrics: &metrics };
        let changes = self.watchman.look(&sight, now);
        if !changes.is_empty() {
            self.desk.press().set_alerts(self.watchman.raised().cloned().collect());
        }
        for alert in changes {
            match alert.state {
                AlertState::Raised => log::warn!("{alert}"),
                AlertState::Cleared => log::info!("{alert}"),
            }
            self.desk.press().publish(&[Event::Alert(alert)]);
        }
        Ok(())
    }

    fn vacuum(&self) -> Result<()> {
        self.desk.with_store(|store| {
            let mut free = store.free_pages()?;
            // A slice is short; what is left goes at the next pruning.
            for _ in 0..16 {
                if free <= FREE_PAGES_KEEP {
                    break;
                }
                free = store.vacuum(SLICE_PAGES)?;
            }
            Ok(())
        })
    }
}

/// After how long a window is read again for the thresholds. The longer it is, the more there is to read and the less a
/// moment changes it.
const fn look_again_after(window: Window) -> Duration {
    match window {
        Window::Minute => Duration::ZERO,
        Window::Hour => Duration::from_secs(10),
        Window::Day => Duration::from_secs(60),
    }
}
