//! What sort of thing a job is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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

impl fmt::Display for JobType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobType {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|job_type| job_type.as_str() == word)
            .ok_or_else(|| Error::invalid("job_type", "must be one of job, run and batch"))
    }
}
