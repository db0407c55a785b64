//! To come.
use crate::report::Report;
pub fn claim(_: &mut Report) {}
pub fn history(_: &mut Report) {}
