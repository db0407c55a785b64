//! The job kinds that ship with jobmill, and what they need of the world outside.

pub(crate) mod callback;
