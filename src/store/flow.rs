//! Flows: the jobs of a workflow, or of one stage of it, counted in one row; and what their ends call for.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, named_params, params};

use crate::model::event::WorkflowTransition;
use crate::model::history::Caller;
use crate::model::id::WorkflowId;
use crate::model::time::Timestamp;
use crate::store::lane::add_to_flow;
use crate::store::row::{State, by_number};

/// What a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Workflow = 0,
    /// Jobs of a workflow that are counted together.
    Stage = 1,
    /// What follows the end of a workflow.
    Callbacks = 2,
}

impl Role {
    const ALL: [Self; 3] = [Self::Workflow, Self::Stage, Self::Callbacks];
}

/// What is to be done, a slice at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Judge what waits for a job or a flow that has ended.
    Settle = 0,
    /// Let the jobs of a flow become pending that wait for nothing.
    Admit = 1,
    /// End the jobs of a stage that wait for what did not come.
    Refuse = 2,
    /// Cancel the open jobs of a flow.
    Cancel = 3,
    /// Send the jobs of a flow again that did not end well.
    Retry = 4,
}

impl Task {
    const ALL: [Self; 5] = [Self::Settle, Self::Admit, Self::Refuse, Self::Cancel, Self::Retry];
}

by_number!(Role, Task);

/// The verdict on what was deleted before it had ended.
pub(crate) const GONE: i64 = 9;

/// What the writer knows of the flows: like the shares they may be many, so their counts stay in the file.
#[derive(Default)]
pub(crate) struct Flows {
    /// What this turn has changed and not written yet. One without a change is to be looked at all the same.
    changes: HashMap<i64, [i64; State::COUNT]>,
    /// What workflows came to, which is not noted yet.
    pub(crate) transitions: Vec<WorkflowTransition>,
    /// Something is to be done, as far as memory tells.
    pub(crate) has_work: bool,
    pub(crate) round: Round,
    /// The flows whose jobs are being cancelled, and on whose behalf: what the cascade has not come to does not begin.
    cancelling: HashMap<i64, Caller>,
}

/// Reads the flows whose jobs are being cancelled.
pub(crate) const PLAN_CANCELLING: &str =
    "SELECT target, actor FROM jobmill_flow_work INDEXED BY jobmill_flow_work_cancel WHERE work = 3";

/// Whose turn it is of the workflows that have something to be done. They come round in the order of their ids, those that
/// have come since the round began in the next one, so that none is passed over for ever, however many come. What others
/// write and turns that fail leave it as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    /// The next one has this id or a greater one.
    pub(crate) from: i64,
    /// The last one has this id or a smaller one.
    pub(crate) until: i64,
}

impl Flows {
    /// Counts a job that came into a state, and out of another if it is not new.
    pub(crate) fn count(&mut self, flow: i64, from: Option<State>, to: Option<State>) {
        let change = self.changes.entry(flow).or_default();
        if let Some(from) = from {
            change[from as usize] -= 1;
        }
        if let Some(to) = to {
            change[to as usize] += 1;
        }
    }

    /// Has the next writing look whether a flow has ended.
    pub(crate) fn touch(&mut self, flow: i64) {
        self.changes.entry(flow).or_default();
    }

    /// Writes what has been counted since the last time, and finds the flows that have ended by it.
    pub(crate) fn flush(&mut self, conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let changes: Vec<(i64, [i64; State::COUNT])> = self.changes.drain().collect();
        // Stages before their workflows, for these end when no stage is open.
        let mut workflows: HashMap<i64, [i64; State::COUNT]> = HashMap::new();
        for (flow, change) in changes {
            match stage_of(conn, flow)? {
                Some(workflow) => {
                    let total = workflows.entry(workflow).or_default();
                    total.iter_mut().zip(change).for_each(|(total, change)| *total += change);
                    self.write(conn, flow, &change, now)?;
                }
                None => {
                    let total = workflows.entry(flow).or_default();
                    total.iter_mut().zip(change).for_each(|(total, change)| *total += change);
                }
            }
        }
        workflows.into_iter().try_for_each(|(flow, change)| self.write(conn, flow, &change, now))
    }

    fn write(
        &mut self,
        conn: &Connection,
        flow: i64,
        change: &[i64; State::COUNT],
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        if *change != [0; State::COUNT] {
            add_to_flow(conn, flow, change)?;
        }
        // Jobs that begin open and close nothing.
        let moved = |state: &State| change[*state as usize] != 0;
        let (ends, open): (Vec<State>, Vec<State>) =
            State::ALL.into_iter().partition(|state| state.status().is_terminal());
        let opened: i64 = open.iter().map(|state| change[*state as usize]).sum();
        if opened == 0 && !ends.iter().any(moved) && open.iter().any(moved) {
            return Ok(());
        }
        if let Some(Moved { role, from, to }) = look(conn, flow, now)? {
            self.has_work = true;
            if role == Role::Workflow {
                self.moved(flow, from, to, now);
                if !self.cancelling.is_empty() {
                    self.read_cancelling(conn)?;
                }
            }
        }
        Ok(())
    }

    /// On whose behalf the jobs of a flow are being cancelled, if they are.
    pub(crate) fn cancelled_by(&self, flow: i64) -> Option<&Caller> {
        self.cancelling.get(&flow)
    }

    /// Takes note that the jobs of a flow have been cancelled.
    pub(crate) fn cancelled(&mut self, flow: i64) {
        self.cancelling.remove(&flow);
    }

    /// Reads anew of which flows the jobs are being cancelled.
    pub(crate) fn read_cancelling(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.cancelling = conn
            .prepare_cached(PLAN_CANCELLING)?
            .query_map([], |row| Ok((row.get(0)?, Caller { user: None, name: row.get(1)? })))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(())
    }

    /// Notes that a workflow has come from one state to another.
    pub(crate) fn moved(&mut self, workflow: i64, from: State, to: State, at: Timestamp) {
        let (id, from, to) = (WorkflowId::from_raw(workflow), from.status(), to.status());
        self.transitions.push(WorkflowTransition { id, from, to, at });
    }

    /// Reads anew whether there is something to do, and forgets what was counted and not written.
    pub(crate) fn reload(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.forget();
        self.has_work = conn.prepare_cached("SELECT 1 FROM jobmill_flow_work LIMIT 1")?.exists([])?;
        self.cancelling.clear();
        if self.has_work { self.read_cancelling(conn) } else { Ok(()) }
    }

    /// Forgets what was counted and not written.
    pub(crate) fn forget(&mut self) {
        self.changes.clear();
        self.transitions.clear();
    }
}

/// Counts jobs in a transaction of the application's own.
pub(crate) fn add(conn: &Connection, flow: i64, change: &[i64; State::COUNT], now: Timestamp) -> rusqlite::Result<()> {
    add_to_flow(conn, flow, change)?;
    look(conn, flow, now)?;
    if let Some(workflow) = stage_of(conn, flow)? {
        add_to_flow(conn, workflow, change)?;
        look(conn, workflow, now)?;
    }
    Ok(())
}

/// The workflow whose stage a flow is, if it is one.
fn stage_of(conn: &Connection, flow: i64) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT parent FROM jobmill_flow WHERE id = ?1 AND role = 1")?
        .query_row([flow], |row| row.get(0))
        .optional()
}

/// The workflow of a flow.
pub(crate) fn workflow_of(conn: &Connection, flow: i64) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT coalesce(parent, id) FROM jobmill_flow WHERE id = ?1")?
        .query_row([flow], |row| row.get(0))
        .optional()
}

/// A workflow and its parts.
pub(crate) fn parts(conn: &Connection, workflow: i64) -> rusqlite::Result<Vec<i64>> {
    conn.prepare_cached(
        "SELECT id FROM jobmill_flow WHERE id = ?1
         UNION ALL SELECT id FROM jobmill_flow INDEXED BY jobmill_flow_parent WHERE parent = ?1",
    )?
    .query_map([workflow], |row| row.get(0))?
    .collect()
}

/// Whose duty it is what the end of a job calls for: that of its workflow, or of the job itself if it is of none.
pub(crate) fn whole_of(conn: &Connection, job: i64, flow: Option<i64>) -> rusqlite::Result<i64> {
    let whole = flow.map_or(Ok(None), |flow| workflow_of(conn, flow))?;
    Ok(whole.unwrap_or(job))
}

/// Whether nothing more is admitted of the workflow of this flow, for somebody has cancelled it, or of this stage.
pub(crate) fn is_closed(conn: &Connection, flow: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached(
        "SELECT 1 FROM jobmill_flow AS flow LEFT JOIN jobmill_flow AS whole ON whole.id = flow.parent AND flow.role = 1
         WHERE flow.id = ?1
           AND (flow.cancel_requested_at IS NOT NULL OR whole.cancel_requested_at IS NOT NULL)",
    )?
    .exists([flow])
}

/// Whether the workflow of this flow is under way.
pub(crate) fn is_open(conn: &Connection, flow: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached(
        "SELECT 1 FROM jobmill_flow WHERE ended_at IS NULL
             AND id = (SELECT coalesce(parent, id) FROM jobmill_flow WHERE id = ?1)",
    )?
    .exists([flow])
}

/// What a look at a flow has found: it has just ended, or goes on after it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moved {
    role: Role,
    from: State,
    to: State,
}

/// Looks whether a flow has ended, or goes on after it had.
fn look(conn: &Connection, id: i64, now: Timestamp) -> rusqlite::Result<Option<Moved>> {
    struct Standing {
        whole: i64,
        role: Role,
        state: State,
        open: i64,
        failed: i64,
        cancelled: i64,
        cancel_requested: bool,
    }
    let found = conn
        .prepare_cached(
            "SELECT role, state, created + pending + running + delayed + held, failed + expired, cancelled,
                 cancel_requested_at IS NOT NULL, coalesce(parent, id)
             FROM jobmill_flow WHERE id = ?1",
        )?
        .query_row([id], |row| {
            Ok(Standing {
                role: row.get(0)?,
                state: row.get(1)?,
                open: row.get(2)?,
                failed: row.get(3)?,
                cancelled: row.get(4)?,
                cancel_requested: row.get(5)?,
                whole: row.get(6)?,
            })
        })
        .optional()?;
    let Some(flow) = found.filter(|flow| flow.role != Role::Callbacks) else { return Ok(None) };
    let moved = |to| Ok(Some(Moved { role: flow.role, from: flow.state, to }));
    if flow.state.status().is_terminal() && flow.open > 0 {
        // Somebody has sent a job of it again.
        conn.prepare_cached("UPDATE jobmill_flow SET state = 2, ended_at = NULL WHERE id = ?1")?.execute([id])?;
        if flow.role == Role::Workflow {
            judge_callbacks_again(conn, id)?;
        }
        return moved(State::Running);
    }
    if flow.state != State::Running || flow.open > 0 {
        return Ok(None);
    }
    let (mut failed, mut cancelled) = (flow.failed, flow.cancelled);
    if is_being_resent(conn, flow.whole, id)? {
        return Ok(None);
    }
    if flow.role == Role::Workflow {
        if has_open_stage(conn, id)? {
            return Ok(None);
        }
        if failed + cancelled > 0 {
            let tolerated = tolerated(conn, id)?;
            (failed, cancelled) = (failed - tolerated.0, cancelled - tolerated.1);
        }
    }
    let outcome = match () {
        () if flow.role == Role::Workflow && flow.cancel_requested => State::Cancelled,
        () if failed > 0 => State::Failed,
        () if cancelled > 0 || flow.cancel_requested => State::Cancelled,
        () => State::Completed,
    };
    conn.prepare_cached("UPDATE jobmill_flow SET state = :state, ended_at = :now WHERE id = :id")?
        .execute(named_params! { ":id": id, ":state": outcome, ":now": now })?;
    settle(conn, flow.whole, id, outcome as i64)?;
    if flow.role == Role::Workflow && flow.cancel_requested {
        // What is sent again from now on is not cancelled by what is left of the cascade.
        conn.prepare_cached("DELETE FROM jobmill_flow_work WHERE whole = ?1 AND work = 3")?.execute([id])?;
    }
    moved(outcome)
}

/// Has those callbacks wait for the next end of a workflow that its last one did not call for, or that did not end well.
fn judge_callbacks_again(conn: &Connection, workflow: i64) -> rusqlite::Result<()> {
    let armed = conn
        .prepare_cached(
            "UPDATE jobmill_edge SET verdict = NULL
             WHERE needs = ?1 AND follower IN (
                 SELECT node.target FROM jobmill_node AS node JOIN jobmill_job AS job ON job.id = node.target
                 WHERE node.flow = ?1 AND node.role > 1 AND job.state IN (4, 5, 6))",
        )?
        .execute([workflow])?;
    if armed > 0 {
        conn.prepare_cached(
            "INSERT INTO jobmill_flow_work (whole, work, target) SELECT ?1, ?2, id FROM jobmill_flow WHERE parent = ?1 AND role = 2",
        )?
        .execute(params![workflow, Task::Retry])?;
    }
    Ok(())
}

/// Whether jobs of a flow are about to be sent again: those that were are not the last.
fn is_being_resent(conn: &Connection, whole: i64, flow: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM jobmill_flow_work WHERE whole = ?1 AND work = 4 AND target = ?2")?
        .exists([whole, flow])
}

/// Whether a stage of a workflow has not ended. One without jobs is none that its counts would tell of.
fn has_open_stage(conn: &Connection, workflow: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached(
        "SELECT 1 FROM jobmill_flow INDEXED BY jobmill_flow_parent
         WHERE parent = ?1 AND role = 1 AND ended_at IS NULL LIMIT 1",
    )?
    .exists([workflow])
}

/// How many jobs of a workflow failed or were cancelled that it bears: of nodes that others follow, all of which go on
/// whatever the end.
fn tolerated(conn: &Connection, workflow: i64) -> rusqlite::Result<(i64, i64)> {
    conn.prepare_cached(
        "SELECT coalesce(sum(CASE node.role WHEN 0 THEN job.state IN (4, 6) ELSE stage.failed + stage.expired END), 0),
             coalesce(sum(CASE node.role WHEN 0 THEN job.state = 5 ELSE stage.cancelled END), 0)
         FROM jobmill_node AS node
         LEFT JOIN jobmill_job AS job ON job.id = node.target AND node.role = 0
         LEFT JOIN jobmill_flow AS stage ON stage.id = node.target AND node.role = 1
         WHERE node.flow = ?1 AND node.role < 2
           AND EXISTS (SELECT 1 FROM jobmill_edge WHERE needs = node.target AND flow = ?1)
           AND NOT EXISTS (SELECT 1 FROM jobmill_edge WHERE needs = node.target AND flow = ?1 AND condition <> 2)",
    )?
    .query_row([workflow], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Has those judged that wait for the end of a job or a flow, if there are any, when it is the turn of `whole`.
pub(crate) fn settle(conn: &Connection, whole: i64, needed: i64, verdict: i64) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO jobmill_flow_work (whole, work, target, state)
         SELECT ?3, 0, ?1, ?2 WHERE EXISTS (SELECT 1 FROM jobmill_edge WHERE needs = ?1)",
    )?
    .execute([needed, verdict, whole])
    .map(drop)
}

/// Counts the rows that flows count, and gives each whose counts are wrong.
pub(crate) fn miscounted(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare(
        "WITH counted AS (
             SELECT coalesce(CASE flow.role WHEN 1 THEN flow.parent END, flow.id) AS whole, flow.id AS part, job.state,
                 count(*) AS jobs
             FROM jobmill_job AS job JOIN jobmill_flow AS flow ON flow.id = job.flow GROUP BY flow.id, job.state),
         sums AS (
             SELECT part AS id, state, jobs FROM counted WHERE part <> whole
             UNION ALL SELECT whole, state, sum(jobs) FROM counted GROUP BY whole, state)
         SELECT flow.id, flow.name FROM jobmill_flow AS flow LEFT JOIN sums ON sums.id = flow.id GROUP BY flow.id
         HAVING flow.created <> coalesce(sum(jobs) FILTER (WHERE sums.state = 0), 0)
             OR flow.pending <> coalesce(sum(jobs) FILTER (WHERE sums.state = 1), 0)
             OR flow.running <> coalesce(sum(jobs) FILTER (WHERE sums.state = 2), 0)
             OR flow.completed <> coalesce(sum(jobs) FILTER (WHERE sums.state = 3), 0)
             OR flow.failed <> coalesce(sum(jobs) FILTER (WHERE sums.state = 4), 0)
             OR flow.cancelled <> coalesce(sum(jobs) FILTER (WHERE sums.state = 5), 0)
             OR flow.expired <> coalesce(sum(jobs) FILTER (WHERE sums.state = 6), 0)
             OR flow.delayed <> coalesce(sum(jobs) FILTER (WHERE sums.state = 7), 0)
             OR flow.held <> coalesce(sum(jobs) FILTER (WHERE sums.state = 8), 0)",
    )?;
    let flows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let flows: Vec<(i64, String)> = flows.collect::<rusqlite::Result<_>>()?;
    let mut wrong: Vec<String> =
        flows.into_iter().map(|(id, name)| format!("the flow {name} ({id}) counts what its rows are not")).collect();
    let stray: i64 = conn.query_row(
        "SELECT count(*) FROM jobmill_job WHERE flow IS NOT NULL AND flow NOT IN (SELECT id FROM jobmill_flow)",
        [],
        |row| row.get(0),
    )?;
    if stray > 0 {
        wrong.push(format!("{stray} jobs are of flows that do not exist"));
    }
    // While something is to be done, nobody is stuck.
    let (untold, unnoticed): (i64, i64) = conn.query_row(
        "SELECT (SELECT count(*) FROM jobmill_edge AS edge
                 LEFT JOIN jobmill_job AS job ON job.id = edge.needs LEFT JOIN jobmill_flow AS flow ON flow.id = edge.needs
                 WHERE edge.verdict IS NULL AND coalesce(job.state IN (3, 4, 5, 6), flow.state IN (3, 4, 5), TRUE)
                   AND NOT EXISTS (SELECT 1 FROM jobmill_flow_work)),
             (SELECT count(*) FROM jobmill_flow
              WHERE role < 2 AND state = 2 AND created + pending + running + delayed + held = 0
                AND NOT EXISTS (SELECT 1 FROM jobmill_flow_work))",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if untold > 0 {
        wrong.push(format!("{untold} ends that others wait for were never told to them"));
    }
    if unnoticed > 0 {
        wrong.push(format!("{unnoticed} workflows or stages have ended, and nobody noticed"));
    }
    Ok(wrong)
}

/// Removes at most `limit` workflows that ended before a moment and whose jobs are all gone, and tells how many they were.
pub(crate) fn remove_old(conn: &Connection, before: Timestamp, limit: usize) -> rusqlite::Result<usize> {
    let old: Vec<i64> = conn
        .prepare_cached(
            "SELECT id FROM jobmill_flow AS whole INDEXED BY jobmill_flow_ended
             WHERE parent IS NULL AND ended_at IS NOT NULL AND ended_at < :before
                 AND NOT EXISTS (SELECT 1 FROM jobmill_job INDEXED BY jobmill_job_flow WHERE flow = whole.id)
                 AND NOT EXISTS (SELECT 1 FROM jobmill_flow AS part
                                 JOIN jobmill_job AS job INDEXED BY jobmill_job_flow ON job.flow = part.id
                                 WHERE part.parent = whole.id)
             LIMIT :limit",
        )?
        .query_map(named_params! { ":before": before, ":limit": limit as i64 }, |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    old.iter().try_for_each(|id| remove(conn, *id))?;
    Ok(old.len())
}

/// Removes a workflow that has no jobs.
pub(crate) fn remove(conn: &Connection, workflow: i64) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM jobmill_edge WHERE follower IN (SELECT id FROM jobmill_flow WHERE parent = ?1)",
        "DELETE FROM jobmill_flow_work WHERE whole = ?1",
        "DELETE FROM jobmill_node WHERE flow = ?1",
        "DELETE FROM jobmill_flow WHERE parent = ?1",
        "DELETE FROM jobmill_flow WHERE id = ?1",
    ] {
        conn.prepare_cached(sql)?.execute([workflow])?;
    }
    // Its number is not given again.
    conn.prepare_cached(
        "INSERT INTO jobmill_meta (key, value) VALUES ('last_id', ?1)
         ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
    )?
    .execute([workflow])
    .map(drop)
}
