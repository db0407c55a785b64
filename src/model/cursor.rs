//! The one rule for pages: which part of a list, in which order, and how much of it.

use std::cmp::Reverse;

use crate::error::{Error, Result};

/// How many things a page holds unless its query says otherwise, and at most.
pub(crate) const DEFAULT_LIMIT: usize = 50;
pub(crate) const MAX_LIMIT: usize = 1000;

/// Which of two neighbours comes first in a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// The oldest first.
    Ascending,
    /// The newest first.
    #[default]
    Descending,
}

/// Where a page lies among things that are named by ids of this sort. Cursors are positions in creation order, absolute in
/// time: `before` is older, `after` is newer, in both orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor<I> {
    pub(crate) before: Option<I>,
    pub(crate) after: Option<I>,
    pub(crate) order: Order,
    pub(crate) limit: usize,
}

impl<I> Default for Cursor<I> {
    fn default() -> Self {
        Self { before: None, after: None, order: Order::default(), limit: DEFAULT_LIMIT }
    }
}

impl<I: Copy + PartialOrd> Cursor<I> {
    pub(crate) fn check(&self) -> Result<()> {
        if !(1..=MAX_LIMIT).contains(&self.limit) {
            return Err(Error::invalid("limit", format_args!("must be from 1 to {MAX_LIMIT}")));
        }
        match (self.before, self.after) {
            (Some(before), Some(after)) if before <= after => Err(Error::invalid("before", "must be newer than after")),
            _ => Ok(()),
        }
    }

    /// The place of the page that follows one that ended with `last`.
    pub(crate) fn following(mut self, last: I) -> Self {
        match self.order {
            Order::Ascending => self.after = Some(last),
            Order::Descending => self.before = Some(last),
        }
        self
    }

    /// Makes a page of what was found, at least one more than it holds if there are more, and tells where the next lies.
    pub(crate) fn cut<T>(self, found: &mut Vec<T>, id: impl Fn(&T) -> I) -> Option<Self>
    where
        I: Ord,
    {
        match self.order {
            Order::Ascending => found.sort_by_key(&id),
            Order::Descending => found.sort_by_key(|found| Reverse(id(found))),
        }
        let has_more = found.len() > self.limit;
        found.truncate(self.limit);
        found.last().filter(|_| has_more).map(|last| self.following(id(last)))
    }
}

/// Setters of a query's field `cursor`, each with what its query says of it.
macro_rules! cursor_setters {
    ($($(#[$doc:meta])+ $setter:ident($given:ident: $sort:ty)),+ $(,)?) => {$(
        $(#[$doc])+
        pub fn $setter(mut self, $given: $sort) -> Self {
            self.cursor.$setter = $given.into();
            self
        }
    )+};
}
pub(crate) use cursor_setters;
