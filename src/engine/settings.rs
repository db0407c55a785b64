//! Settings that programs may take from their environment: each by one variable, read by one function.

use std::collections::HashMap;
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
    /// A secret of callbacks, which is not shown.
    Secret,
}

/// A rule that settings obey together.
struct Together {
    /// The variables that it speaks of, beginning with the one whose value is too much.
    variables: &'static [&'static str],
    /// The rule, in words that may follow the bounds of the first ones.
    rule: &'static str,
    /// How many of the variables the rule is told of with their bounds.
    told_of: usize,
    holds: fn(&EngineBuilder) -> bool,
    /// What those have that a variable has not set.
    is: fn(&EngineBuilder) -> String,
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
            Self::Secret => Callbacks::is_secret(text).then(|| Value::Word(text.to_owned())),
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
            Self::Secret => Callbacks::SECRET_FORM.to_owned(),
        }
    }
}

impl Setting {
    /// What values it may have, in words, with their unit, and what they must be beside other settings.
    pub fn bounds(&self) -> String {
        let mut bounds = self.form.rule();
        for together in TOGETHER.iter().filter(|together| together.tells_of(self)) {
            bounds.push_str(", ");
            bounds.push_str(together.rule);
        }
        bounds
    }

    /// The setting of this name. Case does not count: environments of Windows do not tell it apart.
    fn named(name: &str) -> Result<&'static Self> {
        Self::ALL
            .iter()
            .find(|setting| setting.variable.eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::invalid(name, "is no setting: see Setting::ALL for those that there are"))
    }

    fn parse(&self, text: &str) -> Result<Value> {
        self.form.parse(text.trim()).ok_or_else(|| {
            // What was meant to be a secret is not shown.
            let is = if matches!(self.form, Form::Secret) { String::new() } else { format!(", is {text:?}") };
            Error::invalid(self.variable, format_args!("must be {}{is}", self.bounds()))
        })
    }
}

impl EngineBuilder {
    /// Takes settings from the environment of the process: from every variable whose name begins with `JOBMILL_`, in
    /// whatever case, as [`Setting::ALL`] lists them. What is set in the program before is changed by them, what is set
    /// after it changes them. Nothing else in this crate reads the environment but what a provider reads its key from.
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
    /// `Invalid`, with the variable and the rule, if one is not known or is there twice in different cases, or if its value
    /// breaks a rule, by itself or beside what else is set so far.
    pub fn settings_from_env(self) -> Result<Self> {
        let mut ours: Vec<(String, String)> = Vec::new();
        for (name, value) in std::env::vars_os() {
            // One that is no UTF-8 is no setting either, which it is told.
            let name = name.to_string_lossy();
            if !name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX)) {
                continue;
            }
            let Some(value) = value.to_str() else {
                return Err(Error::invalid(&name, "must be UTF-8"));
            };
            if let Some((twin, _)) =
                ours.iter().find(|(twin, other)| twin.eq_ignore_ascii_case(&name) && other != value)
            {
                // The environment has no order by which one of them would count.
                return Err(Error::invalid(
                    &name,
                    format_args!("must not be set beside {twin}, which is the same setting"),
                ));
            }
            ours.push((name.into_owned(), value.to_owned()));
        }
        self.settings(ours)
    }

    /// Takes settings by the names that they have in the environment, from a file of the application's for example. If
    /// one name comes twice, the last value counts. Case does not count in names.
    ///
    /// # Errors
    /// `Invalid`, with the name and the rule, if one is not known, or if its value breaks a rule, by itself or beside what
    /// else is set so far.
    pub fn settings<N: AsRef<str>, V: AsRef<str>>(
        mut self,
        settings: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self> {
        let mut given: HashMap<&'static str, V> = HashMap::new();
        for (name, value) in settings {
            let setting = Setting::named(name.as_ref())?;
            setting.parse(value.as_ref())?;
            given.insert(setting.variable, value);
        }
        // In the order of the list, for some say what of others counts.
        for setting in Setting::ALL {
            if let Some(value) = given.get(setting.variable) {
                (setting.set)(&mut self, setting.parse(value.as_ref())?);
            }
        }
        TOGETHER.iter().try_for_each(|together| together.check(&self, |variable| given.contains_key(variable)))?;
        Ok(self)
    }
}

impl Together {
    fn tells_of(&self, setting: &Setting) -> bool {
        self.variables[..self.told_of].contains(&setting.variable)
    }

    /// Checks the rule if one of its variables is given. What the program alone has set, the start checks.
    fn check(&self, builder: &EngineBuilder, is_given: impl Fn(&str) -> bool) -> Result<()> {
        let given: Vec<&str> = self.variables.iter().copied().filter(|variable| is_given(variable)).collect();
        if given.is_empty() || (self.holds)(builder) {
            return Ok(());
        }
        let told_of = self.variables[..self.told_of].join(" + ");
        let rule = format!("{told_of} must be {}; they are {}", self.rule, (self.is)(builder));
        Err(Error::invalid(&given.join(", "), rule))
    }
}

/// The rules that the settings of the environment obey together.
const TOGETHER: [Together; 3] = [
    Together {
        variables: &["JOBMILL_WORKERS_MIN", "JOBMILL_WORKER_COUNT"],
        rule: "no more than JOBMILL_WORKER_COUNT",
        told_of: 1,
        holds: |builder| builder.workers.min <= builder.workers.max,
        is: |builder| format!("{} and {}", builder.workers.min, builder.workers.max),
    },
    Together {
        variables: &[
            "JOBMILL_WORKERS_CRITICAL",
            "JOBMILL_WORKERS_HIGH",
            "JOBMILL_WORKERS_DEFAULT",
            "JOBMILL_WORKER_COUNT",
        ],
        rule: "together less than JOBMILL_WORKER_COUNT",
        told_of: 3,
        holds: |builder| builder.workers.leave_one_for_all(),
        is: |builder| {
            let [critical, high, default, _] = builder.workers.reserved;
            format!("{critical} + {high} + {default} and {}", builder.workers.max)
        },
    },
    Together {
        variables: &["JOBMILL_BACKOFF_BASE_SECONDS", "JOBMILL_BACKOFF_MAX_SECONDS"],
        rule: "no more than JOBMILL_BACKOFF_MAX_SECONDS",
        told_of: 1,
        holds: |builder| builder.backoff.base <= builder.backoff.max,
        is: |builder| format!("{:?} and {:?}", builder.backoff.base, builder.backoff.max),
    },
];

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

/// Changes the callbacks' settings. Where callbacks are switched off there is nothing to change.
fn callbacks(builder: &mut EngineBuilder, change: impl FnOnce(Callbacks) -> Callbacks) {
    builder.callbacks = builder.callbacks.take().map(change);
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
            about: "What goes first among jobs of one priority.",
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
            variable: "JOBMILL_PREFER_WEIGHT",
            about: "How many times its run time a job is put back, if JOBMILL_PREFER is shortest_first.",
            default: "10",
            form: whole("times", 1, 1000),
            set: |builder, value| {
                if let Preference::ShortestFirst { weight } = &mut builder.preference {
                    *weight = value.small();
                }
            },
        },
        Self {
            variable: "JOBMILL_PREFER_PATIENCE_SECONDS",
            about: "By when a job without a deadline should be done, if JOBMILL_PREFER is earliest_deadline.",
            default: "3600",
            form: seconds(0.0),
            set: |builder, value| {
                if let Preference::EarliestDeadline { patience } = &mut builder.preference {
                    *patience = value.time();
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
            variable: "JOBMILL_CALLBACKS",
            about: "Whether this engine delivers callbacks.",
            default: "true",
            form: Form::Flag,
            set: |builder, value| {
                builder.callbacks =
                    if value.flag() { builder.callbacks.take().or_else(|| Some(Callbacks::new())) } else { None }
            },
        },
        Self {
            variable: "JOBMILL_CALLBACKS_IN_FLIGHT",
            about: "How many callbacks are delivered at once.",
            default: "4",
            form: whole("deliveries", 1, Callbacks::MAX_IN_FLIGHT as u64),
            set: |builder, value| callbacks(builder, |callbacks| callbacks.in_flight(value.size())),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_TIMEOUT_SECONDS",
            about: "How long one delivery may take.",
            default: "5",
            form: Form::Seconds { min: 0.01, max: 600.0 },
            set: |builder, value| callbacks(builder, |callbacks| callbacks.timeout(value.time())),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_MAX_ATTEMPTS",
            about: "How often a delivery is tried.",
            default: "16",
            form: whole("attempts", 1, 100),
            set: |builder, value| callbacks(builder, |callbacks| callbacks.max_attempts(value.small())),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_PRIVATE_ADDRESSES",
            about: "Whether callbacks may go to private addresses.",
            default: "false",
            form: Form::Flag,
            set: |builder, value| {
                callbacks(builder, |mut callbacks| {
                    callbacks.private_addresses = value.flag();
                    callbacks
                })
            },
        },
        Self {
            variable: "JOBMILL_CALLBACKS_SECRET",
            about: "A secret more by which callbacks are signed.",
            default: "",
            form: Form::Secret,
            set: |builder, value| callbacks(builder, |callbacks| callbacks.secret(value.word())),
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
    use crate::model::retry::Backoff;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn builder() -> EngineBuilder {
        EngineBuilder::new("jobs.db".as_ref())
    }

    /// Everything that settings set, as text.
    fn all_of(builder: &EngineBuilder) -> String {
        let batches = &builder.batches;
        let callbacks = builder.callbacks.as_ref().map(|callbacks| format!("{callbacks:?}"));
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

    /// What a setting counts beside.
    fn beside(setting: &Setting) -> EngineBuilder {
        let roomy = builder().workers(Workers::new(1024)).backoff(Backoff::default().max(MAX_DURATION));
        match setting.variable {
            "JOBMILL_PREFER_WEIGHT" => roomy.prefer(Preference::ShortestFirst { weight: 1 }),
            "JOBMILL_PREFER_PATIENCE_SECONDS" => {
                roomy.prefer(Preference::EarliestDeadline { patience: Duration::ZERO })
            }
            _ => roomy,
        }
    }

    #[test]
    fn each_setting_sets_something_and_refuses_what_it_cannot_be() {
        for setting in Setting::ALL {
            let untouched = all_of(&beside(setting));
            let other = match setting.form {
                Form::Flag => if setting.default == "true" { "false" } else { "true" }.to_owned(),
                Form::Whole { min, max, .. } | Form::WholeOrNone { min, max, .. } => (min + 977).min(max).to_string(),
                Form::Seconds { min, max } | Form::SecondsOrNone { min, max } => (min + 7.5).min(max).to_string(),
                Form::Part => "0.75".to_owned(),
                Form::Word(words) => words[1].to_owned(),
                Form::Secret => SECRET.to_owned(),
            };
            let set = beside(setting).settings([(setting.variable, &other)]).expect("a value that it may have");
            assert_ne!(all_of(&set), untouched, "{} = {other}", setting.variable);
            let in_lower_case = setting.variable.to_ascii_lowercase();
            let same = beside(setting).settings([(in_lower_case, &other)]).expect("a value that it may have");
            assert_eq!(all_of(&same), all_of(&set));
            if !matches!(setting.form, Form::Secret) {
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
        let rule = "JOBMILL_CALLBACKS_SECRET: must be `whsec_` and then 24 to 64 bytes in base64";
        assert_eq!(error.to_string(), rule);
        let error = builder().settings([("JOBMILL_CALLBACKS_SECRET", "whsec_hunter2")]).err().expect("an error");
        assert_eq!(error.to_string(), rule);
    }

    #[test]
    fn all_defaults_together_change_nothing() {
        let defaults = Setting::ALL.iter().filter(|setting| !setting.default.is_empty());
        let all = builder().settings(defaults.map(|setting| (setting.variable, setting.default))).expect("settings");
        assert_eq!(all_of(&all), all_of(&builder()));
    }

    /// Which was set first has no meaning in an environment.
    #[test]
    fn what_says_which_settings_count_is_heard_first() {
        let preference = |settings: [(&str, &str); 2]| builder().settings(settings).expect("settings").preference;
        let short_first = [("JOBMILL_PREFER_WEIGHT", "3"), ("JOBMILL_PREFER", "shortest_first")];
        assert_eq!(preference(short_first), Preference::ShortestFirst { weight: 3 });
        let by_deadline = [("JOBMILL_PREFER_PATIENCE_SECONDS", "7"), ("JOBMILL_PREFER", "earliest_deadline")];
        assert_eq!(preference(by_deadline), Preference::EarliestDeadline { patience: Duration::from_secs(7) });
        assert_eq!(preference([("JOBMILL_PREFER_WEIGHT", "3"), ("JOBMILL_PREFER", "arrival")]), Preference::Arrival);

        let attempts = ("JOBMILL_CALLBACKS_MAX_ATTEMPTS", "3");
        let set = |builder: EngineBuilder, value| builder.settings([attempts, ("JOBMILL_CALLBACKS", value)]);
        assert!(set(builder(), "false").expect("settings").callbacks.is_none());
        let delivers = set(builder().without_callbacks(), "true").expect("settings").callbacks;
        assert_eq!(delivers.expect("callbacks").max_attempts, 3);
        let silent = builder().without_callbacks().settings([attempts]).expect("settings");
        assert!(silent.callbacks.is_none(), "nobody asked for callbacks");
    }

    #[test]
    fn rules_of_several_settings_name_those_that_are_given_and_hold_at_their_bound() {
        let two = || builder().workers(Workers::new(2));
        let backoff = ["JOBMILL_BACKOFF_BASE_SECONDS", "JOBMILL_BACKOFF_MAX_SECONDS"];
        for (settings, says) in [
            (
                vec![("JOBMILL_WORKERS_MIN", "3")],
                "JOBMILL_WORKERS_MIN: JOBMILL_WORKERS_MIN must be no more than JOBMILL_WORKER_COUNT; they are 3 and 2",
            ),
            (vec![("JOBMILL_WORKERS_MIN", "2")], ""),
            (vec![("JOBMILL_WORKERS_MIN", "3"), ("JOBMILL_WORKER_COUNT", "3")], ""),
            (
                vec![("JOBMILL_WORKER_COUNT", "4"), ("JOBMILL_WORKERS_MIN", "5")],
                "JOBMILL_WORKERS_MIN, JOBMILL_WORKER_COUNT: JOBMILL_WORKERS_MIN must be no more than",
            ),
            (
                vec![("JOBMILL_WORKERS_HIGH", "1"), ("JOBMILL_WORKERS_CRITICAL", "1")],
                "JOBMILL_WORKERS_CRITICAL, JOBMILL_WORKERS_HIGH: JOBMILL_WORKERS_CRITICAL + JOBMILL_WORKERS_HIGH + \
                 JOBMILL_WORKERS_DEFAULT must be together less than JOBMILL_WORKER_COUNT; they are 1 + 1 + 0 and 2",
            ),
            (vec![("JOBMILL_WORKERS_DEFAULT", "1")], ""),
            (
                vec![(backoff[0], "7200")],
                "JOBMILL_BACKOFF_BASE_SECONDS: JOBMILL_BACKOFF_BASE_SECONDS must be no more than \
                 JOBMILL_BACKOFF_MAX_SECONDS; they are 7200s and 3600s",
            ),
            (vec![(backoff[0], "3600")], ""),
            (vec![(backoff[1], "1")], "JOBMILL_BACKOFF_MAX_SECONDS: JOBMILL_BACKOFF_BASE_SECONDS must be"),
            (vec![(backoff[0], "7200"), (backoff[1], "7200")], ""),
        ] {
            let error = two().settings(settings.iter().copied()).err();
            assert_eq!(error.is_some(), !says.is_empty(), "{settings:?}");
            let said = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(said.starts_with(says), "{said}");
        }
        let wrong_before = builder().workers(Workers::new(0)).settings([("JOBMILL_CAPACITY", "1")]);
        assert!(wrong_before.is_ok(), "the start refuses what no variable has to do with");
    }

    #[test]
    fn what_is_taken_is_taken_by_the_start_too() {
        for setting in Setting::ALL {
            let bounds = match setting.form {
                Form::Whole { min, max, .. } | Form::WholeOrNone { min, max, .. } => {
                    vec![min.to_string(), max.to_string()]
                }
                Form::Seconds { min, max } | Form::SecondsOrNone { min, max } => vec![min.to_string(), max.to_string()],
                Form::Part => vec!["0".to_owned(), "1".to_owned()],
                Form::Flag => vec!["true".to_owned(), "false".to_owned()],
                Form::Word(words) => words.iter().map(|word| (*word).to_owned()).collect(),
                Form::Secret => vec![SECRET.to_owned()],
            };
            for value in bounds {
                // On any machine, whatever else is at its default.
                let directory = tempfile::tempdir().expect("a temporary directory");
                let builder = EngineBuilder::new(&directory.path().join("jobs.db")).workers(Workers::new(2));
                let Ok(set) = builder.settings([(setting.variable, &value)]) else { continue };
                assert!(set.inline().is_ok(), "{} = {value}", setting.variable);
            }
        }
    }

    #[test]
    fn the_last_word_on_a_setting_counts() {
        let set = builder().settings([("JOBMILL_CAPACITY", "7"), ("JOBMILL_CAPACITY", " 9 ")]).expect("a capacity");
        assert_eq!(set.capacity, Some(9));
        assert_eq!(set.capacity(4).capacity, Some(4));
    }
}
