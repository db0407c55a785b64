//! One binary for all tests from outside, a file for each feature.

mod enqueue;
mod run;
mod support;
