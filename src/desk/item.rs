//! What is handed in for a turn: operations of callers who wait, ends of attempts, and what handlers tell.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::error::{Error, ErrorKind, Result};
use crate::model::delivery::Try;
use crate::model::job::Progress;
use crate::model::retry::Backoff;
use crate::model::stop_reason::StopReason;
use crate::model::time::Timestamp;
use crate::store::connect::storage_error;
use crate::store::finish::Verdict;
use crate::store::row::Claim;
use crate::store::{Turn, detail};

/// Something that is done in a turn, for a caller who waits.
pub(super) trait Operation: Send {
    /// Does it. An error fails the whole turn; what concerns the caller alone is kept for the answer.
    fn apply(&mut self, turn: &mut Turn<'_>) -> Result<()>;
    /// Tells the caller, once the turn has been committed or has failed.
    fn answer(self: Box<Self>, committed: Result<(), &Error>);
}

/// An operation made of a closure.
pub(super) struct Call<F, T> {
    work: Option<F>,
    result: Option<Result<T>>,
    reply: Option<Sender<Result<T>>>,
}

impl<F, T> Call<F, T> {
    pub(super) fn new(work: F, reply: Option<Sender<Result<T>>>) -> Self {
        Self { work: Some(work), result: None, reply }
    }

    pub(super) fn outcome(self, committed: Result<(), &Error>) -> Result<T> {
        match (committed, self.result) {
            (Ok(()), Some(result)) => result,
            (Err(error), _) => Err(error.again()),
            (Ok(()), None) => Err(Error::shutdown()),
        }
    }
}

impl<F, T> Operation for Call<F, T>
where
    F: FnOnce(&mut Turn<'_>) -> Result<T> + Send,
    T: Send,
{
    fn apply(&mut self, turn: &mut Turn<'_>) -> Result<()> {
        let Some(work) = self.work.take() else {
            return Ok(());
        };
        match work(turn) {
            Err(error) if matches!(error.kind(), ErrorKind::Storage | ErrorKind::Busy) => Err(error),
            result => {
                self.result = Some(result);
                Ok(())
            }
        }
    }

    fn answer(mut self: Box<Self>, committed: Result<(), &Error>) {
        if let Some(reply) = self.reply.take() {
            // A caller who has gone does not miss the answer.
            let _ = reply.send(self.outcome(committed));
        }
    }
}

/// The end of an attempt.
#[derive(Debug)]
pub(crate) struct Finish {
    pub(crate) claim: Arc<Claim>,
    pub(crate) verdict: Verdict,
    pub(crate) worker: Option<u32>,
    /// Where the lock file tells that the attempt has begun, if it has.
    pub(crate) slot: Option<u32>,
    /// The handler's last words, which are written with the end.
    pub(crate) note: Option<Note>,
}

/// What a running handler tells of itself.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) claim: Arc<Claim>,
    pub(crate) progress: Option<Progress>,
    pub(crate) lines: Vec<(Timestamp, String)>,
    pub(crate) ttft: Option<Duration>,
    pub(crate) total_duration: Option<Duration>,
    pub(crate) stop_reason: Option<StopReason>,
    pub(crate) tried: Option<Try>,
    /// Tells the attempt, as long as it is held, that this is not written yet.
    pub(crate) _on_its_way: Arc<()>,
}

/// What waits for a turn.
pub(super) enum Item {
    Call(Box<dyn Operation>),
    Finish(Finish),
    Note(Note),
}

impl Item {
    pub(super) fn apply(&mut self, turn: &mut Turn<'_>, backoff: &Backoff) -> Result<()> {
        let storage = |error| storage_error("cannot end an attempt", error);
        match self {
            Self::Call(call) => call.apply(turn),
            Self::Finish(finish) => {
                if let Some(note) = &finish.note {
                    note.apply(turn).map_err(storage)?;
                }
                turn.finish(&finish.claim, &finish.verdict, finish.worker, backoff).map_err(storage).map(drop)
            }
            Self::Note(note) => note.apply(turn).map_err(|error| storage_error("cannot keep a note", error)),
        }
    }

    pub(super) fn slot(&self) -> Option<u32> {
        match self {
            Self::Finish(finish) => finish.slot,
            _ => None,
        }
    }

    pub(super) fn answer(self, committed: Result<(), &Error>) {
        if let Self::Call(call) = self {
            call.answer(committed);
        }
    }
}

impl Note {
    fn apply(&self, turn: &mut Turn<'_>) -> rusqlite::Result<()> {
        let id = self.claim.job.id;
        if !turn.may_tell(id, self.claim.fence)? {
            return Ok(());
        }
        if let Some(progress) = &self.progress {
            turn.progress(id, progress)?;
        }
        for (at, line) in &self.lines {
            turn.log_line(id, self.claim.job.attempt, *at, line)?;
        }
        if let Some(tried) = &self.tried {
            detail::callback_tried(turn.conn, tried)?;
        }
        if self.ttft.is_none() && self.total_duration.is_none() && self.stop_reason.is_none() {
            return Ok(());
        }
        turn.measured(id, self.ttft, self.total_duration, self.stop_reason.as_ref().map(StopReason::as_str))
    }
}
