//! What holds for an account, in every process: whether it is blocked, who creates a batch, how much it takes.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::batch_job::SendRequest;
use crate::model::id::BatchRequestId;
use crate::model::limit::THROTTLE_MAX;
use crate::model::time::Timestamp;
use crate::store::{Turn, unique};

/// How long an account is left alone after the first failure that is its own, doubled each time.
const BLOCK: Duration = Duration::from_secs(60);
const BLOCK_MAX: Duration = Duration::from_secs(3600);
/// How many of those who wait for their turn are looked at for one that sleeps.
const CALLED_MAX: i64 = 8;

/// What an account was learnt to take at most in one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learnt {
    pub(crate) tokens: Option<u64>,
    pub(crate) items: Option<u64>,
}

impl Turn<'_> {
    /// Stops creations at an account for a while: longer each time in a row, or as long as the provider asks.
    pub(crate) fn block(&mut self, account: &str, wait: Option<Duration>, reason: &str) -> rusqlite::Result<Timestamp> {
        let failures: u32 = self
            .conn
            .prepare_cached(
                "INSERT INTO jobmill_batch_account (account, failures) VALUES (:account, 1)
                 ON CONFLICT (account) DO UPDATE SET failures = failures + 1 RETURNING failures",
            )?
            .query_row(named_params! { ":account": account }, |row| row.get(0))?;
        let grown = BLOCK.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(BLOCK_MAX);
        let until = self.now.saturating_add(wait.unwrap_or(grown).min(THROTTLE_MAX));
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_account SET blocked_until = :until, reason = :reason WHERE account = :account",
            )?
            .execute(named_params! { ":account": account, ":until": until, ":reason": reason })?;
        log::warn!("nothing is sent to {account} until {until}: {reason}");
        Ok(until)
    }

    /// Lets creations at an account go on.
    pub(crate) fn unblock(&mut self, account: &str) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_batch_account SET blocked_until = NULL, reason = NULL, failures = 0
                 WHERE account = :account AND failures > 0",
            )?
            .execute(named_params! { ":account": account })
            .map(drop)
    }

    /// Takes the right to create a batch at an account, which one request has at a time.
    pub(crate) fn lease(&mut self, account: &str, request: BatchRequestId, until: Timestamp) -> rusqlite::Result<bool> {
        let taken = self
            .conn
            .prepare_cached(
                "INSERT INTO jobmill_batch_account (account, creator, creating_until) VALUES (:account, :request, :until)
                 ON CONFLICT (account) DO UPDATE SET creator = excluded.creator, creating_until = excluded.creating_until
                 WHERE creator IS NULL OR creator = excluded.creator OR creating_until <= :now",
            )?
            .execute(named_params! {
                ":account": account, ":request": request, ":until": until, ":now": self.now,
            })?;
        Ok(taken == 1)
    }

    /// How many requests stand before one in the line for that right, and it itself.
    pub(crate) fn place_in_line(&self, account: &str, request: BatchRequestId) -> rusqlite::Result<u32> {
        self.conn
            .prepare_cached(
                "SELECT count(*) FROM jobmill_batch_request INDEXED BY jobmill_batch_request_open
                 WHERE account = :account AND state < 5 AND state = 1 AND failures = 0 AND id <= :request",
            )?
            .query_row(named_params! { ":account": account, ":request": request }, |row| row.get(0))
            .map(|place: u32| place.max(1))
    }

    /// Gives that right back, and calls the next in line. One that has failed waits for more than its turn.
    pub(crate) fn end_lease(&mut self, account: &str, request: BatchRequestId) -> rusqlite::Result<()> {
        let freed = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_batch_account SET creator = NULL, creating_until = NULL
                 WHERE account = :account AND creator = :request",
            )?
            .execute(named_params! { ":account": account, ":request": request })?;
        if freed == 0 {
            return Ok(());
        }
        let next: Vec<BatchRequestId> = self
            .conn
            .prepare_cached(
                "SELECT id FROM jobmill_batch_request INDEXED BY jobmill_batch_request_open
                 WHERE account = :account AND state < 5 AND state = 1 AND failures = 0 AND id <> :request
                 ORDER BY id LIMIT :limit",
            )?
            .query_map(named_params! { ":account": account, ":request": request, ":limit": CALLED_MAX }, |row| {
                row.get(0)
            })?
            .collect::<rusqlite::Result<_>>()?;
        for request in next {
            // One that is at work already comes by itself, and may be long in coming.
            if let Some(sender) = unique::holder(self.conn, &SendRequest { request }.scoped_key())?
                && self.hasten(sender, self.now)?
            {
                break;
            }
        }
        Ok(())
    }

    /// Learns that an account does not take so much in one request.
    pub(crate) fn learn(&mut self, account: &str, learnt: Learnt) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_batch_account (account, tokens_max, items_max) VALUES (:account, :tokens, :items)
                 ON CONFLICT (account) DO UPDATE
                 SET tokens_max = coalesce(min(tokens_max, :tokens), :tokens, tokens_max),
                     items_max = coalesce(min(items_max, :items), :items, items_max)",
            )?
            .execute(named_params! {
                ":account": account, ":tokens": learnt.tokens.map(u64::cast_signed),
                ":items": learnt.items.map(u64::cast_signed),
            })
            .map(drop)
    }
}

/// What an account was learnt to take.
pub(crate) fn learnt(conn: &Connection, account: &str) -> rusqlite::Result<Learnt> {
    let known = conn
        .prepare_cached("SELECT tokens_max, items_max FROM jobmill_batch_account WHERE account = :account")?
        .query_row(named_params! { ":account": account }, |row| {
            let count = |column| row.get::<_, Option<i64>>(column).map(|count| count.map(i64::cast_unsigned));
            Ok(Learnt { tokens: count(0)?, items: count(1)? })
        })
        .optional()?;
    Ok(known.unwrap_or_default())
}
