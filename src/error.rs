//! The one error type of the crate.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// A result whose error is jobmill's own.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the few ways that a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such row, or one that belongs to another user.
    NotFound,
    /// The row is in a state that forbids the change.
    Conflict,
    /// The client is bound to a user, and only an unbound one may do this.
    Forbidden,
    /// The input breaks a rule; the message names the field and the rule. Nothing was written.
    Invalid,
    /// The database stayed locked by somebody else for longer than the busy timeout.
    Busy,
    /// The time that the caller gave has passed.
    Timeout,
    /// The engine is shutting down or has shut down.
    Shutdown,
    /// The database or its file system failed; the message says how.
    Storage,
}

/// An error with a kind to branch on, a message to read and, where there is one, its source.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: Cow<'static, str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    permanent: bool,
}

/// Stands as the source of an error that comes again whenever the same is tried, so that one knows it within the errors of
/// others, too.
#[derive(Debug)]
pub(crate) struct Permanent;

impl fmt::Display for Permanent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("trying again comes to the same")
    }
}

impl StdError for Permanent {}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, context: context.into(), source: None, permanent: false }
    }

    /// An error that comes again whenever the same is tried.
    pub(crate) fn permanent(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self { permanent: true, ..Self::new(kind, context) }
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()), permanent: false }
    }

    /// A broken rule: `field` is what the caller set, `rule` what holds for it.
    pub(crate) fn invalid(field: &str, rule: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Invalid, format!("{field}: {rule}"))
    }

    /// The same error, which says in addition what it is about.
    pub(crate) fn about(self, what: impl fmt::Display) -> Self {
        Self { context: format!("{} ({what})", self.context).into(), ..self }
    }

    /// The same error, which says first what of several things it is about.
    pub(crate) fn within(self, place: impl fmt::Display) -> Self {
        Self { context: format!("{place}: {}", self.context).into(), ..self }
    }

    pub(crate) fn shutdown() -> Self {
        Self::new(ErrorKind::Shutdown, "the engine has shut down")
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it comes again whenever the same is tried. A handler that gives it has its job fail for good; so does one that
    /// gives an error of which it is a source.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }

    /// The same error once more, for several callers of one failed commit. The source becomes text.
    pub(crate) fn again(&self) -> Self {
        let source = self.source.as_ref().map(|source| source.to_string().into());
        Self { kind: self.kind, context: self.context.clone(), source, permanent: self.permanent }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        if self.permanent {
            return Some(&Permanent);
        }
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}
