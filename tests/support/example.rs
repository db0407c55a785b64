//! Where an example is, built like the test that runs it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds an example with the profile and the features of this test, and gives where it is.
pub(crate) fn build(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let profile = test.ancestors().nth(2).expect("a test lies in a profile's directory, in deps");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--example", name, "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    cargo.arg("--target-dir").arg(profile.parent().expect("a profile lies in a target directory"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    if cfg!(feature = "testing") {
        cargo.args(["--features", "testing"]);
    }
    assert!(cargo.status().expect("cargo runs").success(), "the example builds");
    profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION)
}
