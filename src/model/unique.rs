//! Unique keys: how a second job of the same sort is kept away.

use std::fmt;
use std::time::Duration;

use crate::model::id::ScheduleId;
use crate::model::job::Status;
use crate::model::time::Timestamp;

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
    /// It is ours: it names a tick of a schedule, within no scope of the application's.
    is_tick: bool,
}

impl Unique {
    /// Compares by this key, among jobs of the same kind, while the other is created, pending or running.
    pub fn key(key: impl Into<String>) -> Self {
        Self { key: key.into(), scope: UniqueScope::Kind, statuses: 0, period: None, is_tick: false }.while_in([
            Status::Created,
            Status::Pending,
            Status::Running,
        ])
    }

    /// The key of the job of a tick, which it holds as long as it is kept.
    pub(crate) fn tick(tick: TickKey) -> Self {
        Self { is_tick: true, ..Self::key(tick.to_string()).while_in(Status::ALL) }
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

    /// The key as the caller gave it, if it is the caller's.
    pub(crate) fn own_key(&self) -> Option<&str> {
        (!self.is_tick).then_some(&self.key)
    }

    /// The tick that this is the key of, if it is one.
    pub(crate) fn of_tick(&self) -> Option<TickKey> {
        self.is_tick.then(|| TickKey::read(&self.key)).flatten()
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
        if self.is_tick {
            return format!("{TICK_PREFIX}{}", self.key);
        }
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

/// With what the stored keys of ticks begin. No scope of the application's does.
const TICK_PREFIX: &str = "tick\u{1f}";

/// What tells the job of a tick from all others: no second one is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TickKey {
    pub(crate) schedule: ScheduleId,
    /// The tick's time. Of one that was asked for by hand, when that was.
    pub(crate) at: Timestamp,
    /// The number of one that was asked for by hand.
    pub(crate) by_hand: Option<i64>,
}

impl TickKey {
    /// The tick that a stored key is of, if it is the key of one.
    pub(crate) fn of_stored(scoped: &str) -> Option<Self> {
        scoped.strip_prefix(TICK_PREFIX).and_then(Self::read)
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('\u{1f}');
        let schedule = parts.next()?.parse().ok()?;
        let at = Timestamp::from_micros(parts.next()?.parse().ok()?);
        let by_hand = parts.next().map(str::parse).transpose().ok()?;
        Some(Self { schedule, at, by_hand })
    }
}

impl fmt::Display for TickKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\u{1f}{}", self.schedule, self.at.as_micros())?;
        match self.by_hand {
            Some(number) => write!(f, "\u{1f}{number}"),
            None => Ok(()),
        }
    }
}
