//! Changes to a job's fields from outside, and to the status of one that is tracked.

use rusqlite::{OptionalExtension, named_params};
use serde_json::{Map, Value};

use crate::model::event::Cause;
use crate::model::history::{Action, Caller};
use crate::model::id::JobId;
use crate::model::job::Status;
use crate::model::new_job::source_id;
use crate::model::update::{JobUpdate, Refusal, Set, SetMetadata, StatusChange};
use crate::store::Turn;
use crate::store::detail;
use crate::store::operate::{Refused, Standing};
use crate::store::place::LaneKey;
use crate::store::row::{RunAt, State, json};

/// Why an update was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotUpdated {
    Refused(Refused),
    /// The job cannot come to that status.
    Status(StatusChange),
    /// The metadata would grow too long by what is merged into them.
    MetadataTooLong,
}

/// Sets every field that an update may set, each only if it is to be.
const UPDATE: &str = "UPDATE jobmill_job
     SET stop_reason = CASE WHEN :set_stop_reason THEN :stop_reason ELSE stop_reason END,
         agent_id = CASE WHEN :set_agent THEN :agent ELSE agent_id END,
         callback_url = CASE WHEN :set_callback_url THEN :callback_url ELSE callback_url END,
         metadata = CASE WHEN :set_metadata THEN :metadata ELSE metadata END,
         source_id = CASE WHEN :set_metadata THEN :source_id ELSE source_id END,
         error = CASE WHEN :set_error THEN :error ELSE error END,
         result = CASE WHEN :set_result THEN :result ELSE result END,
         updated_at = :now
     WHERE id = :id";

impl Turn<'_> {
    /// Changes fields of a job, and its status if it is tracked. Nothing is written if any of it is refused.
    pub(crate) fn update(
        &mut self,
        id: JobId,
        update: &JobUpdate,
        caller: &Caller,
    ) -> rusqlite::Result<Result<(), NotUpdated>> {
        let Some(mut standing) = self.standing(id, caller)? else {
            return Ok(Err(NotUpdated::Refused(Refused::NotFound)));
        };
        if !self.is_tracked(standing.place.lane) {
            let running = standing.state == State::Running && update.background.is_some();
            // The end of a delivery would be told too, and so on.
            let tells = self.is_own(standing.place.lane) && !update.callback_url.is_kept();
            let field = update.field_of_the_engine().or(running.then_some("background"));
            if let Some(field) = field.or(tells.then_some("callback_url")) {
                return Ok(Err(NotUpdated::Refused(Refused::FieldOfTheEngine(field))));
            }
        }
        let change = update.status.map(|to| standing.state.status().tracked_change(to));
        if let Some(refused @ StatusChange::Refused { .. }) = change {
            return Ok(Err(NotUpdated::Status(refused)));
        }
        let Some(metadata) = self.new_metadata(id, &update.metadata)? else {
            return Ok(Err(NotUpdated::MetadataTooLong));
        };
        self.set_fields(id, update, metadata, caller)?;
        match &update.progress {
            Set::To(progress) => self.progress(id, progress)?,
            Set::Clear => self.clear_progress(id)?,
            Set::Keep => {}
        }
        let before = standing.place;
        if let Some(background) = update.background {
            self.set_background(&mut standing, background, caller)?;
        }
        let fields = update.names();
        match (update.status, change) {
            (Some(to), Some(StatusChange::Applied)) => self.set_status(&standing, to, fields.as_deref(), caller)?,
            _ if fields.is_some() => {
                self.audit(&standing.line(Action::Updated, caller, standing.state).note(fields.as_deref()))?;
                // A move has been told already.
                if standing.place == before {
                    self.step(standing.step(standing.state, Cause::Operator))?;
                }
            }
            _ => {}
        }
        Ok(Ok(()))
    }

    /// Brings a tracked job to another status, if the rules let it.
    pub(crate) fn update_status(
        &mut self,
        id: JobId,
        to: Status,
        caller: &Caller,
    ) -> rusqlite::Result<Option<StatusChange>> {
        let Some(standing) = self.standing(id, caller)? else {
            return Ok(None);
        };
        let status = standing.state.status();
        if !self.is_tracked(standing.place.lane) {
            return Ok(Some(StatusChange::Refused { status, why: Refusal::RunByEngine }));
        }
        let change = status.tracked_change(to);
        if change == StatusChange::Applied {
            self.set_status(&standing, to, None, caller)?;
        }
        Ok(Some(change))
    }

    /// Takes a tracked job a step further, which the rules allow. `fields` are those that were changed with it.
    fn set_status(
        &mut self,
        standing: &Standing,
        to: Status,
        fields: Option<&str>,
        caller: &Caller,
    ) -> rusqlite::Result<()> {
        let state = match to {
            Status::Created => State::Created,
            Status::Pending if standing.run_at != RunAt::AtOnce => State::Delayed,
            Status::Pending => State::Pending,
            Status::Running => State::Running,
            Status::Completed => State::Completed,
            Status::Failed => State::Failed,
            Status::Cancelled => State::Cancelled,
            Status::Expired => State::Expired,
        };
        let ended = to.is_terminal();
        self.conn
            .prepare_cached(
                "UPDATE jobmill_job
                 SET state = :to, completed_at = CASE WHEN :ended THEN :now END,
                     started_at = CASE WHEN :to = 2 THEN :now ELSE started_at END,
                     updated_at = :now
                 WHERE id = :id AND state = :from",
            )?
            .execute(named_params! {
                ":id": standing.id, ":from": standing.state, ":to": state, ":ended": ended, ":now": self.now,
            })?;
        detail::changed_by(self.conn, standing.id, caller)?;
        self.audit(&standing.line(Action::Updated, caller, state).note(fields))?;
        let step = standing.step(state, if ended { Cause::Ended } else { Cause::Operator });
        if ended {
            return self.last_step(step);
        }
        self.waits(step, standing.run_at.since(self.now).unwrap_or(self.now))
    }

    /// What the metadata come to, as JSON. None if they grow too long.
    fn new_metadata(&self, id: JobId, set: &SetMetadata) -> rusqlite::Result<Option<Set<Map<String, Value>>>> {
        let merged = match set {
            SetMetadata::Keep => return Ok(Some(Set::Keep)),
            SetMetadata::Clear => return Ok(Some(Set::Clear)),
            SetMetadata::Replace(metadata) => return Ok(Some(Set::To(metadata.clone()))),
            SetMetadata::Merge(changes) => {
                let known: Option<Option<Map<String, Value>>> = self
                    .conn
                    .prepare_cached("SELECT metadata FROM jobmill_job WHERE id = :id")?
                    .query_row(named_params! { ":id": id }, |row| json(row, 0))
                    .optional()?;
                let mut merged = known.flatten().unwrap_or_default();
                for (key, value) in changes {
                    match value {
                        Value::Null => drop(merged.remove(key)),
                        value => drop(merged.insert(key.clone(), value.clone())),
                    }
                }
                merged
            }
        };
        let fits = crate::model::new_job::check_metadata(&merged).is_ok();
        Ok(fits.then_some(Set::To(merged)))
    }

    fn set_fields(
        &self,
        id: JobId,
        update: &JobUpdate,
        metadata: Set<Map<String, Value>>,
        caller: &Caller,
    ) -> rusqlite::Result<()> {
        detail::update(self.conn, id, update, caller)?;
        self.conn
            .prepare_cached(UPDATE)?
            .execute(named_params! {
                ":id": id,
                ":now": self.now,
                ":set_stop_reason": !update.stop_reason.is_kept(),
                ":stop_reason": update.stop_reason.value().map(|reason| reason.as_str()),
                ":set_agent": !update.agent_id.is_kept(),
                ":agent": update.agent_id.value(),
                ":set_callback_url": !update.callback_url.is_kept(),
                ":callback_url": update.callback_url.value(),
                ":set_metadata": !metadata.is_kept(),
                ":metadata": metadata.value().map(|metadata| serde_json::to_string(metadata).unwrap_or_default()),
                ":source_id": metadata.value().and_then(source_id),
                ":set_error": !update.error.is_kept(),
                ":error": update.error.value(),
                ":set_result": !update.result.is_kept(),
                ":result": update.result.value(),
            })
            .map(drop)
    }

    fn set_background(&mut self, standing: &mut Standing, background: bool, caller: &Caller) -> rusqlite::Result<()> {
        let Some(lane) = self.book.lanes.get(standing.place.lane).cloned() else {
            return Ok(());
        };
        if lane.background != background {
            standing.place = self.change_lane(standing, LaneKey { background, ..lane.key() }, caller)?;
        }
        Ok(())
    }
}
