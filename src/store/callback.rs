//! Callbacks: the job that delivers one is written with the end that it tells of.

use rusqlite::{Connection, OptionalExtension, named_params};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::model::delivery::{CallbackDelivery, Delivery};
use crate::model::id::JobId;
use crate::model::job::{Job, Status};
use crate::model::new_job::Payload;
use crate::model::time::Timestamp;
use crate::store::read::{attempts, job};
use crate::store::row::State;

/// What a callback tells.
#[derive(Serialize)]
struct Body<'a> {
    job_id: JobId,
    status: Status,
    completed_at: Option<Timestamp>,
    metadata: Option<&'a RawValue>,
}

/// The delivery that the end of a job calls for, if it does.
pub(crate) fn due(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Delivery>> {
    let ended = conn
        .prepare_cached(
            "SELECT callback_url, state, completed_at, metadata FROM jobmill_job
             WHERE id = :id AND callback_url IS NOT NULL AND state IN (3, 4, 5, 6)",
        )?
        .query_row(named_params! { ":id": id }, |row| {
            let metadata: Option<String> = row.get(3)?;
            Ok((row.get::<_, String>(0)?, row.get::<_, State>(1)?, row.get(2)?, metadata))
        })
        .optional()?;
    let Some((url, state, completed_at, metadata)) = ended else {
        return Ok(None);
    };
    let metadata = metadata.and_then(|metadata| RawValue::from_string(metadata).ok());
    let body = Body { job_id: id, status: state.status(), completed_at, metadata: metadata.as_deref() };
    // It is made of JSON alone.
    let body = serde_json::value::to_raw_value(&body).ok();
    Ok(body.map(|body| Delivery { job_id: id, message_id: None, url, body }))
}

/// The jobs that deliver a job's callback, the oldest first, and what each of them carries.
fn delivering(conn: &Connection, id: JobId) -> rusqlite::Result<Vec<(Job, Delivery)>> {
    let tagged: Vec<JobId> = conn
        .prepare_cached("SELECT job FROM jobmill_tag WHERE tag = :tag ORDER BY job")?
        .query_map(named_params! { ":tag": Delivery::tag(id) }, |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut delivering = Vec::new();
    for id in tagged {
        // The tag is a word like others, and somebody else may bear it.
        let Some(job) = job(conn, id)?.filter(|job| job.kind.as_deref() == Some(Delivery::KIND)) else { continue };
        let Ok(delivery) = job.payload() else { continue };
        delivering.push((job, delivery));
    }
    Ok(delivering)
}

/// Every delivery of a job's callback, the oldest first.
pub(crate) fn deliveries(conn: &Connection, id: JobId) -> rusqlite::Result<Vec<CallbackDelivery>> {
    let mut deliveries = Vec::new();
    for (job, delivery) in delivering(conn, id)? {
        deliveries.push(CallbackDelivery {
            id: job.id,
            status: job.status,
            message_id: delivery.message_id(job.id),
            url: delivery.url,
            status_code: job.result().ok(),
            attempts: attempts(conn, job.id)?.unwrap_or_default(),
        });
    }
    Ok(deliveries)
}

/// The delivery that tells the end of a job once more. The receiver sees what it was sent the last time, under the same
/// id, as long as a delivery of that end is kept: a job that was retried has had other ends before.
pub(crate) fn repeat(conn: &Connection, id: JobId) -> rusqlite::Result<Option<Delivery>> {
    let Some(due) = due(conn, id)? else {
        return Ok(None);
    };
    let told = delivering(conn, id)?.into_iter().rev().find(|(_, told)| told.end() == due.end());
    Ok(Some(match told {
        Some((job, told)) => Delivery { message_id: Some(told.message_id(job.id)), body: told.body, ..due },
        None => due,
    }))
}
