//! Whether the database can be reached, and is still the file that was opened. Whoever meets it notes what they met, and
//! whoever asks is told without waiting for anybody.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rusqlite::ErrorCode;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::time::Timestamp;
use crate::store::connect::{self, Readers};

/// A look tells for this long that all is well: it costs a twentieth of a short turn.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The file of this process's connections, and how things stand between it and them.
pub(crate) struct Contact {
    path: PathBuf,
    wal_path: PathBuf,
    clock: Arc<dyn Clock>,
    /// The files that were opened. None where the system does not tell.
    database: RwLock<Option<FileId>>,
    wal: RwLock<Option<FileId>>,
    /// When the last look found all well, on the monotonic clock in nanoseconds.
    looked_at_ns: AtomicU64,
    readers: Mutex<Option<Readers>>,
    /// Whether there is trouble, so that nobody need take the lock to learn that there is none.
    troubled: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    /// Whether a dispatcher is there, which tries again by itself.
    attended: AtomicBool,
}

/// What is wrong between the file and us.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) since: Timestamp,
    /// The newest error.
    pub(crate) error: String,
    pub(crate) failures: u64,
}

/// What has become of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// There is no file of its name.
    Gone,
    /// Another file has its name.
    Replaced,
    /// The file is there, but the WAL file that we write is not.
    WalGone,
}

/// By what a file is told from another that has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    number: u64,
}

/// The id of the file that has this name now. It is never opened: closing it would let go of SQLite's locks on it.
#[cfg(unix)]
fn file_id(path: &Path) -> io::Result<Option<FileId>> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|file| Some(FileId { device: file.dev(), number: file.ino() }))
}

/// Windows lets nobody delete or replace a file that SQLite has open.
#[cfg(not(unix))]
fn file_id(_: &Path) -> io::Result<Option<FileId>> {
    Ok(None)
}

impl Contact {
    pub(crate) fn new(path: PathBuf, clock: Arc<dyn Clock>) -> Self {
        let mut wal_path = path.clone().into_os_string();
        wal_path.push("-wal");
        Self {
            path,
            wal_path: wal_path.into(),
            clock,
            database: RwLock::default(),
            wal: RwLock::default(),
            looked_at_ns: AtomicU64::new(0),
            readers: Mutex::default(),
            troubled: AtomicBool::new(false),
            trouble: Mutex::default(),
            attended: AtomicBool::new(false),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn wal_path(&self) -> &Path {
        &self.wal_path
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Remembers which files a connection that has just been opened and has read has before it.
    pub(crate) fn meet(&self) -> Result<()> {
        *self.database.write() = file_id(&self.path).map_err(|error| self.unreachable(error))?;
        self.meet_wal();
        Ok(())
    }

    /// Remembers the WAL file alone: it is made anew whenever the last connection of all processes has been closed.
    pub(crate) fn meet_wal(&self) {
        *self.wal.write() = file_id(&self.wal_path).ok().flatten();
    }

    /// Looks whether the files that we write are those that others find by their names. What is written to a file that
    /// was deleted goes nowhere, and SQLite would not say so.
    pub(crate) fn look(&self) -> Result<(), Lost> {
        if let Some(known) = *self.database.read() {
            match file_id(&self.path) {
                Ok(found) if found == Some(known) => {}
                Ok(_) => return Err(Lost::Replaced),
                Err(_) => return Err(Lost::Gone),
            }
        }
        if let Some(known) = *self.wal.read()
            && file_id(&self.wal_path).ok().flatten() != Some(known)
        {
            return Err(Lost::WalGone);
        }
        Ok(())
    }

    /// The same, unless somebody has looked just now. A clock that stands still, as in tests, spares no look.
    pub(crate) fn look_again(&self) -> Result<(), Lost> {
        let now = self.clock.monotonic();
        let passed = now.saturating_sub(Duration::from_nanos(self.looked_at_ns.load(Ordering::Relaxed)));
        if !passed.is_zero() && passed < LOOK_AGAIN {
            return Ok(());
        }
        self.look()?;
        self.looked_at_ns.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(())
    }

    /// What is lost, as an error that says what to do about it.
    pub(crate) fn lost(&self, lost: Lost) -> Error {
        let path = self.path.display();
        let text = match lost {
            Lost::Gone => format!(
                "the database file {path} is gone or out of reach: nothing is read or written until that very file is back"
            ),
            Lost::Replaced => format!(
                "another file has taken the place of the database {path}: nothing is read or written until the one that \
                 was opened is back; start anew to work on the other"
            ),
            Lost::WalGone => format!("the WAL file of the database {path} was deleted or replaced"),
        };
        Error::new(ErrorKind::Storage, text)
    }

    fn unreachable(&self, error: io::Error) -> Error {
        Error::with_source(ErrorKind::Storage, format!("cannot reach {}", self.path.display()), error)
    }

    /// The pool of connections that read.
    pub(crate) fn readers(&self) -> Result<Readers> {
        // A WAL file that is gone is the writer's to mend; until then its readers have what they had.
        if let Err(lost @ (Lost::Gone | Lost::Replaced)) = self.look_again() {
            return Err(self.lost(lost));
        }
        let mut readers = self.readers.lock();
        match &*readers {
            Some(pool) => Ok(pool.clone()),
            None => Ok(readers.insert(connect::readers(&self.path)?).clone()),
        }
    }

    /// Closes the connections that read, those in use as soon as they are given back. The next reader opens new ones.
    pub(crate) fn forget_readers(&self) {
        self.readers.lock().take();
    }

    pub(crate) fn is_troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        if self.is_troubled() { self.trouble.lock().clone() } else { None }
    }

    /// Takes note whether somebody tries again by itself what fails. A start does not, nor does a client alone: its callers
    /// are told.
    pub(crate) fn attend(&self, attended: bool) {
        self.attended.store(attended, Ordering::Relaxed);
    }

    /// Takes note that the writer failed, if it is the file that failed. It is said once, however often it does.
    pub(crate) fn failed(&self, error: &Error) {
        if !is_of_file(error) {
            return;
        }
        let mut trouble = self.trouble.lock();
        match &mut *trouble {
            Some(trouble) => {
                trouble.failures += 1;
                trouble.error = error.to_string();
                log::debug!("the database still fails: {error}");
            }
            None => {
                let attended = self.attended.load(Ordering::Relaxed);
                let then = if attended { ", and is tried again and again until it does not" } else { "" };
                log::error!("the database fails{then}: {error}");
                *trouble = Some(Trouble { since: self.clock.now(), error: error.to_string(), failures: 1 });
                self.troubled.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Takes note that something was written.
    pub(crate) fn succeeded(&self) {
        if !self.is_troubled() {
            return;
        }
        if let Some(trouble) = self.trouble.lock().take() {
            let lasted = self.clock.now().since(trouble.since);
            log::info!("the database works again after {lasted:?} and {} failures", trouble.failures);
        }
        self.troubled.store(false, Ordering::Relaxed);
    }
}

/// The code that SQLite gave, if it was SQLite that failed.
fn code(error: &Error) -> Option<ErrorCode> {
    error.cause()?.downcast_ref::<rusqlite::Error>()?.sqlite_error_code()
}

/// Whether it is the file, or what it lies on, that fails, and not what was to be written.
fn is_of_file(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Busy => true,
        ErrorKind::Storage => code(error).is_none_or(|code| {
            !matches!(
                code,
                ErrorCode::Unknown
                    | ErrorCode::ConstraintViolation
                    | ErrorCode::TypeMismatch
                    | ErrorCode::TooBig
                    | ErrorCode::OperationInterrupted
                    | ErrorCode::OperationAborted
                    | ErrorCode::SchemaChanged
            )
        }),
        _ => false,
    }
}

/// Whether a connection that failed like this may go on failing when all is well again, so that a new one is needed.
pub(crate) fn is_of_connection(error: &Error) -> bool {
    matches!(
        code(error),
        Some(
            ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::FileLockingProtocolFailed
        )
    )
}
