//! Every job of a query, over all its pages.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;

use crate::client::Client;
use crate::error::Result;
use crate::model::job::Job;
use crate::model::page::Query;

/// Every job of a query, over all its pages, one page in memory: see [`Client::jobs`]. After an error it gives the same
/// page once more.
pub struct Jobs {
    client: Client,
    page: VecDeque<Job>,
    /// The query of the page that is read next. None after the last.
    next: Option<Query>,
}

impl Jobs {
    pub(super) fn new(client: Client, query: Query) -> Self {
        Self { client, page: VecDeque::new(), next: Some(query) }
    }
}

impl fmt::Debug for Jobs {
    /// Without the jobs of the page: what they hold is an application's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("client", &self.client).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Iterator for Jobs {
    type Item = Result<Job>;

    fn next(&mut self) -> Option<Result<Job>> {
        while self.page.is_empty() {
            match self.client.list(self.next.as_ref()?.clone()) {
                Ok(page) => {
                    self.page = page.jobs.into();
                    self.next = page.next;
                }
                Err(error) => return Some(Err(error)),
            }
        }
        self.page.pop_front().map(Ok)
    }
}

impl FusedIterator for Jobs {}
