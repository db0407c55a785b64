//! A workflow is made: what bears a name in it, its jobs in slices, what waits for what; then it is let go.

use rusqlite::{OptionalExtension, named_params, params};

use crate::model::history::Caller;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::Status;
use crate::model::job_type::JobType;
use crate::model::need::Condition;
use crate::model::new_job::NewJob;
use crate::model::new_workflow::{Plan, callback_name};
use crate::store::Turn;
use crate::store::edge::{self, Edge};
use crate::store::enqueue::Enqueued;
use crate::store::flow::{self, Role, Task};
use crate::store::row::{Claim, State};

/// Where the parts of a workflow stand that is being written.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) id: WorkflowId,
    /// The flow of its callbacks, if it has any.
    callbacks: Option<i64>,
    /// What stands under each name, and then the callbacks: the stage at once, the job when it is written.
    targets: Vec<i64>,
}

/// Where a job belongs that is added to a workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// To the name of this place.
    Node(usize),
    /// To the callback of this place.
    Callback(usize),
}

/// Why a job was not added to a workflow under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotAdded {
    /// The attempt does not count any more.
    Fenced,
    /// The job is of no workflow.
    NoWorkflow,
    /// The workflow has no stage of this name.
    NoStage,
    /// The workflow was cancelled, or what it was to be added to has ended.
    Closed,
}

impl Turn<'_> {
    /// Writes the names of a workflow. Nothing of it runs before it is let go.
    pub(crate) fn draft_workflow(&mut self, plan: &Plan) -> rusqlite::Result<Draft> {
        let id = self.insert_flow(None, Role::Workflow, &plan.name, plan.user.as_deref())?;
        let mut targets = Vec::with_capacity(plan.nodes.len() + plan.callbacks.len());
        for node in &plan.nodes {
            let stage = if node.is_stage { self.insert_flow(Some(id), Role::Stage, &node.name, None)? } else { 0 };
            targets.push(stage);
        }
        let mut callbacks = None;
        if !plan.callbacks.is_empty() {
            callbacks = Some(self.insert_flow(Some(id), Role::Callbacks, "callbacks", None)?);
            targets.resize(plan.nodes.len() + plan.callbacks.len(), 0);
        }
        Ok(Draft { id: WorkflowId::from_raw(id), callbacks, targets })
    }

    fn insert_flow(
        &mut self,
        parent: Option<i64>,
        role: Role,
        name: &str,
        user: Option<&str>,
    ) -> rusqlite::Result<i64> {
        // Of the sequence of the jobs, so that one number tells either.
        let id = JobId::after(self.book.last_id, self.now, JobType::Job).raw();
        self.book.last_id = id;
        let state = if role == Role::Callbacks { State::Running } else { State::Created };
        self.conn
            .prepare_cached(
                "INSERT INTO jobmill_flow (id, parent, role, name, user_id, state)
                 VALUES (:id, :parent, :role, :name, :user_id, :state)",
            )?
            .execute(named_params! {
                ":id": id, ":parent": parent, ":role": role, ":name": name, ":user_id": user, ":state": state,
            })?;
        Ok(id)
    }

    /// Adds a job to a workflow that is being written. `waits`: it may not run before others have ended, or before the
    /// workflow is let go.
    pub(crate) fn draft_job(
        &mut self,
        plan: &Plan,
        draft: &mut Draft,
        spot: Spot,
        mut job: NewJob,
        waits: bool,
    ) -> rusqlite::Result<Enqueued> {
        let (place, flow) = match spot {
            Spot::Node(place) if plan.nodes[place].is_stage => (None, draft.targets[place]),
            Spot::Node(place) => (Some(place), draft.id.raw()),
            Spot::Callback(at) => (Some(plan.nodes.len() + at), draft.callbacks.unwrap_or(draft.id.raw())),
        };
        job.flow = Some(flow);
        if waits && job.kind.is_some() {
            job.status = Some(Status::Created);
        }
        let enqueued = self.enqueue(&job)?;
        if let (Enqueued::New(id), Some(place)) = (enqueued, place) {
            draft.targets[place] = id.raw();
        }
        Ok(enqueued)
    }

    /// Whether a job was added to the workflow that is being written.
    pub(crate) fn is_drafted(&self, draft: &Draft, job: JobId) -> rusqlite::Result<bool> {
        let flow: Option<i64> = self
            .conn
            .prepare_cached("SELECT flow FROM jobmill_job WHERE id = ?1")?
            .query_row([job], |row| row.get(0))
            .optional()?
            .flatten();
        Ok(flow.is_some_and(|flow| {
            flow == draft.id.raw() || draft.callbacks == Some(flow) || draft.targets.contains(&flow)
        }))
    }

    /// Has those wait that follow others, and lets a workflow go whose jobs are written. `at_once`: its jobs that wait for
    /// nothing were written as pending.
    pub(crate) fn release_workflow(&mut self, plan: &Plan, draft: &Draft, at_once: bool) -> rusqlite::Result<bool> {
        let whole = draft.id.raw();
        let released = self
            .conn
            .prepare_cached(
                "UPDATE jobmill_flow SET state = 2 WHERE id = ?1 AND state = 0 AND cancel_requested_at IS NULL",
            )?
            .execute([whole])?;
        if released == 0 {
            return Ok(false);
        }
        self.book.flows.moved(whole, State::Created, State::Running, self.now);
        let mut node = self
            .conn
            .prepare_cached("INSERT INTO jobmill_node (flow, place, role, target, name) VALUES (?1, ?2, ?3, ?4, ?5)")?;
        let mut begin_stage = self.conn.prepare_cached("UPDATE jobmill_flow SET state = 2 WHERE id = ?1")?;
        let mut any_root = false;
        for (place, planned) in plan.nodes.iter().enumerate() {
            let target = draft.targets[place];
            node.execute(params![whole, place as i64, i64::from(planned.is_stage), target, planned.name])?;
            for (needed, on_failure) in &planned.needs {
                let needs = draft.targets[*needed];
                edge::insert(
                    self.conn,
                    &Edge {
                        needs,
                        follower: target,
                        condition: (*on_failure).into(),
                        follower_is_stage: planned.is_stage,
                        feeds: planned.is_fed,
                        workflow: Some(whole),
                    },
                )?;
                if !plan.nodes[*needed].is_stage {
                    edge::mark_followed(self.conn, needs)?;
                }
            }
            if planned.needs.is_empty() && planned.is_stage {
                begin_stage.execute([target])?;
                if at_once {
                    // It may have no jobs.
                    self.book.flows.touch(target);
                } else {
                    self.admit_later(whole, target)?;
                }
            }
            any_root |= planned.needs.is_empty() && !planned.is_stage;
        }
        for (at, condition) in plan.callbacks.iter().enumerate() {
            let place = plan.nodes.len() + at;
            let role = match condition {
                Condition::SuccessOrCancel | Condition::SuccessOrFail => 2,
                Condition::Failure => 3,
                Condition::End => 4,
            };
            let follower = draft.targets[place];
            node.execute(params![whole, place as i64, role, follower, callback_name(*condition)])?;
            let (condition, workflow) = (*condition, Some(whole));
            edge::insert(
                self.conn,
                &Edge { needs: whole, follower, condition, follower_is_stage: false, feeds: false, workflow },
            )?;
        }
        if any_root && !at_once {
            self.admit_later(whole, whole)?;
        }
        // Tracked jobs may all have ended before, and stages may have no jobs.
        self.book.flows.touch(whole);
        self.tell_ended_members(plan, draft)?;
        Ok(true)
    }

    /// Has those judged that wait for jobs that had ended when they were written, as tracked ones may.
    fn tell_ended_members(&mut self, plan: &Plan, draft: &Draft) -> rusqlite::Result<()> {
        for (place, planned) in plan.nodes.iter().enumerate().filter(|(_, planned)| !planned.is_stage) {
            let target = draft.targets[place];
            let ended: Option<State> = self
                .conn
                .prepare_cached("SELECT state FROM jobmill_job WHERE id = ?1 AND state IN (3, 4, 5, 6)")?
                .query_row([target], |row| row.get(0))
                .optional()?;
            if let Some(state) = ended {
                log::debug!("{} had ended when its workflow began", planned.name);
                flow::settle(self.conn, draft.id.raw(), target, state as i64)?;
                self.book.flows.has_work = true;
            }
        }
        Ok(())
    }

    /// Takes back up to `limit` jobs of a workflow that was never let go, and tells whether any are left. With the last of
    /// them it goes itself.
    pub(crate) fn discard_workflow(&mut self, id: WorkflowId, limit: usize) -> rusqlite::Result<bool> {
        let mut left = limit;
        for flow in flow::parts(self.conn, id.raw())? {
            let jobs: Vec<JobId> = self
                .conn
                .prepare_cached("SELECT id FROM jobmill_job INDEXED BY jobmill_job_flow WHERE flow = ?1 LIMIT ?2")?
                .query_map([flow, left as i64], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            left -= jobs.len();
            for job in jobs {
                if let Some(standing) = self.standing(job, &Caller::default())? {
                    self.remove(&standing)?;
                }
            }
            if left == 0 {
                return Ok(true);
            }
        }
        self.book.flows.flush(self.conn, self.now)?;
        flow::remove(self.conn, id.raw())?;
        Ok(false)
    }

    fn admit_later(&mut self, whole: i64, flow: i64) -> rusqlite::Result<()> {
        self.book.flows.has_work = true;
        self.conn
            .prepare_cached("INSERT INTO jobmill_flow_work (whole, work, target, state) VALUES (?1, ?2, ?3, 1)")?
            .execute(params![whole, Task::Admit, flow])
            .map(drop)
    }

    /// Adds jobs to the workflow of a running one: to its own stage, or to one by name.
    pub(crate) fn add_to_workflow(
        &mut self,
        claim: &Claim,
        stage: Option<&str>,
        jobs: &[NewJob],
    ) -> rusqlite::Result<Result<Vec<Enqueued>, NotAdded>> {
        if !self.holds(claim.job.id, claim.fence)? {
            return Ok(Err(NotAdded::Fenced));
        }
        let Some(own) = claim.place.flow else { return Ok(Err(NotAdded::NoWorkflow)) };
        let Some(whole) = flow::workflow_of(self.conn, own)? else {
            return Ok(Err(NotAdded::NoWorkflow));
        };
        let target = match stage {
            None => Some(own),
            Some(name) => self
                .conn
                .prepare_cached("SELECT target FROM jobmill_node WHERE flow = ?1 AND name = ?2 AND role = 1")?
                .query_row(params![whole, name], |row| row.get(0))
                .optional()?,
        };
        let Some(target) = target else { return Ok(Err(NotAdded::NoStage)) };
        self.book.flows.flush(self.conn, self.now)?;
        let (role, state, user): (Role, State, Option<String>) = self
            .conn
            .prepare_cached(
                "SELECT role, state, (SELECT user_id FROM jobmill_flow WHERE id = ?2) FROM jobmill_flow WHERE id = ?1",
            )?
            .query_row([target, whole], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let closed = flow::is_closed(self.conn, target)?;
        if role == Role::Callbacks || state.status().is_terminal() || closed {
            return Ok(Err(NotAdded::Closed));
        }
        let mut added = Vec::with_capacity(jobs.len());
        for job in jobs {
            let mut job = job.clone();
            job.flow = Some(target);
            if let Some(user) = &user {
                job.user_id = Some(user.clone());
            }
            if state == State::Created && job.kind.is_some() {
                job.status = Some(Status::Created);
            }
            added.push(self.enqueue(&job)?);
        }
        Ok(Ok(added))
    }
}
