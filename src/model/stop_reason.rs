//! Why an agent's run stopped, in the documentation's words or in the application's own.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an agent's run stopped. The words that Letta documents are constants here; others may be used.
///
/// ```
/// use jobmill::{Status, StopReason};
///
/// assert_eq!(StopReason::END_TURN.implied_status(), Some(Status::Completed));
/// assert_eq!(StopReason::from("timeout").implied_status(), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StopReason(Cow<'static, str>);

impl StopReason {
    /// The agent ended its turn.
    pub const END_TURN: Self = Self(Cow::Borrowed("end_turn"));
    /// The run had as many steps as it may have.
    pub const MAX_STEPS: Self = Self(Cow::Borrowed("max_steps"));
    /// A rule for tools ended the run.
    pub const TOOL_RULE: Self = Self(Cow::Borrowed("tool_rule"));
    /// A tool waits for somebody's approval.
    pub const REQUIRES_APPROVAL: Self = Self(Cow::Borrowed("requires_approval"));
    /// Something went wrong.
    pub const ERROR: Self = Self(Cow::Borrowed("error"));
    /// The model's provider answered with an error.
    pub const LLM_API_ERROR: Self = Self(Cow::Borrowed("llm_api_error"));
    /// The model's answer could not be read.
    pub const INVALID_LLM_RESPONSE: Self = Self(Cow::Borrowed("invalid_llm_response"));
    /// The model called a tool wrongly.
    pub const INVALID_TOOL_CALL: Self = Self(Cow::Borrowed("invalid_tool_call"));
    /// The model called no tool.
    pub const NO_TOOL_CALL: Self = Self(Cow::Borrowed("no_tool_call"));
    /// The model used up its tokens.
    pub const MAX_TOKENS_EXCEEDED: Self = Self(Cow::Borrowed("max_tokens_exceeded"));
    /// The account has no credit left.
    pub const INSUFFICIENT_CREDITS: Self = Self(Cow::Borrowed("insufficient_credits"));
    /// The system prompt alone is longer than the context window.
    pub const CONTEXT_WINDOW_OVERFLOW_IN_SYSTEM_PROMPT: Self =
        Self(Cow::Borrowed("context_window_overflow_in_system_prompt"));
    /// Somebody cancelled the run.
    pub const CANCELLED: Self = Self(Cow::Borrowed("cancelled"));

    /// The reason as a word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<S: Into<Cow<'static, str>>> From<S> for StopReason {
    fn from(reason: S) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
