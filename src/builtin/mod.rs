//! The job kinds that ship with jobmill, and what they need of the world outside.

pub(crate) mod batch;
pub(crate) mod callback;
