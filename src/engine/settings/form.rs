//! What the value of a setting may be, and reading one.

use std::time::Duration;

use crate::builtin::callback::Callbacks;
use crate::model::retry::Backoff;

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Flag,
    Whole {
        unit: &'static str,
        min: u64,
        max: u64,
    },
    /// A whole number, or `none`.
    WholeOrNone {
        unit: &'static str,
        min: u64,
        max: u64,
    },
    /// Seconds, with a fraction if need be.
    Seconds {
        min: f64,
        max: f64,
    },
    /// Seconds, or `none`.
    SecondsOrNone {
        min: f64,
        max: f64,
    },
    Part,
    Word(&'static [&'static str]),
    /// A secret of callbacks, which is not shown.
    Secret,
}

/// A value that has its form.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Flag(bool),
    Whole(u64),
    Time(Duration),
    Part(f64),
    Word(String),
    None,
}

impl Value {
    pub(super) fn flag(&self) -> bool {
        matches!(self, Self::Flag(true))
    }

    pub(super) fn whole(&self) -> u64 {
        if let Self::Whole(value) = self { *value } else { 0 }
    }

    pub(super) fn small(&self) -> u32 {
        u32::try_from(self.whole()).unwrap_or(u32::MAX)
    }

    pub(super) fn size(&self) -> usize {
        usize::try_from(self.whole()).unwrap_or(usize::MAX)
    }

    pub(super) fn time(&self) -> Duration {
        self.time_or_none().unwrap_or_default()
    }

    pub(super) fn time_or_none(&self) -> Option<Duration> {
        if let Self::Time(value) = self { Some(*value) } else { None }
    }

    pub(super) fn part(&self) -> f64 {
        if let Self::Part(value) = self { *value } else { 0.0 }
    }

    pub(super) fn word(&self) -> &str {
        if let Self::Word(value) = self { value } else { "" }
    }
}

impl Form {
    pub(super) fn parse(self, text: &str) -> Option<Value> {
        let whole = |min, max| text.parse().ok().filter(|value| (min..=max).contains(value)).map(Value::Whole);
        let time = |min: f64, max: f64| {
            let seconds = text.parse().ok().filter(|value| (min..=max).contains(value))?;
            Duration::try_from_secs_f64(seconds).ok().map(Value::Time)
        };
        match self {
            Self::Flag => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(Value::Flag(true)),
                "false" | "0" | "no" | "off" => Some(Value::Flag(false)),
                _ => None,
            },
            Self::WholeOrNone { .. } | Self::SecondsOrNone { .. } if text == "none" => Some(Value::None),
            Self::Whole { min, max, .. } | Self::WholeOrNone { min, max, .. } => whole(min, max),
            Self::Seconds { min, max } | Self::SecondsOrNone { min, max } => time(min, max),
            Self::Part => text.parse().ok().filter(|value| Backoff::JITTER_BOUNDS.contains(value)).map(Value::Part),
            Self::Word(words) => words.contains(&text).then(|| Value::Word(text.to_owned())),
            Self::Secret => Callbacks::is_secret(text).then(|| Value::Word(text.to_owned())),
        }
    }

    pub(super) fn rule(self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Whole { unit, min, max } => format!("{min} to {max} {unit}"),
            Self::WholeOrNone { unit, min, max } => format!("{min} to {max} {unit}, or none"),
            Self::Seconds { min, max } => format!("{min} to {max} seconds"),
            Self::SecondsOrNone { min, max } => format!("{min} to {max} seconds, or none"),
            Self::Part => format!("{} to {}", Backoff::JITTER_BOUNDS.start(), Backoff::JITTER_BOUNDS.end()),
            Self::Word(words) => words.join(" or "),
            Self::Secret => Callbacks::SECRET_FORM.to_owned(),
        }
    }
}
