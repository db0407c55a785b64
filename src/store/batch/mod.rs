//! LLM batches in the ledger: their states, their counts, and the marks by which results find their items.

pub(crate) mod account;
pub(crate) mod create;
pub(crate) mod plan;
pub(crate) mod poll;
pub(crate) mod read;
pub(crate) mod request;
pub(crate) mod results;
pub(crate) mod retry;
pub(crate) mod settle;

use std::hash::{BuildHasher, RandomState};

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::batch::{RequestStatus, StepStatus};
use crate::model::id::{BatchItemId, BatchRequestId, JobId, digits, from_digits};
use crate::model::job::Status;
use crate::model::usage::Usage;
use crate::store::row::by_number;

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ItemState {
    Waiting = 0,
    /// It belongs to a request, which is at the provider or about to be.
    Sent = 1,
    /// It has a reply, which the step is at.
    Stepping = 2,
    Completed = 3,
    Failed = 4,
    Cancelled = 5,
    Expired = 6,
}

impl ItemState {
    pub(crate) const ALL: [Self; 7] =
        [Self::Waiting, Self::Sent, Self::Stepping, Self::Completed, Self::Failed, Self::Cancelled, Self::Expired];

    /// The status of an item whose request stands there.
    pub(crate) const fn status(self, request: Option<RequestState>) -> Status {
        match self {
            Self::Waiting => Status::Created,
            Self::Sent => match request {
                None | Some(RequestState::Planning | RequestState::Submitting) => Status::Pending,
                Some(_) => Status::Running,
            },
            Self::Stepping => Status::Running,
            Self::Completed => Status::Completed,
            Self::Failed => Status::Failed,
            Self::Cancelled => Status::Cancelled,
            Self::Expired => Status::Expired,
        }
    }

    pub(crate) const fn step_status(self) -> StepStatus {
        match self {
            Self::Waiting | Self::Sent => StepStatus::Paused,
            Self::Stepping => StepStatus::Running,
            _ => StepStatus::Completed,
        }
    }
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestState {
    /// Its items are being gathered. Nothing has left.
    Planning = 0,
    /// It is frozen, and its creation is not under way.
    Submitting = 1,
    /// Its creation has been sent, or may have been, and no answer is in the file.
    Sent = 2,
    Running = 3,
    Ended = 4,
    Harvested = 5,
    Refused = 6,
}

impl RequestState {
    pub(crate) const ALL: [Self; 7] =
        [Self::Planning, Self::Submitting, Self::Sent, Self::Running, Self::Ended, Self::Harvested, Self::Refused];

    pub(crate) const fn status(self) -> RequestStatus {
        match self {
            Self::Planning => RequestStatus::Planning,
            Self::Submitting => RequestStatus::Submitting,
            Self::Sent => RequestStatus::Unknown,
            Self::Running => RequestStatus::Running,
            Self::Ended => RequestStatus::Ended,
            Self::Harvested => RequestStatus::Harvested,
            Self::Refused => RequestStatus::Refused,
        }
    }
}

by_number!(ItemState, RequestState);

macro_rules! row_ids {
    ($($id:ident),*) => {$(
        impl rusqlite::types::ToSql for $id {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok(self.raw().into())
            }
        }

        impl rusqlite::types::FromSql for $id {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                value.as_i64().map(Self::from_raw)
            }
        }
    )*};
}
row_ids!(BatchItemId, BatchRequestId);

/// How the counts and the sums of a batch change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    counts: [i64; ItemState::ALL.len()],
    usage: Usage,
    cost_nanos: i64,
    unpriced: i64,
    strays: i64,
}

impl Change {
    pub(crate) fn item(&mut self, from: Option<ItemState>, to: Option<ItemState>) {
        if let Some(from) = from {
            self.counts[from as usize] -= 1;
        }
        if let Some(to) = to {
            self.counts[to as usize] += 1;
        }
    }

    pub(crate) fn items(&mut self, from: ItemState, to: ItemState, count: usize) {
        self.counts[from as usize] -= count as i64;
        self.counts[to as usize] += count as i64;
    }

    /// Somebody was paid, or nobody knows how much.
    pub(crate) fn spent(&mut self, usage: &Usage, cost_nanos: Option<i64>) {
        self.usage.add(usage);
        match cost_nanos {
            Some(cost) => self.cost_nanos = self.cost_nanos.saturating_add(cost),
            None => self.unpriced += 1,
        }
    }

    /// So many may have been paid, and nobody will ever tell.
    pub(crate) fn unknown(&mut self, count: usize) {
        self.unpriced += count as i64;
    }

    pub(crate) fn stray(&mut self) {
        self.strays += 1;
    }

    pub(crate) fn write(&self, conn: &Connection, batch: JobId) -> rusqlite::Result<()> {
        let [waiting, sent, stepping, completed, failed, cancelled, expired] = self.counts;
        // A sum that no integer holds becomes a float, and a cast of it the largest integer.
        conn.prepare_cached(
            "UPDATE jobmill_batch
             SET waiting = waiting + :waiting, sent = sent + :sent, stepping = stepping + :stepping,
                 completed = completed + :completed, failed = failed + :failed, cancelled = cancelled + :cancelled,
                 expired = expired + :expired,
                 input = CASE WHEN :input IS NULL THEN input ELSE CAST(coalesce(input, 0) + :input AS INTEGER) END,
                 cache_read = CASE WHEN :cache_read IS NULL THEN cache_read
                                   ELSE CAST(coalesce(cache_read, 0) + :cache_read AS INTEGER) END,
                 cache_write = CASE WHEN :cache_write IS NULL THEN cache_write
                                    ELSE CAST(coalesce(cache_write, 0) + :cache_write AS INTEGER) END,
                 output = CASE WHEN :output IS NULL THEN output ELSE CAST(coalesce(output, 0) + :output AS INTEGER) END,
                 reasoning = CASE WHEN :reasoning IS NULL THEN reasoning
                                  ELSE CAST(coalesce(reasoning, 0) + :reasoning AS INTEGER) END,
                 cost_nanos = CAST(cost_nanos + :cost_nanos AS INTEGER), unpriced = unpriced + :unpriced,
                 strays = strays + :strays
             WHERE job = :batch",
        )?
        .execute(named_params! {
            ":batch": batch, ":waiting": waiting, ":sent": sent, ":stepping": stepping, ":completed": completed,
            ":failed": failed, ":cancelled": cancelled, ":expired": expired, ":input": tokens(self.usage.input),
            ":cache_read": tokens(self.usage.cache_read), ":cache_write": tokens(self.usage.cache_write),
            ":output": tokens(self.usage.output), ":reasoning": tokens(self.usage.reasoning),
            ":cost_nanos": self.cost_nanos, ":unpriced": self.unpriced, ":strays": self.strays,
        })
        .map(drop)
    }
}

/// Tokens as a column holds them. What a provider counts has no bound.
fn tokens(count: Option<u64>) -> Option<i64> {
    count.map(|count| i64::try_from(count).unwrap_or(i64::MAX))
}

/// By what the result of a request is known: the file, the item, its step, and how often it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) tag: i64,
    pub(crate) item: BatchItemId,
    pub(crate) step_number: u32,
    pub(crate) sends: u32,
}

impl Mark {
    pub(crate) fn custom_id(&self) -> String {
        format!("{}{}-{}-{}", digits(self.tag), digits(self.item.raw()), self.step_number, self.sends)
    }

    /// Reads a mark. None: it is none of ours.
    pub(crate) fn parse(custom_id: &str) -> Option<Self> {
        let bytes = custom_id.as_bytes();
        let (tag, item) = (from_digits(bytes.get(..13)?)?, from_digits(bytes.get(13..26)?)?);
        let (step, sends) = custom_id.get(26..)?.strip_prefix('-')?.split_once('-')?;
        let mark = Self {
            tag,
            item: BatchItemId::from_raw(item),
            step_number: step.parse().ok()?,
            sends: sends.parse().ok()?,
        };
        (mark.custom_id() == custom_id).then_some(mark)
    }
}

/// How many bytes of bodies and replies are read at a time: as few as exceed that, for one alone may.
const READ_BYTES: usize = 4 << 20;

/// The first of these rows, as many as memory has room for. None: there are no more.
fn some_of<T>(
    rows: impl Iterator<Item = rusqlite::Result<T>>,
    bytes: impl Fn(&T) -> usize,
) -> rusqlite::Result<Vec<T>> {
    let (mut some, mut sum) = (Vec::new(), 0);
    for row in rows {
        let row = row?;
        sum += bytes(&row);
        some.push(row);
        if sum > READ_BYTES {
            break;
        }
    }
    Ok(some)
}

/// The number that tells this file from every other: a part of what leaves it.
pub(crate) fn file_tag(conn: &Connection) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT value FROM jobmill_meta WHERE key = 'file_tag'")?
        .query_row([], |row| row.get(0))
        .optional()
}

/// The same, made if there is none.
pub(crate) fn make_file_tag(conn: &Connection) -> rusqlite::Result<i64> {
    if let Some(tag) = file_tag(conn)? {
        return Ok(tag);
    }
    // The standard library seeds its hash tables from the system's source of chance.
    let tag = (RandomState::new().hash_one(0_u8) >> 1).max(1).cast_signed();
    conn.prepare_cached("INSERT INTO jobmill_meta (key, value) VALUES ('file_tag', :tag)")?
        .execute(named_params! { ":tag": tag })?;
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark { tag: i64::MAX, item: BatchItemId::from_raw(1 << 60), step_number: 12, sends: u32::MAX };
        let text = mark.custom_id();
        assert!(text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{text}");
        assert_eq!(Mark::parse(&text), Some(mark));
        for wrong in ["", "x", &text[1..], &text[..26], &format!("{text} "), &text.replace("-12-", "-012-"), "é"] {
            assert_eq!(Mark::parse(wrong), None, "{wrong}");
        }
    }
}
