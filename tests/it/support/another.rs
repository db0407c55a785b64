//! This test program once more, as a process of its own.

use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Set for a process that a test starts, to what it is to work on.
pub(crate) const CHILD: &str = "TEST_CHILD";

/// This test program once more, in a test that behaves otherwise there, until it is told to end.
pub(crate) struct Another(Child, Option<ChildStdin>);

impl Another {
    /// Starts it in this test, by its name with that of its module.
    pub(crate) fn start(test: &str, work_on: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("the path of this executable"))
            .args(["--exact", test])
            .env(CHILD, work_on)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child process");
        let stdin = child.stdin.take();
        Self(child, stdin)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Tells it to end, and waits until it has.
    pub(crate) fn end(mut self) {
        self.1.take();
        let mut said = String::new();
        self.0.stdout.take().expect("a pipe").read_to_string(&mut said).expect("what it says");
        let status = self.0.wait().expect("an end");
        // A name that is no test's runs nothing, and nothing fails.
        assert!(status.success() && said.contains("1 passed"), "{said}");
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        // Of a test that failed. It has ended otherwise.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
