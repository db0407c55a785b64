//! Our tables: their version, and how an older file is brought up to it.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use crate::error::{Error, ErrorKind, Result};
use crate::store::connect::storage_error;

/// Each migration in its order. They are never changed once released, only added to.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_engine.sql"),
    include_str!("migrations/0002_ledger.sql"),
    include_str!("migrations/0003_batch.sql"),
    include_str!("migrations/0004_limits.sql"),
    include_str!("migrations/0005_workflow.sql"),
    include_str!("migrations/0006_schedule.sql"),
];

/// The version that this release writes and reads.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the file up to our version, a transaction for each step.
///
/// # Errors
/// `Storage` if the file was written by a newer release, and is left as it is.
pub(crate) fn migrate(conn: &mut Connection) -> Result<()> {
    let mut from = None;
    loop {
        let storage = |error| storage_error("cannot prepare the tables", error);
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(storage)?;
        let version = version(&tx).map_err(storage)?;
        if version > VERSION {
            return Err(Error::new(
                ErrorKind::Storage,
                format!("the tables have version {version}, and this jobmill knows no newer one than {VERSION}"),
            ));
        }
        let Some(migration) = usize::try_from(version).ok().and_then(|done| MIGRATIONS.get(done)) else {
            if let Some(from) = from {
                log::info!("tables brought from version {from} to {VERSION}");
            }
            return Ok(());
        };
        tx.execute_batch(migration).map_err(storage)?;
        tx.execute(
            "INSERT INTO jobmill_meta (key, value) VALUES ('version', :version)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [version + 1],
        )
        .map_err(storage)?;
        tx.commit().map_err(storage)?;
        from.get_or_insert(version);
    }
}

/// The version of our tables in the file, 0 if there are none. Somebody else's table of that name is not ours.
pub(crate) fn version(conn: &Connection) -> rusqlite::Result<i64> {
    let columns: u32 = conn.query_row(
        "SELECT count(*) FROM pragma_table_info('jobmill_meta') WHERE name IN ('key', 'value')",
        [],
        |row| row.get(0),
    )?;
    if columns < 2 {
        return Ok(0);
    }
    let version = conn.query_row("SELECT value FROM jobmill_meta WHERE key = 'version'", [], |row| row.get(0));
    Ok(version.optional()?.unwrap_or(0))
}
