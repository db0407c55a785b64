//! Edges: what waits for the end of what.

use rusqlite::{Connection, OptionalExtension, params};

use crate::model::id::JobId;
use crate::model::need::Condition;
use crate::model::new_job::NewJob;
use crate::store::flow::{settle, whole_of};
use crate::store::place::Place;
use crate::store::row::{State, by_number};

by_number!(Condition);

/// One of them, as it is written.
pub(crate) struct Edge {
    pub(crate) needs: i64,
    pub(crate) follower: i64,
    pub(crate) condition: Condition,
    pub(crate) follower_is_stage: bool,
    /// The result of the one becomes the payload of the other.
    pub(crate) feeds: bool,
    /// The workflow that says so.
    pub(crate) workflow: Option<i64>,
}

/// Writes an edge.
pub(crate) fn insert(conn: &Connection, edge: &Edge) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO jobmill_edge (needs, follower, condition, stage, feeds, flow) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![edge.needs, edge.follower, edge.condition, edge.follower_is_stage, edge.feeds, edge.workflow])
    .map(drop)
}

/// Has the end of a job told to those that wait for it.
pub(crate) fn mark_followed(conn: &Connection, job: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE jobmill_job SET followers = 1 WHERE id = ?1 AND followers IS NULL")?
        .execute([job])
        .map(drop)
}

/// Has a new job wait for those that it needs. What has ended already is judged with what ends next.
pub(crate) fn bind(conn: &Connection, follower: JobId, new: &NewJob) -> rusqlite::Result<()> {
    for need in &new.needs {
        insert(
            conn,
            &Edge {
                needs: need.job.raw(),
                follower: follower.raw(),
                condition: need.on_failure.into(),
                follower_is_stage: false,
                feeds: new.from_previous,
                workflow: None,
            },
        )?;
        mark_followed(conn, need.job.raw())?;
        let needed: Option<(State, Option<i64>)> = conn
            .prepare_cached("SELECT state, flow FROM jobmill_job WHERE id = ?1")?
            .query_row([need.job.raw()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some((state, flow)) = needed.filter(|(state, _)| state.status().is_terminal()) {
            settle(conn, whole_of(conn, need.job.raw(), flow)?, need.job.raw(), state as i64)?;
        }
    }
    Ok(())
}

/// Has those judged that wait for the end of a job, and tells whether there may be any.
pub(crate) fn tell(conn: &Connection, job: JobId, place: Place, verdict: i64) -> rusqlite::Result<bool> {
    let is_followed =
        conn.prepare_cached("SELECT 1 FROM jobmill_job WHERE id = ?1 AND followers = 1")?.exists([job])?;
    if is_followed {
        settle(conn, whole_of(conn, job.raw(), place.flow)?, job.raw(), verdict)?;
    }
    Ok(is_followed)
}

/// What of that which a job follows has not ended, though it may have before.
pub(crate) fn open_needs(conn: &Connection, follower: i64) -> rusqlite::Result<Vec<i64>> {
    conn.prepare_cached(
        "SELECT edge.needs FROM jobmill_edge AS edge
         LEFT JOIN jobmill_job AS job ON job.id = edge.needs LEFT JOIN jobmill_flow AS flow ON flow.id = edge.needs
         WHERE edge.follower = ?1 AND (job.state NOT IN (3, 4, 5, 6) OR flow.state IN (0, 2))",
    )?
    .query_map([follower], |row| row.get(0))?
    .collect()
}

/// Has a job or a stage wait again for some of those that it follows.
pub(crate) fn arm(conn: &Connection, follower: i64, needs: &[i64]) -> rusqlite::Result<()> {
    let mut arm = conn.prepare_cached("UPDATE jobmill_edge SET verdict = NULL WHERE needs = ?1 AND follower = ?2")?;
    needs.iter().try_for_each(|needed| arm.execute([*needed, follower]).map(drop))
}

/// Whether a job or a stage waits for something still.
pub(crate) fn is_waiting(conn: &Connection, follower: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM jobmill_edge WHERE follower = ?1 AND verdict IS NULL LIMIT 1")?
        .exists([follower])
}
