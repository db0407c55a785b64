//! What things are and which rules they obey: no I/O, no clock.

#[cfg_attr(not(test), expect(dead_code, reason = "wired in with the engine's thresholds"))]
pub(crate) mod alert;
pub(crate) mod attempt;
pub(crate) mod event;
pub(crate) mod explain;
pub(crate) mod histogram;
pub(crate) mod id;
pub(crate) mod job;
#[cfg_attr(not(test), expect(dead_code, reason = "wired in with the store's tallies"))]
pub(crate) mod metrics;
pub(crate) mod new_job;
pub(crate) mod page;
#[cfg_attr(not(test), expect(dead_code, reason = "wired in with the client's exposition"))]
pub(crate) mod prometheus;
pub(crate) mod retention;
pub(crate) mod retry;
pub(crate) mod stats;
#[cfg_attr(not(test), expect(dead_code, reason = "wired in with the store's tallies"))]
pub(crate) mod tally;
#[cfg_attr(not(test), expect(dead_code, reason = "wired in with the engine's thresholds"))]
pub(crate) mod threshold;
pub(crate) mod time;
pub(crate) mod unique;
pub(crate) mod workers;
