//! What is done to workflows from outside: cancel, retry. And the values of steps that are done.

use std::collections::{BTreeSet, HashSet};

use rusqlite::{OptionalExtension, named_params, params};

use crate::model::history::Caller;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::Status;
use crate::model::time::Timestamp;
use crate::store::flow::Task;
use crate::store::operate::Cancelled;
use crate::store::row::{Claim, State};
use crate::store::{Turn, edge};

/// Reads the running jobs of a lane, each with its flow.
pub(crate) const PLAN_RUNNING: &str =
    "SELECT id, flow FROM jobmill_job INDEXED BY jobmill_job_place WHERE lane = ?1 AND state = 2";

/// Why a workflow was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkflowRefused {
    NotFound,
    /// Where it stands forbids it.
    Status(Status),
}

impl Turn<'_> {
    /// Where a workflow stands, if there is one for the caller, and whether somebody has asked for its cancellation.
    fn workflow_state(&mut self, id: WorkflowId, caller: &Caller) -> rusqlite::Result<Option<(State, bool)>> {
        self.book.flows.flush(self.conn, self.now)?;
        let found: Option<(State, bool, Option<String>)> = self
            .conn
            .prepare_cached(
                "SELECT state, cancel_requested_at IS NOT NULL, user_id FROM jobmill_flow
                 WHERE id = ?1 AND parent IS NULL",
            )?
            .query_row([id.raw()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let found = found.filter(|(.., user)| caller.user.is_none() || caller.user == *user);
        Ok(found.map(|(state, asked, _)| (state, asked)))
    }

    /// Has a workflow cancelled: nothing of it is admitted any more, and its jobs are cancelled in slices.
    pub(crate) fn cancel_workflow(
        &mut self,
        id: WorkflowId,
        caller: &Caller,
    ) -> rusqlite::Result<Result<Cancelled, WorkflowRefused>> {
        match self.workflow_state(id, caller)? {
            None => return Ok(Err(WorkflowRefused::NotFound)),
            Some((State::Cancelled, _)) => return Ok(Ok(Cancelled::Already)),
            Some((_, true)) => return Ok(Ok(Cancelled::Requested)),
            Some((state, _)) if state.status().is_terminal() => {
                return Ok(Err(WorkflowRefused::Status(state.status())));
            }
            Some((state, _)) => {
                self.conn
                    .prepare_cached("UPDATE jobmill_flow SET cancel_requested_at = ?2 WHERE id = ?1")?
                    .execute(params![id.raw(), self.now])?;
                // The callbacks of one that was let go are judged at its end.
                let roles = if state == State::Created { 2 } else { 1 };
                self.conn
                    .prepare_cached(
                        "INSERT INTO jobmill_flow_work (whole, work, target, actor)
                         SELECT :id, :task, id, :actor FROM jobmill_flow
                         WHERE (id = :id OR parent = :id) AND role <= :roles AND ended_at IS NULL ORDER BY role DESC, id",
                    )?
                    .execute(named_params! {
                        ":task": Task::Cancel, ":id": id.raw(), ":actor": caller.actor(), ":roles": roles,
                    })?;
                self.book.flows.has_work = true;
                self.book.flows.read_cancelling(self.conn)?;
                self.stop_cancelled()?;
            }
        }
        Ok(Ok(Cancelled::Requested))
    }

    /// Asks all handlers to stop that run jobs whose workflows are being cancelled. Of what was claimed ahead none begins
    /// then, whenever the cascade comes to it.
    fn stop_cancelled(&mut self) -> rusqlite::Result<()> {
        // What this very turn has claimed is with nobody yet who could be asked.
        let flows = &self.book.flows;
        let is_cancelled = |claim: &Claim| claim.place.flow.is_some_and(|flow| flows.cancelled_by(flow).is_some());
        let (taken_back, claims): (Vec<Claim>, Vec<Claim>) =
            std::mem::take(&mut self.out.claims).into_iter().partition(is_cancelled);
        self.out.claims = claims;
        taken_back.iter().try_for_each(|claim| self.put_back(claim, false).map(drop))?;
        // The cascade sees to batches and to what is tracked, for which no handler runs.
        let lanes: Vec<i64> = self
            .book
            .lanes
            .iter()
            .filter(|lane| lane.count(State::Running) > 0 && !lane.kind.is_empty())
            .map(|lane| lane.id)
            .collect();
        for lane in lanes {
            if self.is_batch_lane(lane) {
                continue;
            }
            let running: Vec<(JobId, Option<i64>)> = self
                .conn
                .prepare_cached(PLAN_RUNNING)?
                .query_map([lane], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            for (job, flow) in running {
                let caller = flow.and_then(|flow| self.book.flows.cancelled_by(flow)).cloned();
                if let Some(caller) = caller
                    && !self.is_asked_to_stop(job)?
                {
                    // None of the refusals can come: it is there and runs.
                    let _ = self.cancel(job, &caller)?;
                }
            }
        }
        Ok(())
    }

    /// Whether somebody has asked for the cancellation of a job.
    pub(crate) fn is_asked_to_stop(&self, job: JobId) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_job WHERE id = ?1 AND cancel_requested_at IS NOT NULL")?
            .exists([job])
    }

    /// Cancels workflows that were never let go, and to which nothing has been added since a moment: whoever wrote them is
    /// gone.
    pub(crate) fn cancel_abandoned_workflows(&mut self, before: Timestamp) -> rusqlite::Result<()> {
        let abandoned: Vec<WorkflowId> = self
            .conn
            .prepare_cached(
                "SELECT id FROM jobmill_flow AS whole INDEXED BY jobmill_flow_state
                 WHERE parent IS NULL AND state = 0 AND cancel_requested_at IS NULL AND id < :before AND NOT EXISTS (
                     SELECT 1 FROM jobmill_flow AS part
                     JOIN jobmill_job AS job INDEXED BY jobmill_job_flow ON job.flow = part.id
                     WHERE (part.id = whole.id OR part.parent = whole.id) AND job.id >= :before)",
            )?
            .query_map(named_params! { ":before": JobId::first_at(before) }, |row| {
                row.get(0).map(WorkflowId::from_raw)
            })?
            .collect::<rusqlite::Result<_>>()?;
        for id in abandoned {
            log::warn!("{id} is cancelled: it was not written to its end, and nobody has added to it for long");
            let _ = self.cancel_workflow(id, &Caller::default())?;
        }
        Ok(())
    }

    /// Has the jobs of an ended workflow sent again that did not end well.
    pub(crate) fn retry_workflow(
        &mut self,
        id: WorkflowId,
        caller: &Caller,
    ) -> rusqlite::Result<Result<(), WorkflowRefused>> {
        let state = match self.workflow_state(id, caller)? {
            None => return Ok(Err(WorkflowRefused::NotFound)),
            Some((state, _)) => state,
        };
        // A callback whose condition was not met is cancelled, and nothing of it is to be sent again for that alone.
        let flows: Vec<(i64, bool)> = self
            .conn
            .prepare_cached(
                "SELECT id, role <> 2 OR failed + expired > 0 FROM jobmill_flow WHERE (id = ?1 OR parent = ?1)
                     AND (failed + cancelled + expired > 0 OR state IN (4, 5)) ORDER BY id",
            )?
            .query_map([id.raw()], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        if !state.status().is_terminal() || !flows.iter().any(|(_, is_ill)| *is_ill) {
            return Ok(Err(WorkflowRefused::Status(state.status())));
        }
        let flows = flows.into_iter().map(|(flow, _)| flow);
        self.arm_again(id.raw())?;
        self.book.flows.moved(id.raw(), state, State::Running, self.now);
        for flow in flows.chain([id.raw()]).collect::<BTreeSet<i64>>() {
            self.conn
                .prepare_cached(
                    "UPDATE jobmill_flow
                     SET ended_at = NULL, cancel_requested_at = NULL,
                         state = CASE WHEN EXISTS (SELECT 1 FROM jobmill_edge WHERE follower = :id AND verdict IS NULL)
                                 THEN 0 ELSE 2 END
                     WHERE id = :id",
                )?
                .execute(named_params! { ":id": flow })?;
            self.conn
                .prepare_cached("INSERT INTO jobmill_flow_work (whole, work, target, actor) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id.raw(), Task::Retry, flow, caller.actor()])?;
        }
        self.book.flows.has_work = true;
        Ok(Ok(()))
    }

    /// Has those wait again that will be sent again for those that will be, too.
    fn arm_again(&mut self, workflow: i64) -> rusqlite::Result<()> {
        let mut ill: HashSet<i64> = self
            .conn
            .prepare_cached(
                "SELECT node.target FROM jobmill_node AS node
                 LEFT JOIN jobmill_job AS job ON job.id = node.target AND node.role <> 1
                 LEFT JOIN jobmill_flow AS stage ON stage.id = node.target AND node.role = 1
                 WHERE node.flow = ?1
                   AND (job.state IN (4, 5, 6) OR stage.failed + stage.cancelled + stage.expired > 0
                        OR stage.state IN (4, 5))",
            )?
            .query_map([workflow], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        ill.insert(workflow);
        let mut needs_of = self.conn.prepare_cached("SELECT needs FROM jobmill_edge WHERE follower = ?1")?;
        let mut unsettle =
            self.conn.prepare_cached("DELETE FROM jobmill_flow_work WHERE whole = ?1 AND work = 0 AND target = ?2")?;
        for follower in &ill {
            let mut needs: Vec<i64> =
                needs_of.query_map([follower], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            needs.retain(|needed| ill.contains(needed));
            edge::arm(self.conn, *follower, &needs)?;
            // What its last end called for would be taken for what its next one does.
            unsettle.execute([workflow, *follower])?;
        }
        Ok(())
    }

    /// Whether something is still to be done to the jobs of a workflow that was asked for.
    pub(crate) fn is_operating(&self, id: WorkflowId) -> rusqlite::Result<bool> {
        self.conn
            .prepare_cached("SELECT 1 FROM jobmill_flow_work WHERE whole = ?1 AND work IN (3, 4)")?
            .exists([id.raw()])
    }

    /// Keeps the value of a step that is done. The first value stays.
    pub(crate) fn keep_step(&mut self, job: JobId, name: &str, value: &[u8]) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("INSERT OR IGNORE INTO jobmill_journal (job, name, value) VALUES (?1, ?2, ?3)")?
            .execute(params![job, name, value])
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use crate::error::Result;
    use crate::model::history::Caller;
    use crate::model::new_job::NewJob;
    use crate::model::new_workflow::NewWorkflow;
    use crate::store::connect::storage_error;
    use crate::store::plans::{Fixture, Greedy};
    use crate::store::workflow::WALK_MAX;
    use crate::store::workflow::create::Spot;

    /// One may add to a workflow and another cancel it in the same turn.
    #[test]
    fn what_a_turn_has_claimed_of_a_workflow_that_it_cancels_is_handed_to_nobody() -> Result<()> {
        let mut fixture = Fixture::new()?;
        let job = || NewJob::json("one", &1);
        let plan = NewWorkflow::new("w").job("a", job()).plan()?;
        let mut demand = Greedy { fair: false, by_deadline: false };
        let now = fixture.now;
        let (_, out) = fixture.store.turn(now, Some(&mut demand), |turn| {
            let storage = |error| storage_error("test", error);
            let mut draft = turn.draft_workflow(&plan).map_err(storage)?;
            turn.draft_job(&plan, &mut draft, Spot::Node(0), job(), false).map_err(storage)?;
            turn.release_workflow(&plan, &draft, true).map_err(storage)?;
            assert_eq!(turn.out.claims.len(), 1);
            assert!(turn.cancel_workflow(draft.id, &Caller::default()).map_err(storage)?.is_ok());
            turn.walk_flows(WALK_MAX).map_err(storage)?;
            turn.claim().map_err(storage)
        })?;
        assert_eq!(out.claims.len(), 0);
        let ended = "SELECT state = 5 AND attempt = 0 FROM jobmill_job";
        let ended: bool = fixture.store.connection().query_row(ended, [], |row| row.get(0)).expect("a job");
        assert!(ended, "it is cancelled, and no attempt is spent");
        Ok(())
    }
}
