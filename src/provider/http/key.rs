//! Keys of accounts: where they come from, and how texts lose them.

use std::fmt;
use std::sync::Arc;

use crate::provider::{CallClass, CallError, CallResult, Fate};

/// What stands where a secret stood.
const GONE: &str = "[redacted]";
/// So many bytes of a key in a row give it away.
const TELLING_BYTES: usize = 8;
/// How the keys of known providers begin. A part of one may be quoted that we do not hold: of the key before, say.
const BEGINNINGS: [&str; 6] = ["sk-", "sk_", "gsk_", "pplx-", "xai-", "bearer"];

/// The key of an account. It is asked for at each call, kept nowhere, and no text shows it.
#[derive(Clone)]
pub struct Key {
    source: Source,
}

type Give = dyn Fn() -> std::result::Result<String, Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

#[derive(Clone)]
enum Source {
    Env(String),
    Closure(Arc<Give>),
    Fixed(Arc<str>),
    None,
}

impl Key {
    /// A key that stands in an environment variable.
    pub fn env(name: impl Into<String>) -> Self {
        Self { source: Source::Env(name.into()) }
    }

    /// A key that a function gives: from a keychain, a vault, a file. It is asked at each call, so it should be quick.
    pub fn from_fn(
        give: impl Fn() -> std::result::Result<String, Box<dyn std::error::Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Self {
        Self { source: Source::Closure(Arc::new(give)) }
    }

    /// This key.
    pub fn fixed(key: impl AsRef<str>) -> Self {
        Self { source: Source::Fixed(Arc::from(key.as_ref())) }
    }

    /// No key, for servers that want none.
    pub fn none() -> Self {
        Self { source: Source::None }
    }

    /// The key as it is now.
    pub(super) fn read(&self) -> CallResult<Secret> {
        let missing = |problem: String| CallError::new(Fate::NotSent, CallClass::Account, problem);
        let key = match &self.source {
            Source::Env(name) => {
                std::env::var(name).map_err(|_| missing(format!("the environment variable {name} holds no key")))?
            }
            // What the function says may hold anything, the key too.
            Source::Closure(give) => {
                give().map_err(|_| missing("the function that gives the key failed".to_owned()))?
            }
            Source::Fixed(key) => key.as_ref().to_owned(),
            Source::None => return Ok(Secret(None)),
        };
        // Files end in a line break, and so do keys that were read from one.
        let key = key.trim();
        if key.is_empty() {
            return Err(missing("the key is empty".to_owned()));
        }
        Ok(Secret(Some(key.to_owned())))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Env(name) => write!(f, "Key(env {name})"),
            Source::Closure(_) => f.write_str("Key(function)"),
            Source::Fixed(_) => f.write_str("Key(fixed)"),
            Source::None => f.write_str("Key(none)"),
        }
    }
}

/// A key in use. It has no `Debug`, so that nothing which holds it can show it.
pub(crate) struct Secret(Option<String>);

impl Secret {
    pub(crate) fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// No secret.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    #[cfg(test)]
    pub(super) fn of(key: &str) -> Self {
        Self(Some(key.to_owned()))
    }

    /// A text without the key, without parts of it, and without what looks like a key.
    pub(crate) fn redact(&self, text: &str) -> String {
        let text = match self.as_str() {
            Some(key) if key.len() >= TELLING_BYTES => text.replace(key, GONE),
            // One so short is a word, and stands in others.
            _ => text.to_owned(),
        };
        let is_between = |c: char| c.is_whitespace() || "\"'`,;()<>{}=&?".contains(c);
        let mut clean = String::with_capacity(text.len());
        let mut rest = text.as_str();
        let mut gives_key = false;
        while !rest.is_empty() {
            let at = rest.find(is_between).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(at);
            let lower = word.to_ascii_lowercase();
            let looks_so = word.len() >= TELLING_BYTES && BEGINNINGS.iter().any(|begin| lower.starts_with(begin));
            let is_secret = word != GONE && !word.is_empty() && (gives_key || looks_so || self.shows_in(word));
            clean.push_str(if is_secret { GONE } else { word });
            let between = behind.len() - behind.trim_start_matches(is_between).len();
            let (between, behind) = behind.split_at(between);
            clean.push_str(between);
            if !word.is_empty() {
                let named = ["key", "api-key", "api_key", "token", "access_token"].contains(&lower.as_str());
                gives_key = (named && between == "=") || (lower == "bearer" && between == " ");
            }
            rest = behind;
        }
        clean
    }

    fn shows_in(&self, word: &str) -> bool {
        self.as_str().is_some_and(|key| {
            let mut parts = key.as_bytes().windows(TELLING_BYTES);
            word == key || parts.any(|part| word.as_bytes().windows(TELLING_BYTES).any(|bytes| bytes == part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_where_they_are_said_to() {
        let read = |key: &Key| key.read().map(|secret| secret.as_str().map(str::to_owned));
        assert_eq!(read(&Key::fixed(" k1\n")), Ok(Some("k1".to_owned())));
        assert_eq!(read(&Key::from_fn(|| Ok("k2".to_owned()))), Ok(Some("k2".to_owned())));
        assert_eq!(read(&Key::none()), Ok(None));
        // Cargo sets it for tests.
        assert_eq!(read(&Key::env("CARGO_PKG_NAME")), Ok(Some("jobmill".to_owned())));
        for missing in
            [Key::env("NO_SUCH_VARIABLE"), Key::from_fn(|| Err("the vault said hunter2".into())), Key::fixed(" \n")]
        {
            let error = read(&missing).expect_err("no key");
            assert_eq!((error.fate, error.class), (Fate::NotSent, CallClass::Account));
            assert!(!error.message.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn no_key_is_shown() {
        for key in [Key::fixed("hunter2-secret"), Key::from_fn(|| Ok("hunter2-secret".to_owned()))] {
            assert!(!format!("{key:?}").contains("hunter2"));
        }
        assert_eq!(format!("{:?}", Key::env("SOME_KEY")), "Key(env SOME_KEY)");
    }

    #[test]
    fn texts_lose_keys_and_parts_of_keys() {
        let secret = Secret(Some("sk-proj-AbCdEfGhIjKl0123456789".to_owned()));
        let table = [
            ("Incorrect API key provided: sk-proj-AbCdEfGhIjKl0123456789.", "Incorrect API key provided: [redacted]."),
            ("provided: sk-proj-************6789. You", "provided: [redacted] You"),
            ("provided: AbCdEfGh**********", "provided: [redacted]"),
            ("ends in 23456789!", "ends in [redacted]"),
            ("Authorization: Bearer abc", "Authorization: Bearer [redacted]"),
            ("GET /x?key=abc&page=2", "GET /x?key=[redacted]&page=2"),
            ("another account's \"gsk_0123456789\"", "another account's \"[redacted]\""),
            ("max_tokens: Field required", "max_tokens: Field required"),
            ("the key is wrong", "the key is wrong"),
            ("", ""),
        ];
        for (text, clean) in table {
            assert_eq!(secret.redact(text), clean, "{text}");
        }
        assert_eq!(Secret(None).redact("sk-0123456789"), "[redacted]");
        assert_eq!(Secret::of("k").redact("ask k, not k"), "ask [redacted], not [redacted]");
    }
}
