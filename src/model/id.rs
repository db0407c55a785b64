//! Ids: a position in creation order, written as a prefix and 13 characters of Crockford base32.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Result};
use crate::model::job_type::JobType;
use crate::model::time::Timestamp;

/// How many low bits of an id count the rows of one microsecond. The lowest of them tells a run from other jobs, for its id
/// is written with another prefix.
const COUNTER_BITS: u32 = 10;
const RUN_BIT: i64 = 1;
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LENGTH: usize = 13;

/// The id of a job: its row number, and its position in creation order.
///
/// The high bits hold the microsecond of creation, the low ten a counter. Ids are assigned inside the write
/// transaction and grow in commit order, across processes too. They are written `job-` or, if the job is the run of an
/// agent, `run-` and 13 characters.
///
/// ```
/// # fn main() -> jobmill::Result<()> {
/// let id: jobmill::JobId = "job-1hs2cdp7k8g00".parse()?;
/// assert_eq!(id.to_string(), "job-1hs2cdp7k8g00");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(i64);

impl JobId {
    const PREFIX: &'static str = "job-";
    const RUN_PREFIX: &'static str = "run-";

    pub(crate) const fn from_raw(raw: i64) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> i64 {
        self.0
    }

    /// The first id that a row created at `at` can have.
    pub(crate) const fn first_at(at: Timestamp) -> Self {
        Self(at.as_micros() << COUNTER_BITS)
    }

    /// The id of a job of this type that follows `last` at the time `now`: later than both.
    pub(crate) const fn after(last: i64, now: Timestamp, job_type: JobType) -> Self {
        let bit = if matches!(job_type, JobType::Run) { RUN_BIT } else { 0 };
        let by_time = now.as_micros() << COUNTER_BITS;
        if by_time > last {
            return Self(by_time | bit);
        }
        match (last | RUN_BIT).checked_add(1) {
            Some(next) => Self(next | bit),
            // At the end of time ids stand still, and the database refuses the second of them.
            None => Self(last),
        }
    }

    /// Whether this is the id of an agent's run.
    pub(crate) const fn is_run(self) -> bool {
        self.0 & RUN_BIT == RUN_BIT
    }

    /// When the row was created.
    pub const fn created_at(self) -> Timestamp {
        Timestamp::from_micros(self.0 >> COUNTER_BITS)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_run() { Self::RUN_PREFIX } else { Self::PREFIX })?;
        f.write_str(&digits(self.0))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    /// Reads an id as it is written. Capital letters are read too.
    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::invalid("id", "must be job- or run- and 13 characters of Crockford base32");
        let (digits, is_run) = match text.strip_prefix(Self::RUN_PREFIX) {
            Some(digits) => (digits.as_bytes(), true),
            None => (text.strip_prefix(Self::PREFIX).ok_or_else(malformed)?.as_bytes(), false),
        };
        match from_digits(digits) {
            Some(raw) if Self(raw).is_run() == is_run => Ok(Self(raw)),
            _ => Err(malformed()),
        }
    }
}

/// A number as 13 digits of Crockford base32.
pub(crate) fn digits(raw: i64) -> String {
    let mut text = [0u8; LENGTH];
    let mut rest = raw.cast_unsigned();
    for place in text.iter_mut().rev() {
        *place = DIGITS[(rest & 31) as usize];
        rest >>= 5;
    }
    text.map(char::from).iter().collect()
}

/// The number that 13 digits stand for, if it is one that a row can have.
pub(crate) fn from_digits(digits: &[u8]) -> Option<i64> {
    if digits.len() != LENGTH {
        return None;
    }
    let mut value: u128 = 0;
    for digit in digits {
        let place = DIGITS.iter().position(|known| *known == digit.to_ascii_lowercase())?;
        value = value << 5 | place as u128;
    }
    i64::try_from(value).ok().filter(|raw| *raw > 0)
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Makes the id of another kind of row: a number that grows with time, written with its own prefix.
macro_rules! row_id {
    ($(#[$doc:meta])* $id:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $id(i64);

        impl $id {
            pub(crate) const fn from_raw(raw: i64) -> Self {
                Self(raw)
            }

            pub(crate) const fn raw(self) -> i64 {
                self.0
            }

            /// When the row was created.
            pub const fn created_at(self) -> Timestamp {
                Timestamp::from_micros(self.0 >> COUNTER_BITS)
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(&digits(self.0))
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $id {
            type Err = Error;

            /// Reads an id as it is written. Capital letters are read too.
            fn from_str(text: &str) -> Result<Self> {
                let raw = text.strip_prefix($prefix).and_then(|digits| from_digits(digits.as_bytes()));
                let rule = concat!("must be ", $prefix, " and 13 characters of Crockford base32");
                raw.map(Self).ok_or_else(|| Error::invalid("id", rule))
            }
        }

        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

row_id! {
    /// The id of a workflow, written `workflow-` and 13 characters. It is of the same sequence as the ids of jobs.
    WorkflowId, "workflow-"
}
row_id! {
    /// The id of one item of an LLM batch, written `batch_item-` and 13 characters.
    BatchItemId, "batch_item-"
}
row_id! {
    /// The id of one batch at a provider, of which an LLM batch may have several, written `batch_req-` and 13 characters.
    BatchRequestId, "batch_req-"
}
row_id! {
    /// The id of a schedule, written `schedule-` and 13 characters.
    ScheduleId, "schedule-"
}

/// The number that follows the last of a table at the time `now`.
pub(crate) const fn row_after(last: i64, now: Timestamp) -> i64 {
    let by_time = now.as_micros() << COUNTER_BITS;
    if by_time > last { by_time } else { last.saturating_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keeps_the_order_and_reads_back() -> Result<()> {
        let raws = [1, 31, 32, 1 << 40, 1_790_000_000_123_456 << COUNTER_BITS, i64::MAX];
        let mut last = String::new();
        for raw in raws {
            let text = JobId(raw).to_string();
            assert_eq!(text.len(), 17);
            assert!(text[4..] > *last, "{text} sorts after {last}");
            assert_eq!(text.parse::<JobId>()?, JobId(raw));
            let capitals = format!("{}{}", &text[..4], text[4..].to_uppercase());
            assert_eq!(capitals.parse::<JobId>()?, JobId(raw));
            last = text[4..].to_owned();
        }
        Ok(())
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in [
            "",
            "job-",
            "job-0000000000000",
            "job-0000000000001",
            "run-0000000000002",
            "batch-0000000000002",
            "job-000000000001",
            "job-00000000000001",
            "job-000000000000u",
            "job-zzzzzzzzzzzzz",
            "job-00000000000é",
            "0000000000001",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_grow_even_when_the_clock_falls_back() {
        let now = Timestamp::from_micros(1_000_000);
        let first = JobId::after(0, now, JobType::Job);
        assert_eq!(first.created_at(), now);
        let second = JobId::after(first.raw(), now, JobType::Batch);
        assert_eq!(second.raw(), first.raw() + 2);
        let third = JobId::after(second.raw(), Timestamp::EPOCH, JobType::Job);
        assert_eq!(third.raw(), second.raw() + 2);
    }

    #[test]
    fn an_id_tells_a_run_by_its_prefix() -> Result<()> {
        let now = Timestamp::from_micros(1_000_000);
        let mut last = 0;
        for job_type in [JobType::Run, JobType::Run, JobType::Job, JobType::Job, JobType::Run, JobType::Batch] {
            let id = JobId::after(last, now, job_type);
            assert!(id.raw() > last);
            assert_eq!(id.created_at(), now);
            assert_eq!(id.to_string().starts_with("run-"), job_type == JobType::Run);
            assert_eq!(id.to_string().parse::<JobId>()?, id);
            last = id.raw();
        }
        Ok(())
    }
}
