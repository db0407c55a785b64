//! Users who take turns: within a lane, the next job is that of the next user who has one ready.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, named_params};

use crate::model::id::JobId;
use crate::model::time::Timestamp;
use crate::store::row::State;

/// How many shares are read at a time.
const SHARES: i64 = 16;
/// How many users' turns are remembered. If there are more, all begin anew as equals.
const USERS_MAX: usize = 1 << 16;

/// Reads the next shares of a lane in which jobs wait.
pub(crate) const PLAN_SHARES: &str = "SELECT id, user_id FROM jobmill_share INDEXED BY jobmill_share_waiting
     WHERE lane = :lane AND id > :after AND (pending > 0 OR delayed > 0) ORDER BY id LIMIT :limit";

/// Reads the first job of a share that may run since it was created.
pub(crate) const PLAN_SHARE_PENDING: &str = "SELECT id FROM jobmill_job INDEXED BY jobmill_job_share
     WHERE share = :share AND state = 1 ORDER BY id LIMIT 1";

/// Reads the first job of a share whose own time has come.
pub(crate) const PLAN_SHARE_DELAYED: &str = "SELECT run_at, id FROM jobmill_job INDEXED BY jobmill_job_share_delayed
     WHERE share = :share AND state = 7 AND run_at <= :now ORDER BY run_at, id LIMIT 1";

/// Who had a turn, and when.
#[derive(Default)]
pub(crate) struct Turns {
    last: u64,
    by_user: HashMap<Box<str>, u64>,
    /// The share of each lane that was served last.
    by_lane: HashMap<i64, i64>,
}

impl Turns {
    /// When this user was served last: the smaller, the longer ago. Jobs without a user are one user's.
    pub(crate) fn of(&self, user: &str) -> u64 {
        self.by_user.get(user).copied().unwrap_or(0)
    }

    /// Gives a user the turn for a job of a lane. The turn there goes to the user behind.
    pub(crate) fn serve(&mut self, lane: i64, candidate: &Candidate) {
        self.by_lane.insert(lane, candidate.share);
        self.served(&candidate.user);
    }

    /// Notes that a user has been served.
    pub(crate) fn served(&mut self, user: &str) {
        self.last += 1;
        if let Some(turn) = self.by_user.get_mut(user) {
            *turn = self.last;
            return;
        }
        if self.by_user.len() == USERS_MAX {
            self.by_user.clear();
        }
        self.by_user.insert(user.into(), self.last);
    }
}

/// The job that is next in a lane.
pub(crate) struct Candidate {
    share: i64,
    pub(crate) user: Box<str>,
    pub(crate) run_at: i64,
    pub(crate) id: JobId,
    pub(crate) state: State,
}

/// The ready jobs of a lane, a user's at a time.
pub(crate) struct Rotation {
    pub(crate) lane: i64,
    /// Whether delayed jobs of the lane may be due.
    pub(crate) delayed: bool,
    candidate: Option<Candidate>,
}

impl Rotation {
    pub(crate) fn new(lane: i64, delayed: bool) -> Self {
        Self { lane, delayed, candidate: None }
    }

    /// The next job, read from the file if need be.
    pub(crate) fn head(
        &mut self,
        conn: &Connection,
        now: Timestamp,
        turns: &Turns,
    ) -> rusqlite::Result<Option<&Candidate>> {
        if self.candidate.is_none() {
            let last = turns.by_lane.get(&self.lane).copied().unwrap_or(0);
            self.candidate = match self.first_between(conn, now, last, i64::MAX)? {
                Some(candidate) => Some(candidate),
                None => self.first_between(conn, now, 0, last)?,
            };
        }
        Ok(self.candidate.as_ref())
    }

    /// Takes the next job away.
    pub(crate) fn pop(&mut self) -> Option<Candidate> {
        self.candidate.take()
    }

    /// The first ready job of the first share between two, the second included.
    fn first_between(
        &self,
        conn: &Connection,
        now: Timestamp,
        mut after: i64,
        to: i64,
    ) -> rusqlite::Result<Option<Candidate>> {
        loop {
            let mut statement = conn.prepare_cached(PLAN_SHARES)?;
            let shares: Vec<(i64, Box<str>)> = statement
                .query_map(named_params! { ":lane": self.lane, ":after": after, ":limit": SHARES }, |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            for (share, user) in &shares {
                if *share > to {
                    return Ok(None);
                }
                if let Some((run_at, id, state)) = self.first_of(conn, now, *share)? {
                    return Ok(Some(Candidate { share: *share, user: user.clone(), run_at, id, state }));
                }
            }
            match shares.last() {
                Some((last, _)) if shares.len() as i64 == SHARES => after = *last,
                _ => return Ok(None),
            }
        }
    }

    /// The first ready job of a share.
    fn first_of(&self, conn: &Connection, now: Timestamp, share: i64) -> rusqlite::Result<Option<(i64, JobId, State)>> {
        let pending: Option<JobId> = conn
            .prepare_cached(PLAN_SHARE_PENDING)?
            .query_row(named_params! { ":share": share }, |row| row.get(0))
            .optional()?;
        let pending = pending.map(|id| (id.created_at().as_micros(), id, State::Pending));
        if !self.delayed {
            return Ok(pending);
        }
        let delayed: Option<(i64, JobId)> = conn
            .prepare_cached(PLAN_SHARE_DELAYED)?
            .query_row(named_params! { ":share": share, ":now": now }, |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let delayed = delayed.map(|(run_at, id)| (run_at, id, State::Delayed));
        Ok(pending.into_iter().chain(delayed).min_by_key(|(run_at, id, _)| (*run_at, *id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_served_longest_ago_is_known() {
        let mut turns = Turns::default();
        assert_eq!(turns.of("ada"), turns.of("bob"));
        turns.served("ada");
        turns.served("bob");
        assert!(turns.of("ada") < turns.of("bob") && turns.of("eve") < turns.of("ada"));
        turns.served("ada");
        assert!(turns.of("bob") < turns.of("ada"));
    }

    #[test]
    fn the_users_remembered_are_bounded() {
        let mut turns = Turns::default();
        for user in 0..USERS_MAX + 10 {
            turns.served(&user.to_string());
        }
        assert!(turns.by_user.len() <= USERS_MAX);
    }
}
