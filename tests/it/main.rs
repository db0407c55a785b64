//! One binary for all tests from outside, a file for each feature.

mod ask;
mod bad_input;
mod cancel;
mod enqueue;
mod file;
mod house;
mod order;
mod run;
mod support;
mod unique;
