//! LLM batches that are about to be submitted: their items, their options, and what they may cost.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::model::contents::debug_with_sizes;
use crate::model::job::Priority;
use crate::model::job_type::JobType;
use crate::model::new_job::NewJob;
use crate::model::rules::check_name;
use crate::model::unique::Unique;
use crate::model::usage::{PriceTable, Usage};

/// The kind of the jobs that are LLM batches.
pub(crate) const BATCH_KIND: &str = "jobmill.batch";

/// The longest key of an item, in bytes.
const MAX_KEY_BYTES: usize = 512;
/// The longest request, in bytes of JSON.
const MAX_REQUEST_BYTES: usize = 64 << 20;
/// The longest state that goes with an item, in bytes of JSON.
const MAX_STATE_BYTES: usize = 16 << 20;

/// One request to a model, as a part of a batch.
///
/// ```
/// use jobmill::BatchItem;
///
/// let item = BatchItem::new(&serde_json::json!({
///     "model": "some-model", "max_tokens": 100,
///     "messages": [{ "role": "user", "content": "What is a mill?" }],
/// })).key("question-1");
/// # let _ = item;
/// ```
#[derive(Clone)]
#[must_use = "an item does nothing until its batch is submitted"]
pub struct BatchItem {
    pub(crate) key: Option<String>,
    pub(crate) provider: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) agent_id: Option<String>,
    pub(crate) body: Result<Box<RawValue>, String>,
    pub(crate) state: Option<Result<Box<RawValue>, String>>,
}

debug_with_sizes!(BatchItem { key, provider, endpoint, model, agent_id; body, state });

impl BatchItem {
    /// A request with this body, in the shape of its provider.
    pub fn new(body: &impl Serialize) -> Self {
        Self {
            key: None,
            provider: None,
            endpoint: None,
            model: None,
            agent_id: None,
            body: serde_json::value::to_raw_value(body).map_err(|error| error.to_string()),
            state: None,
        }
    }

    /// Sets the caller's own key, by which the result is known: unique within the batch, 1 to 512 bytes. Defaults to the
    /// item's place in the batch, counted from 0.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets to whom it goes. Defaults to the batch's provider.
    pub fn provider(mut self, name: impl Into<String>) -> Self {
        self.provider = Some(name.into());
        self
    }

    /// Sets the endpoint, where the provider has several. Defaults to the provider's first.
    pub fn endpoint(mut self, path: impl Into<String>) -> Self {
        self.endpoint = Some(path.into());
        self
    }

    /// Sets the model by which the item is reckoned and put together with others. Defaults to the body's `model`.
    pub fn model(mut self, name: impl Into<String>) -> Self {
        self.model = Some(name.into());
        self
    }

    /// Sets the agent whose request it is. Defaults to none.
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.agent_id = Some(id.into());
        self
    }

    /// Sets what the batch's step is given with the reply. Defaults to none.
    pub fn state(mut self, state: &impl Serialize) -> Self {
        self.state = Some(serde_json::value::to_raw_value(state).map_err(|error| error.to_string()));
        self
    }

    /// Checks every rule. The item's place names it in the error.
    pub(crate) fn check(self, place: u64) -> Result<ReadyItem> {
        let field = |name: &str| format!("items[{place}].{name}");
        let key = self.key.unwrap_or_else(|| place.to_string());
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Error::invalid(&field("key"), format_args!("must have 1 to {MAX_KEY_BYTES} bytes")));
        }
        let body = self.body.map_err(|error| Error::invalid(&field("body"), error))?;
        let known = Peek::at(&field("body"), body.get())?;
        let model = self.model.or_else(|| known.model.as_deref().map(str::to_owned)).unwrap_or_default();
        for (name, text) in [
            ("model", Some(&model).filter(|model| !model.is_empty())),
            ("provider", self.provider.as_ref()),
            ("endpoint", self.endpoint.as_ref()),
            ("agent_id", self.agent_id.as_ref()),
        ] {
            if let Some(text) = text {
                check_name(&field(name), text)?;
            }
        }
        let state = self.state.transpose().map_err(|error| Error::invalid(&field("state"), error))?;
        check_state(&field("state"), state.as_ref().map(|state| state.get()))?;
        Ok(ReadyItem {
            key,
            provider: self.provider,
            endpoint: self.endpoint.unwrap_or_default(),
            model,
            agent_id: self.agent_id,
            tokens: estimated_tokens(body.get()),
            max_output: known.max_output(),
            body,
            state,
        })
    }
}

/// What is wanted of a request's body.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow, default)]
    model: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_output_tokens: Option<&'a RawValue>,
    /// How many answers are asked for, in a request with these messages.
    #[serde(borrow, default)]
    n: Option<&'a RawValue>,
    #[serde(default)]
    messages: Option<serde::de::IgnoredAny>,
}

impl<'a> Peek<'a> {
    /// Looks into a body, its rules checked.
    fn at(field: &str, body: &'a str) -> Result<Self> {
        let rule = "must be a JSON object, whose `model` is a string if it has one";
        // A list would be taken for the fields in their order.
        let object = Some(body).filter(|body| body.starts_with('{')).ok_or_else(|| Error::invalid(field, rule))?;
        let known: Self = serde_json::from_str(object).map_err(|error| {
            let is_twice = error.to_string().starts_with("duplicate field");
            Error::invalid(field, if is_twice { "must name each field once" } else { rule })
        })?;
        if body.len() > MAX_REQUEST_BYTES {
            return Err(Error::invalid(field, format_args!("must have at most {MAX_REQUEST_BYTES} bytes")));
        }
        Ok(known)
    }

    /// The longest that all its answers may be together, if it says so. Each shape has a name for it; what is no count is
    /// for whoever runs the request.
    fn max_output(&self) -> Option<u64> {
        let count = |text: &RawValue| -> Option<u64> {
            let number: serde_json::Number = serde_json::from_str(text.get()).ok()?;
            number.as_u64().or_else(|| number.as_f64().filter(|number| *number >= 0.0).map(|number| number as u64))
        };
        let limits = [self.max_tokens, self.max_completion_tokens, self.max_output_tokens];
        let longest = limits.into_iter().flatten().filter_map(count).max();
        let answers = self.messages.and(self.n).and_then(count).unwrap_or(1).max(1);
        if longest.is_none() && answers == 1 {
            return None;
        }
        Some(longest.unwrap_or(OUTPUT_GUESS).saturating_mul(answers))
    }
}

/// How many tokens a text has, if nothing better is known: a quarter of its characters.
fn estimated_tokens(text: &str) -> u64 {
    (text.chars().count() as u64).div_ceil(4)
}

fn check_state(field: &str, state: Option<&str>) -> Result<()> {
    if state.is_some_and(|state| state.len() > MAX_STATE_BYTES) {
        return Err(Error::invalid(field, format_args!("must have at most {MAX_STATE_BYTES} bytes")));
    }
    Ok(())
}

/// The request with which an item goes on, its rules checked.
pub(crate) struct NextRequest {
    pub(crate) body: String,
    pub(crate) state: Option<String>,
    pub(crate) tokens: u64,
    pub(crate) max_output: Option<u64>,
    /// The model that the request before it named, empty if none, and the one that it names itself, if that is another.
    pub(crate) remodel: Option<(String, String)>,
}

impl NextRequest {
    /// The request that follows one whose body is `before`.
    pub(crate) fn after(before: &str, request: &Value, state: Option<&Value>) -> Result<Self> {
        let (body, state) = (request.to_string(), state.map(ToString::to_string));
        let known = Peek::at("request", &body)?;
        check_state("state", state.as_deref())?;
        let old = Peek::at("request", before)?.model.unwrap_or_default();
        let remodel = known.model.as_deref().filter(|new| *new != old);
        let remodel = remodel.map(|new| (old.clone().into_owned(), new.to_owned()));
        if let Some((_, new)) = &remodel {
            check_name("request.model", new)?;
        }
        let (tokens, max_output) = (estimated_tokens(&body), known.max_output());
        Ok(Self { body, state, tokens, max_output, remodel })
    }
}

/// An item whose rules have been checked.
#[derive(Clone)]
pub(crate) struct ReadyItem {
    pub(crate) key: String,
    pub(crate) provider: Option<String>,
    /// Empty: the provider's first.
    pub(crate) endpoint: String,
    /// Empty: unknown.
    pub(crate) model: String,
    pub(crate) agent_id: Option<String>,
    pub(crate) tokens: u64,
    pub(crate) max_output: Option<u64>,
    pub(crate) body: Box<RawValue>,
    pub(crate) state: Option<Box<RawValue>>,
}

debug_with_sizes!(ReadyItem { key, provider, endpoint, model, agent_id, tokens, max_output; body, state });

/// A batch of requests to models that is about to be submitted, with its options.
///
/// Setters never fail; what is wrong is said by the submission, before anything is sent.
#[derive(Clone, Debug)]
#[must_use = "a new batch does nothing until it is submitted"]
pub struct NewBatch {
    pub(crate) job: NewJob,
    pub(crate) provider: String,
    pub(crate) step: Option<String>,
    pub(crate) max_steps: u32,
    pub(crate) max_attempts: u32,
    pub(crate) budget: Option<f64>,
    pub(crate) request_items: Option<u64>,
}

impl NewBatch {
    /// The most steps that an item may be given.
    pub const MAX_STEPS: u32 = 100_000;
    /// The most attempts that a step of an item may be given.
    pub const MAX_ATTEMPTS: u32 = 100;

    /// A batch whose items go to this provider unless they say otherwise.
    pub fn new(provider: impl Into<String>) -> Self {
        let job = NewJob::tracked().job_type(JobType::Batch);

        Self {
            job,
            provider: provider.into(),
            step: None,
            max_steps: 50,
            max_attempts: 3,
            budget: None,
            request_items: None,
        }
    }

    /// Sets the step that is given each reply and decides whether its item goes on, by the name under which an engine
    /// knows it ([`EngineBuilder::batch_step`](crate::EngineBuilder::batch_step)). Defaults to none: an item is done with
    /// its first reply.
    pub fn step(mut self, name: impl Into<String>) -> Self {
        self.step = Some(name.into());
        self
    }

    /// Sets how many requests an item may make one after the other, from 1 to 100 000. One that would go on is completed
    /// with what it has. Defaults to 50.
    pub fn max_steps(mut self, steps: u32) -> Self {
        self.max_steps = steps;
        self
    }

    /// Sets how often each request is sent if it fails, expires or has no result, from 1 to 100. Defaults to 3.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets the most that the batch may cost, in the currency of the engine's prices. What might cost more is not sent:
    /// each request is reckoned with its estimated input and its longest output, one of a model without a price is
    /// refused. Defaults to no bound.
    pub fn budget(mut self, amount: f64) -> Self {
        self.budget = Some(amount);
        self
    }

    /// Sets the most items that go to the provider together, at least one: the fewer, the sooner the first of them come
    /// back, and the less is lost with a request that the provider refuses as a whole. Defaults to as many as the provider
    /// takes.
    pub fn request_items(mut self, items: u64) -> Self {
        self.request_items = Some(items);
        self
    }

    /// Sets the queue that the batch is listed under, and in which its steps run. Defaults to `default`.
    pub fn queue(mut self, queue: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        self.job = self.job.queue(queue);
        self
    }

    /// Sets the priority of the batch and of its steps. Defaults to [`Priority::Default`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.job = self.job.priority(priority);
        self
    }

    /// Sets whose batch it is. Defaults to nobody's, or the client's user.
    pub fn user(mut self, id: impl Into<String>) -> Self {
        self.job = self.job.user(id);
        self
    }

    /// Sets the organization. Defaults to none.
    pub fn organization(mut self, id: impl Into<String>) -> Self {
        self.job = self.job.organization(id);
        self
    }

    /// Sets the agent. Defaults to none.
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.job = self.job.agent(id);
        self
    }

    /// Sets tags. Defaults to none.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.job = self.job.tags(tags);
        self
    }

    /// Sets metadata, a JSON object. Defaults to none.
    pub fn metadata(mut self, metadata: &impl Serialize) -> Self {
        self.job = self.job.metadata(metadata);
        self
    }

    /// Sets where the end of the batch is told. Defaults to nowhere.
    pub fn callback_url(mut self, url: impl Into<String>) -> Self {
        self.job = self.job.callback_url(url);
        self
    }

    /// Sets a key that keeps a batch from being submitted twice. Defaults to none.
    pub fn unique(mut self, unique: Unique) -> Self {
        self.job = self.job.unique(unique);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name("provider", &self.provider)?;
        if let Some(step) = &self.step {
            check_name("step", step)?;
        }
        for (field, value, max) in
            [("max_steps", self.max_steps, Self::MAX_STEPS), ("max_attempts", self.max_attempts, Self::MAX_ATTEMPTS)]
        {
            if value == 0 || value > max {
                return Err(Error::invalid(field, format_args!("must be from 1 to {max}")));
            }
        }
        if self.request_items.is_some_and(|items| items == 0 || items > i64::MAX as u64) {
            return Err(Error::invalid("request_items", "must be at least 1"));
        }
        if self.budget.is_some_and(|budget| !(0.0..=1e9).contains(&budget)) {
            return Err(Error::invalid("budget", "must be from 0 to 1000000000"));
        }
        Ok(())
    }

    /// The budget in billionths of the currency's unit.
    pub(crate) fn budget_nanos(&self) -> Option<i64> {
        self.budget.map(|budget| (budget * 1e9).round() as i64)
    }
}

/// The longest output of a request that does not say how long it may be, in tokens.
pub(crate) const OUTPUT_GUESS: u64 = 4096;

/// What requests will use up and cost at most, reckoned before any is sent: the input by its length, the output by the
/// longest that each allows, or 4096 tokens.
///
/// ```
/// use jobmill::{BatchItem, Estimate, Price, PriceTable};
///
/// # fn main() -> jobmill::Result<()> {
/// let prices = PriceTable::new("2026-11", "USD").model("small", Price::new(1.0, 5.0));
/// let item = BatchItem::new(&serde_json::json!({ "model": "small", "max_tokens": 1000, "prompt": "What is a mill?" }));
/// let estimate = Estimate::of([item], Some(&prices))?;
/// assert_eq!((estimate.items, estimate.output, estimate.unpriced), (1, 1000, 0));
/// assert!(estimate.cost_nanos < 3_000_000);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Estimate {
    /// How many requests.
    pub items: u64,
    /// Estimated tokens of their input.
    pub input: u64,
    /// The most tokens of their output.
    pub output: u64,
    /// What those cost that have a price, in billionths of the currency's unit.
    pub cost_nanos: i64,
    /// Requests of models without a price.
    pub unpriced: u64,
}

impl Estimate {
    /// Reckons requests, by a price table if there is one.
    ///
    /// # Errors
    /// `Invalid` if a request breaks a rule, with its place, the field and the rule.
    pub fn of(items: impl IntoIterator<Item = BatchItem>, prices: Option<&PriceTable>) -> Result<Self> {
        let mut sum = Self::default();
        for item in items {
            let item = item.check(sum.items)?;
            let most = Usage::of(item.tokens, item.max_output.unwrap_or(OUTPUT_GUESS));
            sum.items += 1;
            sum.input = sum.input.saturating_add(most.input.unwrap_or(0));
            sum.output = sum.output.saturating_add(most.output.unwrap_or(0));
            match prices.and_then(|prices| prices.cost_nanos(&item.model, &most)) {
                Some(cost) => sum.cost_nanos = sum.cost_nanos.saturating_add(cost),
                None => sum.unpriced += 1,
            }
        }
        Ok(sum)
    }
}
