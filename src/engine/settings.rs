//! Settings that programs may take from their environment: each by one variable, read by one function.

use std::collections::HashMap;

use crate::engine::builder::EngineBuilder;
use crate::engine::settings::form::{Form, Value};
use crate::error::{Error, Result};

mod form;
mod list;

/// What the names of all variables begin with.
const PREFIX: &str = "JOBMILL_";
/// Names that differ by more letters than this have nothing to do with each other.
const MISSPELT_MAX: usize = 4;

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
        Self::ALL.iter().find(|setting| setting.variable.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let meant = Self::nearest(name).map(|near| format!(" (is {near} meant?)")).unwrap_or_default();
            Error::invalid(name, format_args!("is no setting{meant}: see Setting::ALL for those that there are"))
        })
    }

    /// The setting that a misspelt name may have meant. Who reads the error may set the program up and not write it.
    fn nearest(name: &str) -> Option<&'static str> {
        let name = name.to_ascii_uppercase();
        let near = Self::ALL.iter().map(|setting| (distance(&name, setting.variable), setting.variable)).min()?;
        (near.0 <= MISSPELT_MAX).then_some(near.1)
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

/// How many letters of a name must be put in, left out or changed to make another of it (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, letter) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (place, other) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != other);
            diagonal = row[place + 1];
            row[place + 1] = changed.min(row[place] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::ErrorKind;
    use crate::model::preference::Preference;
    use crate::model::retry::Backoff;
    use crate::model::rules::MAX_DURATION;
    use crate::model::workers::Workers;

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
                let error = builder().settings([(setting.variable, "nonsense")]).expect_err("an error");
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
        let error = builder().settings([("JOBMILL_WORKERS", "8")]).expect_err("an error");
        assert!(error.to_string().starts_with("JOBMILL_WORKERS: is no setting"), "{error}");
        for (name, meant) in [
            (
                "jobmill_workercount",
                "jobmill_workercount: is no setting (is JOBMILL_WORKER_COUNT meant?): see Setting::ALL",
            ),
            ("JOBMILL_KEEP_FAILED", "JOBMILL_KEEP_FAILED: is no setting: see Setting::ALL"),
            ("JOBMILL_DURABLITY", "JOBMILL_DURABLITY: is no setting (is JOBMILL_DURABILITY meant?): see Setting::ALL"),
            ("JOBMILL_", "JOBMILL_: is no setting: see Setting::ALL"),
            ("", ": is no setting: see Setting::ALL"),
        ] {
            let error = builder().settings([(name, "8")]).expect_err("an error");
            assert!(error.to_string().starts_with(meant), "{error}");
        }
        let error = builder().settings([("JOBMILL_CALLBACKS_SECRET", "  ")]).expect_err("an error");
        let rule = "JOBMILL_CALLBACKS_SECRET: must be `whsec_` and then 24 to 64 bytes in base64";
        assert_eq!(error.to_string(), rule);
        let error = builder().settings([("JOBMILL_CALLBACKS_SECRET", "whsec_hunter2")]).expect_err("an error");
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

    /// A setter of the builder writes what the setting writes, so what it can be given is tried by way of that.
    #[test]
    fn what_no_variable_can_have_is_refused_by_the_start_too() {
        for setting in Setting::ALL {
            let beyond = match setting.form {
                Form::Whole { min, max, .. } | Form::WholeOrNone { min, max, .. } => {
                    vec![min.checked_sub(1).map(Value::Whole), Some(Value::Whole(max + 1))]
                }
                Form::Seconds { min, max } | Form::SecondsOrNone { min, max } => {
                    let [min, max] = [min, max].map(Duration::from_secs_f64);
                    let tick = Duration::from_nanos(1);
                    vec![min.checked_sub(tick).map(Value::Time), Some(Value::Time(max + tick))]
                }
                Form::Part => vec![Some(Value::Part(-0.01)), Some(Value::Part(1.01))],
                Form::Secret => vec![Some(Value::Word("whsec_hunter2".to_owned()))],
                Form::Flag | Form::Word(_) => vec![],
            };
            for value in beyond.into_iter().flatten() {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let mut builder = beside(setting);
                builder.path = directory.path().join("jobs.db");
                (setting.set)(&mut builder, value.clone());
                let refused = builder.inline().expect_err("a broken rule");
                assert_eq!(refused.kind(), ErrorKind::Invalid, "{} = {value:?}: {refused}", setting.variable);
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
