//! What happened, written by those to whom it happened, outside of the database.
//!
//! Every process appends to one file, so the order of its lines is an order in time across processes. Each line is one
//! write that begins with the line break and ends with a mark: a kill may cut a write short, and what was cut is
//! neither taken for a whole line nor does it spoil the next one.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

const END: &str = " .";

/// The way to write.
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn open(path: &Path) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(path).expect("the journal opens"))
    }

    pub(crate) fn line(&self, text: &str) {
        let line = format!("\n{text}{END}");
        let written = (&self.0).write(line.as_bytes()).expect("the journal takes a line");
        assert_eq!(written, line.len(), "the journal takes a line at once");
    }
}

/// What cut an attempt off from its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its process was killed, or killed itself.
    Died,
    /// Its engine shut down.
    Left,
}

/// An attempt, as its handler tells of it.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    pub(crate) attempt: u32,
    pub(crate) pid: u32,
    pub(crate) token: String,
    /// How the handler was about to end it; none if it never came so far.
    pub(crate) end: Option<String>,
    /// Its process was about to die or to shut down while it was under way.
    pub(crate) cut: Option<Cut>,
    /// It began after a cancellation was acknowledged as requested.
    pub(crate) after_cancel: bool,
}

/// What is known of one job.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    /// The enqueueing was acknowledged.
    pub(crate) acknowledged: bool,
    pub(crate) begun: Vec<Begun>,
    /// Somebody was about to cancel it.
    pub(crate) cancels: u32,
    /// The last cancellation that was acknowledged, if no retry was begun since.
    pub(crate) cancelled: Option<String>,
    /// An attempt was under way when the first such cancellation was acknowledged.
    pub(crate) cancelled_under_way: bool,
    /// Somebody was about to retry it.
    pub(crate) retries: u32,
    /// Ends that a client was shown: status, moment and token.
    pub(crate) ends: Vec<(String, i64, String)>,
}

impl Story {
    fn open(&mut self) -> impl Iterator<Item = &mut Begun> {
        self.begun.iter_mut().filter(|begun| begun.end.is_none() && begun.cut.is_none())
    }
}

/// The journal as read so far.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) stories: HashMap<i64, Story>,
    /// The last status of each tracked job that was acknowledged.
    pub(crate) tracked: HashMap<i64, String>,
    /// Processes that were about to die or to shut down.
    pub(crate) gone: HashMap<u32, Cut>,
    /// Processes that ended in peace, and so have written all that they have counted.
    pub(crate) left: HashSet<u32>,
    /// What no process should have written, or not in this order.
    pub(crate) wrong: Vec<String>,
    read_to: u64,
}

impl Account {
    /// Reads what has been written since the last time. Nobody must be writing.
    pub(crate) fn read(&mut self, path: &Path) {
        let mut file = File::open(path).expect("the journal opens");
        file.seek(SeekFrom::Start(self.read_to)).expect("the journal has the part that was read");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("the journal reads");
        self.read_to += bytes.len() as u64;
        let text = String::from_utf8(bytes).expect("the journal is text");
        for line in text.split('\n').filter_map(|line| line.strip_suffix(END)) {
            let words: Vec<&str> = line.split(' ').collect();
            if self.take(&words).is_none() {
                self.wrong.push(format!("unreadable: {line}"));
            }
        }
    }

    fn take(&mut self, words: &[&str]) -> Option<()> {
        if let [how @ ("dies" | "leaves"), pid] = words {
            let pid: u32 = pid.parse().ok()?;
            let cut = if *how == "dies" { Cut::Died } else { Cut::Left };
            self.gone.entry(pid).or_insert(cut);
            for begun in self.stories.values_mut().flat_map(Story::open).filter(|begun| begun.pid == pid) {
                begun.cut = Some(cut);
            }
            return Some(());
        }
        if let ["left", pid] = words {
            self.left.insert(pid.parse().ok()?);
            return Some(());
        }
        let id = raw(words.get(1)?)?;
        if let ["tracked", _, status] = words {
            self.tracked.insert(id, (*status).to_owned());
            return Some(());
        }
        let story = self.stories.entry(id).or_default();
        match words {
            ["enqueued", _] => story.acknowledged = true,
            ["cancels", _] => story.cancels += 1,
            ["cancelled", _, how] => {
                let under_way = story.open().next().is_some();
                // Of several that were acknowledged, the first one counts.
                if story.cancelled.replace((*how).to_owned()).is_none() {
                    story.cancelled_under_way = under_way;
                }
            }
            ["retries", _] => {
                story.retries += 1;
                story.cancelled = None;
            }
            ["ended", _, status, at, token] => {
                story.ends.push(((*status).to_owned(), at.parse().ok()?, (*token).to_owned()));
            }
            ["begin", job, attempt, pid, token, how] => {
                let (attempt, pid): (u32, u32) = (attempt.parse().ok()?, pid.parse().ok()?);
                // An abandoned attempt runs on beside its successor; all others must have ended or died.
                if let Some(other) = story.open().next().filter(|_| *how != "overdue") {
                    let other = format!("attempt {} in {}", other.attempt, other.pid);
                    self.wrong.push(format!("{job} begins attempt {attempt} in {pid} while {other} is under way"));
                }
                story.begun.push(Begun {
                    attempt,
                    pid,
                    token: (*token).to_owned(),
                    end: None,
                    cut: self.gone.get(&pid).copied(),
                    after_cancel: story.cancelled.is_some(),
                });
            }
            ["end", job, token, how] => match story.begun.iter_mut().find(|begun| begun.token == *token) {
                Some(begun) => begun.end = Some((*how).to_owned()),
                None => self.wrong.push(format!("{job} ends an attempt that never began: {token}")),
            },
            _ => return None,
        }
        Some(())
    }
}

/// The number that an id's text stands for, which is its row's number.
pub(crate) fn raw(text: &str) -> Option<i64> {
    text.strip_prefix("job-")
        .or(text.strip_prefix("run-"))?
        .bytes()
        .try_fold(0i64, |value, digit| {
            let place = b"0123456789abcdefghjkmnpqrstvwxyz".iter().position(|known| *known == digit)?;
            Some(value << 5 | place as i64)
        })
        .filter(|raw| *raw > 0)
}
