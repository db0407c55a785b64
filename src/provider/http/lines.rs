//! Answers of one line for each result, read line by line in bounded memory.

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;

use serde::de::IgnoredAny;

use crate::provider::http::key::Secret;
use crate::provider::http::sending::explain;
use crate::provider::{CallClass, CallError, CallResult, Fate, ItemOutcome, ResultLine, Sink};

/// The longest line that is read as a whole.
const MAX_LINE_BYTES: usize = 64 << 20;
/// How much of a line is shown that cannot be read.
const HEAD_BYTES: usize = 500;
/// The longest message of a failure that is told apart from its line.
const MAX_MESSAGE_BYTES: usize = 4 << 10;
/// How much memory is kept between two lines.
const KEPT_BYTES: usize = 1 << 20;

/// The lines of an answer. A line ends at the byte `\n` alone: what else ends lines in texts stands raw inside JSON.
pub(crate) struct Lines {
    reader: BufReader<Box<dyn Read>>,
    line: Vec<u8>,
    max: usize,
    begun: bool,
    has_end: bool,
    secret: Secret,
}

/// A line that has something in it.
struct Line<'l> {
    /// Without what ends it; its beginning, if it is too long.
    bytes: &'l [u8],
    /// Whether the line ends where the answer does.
    is_open: bool,
    is_too_long: bool,
}

/// What a line says.
pub(crate) struct Parsed<'l> {
    pub(crate) custom_id: std::borrow::Cow<'l, str>,
    pub(crate) outcome: ItemOutcome,
}

impl Lines {
    pub(super) fn new(reader: Box<dyn Read>, has_end: bool, secret: Secret) -> Self {
        let reader = BufReader::with_capacity(64 << 10, reader);
        Self { reader, line: Vec::new(), max: MAX_LINE_BYTES, begun: false, has_end, secret }
    }

    /// The next line that is not blank.
    fn next(&mut self) -> CallResult<Option<Line<'_>>> {
        loop {
            self.line.clear();
            self.line.shrink_to(KEPT_BYTES);
            // One more than may be, for the byte that ends the line.
            let room = self.max as u64 + 1;
            let count = self.reader.by_ref().take(room).read_until(b'\n', &mut self.line).map_err(broken)?;
            if count == 0 {
                return Ok(None);
            }
            let mut is_open = self.line.pop_if(|byte| *byte == b'\n').is_none();
            let is_too_long = self.line.len() > self.max;
            if is_too_long {
                self.line.truncate(HEAD_BYTES);
                self.line.shrink_to(KEPT_BYTES);
                is_open = self.skip()?;
            }
            if !self.begun {
                self.begun = true;
                if self.line.starts_with(b"\xef\xbb\xbf") {
                    self.line.drain(..3);
                }
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(Line { bytes: self.line.trim_ascii(), is_open, is_too_long }));
            }
        }
    }

    /// Passes over the rest of a line, and tells whether the answer ended before it did.
    fn skip(&mut self) -> CallResult<bool> {
        loop {
            let there = match self.reader.fill_buf() {
                Ok(there) => there,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            if there.is_empty() {
                return Ok(true);
            }
            let found = there.iter().position(|byte| *byte == b'\n');
            let count = found.map_or(there.len(), |at| at + 1);
            self.reader.consume(count);
            if found.is_some() {
                return Ok(false);
            }
        }
    }
}

/// Gives what each line says to `sink`, until the last or until `sink` breaks. `least` is how many lines there are by what
/// the provider counted, if it did.
///
/// # Errors
/// The answer broke off: its connection did, or its last line has no end and is no JSON, or nothing but the connection's
/// end ended it and lines are missing.
pub(crate) fn give(
    mut lines: Lines,
    least: Option<u64>,
    sink: &mut Sink<'_>,
    parse: impl Fn(&str) -> Result<Parsed<'_>, String>,
) -> CallResult<ControlFlow<()>> {
    let mut given = 0;
    // What a line says of itself is shown to people, so it must not show the key.
    let secret = std::mem::replace(&mut lines.secret, Secret::none());
    while let Some(line) = lines.next()? {
        given += 1;
        let text = std::str::from_utf8(line.bytes);
        let problem = match text {
            _ if line.is_too_long => "the line is longer than a line may be".to_owned(),
            Err(_) if line.is_open => return Err(cut_off()),
            Err(_) => "the line is not UTF-8".to_owned(),
            Ok(text) => match parse(text) {
                Ok(Parsed { custom_id, mut outcome }) => {
                    if let ItemOutcome::Errored { message, .. } = &mut outcome {
                        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
                        *message = secret.redact(message);
                    }
                    if sink(ResultLine::Result { custom_id: &custom_id, outcome, raw: text }).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    continue;
                }
                Err(_) if line.is_open && serde_json::from_str::<IgnoredAny>(text).is_err() => return Err(cut_off()),
                Err(problem) => problem,
            },
        };
        let end = line.bytes.len().min(HEAD_BYTES);
        let head = line.bytes[..end].utf8_chunks().next().map_or("", |chunk| chunk.valid());
        if sink(ResultLine::Unreadable { raw: head, problem: &problem }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    if !lines.has_end && least.is_some_and(|least| given < least) {
        return Err(cut_off());
    }
    Ok(ControlFlow::Continue(()))
}

fn cut_off() -> CallError {
    CallError::new(Fate::Ambiguous, CallClass::Transport, "the results were cut off")
}

/// An answer that broke off.
pub(super) fn broken(error: std::io::Error) -> CallError {
    let error = ureq::Error::from(error);
    let message = match &error {
        ureq::Error::Io(inner)
            if matches!(inner.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData) =>
        {
            "the answer cannot be unpacked".to_owned()
        }
        other => explain(other),
    };
    CallError::new(Fate::Ambiguous, CallClass::Transport, message)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    /// Gives bytes a few at a time.
    struct Drip(Vec<u8>, usize, usize);

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.2.min(buffer.len()).min(self.0.len() - self.1);
            buffer[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
            self.1 += count;
            Ok(count)
        }
    }

    fn parse(text: &str) -> Result<Parsed<'_>, String> {
        let custom_id: String = serde_json::from_str(text).map_err(|_| "bad".to_owned())?;
        Ok(Parsed { custom_id: Cow::Owned(custom_id), outcome: ItemOutcome::Expired })
    }

    /// What a sink is given of these bytes, and how it ends. A line is good if it is a string.
    fn read(bytes: &[u8], step: usize, has_end: bool, least: Option<u64>) -> (Vec<String>, Result<(), String>) {
        let mut lines = Lines::new(Box::new(Drip(bytes.to_vec(), 0, step)), has_end, Secret::none());
        lines.max = 20;
        let mut given = Vec::new();
        let mut sink = |line: ResultLine<'_>| {
            given.push(match line {
                ResultLine::Result { custom_id, .. } => custom_id.to_owned(),
                ResultLine::Unreadable { raw, problem } => format!("{problem}: {raw}"),
                ResultLine::Lull => panic!("a file has none"),
            });
            ControlFlow::Continue(())
        };
        let end = give(lines, least, &mut sink, parse);
        (given, end.map(drop).map_err(|error| error.message))
    }

    #[test]
    fn lines_end_at_one_byte_and_blank_ones_are_none() {
        let text = "\u{feff}\"a\"\n\n  \r\n\"b\u{2028}\u{85}c\"\r\n\t\n\"d\"";
        for step in 1..40 {
            let (given, end) = read(text.as_bytes(), step, true, None);
            assert_eq!((given, end), (vec!["a".to_owned(), "b\u{2028}\u{85}c".to_owned(), "d".to_owned()], Ok(())));
        }
        assert_eq!(read(b"", 1, true, None), (vec![], Ok(())));
    }

    #[test]
    fn a_bad_line_in_the_middle_is_told_and_the_others_count() {
        let long = format!("\"a\"\n\"{}\"\n{{}}\n\"\u{e9}\n\"", "x".repeat(19));
        let mut bytes = long.into_bytes();
        bytes.extend_from_slice(b"z\xff\"\n\"b\"\n");
        for step in [1, 3, 7, 1000] {
            let (given, end) = read(&bytes, step, true, None);
            let head = format!("the line is longer than a line may be: \"{}", "x".repeat(19));
            assert_eq!(given[0], "a");
            assert!(given[1].starts_with(&head), "{given:?}");
            assert_eq!(given[2..], ["bad: {}", "bad: \"\u{e9}", "the line is not UTF-8: \"z", "b"]);
            assert_eq!(end, Ok(()));
        }
        // As long as may be.
        let just = format!("\"{}\"\n", "x".repeat(18));
        assert_eq!(read(just.as_bytes(), 5, true, None).0, ["x".repeat(18)]);
    }

    #[test]
    fn a_last_line_that_is_torn_is_no_line() {
        for torn in [&b"\"a\"\n\"b"[..], b"\"a\"\n\"\xc3", b"\"a\"\n{\"custom_id\":"] {
            let (given, end) = read(torn, 2, true, None);
            assert_eq!((given, end), (vec!["a".to_owned()], Err("the results were cut off".to_owned())));
        }
        // It is whole, though not what was promised.
        assert_eq!(read(b"\"a\"\n{}", 2, true, None), (vec!["a".to_owned(), "bad: {}".to_owned()], Ok(())));
        // It has an end, so nothing is missing of it.
        assert_eq!(read(b"\"a\"\n\"b\n", 2, true, None).1, Ok(()));
    }

    #[test]
    fn where_only_the_connection_ends_an_answer_lines_are_counted() {
        let cut = Err("the results were cut off".to_owned());
        assert_eq!(read(b"\"a\"\n", 9, false, Some(2)).1, cut);
        assert_eq!(read(b"\"a\"\n\"b\"\n", 9, false, Some(2)).1, Ok(()));
        assert_eq!(read(b"\"a\"\n", 9, false, None).1, Ok(()));
        // An answer that has an end may hold fewer: whoever counts the results sees that they are missing.
        assert_eq!(read(b"\"a\"\n", 9, true, Some(2)).1, Ok(()));
    }
}
