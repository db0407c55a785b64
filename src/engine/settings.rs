//! Settings that programs may take from their environment: each by one variable, read by one function.

use std::time::Duration;

use crate::builtin::batch::WhenUnknown;
use crate::builtin::callback::Callbacks;
use crate::engine::builder::EngineBuilder;
use crate::error::{Error, Result};
use crate::model::job::Priority;
use crate::model::limit::Limit;
use crate::model::new_job::NewJob;
use crate::model::preference::Preference;
use crate::model::rules::MAX_DURATION;
use crate::model::workers::Workers;
use crate::store::connect::Durability;

/// What the names of all variables begin with.
const PREFIX: &str = "JOBMILL_";
const DAY_S: f64 = 86_400.0;
const LONGEST_S: f64 = MAX_DURATION.as_secs() as f64;

/// A setting that the environment may set.
///
/// ```
/// for setting in jobmill::Setting::ALL {
///     println!("{:<60} {} ({}; {})", setting.variable, setting.about, setting.default, setting.bounds());
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Setting {
    /// The name of its variable.
    pub variable: &'static str,
    /// What it sets.
    pub about: &'static str,
    /// What holds if nothing is set, as a value that the variable could have. Empty: what another setting, the machine or
    /// the provider says.
    pub default: &'static str,
    form: Form,
    set: fn(&mut EngineBuilder, Value),
}

/// What a value may be.
#[derive(Clone, Copy, Debug)]
enum Form {
    Flag,
    Whole {
        unit: &'static str,
        min: u64,
        max: u64,
    },
    /// A whole number, or `none`.
    WholeOrNone {
        unit: &'static str,
        min: u64,
        max: u64,
    },
    /// Seconds, with a fraction if need be.
    Seconds {
        min: f64,
        max: f64,
    },
    /// Seconds, or `none`.
    SecondsOrNone {
        min: f64,
        max: f64,
    },
    Part,
    Word(&'static [&'static str]),
    Secret,
}

/// A value that has its form.
#[derive(Clone, Debug)]
enum Value {
    Flag(bool),
    Whole(u64),
    Time(Duration),
    Part(f64),
    Word(String),
    None,
}

impl Value {
    fn flag(&self) -> bool {
        matches!(self, Self::Flag(true))
    }

    fn whole(&self) -> u64 {
        if let Self::Whole(value) = self { *value } else { 0 }
    }

    fn small(&self) -> u32 {
        u32::try_from(self.whole()).unwrap_or(u32::MAX)
    }

    fn size(&self) -> usize {
        usize::try_from(self.whole()).unwrap_or(usize::MAX)
    }

    fn time(&self) -> Duration {
        self.time_or_none().unwrap_or_default()
    }

    fn time_or_none(&self) -> Option<Duration> {
        if let Self::Time(value) = self { Some(*value) } else { None }
    }

    fn part(&self) -> f64 {
        if let Self::Part(value) = self { *value } else { 0.0 }
    }

    fn word(&self) -> &str {
        if let Self::Word(value) = self { value } else { "" }
    }
}

impl Form {
    fn parse(self, text: &str) -> Option<Value> {
        let whole = |min, max| text.parse().ok().filter(|value| (min..=max).contains(value)).map(Value::Whole);
        let time = |min: f64, max: f64| {
            let seconds = text.parse().ok().filter(|value| (min..=max).contains(value))?;
            Duration::try_from_secs_f64(seconds).ok().map(Value::Time)
        };
        match self {
            Self::Flag => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(Value::Flag(true)),
                "false" | "0" | "no" | "off" => Some(Value::Flag(false)),
                _ => None,
            },
            Self::WholeOrNone { .. } | Self::SecondsOrNone { .. } if text == "none" => Some(Value::None),
            Self::Whole { min, max, .. } | Self::WholeOrNone { min, max, .. } => whole(min, max),
            Self::Seconds { min, max } | Self::SecondsOrNone { min, max } => time(min, max),
            Self::Part => text.parse().ok().filter(|value| (0.0..=1.0).contains(value)).map(Value::Part),
            Self::Word(words) => words.contains(&text).then(|| Value::Word(text.to_owned())),
            Self::Secret => (!text.is_empty()).then(|| Value::Word(text.to_owned())),
        }
    }

    fn rule(self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Whole { unit, min, max } => format!("{min} to {max} {unit}"),
            Self::WholeOrNone { unit, min, max } => format!("{min} to {max} {unit}, or none"),
            Self::Seconds { min, max } => format!("{min} to {max} seconds"),
            Self::SecondsOrNone { min, max } => format!("{min} to {max} seconds, or none"),
            Self::Part => "0 to 1".to_owned(),
            Self::Word(words) => words.join(" or "),
            Self::Secret => "some text".to_owned(),
        }
    }
}

impl Setting {
    /// What values it may have, in words, with their unit.
    pub fn bounds(&self) -> String {
        self.form.rule()
    }

    fn apply(&self, builder: &mut EngineBuilder, text: &str) -> Result<()> {
        let Some(value) = self.form.parse(text.trim()) else {
            // What was meant to be a secret is not shown.
            let is = if matches!(self.form, Form::Secret) { String::new() } else { format!(", is {text:?}") };
            return Err(Error::invalid(self.variable, format_args!("must be {}{is}", self.form.rule())));
        };
        (self.set)(builder, value);
        Ok(())
    }
}

impl EngineBuilder {
    /// Takes settings from the environment of the process: from every variable whose name begins with `JOBMILL_`, as
    /// [`Setting::ALL`] lists them. What is set in the program before is changed by them, what is set after it changes them.
    /// Nothing else in this crate reads the environment but what a provider reads its key from.
    ///
    /// ```
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let path = directory.path().join("jobs.db");
    /// use jobmill::Engine;
    ///
    /// // JOBMILL_WORKER_COUNT=8 JOBMILL_SHUTDOWN_TIMEOUT_SECONDS=30 ./program
    /// let engine = Engine::builder(path).settings_from_env()?.start()?;
    /// # drop(engine);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Invalid`, with the variable and the rule, if one is not known or its value breaks a rule.
    pub fn settings_from_env(self) -> Result<Self> {
        let mut ours = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let Some(value) = value.to_str() else {
                return Err(Error::invalid(name, "must be UTF-8"));
            };
            ours.push((name.to_owned(), value.to_owned()));
        }
        self.settings(ours)
    }

    /// Takes settings by the names that they have in the environment, from a file of the application's for example. If
    /// one name comes twice, the last value counts.
    ///
    /// # Errors
    /// `Invalid`, with the name and the rule, if one is not known or its value breaks a rule.
    pub fn settings<N: AsRef<str>, V: AsRef<str>>(
        mut self,
        settings: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self> {
        for (name, value) in settings {
            let name = name.as_ref();
            let Some(setting) = Setting::ALL.iter().find(|setting| setting.variable == name) else {
                return Err(Error::invalid(name, "is no setting: see Setting::ALL for those that there are"));
            };
            setting.apply(&mut self, value.as_ref())?;
        }
        Ok(self)
    }
}

const fn seconds(min: f64) -> Form {
    Form::Seconds { min, max: LONGEST_S }
}

const KEEP: Form = Form::SecondsOrNone { min: 0.0, max: LONGEST_S };

const fn whole(unit: &'static str, min: u64, max: u64) -> Form {
    Form::Whole { unit, min, max }
}

const fn some(unit: &'static str, max: u64) -> Form {
    Form::WholeOrNone { unit, min: 1, max }
}

/// The callbacks' settings. Whoever switches callbacks off needs none.
fn callbacks(builder: &mut EngineBuilder) -> &mut Callbacks {
    builder.callbacks.get_or_insert_with(Callbacks::new)
}

impl Setting {
    /// Every setting that the environment may set.
    pub const ALL: &[Self] = &[
        Self {
            variable: "JOBMILL_WORKER_COUNT",
            about: "How many jobs run at a time.",
            default: "",
            form: whole("workers", 1, Workers::MAX as u64),
            set: |builder, value| builder.workers.max = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_MIN",
            about: "How many threads of workers stay without work.",
            default: "0",
            form: whole("workers", 0, Workers::MAX as u64),
            set: |builder, value| builder.workers.min = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_KEEP_ALIVE_SECONDS",
            about: "How long further threads stay without work.",
            default: "10",
            form: seconds(0.0),
            set: |builder, value| builder.workers.keep_alive = value.time(),
        },
        Self {
            variable: "JOBMILL_WORKERS_CRITICAL",
            about: "How many workers are kept for critical jobs.",
            default: "0",
            form: whole("workers", 0, Workers::MAX as u64),
            set: |builder, value| builder.workers.reserved[Priority::Critical.rank()] = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_HIGH",
            about: "How many workers are kept for jobs of high priority and better ones.",
            default: "0",
            form: whole("workers", 0, Workers::MAX as u64),
            set: |builder, value| builder.workers.reserved[Priority::High.rank()] = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_DEFAULT",
            about: "How many workers are kept for jobs of the default priority and better ones.",
            default: "0",
            form: whole("workers", 0, Workers::MAX as u64),
            set: |builder, value| builder.workers.reserved[Priority::Default.rank()] = value.size(),
        },
        Self {
            variable: "JOBMILL_CAPACITY",
            about: "What the jobs may weigh all together that run at a time.",
            default: "none",
            form: some("units of weight", NewJob::MAX_WEIGHT as u64),
            set: |builder, value| builder.capacity = matches!(value, Value::Whole(_)).then(|| value.small()),
        },
        Self {
            variable: "JOBMILL_AGEING_SECONDS",
            about: "After which wait a job counts one priority higher.",
            default: "none",
            form: Form::SecondsOrNone { min: 0.001, max: LONGEST_S },
            set: |builder, value| builder.ageing = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_FAIR_BY_USER",
            about: "Whether users take turns.",
            default: "false",
            form: Form::Flag,
            set: |builder, value| builder.fair_by_user = value.flag(),
        },
        Self {
            variable: "JOBMILL_PREFER",
            about: "What goes first among jobs of one priority; short ones with a weight of 10, deadlines with a patience of \
                    an hour.",
            default: "arrival",
            form: Form::Word(&["arrival", "shortest_first", "earliest_deadline"]),
            set: |builder, value| {
                builder.preference = match value.word() {
                    "shortest_first" => Preference::ShortestFirst { weight: 10 },
                    "earliest_deadline" => Preference::EarliestDeadline { patience: Duration::from_secs(3600) },
                    _ => Preference::Arrival,
                }
            },
        },
        Self {
            variable: "JOBMILL_DURABILITY",
            about: "Whether what was committed survives a power cut, or a kill alone.",
            default: "full",
            form: Form::Word(&["full", "normal"]),
            set: |builder, value| {
                builder.durability = if value.word() == "full" { Durability::Full } else { Durability::Normal }
            },
        },
        Self {
            variable: "JOBMILL_BUSY_TIMEOUT_SECONDS",
            about: "How long a write waits for another process's write.",
            default: "10",
            form: seconds(0.0),
            set: |builder, value| builder.busy_timeout = value.time(),
        },
        Self {
            variable: "JOBMILL_TIMEOUT_GRACE_SECONDS",
            about: "How long a handler may go on after its timeout.",
            default: "5",
            form: seconds(0.0),
            set: |builder, value| builder.timeout_grace = value.time(),
        },
        Self {
            variable: "JOBMILL_MAX_ABANDONED",
            about: "How many abandoned handlers may be running on.",
            default: "8",
            form: whole("handlers", 0, Workers::MAX as u64),
            set: |builder, value| builder.abandoned_max = value.size(),
        },
        Self {
            variable: "JOBMILL_SHUTDOWN_TIMEOUT_SECONDS",
            about: "How long dropping the engine waits for running jobs.",
            default: "10",
            form: seconds(0.0),
            set: |builder, value| builder.shutdown_timeout = value.time(),
        },
        Self {
            variable: "JOBMILL_HEARTBEATS",
            about: "Whether heartbeats tell that an engine lives, where file systems have no locks.",
            default: "false",
            form: Form::Flag,
            set: |builder, value| builder.heartbeats = value.flag(),
        },
        Self {
            variable: "JOBMILL_RATES",
            about: "Whether rates are counted.",
            default: "true",
            form: Form::Flag,
            set: |builder, value| builder.counts_rates = value.flag(),
        },
        Self {
            variable: "JOBMILL_BACKOFF_BASE_SECONDS",
            about: "The wait after a job's first attempt.",
            default: "2",
            form: seconds(0.0),
            set: |builder, value| builder.backoff.base = value.time(),
        },
        Self {
            variable: "JOBMILL_BACKOFF_MAX_SECONDS",
            about: "The longest wait between attempts.",
            default: "3600",
            form: seconds(0.0),
            set: |builder, value| builder.backoff.max = value.time(),
        },
        Self {
            variable: "JOBMILL_BACKOFF_JITTER",
            about: "The part of a wait by which chance may move it.",
            default: "0.1",
            form: Form::Part,
            set: |builder, value| builder.backoff.jitter = value.part(),
        },
        Self {
            variable: "JOBMILL_KEEP_COMPLETED_SECONDS",
            about: "How long completed jobs are kept.",
            default: "604800",
            form: KEEP,
            set: |builder, value| builder.retention.completed = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_FAILED_SECONDS",
            about: "How long dead letters are kept.",
            default: "2592000",
            form: KEEP,
            set: |builder, value| builder.retention.failed = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_CANCELLED_SECONDS",
            about: "How long cancelled jobs are kept.",
            default: "604800",
            form: KEEP,
            set: |builder, value| builder.retention.cancelled = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_EXPIRED_SECONDS",
            about: "How long expired jobs are kept.",
            default: "604800",
            form: KEEP,
            set: |builder, value| builder.retention.expired = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_AUDIT_SECONDS",
            about: "How long lines of the audit are kept.",
            default: "7776000",
            form: KEEP,
            set: |builder, value| builder.retention.audit = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_IN_FLIGHT",
            about: "How many callbacks are delivered at once.",
            default: "4",
            form: whole("deliveries", 1, Callbacks::MAX_IN_FLIGHT as u64),
            set: |builder, value| callbacks(builder).in_flight = value.size(),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_TIMEOUT_SECONDS",
            about: "How long one delivery may take.",
            default: "5",
            form: Form::Seconds { min: 0.01, max: 600.0 },
            set: |builder, value| callbacks(builder).timeout = value.time(),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_MAX_ATTEMPTS",
            about: "How often a delivery is tried.",
            default: "16",
            form: whole("attempts", 1, 100),
            set: |builder, value| callbacks(builder).max_attempts = value.small(),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_PRIVATE_ADDRESSES",
            about: "Whether callbacks may go to private addresses.",
            default: "false",
            form: Form::Flag,
            set: |builder, value| callbacks(builder).private_addresses = value.flag(),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_SECRET",
            about: "A secret more by which callbacks are signed.",
            default: "",
            form: Form::Secret,
            set: |builder, value| {
                let with_secret = std::mem::take(callbacks(builder)).secret(value.word());
                builder.callbacks = Some(with_secret);
            },
        },
        Self {
            variable: "JOBMILL_ENABLE_BATCH_JOB_POLLING",
            about: "Whether this engine asks providers how their batches do.",
            default: "true",
            form: Form::Flag,
            set: |builder, value| builder.batches.polling = value.flag(),
        },
        Self {
            variable: "JOBMILL_POLL_RUNNING_LLM_BATCHES_INTERVAL_SECONDS",
            about: "The longest time between two polls of one batch.",
            default: "300",
            form: Form::Seconds { min: 1.0, max: DAY_S },
            set: |builder, value| builder.batches.poll_interval = value.time(),
        },
        Self {
            variable: "JOBMILL_BATCH_JOB_POLLING_LOOKBACK_WEEKS",
            about: "After how many weeks a batch is asked about once a day only.",
            default: "2",
            form: whole("weeks", 1, 520),
            set: |builder, value| builder.batches = builder.batches.clone().lookback_weeks(value.small()),
        },
        Self {
            variable: "JOBMILL_BATCH_JOB_POLLING_BATCH_SIZE",
            about: "How many batches one cycle asks about.",
            default: "1000",
            form: whole("batches", 1, 100_000),
            set: |builder, value| builder.batches.poll_batch_size = value.size(),
        },
        Self {
            variable: "JOBMILL_POLLS_IN_FLIGHT",
            about: "How many polls are under way at once.",
            default: "8",
            form: whole("requests", 1, 64),
            set: |builder, value| builder.batches.polls_in_flight = value.size(),
        },
        Self {
            variable: "JOBMILL_BATCHES_IN_FLIGHT",
            about: "How many submissions and harvests of LLM batches run at once.",
            default: "4",
            form: whole("jobs", 1, 64),
            set: |builder, value| builder.batches.in_flight = value.size(),
        },
        Self {
            variable: "JOBMILL_LOCAL_BATCHES_IN_FLIGHT",
            about: "How many batches of local providers run at once.",
            default: "4",
            form: whole("batches", 1, 64),
            set: |builder, value| builder.batches.local_in_flight = value.size(),
        },
        Self {
            variable: "JOBMILL_BATCHES_RESUBMIT_AFTER_SECONDS",
            about: "After which time a batch is sent again of which nobody knows whether its provider has it, which may be \
                    paid twice; none: it waits for proof.",
            default: "none",
            form: Form::SecondsOrNone { min: 1.0, max: LONGEST_S },
            set: |builder, value| {
                builder.batches.when_unknown =
                    value.time_or_none().map_or(WhenUnknown::WaitForProof, WhenUnknown::ResubmitAfter)
            },
        },
        Self {
            variable: "JOBMILL_BATCHES_UNKNOWN_GRACE_SECONDS",
            about: "How long a batch is looked for before its provider is believed not to have it.",
            default: "300",
            form: Form::Seconds { min: 1.0, max: DAY_S },
            set: |builder, value| builder.batches.unknown_grace = value.time(),
        },
        Self {
            variable: "JOBMILL_BATCHES_LOST_AFTER_SECONDS",
            about: "After which time a provider is believed that knows a batch no more.",
            default: "86400",
            form: Form::Seconds { min: 1.0, max: 366.0 * DAY_S },
            set: |builder, value| builder.batches.lost_after = value.time(),
        },
        Self {
            variable: "JOBMILL_BATCHES_ITEMS_IN_FLIGHT",
            about: "How many items may be at one account at a time; none: what the provider says.",
            default: "none",
            form: some("items", Limit::MAX as u64),
            set: |builder, value| {
                builder.batches.items_in_flight = matches!(value, Value::Whole(_)).then(|| value.whole())
            },
        },
        Self {
            variable: "JOBMILL_BATCHES_TOKENS_IN_FLIGHT",
            about: "How many estimated input tokens may be at one account at a time; none: what the provider says.",
            default: "none",
            form: some("tokens", 1_000_000_000_000),
            set: |builder, value| {
                builder.batches.tokens_in_flight = matches!(value, Value::Whole(_)).then(|| value.whole())
            },
        },
        Self {
            variable: "JOBMILL_BATCHES_DELETE_AFTER_HARVEST",
            about: "Whether bodies and results are deleted at the provider once they are in the file.",
            default: "false",
            form: Form::Flag,
            set: |builder, value| builder.batches.delete_after_harvest = value.flag(),
        },
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> EngineBuilder {
        EngineBuilder::new("jobs.db".as_ref())
    }

    /// Everything that settings set, as text.
    fn all_of(builder: &EngineBuilder) -> String {
        let batches = &builder.batches;
        let callbacks = builder.callbacks.as_ref().map(|callbacks| {
            let Callbacks { private_addresses, in_flight, timeout, max_attempts, .. } = callbacks;
            (*private_addresses, *in_flight, *timeout, *max_attempts)
        });
        let first = (&builder.workers, builder.capacity, builder.ageing, builder.fair_by_user, builder.preference);
        let times = (builder.durability, builder.busy_timeout, builder.timeout_grace, builder.shutdown_timeout);
        let rest = (builder.abandoned_max, builder.heartbeats, builder.counts_rates, builder.backoff);
        format!("{first:?} {times:?} {rest:?} {:?} {callbacks:?} {batches:?}", builder.retention)
    }

    #[test]
    fn each_default_is_what_the_builder_has() {
        let untouched = all_of(&builder());
        for setting in Setting::ALL.iter().filter(|setting| !setting.default.is_empty()) {
            let set = builder().settings([(setting.variable, setting.default)]).expect("a value that it may have");
            assert_eq!(all_of(&set), untouched, "{}", setting.variable);
        }
    }

    #[test]
    fn each_setting_sets_something_and_refuses_what_it_cannot_be() {
        let untouched = all_of(&builder());
        for setting in Setting::ALL {
            let other = match setting.form {
                Form::Flag => if setting.default == "true" { "false" } else { "true" }.to_owned(),
                Form::Whole { min, max, .. } | Form::WholeOrNone { min, max, .. } => (min + 977).min(max).to_string(),
                Form::Seconds { min, max } | Form::SecondsOrNone { min, max } => (min + 7.5).min(max).to_string(),
                Form::Part => "0.75".to_owned(),
                Form::Word(words) => words[1].to_owned(),
                Form::Secret => "whsec_c2VjcmV0".to_owned(),
            };
            let set = builder().settings([(setting.variable, &other)]).expect("a value that it may have");
            if !matches!(setting.form, Form::Secret) {
                assert_ne!(all_of(&set), untouched, "{} = {other}", setting.variable);
                let error = builder().settings([(setting.variable, "nonsense")]).err().expect("an error");
                let says = format!("{}: must be {}, is \"nonsense\"", setting.variable, setting.bounds());
                assert_eq!(error.to_string(), says);
            }
            assert!(builder().settings([(setting.variable, "")]).is_err(), "{}", setting.variable);
        }
    }

    #[test]
    fn numbers_beyond_their_bounds_are_refused() {
        for (variable, value) in [
            ("JOBMILL_WORKER_COUNT", "0"),
            ("JOBMILL_WORKER_COUNT", "1025"),
            ("JOBMILL_WORKER_COUNT", "-1"),
            ("JOBMILL_WORKER_COUNT", "18446744073709551616"),
            ("JOBMILL_BUSY_TIMEOUT_SECONDS", "-0.5"),
            ("JOBMILL_BUSY_TIMEOUT_SECONDS", "inf"),
            ("JOBMILL_BUSY_TIMEOUT_SECONDS", "NaN"),
            ("JOBMILL_BUSY_TIMEOUT_SECONDS", "1e30"),
            ("JOBMILL_BACKOFF_JITTER", "1.5"),
        ] {
            assert!(builder().settings([(variable, value)]).is_err(), "{variable} = {value}");
        }
    }

    #[test]
    fn a_name_that_is_no_setting_is_refused_and_a_bad_secret_is_not_shown() {
        let error = builder().settings([("JOBMILL_WORKERS", "8")]).err().expect("an error");
        assert!(error.to_string().starts_with("JOBMILL_WORKERS: is no setting"), "{error}");
        let error = builder().settings([("JOBMILL_CALLBACKS_SECRET", "  ")]).err().expect("an error");
        assert_eq!(error.to_string(), "JOBMILL_CALLBACKS_SECRET: must be some text");
    }

    #[test]
    fn the_last_word_on_a_setting_counts() {
        let set = builder().settings([("JOBMILL_CAPACITY", "7"), ("JOBMILL_CAPACITY", " 9 ")]).expect("a capacity");
        assert_eq!(set.capacity, Some(9));
        assert_eq!(set.capacity(4).capacity, Some(4));
    }
}
