//! Keeps what the library says in its log, for tests that run alone in a process of their own.

use std::process::Command;

use parking_lot::Mutex;

/// Set for a process that runs one test alone.
const ALONE: &str = "TEST_ALONE";

/// What was said.
pub(crate) struct Said(Mutex<Vec<String>>);

static SAID: Said = Said(Mutex::new(Vec::new()));

impl log::Log for Said {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("jobmill") && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

impl Said {
    /// Has a test run again in a process where nobody else says anything, and gives there what is said. None: it has done
    /// so, and it passed.
    #[track_caller]
    pub(crate) fn alone(test: &str) -> Option<&'static Self> {
        Self::alone_down_to(log::LevelFilter::Info, test)
    }

    /// The same, with what is said at this level too.
    #[track_caller]
    pub(crate) fn alone_down_to(level: log::LevelFilter, test: &str) -> Option<&'static Self> {
        if std::env::var_os(ALONE).is_some() {
            log::set_logger(&SAID).map(|()| log::set_max_level(level)).expect("the first logger");
            return Some(&SAID);
        }
        let this = std::env::current_exe().expect("the program of this test");
        let output = Command::new(this).env(ALONE, "1").args([test, "--exact", "--nocapture"]).output();
        let output = output.expect("a child");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
        None
    }

    /// How many lines hold these words.
    pub(crate) fn count(&self, words: &str) -> usize {
        self.0.lock().iter().filter(|line| line.contains(words)).count()
    }

    /// Takes the lines so far, for people who wonder.
    pub(crate) fn lines(&self) -> String {
        self.0.lock().join("\n")
    }
}
