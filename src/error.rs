//! The one error type of the crate.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use serde::Serialize;

/// A result whose error is jobmill's own.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the few ways that a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
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

/// An error with a kind to branch on and a message to read, which says its cause where there is one. Its source is what is
/// behind that cause, so that those who print an error with all its sources say nothing twice.
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

    /// What failed that its text says last.
    pub(crate) fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
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
    /// The source of what the text says already, as `std::io::Error` has it with an error of others.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        if self.permanent { Some(&Permanent) } else { self.source.as_ref()?.source() }
    }
}

/// The text of an error and of all its sources, as far as the one does not say the other already, and whether it comes again
/// whenever the same is tried.
pub(crate) fn in_full(error: &impl StdError) -> (String, bool) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<Permanent>() {
            return (text, true);
        }
        let cause_text = cause.to_string();
        // Many errors say their source already.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    (text, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that leaves its source to whoever prints it, as most do.
    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Layer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.1.as_ref().map(|inner| &**inner as &(dyn StdError + 'static))
        }
    }

    /// As those print an error who print all its sources one after another.
    fn chain(error: &Error) -> Vec<String> {
        let (mut said, mut source) = (vec![error.to_string()], error.source());
        while let Some(cause) = source {
            said.push(cause.to_string());
            source = cause.source();
        }
        said
    }

    #[test]
    fn an_error_and_its_sources_say_nothing_twice() {
        let inner = Layer("the disk is on fire", None);
        let error = Error::with_source(ErrorKind::Storage, "cannot open", Layer("cannot read", Some(Box::new(inner))));
        assert_eq!(chain(&error), ["cannot open: cannot read", "the disk is on fire"]);
        let told = "cannot open: cannot read: the disk is on fire";
        assert_eq!(in_full(&error), (told.to_owned(), false));

        let around = Error::with_source(ErrorKind::Invalid, "a job", error);
        assert_eq!(chain(&around), ["a job: cannot open: cannot read", "the disk is on fire"]);
        assert_eq!(chain(&Error::new(ErrorKind::Busy, "locked")), ["locked"]);
        assert_eq!(chain(&around.again()), ["a job: cannot open: cannot read"]);
    }

    #[test]
    fn what_is_permanent_is_so_within_other_errors() {
        let error =
            Error::with_source(ErrorKind::Invalid, "a job", Error::permanent(ErrorKind::Invalid, "no such limit"));
        assert_eq!(in_full(&error), ("a job: no such limit".to_owned(), true));
    }
}
