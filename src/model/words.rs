//! Choices that are written as words.

/// Writes and reads a choice by the words of its `as_str`: `Display`, and `FromStr` with an error that names the field
/// and its words. The choice has an `ALL`.
macro_rules! words {
    ($choice:ident, $field:literal) => {
        impl std::fmt::Display for $choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $choice {
            type Err = crate::error::Error;

            fn from_str(word: &str) -> crate::error::Result<Self> {
                let found = Self::ALL.into_iter().find(|choice| choice.as_str() == word);
                found.ok_or_else(|| $crate::model::words::no_word($field, Self::ALL.map(Self::as_str).as_slice()))
            }
        }
    };
}
pub(crate) use words;

use crate::error::Error;

/// The error of a word that is none of a choice's.
pub(crate) fn no_word(field: &str, words: &[&str]) -> Error {
    match words {
        [words @ .., last] => Error::invalid(field, format_args!("must be one of {} and {last}", words.join(", "))),
        [] => Error::invalid(field, "must be none"),
    }
}
