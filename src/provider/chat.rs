//! Runs the requests of a batch one by one at a chat endpoint.

use std::fmt;
use std::time::Duration;

use ::http::HeaderName;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::Result;
use crate::provider::http::{Auth, Http, Key, Settings, check_timeout};
use crate::provider::local::{Failed, Local, LocalError, LocalReply, Reply, Run};
use crate::provider::{Account, CallClass, CallError, Fate, ItemError, ItemOutcome, Outgoing, anthropic, openai, wire};

/// How many requests an endpoint gets at a time: as many as servers on a desk are wont to take.
const CONCURRENCY: usize = 4;
/// Models on a desk take their time.
const TIMEOUT: Duration = Duration::from_secs(600);
/// The version of Anthropic's interface that is asked for.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// A chat endpoint that is to become a provider of batches. See [`Local::chat_openai`] and [`Local::chat_anthropic`].
#[derive(Clone)]
#[must_use = "`build` makes the provider"]
pub struct LocalChat {
    name: String,
    speaks: Speaks,
    settings: Settings,
    timeout: Duration,
    concurrency: usize,
}

impl fmt::Debug for LocalChat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, speaks, settings, timeout, concurrency } = self;
        // Headers, and an address that has not been checked, may hold a secret.
        let headers: Vec<&str> = settings.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("LocalChat")
            .field("name", name)
            .field("speaks", speaks)
            .field("key", &settings.key)
            .field("headers", &headers)
            .field("timeout", timeout)
            .field("concurrency", concurrency)
            .finish_non_exhaustive()
    }
}

/// Whose shape an endpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    OpenAi,
    Anthropic,
}

/// What can be asked.
struct Endpoint {
    path: &'static str,
    /// The list by which its replies are known.
    field: &'static str,
}

impl Speaks {
    /// The endpoints that it has, the default first.
    fn endpoints(self) -> &'static [Endpoint] {
        match self {
            Self::OpenAi => &[
                Endpoint { path: "/v1/chat/completions", field: "choices" },
                Endpoint { path: "/v1/responses", field: "output" },
                Endpoint { path: "/v1/embeddings", field: "data" },
            ],
            Self::Anthropic => &[Endpoint { path: "/v1/messages", field: "content" }],
        }
    }
}

impl Local {
    /// Runs each request at an endpoint of OpenAI's shape: chat completions, responses or embeddings, as the request says.
    ///
    /// The address is what such endpoints tell their clients, mostly with `/v1` at its end; where it has no path, `/v1` is
    /// meant. While nobody answers there, requests wait, and spend none of their attempts.
    ///
    /// ```
    /// use jobmill::provider::Local;
    ///
    /// # fn main() -> jobmill::Result<()> {
    /// let ollama = Local::chat_openai("http://127.0.0.1:11434/v1").build()?;
    /// let llama_cpp = Local::chat_openai("http://127.0.0.1:8080").name("llama").concurrency(1).build()?;
    /// # let _ = (ollama, llama_cpp);
    /// # Ok(())
    /// # }
    /// ```
    pub fn chat_openai(base_url: impl Into<String>) -> LocalChat {
        LocalChat::new(Speaks::OpenAi, base_url.into(), Auth::Bearer)
    }

    /// Runs each request at an endpoint of Anthropic's shape: messages. The address may end with `/v1` or not.
    ///
    /// ```
    /// use std::time::Duration;
    /// use jobmill::provider::{Key, Local};
    ///
    /// # fn main() -> jobmill::Result<()> {
    /// let provider = Local::chat_anthropic("http://127.0.0.1:8000")
    ///     .key(Key::env("GATEWAY_KEY"))
    ///     .timeout(Duration::from_secs(120))
    ///     .build()?;
    /// # let _ = provider;
    /// # Ok(())
    /// # }
    /// ```
    pub fn chat_anthropic(base_url: impl Into<String>) -> LocalChat {
        LocalChat::new(Speaks::Anthropic, base_url.into(), Auth::Header(HeaderName::from_static("x-api-key")))
    }
}

impl LocalChat {
    fn new(speaks: Speaks, base_url: String, auth: Auth) -> Self {
        let settings = Settings::new(base_url, Key::none(), auth);
        Self { name: "local".to_owned(), speaks, settings, timeout: TIMEOUT, concurrency: CONCURRENCY }
    }

    /// Sets the name by which batches ask for it. Defaults to `local`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the key, which goes where the shape wants it. Defaults to none.
    pub fn key(mut self, key: Key) -> Self {
        self.settings.key = key;
        self
    }

    /// Sends a header with each request. One that is set again replaces the other. Defaults to none but for
    /// `anthropic-version`, which is `2023-06-01` where the shape has it.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.headers.push((name.into(), value.into()));
        self
    }

    /// Sets how long one request may take, from the connection to the answer's end. What takes longer is an error that
    /// may be tried again. Defaults to 10 min.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many requests may run at a time: see [`Local::concurrency`]. Defaults to 4.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests;
        self
    }

    /// Makes the provider. No request is made before a batch runs.
    ///
    /// # Errors
    /// `Invalid` if the address, a header or the timeout breaks its rule.
    pub fn build(self) -> Result<Local> {
        let Self { name, speaks, mut settings, timeout, concurrency } = self;
        check_timeout("timeout", timeout)?;
        if speaks == Speaks::Anthropic
            && !settings.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("anthropic-version"))
        {
            settings.headers.push(("anthropic-version".to_owned(), ANTHROPIC_VERSION.to_owned()));
        }
        // The whole time is the request's own.
        settings.connect_timeout = settings.connect_timeout.min(timeout);
        let http = Http::new(settings)?;
        let url = http.place().as_str();
        let path = url.split('?').next().and_then(|url| url.split_once("://")?.1.split_once('/'));
        let has_version = match speaks {
            Speaks::OpenAi => path.is_some(),
            Speaks::Anthropic => path.is_some_and(|(_, path)| path == "v1" || path.ends_with("/v1")),
        };
        // The key has no part in it: nothing is kept under it elsewhere, and a batch may go on with another.
        let account = Account::new(name, url, "");
        let endpoints = speaks.endpoints().iter().map(|endpoint| endpoint.path.to_owned()).collect();
        let chat = Chat { http, speaks, has_version, timeout };
        Ok(Local::new(account, endpoints, Box::new(chat)).concurrency(concurrency))
    }
}

/// A chat endpoint.
struct Chat {
    http: Http,
    speaks: Speaks,
    /// The base address holds the `/v1` with which endpoints begin.
    has_version: bool,
    timeout: Duration,
}

impl Run for Chat {
    fn run(&self, request: &Outgoing<'_>) -> std::result::Result<Reply, Failed> {
        let endpoint = self.endpoint(request.endpoint)?;
        let body = self.body(request)?;
        let mut reader = &body[..];
        let path = endpoint.path;
        let path = if self.has_version { path.strip_prefix("/v1").unwrap_or(path) } else { path };
        let ask = self.http.post(path).body("application/json", body.len() as u64, &mut reader).within(self.timeout);
        let explain = match self.speaks {
            Speaks::OpenAi => openai::explain,
            Speaks::Anthropic => anthropic::explain,
        };
        let told = ask.send().and_then(|answer| answer.success(explain)?.whole());
        let told = told.map_err(|error| match (error.fate, error.class) {
            // No request is to blame for an endpoint or a key that is not there, and none is lost by it.
            (Fate::NotSent, CallClass::Transport | CallClass::Account) => Failed::Nobody(error),
            _ => Failed::Request(self.failed(error)),
        })?;
        let reply = RawValue::from_string(told.text).map_err(|_| unreadable("the answer is not JSON"))?;
        Ok(self.read(endpoint, reply)?)
    }

    fn check(&self, request: &Outgoing<'_>) -> std::result::Result<(), LocalError> {
        self.endpoint(request.endpoint)?;
        self.body(request).map(|_| ())
    }
}

impl Chat {
    fn endpoint(&self, asked: &str) -> std::result::Result<&'static Endpoint, LocalError> {
        let endpoints = self.speaks.endpoints();
        if asked.is_empty() {
            return Ok(&endpoints[0]);
        }
        let found = endpoints.iter().find(|endpoint| endpoint.path == asked);
        found.ok_or_else(|| LocalError::invalid(format_args!("the endpoint {asked:?} is none of those that are known")))
    }

    /// What is sent: the same as in a batch elsewhere.
    fn body(&self, request: &Outgoing<'_>) -> std::result::Result<Vec<u8>, LocalError> {
        let shape = match self.speaks {
            Speaks::OpenAi => wire::Shape::OpenAi,
            Speaks::Anthropic => wire::Shape::Anthropic,
        };
        let mut body = Vec::new();
        wire::push_body(request, shape, &mut body).map_err(LocalError::invalid)?;
        Ok(body)
    }

    /// Reads an answer that came as a success.
    fn read(&self, endpoint: &Endpoint, reply: Box<RawValue>) -> std::result::Result<Reply, LocalError> {
        let said: Value = serde_json::from_str(reply.get()).map_err(|_| unreadable("the answer is not JSON"))?;
        let (list, error) = (said[endpoint.field].as_array(), &said["error"]);
        let is_none = match list {
            Some(list) => list.is_empty() && endpoint.field == "choices",
            None => error.is_null(),
        };
        if is_none {
            return Err(unreadable("the answer is no reply of the shape that was asked for"));
        }
        match self.speaks {
            Speaks::OpenAi => match openai::line::reply_of(&reply) {
                Ok(ItemOutcome::Succeeded { reply, finish, usage }) => {
                    Ok(LocalReply::of(reply).finish(finish).usage(usage))
                }
                Ok(ItemOutcome::Errored { class, code, message, usage }) => {
                    Err(LocalError::new(class, message).code(code).usage(usage))
                }
                _ => Err(unreadable("the answer is no reply of the shape that was asked for")),
            },
            Speaks::Anthropic if list.is_some() => {
                let finish = anthropic::finish(said["stop_reason"].as_str().unwrap_or_default());
                Ok(LocalReply::of(reply).finish(finish).usage(anthropic::usage(&said["usage"])))
            }
            Speaks::Anthropic => {
                let word = |field: &str| error[field].as_str().unwrap_or_default();
                let class = anthropic::class(word("type"), "", word("message"));
                Err(LocalError::new(class, word("message")).code(word("type")))
            }
        }
    }

    /// What a call that failed means for the request.
    fn failed(&self, error: CallError) -> LocalError {
        let by_call = match error.class {
            CallClass::Invalid | CallClass::NotFound | CallClass::TooLarge | CallClass::Unsupported => {
                ItemError::Invalid
            }
            CallClass::Account => ItemError::Account,
            CallClass::RateLimited => ItemError::RateLimited,
            CallClass::Server | CallClass::Transport => ItemError::Server,
        };
        let word = error.code.as_deref().unwrap_or_default();
        let by_word = match self.speaks {
            Speaks::OpenAi => openai::line::class([word, ""], None),
            Speaks::Anthropic => anthropic::class(word, word, &error.message),
        };
        // A filter's refusal and a spent quota come under the statuses of other failures.
        let class = if matches!(by_word, ItemError::Content | ItemError::Account) { by_word } else { by_call };
        let code = match (error.code, error.status) {
            (Some(code), _) => code,
            (None, Some(status)) => status.to_string(),
            (None, None) if error.class == CallClass::Transport => "transport".to_owned(),
            (None, None) => "not_sent".to_owned(),
        };
        LocalError::new(class, error.message).code(code)
    }
}

fn unreadable(problem: &str) -> LocalError {
    LocalError::new(ItemError::Server, problem).code("unreadable")
}
