//! Why a job waits for others, or was refused because of them.

use rusqlite::{Connection, OptionalExtension};

use crate::model::explain::Reason;
use crate::model::id::JobId;
use crate::model::need::Condition;
use crate::store::row::State;

/// How many of those that a job waits for are told.
const TOLD_MAX: i64 = 20;

/// What a job waits for still, itself or with its stage, or what of it did not end as it should.
pub(crate) fn reasons(conn: &Connection, job: JobId, has_ended: bool) -> rusqlite::Result<Vec<Reason>> {
    let flow: Option<i64> = conn
        .prepare_cached("SELECT flow FROM jobmill_job WHERE id = ?1")?
        .query_row([job], |row| row.get(0))
        .optional()?
        .flatten();
    let mut reasons = Vec::new();
    for follower in [Some(job.raw()), flow].into_iter().flatten() {
        let mut statement = conn.prepare_cached(
            "SELECT edge.needs, edge.condition, edge.verdict, needed.state, flow.state, flow.role,
                 coalesce(flow.name, (SELECT name FROM jobmill_node AS node WHERE node.target = edge.needs))
             FROM jobmill_edge AS edge LEFT JOIN jobmill_job AS needed ON needed.id = edge.needs
             LEFT JOIN jobmill_flow AS flow ON flow.id = edge.needs
             WHERE edge.follower = ?1 AND (edge.verdict IS NOT NULL) = ?2 LIMIT ?3",
        )?;
        let mut rows = statement.query((follower, has_ended, TOLD_MAX))?;
        while let Some(row) = rows.next()? {
            let (needs, condition): (i64, Condition) = (row.get(0)?, row.get(1)?);
            let verdict: Option<i64> = row.get(2)?;
            let state: Option<State> = row.get::<_, Option<State>>(3)?.or(row.get(4)?);
            let is_job = row.get::<_, Option<i64>>(5)?.is_none();
            let (id, name) = (is_job.then(|| JobId::from_raw(needs)), row.get(6)?);
            match verdict {
                None => {
                    let Some(state) = state else { continue };
                    reasons.push(Reason::WaitsFor { id, name, status: state.status() });
                }
                Some(verdict) if !condition.is_met(verdict == State::Completed as i64) => {
                    let ended =
                        usize::try_from(verdict).ok().and_then(|at| State::ALL.get(at)).map(|state| state.status());
                    reasons.push(Reason::NotMet { id, name, status: ended });
                }
                Some(_) => {}
            }
        }
    }
    Ok(reasons)
}
