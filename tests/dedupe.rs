//! The example `dedupe` as a user runs it: its report, and what a kill or Ctrl-C does to it.

#[path = "support/example.rs"]
mod example;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

const DIRECTORIES: usize = 60;
const FILES: usize = 40;

/// Where the example is.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| example::build("dedupe"))
}

/// A tree to scan, and a place for the state of the program.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir(place.tree()).expect("a tree");
        place
    }

    /// A tree whose scan takes thousands of jobs.
    fn large() -> Self {
        let place = Self::new();
        for directory in 0..DIRECTORIES {
            for file in 0..FILES {
                let number = directory * FILES + file;
                place.write(format!("{}/{}/{number}", directory % 7, directory), content(number % 901).as_bytes());
            }
        }
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().expect("the temporary directory is there")
    }

    fn tree(&self) -> PathBuf {
        self.path().join("tree")
    }

    fn write(&self, path: impl AsRef<Path>, content: &[u8]) {
        let path = self.tree().join(path);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    }

    fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.arg(self.tree()).env("XDG_STATE_HOME", self.path().join("state")).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end.
    fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        self.command().args(arguments).output().expect("the program runs")
    }

    fn report(&self) -> String {
        report(self.run::<&str>(&[]))
    }

    /// Starts a run that tells each job on its standard error.
    fn start(&self) -> Running {
        // Its report goes to a file: a pipe that nobody reads would stop it.
        let report = self.path().join("report");
        let mut command = self.command();
        command.env("RUST_LOG", "jobmill=debug").stdout(File::create(&report).expect("a file"));
        let mut child = command.spawn().expect("the program starts");
        let log = BufReader::new(child.stderr.take().expect("it is piped"));
        Running { child, log, report, line: String::new(), ended: 0 }
    }
}

/// A run under way. It cannot run far ahead of who reads its log, for a pipe holds less than a thousand lines.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    report: PathBuf,
    /// The line that was read last.
    line: String,
    /// How many jobs it has told to have ended.
    ended: usize,
}

impl Running {
    /// Reads on until so many lines hold the word, or the log ends.
    fn read(&mut self, word: &str, times: usize) -> bool {
        let mut found = 0;
        while found < times {
            let mut line = String::new();
            if self.log.read_line(&mut line).expect("the log is text") == 0 {
                return false;
            }
            self.ended += usize::from(line.contains(" ends attempt ") && !line.contains(": snoozed"));
            found += usize::from(line.contains(word));
            self.line = line;
        }
        true
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it has ended");
    }

    /// Waits for the end, and gives it with the last line of the log, and with how many jobs were run.
    fn end(mut self) -> (Output, usize) {
        self.read("", usize::MAX);
        let mut output = self.child.wait_with_output().expect("it ends");
        output.stdout = fs::read(self.report).expect("a report");
        output.stderr = self.line.into_bytes();
        (output, self.ended)
    }
}

fn content(number: usize) -> String {
    format!("content {number}\n").repeat(1 + number % 50)
}

#[track_caller]
fn report(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("a report is text")
}

#[track_caller]
fn refusal(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).expect("an error is text")
}

/// The groups of a report: the files of each, in the report's order.
fn groups(report: &str) -> Vec<Vec<String>> {
    let mut groups = Vec::new();
    for block in report.split("\n\n").filter(|block| block.lines().next().is_some_and(|head| head.contains("each:"))) {
        groups.push(block.lines().skip(1).map(|line| line.trim_start().to_owned()).collect());
    }
    groups
}

/// The groups of a tree, found in the plainest way.
fn groups_of(tree: &Path) -> Vec<Vec<String>> {
    let mut by_content: BTreeMap<Vec<u8>, Vec<PathBuf>> = BTreeMap::new();
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let below = path.strip_prefix(tree).expect("it is below").to_owned();
                by_content.entry(fs::read(path).expect("a file")).or_default().push(below);
            }
        }
    }
    let mut groups: Vec<(usize, Vec<PathBuf>)> = by_content
        .into_iter()
        .filter(|(_, files)| files.len() > 1)
        .map(|(content, mut files)| {
            files.sort();
            (content.len() * (files.len() - 1), files)
        })
        .collect();
    groups.sort_by(|(wasted_a, a), (wasted_b, b)| wasted_b.cmp(wasted_a).then(a.cmp(b)));
    groups.into_iter().map(|(_, files)| files.iter().map(|file| file.display().to_string()).collect()).collect()
}

#[test]
fn it_finds_what_a_plain_search_finds() {
    let place = Place::large();
    let report = place.report();
    let expected = groups_of(&place.tree());
    assert!(expected.len() > 800);
    assert_eq!(groups(&report), expected);
    let count = format!("{} files with", DIRECTORIES * FILES);
    assert!(report.contains(&count), "{report}");
}

#[test]
fn a_report_reads_plainly() {
    let place = Place::new();
    place.write("small/one", b"one");
    place.write("small/another", b"one");
    place.write("large", &[7; 2048]);
    place.write("deep/down/large", &[7; 2048]);
    place.write("empty", b"");
    place.write("empty too", b"");
    place.write("alone", b"alone");
    let expected = format!(
        "2.00 KiB wasted by 2 files of 2.00 KiB each:
  deep/down/large
  large

3 B wasted by 2 files of 3 B each:
  small/another
  small/one

0 B wasted by 2 files of 0 B each:
  empty
  empty too

{}: 2.00 KiB wasted by 3 groups of duplicates
7 files with 4.01 KiB in 4 directories were compared
0 symbolic links and 0 special files were left out
",
        place.tree().display()
    );
    assert_eq!(place.report(), expected.replace('/', std::path::MAIN_SEPARATOR_STR));
}

#[cfg(unix)]
#[test]
fn names_of_one_file_and_links_are_no_duplicates() {
    let place = Place::new();
    place.write("file", b"content");
    fs::hard_link(place.tree().join("file"), place.tree().join("same file")).expect("a hard link");
    std::os::unix::fs::symlink("file", place.tree().join("link")).expect("a symbolic link");
    std::os::unix::fs::symlink(".", place.tree().join("loop")).expect("a symbolic link");
    let alone = place.report();
    assert_eq!(groups(&alone), Vec::<Vec<String>>::new());
    assert!(alone.contains("2 symbolic links and 0 special files were left out"), "{alone}");
    place.write("copy", b"content");
    assert_eq!(groups(&place.report()), [["copy", "file"]]);
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_are_read_and_told() {
    use std::os::unix::ffi::OsStrExt;

    let place = Place::new();
    place.write(Path::new(OsStr::from_bytes(b"caf\xe9/\xff")), b"content");
    place.write("line\nbreak", b"content");
    assert_eq!(groups(&place.report()), [[r"caf\xe9/\xff", r"line\nbreak"]]);
}

#[cfg(unix)]
#[test]
fn what_cannot_be_read_is_told_and_ends_nothing() {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new();
    place.write("one", b"content");
    place.write("two", b"content");
    place.write("secret", b"content");
    place.write("closed/three", b"content");
    for path in ["secret", "closed"] {
        fs::set_permissions(place.tree().join(path), fs::Permissions::from_mode(0o000)).expect("permissions");
    }
    // Nothing is closed to the superuser.
    let closed = File::open(place.tree().join("secret")).is_err();
    let report = place.report();
    fs::set_permissions(place.tree().join("closed"), fs::Permissions::from_mode(0o700)).expect("permissions");
    if closed {
        assert_eq!(groups(&report), [["one", "two"]]);
        assert!(report.contains("2 could not be read:\n  closed: Permission denied"), "{report}");
        assert!(report.contains("\n  secret: Permission denied"), "{report}");
    } else {
        assert_eq!(groups(&report), [["closed/three", "one", "secret", "two"]]);
    }
}

#[test]
fn killed_at_any_moment_it_goes_on_and_reports_the_same() {
    let place = Place::large();
    let undisturbed = place.report();
    // The first moment is that at which the tables have just been made, before the scan has begun.
    for (word, times) in [("tables", 1), ("begins", 1), ("ends", 1), ("ends", 300), ("begins", 700), ("ends", 200)] {
        let mut run = place.start();
        assert!(run.read(word, times), "it ended before it was to be killed");
        run.kill();
    }
    let (output, ran) = place.start().end();
    assert_eq!(report(output), undisturbed);
    assert!(ran < DIRECTORIES * FILES, "what had been done was done again");
    assert!(ran > 0, "the kills came too late");
}

#[cfg(unix)]
#[test]
fn stopped_by_ctrl_c_it_says_how_to_go_on_and_does() {
    let place = Place::large();
    let undisturbed = place.report();
    let mut run = place.start();
    assert!(run.read("ends", 200), "it ended before it was to be stopped");
    let interrupt = Command::new("kill").args(["-INT", &run.child.id().to_string()]).status().expect("kill runs");
    assert!(interrupt.success());
    let (output, ran_first) = run.end();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(output.stdout.is_empty(), "there is no report of half a scan");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.ends_with("run the same command again to go on\n"), "{told}");

    let (output, ran_then) = place.start().end();
    assert_eq!(report(output), undisturbed);
    // Each directory and each file, the root and the seven below it, and not one of them twice.
    let jobs = DIRECTORIES * FILES + DIRECTORIES + 8;
    assert_eq!((ran_first + ran_then), jobs, "{ran_first} before Ctrl-C, {ran_then} after it");
}

#[test]
fn a_reported_scan_is_followed_by_a_new_one() {
    let place = Place::new();
    place.write("one", b"content");
    assert!(groups(&place.report()).is_empty());
    place.write("two", b"content");
    assert_eq!(groups(&place.report()), [["one", "two"]]);
    let left: Vec<String> = fs::read_dir(place.path().join("state/jobmill-dedupe"))
        .expect("the state is where it was asked to be")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn fresh_forgets_an_interrupted_scan() {
    let place = Place::large();
    let mut run = place.start();
    assert!(run.read("ends", 500), "it ended before it was to be killed");
    run.kill();
    // A scan that went on would not see what has become of a directory that it had read.
    fs::remove_dir_all(place.tree()).expect("the tree goes");
    place.write("one", b"content");
    place.write("two", b"content");
    let report = report(place.run(&["--fresh"]));
    assert_eq!(groups(&report), [["one", "two"]]);
    assert!(report.contains("\n2 files with 14 B in 1 directories"), "{report}");
}

#[test]
fn it_refuses_a_database_in_the_tree_and_one_that_is_no_scan() {
    let place = Place::new();
    place.write("one", b"content");
    let inside = place.tree().join("scan.db");
    let error = refusal(place.run(&[OsStr::new("--db"), inside.as_os_str()]));
    assert!(error.contains("which is scanned; name a place outside"), "{error}");
    assert!(!inside.exists());

    let other = place.path().join("other.db");
    let open = || jobmill::rusqlite::Connection::open(&other).expect("a database");
    open().execute_batch("CREATE TABLE precious (n); INSERT INTO precious VALUES (42);").expect("a table");
    for arguments in [&["--db"][..], &["--fresh", "--db"]] {
        let error = refusal(place.command().args(arguments).arg(&other).output().expect("the program runs"));
        assert!(error.contains("holds something else than a scan"), "{error}");
    }
    let kept: i64 = open().query_row("SELECT n FROM precious", [], |row| row.get(0)).expect("it is there still");
    assert_eq!(kept, 42);
}

#[test]
fn a_second_run_on_the_same_scan_is_refused() {
    let place = Place::new();
    let database = place.path().join("scan.db");
    let lock = File::create(place.path().join("scan.db.lock")).expect("a lock file");
    lock.lock().expect("nobody else has it");
    let run = || place.run(&[OsStr::new("--db"), database.as_os_str()]);
    assert!(refusal(run()).contains("another run is at this scan already"));
    drop(lock);
    report(run());
}

#[test]
fn what_is_no_directory_is_refused() {
    let place = Place::new();
    let scan = |name: &str| {
        let mut command = Command::new(program());
        command.arg(place.path().join(name)).env("XDG_STATE_HOME", place.path().join("state"));
        refusal(command.output().expect("the program runs"))
    };
    assert!(scan("nowhere").contains("nowhere: "));
    fs::write(place.path().join("file"), "").expect("a file");
    assert!(scan("file").contains("is no directory"));
}
