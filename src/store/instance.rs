//! The engines that work on this file.

use rusqlite::{OptionalExtension, named_params};

use crate::model::time::Timestamp;
use crate::store::Turn;
use crate::store::delays::is_behind;

/// An engine that has not ended properly, as its row tells.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: i64,
    pub(crate) lock_file: String,
    pub(crate) host: String,
    pub(crate) process: u32,
    /// Its last heartbeat, if it is not its lock that tells that it lives.
    pub(crate) beat_at: Option<Timestamp>,
}

impl Turn<'_> {
    /// Writes a row for this engine and gives its id. Ids are never used twice: the newest row is never pruned.
    pub(crate) fn register(
        &mut self,
        lock_file: &str,
        host: &str,
        process: u32,
        kinds: &str,
        port: Option<u16>,
    ) -> rusqlite::Result<i64> {
        // The clock may have been set back while nobody looked. To have every gate looked at takes long if there are many.
        if is_behind(self.conn, self.book.last_id, self.now)? {
            // What tells of it does not tell what the clock showed last. Each bucket tells what it showed for that.
            self.book.set_back(self.conn, self.now, self.now)?;
        }
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_instance (lock_file, host, process, kinds, port, started_at)
                 VALUES (:lock_file, :host, :process, :kinds, :port, :now) RETURNING id",
            )?
            .query_row(
                named_params! {
                    ":lock_file": lock_file, ":host": host, ":process": process, ":kinds": kinds,
                    ":port": port, ":now": self.now,
                },
                |row| row.get(0),
            )
    }

    /// Writes a heartbeat.
    pub(crate) fn beat(&mut self, id: i64) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_instance SET beat_at = :now WHERE id = :id AND ended_at IS NULL")?
            .execute(named_params! { ":id": id, ":now": self.now })
            .map(drop)
    }

    /// Writes our row as it is, to see whether anything can be written.
    pub(crate) fn touch(&mut self) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_instance SET beat_at = beat_at WHERE id = :id")?
            .execute(named_params! { ":id": self.book.owner })
            .map(drop)
    }

    /// Opens our row again, which somebody closed who took us for dead: otherwise nobody would take back our jobs if we
    /// died. Tells whether it was closed.
    pub(crate) fn revive(&mut self, id: i64) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_instance SET ended_at = NULL, beat_at = iif(beat_at IS NULL, NULL, :now)
                 WHERE id = :id AND ended_at IS NOT NULL",
            )?
            .execute(named_params! { ":id": id, ":now": self.now })
            .map(|revived| revived == 1)
    }

    /// Closes the row of an engine that ended, by itself or by dying.
    pub(crate) fn unregister(&mut self, id: i64) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_instance SET ended_at = :now WHERE id = :id AND ended_at IS NULL")?
            .execute(named_params! { ":id": id, ":now": self.now })
            .map(drop)
    }

    /// Whether the row of an engine is open.
    pub(crate) fn is_open(&self, id: i64) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_instance WHERE id = :id AND ended_at IS NULL")?
            .exists(named_params! { ":id": id })
    }

    /// Forgets engines that ended before `before`, all but the newest.
    pub(crate) fn forget_instances(&mut self, before: Timestamp) -> rusqlite::Result<usize> {
        self.conn
            .prepare_cached(
                "DELETE FROM jobmill_instance
                 WHERE ended_at < :before AND id < (SELECT max(id) FROM jobmill_instance)",
            )?
            .execute(named_params! { ":before": before })
    }
}

/// The engines whose rows are open, other than `own`.
pub(crate) fn open_instances(conn: &rusqlite::Connection, own: Option<i64>) -> rusqlite::Result<Vec<Instance>> {
    conn.prepare_cached(
        "SELECT id, lock_file, host, process, beat_at FROM jobmill_instance
         WHERE ended_at IS NULL AND id IS NOT :own ORDER BY id",
    )?
    .query_map(named_params! { ":own": own }, |row| {
        Ok(Instance {
            id: row.get(0)?,
            lock_file: row.get(1)?,
            host: row.get(2)?,
            process: row.get(3)?,
            beat_at: row.get(4)?,
        })
    })?
    .collect()
}

/// Whether somebody has closed the row of an engine.
pub(crate) fn is_closed(conn: &rusqlite::Connection, id: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM jobmill_instance WHERE id = :id AND ended_at IS NOT NULL")?
        .exists(named_params! { ":id": id })
}

/// Where an attempt ran, in words.
pub(crate) fn worker_name(
    conn: &rusqlite::Connection,
    owner: Option<i64>,
    worker: Option<u32>,
) -> rusqlite::Result<Option<String>> {
    let Some(owner) = owner else { return Ok(None) };
    let place: Option<(String, u32)> = conn
        .prepare_cached("SELECT host, process FROM jobmill_instance WHERE id = :id")?
        .query_row(named_params! { ":id": owner }, |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let process = match place {
        Some((host, process)) => format!("{host}/{process}"),
        None => format!("instance {owner}"),
    };
    Ok(Some(match worker {
        Some(worker) => format!("{process}/{worker}"),
        None => process,
    }))
}
