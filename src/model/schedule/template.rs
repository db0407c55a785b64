//! The job of a schedule: the rules for it, and how it is stored.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::model::job::Priority;
use crate::model::job_type::JobType;
use crate::model::limit::LimitUse;
use crate::model::new_job::{NewJob, When};
use crate::model::retry::Backoff;
use crate::model::schedule::timetable::micros;

/// Checks the rules for a schedule's job.
pub(crate) fn check(job: &NewJob) -> Result<()> {
    job.check().map_err(|error| Error::new(error.kind(), format!("job.{error}")))?;
    if job.kind.is_none() {
        return Err(Error::invalid("job.kind", "must be set, for nobody would run a tracked job"));
    }
    if job.unique.is_some() {
        return Err(Error::invalid("job.unique", "must not be set, for each tick has a key of its own"));
    }
    if !job.needs.is_empty() || job.from_previous {
        return Err(Error::invalid("job.after", "must not be set: a tick waits for no other job"));
    }
    if matches!(job.run_at, When::At(_)) {
        return Err(Error::invalid("job.run_at", "must not be set: the schedule says when, and a delay may follow"));
    }
    if matches!(job.expires_at, Some(When::At(_))) {
        return Err(Error::invalid("job.expires_at", "must be a time from the tick on (expires_in)"));
    }
    Ok(())
}

/// A job as it is stored with its schedule. What is as by default is left out.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    kind: Cow<'a, str>,
    payload: Box<RawValue>,
    queue: Cow<'a, str>,
    priority: String,
    job_type: String,
    background: bool,
    max_attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff: Option<Backoff>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    limits: Vec<LimitUse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<u32>,
}

/// A job, which has been checked, as JSON text.
pub(crate) fn store(job: &NewJob) -> Result<String> {
    // Each field is named, so that one which is added to jobs is not forgotten here.
    let NewJob {
        kind,
        payload,
        job_type,
        background,
        status: _,
        stop_reason: _,
        queue,
        priority,
        run_at,
        expires_at,
        max_attempts,
        backoff,
        timeout,
        user_id,
        organization_id,
        agent_id,
        tags,
        metadata,
        request_config,
        callback_url,
        created_by: _,
        unique: _,
        limits,
        weight,
        cost,
        needs: _,
        from_previous: _,
        flow: _,
    } = job;
    let after = |when: &When| match when {
        When::After(time) => Some(micros(*time)),
        When::Now | When::At(_) => None,
    };
    let unreadable = |error: String| Error::invalid("job.payload", format_args!("does not serialize: {error}"));
    let payload = payload.as_deref().map_err(|error| unreadable(error.clone()))?;
    let payload = serde_json::from_slice(payload).map_err(|error| unreadable(error.to_string()))?;
    let stored = Stored {
        kind: kind.as_deref().unwrap_or_default().into(),
        payload,
        queue: queue.as_ref().into(),
        priority: priority.to_string(),
        job_type: job_type.to_string(),
        background: *background,
        max_attempts: *max_attempts,
        delay_us: after(run_at),
        expires_in_us: expires_at.as_ref().and_then(after),
        backoff: *backoff,
        timeout_us: timeout.map(micros),
        user: user_id.clone(),
        organization: organization_id.clone(),
        agent: agent_id.clone(),
        tags: tags.clone(),
        metadata: metadata.as_ref().and_then(|metadata| metadata.as_ref().ok().cloned()),
        request_config: request_config.as_ref().and_then(|config| config.as_ref().ok().cloned()),
        callback_url: callback_url.clone(),
        limits: limits.clone(),
        weight: (*weight != 1).then_some(*weight),
        cost: (*cost != 1).then_some(*cost),
    };
    serde_json::to_string(&stored).map_err(|error| unreadable(error.to_string()))
}

/// The job of a stored text.
pub(crate) fn read(text: &str) -> Result<NewJob> {
    let unreadable =
        |error| Error::with_source(ErrorKind::Storage, "the job of a schedule cannot be read from the file", error);
    let stored: Stored<'_> = serde_json::from_str(text).map_err(unreadable)?;
    let duration = |us: i64| Duration::from_micros(us.unsigned_abs());
    let mut job = NewJob::tracked();
    job.kind = Some(stored.kind.into_owned().into());
    job.payload = Ok(stored.payload.get().as_bytes().to_vec());
    job.queue = stored.queue.into_owned().into();
    job.priority = stored.priority.parse::<Priority>()?;
    job.job_type = stored.job_type.parse::<JobType>()?;
    job.background = stored.background;
    job.max_attempts = stored.max_attempts;
    job.run_at = stored.delay_us.map_or(When::Now, |us| When::After(duration(us)));
    job.expires_at = stored.expires_in_us.map(|us| When::After(duration(us)));
    job.backoff = stored.backoff;
    job.timeout = stored.timeout_us.map(duration);
    job.user_id = stored.user;
    job.organization_id = stored.organization;
    job.agent_id = stored.agent;
    job.tags = stored.tags;
    job.metadata = stored.metadata.map(Ok);
    job.request_config = stored.request_config.map(Ok);
    job.callback_url = stored.callback_url;
    job.limits = stored.limits;
    job.weight = stored.weight.unwrap_or(1);
    job.cost = stored.cost.unwrap_or(1);
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stop_reason::StopReason;
    use crate::model::time::Timestamp;
    use crate::model::unique::Unique;

    #[test]
    fn a_job_reads_back_with_all_that_it_says() -> Result<()> {
        let full = NewJob::json("report", &serde_json::json!({"of": ["sales", 1.5, null]}))
            .queue("mail")
            .priority(Priority::High)
            .job_type(JobType::Run)
            .background(true)
            .delay(Duration::from_secs(3))
            .expires_in(Duration::from_secs(60))
            .max_attempts(4)
            .backoff(Backoff::fixed(Duration::from_secs(2)))
            .timeout(Duration::from_secs(9))
            .user("ada")
            .organization("looms")
            .agent("agent-7")
            .tags(["nightly", "sales"])
            .metadata(&serde_json::json!({"source_id": "x", "n": 1}))
            .request_config(&serde_json::json!({"use_assistant_message": true}))
            .callback_url("https://example.com/done")
            .limit(LimitUse::of("requests").key("ada").cost(3))
            .weight(5)
            .cost(0);
        check(&full)?;
        for job in [full, NewJob::json("plain", &())] {
            assert_eq!(read(&store(&job)?)?, job);
        }
        assert!(read("{}").is_err());
        Ok(())
    }

    #[test]
    fn what_a_schedule_says_itself_is_refused_in_its_job() {
        let job = || NewJob::json("report", &());
        for (job, begins) in [
            (NewJob::tracked(), "job.kind: "),
            (job().unique(Unique::key("one")), "job.unique: "),
            (job().after(crate::model::id::JobId::from_raw(7)), "job.after: "),
            (job().run_at(Timestamp::MAX), "job.run_at: "),
            (job().expires_at(Timestamp::MAX), "job.expires_at: "),
            (job().max_attempts(0), "job.max_attempts: "),
            (job().status(crate::model::job::Status::Created), "job.status: "),
            (job().stop_reason(StopReason::from("")), "job.stop_reason: "),
        ] {
            let error = check(&job).expect_err(begins);
            assert!(error.to_string().starts_with(begins), "{error}");
        }
    }
}
