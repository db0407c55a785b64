//! To come.
use crate::report::Report;
pub fn page(_: &mut Report) {}
