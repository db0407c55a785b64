//! What the ends of jobs and workflows call for: whoever waits is judged, admitted, refused, a slice in each turn.
//!
//! What is to be done stands in the file, so that a cascade over many jobs never holds the writer for long, and goes on after
//! a crash where it stopped. Workflows take turns, so that a long one keeps nobody waiting for its end.

pub(crate) mod create;
pub(crate) mod operate;
pub(crate) mod read;

use rusqlite::{OptionalExtension, named_params, params};

use crate::model::event::Cause;
use crate::model::failure_reason::FailureReason;
use crate::model::history::{Action, Caller};
use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::need::Condition;
use crate::model::time::Timestamp;
use crate::store::audit::Line;
use crate::store::edge::{self, is_waiting};
use crate::store::enqueue::PAYLOAD_IN_ROW_BYTES;
use crate::store::flow::{self, GONE, Role, Round, Task};
use crate::store::operate::Standing;
use crate::store::place::{Place, place_columns};
use crate::store::row::{RunAt, State};
use crate::store::step::Step;
use crate::store::{Turn, gate};

/// How many jobs a turn judges, admits, refuses, cancels or sends again.
pub(crate) const WALK_MAX: usize = 500;

/// The state of a duty that admits jobs which have never waited for others.
const AS_THEY_ARE: i64 = 1;

/// The next thing to be done.
struct Duty {
    id: i64,
    whole: i64,
    task: Task,
    target: i64,
    state: i64,
    cause: Option<i64>,
    verdict: Option<i64>,
    position: i64,
    caller: Caller,
}

/// A job of a flow, as a walk meets it.
struct Member {
    id: JobId,
    state: State,
    attempt: u32,
    run_at: RunAt,
    place: Place,
}

/// Reads what waits for an end and has not been judged.
pub(crate) const PLAN_FOLLOWERS: &str = "SELECT follower, condition, stage, feeds FROM jobmill_edge
     WHERE needs = :needs AND follower > :after AND verdict IS NULL ORDER BY follower LIMIT :limit";

/// Reads the next duty, of the workflow whose turn it is.
pub(crate) const PLAN_DUTY: &str = "SELECT id, whole, work, target, state, cause, verdict, position, actor
     FROM jobmill_flow_work INDEXED BY jobmill_flow_work_whole
     WHERE whole >= :from AND whole <= :until ORDER BY whole, id LIMIT 1";

/// Reads which workflow is the last of a round.
pub(crate) const PLAN_LAST: &str = "SELECT max(whole) FROM jobmill_flow_work INDEXED BY jobmill_flow_work_whole";

/// Reads the jobs of a flow.
pub(crate) const PLAN_MEMBERS: &str = concat!(
    "SELECT id, state, attempt, run_at, ",
    place_columns!(),
    " FROM jobmill_job INDEXED BY jobmill_job_flow
     WHERE flow = :flow AND id > :after ORDER BY id LIMIT :limit"
);

/// Makes a job pending that waited. Its parameters go by number, for it is run once for each job. That it may run from now on,
/// and not from a moment of its own, `updated_at` tells: see `delays`. Where there is no `run_at`, a row needs not grow by that.
pub(crate) const PLAN_ADMIT: &str =
    "UPDATE jobmill_job SET state = ?2, run_at = ?3, line = ?4, updated_at = coalesce(?5, updated_at)
     WHERE id = ?1 AND state = 0";

/// Makes the jobs of a stage pending that have neither limits nor a moment of their own. They are most of the jobs that wait,
/// and one statement for a slice of them costs half of what one for each does.
pub(crate) const PLAN_ADMIT_PLAIN: &str = "UPDATE jobmill_job INDEXED BY jobmill_job_flow SET state = ?4, run_at = ?5,
         updated_at = coalesce(?5, updated_at)
     WHERE flow = ?1 AND id > ?2 AND id <= ?3 AND state = 0 AND run_at IS NULL AND limits IS NULL";

impl Member {
    /// Whether it waits, and `PLAN_ADMIT_PLAIN` is meant for it.
    fn is_plain(&self) -> bool {
        self.state == State::Created && self.run_at == RunAt::AtOnce && !self.place.limited
    }
}

impl Turn<'_> {
    /// Does what ends have called for, to about `limit` jobs. Where it stops, the next workflow goes on.
    pub(crate) fn walk_flows(&mut self, limit: usize) -> rusqlite::Result<()> {
        self.book.flows.flush(self.conn, self.now)?;
        self.take_workflows();
        let mut left = limit;
        while self.book.flows.has_work && left > 0 {
            let Some(duty) = self.next_duty()? else {
                self.book.flows.has_work = false;
                break;
            };
            let (seen, position) = match duty.task {
                Task::Settle => self.settle_slice(&duty, left)?,
                _ => self.walk_members(&duty, left)?,
            };
            left = left.saturating_sub(seen.max(1));
            match position {
                Some(position) => {
                    self.conn
                        .prepare_cached("UPDATE jobmill_flow_work SET position = ?2 WHERE id = ?1")?
                        .execute([duty.id, position])?;
                }
                None => {
                    self.conn.prepare_cached("DELETE FROM jobmill_flow_work WHERE id = ?1")?.execute([duty.id])?;
                    if duty.task == Task::Cancel {
                        self.book.flows.cancelled(duty.target);
                    }
                    if duty.task != Task::Settle {
                        self.book.flows.touch(duty.target);
                    }
                }
            }
            self.book.flows.flush(self.conn, self.now)?;
            self.take_workflows();
            self.book.flows.round.from = if left > 0 { duty.whole } else { duty.whole + 1 };
        }
        Ok(())
    }

    /// The next duty of the workflow whose turn it is, or else of the one after it.
    fn next_duty(&mut self) -> rusqlite::Result<Option<Duty>> {
        if let Some(duty) = self.duty_within(self.book.flows.round)? {
            return Ok(Some(duty));
        }
        let last: Option<i64> = self.conn.prepare_cached(PLAN_LAST)?.query_row([], |row| row.get(0))?;
        let Some(until) = last else { return Ok(None) };
        self.book.flows.round = Round { from: 0, until };
        self.duty_within(self.book.flows.round)
    }

    fn duty_within(&self, round: Round) -> rusqlite::Result<Option<Duty>> {
        self.conn
            .prepare_cached(PLAN_DUTY)?
            .query_row(named_params! { ":from": round.from, ":until": round.until }, |row| {
                Ok(Duty {
                    id: row.get(0)?,
                    whole: row.get(1)?,
                    task: row.get(2)?,
                    target: row.get(3)?,
                    state: row.get(4)?,
                    cause: row.get(5)?,
                    verdict: row.get(6)?,
                    position: row.get(7)?,
                    caller: Caller { user: None, name: row.get(8)? },
                })
            })
            .optional()
    }

    /// Judges those that wait for an end. Gives how many they were, and after which there may be more.
    fn settle_slice(&mut self, duty: &Duty, limit: usize) -> rusqlite::Result<(usize, Option<i64>)> {
        struct Follower {
            id: i64,
            condition: Condition,
            is_stage: bool,
            feeds: bool,
        }
        let followers: Vec<Follower> = self
            .conn
            .prepare_cached(PLAN_FOLLOWERS)?
            .query_map(
                named_params! { ":needs": duty.target, ":after": duty.position, ":limit": limit as i64 },
                |row| {
                    Ok(Follower { id: row.get(0)?, condition: row.get(1)?, is_stage: row.get(2)?, feeds: row.get(3)? })
                },
            )?
            .collect::<rusqlite::Result<_>>()?;
        let succeeded = duty.state == State::Completed as i64;
        for follower in &followers {
            self.conn
                .prepare_cached("UPDATE jobmill_edge SET verdict = ?3 WHERE needs = ?1 AND follower = ?2")?
                .execute([duty.target, follower.id, duty.state])?;
            let is_met = follower.condition.is_met(succeeded);
            let ends_as = if follower.condition == Condition::SuccessOrFail { State::Failed } else { State::Cancelled };
            if is_met && is_waiting(self.conn, follower.id)? {
                continue;
            }
            if follower.is_stage {
                self.judge_stage(follower.id, is_met, ends_as, duty)?;
                continue;
            }
            // It may have ended otherwise meanwhile, or be gone.
            let standing = self.standing(JobId::from_raw(follower.id), &Caller::default())?;
            let Some(standing) = standing.filter(|standing| standing.state == State::Created) else { continue };
            if !is_met {
                let why = self.describe_end(duty.target, duty.state)?;
                self.turn_away(&standing, ends_as, &why)?;
            } else if self.is_closed(standing.place)? {
                self.turn_away(&standing, State::Cancelled, "the workflow was cancelled")?;
            } else {
                if follower.feeds {
                    self.feed(duty.target, standing.id)?;
                }
                let run_at = standing.run_at.since(self.now).map_or(self.now, |run_at| run_at.max(self.now));
                self.admit_job(standing.id, standing.place, Some(run_at), standing.attempt)?;
            }
        }
        let more = (followers.len() == limit).then(|| followers.last().map(|last| last.id)).flatten();
        Ok((followers.len(), more))
    }

    fn is_closed(&self, place: Place) -> rusqlite::Result<bool> {
        place.flow.map_or(Ok(false), |flow| flow::is_closed(self.conn, flow))
    }

    /// Lets a stage begin, or end without having begun.
    fn judge_stage(&mut self, stage: i64, is_met: bool, ends_as: State, duty: &Duty) -> rusqlite::Result<()> {
        let begun = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_flow SET state = 2,
                     cancel_requested_at = CASE WHEN :is_met THEN cancel_requested_at ELSE :now END
                 WHERE id = :id AND state = 0",
            )?
            .execute(named_params! { ":id": stage, ":is_met": is_met, ":now": self.now })?;
        if begun == 0 {
            return Ok(());
        }
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_flow_work (whole, work, target, state, cause, verdict)
                 VALUES (:whole, :task, :stage, :state, :cause, :verdict)",
            )?
            .execute(named_params! {
                ":whole": duty.whole,
                ":task": if is_met { Task::Admit } else { Task::Refuse },
                ":stage": stage,
                ":state": if is_met { 0 } else { ends_as as i64 },
                ":cause": duty.target,
                ":verdict": duty.state,
            })
            .map(drop)
    }

    /// Does to the jobs of a flow what is to be done. Gives how many were seen, and after which there may be more.
    fn walk_members(&mut self, duty: &Duty, limit: usize) -> rusqlite::Result<(usize, Option<i64>)> {
        let flow = self
            .conn
            .prepare_cached("SELECT role, state FROM jobmill_flow WHERE id = ?1")?
            .query_row([duty.target], |row| Ok((row.get::<_, Role>(0)?, row.get::<_, State>(1)?)))
            .optional()?;
        let Some((role, flow_state)) = flow else { return Ok((0, None)) };
        let closed = matches!(duty.task, Task::Admit | Task::Retry) && flow::is_closed(self.conn, duty.target)?;
        if duty.task == Task::Admit && closed {
            // Whoever has cancelled it sees to its jobs.
            return Ok((0, None));
        }
        if duty.task == Task::Cancel {
            // One that has not begun ends now, cancelled even if it has no jobs that tell so.
            let begun = self
                .conn
                .prepare_cached(
                    "UPDATE jobmill_flow SET state = 2, cancel_requested_at = coalesce(cancel_requested_at, ?2)
                     WHERE id = ?1 AND state = 0",
                )?
                .execute(params![duty.target, self.now])?;
            if begun > 0 && role == Role::Workflow {
                self.book.flows.moved(duty.target, State::Created, State::Running, self.now);
            }
        }
        let members: Vec<Member> = self
            .conn
            .prepare_cached(PLAN_MEMBERS)?
            .query_map(
                named_params! { ":flow": duty.target, ":after": duty.position, ":limit": limit as i64 },
                |row| {
                    Ok(Member {
                        id: row.get(0)?,
                        state: row.get(1)?,
                        attempt: row.get(2)?,
                        run_at: RunAt::read(row, 3)?,
                        place: Place::read(row, 4)?,
                    })
                },
            )?
            .collect::<rusqlite::Result<_>>()?;
        let why = match (duty.task, duty.cause) {
            (Task::Refuse, Some(cause)) => self.describe_end(cause, duty.verdict.unwrap_or(GONE))?,
            _ => String::new(),
        };
        let mut admitted = false;
        if let (Task::Admit, Role::Stage, Some(last)) = (duty.task, role, members.last()) {
            self.admit_plain(duty, last.id)?;
            admitted = true;
        }
        for member in &members {
            let has_ended = member.state.status().is_terminal();
            match duty.task {
                Task::Admit if admitted && member.is_plain() => self.admitted(member, duty)?,
                Task::Admit if member.state == State::Created => {
                    self.admit_member(member, role, duty.state == AS_THEY_ARE)?;
                }
                Task::Refuse if member.state == State::Created => {
                    if let Some(standing) = self.standing(member.id, &duty.caller)? {
                        let ends_as = if duty.state == State::Failed as i64 { State::Failed } else { State::Cancelled };
                        self.turn_away(&standing, ends_as, &why)?;
                    }
                }
                // Who ran when the cancellation was asked for has been asked to stop then.
                Task::Cancel if member.state == State::Running && self.is_asked_to_stop(member.id)? => {}
                Task::Cancel if !has_ended => {
                    // None of the refusals can come: it is there and open.
                    let _ = self.cancel(member.id, &duty.caller)?;
                }
                Task::Retry if has_ended && member.state != State::Completed => {
                    let waits = match role {
                        Role::Stage => flow_state == State::Created,
                        _ => is_waiting(self.conn, member.id.raw())?,
                    };
                    let to = if waits { State::Created } else { State::Delayed };
                    if closed || self.send_again(member.id, to, &duty.caller)?.is_err() {
                        // All was cancelled before it was sent again, or another job holds its key by now. Those that wait
                        // for it learn that it stays as it is.
                        flow::settle(self.conn, duty.whole, member.id.raw(), member.state as i64)?;
                    }
                }
                _ => {}
            }
        }
        let more = (members.len() == limit).then(|| members.last().map(|last| last.id.raw())).flatten();
        Ok((members.len(), more))
    }

    /// Lets the plain jobs of a stage become pending, up to the last of a slice.
    fn admit_plain(&mut self, duty: &Duty, last: JobId) -> rusqlite::Result<()> {
        let run_at = (duty.state != AS_THEY_ARE).then_some(self.now);
        let state = if run_at.is_some() { State::Delayed } else { State::Pending };
        self.conn
            .prepare_cached(PLAN_ADMIT_PLAIN)?
            .execute(params![duty.target, duty.position, last, state, run_at])
            .map(drop)
    }

    /// Takes the step of a plain job that has become pending with its stage.
    fn admitted(&mut self, member: &Member, duty: &Duty) -> rusqlite::Result<()> {
        let run_at = (duty.state != AS_THEY_ARE).then_some(self.now);
        let to = if run_at.is_some() { State::Delayed } else { State::Pending };
        self.take_admission(member.id, member.place, to, run_at, member.attempt)
    }

    /// Lets a job of a flow become pending if it waits for nothing. `as_it_is`: it has never waited, and keeps its place
    /// among those that came with it.
    fn admit_member(&mut self, member: &Member, role: Role, as_it_is: bool) -> rusqlite::Result<()> {
        if role != Role::Stage && is_waiting(self.conn, member.id.raw())? {
            return Ok(());
        }
        let asked = member.run_at.since(self.now);
        let run_at = if as_it_is { asked } else { Some(asked.map_or(self.now, |run_at| run_at.max(self.now))) };
        self.admit_job(member.id, member.place, run_at, member.attempt)
    }

    /// Makes a job pending that waited for others, or has a limit hold it.
    pub(crate) fn admit_job(
        &mut self,
        id: JobId,
        place: Place,
        run_at: Option<Timestamp>,
        attempt: u32,
    ) -> rusqlite::Result<()> {
        let mut state = if run_at.is_some() { State::Delayed } else { State::Pending };
        let mut line = None;
        if place.limited && state == State::Pending {
            let (uses, _) = gate::uses_of(self.conn, id)?;
            line = self.line_up_again(id, &uses, place.lane)?;
            if line.is_some() {
                state = State::Held;
            }
        }
        self.conn.prepare_cached(PLAN_ADMIT)?.execute(params![id, state, run_at, line, run_at.map(|_| self.now)])?;
        self.take_admission(id, place, state, run_at, attempt)
    }

    fn take_admission(
        &mut self,
        id: JobId,
        place: Place,
        to: State,
        run_at: Option<Timestamp>,
        attempt: u32,
    ) -> rusqlite::Result<()> {
        self.step(Step {
            job: id,
            place,
            from: Some(State::Created),
            to: Some(to),
            cause: Cause::Admitted,
            attempt,
            waited: None,
            ran: None,
        })?;
        if let (Some(run_at), Some(lane)) = (run_at, self.book.lanes.get_mut(place.lane)) {
            lane.note_delayed(run_at.as_micros());
        }
        // From here on somebody waits.
        self.nothing_waits = false;
        Ok(())
    }

    /// Ends a job that waited for what did not come.
    fn turn_away(&mut self, standing: &Standing, to: State, why: &str) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job SET state = :to, completed_at = :now, error = :why, end_reason = :reason
                 WHERE id = :id AND state = 0",
            )?
            .execute(named_params! {
                ":id": standing.id, ":to": to, ":now": self.now, ":why": why,
                ":reason": (to == State::Failed).then_some(FailureReason::Dependency),
            })?;
        let (action, cause) = match to {
            State::Failed => (Action::Ended, Cause::Ended),
            _ => (Action::Cancelled, Cause::Cancelled),
        };
        self.audit(
            &Line::of(standing.id, action).share(standing.place.share).states(State::Created, to).note(Some(why)),
        )?;
        self.last_step(standing.step(to, cause))
    }

    /// What a job is to wait for that is sent again: what it follows may be under way again, too. Of a workflow that was
    /// cancelled nobody waits, for nobody would be admitted.
    pub(crate) fn open_needs(&self, job: JobId) -> rusqlite::Result<Vec<i64>> {
        let open = edge::open_needs(self.conn, job.raw())?;
        if open.is_empty() {
            return Ok(open);
        }
        let flow: Option<Option<i64>> = self
            .conn
            .prepare_cached("SELECT flow FROM jobmill_job WHERE id = ?1")?
            .query_row([job], |row| row.get(0))
            .optional()?;
        let closed = flow.flatten().map_or(Ok(false), |flow| flow::is_closed(self.conn, flow))?;
        Ok(if closed { Vec::new() } else { open })
    }

    /// Feeds a job once more that is sent again: the one that it follows may have failed when it was judged, and has
    /// completed since.
    pub(crate) fn feed_again(&self, to: JobId) -> rusqlite::Result<()> {
        let from: Option<i64> = self
            .conn
            .prepare_cached(
                "SELECT needs FROM jobmill_edge AS edge JOIN jobmill_job AS needed ON needed.id = edge.needs
                 WHERE edge.follower = ?1 AND edge.feeds = 1 AND needed.state = 3",
            )?
            .query_row([to], |row| row.get(0))
            .optional()?;
        from.map_or(Ok(()), |from| self.feed(from, to))
    }

    /// Makes the result of a job the payload of another.
    fn feed(&self, from: i64, to: JobId) -> rusqlite::Result<()> {
        let result: Option<Vec<u8>> = self
            .conn
            .prepare_cached("SELECT result FROM jobmill_job WHERE id = ?1")?
            .query_row([from], |row| row.get(0))
            .optional()?
            .flatten();
        let payload = result.unwrap_or_else(|| b"null".to_vec());
        let in_row = payload.len() <= PAYLOAD_IN_ROW_BYTES;
        self.conn
            .prepare_cached("UPDATE jobmill_job SET payload = ?2 WHERE id = ?1")?
            .execute(params![to, in_row.then_some(&payload)])?;
        if in_row {
            return self.conn.prepare_cached("DELETE FROM jobmill_payload WHERE job = ?1")?.execute([to]).map(drop);
        }
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO jobmill_payload (job, payload) VALUES (?1, ?2)")?
            .execute(params![to, payload])
            .map(drop)
    }

    /// How something ended that others waited for, in words.
    fn describe_end(&self, ended: i64, verdict: i64) -> rusqlite::Result<String> {
        let name = read::name_of(self.conn, ended)?;
        Ok(format!("{name} {}", end_in_words(verdict)))
    }
}

/// How something ended, in words that follow its name.
pub(crate) fn end_in_words(verdict: i64) -> &'static str {
    let state = usize::try_from(verdict).ok().and_then(|number| State::ALL.get(number));
    match state.map(|state| state.status()) {
        Some(Status::Completed) => "has completed",
        Some(Status::Failed) => "has failed",
        Some(Status::Cancelled) => "was cancelled",
        Some(Status::Expired) => "has expired",
        _ => "was deleted",
    }
}
