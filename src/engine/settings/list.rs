//! Every setting, with its variable, its default, its bounds and what it sets.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::builtin::batch::{Batches, WhenUnknown};
use crate::builtin::callback::Callbacks;
use crate::engine::builder::EngineBuilder;
use crate::engine::settings::Setting;
use crate::engine::settings::form::{Form, Value};
use crate::model::job::Priority;
use crate::model::preference::Preference;
use crate::model::rules::ANY_TIME;
use crate::model::workers::Workers;
use crate::store::connect::Durability;

// The bounds are those that the start checks, whoever has set it.

const fn seconds(bounds: &RangeInclusive<Duration>) -> Form {
    Form::Seconds { min: bounds.start().as_secs_f64(), max: bounds.end().as_secs_f64() }
}

const fn seconds_or_none(bounds: &RangeInclusive<Duration>) -> Form {
    Form::SecondsOrNone { min: bounds.start().as_secs_f64(), max: bounds.end().as_secs_f64() }
}

const fn whole(unit: &'static str, bounds: &RangeInclusive<u64>) -> Form {
    Form::Whole { unit, min: *bounds.start(), max: *bounds.end() }
}

const fn whole_or_none(unit: &'static str, bounds: &RangeInclusive<u64>) -> Form {
    Form::WholeOrNone { unit, min: *bounds.start(), max: *bounds.end() }
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
            form: whole("workers", &Workers::BOUNDS),
            set: |builder, value| builder.workers.max = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_MIN",
            about: "How many threads of workers stay without work.",
            default: "0",
            form: whole("workers", &Workers::PART_BOUNDS),
            set: |builder, value| builder.workers.min = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_KEEP_ALIVE_SECONDS",
            about: "How long further threads stay without work.",
            default: "10",
            form: seconds(&ANY_TIME),
            set: |builder, value| builder.workers.keep_alive = value.time(),
        },
        Self {
            variable: "JOBMILL_WORKERS_CRITICAL",
            about: "How many workers are kept for critical jobs.",
            default: "0",
            form: whole("workers", &Workers::PART_BOUNDS),
            set: |builder, value| builder.workers.reserved[Priority::Critical.rank()] = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_HIGH",
            about: "How many workers are kept for jobs of high priority and better ones.",
            default: "0",
            form: whole("workers", &Workers::PART_BOUNDS),
            set: |builder, value| builder.workers.reserved[Priority::High.rank()] = value.size(),
        },
        Self {
            variable: "JOBMILL_WORKERS_DEFAULT",
            about: "How many workers are kept for jobs of the default priority and better ones.",
            default: "0",
            form: whole("workers", &Workers::PART_BOUNDS),
            set: |builder, value| builder.workers.reserved[Priority::Default.rank()] = value.size(),
        },
        Self {
            variable: "JOBMILL_CAPACITY",
            about: "What the jobs may weigh all together that run at a time.",
            default: "none",
            form: whole_or_none("units of weight", &EngineBuilder::CAPACITY_BOUNDS),
            set: |builder, value| builder.capacity = matches!(value, Value::Whole(_)).then(|| value.small()),
        },
        Self {
            variable: "JOBMILL_AGEING_SECONDS",
            about: "After which wait a job counts one priority higher.",
            default: "none",
            form: seconds_or_none(&EngineBuilder::AGEING_BOUNDS),
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
            form: whole("times", &Preference::WEIGHT_BOUNDS),
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
            form: seconds(&ANY_TIME),
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
            form: seconds(&ANY_TIME),
            set: |builder, value| builder.busy_timeout = value.time(),
        },
        Self {
            variable: "JOBMILL_TIMEOUT_GRACE_SECONDS",
            about: "How long a handler may go on after its timeout.",
            default: "5",
            form: seconds(&ANY_TIME),
            set: |builder, value| builder.timeout_grace = value.time(),
        },
        Self {
            variable: "JOBMILL_MAX_ABANDONED",
            about: "How many abandoned handlers may be running on.",
            default: "8",
            form: whole("handlers", &EngineBuilder::ABANDONED_BOUNDS),
            set: |builder, value| builder.abandoned_max = value.size(),
        },
        Self {
            variable: "JOBMILL_SHUTDOWN_TIMEOUT_SECONDS",
            about: "How long dropping the engine waits for running jobs.",
            default: "10",
            form: seconds(&ANY_TIME),
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
            form: seconds(&ANY_TIME),
            set: |builder, value| builder.backoff.base = value.time(),
        },
        Self {
            variable: "JOBMILL_BACKOFF_MAX_SECONDS",
            about: "The longest wait between attempts.",
            default: "3600",
            form: seconds(&ANY_TIME),
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
            form: seconds_or_none(&ANY_TIME),
            set: |builder, value| builder.retention.completed = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_FAILED_SECONDS",
            about: "How long dead letters are kept.",
            default: "2592000",
            form: seconds_or_none(&ANY_TIME),
            set: |builder, value| builder.retention.failed = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_CANCELLED_SECONDS",
            about: "How long cancelled jobs are kept.",
            default: "604800",
            form: seconds_or_none(&ANY_TIME),
            set: |builder, value| builder.retention.cancelled = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_EXPIRED_SECONDS",
            about: "How long expired jobs are kept.",
            default: "604800",
            form: seconds_or_none(&ANY_TIME),
            set: |builder, value| builder.retention.expired = value.time_or_none(),
        },
        Self {
            variable: "JOBMILL_KEEP_AUDIT_SECONDS",
            about: "How long lines of the audit are kept.",
            default: "7776000",
            form: seconds_or_none(&ANY_TIME),
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
            form: whole("deliveries", &Callbacks::IN_FLIGHT_BOUNDS),
            set: |builder, value| callbacks(builder, |callbacks| callbacks.in_flight(value.size())),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_TIMEOUT_SECONDS",
            about: "How long one delivery may take.",
            default: "5",
            form: seconds(&Callbacks::TIMEOUT_BOUNDS),
            set: |builder, value| callbacks(builder, |callbacks| callbacks.timeout(value.time())),
        },
        Self {
            variable: "JOBMILL_CALLBACKS_MAX_ATTEMPTS",
            about: "How often a delivery is tried.",
            default: "16",
            form: whole("attempts", &Callbacks::ATTEMPTS_BOUNDS),
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
            form: seconds(&Batches::POLL_INTERVAL_BOUNDS),
            set: |builder, value| builder.batches.poll_interval = value.time(),
        },
        Self {
            variable: "JOBMILL_BATCH_JOB_POLLING_LOOKBACK_WEEKS",
            about: "After how many weeks a batch is asked about once a day only.",
            default: "2",
            form: whole("weeks", &Batches::LOOKBACK_WEEKS_BOUNDS),
            set: |builder, value| builder.batches = builder.batches.clone().lookback_weeks(value.small()),
        },
        Self {
            variable: "JOBMILL_BATCH_JOB_POLLING_BATCH_SIZE",
            about: "How many batches one cycle asks about.",
            default: "1000",
            form: whole("batches", &Batches::POLL_BATCH_SIZE_BOUNDS),
            set: |builder, value| builder.batches.poll_batch_size = value.size(),
        },
        Self {
            variable: "JOBMILL_POLLS_IN_FLIGHT",
            about: "How many polls are under way at once.",
            default: "8",
            form: whole("requests", &Batches::IN_FLIGHT_BOUNDS),
            set: |builder, value| builder.batches.polls_in_flight = value.size(),
        },
        Self {
            variable: "JOBMILL_BATCHES_IN_FLIGHT",
            about: "How many submissions and harvests of LLM batches run at once.",
            default: "4",
            form: whole("jobs", &Batches::IN_FLIGHT_BOUNDS),
            set: |builder, value| builder.batches.in_flight = value.size(),
        },
        Self {
            variable: "JOBMILL_LOCAL_BATCHES_IN_FLIGHT",
            about: "How many batches of local providers run at once.",
            default: "4",
            form: whole("batches", &Batches::IN_FLIGHT_BOUNDS),
            set: |builder, value| builder.batches.local_in_flight = value.size(),
        },
        Self {
            variable: "JOBMILL_BATCHES_RESUBMIT_AFTER_SECONDS",
            about: "After which time a batch is sent again of which nobody knows whether its provider has it, which may be \
                    paid twice; none: it waits for proof.",
            default: "none",
            form: seconds_or_none(&Batches::RESUBMIT_AFTER_BOUNDS),
            set: |builder, value| {
                builder.batches.when_unknown =
                    value.time_or_none().map_or(WhenUnknown::WaitForProof, WhenUnknown::ResubmitAfter)
            },
        },
        Self {
            variable: "JOBMILL_BATCHES_UNKNOWN_GRACE_SECONDS",
            about: "How long a batch is looked for before its provider is believed not to have it.",
            default: "300",
            form: seconds(&Batches::UNKNOWN_GRACE_BOUNDS),
            set: |builder, value| builder.batches.unknown_grace = value.time(),
        },
        Self {
            variable: "JOBMILL_BATCHES_LOST_AFTER_SECONDS",
            about: "After which time a provider is believed that knows a batch no more.",
            default: "86400",
            form: seconds(&Batches::LOST_AFTER_BOUNDS),
            set: |builder, value| builder.batches.lost_after = value.time(),
        },
        Self {
            variable: "JOBMILL_BATCHES_ITEMS_IN_FLIGHT",
            about: "How many items may be at one account at a time; none: what the provider says.",
            default: "none",
            form: whole_or_none("items", &Batches::ITEMS_BOUNDS),
            set: |builder, value| {
                builder.batches.items_in_flight = matches!(value, Value::Whole(_)).then(|| value.whole())
            },
        },
        Self {
            variable: "JOBMILL_BATCHES_TOKENS_IN_FLIGHT",
            about: "How many estimated input tokens may be at one account at a time; none: what the provider says.",
            default: "none",
            form: whole_or_none("tokens", &Batches::TOKENS_BOUNDS),
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
