//! Finds duplicate files as a desktop program would: a job for each directory, a job for each file, killed at any moment
//! and gone on with at the next start.
//!
//! ```text
//! cargo run --release --example dedupe -- [DIR] [--db PATH] [--fresh]
//! ```
//!
//! Memory is bounded whatever the size of the tree: the entries of one directory and one buffer for each worker, a fixed
//! table for the report, and the duplicates themselves. Everything else is in the database.

#[path = "shared/database.rs"]
mod database;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use database::{lock, remove};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use jobmill::rusqlite::{Connection, OpenFlags, OptionalExtension};
use jobmill::{
    Client, Context, Durability, Engine, Failure, Job, NewJob, Order, Outcome, Payload, Priority, Query, Retention,
    Stats, Status,
};
use serde::{Deserialize, Serialize};

const USAGE: &str = "\
Finds duplicate files.

Usage: dedupe [DIR] [--db PATH] [--fresh]

  DIR        the directory to search; the project's own checkout unless said otherwise
  --db PATH  where to keep the scan while it lasts; it must not be in DIR
  --fresh    forget a scan that was interrupted, and start over

Ctrl-C stops the scan. The same command goes on with it, after a kill or a power cut too.
";

/// How often the progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// How long a stop waits for what is being read. Handlers look for it after each buffer.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const BUFFER_BYTES: usize = 256 * 1024;
/// The exit code of a program that was stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// A path below the scanned directory. In JSON it is text if it can be, and otherwise what the platform makes of it, so
/// that any file name comes back as it was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "StoredPath", into = "StoredPath")]
struct Below(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredPath {
    Text(String),
    Raw(OsString),
}

impl From<Below> for StoredPath {
    fn from(path: Below) -> Self {
        path.0.into_os_string().into_string().map_or_else(Self::Raw, Self::Text)
    }
}

impl From<StoredPath> for Below {
    fn from(stored: StoredPath) -> Self {
        match stored {
            StoredPath::Text(text) => Self(text.into()),
            StoredPath::Raw(raw) => Self(raw.into()),
        }
    }
}

/// Reads one directory and enqueues what is in it.
#[derive(Serialize, Deserialize)]
struct ScanDirectory {
    path: Below,
}

impl Payload for ScanDirectory {
    const KIND: &'static str = "dedupe.directory";

    /// Directories go first, so that the progress bar soon knows how many files there are.
    fn defaults(job: NewJob) -> NewJob {
        job.priority(Priority::High)
    }
}

/// What is in a directory that is no job of its own.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Scanned {
    links: u64,
    others: u64,
}

/// Hashes one file.
#[derive(Serialize, Deserialize)]
struct HashFile {
    path: Below,
}

impl Payload for HashFile {
    const KIND: &'static str = "dedupe.file";
}

/// What a file holds. Its path stands in the payload of the same job.
#[derive(Serialize, Deserialize)]
struct Hashed {
    hash: String,
    size: u64,
    /// Device and inode of a file with several names, where the platform tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<(u64, u64)>,
}

/// What all handlers share.
struct Scan {
    root: PathBuf,
    /// Our own place, which is not searched.
    skip: PathBuf,
    bytes: Arc<AtomicU64>,
}

fn scan_directory(job: ScanDirectory, ctx: &Context) -> Result<Scanned, Failure> {
    let scan = ctx.state::<Scan>()?;
    let mut scanned = Scanned::default();
    let mut children = Vec::new();
    // What cannot be read fails at once: another attempt would find the same.
    for entry in fs::read_dir(scan.root.join(&job.path.0)).map_err(Failure::fatal)? {
        let entry = entry.map_err(Failure::fatal)?;
        let sort = entry.file_type().map_err(Failure::fatal)?;
        let path = Below(job.path.0.join(entry.file_name()));
        if sort.is_dir() {
            if entry.path() != scan.skip {
                children.push(NewJob::of(&ScanDirectory { path }));
            }
        } else if sort.is_file() {
            children.push(NewJob::of(&HashFile { path }));
        } else if sort.is_symlink() {
            scanned.links += 1;
        } else {
            scanned.others += 1;
        }
    }
    // The children come to be in the very commit that completes their directory, so that no kill between the two can
    // lose them or make them twice.
    let completed = ctx.complete(move |tx| -> jobmill::Result<Scanned> {
        for child in children {
            tx.enqueue(child)?;
        }
        Ok(scanned)
    })?;
    Ok(completed)
}

fn hash_file(job: HashFile, ctx: &Context) -> Result<Outcome<Hashed>, Failure> {
    let scan = ctx.state::<Scan>()?;
    let path = scan.root.join(&job.path.0);
    // It may have become something else since its directory was read, and to open a pipe may take for ever.
    if !fs::symlink_metadata(&path).map_err(Failure::fatal)?.is_file() {
        return Err(Failure::fatal("it is no file any more"));
    }
    let mut file = File::open(&path).map_err(Failure::fatal)?;
    let identity = identity(&file.metadata().map_err(Failure::fatal)?);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        ctx.check()?;
        if ctx.is_shutting_down() {
            // The next start begins this file anew, and no attempt is spent.
            return Ok(Outcome::Snooze(Duration::ZERO));
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => {
                hasher.update(&buffer[..bytes]);
                scan.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::fatal(error)),
        }
    }
    let hash = hasher.finalize().to_hex().to_string();
    Ok(Outcome::Done(Hashed { hash, size: hasher.count(), identity }))
}

#[cfg(unix)]
fn identity(file: &fs::Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    (file.nlink() > 1).then(|| (file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn identity(_: &fs::Metadata) -> Option<(u64, u64)> {
    None
}

fn main() -> ExitCode {
    env_logger::init();
    let asked = match Asked::read() {
        Ok(Some(asked)) => asked,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("dedupe: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(asked) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("dedupe: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
struct Asked {
    directory: PathBuf,
    database: Option<PathBuf>,
    fresh: bool,
}

impl Asked {
    fn read() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let (mut directory, mut database, mut fresh) = (None, None, false);
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("db") => database = Some(PathBuf::from(arguments.value()?)),
                Long("fresh") => fresh = true,
                Short('h') | Long("help") => return Ok(None),
                Value(value) if directory.is_none() => directory = Some(PathBuf::from(value)),
                other => return Err(other.unexpected()),
            }
        }
        // Cargo tells those whom it runs where the checkout is.
        let checkout = || std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| ".".into(), PathBuf::from);
        Ok(Some(Self { directory: directory.unwrap_or_else(checkout), database, fresh }))
    }
}

/// Scans and reports. False if it was stopped before its end.
fn run(asked: Asked) -> Result<bool> {
    let stop = listen_for_stop()?;
    let named = |error| format!("{}: {error}", asked.directory.display());
    let root = fs::canonicalize(&asked.directory).map_err(named)?;
    if !root.is_dir() {
        return Err(format!("{} is no directory", root.display()).into());
    }
    let database = match asked.database {
        Some(path) => outside(path, &root)?,
        None => default_database(&root)?,
    };
    // A second run on the same scan would find its database gone when the first one ends.
    let _lock = lock(&database, "scan")?;
    check_ours(&database, &root)?;
    if asked.fresh {
        remove(&database)?;
    }

    let bytes = Arc::new(AtomicU64::new(0));
    let skip = database.parent().unwrap_or(&database).to_owned();
    let engine = Engine::builder(&database)
        // After a power cut some files may have to be hashed again, and that is all.
        .durability(Durability::Normal)
        // An interrupted scan keeps what it has found however long it rests.
        .retention(Retention::FOREVER)
        .state(Scan { root: root.clone(), skip, bytes: bytes.clone() })
        .handle(scan_directory)
        .handle(hash_file)
        .start()?;
    let client = engine.client().clone();
    if !begin(&client, &root)? {
        eprintln!("going on with the scan of {}", printable(&root));
    }
    let reported = follow(&client, &bytes, &stop)? && report(&client, &root, &stop)?;
    engine.shutdown(STOP_PATIENCE)?;
    if reported {
        drop((client, engine));
        remove(&database)?;
    } else {
        let (done, known) = files(&client.stats()?);
        eprintln!("stopped: {done} of {known} known files are done; run the same command again to go on");
    }
    Ok(reported)
}

/// Hears of Ctrl-C, and of the operating system's wish that the program ends. The second time is not negotiable.
fn listen_for_stop() -> Result<Receiver<()>> {
    let (tell, stop) = sync_channel(1);
    let asked = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED.into());
        }
        let _ = tell.try_send(());
    })?;
    Ok(stop)
}

/// Where the scan of `root` is kept: with the user's other program state if that is not being scanned, else among the
/// temporary files.
fn default_database(root: &Path) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".local").join("state"));
    let state = set("XDG_STATE_HOME").or_else(|| set("LOCALAPPDATA")).or_else(home);
    let places: Vec<PathBuf> = state.into_iter().chain([std::env::temp_dir()]).map(|place| real(&place)).collect();
    let place = places.iter().find(|place| !place.starts_with(root)).or(places.first());
    // If everything is scanned, so is our place, and the scan steps over it.
    let place = place.ok_or("there is no place for the database; name one by --db")?.join("jobmill-dedupe");
    fs::create_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    let name = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
    Ok(place.join(format!("{}.db", &name[..16])))
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(real), _, _) => real,
        (Err(_), Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

/// Refuses a database in the directory that is scanned: it would change while it is hashed.
fn outside(database: PathBuf, root: &Path) -> Result<PathBuf> {
    let database = real(&std::path::absolute(database)?);
    if database.starts_with(root) {
        let (database, root) = (database.display(), root.display());
        return Err(format!("--db: {database} lies in {root}, which is scanned; name a place outside").into());
    }
    Ok(database)
}

/// Refuses a file that holds anything but a scan of `root`, for the end of the scan removes it.
fn check_ours(database: &Path, root: &Path) -> Result<()> {
    if fs::metadata(database).map_or(0, |file| file.len()) == 0 {
        return Ok(());
    }
    let named = |error| format!("{}: {error}", database.display());
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(named)?;
    let tables = |like: &str| -> Result<i64> {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name GLOB ?1";
        Ok(conn.query_row(sql, [like], |row| row.get(0)).map_err(named)?)
    };
    let scanned = match tables("dedupe_scan")? {
        0 => None,
        _ => conn.query_row("SELECT root FROM dedupe_scan", [], |row| row.get::<_, String>(0)).optional()?,
    };
    let refuse = |what: &str| Err(format!("{} holds {what}; name another --db", database.display()).into());
    match scanned {
        Some(scanned) if scanned != stored(root)? => refuse("the scan of another directory"),
        Some(_) => Ok(()),
        // A kill may have come between the making of the file and the beginning of the scan.
        None if tables("*")? == tables("jobmill_*")? + tables("sqlite_*")? => Ok(()),
        None => refuse("something else than a scan"),
    }
}

fn stored(root: &Path) -> Result<String> {
    Ok(serde_json::to_string(&Below(root.to_owned()))?)
}

/// Begins a scan unless there is one to go on with. The scan's own table and its first job come in one commit.
fn begin(client: &Client, root: &Path) -> Result<bool> {
    let root = stored(root)?;
    client.write(move |tx| {
        tx.execute("CREATE TABLE IF NOT EXISTS dedupe_scan (root TEXT NOT NULL) STRICT", [])?;
        if tx.query_row("SELECT EXISTS (SELECT 1 FROM dedupe_scan)", [], |row| row.get(0))? {
            return Ok(false);
        }
        tx.execute("INSERT INTO dedupe_scan (root) VALUES (?1)", [root])?;
        tx.enqueue(&ScanDirectory { path: Below(PathBuf::new()) })?;
        Ok(true)
    })
}

/// How many files are done, and how many are known.
fn files(stats: &Stats) -> (u64, u64) {
    let counts = stats.kinds.get(HashFile::KIND).copied().unwrap_or_default();
    (counts.completed + counts.failed, counts.total())
}

/// Shows how far the scan is until it has ended. False if it was stopped before.
fn follow(client: &Client, bytes: &AtomicU64, stop: &Receiver<()>) -> Result<bool> {
    // It shows nothing if standard error is no terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos}/{human_len} files, {msg}")?);
    loop {
        let stats = client.stats()?;
        let (done, known) = files(&stats);
        bar.set_length(known);
        bar.set_position(done);
        bar.set_message(HumanBytes(bytes.load(Ordering::Relaxed)).to_string());
        // Children come in the commit that ends their directory, so that nothing is open only when all is done.
        if stats.total.pending + stats.total.running == 0 {
            bar.finish_and_clear();
            return Ok(true);
        }
        match stop.recv_timeout(SHOW_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                bar.finish_and_clear();
                return Ok(false);
            }
        }
    }
}

/// Visits every job that a query finds, a page at a time. False if it was stopped before the last.
fn visit(client: &Client, query: Query, stop: &Receiver<()>, mut see: impl FnMut(Job) -> Result<()>) -> Result<bool> {
    let mut next = Some(query.order(Order::Ascending).limit(Query::MAX_LIMIT));
    while let Some(query) = next {
        if stop.try_recv().is_ok() {
            return Ok(false);
        }
        let page = client.list(query)?;
        page.jobs.into_iter().try_for_each(&mut see)?;
        next = page.next;
    }
    Ok(true)
}

/// Which hashes may have been seen twice, in a fixed 16 MiB however many there are: each hash has a bit in two tables,
/// and now and then shares it with another.
struct SeenTwice {
    once: Vec<u64>,
    twice: Vec<u64>,
}

impl SeenTwice {
    const BITS: usize = 1 << 26;

    fn new() -> Self {
        Self { once: vec![0; Self::BITS / 64], twice: vec![0; Self::BITS / 64] }
    }

    fn place(hash: &blake3::Hash) -> (usize, u64) {
        let bytes = hash.as_bytes();
        let bit = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize % Self::BITS;
        (bit / 64, 1 << (bit % 64))
    }

    fn see(&mut self, hash: &blake3::Hash) {
        let (word, bit) = Self::place(hash);
        self.twice[word] |= self.once[word] & bit;
        self.once[word] |= bit;
    }

    fn may_be_twice(&self, hash: &blake3::Hash) -> bool {
        let (word, bit) = Self::place(hash);
        self.twice[word] & bit != 0
    }
}

/// Files of one content.
struct Group {
    size: u64,
    files: Vec<(Below, Option<(u64, u64)>)>,
}

impl Group {
    fn wasted(&self) -> u64 {
        self.size * (self.files.len() as u64 - 1)
    }
}

/// Writes the report to standard output. False if it was stopped before it was written.
fn report(client: &Client, root: &Path, stop: &Receiver<()>) -> Result<bool> {
    let hashed = || Query::new().kinds([HashFile::KIND]).statuses([Status::Completed]);
    let mut seen = SeenTwice::new();
    let (mut count, mut bytes) = (0u64, 0u64);
    let complete = visit(client, hashed(), stop, |job| {
        let hashed: Hashed = job.result()?;
        seen.see(&blake3::Hash::from_hex(&hashed.hash)?);
        count += 1;
        bytes += hashed.size;
        Ok(())
    })?;
    let mut groups: HashMap<blake3::Hash, Group> = HashMap::new();
    let complete = complete
        && visit(client, hashed(), stop, |job| {
            let hashed: Hashed = job.result()?;
            let hash = blake3::Hash::from_hex(&hashed.hash)?;
            if seen.may_be_twice(&hash) {
                let path = job.payload::<HashFile>()?.path;
                let group = groups.entry(hash).or_insert(Group { size: hashed.size, files: Vec::new() });
                group.files.push((path, hashed.identity));
            }
            Ok(())
        })?;
    let mut directories = 0u64;
    let mut skipped = Scanned::default();
    let scanned = Query::new().kinds([ScanDirectory::KIND]).statuses([Status::Completed]);
    let complete = complete
        && visit(client, scanned, stop, |job| {
            let scanned: Scanned = job.result()?;
            directories += 1;
            skipped.links += scanned.links;
            skipped.others += scanned.others;
            Ok(())
        })?;
    let mut unread = Vec::new();
    let failed = Query::new().statuses([Status::Failed]);
    let complete = complete
        && visit(client, failed, stop, |job| {
            let path = match job.kind.as_deref().unwrap_or_default() {
                ScanDirectory::KIND => job.payload::<ScanDirectory>()?.path,
                _ => job.payload::<HashFile>()?.path,
            };
            unread.push((path, job.error.unwrap_or_default()));
            Ok(())
        })?;
    if !complete {
        return Ok(false);
    }

    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.files.sort();
        // Names of one and the same file waste nothing: the first of them stands for all.
        let mut known = HashSet::new();
        group.files.retain(|(_, identity)| identity.is_none_or(|identity| known.insert(identity)));
    }
    groups.retain(|group| group.files.len() > 1);
    groups.sort_by(|a, b| (Reverse(a.wasted()), &a.files).cmp(&(Reverse(b.wasted()), &b.files)));
    unread.sort();

    let mut out = io::BufWriter::new(io::stdout().lock());
    for group in &groups {
        let (wasted, size) = (HumanBytes(group.wasted()), HumanBytes(group.size));
        writeln!(out, "{wasted} wasted by {} files of {size} each:", group.files.len())?;
        for (path, _) in &group.files {
            writeln!(out, "  {}", printable(&path.0))?;
        }
        writeln!(out)?;
    }
    if !unread.is_empty() {
        writeln!(out, "{} could not be read:", unread.len())?;
        for (path, error) in &unread {
            writeln!(out, "  {}: {error}", printable(&path.0))?;
        }
        writeln!(out)?;
    }
    let wasted = HumanBytes(groups.iter().map(Group::wasted).sum());
    writeln!(out, "{}: {wasted} wasted by {} groups of duplicates", printable(root), groups.len())?;
    let (links, others) = (skipped.links, skipped.others);
    writeln!(out, "{count} files with {} in {directories} directories were compared", HumanBytes(bytes))?;
    writeln!(out, "{links} symbolic links and {others} special files were left out")?;
    out.flush()?;
    Ok(true)
}

/// A path for people to read, on one line, with bytes that are no text spelled out.
fn printable(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        return ".".to_owned();
    }
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}
