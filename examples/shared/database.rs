//! The database of a program that keeps it for as long as its work lasts: held by one run at a time, and removed at the end.

use std::error::Error;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A file beside another: the same name with something behind it.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    beside.into()
}

/// Keeps a second run of the same work away, which the end of the first would take the ground from.
pub fn lock(database: &Path, work: &str) -> Result<File, Box<dyn Error + Send + Sync>> {
    let path = beside(database, ".lock");
    let file = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(format!("another run is at this {work} already").into()),
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", path.display()).into()),
    }
}

/// Removes the database, what SQLite and engines that were killed have left beside it, and the lock.
pub fn remove(database: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Some(name) = database.file_name() else { return Ok(()) };
    let of_engines = [name.as_encoded_bytes(), b"-jobmill-"].concat();
    // The database goes first. A kill after that leaves files that mean nothing without it; before that, everything.
    let mut paths = vec![database.to_owned(), beside(database, "-wal"), beside(database, "-shm")];
    let directory = database.parent().filter(|parent| !parent.as_os_str().is_empty());
    for entry in fs::read_dir(directory.unwrap_or(Path::new(".")))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(&of_engines) {
            paths.push(entry.path());
        }
    }
    paths.push(beside(database, ".lock"));
    for path in paths {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", path.display()).into());
            }
            _ => {}
        }
    }
    Ok(())
}
