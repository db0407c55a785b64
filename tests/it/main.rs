//! One binary for all tests from outside, a file for each feature.

mod faults;
mod model;
mod paging;
mod recovery;
mod run;
