//! One binary for all tests from outside, a file for each feature.

mod ask;
mod bad_input;
mod callback;
mod cancel;
mod delivery;
mod enqueue;
mod fair;
mod faults;
mod file;
mod house;
mod model;
mod order;
mod paging;
mod recovery;
mod run;
mod support;
mod unique;
