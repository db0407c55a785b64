//! One binary for all tests from outside, a file for each feature.

mod run;
mod support;
