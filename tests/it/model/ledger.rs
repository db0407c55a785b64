//! The ledger as it should be: a plain model of what statuses mean.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jobmill::{Enqueued, ErrorKind, Job, JobId, Priority, Refusal, Status, StatusChange, Timestamp};

use crate::model::program::{Action, BACKOFF, Ending, Run, Wish};

/// What the row of a job says, as far as the model has an opinion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: JobId,
    pub(crate) user: Option<String>,
    pub(crate) tracked: bool,
    pub(crate) queue: String,
    pub(crate) priority: Priority,
    pub(crate) status: Status,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) run_at: Timestamp,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) completed_at: Option<Timestamp>,
    pub(crate) error: Option<String>,
    pub(crate) result: Option<usize>,
}

impl Row {
    pub(crate) fn of(job: &Job) -> Self {
        // A panic tells its place, which is none of the model's business.
        let told = |error: &String| error.rsplit_once(": ").map_or(error.clone(), |(_, message)| message.to_owned());
        Self {
            id: job.id,
            user: job.user_id.clone(),
            tracked: job.is_tracked(),
            queue: job.queue.clone(),
            priority: job.priority,
            status: job.status,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            run_at: job.run_at,
            expires_at: job.expires_at,
            completed_at: job.completed_at,
            error: job.error.as_ref().map(told),
            result: job.result().ok(),
        }
    }
}

/// A job of the model.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) row: Row,
    /// It has been deleted.
    pub(crate) gone: bool,
    /// Its `run_at` is a moment of its own. Otherwise it may run since it was created, whatever the clock says.
    pub(crate) timed: bool,
    /// When it was last changed, if it ever was.
    pub(crate) changed_at: Option<Timestamp>,
    pub(crate) key: Option<u8>,
    pub(crate) runs: Vec<Run>,
    pub(crate) ran: usize,
}

impl Known {
    pub(crate) fn is_open(&self) -> bool {
        !self.gone && !self.row.status.is_terminal()
    }

    pub(crate) fn end(&mut self, status: Status, now: Timestamp) {
        self.row.status = status;
        self.row.completed_at = Some(now);
    }

    pub(crate) fn wait(&mut self, until: Timestamp, now: Timestamp) {
        self.row.status = Status::Pending;
        self.row.run_at = until;
        self.timed = true;
        self.changed_at = Some(now);
    }

    /// Runs one attempt.
    pub(crate) fn run(&mut self, number: usize, now: Timestamp) {
        let run = self.runs[self.ran.min(self.runs.len() - 1)];
        self.ran += 1;
        self.row.attempt += 1;
        let error = |ending| match ending {
            Ending::Fails | Ending::FailsFor(_) => Some("fails"),
            Ending::Refuses => Some("refuses"),
            Ending::Panics => Some("panics"),
            Ending::Cancels => Some("cancels"),
            Ending::Done | Ending::Snoozes(_) => None,
        };
        if let Some(error) = error(run.ending) {
            self.row.error = Some(error.to_owned());
        }
        let left = self.row.attempt < self.row.max_attempts;
        match run.ending {
            Ending::Done => {
                self.row.result = Some(number);
                self.end(Status::Completed, now);
            }
            Ending::Cancels => self.end(Status::Cancelled, now),
            _ if run.asked_to_stop => self.end(Status::Cancelled, now),
            Ending::Snoozes(seconds) => {
                self.row.attempt -= 1;
                self.wait(now.saturating_add(Duration::from_secs(seconds)), now);
            }
            Ending::Fails | Ending::Panics if left => self.wait(now.saturating_add(BACKOFF), now),
            Ending::FailsFor(seconds) if left => self.wait(now.saturating_add(Duration::from_secs(seconds)), now),
            Ending::Fails | Ending::FailsFor(_) | Ending::Panics | Ending::Refuses => self.end(Status::Failed, now),
        }
    }
}

/// The ledger as it should be: DESIGN §5 in plain words.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) jobs: Vec<Known>,
    /// Who got a key last.
    pub(crate) keys: BTreeMap<u8, usize>,
    pub(crate) paused: BTreeSet<&'static str>,
}

impl Model {
    /// Who keeps a job with this key away.
    pub(crate) fn holder(&self, key: Option<u8>) -> Option<usize> {
        self.keys.get(&key?).copied().filter(|holder| self.jobs[*holder].is_open())
    }

    /// What an enqueueing should answer: the job that holds the key, or none for a new one, which is then known by `id`.
    pub(crate) fn enqueue(&mut self, wish: &Wish, id: JobId, now: Timestamp) -> Enqueued {
        if let Some(holder) = self.holder(wish.key) {
            return Enqueued::Existing(self.jobs[holder].row.id);
        }
        if let Some(key) = wish.key {
            self.keys.insert(key, self.jobs.len());
        }
        let status = wish.tracked.unwrap_or(Status::Pending);
        let run_at = wish.run_in.and_then(|seconds| moment(seconds, now));
        self.jobs.push(Known {
            row: Row {
                id,
                user: wish.user.map(str::to_owned),
                tracked: wish.tracked.is_some(),
                queue: wish.queue.to_owned(),
                priority: wish.priority,
                status,
                attempt: 0,
                max_attempts: wish.max_attempts,
                run_at: run_at.unwrap_or(id.created_at()),
                expires_at: wish.expires_in.map(|seconds| now.saturating_add(Duration::from_secs(seconds))),
                completed_at: status.is_terminal().then_some(now),
                error: None,
                result: None,
            },
            gone: false,
            timed: run_at.is_some(),
            changed_at: None,
            key: wish.key,
            runs: wish.runs.clone(),
            ran: 0,
        });
        Enqueued::New(id)
    }

    /// Does something to a job that exists for whoever does it, and says what that comes to.
    pub(crate) fn act(&mut self, action: Action, number: usize, now: Timestamp) -> Answer {
        let key_is_taken = self.holder(self.jobs[number].key).is_some();
        let job = &mut self.jobs[number];
        let status = job.row.status;
        match action {
            Action::Cancel => match status {
                Status::Cancelled => Ok(Done::Already),
                _ if status.is_terminal() => Err(ErrorKind::Conflict),
                _ => {
                    job.end(Status::Cancelled, now);
                    Ok(Done::Now)
                }
            },
            Action::Retry => {
                let ended_badly = matches!(status, Status::Failed | Status::Cancelled | Status::Expired);
                if !ended_badly || key_is_taken {
                    return Err(ErrorKind::Conflict);
                }
                job.wait(now, now);
                job.row.completed_at = None;
                job.row.max_attempts = job.row.max_attempts.max(job.row.attempt + 1);
                job.row.expires_at = job.row.expires_at.filter(|at| *at > now);
                if let Some(key) = job.key {
                    self.keys.insert(key, number);
                }
                Ok(Done::Now)
            }
            Action::Delete => {
                job.gone = true;
                Ok(Done::Now)
            }
            Action::SetQueue(_) | Action::SetPriority(_) if !matches!(status, Status::Created | Status::Pending) => {
                Err(ErrorKind::Conflict)
            }
            Action::SetQueue(queue) => {
                if job.row.queue != queue {
                    job.row.queue = queue.to_owned();
                    job.changed_at = Some(now);
                }
                Ok(Done::Now)
            }
            Action::SetPriority(priority) => {
                if job.row.priority != priority {
                    job.row.priority = priority;
                    job.changed_at = Some(now);
                }
                Ok(Done::Now)
            }
            Action::SetStatus(_) if !job.row.tracked => {
                Ok(Done::Status(StatusChange::Refused { status, why: Refusal::RunByEngine }))
            }
            Action::SetStatus(to) if status.is_terminal() => Ok(Done::Status(match to == status {
                true => StatusChange::Already,
                false => StatusChange::Refused { status, why: Refusal::Terminal },
            })),
            // The first three statuses stand in their order.
            Action::SetStatus(to) if !to.is_terminal() && to <= status => {
                Ok(Done::Status(StatusChange::Refused { status, why: Refusal::Backward }))
            }
            Action::SetStatus(to) => {
                job.row.status = to;
                job.changed_at = Some(now);
                job.row.completed_at = to.is_terminal().then_some(now);
                Ok(Done::Status(StatusChange::Applied))
            }
        }
    }

    /// Whether a job exists for this user, or for the administrator.
    pub(crate) fn exists_for(&self, number: usize, user: Option<&str>) -> bool {
        let job = &self.jobs[number];
        !job.gone && (user.is_none() || job.row.user.as_deref() == user)
    }

    /// Tells that the clock was set back. Whoever came to wait for so long under the clock that ran ahead waits for no longer:
    /// those that have run, and those that have been due since their last change. The others wait for a moment.
    pub(crate) fn set_back(&mut self, by: Duration, now: Timestamp) {
        for job in &mut self.jobs {
            let waits = !job.gone && job.row.status == Status::Pending && job.timed && job.row.run_at >= now;
            let for_so_long = job.ran > 0 || job.changed_at == Some(job.row.run_at);
            if waits && for_so_long && job.changed_at > Some(now) {
                job.wait(job.row.run_at.saturating_sub(by).max(now), now);
            }
        }
    }

    /// What every turn does.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        for job in &mut self.jobs {
            let waits = !job.gone && matches!(job.row.status, Status::Created | Status::Pending);
            if waits && job.row.expires_at.is_some_and(|at| at <= now) {
                job.end(Status::Expired, now);
            }
        }
    }

    /// Runs what is due, and gives it in its order. Nothing that runs makes anything due at once.
    pub(crate) fn drain(&mut self, now: Timestamp) -> Vec<JobId> {
        self.expire(now);
        let due = |job: &Known| {
            !job.gone
                && !job.row.tracked
                && job.row.status == Status::Pending
                && !self.paused.contains(job.row.queue.as_str())
                && (!job.timed || job.row.run_at <= now)
        };
        let mut order: Vec<usize> = (0..self.jobs.len()).filter(|job| due(&self.jobs[*job])).collect();
        order.sort_by_key(|job| {
            let row = &self.jobs[*job].row;
            (row.priority, row.run_at, row.id)
        });
        for number in &order {
            self.jobs[*number].run(*number, now);
        }
        order.into_iter().map(|job| self.jobs[job].row.id).collect()
    }
}

/// What an action came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Now,
    Already,
    Status(StatusChange),
}

pub(crate) type Answer = Result<Done, ErrorKind>;

pub(crate) fn moment(seconds: i64, now: Timestamp) -> Option<Timestamp> {
    match u64::try_from(seconds) {
        Ok(0) => None,
        Ok(seconds) => Some(now.saturating_add(Duration::from_secs(seconds))),
        Err(_) => Some(now.saturating_sub(Duration::from_secs(seconds.unsigned_abs()))),
    }
}
