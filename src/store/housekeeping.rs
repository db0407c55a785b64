//! What keeps the file small and sound: pruning, checkpoints, vacuum, backup, checks.

use std::ffi::c_int;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, named_params};

use crate::error::{Error, Result};
use crate::model::event::Cause;
use crate::model::id::JobId;
use crate::model::time::Timestamp;
use crate::store::connect::{resolve, storage_error};
use crate::store::operate::Standing;
use crate::store::place::{Place, place_columns};
use crate::store::read::miscounted;
use crate::store::row::State;
use crate::store::step::Step;
use crate::store::{Store, Turn, batch, edge, flow, limits, schedule, share};

/// Reads ended jobs of one state in one lane, the oldest first.
pub(crate) const PLAN_PRUNE: &str = concat!(
    "SELECT id, completed_at, ",
    place_columns!(),
    " FROM jobmill_job INDEXED BY jobmill_job_place
     WHERE lane = :lane AND state = :state AND id > :after AND id < :before ORDER BY id LIMIT :limit"
);

/// Where a pruning stands within one state of one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PruneRange {
    pub(crate) lane: i64,
    pub(crate) state: State,
    /// Jobs that ended before this are pruned.
    pub(crate) cutoff: Timestamp,
    /// Jobs up to this id have been seen.
    pub(crate) after: i64,
}

/// The fewest commits after which the cache may have taken what others need.
const CACHE_COMMITS: u64 = 1000;

/// What a checkpoint came to, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Pages that the WAL file holds.
    pub(crate) in_wal: i64,
    /// Pages of these that are in the database as well.
    pub(crate) done: i64,
}

impl Turn<'_> {
    /// Deletes ended jobs of a range, seeing at most `limit`, and gives how many went and the range that is left.
    pub(crate) fn prune(&mut self, range: PruneRange, limit: usize) -> rusqlite::Result<(usize, Option<PruneRange>)> {
        let before = JobId::first_at(range.cutoff);
        let mut statement = self.conn.prepare_cached(PLAN_PRUNE)?;
        let seen: Vec<(JobId, Timestamp, Place)> = statement
            .query_map(
                named_params! {
                    ":lane": range.lane, ":state": range.state, ":after": range.after, ":before": before,
                    ":limit": limit as i64,
                },
                |row| {
                    Ok((
                        row.get(0)?,
                        row.get::<_, Option<Timestamp>>(1)?.unwrap_or(Timestamp::EPOCH),
                        Place::read(row, 2)?,
                    ))
                },
            )?
            .collect::<rusqlite::Result<_>>()?;
        let is_batch = self.is_batch_lane(range.lane);
        let mut gone = 0;
        for (id, completed_at, place) in &seen {
            // What a request costs that runs on when its batch has ended, the batch is still to be told; and what the end of a
            // workflow asks is asked of its jobs.
            let keeps = is_batch && self.has_open_requests(*id)?
                || place.flow.map_or(Ok(false), |flow| flow::is_open(self.conn, flow))?;
            if *completed_at < range.cutoff && !keeps {
                if place.limited {
                    self.leave_gates(*id)?;
                }
                delete(self.conn, *id)?;
                self.book.doomed.remove(id);
                // Nobody is told: what is kept for its time and goes then has not changed.
                self.book.count(*place, Some(range.state), None);
                gone += 1;
            }
        }
        if gone > 0 {
            self.keep_last_id()?;
        }
        let left = match seen.last() {
            Some((last, ..)) if seen.len() == limit => Some(PruneRange { after: last.raw(), ..range }),
            _ => None,
        };
        Ok((gone, left))
    }

    /// Removes shares that hold no job any more.
    pub(crate) fn forget_empty_shares(&mut self) -> rusqlite::Result<()> {
        self.book.shares.flush(self.conn)?;
        if share::remove_empty(self.conn)? > 0 {
            self.book.shares.forget();
        }
        Ok(())
    }

    /// Removes workflows that ended before a moment and of which no job is left.
    pub(crate) fn forget_old_workflows(&mut self, before: Timestamp, limit: usize) -> rusqlite::Result<usize> {
        self.book.flows.flush(self.conn, self.now)?;
        flow::remove_old(self.conn, before, limit)
    }

    /// Deletes a job that nobody runs, and tells of it.
    pub(crate) fn remove(&mut self, standing: &Standing) -> rusqlite::Result<()> {
        if !standing.state.status().is_terminal() && edge::tell(self.conn, standing.id, standing.place, flow::GONE)? {
            self.book.flows.has_work = true;
        }
        // Its row tells which limits count it.
        self.step(Step { to: None, ..standing.step(standing.state, Cause::Deleted) })?;
        delete(self.conn, standing.id)?;
        self.book.doomed.remove(&standing.id);
        // Who waits for its end learns that there is nothing to wait for.
        self.ended(standing.id);
        self.keep_last_id()
    }

    /// Remembers the newest id, for its row may be gone, and an id is never given twice.
    fn keep_last_id(&mut self) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_meta (key, value) VALUES ('last_id', :last)
                 ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
            )?
            .execute(named_params! { ":last": self.book.last_id })
            .map(drop)
    }
}

/// Deletes a job and all that stands beside it.
fn delete(conn: &Connection, id: JobId) -> rusqlite::Result<()> {
    for statement in [
        "DELETE FROM jobmill_tag WHERE job = :job AND tag IN (
             SELECT value FROM json_each((SELECT tags FROM jobmill_job WHERE id = :job)))",
        "DELETE FROM jobmill_job WHERE id = :job",
        "DELETE FROM jobmill_detail WHERE job = :job",
        "DELETE FROM jobmill_payload WHERE job = :job",
        "DELETE FROM jobmill_unique WHERE job = :job",
        "DELETE FROM jobmill_attempt WHERE job = :job",
        "DELETE FROM jobmill_progress WHERE job = :job",
        "DELETE FROM jobmill_saved WHERE job = :job",
        "DELETE FROM jobmill_log WHERE job = :job",
        "DELETE FROM jobmill_signal WHERE job = :job",
        "DELETE FROM jobmill_doomed WHERE job = :job",
        "DELETE FROM jobmill_journal WHERE job = :job",
        "DELETE FROM jobmill_edge WHERE follower = :job",
    ] {
        conn.prepare_cached(statement)?.execute(named_params! { ":job": id })?;
    }
    Ok(())
}

impl Store {
    /// The states of lanes that hold ended jobs, each with the range that a pruning would look through.
    pub(crate) fn prune_ranges(&self, cutoff: impl Fn(State) -> Option<Timestamp>) -> Vec<PruneRange> {
        let mut ranges = Vec::new();
        for lane in self.book.lanes.iter() {
            for state in State::ALL.into_iter().filter(|state| state.status().is_terminal()) {
                if lane.count(state) > 0
                    && let Some(cutoff) = cutoff(state)
                {
                    ranges.push(PruneRange { lane: lane.id, state, cutoff, after: 0 });
                }
            }
        }
        ranges
    }

    /// Brings the WAL file into the database as far as readers let it, and empties it if it can.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        self.connection()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
                Ok(Checkpoint { in_wal: row.get(1)?, done: row.get(2)? })
            })
            .map_err(|error| storage_error("cannot checkpoint", error))
    }

    /// Gives free pages back to the file system, at most `pages`, and tells how many are still free. A file that was
    /// not made for it keeps them.
    pub(crate) fn vacuum(&self, pages: u32) -> Result<i64> {
        let storage = |error| storage_error("cannot vacuum", error);
        let conn = self.connection();
        let free: i64 = conn.pragma_query_value(None, "freelist_count", |row| row.get(0)).map_err(storage)?;
        let mode: i64 = conn.pragma_query_value(None, "auto_vacuum", |row| row.get(0)).map_err(storage)?;
        if free == 0 || mode != 2 {
            return Ok(0);
        }
        // Each step of the statement gives back one page.
        let mut statement = conn.prepare(&format!("PRAGMA incremental_vacuum({pages})")).map_err(storage)?;
        let mut steps = statement.query([]).map_err(storage)?;
        while steps.next().map_err(storage)?.is_some() {}
        Ok((free - i64::from(pages)).max(0))
    }

    /// Empties SQLite's caches in this process if enough has been written since the last time, and tells whether it was.
    ///
    /// Where SQLite is built with `SQLITE_ENABLE_MEMORY_MANAGEMENT`, as the bundled one is, all connections of a process
    /// share one list of pages, and a connection that writes much takes the pages of those that rest and is never asked
    /// to give them back. Once all are taken, every other connection loses each page as soon as it lets go of it, and
    /// reads it from the file again at the next statement. To read what is hot once more now and then is cheaper by far.
    pub(crate) fn empty_cache(&mut self) -> Result<bool> {
        if self.commits - self.cache_kept_since < CACHE_COMMITS {
            return Ok(false);
        }
        self.cache_kept_since = self.commits;
        let storage = |error| storage_error("cannot empty the cache", error);
        self.connection().execute_batch("PRAGMA shrink_memory").map_err(storage)?;
        Ok(true)
    }

    /// How many pages are free in the file.
    pub(crate) fn free_pages(&self) -> Result<i64> {
        self.connection()
            .pragma_query_value(None, "freelist_count", |row| row.get(0))
            .map_err(|error| storage_error("cannot count free pages", error))
    }
}

/// Copies the database to a new file while others go on writing.
pub(crate) fn backup(from: &Connection, to: &Path) -> Result<()> {
    let doing = format!("cannot back up to {}", to.display());
    let storage = |error| storage_error(&doing, error);
    let to = resolve(to)?;
    if to.exists() {
        return Err(Error::invalid("path", format_args!("{} exists already", to.display())));
    }
    let mut copy = Connection::open(to).map_err(storage)?;
    let backup = Backup::new(from, &mut copy).map_err(storage)?;
    // In one step: a write of somebody else's between two would begin the copy anew, for ever if writes never rest.
    backup.run_to_completion(c_int::MAX, Duration::ZERO, None).map_err(storage)
}

/// Checks the file and our own books in it, and gives what is wrong.
pub(crate) fn check(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut wrong: Vec<String> =
        conn.prepare("PRAGMA integrity_check")?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    wrong.retain(|line| line != "ok");
    wrong.extend(miscounted(conn)?);
    wrong.extend(limits::miscounted(conn)?);
    wrong.extend(batch::read::miscounted(conn)?);
    wrong.extend(flow::miscounted(conn)?);
    wrong.extend(schedule::read::unsound(conn)?);
    let unowned: i64 = conn.query_row(
        "SELECT count(*) FROM jobmill_job WHERE state = 2
         AND lane IN (SELECT id FROM jobmill_lane WHERE kind NOT IN ('', 'jobmill.batch'))
         AND (owner IS NULL OR owner NOT IN (SELECT id FROM jobmill_instance WHERE ended_at IS NULL))",
        [],
        |row| row.get(0),
    )?;
    if unowned > 0 {
        wrong.push(format!("{unowned} running jobs belong to no open instance"));
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connect::Durability;

    #[test]
    fn the_cache_is_emptied_only_after_many_commits() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("jobs.db");
        let mut store =
            Store::open(&path, Durability::Normal, Duration::ZERO, std::sync::Arc::new(crate::clock::SystemClock))
                .expect("a store");
        let write = |store: &mut Store, times| {
            for _ in 0..times {
                store.turn(Timestamp::from_micros(1), None, |_| Ok(())).expect("a turn");
            }
        };
        write(&mut store, CACHE_COMMITS - 1);
        assert!(!store.empty_cache().expect("a look"));
        write(&mut store, 1);
        assert!(store.empty_cache().expect("an emptying"));
        assert!(!store.empty_cache().expect("a look"), "they count from the last time");
    }
}
