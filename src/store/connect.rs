//! Opening the file: pragmas, each read back, and patience with other writers.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi};

use crate::error::{Error, ErrorKind, Result};

/// How much of a commit survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Each commit is synced to the disk before its callers are answered: it survives a power cut.
    #[default]
    Full,
    /// Commits are synced at checkpoints only: each survives the death of the process, and a power cut may undo the
    /// last ones, in order, without harm to the file.
    Normal,
}

impl Durability {
    fn pragma(self) -> (&'static str, i64) {
        match self {
            Self::Full => ("FULL", 2),
            Self::Normal => ("NORMAL", 1),
        }
    }
}

/// The most prepared statements that a connection keeps. There are about sixty in all.
const STATEMENT_CACHE: usize = 128;
const WRITER_CACHE_KIB: i64 = 16 * 1024;
const READER_CACHE_KIB: i64 = 8 * 1024;
/// The most connections that read.
const READERS_MAX: u32 = 4;
/// The WAL file is cut back to this when it has been checkpointed.
pub(crate) const WAL_KEEP_BYTES: i64 = 16 << 20;
/// How long every wait for another writer lasts unless a shorter patience is set.
pub(crate) const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

/// A pool of read-only connections.
pub(crate) type Readers = r2d2::Pool<SqliteConnectionManager>;

thread_local! {
    /// How long the busy handler waits on this thread, and how long it has waited.
    static PATIENCE: Cell<Duration> = const { Cell::new(DEFAULT_PATIENCE) };
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Runs `work` on this thread with a patience of its own towards other writers.
pub(crate) fn with_patience<R>(patience: Duration, work: impl FnOnce() -> R) -> R {
    let before = PATIENCE.replace(patience);
    let result = work();
    PATIENCE.set(before);
    result
}

/// SQLite's own handler sleeps in steps of up to 100 ms, in which a lock can come and go many times unseen. Ours asks
/// again after 0.1 ms at first and after 1 ms in the long run.
#[expect(clippy::disallowed_methods, reason = "SQLite offers no event to wait on for a lock of another process")]
fn wait_for_lock(times_asked: i32) -> bool {
    let waited = if times_asked == 0 { Duration::ZERO } else { WAITED.get() };
    if waited >= PATIENCE.get() {
        return false;
    }
    let step = Duration::from_micros(if times_asked < 20 { 100 } else { 1000 });
    WAITED.set(waited + step);
    std::thread::sleep(step);
    true
}

/// Turns a failure of SQLite into an error that says what to do about it.
pub(crate) fn storage_error(doing: &str, error: rusqlite::Error) -> Error {
    let error = match error {
        // Its message would hold the statement, of a migration hundreds of lines.
        rusqlite::Error::SqlInputError { error, msg, .. } => rusqlite::Error::SqliteFailure(error, Some(msg)),
        other => other,
    };
    let (kind, context) = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (ErrorKind::Busy, format!("{doing}: the database stayed locked by another writer"))
        }
        Some(ErrorCode::DiskFull) => (ErrorKind::Storage, format!("{doing}: the disk is full")),
        Some(ErrorCode::NotADatabase) => (ErrorKind::Storage, format!("{doing}: the file is not an SQLite database")),
        Some(ErrorCode::DatabaseCorrupt) => (ErrorKind::Storage, format!("{doing}: the database is damaged")),
        // The file itself may be written, but SQLite cannot make those that it needs beside it.
        Some(ErrorCode::ReadOnly)
            if error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_READONLY_DIRECTORY) =>
        {
            (ErrorKind::Storage, format!("{doing}: the directory of the database cannot be written"))
        }
        Some(ErrorCode::ReadOnly) => (ErrorKind::Storage, format!("{doing}: the database is read-only")),
        _ => (ErrorKind::Storage, doing.to_owned()),
    };
    Error::with_source(kind, context, error)
}

/// The absolute path of the database, links resolved, so that every process names the same file alike.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    let text = path.as_os_str();
    if text.is_empty() || text == ":memory:" {
        return Err(Error::invalid("path", "must name a file, for jobs must outlive the process"));
    }
    if text.as_encoded_bytes().contains(&0) {
        return Err(Error::invalid("path", "must not contain a NUL byte"));
    }
    if path.is_dir() {
        return Err(Error::invalid("path", format_args!("{} is a directory", path.display())));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        return Err(Error::invalid("path", format_args!("{} names no file", path.display())));
    };
    if !text.as_encoded_bytes().ends_with(name.as_encoded_bytes()) {
        // A separator at the end is no part of the name, so that without this a file would be made.
        let rule = format_args!("{} names a directory by its end, and must name a file", path.display());
        return Err(Error::invalid("path", rule));
    }
    let unreachable = |error| {
        Error::with_source(ErrorKind::Storage, format!("cannot reach the directory of {}", path.display()), error)
    };
    let resolved = if path.exists() {
        path.canonicalize().map_err(unreachable)?
    } else {
        parent.canonicalize().map_err(unreachable)?.join(name)
    };
    if resolved.to_str().is_none() {
        return Err(Error::invalid("path", "must be UTF-8, for engines tell each other by it where they are"));
    }
    Ok(resolved)
}

/// Opens the one connection that writes, of a file that may have to be made.
///
/// When several open a new file at once, SQLite tells some of them that it is busy without asking our handler, for they
/// would wait for each other while they make it a WAL file. They try again.
pub(crate) fn writer(path: &Path, durability: Durability, make: bool) -> Result<Connection> {
    let mut tries = 1;
    loop {
        match try_writer(path, durability, make) {
            Err(error) if error.kind() == ErrorKind::Busy && wait_for_lock(tries) => tries += 1,
            tried => return tried,
        }
    }
}

fn try_writer(path: &Path, durability: Durability, make: bool) -> Result<Connection> {
    let doing = format!("cannot open {}", path.display());
    let storage = |error| storage_error(&doing, error);
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, make);
    let conn = Connection::open_with_flags(path, flags).map_err(storage)?;
    common(&conn, WRITER_CACHE_KIB).map_err(storage)?;
    if conn.is_readonly("main").map_err(storage)? {
        return Err(Error::new(ErrorKind::Storage, format!("{doing}: the file is read-only")));
    }
    // Free pages can be given back in small slices only if the file is made for it before its first table. A file of
    // the application's stays as it is.
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(storage)?;
    if tables == 0 {
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(storage)?;
    }
    let mode: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(storage)?;
    if !mode.eq_ignore_ascii_case("wal") {
        let rule = format!("{doing}: the journal mode is {mode} and cannot be made WAL on this file system");
        return Err(Error::new(ErrorKind::Storage, rule));
    }
    let (name, number) = durability.pragma();
    set(&conn, "synchronous", name, number).map_err(storage)?;
    set(&conn, "journal_size_limit", WAL_KEEP_BYTES, WAL_KEEP_BYTES).map_err(storage)?;
    Ok(conn)
}

/// Opens a connection for the application's own reads and writes, with our patience towards other writers.
pub(crate) fn application(path: &Path, durability: Durability) -> Result<Connection> {
    let storage = |error| storage_error("cannot open a connection", error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(storage)?;
    common(&conn, READER_CACHE_KIB).map_err(storage)?;
    let (name, number) = durability.pragma();
    set(&conn, "synchronous", name, number).map_err(storage)?;
    Ok(conn)
}

/// Opens the pool that reads. Its connections are made when they are first needed.
pub(crate) fn readers(path: &Path) -> Result<Readers> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let manager = SqliteConnectionManager::file(path).with_flags(flags).with_init(|conn| {
        common(conn, READER_CACHE_KIB)?;
        set(conn, "query_only", "ON", 1)
    });
    r2d2::Pool::builder()
        .max_size(READERS_MAX)
        .min_idle(Some(0))
        .connection_timeout(DEFAULT_PATIENCE)
        .test_on_check_out(false)
        .thread_pool(Arc::new(scheduled_thread_pool::ScheduledThreadPool::new(1)))
        .build(manager)
        .map_err(|error| Error::with_source(ErrorKind::Storage, "cannot open readers", error))
}

fn common(conn: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    conn.busy_handler(Some(wait_for_lock))?;
    // Without it SQLite plans a statement anew whenever the value bound to its LIMIT changes.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    set(conn, "cache_size", -cache_kib, -cache_kib)?;
    set(conn, "temp_store", "MEMORY", 2)
}

/// Sets a pragma and reads it back, for SQLite takes a misspelt one in silence.
fn set(conn: &Connection, pragma: &str, value: impl rusqlite::ToSql, expected: i64) -> rusqlite::Result<()> {
    conn.pragma_update(None, pragma, value)?;
    let got: Option<i64> = conn.pragma_query_value(None, pragma, |row| row.get(0)).optional()?;
    if got != Some(expected) {
        let problem = format!("pragma {pragma} reads {got:?} and not {expected}");
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_MISUSE), Some(problem)));
    }
    Ok(())
}
