//! Settings that are taken from the environment, by processes that have one of their own.

use std::process::Command;

use jobmill::Engine;

use crate::support::file;

/// Set for a process that takes its settings from its environment.
const CHILD: &str = "TEST_SETTINGS_CHILD";
/// What it says before what came of that.
const CAME_OF_IT: &str = "came of it: ";

/// What a process says that takes its settings from this environment.
#[track_caller]
fn said(variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this executable"));
    // Whoever runs the tests may have set some.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().to_ascii_uppercase().starts_with("JOBMILL_") {
            command.env_remove(name);
        }
    }
    command.args(["settings::as_a_process_that_takes_its_settings", "--exact", "--nocapture"]).env(CHILD, "1");
    let output = command.envs(variables.iter().copied()).output().expect("a child");
    let out = String::from_utf8_lossy(&output.stdout);
    let (_, came_of_it) = out.split_once(CAME_OF_IT).unwrap_or_else(|| panic!("{out}"));
    came_of_it.lines().next().expect("a line").to_owned()
}

/// Runs as another process if it is told to.
#[test]
fn as_a_process_that_takes_its_settings() -> jobmill::Result<()> {
    if std::env::var_os(CHILD).is_none() {
        return Ok(());
    }
    let (_directory, path) = file();
    match Engine::builder(&path).settings_from_env() {
        Ok(builder) => println!("{CAME_OF_IT}{} workers", builder.inline()?.health().workers.max),
        Err(error) => println!("{CAME_OF_IT}{error}"),
    }
    Ok(())
}

#[test]
fn settings_come_from_the_environment_whatever_case_their_names_have() {
    assert_eq!(said(&[("JOBMILL_WORKER_COUNT", "7")]), "7 workers");
    assert_eq!(said(&[("Jobmill_Worker_Count", "6"), ("HOME_OF_JOBMILL_X", "no setting")]), "6 workers");
    let all = [
        ("JOBMILL_WORKER_COUNT", "5"),
        ("JOBMILL_CALLBACKS", "off"),
        ("JOBMILL_PREFER", "shortest_first"),
        ("JOBMILL_PREFER_WEIGHT", "1000"),
        ("JOBMILL_PREFER_PATIENCE_SECONDS", "60"),
        ("JOBMILL_CALLBACKS_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ];
    assert_eq!(said(&all), "5 workers");
    if cfg!(not(windows)) {
        let twice = said(&[("JOBMILL_WORKER_COUNT", "7"), ("jobmill_worker_count", "8")]);
        assert!(twice.contains(": must not be set beside "), "{twice}");
        assert_eq!(said(&[("JOBMILL_WORKER_COUNT", "7"), ("jobmill_worker_count", "7")]), "7 workers");
    }
}

/// Some were refused at the start alone, by the names of fields that no environment has.
#[test]
fn what_breaks_a_rule_is_refused_with_its_variables_and_the_rule() {
    let count = ("JOBMILL_WORKER_COUNT", "2");
    for (variables, says) in [
        (&[("JOBMILL_NOTHING", "1")][..], "JOBMILL_NOTHING: is no setting"),
        (&[("jobmill_nothing", "1")], "jobmill_nothing: is no setting"),
        (
            &[("JOBMILL_CALLBACKS_SECRET", "short")],
            "JOBMILL_CALLBACKS_SECRET: must be `whsec_` and then 24 to 64 bytes in base64",
        ),
        (
            &[("JOBMILL_BACKOFF_BASE_SECONDS", "7200")],
            "JOBMILL_BACKOFF_BASE_SECONDS: JOBMILL_BACKOFF_BASE_SECONDS must be no more than JOBMILL_BACKOFF_MAX_SECONDS; \
             they are 7200s and 3600s",
        ),
        (
            &[count, ("JOBMILL_WORKERS_CRITICAL", "3")],
            "JOBMILL_WORKERS_CRITICAL, JOBMILL_WORKER_COUNT: JOBMILL_WORKERS_CRITICAL + JOBMILL_WORKERS_HIGH + \
             JOBMILL_WORKERS_DEFAULT must be together less than JOBMILL_WORKER_COUNT; they are 3 + 0 + 0 and 2",
        ),
        (
            &[count, ("JOBMILL_WORKERS_MIN", "500")],
            "JOBMILL_WORKERS_MIN, JOBMILL_WORKER_COUNT: JOBMILL_WORKERS_MIN must be no more than JOBMILL_WORKER_COUNT; \
             they are 500 and 2",
        ),
        (&[("JOBMILL_PREFER_WEIGHT", "0")], "JOBMILL_PREFER_WEIGHT: must be 1 to 1000 times, is \"0\""),
        (&[("JOBMILL_CALLBACKS", "maybe")], "JOBMILL_CALLBACKS: must be true or false, is \"maybe\""),
    ] {
        let said = said(variables);
        assert!(said.starts_with(says), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_utf_8_is_refused() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    for (name, value, says) in [
        (&b"JOBMILL_CAPACITY"[..], &b"\xff"[..], "JOBMILL_CAPACITY: must be UTF-8"),
        (b"JOBMILL_\xff", b"1", "JOBMILL_\u{fffd}: is no setting"),
    ] {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command.args(["settings::as_a_process_that_takes_its_settings", "--exact", "--nocapture"]).env(CHILD, "1");
        let output = command.env(OsStr::from_bytes(name), OsStr::from_bytes(value)).output().expect("a child");
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(out.contains(says), "{out}");
    }
}
