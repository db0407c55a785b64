//! How long ended jobs are kept.

use std::time::Duration;

use crate::error::Result;
use crate::model::job::Status;
use crate::model::rules::check_duration;

const DAY: Duration = Duration::from_secs(86_400);

/// How long a job is kept after it has ended, by how it ended, and how long the audit keeps what was done to jobs. None
/// keeps it for ever.
///
/// ```
/// use std::time::Duration;
/// use jobmill::Retention;
///
/// let retention = Retention { completed: Some(Duration::from_secs(3600)), ..Retention::default() };
/// # let _ = retention;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Completed jobs. Defaults to 7 days.
    pub completed: Option<Duration>,
    /// Failed jobs: the dead letters. Defaults to 30 days.
    pub failed: Option<Duration>,
    /// Cancelled jobs. Defaults to 7 days.
    pub cancelled: Option<Duration>,
    /// Expired jobs. Defaults to 7 days.
    pub expired: Option<Duration>,
    /// Lines of the audit: what was done to jobs out of the ordinary. Defaults to 90 days.
    pub audit: Option<Duration>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            completed: Some(7 * DAY),
            failed: Some(30 * DAY),
            cancelled: Some(7 * DAY),
            expired: Some(7 * DAY),
            audit: Some(90 * DAY),
        }
    }
}

impl Retention {
    /// Keeps everything for ever.
    pub const FOREVER: Self = Self { completed: None, failed: None, cancelled: None, expired: None, audit: None };

    pub(crate) fn of(&self, status: Status) -> Option<Duration> {
        match status {
            Status::Completed => self.completed,
            Status::Failed => self.failed,
            Status::Cancelled => self.cancelled,
            Status::Expired => self.expired,
            Status::Created | Status::Pending | Status::Running => None,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (field, time) in [
            ("retention.completed", self.completed),
            ("retention.failed", self.failed),
            ("retention.cancelled", self.cancelled),
            ("retention.expired", self.expired),
            ("retention.audit", self.audit),
        ] {
            check_duration(field, time.unwrap_or_default())?;
        }
        Ok(())
    }
}
