//! How those who speak like OpenAI differ from it.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::provider::Limits;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";

/// How a creation that is repeated is known to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Idempotency {
    /// It is not.
    None,
    /// By a header of this name.
    Header(String),
    /// By a field of this name in the request.
    Field(String),
}

/// How a provider differs from OpenAI. Each has a preset; the fields may be changed from there.
///
/// Numbers of the limits are those that the providers documented in 2026; [`OpenAiBuilder::limits`] changes them too.
///
/// [`OpenAiBuilder::limits`]: crate::provider::OpenAiBuilder::limits
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quirks {
    /// The name of the provider unless another is set.
    pub name: String,
    /// The header that holds the key, if it is not `authorization: Bearer`.
    pub key_header: Option<String>,
    /// The endpoints that a batch may be for. The first is the default; if there are none, any is taken.
    pub endpoints: Vec<String>,
    /// The most items of a batch.
    pub items: usize,
    /// The most bytes of a file.
    pub bytes: u64,
    /// What a file of requests is for, in the provider's word.
    pub purpose: String,
    /// How long a batch may run, in the provider's word.
    pub completion_window: String,
    /// A batch keeps texts that go with it.
    pub metadata: bool,
    /// Lists come in pages, and say where the next begins.
    pub paging: bool,
    /// How a creation that is repeated is known to be one.
    pub idempotency: Idempotency,
    /// After how long files are deleted, if not when the provider likes: from an hour to 30 days.
    pub expires_after: Option<Duration>,
    /// The same may be asked for files of results.
    pub output_expires: bool,
    /// Understands `expect: 100-continue`, so that a long body may be refused before it is sent.
    pub announce: bool,
    /// The least time between two polls of one batch.
    pub poll_min: Duration,
}

impl Quirks {
    /// OpenAI itself.
    pub fn openai() -> Self {
        Self {
            name: "openai".to_owned(),
            key_header: None,
            endpoints: [CHAT, RESPONSES, EMBEDDINGS].map(str::to_owned).to_vec(),
            items: 50_000,
            bytes: 200_000_000,
            purpose: "batch".to_owned(),
            completion_window: "24h".to_owned(),
            metadata: true,
            paging: true,
            idempotency: Idempotency::None,
            expires_after: None,
            output_expires: true,
            announce: true,
            poll_min: Duration::from_secs(10),
        }
    }

    /// Groq.
    pub fn groq() -> Self {
        Self {
            name: "groq".to_owned(),
            endpoints: vec![CHAT.to_owned()],
            bytes: 100_000_000,
            paging: false,
            output_expires: false,
            ..Self::openai()
        }
    }

    /// Azure OpenAI. The model of an item is the name of a deployment.
    pub fn azure() -> Self {
        Self {
            name: "azure".to_owned(),
            key_header: Some("api-key".to_owned()),
            endpoints: [CHAT, "/chat/completions", RESPONSES, "/responses", EMBEDDINGS, "/embeddings"]
                .map(str::to_owned)
                .to_vec(),
            items: 100_000,
            poll_min: Duration::from_secs(60),
            ..Self::openai()
        }
    }

    /// Perplexity.
    pub fn perplexity() -> Self {
        Self {
            name: "perplexity".to_owned(),
            endpoints: [CHAT, RESPONSES].map(str::to_owned).to_vec(),
            idempotency: Idempotency::Header("Idempotency-Key".to_owned()),
            output_expires: false,
            ..Self::openai()
        }
    }

    /// Llama Stack.
    pub fn llama_stack() -> Self {
        Self {
            name: "llama-stack".to_owned(),
            idempotency: Idempotency::Field("idempotency_key".to_owned()),
            ..Self::gateway()
        }
    }

    /// Anybody else: little is taken for granted.
    pub fn gateway() -> Self {
        Self { endpoints: Vec::new(), output_expires: false, announce: false, ..Self::openai() }
    }

    /// What is known of a host.
    pub(super) fn of_host(authority: &str) -> Self {
        let host = authority.split(':').next().unwrap_or(authority);
        let is_below = |domain: &str| host.strip_suffix(domain).is_some_and(|front| front.ends_with('.'));
        match host {
            "api.openai.com" | "eu.api.openai.com" | "us.api.openai.com" => Self::openai(),
            "api.groq.com" => Self::groq(),
            "api.perplexity.ai" => Self::perplexity(),
            _ if is_below("openai.azure.com") || is_below("cognitiveservices.azure.com") => Self::azure(),
            _ => Self::gateway(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let hour = Duration::from_secs(3600);
        if self.expires_after.is_some_and(|time| !(hour..=720 * hour).contains(&time)) {
            return Err(Error::invalid("quirks.expires_after", "must be from an hour to 30 days"));
        }
        if let Idempotency::Header(name) = &self.idempotency
            && name.parse::<::http::HeaderName>().is_err()
        {
            return Err(Error::invalid("quirks.idempotency", "must be a header's name"));
        }
        let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if self.purpose.is_empty() || !is_word(&self.purpose) {
            return Err(Error::invalid("quirks.purpose", "must be a word"));
        }
        Ok(())
    }

    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::new(self.items, self.bytes);
        limits.one_model = true;
        limits.endpoints = self.endpoints.clone();
        limits.uploads = true;
        limits.idempotent = self.idempotency != Idempotency::None;
        limits.list_page = 100;
        let hours = self.completion_window.strip_suffix('h').and_then(|hours| hours.parse::<u64>().ok());
        let days = self.completion_window.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
        let hours = hours.or_else(|| days?.checked_mul(24)).filter(|hours| (1..=24 * 365).contains(hours));
        limits.window = Duration::from_secs(hours.unwrap_or(24) * 3600);
        limits.retention = Some(self.expires_after.unwrap_or(Duration::from_secs(30 * 86_400)));
        limits.poll_min = self.poll_min;
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_by_their_names() {
        let table = [
            ("api.openai.com", "openai", true),
            ("api.groq.com", "groq", true),
            ("res.openai.azure.com", "azure", true),
            ("openai.azure.com.evil.example", "openai", false),
            ("evilopenai.azure.com", "openai", false),
            ("api.perplexity.ai", "perplexity", true),
            ("127.0.0.1:8321", "openai", false),
        ];
        for (host, name, is_known) in table {
            let quirks = Quirks::of_host(host);
            assert_eq!((&*quirks.name, quirks != Quirks::gateway()), (name, is_known), "{host}");
        }
    }

    #[test]
    fn the_window_is_read_from_the_providers_word() {
        let window = |word: &str| Quirks { completion_window: word.to_owned(), ..Quirks::openai() }.limits().window;
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(["24h", "7d", "soon", "0h"].map(window), [24, 168, 24, 24].map(hours));
    }

    #[test]
    fn presets_are_good_and_bad_quirks_are_refused() {
        let presets = [
            Quirks::openai(),
            Quirks::groq(),
            Quirks::azure(),
            Quirks::perplexity(),
            Quirks::llama_stack(),
            Quirks::gateway(),
        ];
        for preset in presets {
            assert!(preset.check().is_ok(), "{preset:?}");
        }
        let bad = [
            Quirks { expires_after: Some(Duration::from_secs(3599)), ..Quirks::openai() },
            Quirks { idempotency: Idempotency::Header("a b".to_owned()), ..Quirks::openai() },
            Quirks { purpose: "batch\r\n".to_owned(), ..Quirks::openai() },
        ];
        for quirks in bad {
            assert!(quirks.check().is_err(), "{quirks:?}");
        }
    }
}
