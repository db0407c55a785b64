//! What things are and which rules they obey: no I/O, no clock.

pub(crate) mod attempt;
#[cfg_attr(not(test), expect(dead_code, reason = "jobs have no callbacks yet"))]
pub(crate) mod callback;
pub(crate) mod explain;
pub(crate) mod id;
pub(crate) mod job;
pub(crate) mod new_job;
pub(crate) mod page;
pub(crate) mod retention;
pub(crate) mod retry;
pub(crate) mod stats;
pub(crate) mod time;
pub(crate) mod unique;
pub(crate) mod workers;
