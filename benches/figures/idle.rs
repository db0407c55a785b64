//! To come.
use crate::report::Report;
pub fn latency(_: &mut Report) {}
pub fn memory(_: &mut Report) {}
pub fn idle(_: &mut Report) {}
pub fn child(_: &str) {}
