//! Who is alive: each engine holds an operating system's lock on a small file of its own beside the database. Whoever
//! can take that lock knows that its owner is dead.
//!
//! The file also tells which claimed jobs have begun: a slot for each attempt whose end is not committed yet, with the
//! job's id and its fencing token. A kill of the process keeps it, for the operating system has the bytes; after a power
//! cut a slot may be old, and its job then counts as not begun.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::RwLock;

use crate::error::{Error, ErrorKind, Result};
use crate::model::time::Timestamp;

const SLOT_BYTES: usize = 16;

/// Our own sign of life.
#[derive(Debug)]
pub(crate) struct Liveness {
    file: RwLock<File>,
    path: PathBuf,
    heartbeats: bool,
}

impl Liveness {
    /// Makes the file beside the database and locks it, unless `heartbeats` are to tell that we live.
    ///
    /// # Errors
    /// `Storage` if the file system has no locks, as some network file systems have none.
    pub(crate) fn begin(database: &Path, now: Timestamp, heartbeats: bool) -> Result<Self> {
        let mut number = now.as_micros();
        loop {
            let path = sibling(database, &format!("{}-{number:x}", std::process::id()));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    if heartbeats {
                        return Ok(Self { file: RwLock::new(file), path, heartbeats });
                    }
                    if let Err(error) = file.try_lock() {
                        drop(file);
                        remove(&path);
                        return Err(Error::with_source(
                            ErrorKind::Storage,
                            "the file system of the database has no file locks, by which engines know who is alive; \
                             heartbeats can take their place (EngineBuilder::heartbeats)",
                            error,
                        ));
                    }
                    return Ok(Self { file: RwLock::new(file), path, heartbeats });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(not_made(error)),
            }
        }
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells that an attempt has begun. Its slot must not be used for another before its end is committed.
    pub(crate) fn begun(&self, slot: u32, id: i64, fence: i64) {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..].copy_from_slice(&fence.to_le_bytes());
        if let Err(error) = write_at(&self.file.read(), &bytes, u64::from(slot) * SLOT_BYTES as u64) {
            log::warn!("cannot mark a job as begun, so a crash would not spend its attempt: {error}");
        }
    }

    /// Makes the file again if somebody has deleted it, for whoever does not find it takes us for dead. What it told is
    /// told again. Gives whether it had to be made.
    pub(crate) fn keep(&self) -> Result<bool> {
        match self.path.try_exists() {
            Ok(true) => return Ok(false),
            Ok(false) => {}
            Err(error) => return Err(not_made(error)),
        }
        let mut held = self.file.write();
        let mut told = Vec::new();
        held.rewind().and_then(|()| held.read_to_end(&mut told)).map_err(not_made)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&self.path).map_err(not_made)?;
        if !self.heartbeats {
            file.try_lock().map_err(|error| not_made(error.into()))?;
        }
        write_at(&file, &told, 0).map_err(not_made)?;
        *held = file;
        Ok(true)
    }

    /// Removes the file: the engine has ended and left nothing behind.
    pub(crate) fn end(&self) {
        remove(&self.path);
    }
}

/// An engine that has died.
#[derive(Debug)]
pub(crate) struct Dead {
    /// The jobs that it had begun, by id and fencing token. Most of them have ended since.
    pub(crate) begun: HashSet<(i64, i64)>,
    /// Its file, and the lock on it that keeps others from the same rescue.
    file: Option<(File, PathBuf)>,
}

impl Dead {
    /// Removes the file of the dead engine, once its jobs are rescued.
    pub(crate) fn bury(self) {
        if let Some((file, path)) = self.file {
            drop(file);
            remove(&path);
        }
    }
}

/// After which silence an engine without a lock counts as dead.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Whether the engine that made `lock_file` lives, as far as can be told without taking its place. `silent_for`: of one
/// without a lock, how long ago it told that it lives.
pub(crate) fn is_alive(database: &Path, lock_file: &str, silent_for: Option<Duration>) -> bool {
    if let Some(silent_for) = silent_for {
        return silent_for <= SILENCE_MAX;
    }
    for path in places(database, lock_file) {
        match File::open(&path) {
            // Two who ask at once do not take each other for it.
            Ok(file) => return file.try_lock_shared().is_err(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return true,
        }
    }
    false
}

/// Where a lock file may lie. The same directory may have another name for another process: what lies beside the database
/// counts first.
fn places(database: &Path, lock_file: &str) -> impl Iterator<Item = PathBuf> {
    let stored = Path::new(lock_file);
    let beside = stored.file_name().and_then(|name| Some(database.parent()?.join(name)));
    beside.into_iter().chain([stored.to_owned()])
}

/// Finds out whether the engine that made `lock_file` is dead: it is if we get its lock, or if its heart is known to
/// have stopped. None if it is alive, or is being rescued.
pub(crate) fn find_dead(database: &Path, lock_file: &str, heart_stopped: bool) -> Result<Option<Dead>> {
    for path in places(database, lock_file) {
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let doing = format!("cannot open the lock file {}", path.display());
                return Err(Error::with_source(ErrorKind::Storage, doing, error));
            }
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(_) if heart_stopped => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                let doing = format!("cannot lock {}", path.display());
                return Err(Error::with_source(ErrorKind::Storage, doing, error));
            }
        }
        let mut bytes = Vec::new();
        if let Err(error) = file.read_to_end(&mut bytes) {
            log::warn!("cannot read which jobs a dead engine had begun: {error}");
        }
        return Ok(Some(Dead { begun: slots(&bytes), file: Some((file, path)) }));
    }
    Ok(Some(Dead { begun: HashSet::new(), file: None }))
}

fn not_made(error: io::Error) -> Error {
    Error::with_source(ErrorKind::Storage, "cannot make a lock file beside the database", error)
}

fn slots(bytes: &[u8]) -> HashSet<(i64, i64)> {
    let number = |bytes: &[u8]| bytes.try_into().map(i64::from_le_bytes).unwrap_or(0);
    bytes.chunks_exact(SLOT_BYTES).map(|slot| (number(&slot[..8]), number(&slot[8..]))).collect()
}

fn sibling(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.file_name().unwrap_or_default().to_owned();
    name.push(format!("-jobmill-{suffix}"));
    database.with_file_name(name)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("cannot remove the lock file {}: {error}", path.display());
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    // A write of one slot is never cut in two.
    std::os::windows::fs::FileExt::seek_write(file, bytes, offset).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_dead_once_its_lock_is_gone() -> Result<()> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let database = directory.path().join("jobs.db");
        let life = Liveness::begin(&database, Timestamp::EPOCH, false)?;
        let lock_file = life.path().to_str().expect("a path in UTF-8").to_owned();
        life.begun(3, 7, 1);
        life.begun(3, 8, 2);
        assert!(find_dead(&database, &lock_file, false)?.is_none(), "it is alive");
        drop(life);
        let dead = find_dead(&database, &lock_file, false)?.expect("it is dead");
        assert!(dead.begun.contains(&(8, 2)) && !dead.begun.contains(&(7, 1)));
        assert!(find_dead(&database, &lock_file, false)?.is_none(), "somebody is at its rescue");
        dead.bury();
        assert!(!Path::new(&lock_file).exists());
        assert!(find_dead(&database, &lock_file, false)?.is_some_and(|dead| dead.begun.is_empty()));
        Ok(())
    }

    #[test]
    fn a_lock_file_that_was_deleted_is_made_again_with_all_that_it_told() -> Result<()> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let database = directory.path().join("jobs.db");
        let life = Liveness::begin(&database, Timestamp::EPOCH, false)?;
        let lock_file = life.path().to_str().expect("a path in UTF-8").to_owned();
        life.begun(2, 7, 1);
        assert!(!life.keep()?, "it is there");
        std::fs::remove_file(&lock_file).expect("a file");
        assert!(life.keep()?);
        assert!(find_dead(&database, &lock_file, false)?.is_none(), "it is alive");
        life.begun(3, 8, 2);
        drop(life);
        let dead = find_dead(&database, &lock_file, false)?.expect("it is dead");
        assert!(dead.begun.contains(&(7, 1)) && dead.begun.contains(&(8, 2)));
        Ok(())
    }
}
