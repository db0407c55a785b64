//! The rules of the house, read off the source: arrows run down, SQL stays in the store, threads in the engine, clocks
//! in one file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms of the house, top to bottom. A room may import from those below it only.
const ROOMS: [&str; 17] = [
    "lib", "testing", "engine", "builtin", "handler", "client", "desk", "metrics", "events", "ring", "liveness",
    "store", "clock", "provider", "panics", "model", "error",
];

/// Files that may use something of `std::thread`, and what, with the reason.
const THREADS: [(&str, &str); 10] = [
    ("store/connect", "std::thread::sleep"), // SQLite has no event for another process's lock
    ("store/mod", "std::thread::Result"),    // the type of a caught panic
    ("desk/mod", "use std::thread::Thread;"), // the dispatcher's, to wake it
    ("desk/mod", "std::thread::park_timeout"), // where the dispatcher rests
    ("desk/mod", "std::thread::yield_now"),  // before it does
    ("model/workers", "std::thread::available_parallelism"), // a number of the machine's, for a default
    // The threads of one call, which ends with them: a provider that runs requests in this process.
    ("provider/local", "use std::thread::Scope;"),
    ("provider/local", "std::thread::scope("),
    ("provider/local", "std::thread::Builder::new()"),
    ("provider/local", "std::thread::available_parallelism"), // a number of the machine's, for a default
];

/// A source file: its name below `src` without `.rs`, and its code without comments and unit tests.
struct Source {
    name: String,
    code: String,
}

impl Source {
    fn room(&self) -> &str {
        self.name.split('/').next().unwrap_or(&self.name)
    }
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    files(&root, &mut paths);
    let sources: Vec<Source> = paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("a file below src").with_extension("");
            let name = name.to_str().expect("UTF-8").replace('\\', "/");
            Source { name, code: code(&std::fs::read_to_string(&path).expect("a file")) }
        })
        .collect();
    assert!(sources.len() > 30, "the source is where it is looked for");
    sources
}

/// What is left of a file without comments and without its unit tests, which stand at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines().map(without_comment).collect::<Vec<_>>().join("\n")
}

fn without_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(at) = line[from..].find("//").map(|at| from + at) {
        // Two slashes in a string, as in an address, are no comment.
        if line[..at].matches('"').count().is_multiple_of(2) {
            return &line[..at];
        }
        from = at + 2;
    }
    line
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every path that begins with this word, groups in braces unfolded.
fn paths<'c>(code: &'c str, start: &str) -> Vec<Vec<&'c str>> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(start) {
        let begins = !rest[..at].ends_with(|c: char| is_word(c) || c == ':');
        rest = &rest[at + start.len()..];
        if begins {
            unfold(rest, &mut Vec::new(), &mut found);
        }
    }
    found
}

/// Reads what follows `::`: a name and what follows it, or a group. Gives what stands behind.
fn unfold<'c>(text: &'c str, so_far: &mut Vec<&'c str>, found: &mut Vec<Vec<&'c str>>) -> &'c str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = unfold(rest.trim_start(), so_far, found).trim_start();
            match rest.strip_prefix(',') {
                Some(next) if next.trim_start().starts_with('}') => return &next.trim_start()[1..],
                Some(next) => rest = next,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    so_far.push(name);
    let rest = match rest.strip_prefix("::") {
        Some(next) if next.starts_with(|c: char| is_word(c) || c == '{') => unfold(next, so_far, found),
        _ => {
            found.push(so_far.clone());
            rest
        }
    };
    so_far.pop();
    rest
}

#[test]
fn the_reader_of_paths_reads_them() {
    let text = "use crate::a::{b, c::{D, e}, self};\nlet x = crate::f::G::new(); // crate::no\nthe_crate::not;";
    let all: Vec<String> = paths(&code(text), "crate::").into_iter().map(|path| path.join("::")).collect();
    assert_eq!(all, ["a::b", "a::c::D", "a::c::e", "a::self", "f::G::new"]);
    assert_eq!(without_comment("let a = \"http://x\"; // y"), "let a = \"http://x\"; ");
}

#[test]
fn every_file_belongs_to_a_room_and_every_room_has_files() {
    let sources = sources();
    let rooms: BTreeSet<&str> = sources.iter().map(Source::room).collect();
    assert_eq!(rooms, BTreeSet::from(ROOMS));
}

#[test]
fn imports_run_down() {
    let height = |room: &str| ROOMS.iter().position(|known| *known == room);
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room() != "lib") {
        for path in paths(&source.code, "crate::") {
            match height(path[0]) {
                Some(imported) if path[0] == source.room() || Some(imported) > height(source.room()) => {}
                // The facade is for users, and what it names is nobody's room.
                _ => wrong.push(format!("{} imports crate::{}", source.name, path.join("::"))),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Which files of a room import from which others of it.
fn imports_within(room: &str) -> BTreeMap<String, BTreeSet<String>> {
    let sources = sources();
    let names: BTreeSet<&str> =
        sources.iter().filter_map(|source| source.name.strip_prefix(room)?.strip_prefix('/')).collect();
    let mut arrows = BTreeMap::new();
    for source in &sources {
        let Some(own) = source.name.strip_prefix(room).and_then(|name| name.strip_prefix('/')) else { continue };
        let file_of = |name: &str| if names.contains(name) { name.to_owned() } else { "mod".to_owned() };
        let mut to: BTreeSet<String> =
            paths(&source.code, &format!("crate::{room}::")).into_iter().map(|path| file_of(path[0])).collect();
        to.extend(paths(&source.code, "super::").into_iter().map(|path| file_of(path[0])));
        if own == "mod" {
            // It names the files that it declares without a way to them.
            to.extend(
                names
                    .iter()
                    .filter(|name| !paths(&source.code, &format!("{name}::")).is_empty())
                    .map(|name| (*name).to_owned()),
            );
        }
        to.remove(own);
        arrows.insert(own.to_owned(), to);
    }
    arrows
}

/// A way from a file back to itself, if there is one.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(
        arrows: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        let here = way.last()?.clone();
        for next in arrows.get(&here).into_iter().flatten() {
            if let Some(at) = way.iter().position(|seen| seen == next) {
                return Some(way[at..].iter().chain([next]).cloned().collect());
            }
            if !done.contains(next) {
                way.push(next.clone());
                if let Some(found) = walk(arrows, way, done) {
                    return Some(found);
                }
                way.pop();
            }
        }
        done.insert(here);
        None
    }
    let mut done = BTreeSet::new();
    arrows.keys().find_map(|start| walk(arrows, &mut vec![start.clone()], &mut done))
}

#[test]
fn no_files_of_the_store_or_of_the_model_import_in_a_circle() {
    for room in ["store", "model"] {
        let arrows = imports_within(room);
        assert!(arrows.values().map(BTreeSet::len).sum::<usize>() > 8, "{arrows:?}");
        assert_eq!(circle(&arrows), None, "in {room}");
    }
    let bad = BTreeMap::from([("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["b"])]);
    let bad =
        bad.into_iter().map(|(from, to)| (from.to_owned(), to.into_iter().map(str::to_owned).collect())).collect();
    assert_eq!(circle(&bad), Some(["b", "c", "b"].map(str::to_owned).to_vec()), "the search finds one");
}

/// Where a word stands that is forbidden in this file.
fn found(sources: &[Source], words: &[&str], allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| !allowed(source)) {
        for line in source.code.lines() {
            for word in words {
                let stands = line
                    .match_indices(word)
                    .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word));
                if stands {
                    wrong.push(format!("{}: {}", source.name, line.trim()));
                }
            }
        }
    }
    wrong
}

#[test]
fn sql_stands_in_the_store_alone() {
    let words = [
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "REPLACE",
        "CREATE",
        "DROP",
        "ALTER",
        "PRAGMA",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT",
        "RELEASE",
        "VACUUM",
        "ATTACH",
    ];
    let mut sources = sources();
    for source in &mut sources {
        // HTTP has a word in common with it.
        source.code = source.code.replace("Method::DELETE", "");
    }
    assert_eq!(found(&sources, &words, |source| source.room() == "store"), Vec::<String>::new());
    assert!(!found(&sources, &words, |source| source.room() != "store").is_empty(), "the search finds what there is");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for room in ROOMS.into_iter().filter(|room| *room != "store") {
        assert!(!root.join(room).join("migrations").exists(), "{room} has migrations");
    }
}

#[test]
fn threads_are_started_in_the_engine_alone() {
    let mut sources = sources();
    let words = ["std::thread", "thread::Builder", "thread::spawn", "thread::scope", "JoinHandle"];
    for (name, what) in THREADS {
        let source = sources.iter_mut().find(|source| source.name == name).expect("a file that is excepted");
        assert!(source.code.contains(what), "{name} needs no exception any more");
        source.code = source.code.replace(what, "");
    }
    assert_eq!(found(&sources, &words, |source| source.room() == "engine"), Vec::<String>::new());
    assert!(!found(&sources, &words, |source| source.room() != "engine").is_empty(), "the search finds what there is");
    // The pool of readers brings one of its own, whose threads sleep until a connection must be made.
    let pools = found(&sources, &["ScheduledThreadPool", "ThreadPool"], |source| source.name == "store/connect");
    assert_eq!(pools, Vec::<String>::new());
}

#[test]
fn the_network_is_reached_from_builtin_and_provider_alone() {
    let sources = sources();
    let words = ["ureq", "rustls", "TcpStream", "TcpListener", "ToSocketAddrs", "to_socket_addrs"];
    let is_allowed =
        |source: &Source| ["builtin", "provider"].contains(&source.room()) || source.name == "engine/names";
    assert_eq!(found(&sources, &words, is_allowed), Vec::<String>::new());
    let forbidden = |source: &Source| !is_allowed(source);
    assert!(!found(&sources, &words, forbidden).is_empty(), "the search finds what there is");
}

#[test]
fn cron_lines_are_read_in_one_file_and_zones_come_from_another() {
    let sources = sources();
    for (words, file) in
        [(["croner", "CronParser"], "model/schedule/cron"), (["jiff::tz", "TimeZone"], "model/schedule/calendar")]
    {
        assert_eq!(found(&sources, &words, |source| source.name == file), Vec::<String>::new());
        assert!(!found(&sources, &words, |source| source.name != file).is_empty(), "the search finds what there is");
    }
}

/// Whoever closes a file lets go of all locks of the process on it, those of SQLite too, where locks are POSIX's.
#[test]
fn no_file_is_opened_where_it_could_be_the_database() {
    let sources = sources();
    let words = ["File::open", "File::create", "OpenOptions", "fs::read", "fs::write", "fs::copy"];
    assert_eq!(found(&sources, &words, |source| source.name == "liveness"), Vec::<String>::new());
    assert!(!found(&sources, &words, |source| source.name != "liveness").is_empty(), "the search finds what there is");
}

#[test]
fn the_time_is_read_in_one_file() {
    let sources = sources();
    let words = ["Instant", "SystemTime", "UNIX_EPOCH", "Zoned", "Timestamp::now"];
    assert_eq!(found(&sources, &words, |source| source.name == "clock"), Vec::<String>::new());
    assert!(!found(&sources, &words, |source| source.name != "clock").is_empty(), "the search finds what there is");
}

#[test]
fn nothing_is_printed_and_nothing_is_unwrapped() {
    let words = ["println!", "eprintln!", "print!", "eprint!", "dbg!", "todo!", "unimplemented!", ".unwrap()"];
    let wrong: Vec<String> = sources()
        .iter()
        .flat_map(|source| source.code.lines().map(move |line| (source, line)))
        .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(source, line)| format!("{}: {}", source.name, line.trim()))
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_file_opens_by_saying_what_lives_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for directory in ["src", "tests", "benches", "examples"] {
        if root.join(directory).exists() {
            files(&root.join(directory), &mut paths);
        }
    }
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a file");
        assert!(text.starts_with("//! "), "{} does not say what lives there", path.display());
    }
}

/// Whoever sets a variable of a test would have every program beside it refuse its environment.
#[test]
fn names_that_begin_as_settings_do_are_settings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md")];
    for directory in ["src", "tests", "benches", "examples"] {
        files(&root.join(directory), &mut paths);
    }
    // These try names that are none.
    paths.retain(|path| !path.ends_with("engine/settings.rs") && !path.ends_with("it/settings.rs"));
    let prefix = "JOBMILL_";
    let mut known = 0;
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a file");
        for name in text.split(|c| !is_word(c)).filter(|name| name.starts_with(prefix) && *name != prefix) {
            let is_setting = jobmill::Setting::ALL.iter().any(|setting| setting.variable == name);
            assert!(is_setting, "{}: {name} is no setting", path.display());
            known += 1;
        }
    }
    assert!(known > 0, "they are where they are looked for");
}
