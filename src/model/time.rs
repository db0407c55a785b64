//! Instants: microseconds since the Unix epoch, UTC.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Result};

/// A moment in UTC, in microseconds since the Unix epoch. RFC 3339 as text and in JSON.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use jobmill::{Clock, SystemClock, Timestamp};
///
/// let in_an_hour = SystemClock.now().saturating_add(Duration::from_secs(3600));
/// let nine: Timestamp = "2026-03-27T09:00:00+01:00".parse()?;
/// assert_eq!(nine.to_string(), "2026-03-27T08:00:00.000000Z");
/// // A file's time of change, for example.
/// assert_eq!(Timestamp::from(SystemTime::from(nine)), nine);
/// # let _ = in_an_hour;
/// # Ok::<(), jobmill::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Midnight, 1 January 1970.
    pub const EPOCH: Self = Self(0);

    /// The last moment that an id can carry, in the year 2255. Later ones are brought back to it.
    pub const MAX: Self = Self(i64::MAX >> 10);

    /// The moment that lies this many microseconds after the epoch, brought into the range from the epoch to
    /// [`Timestamp::MAX`].
    pub const fn from_micros(micros: i64) -> Self {
        if micros < 0 {
            Self::EPOCH
        } else if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Self(micros)
        }
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// This moment plus a duration, no later than [`Timestamp::MAX`].
    pub fn saturating_add(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// This moment less a duration, no earlier than the epoch.
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_sub(micros))
    }

    /// How long after `earlier` this moment lies; zero if it does not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) => write!(f, "{at:.6}"),
            Err(_) => write!(f, "{} us", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    /// RFC 3339 too: nobody reads microseconds since the epoch.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    /// Reads RFC 3339, with any offset.
    fn from_str(text: &str) -> Result<Self> {
        let at: jiff::Timestamp =
            text.parse().map_err(|_| Error::invalid("timestamp", "must be RFC 3339, as in 2026-01-31T12:00:00Z"))?;
        if at.as_microsecond() < 0 || at.as_microsecond() > Self::MAX.0 {
            return Err(Error::invalid("timestamp", "must lie between 1970 and 2255"));
        }
        Ok(Self(at.as_microsecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_rfc_3339_and_reads_back() -> Result<()> {
        let at = Timestamp::from_micros(1_790_000_000_123_456);
        assert_eq!(at.to_string(), "2026-09-21T14:13:20.123456Z");
        assert_eq!(format!("{:?}", Some(at)), "Some(2026-09-21T14:13:20.123456Z)");
        assert_eq!(at.to_string().parse::<Timestamp>()?, at);
        assert_eq!("2026-09-21T16:13:20.123456+02:00".parse::<Timestamp>()?, at);
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert!("1969-12-31T23:59:59Z".parse::<Timestamp>().is_err());
        Ok(())
    }

    #[test]
    fn arithmetic_stays_in_range() {
        assert_eq!(Timestamp::EPOCH.saturating_sub(Duration::MAX), Timestamp::EPOCH);
        assert_eq!(Timestamp::EPOCH.saturating_add(Duration::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::from_micros(-5), Timestamp::EPOCH);
        assert_eq!(Timestamp::EPOCH.since(Timestamp::MAX), Duration::ZERO);
    }
}
