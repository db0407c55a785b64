//! A request on its way to the provider: each step is in the file before the next is taken.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use crate::model::batch_job::{CleanRequest, HarvestRequest, RunRequest, SendRequest};
use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::model::time::Timestamp;
use crate::provider::{RemoteBatch, RemoteEnd, RemoteState};
use crate::store::Turn;
use crate::store::batch::{Change, ItemState, RequestState};
use crate::store::row::json;

/// How often a request must have been looked for in vain before anything follows from it, however long that took: a clock
/// that was set makes an hour of a moment.
pub(crate) const MISSES_MIN: u32 = 3;

/// A request, as those who take it on its way must know it.
#[derive(Clone, Debug)]
pub(crate) struct RequestRow {
    pub(crate) id: BatchRequestId,
    pub(crate) batch: JobId,
    pub(crate) state: RequestState,
    pub(crate) provider: String,
    pub(crate) account: String,
    pub(crate) endpoint: String,
    pub(crate) key: String,
    pub(crate) items: u64,
    pub(crate) bytes: u64,
    pub(crate) tokens: u64,
    pub(crate) file: Option<String>,
    pub(crate) uploaded_at: Option<Timestamp>,
    pub(crate) attempt: u32,
    pub(crate) sent_at: Option<Timestamp>,
    pub(crate) remote_id: Option<String>,
    pub(crate) end: Option<RemoteEnd>,
    pub(crate) latest: Option<RemoteBatch>,
    pub(crate) poll_wait: Option<Duration>,
    pub(crate) cancel_requested: bool,
    pub(crate) failures: u32,
    /// The hash of its body, as it was frozen.
    pub(crate) sha256: Vec<u8>,
}

macro_rules! request_columns {
    () => {
        "id, batch, state, provider, account, endpoint, key, items, bytes, tokens, file, uploaded_at, attempt, sent_at, \
         remote_id, remote_end, latest, poll_wait_us, cancel_requested_at IS NOT NULL, failures, body_sha256"
    };
}
pub(crate) use request_columns;

pub(crate) fn request_row(row: &Row<'_>) -> rusqlite::Result<RequestRow> {
    let count = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
    Ok(RequestRow {
        id: row.get(0)?,
        batch: row.get(1)?,
        state: row.get(2)?,
        provider: row.get(3)?,
        account: row.get(4)?,
        endpoint: row.get(5)?,
        key: row.get(6)?,
        items: count(7)?,
        bytes: count(8)?,
        tokens: count(9)?,
        file: row.get(10)?,
        uploaded_at: row.get(11)?,
        attempt: row.get(12)?,
        sent_at: row.get(13)?,
        remote_id: row.get(14)?,
        end: json(row, 15)?,
        latest: json(row, 16)?,
        poll_wait: row.get::<_, Option<i64>>(17)?.map(|us| Duration::from_micros(us.cast_unsigned())),
        cancel_requested: row.get(18)?,
        failures: row.get(19)?,
        sha256: row.get::<_, Option<Vec<u8>>>(20)?.unwrap_or_default(),
    })
}

/// Reads one request.
pub(crate) fn request(conn: &Connection, id: BatchRequestId) -> rusqlite::Result<Option<RequestRow>> {
    conn.prepare_cached(concat!("SELECT ", request_columns!(), " FROM jobmill_batch_request WHERE id = :id"))?
        .query_row(named_params! { ":id": id }, request_row)
        .optional()
}

/// Whether a creation may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaySend {
    Yes,
    /// Another creation at the account is under way, and so many requests wait for their turn with this one.
    NotYet(u32),
    /// The batch is being cancelled, or the request is elsewhere.
    No,
}

impl Turn<'_> {
    /// Has a request sent, or looked for.
    pub(crate) fn send_later(&mut self, request: BatchRequestId) -> rusqlite::Result<()> {
        self.enqueue(&SendRequest { request }.new_job()).map(drop)
    }

    /// Has the results of a request read. What is run meanwhile, for it is a local provider's, has workers of its own.
    pub(crate) fn harvest_later(&mut self, request: BatchRequestId) -> rusqlite::Result<()> {
        let local = self
            .conn
            .prepare_cached("SELECT 1 FROM jobmill_batch_request WHERE id = :id AND local = 1")?
            .exists(named_params! { ":id": request })?;
        let job = if local { RunRequest { request }.new_job() } else { HarvestRequest { request }.new_job() };
        self.enqueue(&job).map(drop)
    }

    /// The body of a request is about to be uploaded.
    pub(crate) fn upload_begins(&mut self, id: BatchRequestId) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_batch_request SET uploaded_at = :now WHERE id = :id AND state = 1")?
            .execute(named_params! { ":id": id, ":now": self.now })
            .map(drop)
    }

    /// The body of a request is at the provider.
    pub(crate) fn uploaded(&mut self, id: BatchRequestId, file: &str) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET file = :file, failures = 0, error = NULL WHERE id = :id AND state = 1",
            )?
            .execute(named_params! { ":id": id, ":file": file })
            .map(drop)
    }

    /// The body of a request is not at the provider any more, and is uploaded anew.
    pub(crate) fn forget_upload(&mut self, id: BatchRequestId) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET file = NULL, uploaded_at = NULL WHERE id = :id AND state = 1",
            )?
            .execute(named_params! { ":id": id })
            .map(drop)
    }

    /// The creation of a request is about to be sent. From here on nobody knows whether it was, until the answer is in the
    /// file.
    pub(crate) fn mark_sent(&mut self, row: &RequestRow, create_timeout: Duration) -> rusqlite::Result<MaySend> {
        if !self.is_batch_open(row.batch)? {
            return Ok(MaySend::No);
        }
        let until = self.now.saturating_add(create_timeout.saturating_mul(2));
        if !self.lease(&row.account, row.id, until)? {
            return self.place_in_line(&row.account, row.id).map(MaySend::NotYet);
        }
        let marked = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET state = 2, attempt = attempt + 1, sent_at = :now, misses = 0, missed_since = NULL
                 WHERE id = :id AND state = 1 AND cancel_requested_at IS NULL",
            )?
            .execute(named_params! { ":id": row.id, ":now": self.now })?;
        if marked == 1 {
            return Ok(MaySend::Yes);
        }
        self.end_lease(&row.account, row.id)?;
        Ok(MaySend::No)
    }

    /// The creation of a request is about to be sent once more, under a key by which its provider knows what it has made
    /// already. Until the answer is in the file, it may be there.
    pub(crate) fn mark_sent_again(&mut self, row: &RequestRow, create_timeout: Duration) -> rusqlite::Result<MaySend> {
        if !self.is_batch_open(row.batch)? {
            return Ok(MaySend::No);
        }
        let until = self.now.saturating_add(create_timeout.saturating_mul(2));
        if !self.lease(&row.account, row.id, until)? {
            return self.place_in_line(&row.account, row.id).map(MaySend::NotYet);
        }
        // The first sending stays the moment since when it is looked for.
        let marked = self
            .conn
            .prepare_cached("UPDATE jobmill_batch_request SET attempt = attempt + 1 WHERE id = :id AND state = 2")?
            .execute(named_params! { ":id": row.id })?;
        if marked == 1 {
            return Ok(MaySend::Yes);
        }
        self.end_lease(&row.account, row.id)?;
        Ok(MaySend::No)
    }

    /// The creation of a request cannot have had an effect: it may be sent again.
    pub(crate) fn not_sent(&mut self, row: &RequestRow, error: &str) -> rusqlite::Result<()> {
        self.end_lease(&row.account, row.id)?;
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET state = 1, failures = failures + 1, error = :error
                 WHERE id = :id AND state IN (1, 2) AND remote_id IS NULL",
            )?
            .execute(named_params! { ":id": row.id, ":error": error })
            .map(drop)
    }

    /// Something about a request failed that will be tried again.
    pub(crate) fn request_failed(&mut self, row: &RequestRow, error: &str) -> rusqlite::Result<()> {
        self.end_lease(&row.account, row.id)?;
        self.conn
            .prepare_cached("UPDATE jobmill_batch_request SET failures = failures + 1, error = :error WHERE id = :id")?
            .execute(named_params! { ":id": row.id, ":error": error })
            .map(drop)
    }

    /// The provider has a request, under an id of its own. False: that id belongs to another request of ours.
    pub(crate) fn adopt(
        &mut self,
        row: &RequestRow,
        remote: &RemoteBatch,
        poll_wait: Duration,
    ) -> rusqlite::Result<bool> {
        self.end_lease(&row.account, row.id)?;
        let text = serde_json::to_string(remote).unwrap_or_default();
        let adopted = self
            .conn
            .prepare_cached(
                "UPDATE OR IGNORE jobmill_batch_request
                 SET state = 3, remote_id = :remote_id, remote_status = :raw_status, created = :text, latest = :text,
                     expires_at = :expires_at, polled_at = :now, next_poll_at = :next, poll_wait_us = :wait_us,
                     failures = 0, misses = 0, missed_since = NULL, error = NULL
                 WHERE id = :id AND state IN (1, 2)",
            )?
            .execute(named_params! {
                ":id": row.id, ":remote_id": remote.id, ":raw_status": remote.raw_status, ":text": text,
                ":expires_at": remote.expires_at, ":now": self.now, ":next": self.now.saturating_add(poll_wait),
                ":wait_us": poll_wait.as_micros() as i64,
            })?;
        if adopted == 0 {
            return Ok(request(self.conn, row.id)?.is_some_and(|now| now.remote_id.as_deref() == Some(&*remote.id)));
        }
        self.unblock(&row.account)?;
        if let RemoteState::Ended(end) = &remote.state {
            self.remote_ended(row.id, end)?;
        }
        if self.is_cancel_requested(row.batch)? {
            self.cancel_later(row.batch)?;
        }
        Ok(true)
    }

    /// A request has ended at its provider. What its items came to is still to be read.
    pub(crate) fn remote_ended(&mut self, id: BatchRequestId, end: &RemoteEnd) -> rusqlite::Result<()> {
        let ended = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET state = 4, remote_end = :end, ended_at = :now, next_poll_at = NULL, poll_owner = NULL,
                     poll_until = NULL, failures = 0, misses = 0, missed_since = NULL, error = NULL
                 WHERE id = :id AND state = 3",
            )?
            .execute(named_params! {
                ":id": id, ":now": self.now, ":end": serde_json::to_string(end).unwrap_or_default(),
            })?;
        if ended == 1 { self.harvest_later(id) } else { Ok(()) }
    }

    /// The provider has refused a request as a whole when it was to be created, so that nothing of it was run.
    pub(crate) fn refused_at_once(&mut self, row: &RequestRow, why: &str) -> rusqlite::Result<()> {
        self.end_lease(&row.account, row.id)?;
        let end = RemoteEnd::Invalid(why.to_owned());
        let refused = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET state = 4, remote_end = :end, ended_at = :now
                 WHERE id = :id AND state IN (1, 2) AND remote_id IS NULL",
            )?
            .execute(named_params! {
                ":id": row.id, ":now": self.now, ":end": serde_json::to_string(&end).unwrap_or_default(),
            })?;
        if refused == 1 { self.harvest_later(row.id) } else { Ok(()) }
    }

    /// A request was looked for at its provider, which does not know it, or keeps its results no more. Tells how often that
    /// was so in a row, and for how long.
    pub(crate) fn missed(&mut self, id: BatchRequestId) -> rusqlite::Result<(u32, Duration)> {
        let missed: Option<(u32, Timestamp)> = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET misses = misses + 1, missed_since = min(coalesce(missed_since, :now), :now)
                 WHERE id = :id AND state IN (2, 3, 4) RETURNING misses, missed_since",
            )?
            .query_row(named_params! { ":id": id, ":now": self.now }, |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(missed.map_or((0, Duration::ZERO), |(misses, since)| (misses, self.now.since(since))))
    }

    /// The provider of a request says for certain that it does not know it, or that it keeps its results no more. Once it
    /// has said so often and for long enough, the request is given up. What is being cancelled need not be waited for.
    pub(crate) fn not_known(&mut self, row: &RequestRow, why: &str, patience: Duration) -> rusqlite::Result<bool> {
        let (misses, time) = self.missed(row.id)?;
        let unwanted = row.cancel_requested || self.is_cancel_requested(row.batch)?;
        if misses < MISSES_MIN || (time < patience && !unwanted) {
            return Ok(false);
        }
        self.lose(row, &format!("its provider has said {misses} times: {why}"))
    }

    /// Gives a request up of which nobody will ever know what of it was run. False: it has come to its end.
    pub(crate) fn lose(&mut self, row: &RequestRow, why: &str) -> rusqlite::Result<bool> {
        self.end_lease(&row.account, row.id)?;
        let end = RemoteEnd::Lost(why.to_owned());
        let lost = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET state = 4, remote_end = :end, ended_at = coalesce(ended_at, :now), next_poll_at = NULL,
                     poll_owner = NULL, poll_until = NULL
                 WHERE id = :id AND state IN (2, 3, 4)",
            )?
            .execute(named_params! {
                ":id": row.id, ":now": self.now, ":end": serde_json::to_string(&end).unwrap_or_default(),
            })?;
        if lost == 1 {
            log::error!("{}: it is given up, and what of it was run is not known: {why}", row.id);
            self.harvest_later(row.id)?;
        }
        Ok(lost == 1)
    }

    /// A twin of a request was found: a batch at the provider with the same items, which is paid as well. Its results are
    /// read too.
    pub(crate) fn record_twin(&mut self, row: &RequestRow, remote: &RemoteBatch) -> rusqlite::Result<()> {
        let text = serde_json::to_string(remote).unwrap_or_default();
        self.conn
            .prepare_cached(
                "INSERT OR IGNORE INTO jobmill_batch_request
                     (id, batch, state, provider, account, base_url, api_version, endpoint, model, key, remote_id,
                      remote_status, created, latest, sent_at, next_poll_at, poll_wait_us, cancel_requested_at, error)
                 SELECT (SELECT max(id) + 1 FROM jobmill_batch_request), batch, 3, provider, account, base_url,
                     api_version, endpoint, model, key || '-twin-' || :remote_id, :remote_id, :raw_status, :text, :text,
                     sent_at, :now, 0, :now, 'made twice: its items are in another batch too'
                 FROM jobmill_batch_request WHERE id = :id",
            )?
            .execute(named_params! {
                ":id": row.id, ":remote_id": remote.id, ":raw_status": remote.raw_status, ":text": text,
                ":now": self.now,
            })
            .map(drop)
    }

    /// Nothing is left of a request at its provider.
    pub(crate) fn cleaned(&mut self, id: BatchRequestId) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE jobmill_batch_request SET cleaned_at = :now WHERE id = :id")?
            .execute(named_params! { ":id": id, ":now": self.now })
            .map(drop)
    }

    /// An operator says which batch at the provider a request is. False: that is known, or the batch is another's. None:
    /// there is no such request.
    pub(crate) fn adopt_by_hand(&mut self, id: BatchRequestId, remote_id: &str) -> rusqlite::Result<Option<bool>> {
        let Some(row) = request(self.conn, id)? else { return Ok(None) };
        if row.state != RequestState::Sent || is_elsewhere(self.conn, &row.account, remote_id, id)? {
            return Ok(Some(false));
        }
        let remote = RemoteBatch::new(remote_id, RemoteState::Running, "{}");
        self.adopt(&row, &remote, Duration::ZERO).map(Some)
    }

    /// An operator says that a request was not created, or that its provider knows nothing of it any more. False: it is known what became of it.
    pub(crate) fn abandon_by_hand(&mut self, id: BatchRequestId) -> rusqlite::Result<Option<bool>> {
        let Some(row) = request(self.conn, id)? else { return Ok(None) };
        let given_up = RemoteEnd::Broken("an operator has given it up".to_owned());
        match row.state {
            RequestState::Sent => {}
            // What its provider still tells of is not given up.
            RequestState::Running if row.failures > 0 => {
                self.remote_ended(id, &given_up)?;
                return Ok(Some(true));
            }
            RequestState::Ended if row.failures > 0 => {
                self.conn
                    .prepare_cached("UPDATE jobmill_batch_request SET remote_end = :end WHERE id = :id AND state = 4")?
                    .execute(named_params! {
                        ":id": id, ":end": serde_json::to_string(&given_up).unwrap_or_default(),
                    })?;
                self.harvest_later(id)?;
                return Ok(Some(true));
            }
            _ => return Ok(Some(false)),
        }
        self.not_sent(&row, "an operator says that it was not created")?;
        self.send_later(id)?;
        Ok(Some(true))
    }

    /// Notes that a batch at the provider is none of ours.
    pub(crate) fn note_foreign(&mut self, account: &str, remote_id: &str) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("INSERT OR IGNORE INTO jobmill_batch_foreign (account, remote_id) VALUES (:account, :id)")?
            .execute(named_params! { ":account": account, ":id": remote_id })
            .map(drop)
    }

    /// Whether nothing of a request has left, for all that is known: it may turn out to be at its provider after all.
    pub(crate) fn is_unsent(&self, request: BatchRequestId) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_batch_request WHERE id = :id AND state IN (0, 1)")?
            .exists(named_params! { ":id": request })
    }

    /// Ends a request that came to its end at the provider and has no results.
    pub(crate) fn ended_in_vain(&mut self, request: BatchRequestId, why: &str) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request SET state = :refused, error = :why, reserved_nanos = 0
                 WHERE id = :id AND state = 4",
            )?
            .execute(named_params! { ":id": request, ":why": why, ":refused": RequestState::Refused })
            .map(drop)
    }

    /// Ends up to `limit` items of a request in a state, for a reason, and tells whether any are left.
    pub(crate) fn end_items(
        &mut self,
        batch: JobId,
        request: BatchRequestId,
        to: ItemState,
        (class, error): (Option<&str>, Option<&str>),
        limit: usize,
    ) -> rusqlite::Result<bool> {
        let ended = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_item SET state = :to, error_class = :class, error = :error
                 WHERE id IN (SELECT id FROM jobmill_batch_item WHERE request = :request AND state = 1 LIMIT :limit)",
            )?
            .execute(named_params! {
                ":request": request, ":to": to, ":class": class, ":error": error, ":limit": limit as i64,
            })?;
        let mut change = Change::default();
        change.items(ItemState::Sent, to, ended);
        change.write(self.conn, batch)?;
        Ok(ended == limit)
    }

    /// Fails items of a request, each for a reason of its own.
    pub(crate) fn fail_bound(
        &mut self,
        batch: JobId,
        request: BatchRequestId,
        items: &[(BatchItemId, String)],
    ) -> rusqlite::Result<()> {
        let mut fail = self.conn.prepare_cached(
            "UPDATE jobmill_batch_item SET state = 4, error_class = 'invalid', error = :error
             WHERE id = :id AND request = :request AND state = 1",
        )?;
        let mut change = Change::default();
        for (id, error) in items {
            let failed = fail.execute(named_params! { ":id": id, ":request": request, ":error": error })?;
            change.items(ItemState::Sent, ItemState::Failed, failed);
        }
        change.write(self.conn, batch)
    }

    /// Lets go of up to `limit` items of a request that was refused as a whole, and tells whether any are left. They go again
    /// in requests of so many items at most, and the attempt does not count.
    pub(crate) fn part(
        &mut self,
        batch: JobId,
        request: BatchRequestId,
        request_items_max: Option<u64>,
        limit: usize,
    ) -> rusqlite::Result<bool> {
        let parted = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_item
                 SET state = 0, attempt = max(attempt - 1, 0),
                     request_items_max = coalesce(:max, request_items_max)
                 WHERE id IN (SELECT id FROM jobmill_batch_item WHERE request = :request AND state = 1 LIMIT :limit)",
            )?
            .execute(named_params! {
                ":request": request, ":max": request_items_max.map(u64::cast_signed), ":limit": limit as i64,
            })?;
        let mut change = Change::default();
        change.items(ItemState::Sent, ItemState::Waiting, parted);
        change.write(self.conn, batch)?;
        Ok(parted == limit)
    }

    /// All results of a request are in the file. What the provider keeps of it is deleted if that is wanted.
    pub(crate) fn harvested(&mut self, row: &RequestRow, clean: bool) -> rusqlite::Result<()> {
        if clean {
            self.enqueue(&CleanRequest { request: row.id }.new_job())?;
        }
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_request
                 SET state = 5, harvested_at = :now, reserved_nanos = 0, failures = 0, error = NULL
                 WHERE id = :id AND state = 4",
            )?
            .execute(named_params! { ":id": row.id, ":now": self.now })?;
        // What was learnt of a quota need not hold for ever.
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_account SET tokens_max = tokens_max + tokens_max / 4 + 1
                 WHERE account = :account AND tokens_max IS NOT NULL",
            )?
            .execute(named_params! { ":account": row.account })?;
        self.settle(row.batch)
    }
}

/// Whether a batch at the provider is known to belong elsewhere: to another request of ours, or to nobody here.
pub(crate) fn is_elsewhere(
    conn: &Connection,
    account: &str,
    remote_id: &str,
    but: BatchRequestId,
) -> rusqlite::Result<bool> {
    conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM jobmill_batch_foreign WHERE account = :account AND remote_id = :remote_id)
             OR EXISTS (SELECT 1 FROM jobmill_batch_request
                        WHERE account = :account AND remote_id = :remote_id AND id <> :but)",
    )?
    .query_row(named_params! { ":account": account, ":remote_id": remote_id, ":but": but }, |row| row.get(0))
}
