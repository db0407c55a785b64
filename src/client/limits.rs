//! Limits: setting them, and how they stand.

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::model::limit::{Limit, LimitUsage};
use crate::model::page::Query;
use crate::model::rules::check_queue;
use crate::store::connect::storage_error;
use crate::store::limits;

impl Client {
    /// Sets a limit in the file, for all processes on it: the new bounds hold from now on, for jobs that wait too. One that
    /// bounds nothing lifts the limit. What runs goes on.
    ///
    /// ```
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = jobmill::Client::open(directory.path().join("jobs.db"))?;
    /// use jobmill::{Limit, LimitUse, NewJob};
    ///
    /// client.set_limit(&Limit::new("per-customer").concurrency(2))?;
    /// client.enqueue(NewJob::json("sync", &7).limit(LimitUse::of("per-customer").key("customer-7")))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the field and the rule; `Forbidden` if the client is bound to a user.
    pub fn set_limit(&self, limit: &Limit) -> Result<()> {
        self.administer("set limits")?;
        limit.check()?;
        let (limit, caller) = (limit.clone(), self.caller.clone());
        self.desk().call(move |turn| {
            turn.set_limit(&limit, &caller).map_err(|error| storage_error("cannot set the limit", error))
        })
    }

    /// Bounds the queue of the limit's name: how many of its jobs run at a time, and how fast they start, in all processes
    /// together. What a job takes of the rate is its [cost](crate::NewJob::cost). A limit that bounds nothing lifts it.
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the field and the rule; `Forbidden` if the client is bound to a user.
    pub fn limit_queue(&self, limit: &Limit) -> Result<()> {
        self.administer("set limits")?;
        limit.check()?;
        check_queue(&limit.name)?;
        let (limit, caller) = (limit.clone(), self.caller.clone());
        self.desk().call(move |turn| {
            turn.limit_queue(&limit, &caller).map_err(|error| storage_error("cannot bound the queue", error))
        })
    }

    /// Every limit that was ever set in the file, by name; those that were lifted bound nothing.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read.
    pub fn limits(&self) -> Result<Vec<Limit>> {
        self.reader().snapshot("cannot read the limits", limits::limits)
    }

    /// The queues that are bounded in all processes together, by name.
    ///
    /// # Errors
    /// `Storage` if the file cannot be read.
    pub fn queue_limits(&self) -> Result<Vec<Limit>> {
        self.reader().snapshot("cannot read the limits", limits::queue_limits)
    }

    /// How a queue stands that is bounded in all processes together: `limit` is its name, and `held` are those of its jobs
    /// that are pending.
    ///
    /// # Errors
    /// `NotFound` if no bounds were set for this queue; `Forbidden` if the client is bound to a user.
    pub fn queue_usage(&self, queue: &str) -> Result<LimitUsage> {
        self.administer("read the limits' use")?;
        let now = self.desk().clock().now();
        self.reader()
            .snapshot("cannot read the queue's use", |conn| limits::queue_usage(conn, queue, now))?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the queue {queue:?} has no bounds")))
    }

    /// How the keys of a limit stand, at most `limit` of them, in the order of their names, behind the name `after` if one is
    /// given. Keys that rest and that no job names any more are left out in the course of time.
    ///
    /// # Errors
    /// `NotFound` if no limit has this name; `Invalid` if the number is not from 1 to 1000; `Forbidden` if the client is
    /// bound to a user.
    pub fn limit_usages(&self, name: &str, after: Option<&str>, limit: usize) -> Result<Vec<LimitUsage>> {
        self.administer("read the limits' use")?;
        Query::new().limit(limit).check()?;
        let now = self.desk().clock().now();
        self.reader()
            .snapshot("cannot read the limit's use", |conn| limits::usages(conn, name, after, limit, now))?
            .ok_or_else(|| no_limit(name))
    }

    /// How one key of a limit stands; the empty key is the common one. A key that no job has named stands as one that rests.
    ///
    /// # Errors
    /// `NotFound` if no limit has this name; `Forbidden` if the client is bound to a user.
    pub fn limit_usage(&self, limit: &str, key: &str) -> Result<LimitUsage> {
        self.administer("read the limits' use")?;
        let now = self.desk().clock().now();
        self.reader()
            .snapshot("cannot read the limit's use", |conn| limits::usage(conn, limit, key, now))?
            .ok_or_else(|| no_limit(limit))
    }
}

fn no_limit(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no limit {name:?}"))
}
