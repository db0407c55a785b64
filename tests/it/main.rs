//! One binary for all tests from outside, a file for each feature.

mod ask;
mod bad_input;
mod bulk;
mod callback;
mod cancel;
mod context;
mod delivery;
mod enqueue;
mod fair;
mod faults;
mod file;
mod history;
mod house;
mod listing;
mod model;
mod order;
mod paging;
mod recovery;
mod run;
mod support;
mod tracked;
mod unique;
mod users;
