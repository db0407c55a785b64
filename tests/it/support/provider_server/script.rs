//! What a test may tell the server: what goes wrong, what comes of a request, how results are sent.

use crossbeam_channel::Receiver;

/// How it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Anthropic,
    OpenAi,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    Create,
    Poll,
    List,
    Cancel,
    Delete,
    Results,
    Upload,
    Files,
}

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection is closed; nothing is done.
    DropBefore,
    /// What was asked is done; then the connection is closed without an answer.
    DropAfter,
    /// This answer; nothing is done. Status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// What was asked is done; then this answer.
    AnswerAfter(u16, Vec<(&'static str, String)>, String),
    /// What was asked is done, and the answer comes when the test sends something or hangs up.
    Hold(Receiver<()>),
    /// Nothing is done, and no answer comes. The connection is closed when the test hangs up.
    Swallow(Receiver<()>),
    /// So much of the body is read and no more. The connection is closed when the test hangs up.
    Choke(usize, Receiver<()>),
    /// A redirect to there.
    Redirect(u16, String),
    /// What was asked is done; then bytes that are no HTTP.
    Garbage,
}

impl Fault {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), String::new())
    }

    pub(crate) fn status_after(status: u16) -> Self {
        Self::AnswerAfter(status, Vec::new(), String::new())
    }
}

/// What a request of a batch comes to.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The model says this.
    Say(String),
    /// It fails: status, code, message.
    Fail(u16, String, String),
    Expire,
    Cancel,
    /// There is no line for it.
    Nothing,
    /// This line.
    Line(String),
}

/// How the results are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Chunked,
    Length,
    /// In chunks, the last of which never comes.
    NoLastChunk,
    /// More bytes are promised than come.
    ShortLength,
    /// Until the connection is closed.
    Close,
}
