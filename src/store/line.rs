//! Lines: all held jobs that go by the same gates. None of them can go where another cannot, but for what each costs, so a
//! line moves from gate to gate as a whole, by one row for each lane, however many stand in it.

use rusqlite::{Connection, OptionalExtension, params};

use crate::store::gate::Taken;

/// Reads the two lines at a gate whose first jobs come first.
pub(crate) const PLAN_FIRST: &str = "SELECT line, head FROM jobmill_line_lane INDEXED BY jobmill_line_gate
     WHERE gate = ?1 AND lane = ?2 ORDER BY head LIMIT 2";

/// The line at a gate whose turn it is.
pub(crate) struct First {
    pub(crate) line: i64,
    /// The place in the order of its first job as it was last known: one that has gone since may have stood there.
    /// A place is the job's id, or its `run_at` as an id would hold it.
    head: i64,
    /// The same of the line behind it. None: it is the only one.
    next_head: Option<i64>,
}

impl First {
    /// Whether another line has the turn, for the first job of this one has this place by now.
    pub(crate) fn is_overtaken_at(&self, at: i64) -> bool {
        at > self.head && self.next_head.is_some_and(|next| next < at)
    }
}

/// Where a job has come to stand.
pub(crate) struct Joined {
    pub(crate) line: i64,
    pub(crate) gate: i64,
    /// Whether nobody of its line stands before it.
    pub(crate) leads: bool,
}

/// Lets a job stand in the line of its gates: at the gate at which the line stands or, if nobody stands in it, at this one.
/// `place` is the job's place in the order.
pub(crate) fn join(conn: &Connection, uses: &[Taken], lane: i64, gate: i64, place: i64) -> rusqlite::Result<Joined> {
    let line = line_of(conn, uses)?;
    conn.prepare_cached(
        "INSERT INTO jobmill_line_lane (line, lane, gate, held, head) VALUES (?1, ?2, ?3, 1, ?4)
         ON CONFLICT (line, lane) DO UPDATE SET held = held + 1, head = min(head, excluded.head)
         RETURNING gate, head",
    )?
    .query_row(params![line, lane, gate, place], |row| {
        Ok(Joined { line, gate: row.get(0)?, leads: row.get::<_, i64>(1)? == place })
    })
}

/// The line of these gates, in whichever order they are named.
fn line_of(conn: &Connection, uses: &[Taken]) -> rusqlite::Result<i64> {
    let mut gates: Vec<i64> = uses.iter().map(|(gate, _)| *gate).collect();
    gates.sort_unstable();
    let gates = serde_json::to_string(&gates).unwrap_or_default();
    let found = conn
        .prepare_cached("SELECT id FROM jobmill_line WHERE gates = ?1")?
        .query_row([&gates], |row| row.get(0))
        .optional()?;
    match found {
        Some(line) => Ok(line),
        None => conn
            .prepare_cached("INSERT INTO jobmill_line (gates) VALUES (?1) RETURNING id")?
            .query_row([&gates], |row| row.get(0)),
    }
}

/// Takes jobs out of their line, and gives the gate at which they stood.
pub(crate) fn leave(conn: &Connection, line: i64, lane: i64, jobs: i64) -> rusqlite::Result<Option<i64>> {
    let left: Option<(i64, i64)> = conn
        .prepare_cached(
            "UPDATE jobmill_line_lane SET held = held - ?3 WHERE line = ?1 AND lane = ?2 RETURNING gate, held",
        )?
        .query_row([line, lane, jobs], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((_, 0)) = left {
        conn.prepare_cached("DELETE FROM jobmill_line_lane WHERE line = ?1 AND lane = ?2")?.execute([line, lane])?;
        conn.prepare_cached(
            "DELETE FROM jobmill_line WHERE id = ?1
                 AND NOT EXISTS (SELECT 1 FROM jobmill_line_lane WHERE line = ?1)",
        )?
        .execute([line])?;
    }
    Ok(left.map(|(gate, _)| gate))
}

/// The gate at which a line stands in a lane.
pub(crate) fn gate_of(conn: &Connection, line: i64, lane: i64) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT gate FROM jobmill_line_lane WHERE line = ?1 AND lane = ?2")?
        .query_row([line, lane], |row| row.get(0))
        .optional()
}

/// The line at a gate whose first job comes first in a lane.
pub(crate) fn first(conn: &Connection, gate: i64, lane: i64) -> rusqlite::Result<Option<First>> {
    let mut statement = conn.prepare_cached(PLAN_FIRST)?;
    let mut rows = statement.query([gate, lane])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let (line, head) = (row.get(0)?, row.get(1)?);
    let next_head = rows.next()?.map(|row| row.get(1)).transpose()?;
    Ok(Some(First { line, head, next_head }))
}

/// Notes the place of a line's first job.
pub(crate) fn set_head(conn: &Connection, line: i64, lane: i64, head: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE jobmill_line_lane SET head = ?3 WHERE line = ?1 AND lane = ?2")?
        .execute([line, lane, head])
        .map(drop)
}

/// Moves a line to another gate, and tells how many stand in it.
pub(crate) fn move_to(conn: &Connection, line: i64, lane: i64, gate: i64) -> rusqlite::Result<i64> {
    conn.prepare_cached("UPDATE jobmill_line_lane SET gate = ?3 WHERE line = ?1 AND lane = ?2 RETURNING held")?
        .query_row([line, lane, gate], |row| row.get(0))
}
