//! What sort of thing a job is.

use serde::{Deserialize, Serialize};

use crate::model::words::words;

/// What sort of thing a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum JobType {
    /// A job like any other.
    #[default]
    Job,
    /// The run of an agent or of a group of them. Its id begins with `run-`.
    Run,
    /// An LLM batch.
    Batch,
}

impl JobType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::Job, Self::Run, Self::Batch];

    /// The type as a word, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Run => "run",
            Self::Batch => "batch",
        }
    }
}

words!(JobType, "job_type");
