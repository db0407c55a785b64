//! Shares: the jobs of one user in a lane, counted in one row.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::store::lane::add_to_share;
use crate::store::row::State;

/// How many shares are remembered by name. More than these are looked up.
const NAMES_MAX: usize = 1 << 16;

/// What the writer knows of the shares: unlike the lanes they may be many, so their counts stay in the file.
#[derive(Default)]
pub(crate) struct Shares {
    /// By lane and user.
    names: HashMap<i64, HashMap<Box<str>, i64>>,
    named: usize,
    /// What this turn has changed and not written yet.
    changes: HashMap<i64, [i64; State::COUNT]>,
}

impl Shares {
    /// The user's share of a lane, made if there is none.
    pub(crate) fn find_or_create(&mut self, conn: &Connection, lane: i64, user: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.names.get(&lane).and_then(|users| users.get(user)) {
            return Ok(*id);
        }
        let id = find_or_create(conn, lane, user)?;
        if self.named == NAMES_MAX {
            self.names.clear();
            self.named = 0;
        }
        self.named += 1;
        self.names.entry(lane).or_default().insert(user.into(), id);
        Ok(id)
    }

    /// Counts a job that came into a state, and out of another if it is not new.
    pub(crate) fn count(&mut self, share: i64, from: Option<State>, to: Option<State>) {
        let change = self.changes.entry(share).or_default();
        if let Some(from) = from {
            change[from as usize] -= 1;
        }
        if let Some(to) = to {
            change[to as usize] += 1;
        }
    }

    /// Writes what has been counted since the last time.
    pub(crate) fn flush(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        for (share, change) in self.changes.drain() {
            if change != [0; State::COUNT] {
                add_to_share(conn, share, &change)?;
            }
        }
        Ok(())
    }

    /// Forgets names and counts: those that a failed turn had made are gone, and another process may have removed some.
    pub(crate) fn forget(&mut self) {
        self.names.clear();
        self.named = 0;
        self.changes.clear();
    }
}

/// The user's share of a lane, made if there is none.
pub(crate) fn find_or_create(conn: &Connection, lane: i64, user: &str) -> rusqlite::Result<i64> {
    let found = conn
        .prepare_cached("SELECT id FROM jobmill_share WHERE user_id = :user AND lane = :lane")?
        .query_row(named_params! { ":user": user, ":lane": lane }, |row| row.get(0))
        .optional()?;
    match found {
        Some(id) => Ok(id),
        None => conn
            .prepare_cached("INSERT INTO jobmill_share (lane, user_id) VALUES (:lane, :user) RETURNING id")?
            .query_row(named_params! { ":user": user, ":lane": lane }, |row| row.get(0)),
    }
}

/// Removes shares that hold no job any more, for users come and go, and tells how many they were.
pub(crate) fn remove_empty(conn: &Connection) -> rusqlite::Result<usize> {
    conn.prepare_cached(
        "DELETE FROM jobmill_share WHERE created = 0 AND pending = 0 AND running = 0 AND completed = 0
             AND failed = 0 AND cancelled = 0 AND expired = 0 AND delayed = 0 AND held = 0",
    )?
    .execute([])
}
