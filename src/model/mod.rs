//! What things are and which rules they obey: no I/O, no clock.

pub(crate) mod alert;
pub(crate) mod attempt;
pub(crate) mod callback;
pub(crate) mod delivery;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod histogram;
pub(crate) mod history;
pub(crate) mod id;
pub(crate) mod job;
pub(crate) mod job_type;
pub(crate) mod metrics;
pub(crate) mod new_job;
pub(crate) mod page;
pub(crate) mod prometheus;
pub(crate) mod retention;
pub(crate) mod retry;
pub(crate) mod stats;
pub(crate) mod stop_reason;
pub(crate) mod tally;
pub(crate) mod threshold;
pub(crate) mod time;
pub(crate) mod unique;
pub(crate) mod update;
pub(crate) mod words;
pub(crate) mod workers;
