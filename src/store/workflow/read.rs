//! What is read of workflows: where they stand, pages of them, what a job waits for, and what came of what it needed.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use crate::model::contents::debug_with_sizes;
use crate::model::cursor::Order;
use crate::model::id::{JobId, WorkflowId};
use crate::model::job::Status;
use crate::model::need::{Condition, OnFailure};
use crate::model::page::Query;
use crate::model::stats::StatusCounts;
use crate::model::workflow::{Workflow, WorkflowFailure, WorkflowNode, WorkflowPage, WorkflowQuery, WorkflowSummary};
use crate::store::flow::{self, Role};
use crate::store::list;
use crate::store::read::status_counts;
use crate::store::row::State;

/// How many failures a record tells.
const FAILURES_MAX: usize = 10;

/// The columns of a workflow's row that `summary` reads.
macro_rules! flow_columns {
    () => {
        "id, name, user_id, state, ended_at, cancel_requested_at,
         created, pending, running, completed, failed, cancelled, expired, delayed, held"
    };
}

/// A name that a job or a flow is known by, with its id if it has one.
pub(crate) fn name_of(conn: &Connection, id: i64) -> rusqlite::Result<String> {
    let flow: Option<(Role, String)> = conn
        .prepare_cached("SELECT role, name FROM jobmill_flow WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((role, name)) = flow {
        let sort = if role == Role::Stage { "stage" } else { "workflow" };
        return Ok(format!("the {sort} {name}"));
    }
    let job = JobId::from_raw(id);
    Ok(match node_name(conn, id)? {
        Some(name) => format!("{name} ({job})"),
        None => job.to_string(),
    })
}

/// The name of a job or a stage within its workflow.
fn node_name(conn: &Connection, id: i64) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached("SELECT name FROM jobmill_node WHERE target = ?1")?.query_row([id], |row| row.get(0)).optional()
}

fn counts(row: &Row<'_>, first: usize) -> rusqlite::Result<StatusCounts> {
    let mut by_state = [0; State::COUNT];
    for (column, count) in by_state.iter_mut().enumerate() {
        *count = row.get(first + column)?;
    }
    Ok(status_counts(&by_state))
}

fn summary(row: &Row<'_>) -> rusqlite::Result<WorkflowSummary> {
    let id = WorkflowId::from_raw(row.get(0)?);
    Ok(WorkflowSummary {
        id,
        name: row.get(1)?,
        user_id: row.get(2)?,
        status: row.get::<_, State>(3)?.status(),
        created_at: id.created_at(),
        ended_at: row.get(4)?,
        cancel_requested_at: row.get(5)?,
        jobs: counts(row, 6)?,
    })
}

fn find(conn: &Connection, id: WorkflowId, user: Option<&str>) -> rusqlite::Result<Option<WorkflowSummary>> {
    let found = conn
        .prepare_cached(concat!("SELECT ", flow_columns!(), " FROM jobmill_flow WHERE id = ?1 AND parent IS NULL"))?
        .query_row([id.raw()], summary)
        .optional()?;
    Ok(found.filter(|found| user.is_none() || found.user_id.as_deref() == user))
}

/// Where a workflow stands, if there is one for the user.
pub(crate) fn status(conn: &Connection, id: WorkflowId, user: Option<&str>) -> rusqlite::Result<Option<Status>> {
    find(conn, id, user).map(|found| found.map(|found| found.status))
}

/// A workflow with all that bears a name in it.
pub(crate) fn workflow(conn: &Connection, id: WorkflowId, user: Option<&str>) -> rusqlite::Result<Option<Workflow>> {
    let Some(found) = find(conn, id, user)? else { return Ok(None) };
    let (nodes, names) = nodes(conn, id)?;
    let mut failures = Vec::new();
    if found.jobs.failed > 0 {
        let query = Query::new().workflow(id).statuses([Status::Failed]).order(Order::Ascending).limit(FAILURES_MAX);
        for job in list::ids(conn, &query)? {
            let (error, flow): (Option<String>, i64) = conn
                .prepare_cached("SELECT error, flow FROM jobmill_job WHERE id = ?1")?
                .query_row([job], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let name = names.get(&job.raw()).or_else(|| names.get(&flow)).cloned();
            failures.push(WorkflowFailure { job, name, error });
        }
    }
    let WorkflowSummary { id, name, user_id, status, created_at, ended_at, cancel_requested_at, jobs } = found;
    let workflow =
        Workflow { id, name, user_id, status, created_at, ended_at, cancel_requested_at, jobs, nodes, failures };
    Ok(Some(workflow))
}

/// What bears a name in a workflow, and the names by the ids of jobs and stages.
fn nodes(conn: &Connection, id: WorkflowId) -> rusqlite::Result<(Vec<WorkflowNode>, HashMap<i64, String>)> {
    let mut statement = conn.prepare_cached(
        "SELECT node.role, node.target, node.name, job.state, stage.state,
             stage.created, stage.pending, stage.running, stage.completed, stage.failed, stage.cancelled, stage.expired,
             stage.delayed, stage.held
         FROM jobmill_node AS node
         LEFT JOIN jobmill_job AS job ON job.id = node.target AND node.role <> 1
         LEFT JOIN jobmill_flow AS stage ON stage.id = node.target AND node.role = 1
         WHERE node.flow = ?1 ORDER BY node.place",
    )?;
    let mut names = HashMap::new();
    let mut nodes: Vec<(i64, WorkflowNode)> = Vec::new();
    let mut rows = statement.query([id.raw()])?;
    while let Some(row) = rows.next()? {
        let (role, target, name): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let is_stage = role == 1;
        let state: Option<State> = row.get(if is_stage { 4 } else { 3 })?;
        let jobs = match state {
            Some(_) if is_stage => counts(row, 5)?,
            Some(state) => {
                let mut one = StatusCounts::default();
                *one.of_mut(state.status()) = 1;
                one
            }
            None => StatusCounts::default(),
        };
        names.insert(target, name.clone());
        let job = (!is_stage).then(|| JobId::from_raw(target));
        let status = state.map(State::status);
        nodes.push((target, WorkflowNode { name, job, is_callback: role > 1, status, jobs, needs: Vec::new() }));
    }
    let mut needs =
        conn.prepare_cached("SELECT needs, condition FROM jobmill_edge WHERE follower = ?1 AND flow = ?2")?;
    for (target, node) in nodes.iter_mut().filter(|(_, node)| !node.is_callback) {
        let mut rows = needs.query([*target, id.raw()])?;
        while let Some(row) = rows.next()? {
            if let Some(name) = names.get(&row.get(0)?) {
                node.needs.push((name.clone(), OnFailure::from(row.get::<_, Condition>(1)?)));
            }
        }
    }
    Ok((nodes.into_iter().map(|(_, node)| node).collect(), names))
}

/// Read workflows of one state between two ids, of everybody or of one user, in both orders.
pub(crate) const PLAN_WORKFLOWS: [[&str; 2]; 2] = [
    [
        concat!(
            "SELECT ",
            flow_columns!(),
            " FROM jobmill_flow INDEXED BY jobmill_flow_state
             WHERE parent IS NULL AND state = ?1 AND id > ?2 AND id < ?3 ORDER BY id LIMIT ?4"
        ),
        concat!(
            "SELECT ",
            flow_columns!(),
            " FROM jobmill_flow INDEXED BY jobmill_flow_state
             WHERE parent IS NULL AND state = ?1 AND id > ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4"
        ),
    ],
    [
        concat!(
            "SELECT ",
            flow_columns!(),
            " FROM jobmill_flow INDEXED BY jobmill_flow_user
             WHERE parent IS NULL AND user_id IS NOT NULL AND user_id = ?5 AND state = ?1 AND id > ?2 AND id < ?3
             ORDER BY id LIMIT ?4"
        ),
        concat!(
            "SELECT ",
            flow_columns!(),
            " FROM jobmill_flow INDEXED BY jobmill_flow_user
             WHERE parent IS NULL AND user_id IS NOT NULL AND user_id = ?5 AND state = ?1 AND id > ?2 AND id < ?3
             ORDER BY id DESC LIMIT ?4"
        ),
    ],
];

/// Reads one page of workflows. The query's rules have been checked.
pub(crate) fn workflows(conn: &Connection, query: &WorkflowQuery) -> rusqlite::Result<WorkflowPage> {
    let descending = query.cursor.order == Order::Descending;
    let after = query.cursor.after.map_or(0, WorkflowId::raw);
    let before = query.cursor.before.map_or(i64::MAX, WorkflowId::raw);
    let limit = query.cursor.limit as i64 + 1;
    let mut found = Vec::new();
    for state in [State::Created, State::Running, State::Completed, State::Failed, State::Cancelled] {
        if !query.statuses.is_empty() && !query.statuses.contains(&state.status()) {
            continue;
        }
        let sql = PLAN_WORKFLOWS[usize::from(query.user.is_some())][usize::from(descending)];
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = match &query.user {
            Some(user) => statement.query(params![state, after, before, limit, user])?,
            None => statement.query(params![state, after, before, limit])?,
        };
        while let Some(row) = rows.next()? {
            found.push(summary(row)?);
        }
    }
    let next = query.cursor.cut(&mut found, |workflow| workflow.id);
    let next = next.map(|cursor| WorkflowQuery { cursor, ..query.clone() });
    Ok(WorkflowPage { workflows: found, next })
}

/// What a job needed, as its handler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needed {
    Job(JobId),
    Stage(i64),
}

/// What a job, or the stage that it is of, has waited for, in the order of their ids.
pub(crate) fn needs_of(conn: &Connection, job: JobId, flow: Option<i64>) -> rusqlite::Result<Vec<Needed>> {
    let mut statement = conn.prepare_cached(
        "SELECT needs, (SELECT role FROM jobmill_flow WHERE jobmill_flow.id = needs) FROM jobmill_edge
         WHERE follower = ?1 ORDER BY needs",
    )?;
    let mut needed = Vec::new();
    for follower in [Some(job.raw()), flow].into_iter().flatten() {
        let mut rows = statement.query([follower])?;
        while let Some(row) = rows.next()? {
            match row.get::<_, Option<Role>>(1)? {
                None => needed.push(Needed::Job(JobId::from_raw(row.get(0)?))),
                Some(Role::Stage) => needed.push(Needed::Stage(row.get(0)?)),
                // A callback waits for the whole workflow.
                Some(_) => {}
            }
        }
    }
    Ok(needed)
}

/// What stands under a name in the workflow of a flow.
pub(crate) fn named(conn: &Connection, flow: i64, name: &str) -> rusqlite::Result<Option<Needed>> {
    let Some(whole) = flow::workflow_of(conn, flow)? else { return Ok(None) };
    conn.prepare_cached("SELECT role, target FROM jobmill_node WHERE flow = ?1 AND name = ?2")?
        .query_row(params![whole, name], |row| {
            let target = row.get(1)?;
            Ok(if row.get::<_, i64>(0)? == 1 { Needed::Stage(target) } else { Needed::Job(JobId::from_raw(target)) })
        })
        .optional()
}

/// What came of one job.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Came {
    pub(crate) id: JobId,
    pub(crate) status: Status,
    pub(crate) error: Option<String>,
    pub(crate) result: Option<Vec<u8>>,
}

debug_with_sizes!(Came { id, status, error; result });

fn came(row: &Row<'_>) -> rusqlite::Result<Came> {
    let status = row.get::<_, State>(1)?.status();
    Ok(Came { id: row.get(0)?, status, error: row.get(2)?, result: row.get(3)? })
}

/// What came of a job.
pub(crate) fn outcome(conn: &Connection, job: JobId) -> rusqlite::Result<Option<Came>> {
    conn.prepare_cached("SELECT id, state, error, result FROM jobmill_job WHERE id = ?1")?
        .query_row([job], came)
        .optional()
}

/// Reads what came of the jobs of a stage.
pub(crate) const PLAN_OUTCOMES: &str = "SELECT id, state, error, result FROM jobmill_job INDEXED BY jobmill_job_flow
     WHERE flow = :flow AND id > :after ORDER BY id LIMIT :limit";

/// What came of the jobs of a stage, a page at a time.
pub(crate) fn outcomes(conn: &Connection, stage: i64, after: i64, limit: usize) -> rusqlite::Result<Vec<Came>> {
    conn.prepare_cached(PLAN_OUTCOMES)?
        .query_map(named_params! { ":flow": stage, ":after": after, ":limit": limit as i64 }, came)?
        .collect()
}

/// The value of a step that is done.
pub(crate) fn step(conn: &Connection, job: JobId, name: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    conn.prepare_cached("SELECT value FROM jobmill_journal WHERE job = ?1 AND name = ?2")?
        .query_row(params![job, name], |row| row.get(0))
        .optional()
}
