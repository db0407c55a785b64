//! Unique keys: how a second job of the same sort is kept away.

use std::time::Duration;

use crate::model::job::Status;

/// What a unique key is compared within, besides the key itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UniqueScope {
    /// Jobs of the same kind.
    #[default]
    Kind,
    /// Jobs in the same queue, of any kind.
    Queue,
    /// Jobs of the same user, of any kind.
    User,
    /// Jobs of the same kind and the same user.
    KindAndUser,
    /// Every job in the file.
    Everything,
}

/// Keeps a second job with the same key away while the first one holds it.
///
/// The first holds its key while its status is one of [`while_in`](Unique::while_in) (created, pending and running,
/// unless said otherwise) and, if a [`period`](Unique::period) is set, no longer than that after it was enqueued. The
/// database enforces it, within one call and across processes.
///
/// ```
/// use std::time::Duration;
/// use jobmill::{Status, Unique};
///
/// // At most one import of a customer in the queue or at work.
/// let one_at_a_time = Unique::key("customer 7");
/// // At most one a day, unless it failed.
/// let daily = Unique::key("customer 7")
///     .period(Duration::from_secs(86_400))
///     .while_in([Status::Created, Status::Pending, Status::Running, Status::Completed]);
/// # let _ = (one_at_a_time, daily);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unique {
    pub(crate) key: String,
    pub(crate) scope: UniqueScope,
    pub(crate) statuses: u8,
    pub(crate) period: Option<Duration>,
}

impl Unique {
    /// Compares by this key, among jobs of the same kind, while the other is created, pending or running.
    pub fn key(key: impl Into<String>) -> Self {
        Self { key: key.into(), scope: UniqueScope::Kind, statuses: 0, period: None }.while_in([
            Status::Created,
            Status::Pending,
            Status::Running,
        ])
    }

    /// Sets what the key is compared within. Defaults to [`UniqueScope::Kind`].
    pub fn scope(mut self, scope: UniqueScope) -> Self {
        self.scope = scope;
        self
    }

    /// Sets the statuses in which a job holds its key. Defaults to created, pending and running.
    pub fn while_in(mut self, statuses: impl IntoIterator<Item = Status>) -> Self {
        self.statuses = statuses.into_iter().fold(0, |mask, status| mask | 1 << status as u8);
        self
    }

    /// Sets how long after its enqueueing a job holds its key. Defaults to no end.
    pub fn period(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }

    /// The key as the caller gave it, of one with its scope spelled out.
    pub(crate) fn bare_key(scoped: &str) -> &str {
        let parts = match scoped.split('\u{1f}').next() {
            Some("everything") => 2,
            Some("kind+user") => 4,
            _ => 3,
        };
        scoped.splitn(parts, '\u{1f}').last().unwrap_or(scoped)
    }

    /// The key with its scope spelled out. The parts are set apart by a character that no name may hold.
    pub(crate) fn scoped_key(&self, queue: &str, kind: &str, user: Option<&str>) -> String {
        let user = user.unwrap_or_default();
        match self.scope {
            UniqueScope::Kind => format!("kind\u{1f}{kind}\u{1f}{}", self.key),
            UniqueScope::Queue => format!("queue\u{1f}{queue}\u{1f}{}", self.key),
            UniqueScope::User => format!("user\u{1f}{user}\u{1f}{}", self.key),
            UniqueScope::KindAndUser => {
                format!("kind+user\u{1f}{kind}\u{1f}{user}\u{1f}{}", self.key)
            }
            UniqueScope::Everything => format!("everything\u{1f}{}", self.key),
        }
    }
}
