//! LLM batches: submit, ask, read the results.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, Write};

use crate::client::{Client, not_found};
use crate::error::{Error, ErrorKind, Result};
use crate::model::batch::{Batch, BatchItemRecord, BatchRequest, ItemResult, PollCycle, RequestStatus};
use crate::model::cursor::{Cursor, Order, cursor_setters};
use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::model::job::Status;
use crate::model::new_batch::{BATCH_KIND, BatchItem, NewBatch, ReadyItem};
use crate::model::page::Query;
use crate::model::rules::check_name;
use crate::store::batch::create::NotAdded;
use crate::store::batch::read::{self, ItemFilter};
use crate::store::connect::storage_error;
use crate::store::enqueue::Enqueued;
use crate::store::{self, Turn};

/// Up to how many items, and bytes of them, are written in one transaction.
const SLICE_ITEMS: usize = 1000;
const SLICE_BYTES: usize = 8 << 20;
/// How many polls are made due in one transaction.
const SLICE_POLLS: usize = 1000;
/// How many results are read at a time.
const RESULTS_CHUNK: usize = 200;
/// What may stand before the first line of a JSONL file, in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The longest line of a JSONL file, in bytes.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Which items of a batch are listed, and which page of them.
///
/// A cursor is an item's id, a position in the order of the batch: `after` and `before` are absolute, whatever the order
/// of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a query does nothing until it is asked"]
pub struct ItemQuery {
    statuses: Vec<Status>,
    request: Option<BatchRequestId>,
    agent: Option<String>,
    cursor: Cursor<BatchItemId>,
}

impl Default for ItemQuery {
    fn default() -> Self {
        Self::new()
    }
}

impl ItemQuery {
    /// All items, the first 50 of them, in the order of the batch.
    pub fn new() -> Self {
        Self {
            statuses: Vec::new(),
            request: None,
            agent: None,
            cursor: Cursor { order: Order::Ascending, ..Cursor::default() },
        }
    }

    /// Only items of these statuses. None: of any.
    pub fn statuses(mut self, statuses: impl IntoIterator<Item = Status>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    /// Only items that this provider batch holds, or held last.
    pub fn request(mut self, id: BatchRequestId) -> Self {
        self.request = Some(id);
        self
    }

    /// Only items of this agent.
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.agent = Some(id.into());
        self
    }

    cursor_setters! {
        /// Only items behind this one.
        after(id: BatchItemId),
        /// Only items before this one.
        before(id: BatchItemId),
        /// Sets the order. Defaults to that of the batch.
        order(order: Order),
        /// Sets how many items a page has, from 1 to 1000. Defaults to 50.
        limit(limit: usize),
    }
}

/// A page of a batch's items.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ItemPage {
    /// The items, in the order that the query asked for.
    pub items: Vec<BatchItemRecord>,
    /// The query for the next page, if more items follow.
    pub next: Option<ItemQuery>,
}

impl ItemPage {
    /// Whether more items follow.
    pub fn has_more(&self) -> bool {
        self.next.is_some()
    }
}

/// One line of a JSONL file.
#[derive(serde::Deserialize)]
struct Line {
    /// The caller's own key; `custom_id` as in OpenAI's files is read too.
    #[serde(alias = "custom_id")]
    key: Option<String>,
    provider: Option<String>,
    #[serde(alias = "url")]
    endpoint: Option<String>,
    model: Option<String>,
    agent_id: Option<String>,
    /// The request; `params` as in Anthropic's is read too.
    #[serde(alias = "params")]
    body: Box<serde_json::value::RawValue>,
    state: Option<Box<serde_json::value::RawValue>>,
}

impl Client {
    /// Submits a batch: it is in the file when this returns, and an engine that has its providers takes it from there. The
    /// items are taken from the iterator and written in slices of a thousand, so that a batch of any size takes little
    /// memory; until the last is written, nothing is sent. If the process dies before, a batch of several slices stays
    /// [`Created`](Status::Created) and is never sent; delete it and submit it again.
    ///
    /// If the batch has a unique key that is held, nothing is written, and the batch that holds it is told.
    ///
    /// ```
    /// use jobmill::{BatchItem, Client, NewBatch};
    /// # fn main() -> jobmill::Result<()> {
    /// # let directory = tempfile::tempdir().expect("a temporary directory");
    /// # let client = Client::open(directory.path().join("jobs.db"))?;
    /// let questions = ["What is a mill?", "What is a job?"];
    /// let items = questions.iter().map(|question| {
    ///     BatchItem::new(&serde_json::json!({
    ///         "model": "some-model", "max_tokens": 100, "messages": [{ "role": "user", "content": question }],
    ///     }))
    /// });
    /// let id = client.submit(NewBatch::new("anthropic"), items)?.id();
    /// assert_eq!(client.batch(id)?.items.waiting, 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Invalid` if a rule is broken, with the item's place, the field and the rule: no batch is there then.
    pub fn submit(&self, batch: NewBatch, items: impl IntoIterator<Item = BatchItem>) -> Result<Enqueued> {
        self.submit_items(&batch, items.into_iter().map(Ok))
    }

    /// Submits a batch whose items are the lines of a JSONL file: each an object with `body`, and optionally `key`,
    /// `provider`, `endpoint`, `model`, `agent_id` and `state`. The names of the providers' own files are read too:
    /// `custom_id`, `params`, `url`. Blank lines and a byte order mark are skipped.
    ///
    /// # Errors
    /// Those of [`Client::submit`]; `Invalid` if a line is not such an object, with its number.
    pub fn submit_jsonl(&self, batch: NewBatch, lines: impl BufRead) -> Result<Enqueued> {
        self.submit_items(&batch, Lines { lines, number: 0 })
    }

    fn submit_items(&self, batch: &NewBatch, items: impl Iterator<Item = Result<BatchItem>>) -> Result<Enqueued> {
        batch.check()?;
        let mut job = self.admit(batch.job.clone())?;
        (job.kind, job.status) = (Some(BATCH_KIND.into()), Some(Status::Created));
        let mut items = Slices { items, place: 0 };
        // The first slice is checked before anything is written, and most batches have no other.
        let Some(slice) = items.next().transpose()? else {
            return Err(Error::invalid("items", "must be at least one"));
        };
        let mut next = items.next().transpose()?;
        let (new, last) = (batch.clone(), next.is_none());
        let enqueued = self.desk().call(move |turn| {
            // All or nothing: a batch that fits into one transaction is whole or not there, whatever crashes.
            let created = turn.guarded(|mut turn| {
                let enqueued = turn.create_batch(&new, &job).map_err(cannot_submit)?;
                if let Enqueued::New(id) = enqueued {
                    add(&mut turn, id, &new.provider, &slice, last)?;
                }
                Ok(enqueued)
            })?;
            created.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let Enqueued::New(id) = enqueued else { return Ok(enqueued) };
        // The iterator is the caller's, and may panic.
        let mut unfinished = Unfinished { client: self, id: Some(id) };
        while let Some(slice) = next.take() {
            next = items.next().transpose()?;
            let (provider, last) = (batch.provider.clone(), next.is_none());
            self.desk().call(move |turn| add(turn, id, &provider, &slice, last))?;
        }
        unfinished.id = None;
        Ok(enqueued)
    }

    /// Runs `work` on a snapshot in which the batch must exist for this client.
    fn of_batch<T>(
        &self,
        id: JobId,
        work: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<Option<T>>,
    ) -> Result<T> {
        // Its rows stay for a while when its job is gone, and nobody can tell then whose they are.
        let found = self.reader().snapshot("cannot read the batch", |conn| {
            if store::read::exists_for(conn, id, self.user())? { work(conn) } else { Ok(None) }
        })?;
        found.ok_or_else(|| not_found(id))
    }

    /// A batch: its job, how many items stand where, what was spent.
    ///
    /// # Errors
    /// `NotFound` if no batch has this id.
    pub fn batch(&self, id: JobId) -> Result<Batch> {
        self.of_batch(id, |conn| {
            let (Some(job), Some(facts)) = (store::read::job(conn, id)?, read::batch_facts(conn, id)?) else {
                return Ok(None);
            };
            Ok(Some(Batch {
                job,
                provider: facts.provider,
                step: facts.step,
                max_steps: facts.max_steps,
                max_attempts: facts.max_attempts,
                budget_nanos: facts.budget_nanos,
                items: facts.items,
                spent: facts.spent,
                strays: facts.strays,
            }))
        })
    }

    /// A page of a batch's items.
    ///
    /// # Errors
    /// `NotFound` if no batch has this id; `Invalid` if the limit is not from 1 to 1000, or `before` is not behind `after`.
    pub fn batch_items(&self, id: JobId, query: &ItemQuery) -> Result<ItemPage> {
        query.cursor.check()?;
        let filter = ItemFilter { statuses: &query.statuses, request: query.request, agent: query.agent.as_deref() };
        let mut items = self.of_batch(id, |conn| match read::item_counts(conn, id)? {
            Some(_) => read::items(conn, id, &filter, &query.cursor).map(Some),
            None => Ok(None),
        })?;
        let next = query.cursor.cut(&mut items, |item| item.id);
        let next = next.map(|cursor| ItemQuery { cursor, ..query.clone() });
        Ok(ItemPage { items, next })
    }

    /// An item of a batch, by the caller's own key.
    ///
    /// # Errors
    /// `NotFound` if no batch has this id, or no item of it this key.
    pub fn batch_item(&self, id: JobId, key: &str) -> Result<BatchItemRecord> {
        self.of_batch(id, |conn| read::item_by_key(conn, id, key))
    }

    /// The batches at providers that hold items of a batch, the oldest first, at most `limit` behind the one of the id
    /// `after`; those of these statuses, or all if none is named.
    ///
    /// # Errors
    /// `NotFound` if no batch has this id; `Invalid` if the limit is not from 1 to 1000.
    pub fn batch_requests(
        &self,
        id: JobId,
        statuses: &[RequestStatus],
        after: Option<BatchRequestId>,
        limit: usize,
    ) -> Result<Vec<BatchRequest>> {
        Query::new().limit(limit).check()?;
        self.of_batch(id, |conn| match read::item_counts(conn, id)? {
            Some(_) => read::requests(conn, id, statuses, after, limit).map(Some),
            None => Ok(None),
        })
    }

    /// The results of a batch's items that have come to their end, in the order of the batch. Those that come to it while
    /// the iterator goes on are given if it has not passed them.
    ///
    /// # Errors
    /// `NotFound` if no batch has this id.
    pub fn batch_results(&self, id: JobId) -> Result<BatchResults> {
        self.of_batch(id, |conn| read::item_counts(conn, id))?;
        Ok(BatchResults {
            client: self.clone(),
            batch: id,
            after: BatchItemId::from_raw(0),
            ready: VecDeque::new(),
            done: false,
        })
    }

    /// Writes the results of a batch as JSONL, one [`ItemResult`] to a line, and tells how many that were.
    ///
    /// # Errors
    /// `NotFound` if no batch has this id; `Storage` if the writing fails.
    pub fn write_batch_results(&self, id: JobId, mut to: impl Write) -> Result<u64> {
        let broken = |error| Error::with_source(ErrorKind::Storage, "cannot write the results", error);
        let mut count = 0;
        for result in self.batch_results(id)? {
            let mut line = serde_json::to_vec(&result?)
                .map_err(|error| Error::with_source(ErrorKind::Storage, "a result does not serialize", error))?;
            // A reply stands there as it came. Outside its texts, no line needs to end.
            line.retain(|byte| !matches!(byte, b'\n' | b'\r'));
            line.push(b'\n');
            to.write_all(&line).map_err(broken)?;
            count += 1;
        }
        to.flush().map_err(broken)?;
        Ok(count)
    }

    /// Has every batch that is at a provider asked about at once, and tells how many that are.
    ///
    /// # Errors
    /// `Forbidden` if the client is bound to a user.
    pub fn poll_now(&self) -> Result<usize> {
        self.administer("poll for everybody")?;
        let mut due = 0;
        loop {
            let made = self.desk().call(|turn| turn.poll_now(SLICE_POLLS).map_err(cannot_submit))?;
            due += made;
            if made < SLICE_POLLS {
                break;
            }
        }
        self.desk().wake_poller();
        Ok(due)
    }

    /// What the last cycles of polls came to, the newest first. A thousand are kept.
    ///
    /// # Errors
    /// `Invalid` if the limit is not from 1 to 1000; `Forbidden` if the client is bound to a user.
    pub fn poll_cycles(&self, limit: usize) -> Result<Vec<PollCycle>> {
        self.administer("read the polls of everybody")?;
        Query::new().limit(limit).check()?;
        self.reader().snapshot("cannot read the cycles", |conn| read::cycles(conn, limit))
    }

    /// Says that a request of which nobody knows whether its provider has it is the provider's batch of this id.
    ///
    /// # Errors
    /// `NotFound` if there is no such request; `Conflict` if it is known what became of it, or the batch is another's;
    /// `Invalid` if the provider's id breaks the rule for names; `Forbidden` if the client is bound to a user.
    pub fn adopt_request(&self, id: BatchRequestId, remote_id: &str) -> Result<()> {
        self.administer("adopt a request")?;
        check_name("remote_id", remote_id)?;
        let remote_id = remote_id.to_owned();
        self.decide(id, move |turn| turn.adopt_by_hand(id, &remote_id))
    }

    /// Says that a request of which nobody knows whether its provider has it was not created: it is sent again. Or gives up
    /// one of which its provider tells nothing any more, neither how it does nor its results: its items count as missing,
    /// and are sent again while they have attempts left. If it was run, that is paid twice. By itself the engine gives such a
    /// request up after [`Batches::lost_after`](crate::Batches::lost_after), and sends nothing again.
    ///
    /// # Errors
    /// Those of [`Client::adopt_request`].
    pub fn abandon_request(&self, id: BatchRequestId) -> Result<()> {
        self.administer("abandon a request")?;
        self.decide(id, move |turn| turn.abandon_by_hand(id))
    }

    fn decide(
        &self,
        id: BatchRequestId,
        work: impl FnOnce(&mut Turn<'_>) -> rusqlite::Result<Option<bool>> + Send + 'static,
    ) -> Result<()> {
        match self.desk().call(move |turn| work(turn).map_err(cannot_submit))? {
            Some(true) => Ok(()),
            Some(false) => Err(Error::new(
                ErrorKind::Conflict,
                format!("it is known what became of {id}, or the batch is another's"),
            )),
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no request {id}"))),
        }
    }
}

/// A batch that is being written, and is taken back if that is not brought to its end.
struct Unfinished<'c> {
    client: &'c Client,
    id: Option<JobId>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // What is left of it is removed with its job.
        if let Some(id) = self.id
            && let Err(error) = self.client.delete(id)
            && error.kind() != ErrorKind::NotFound
        {
            log::warn!("{id} was not written to its end, and cannot be taken back: {error}");
        }
    }
}

/// Adds items to a batch, and lets it go with the last.
fn add(turn: &mut Turn<'_>, id: JobId, provider: &str, slice: &[ReadyItem], last: bool) -> Result<()> {
    match turn.add_items(id, provider, slice).map_err(cannot_submit)? {
        Ok(()) if last => turn.release_batch(id).map(drop).map_err(cannot_submit),
        Ok(()) => Ok(()),
        Err(NotAdded::KeyTwice(key)) => Err(Error::invalid("items", format_args!("two of them have the key {key:?}"))),
        Err(NotAdded::Closed) => {
            Err(Error::new(ErrorKind::Conflict, format!("{id} was ended while its items were written")))
        }
    }
}

fn cannot_submit(error: rusqlite::Error) -> Error {
    storage_error("cannot write the batch", error)
}

/// Gives items in slices that one transaction takes, their rules checked.
struct Slices<I> {
    items: I,
    place: u64,
}

impl<I: Iterator<Item = Result<BatchItem>>> Iterator for Slices<I> {
    type Item = Result<Vec<ReadyItem>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut slice, mut bytes) = (Vec::new(), 0);
        while slice.len() < SLICE_ITEMS && bytes < SLICE_BYTES {
            let Some(item) = self.items.next() else { break };
            match item.and_then(|item| item.check(self.place)) {
                Ok(item) => {
                    bytes += item.body.get().len();
                    slice.push(item);
                }
                Err(error) => return Some(Err(error)),
            }
            self.place += 1;
        }
        (!slice.is_empty()).then_some(Ok(slice))
    }
}

/// Reads items from lines.
struct Lines<R> {
    lines: R,
    number: u64,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<BatchItem>;

    fn next(&mut self) -> Option<Self::Item> {
        use std::io::Read;

        loop {
            let mut line = Vec::new();
            self.number += 1;
            let number = self.number;
            let wrong = |rule: &dyn std::fmt::Display| Error::invalid(&format!("line {number}"), rule);
            match self.lines.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) if line.len() as u64 > MAX_LINE_BYTES => {
                    return Some(Err(wrong(&format_args!("must have at most {MAX_LINE_BYTES} bytes"))));
                }
                Ok(_) => {}
                Err(error) => return Some(Err(Error::with_source(ErrorKind::Storage, "cannot read the items", error))),
            }
            // Some editors and shells begin a file so.
            let text = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| number == 1).unwrap_or(&line);
            let text = text.trim_ascii();
            if text.is_empty() {
                continue;
            }
            if text[0] != b'{' {
                return Some(Err(wrong(&"must be a JSON object")));
            }
            let read: Line = match serde_json::from_slice(text) {
                Ok(read) => read,
                Err(error) => return Some(Err(wrong(&error))),
            };
            let mut item = BatchItem::new(&read.body);
            (item.key, item.provider, item.endpoint) = (read.key, read.provider, read.endpoint);
            (item.model, item.agent_id, item.state) = (read.model, read.agent_id, read.state.map(Ok));
            return Some(Ok(item));
        }
    }
}

/// The results of a batch. See [`Client::batch_results`].
pub struct BatchResults {
    client: Client,
    batch: JobId,
    after: BatchItemId,
    ready: VecDeque<ItemResult>,
    done: bool,
}

impl fmt::Debug for BatchResults {
    /// Without the results: they are an application's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchResults").field("batch", &self.batch).finish_non_exhaustive()
    }
}

impl Iterator for BatchResults {
    type Item = Result<ItemResult>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() && !self.done {
            let (batch, after) = (self.batch, self.after);
            let read = self.client.of_batch(batch, |conn| read::results(conn, batch, after, RESULTS_CHUNK).map(Some));
            match read {
                Ok(results) => {
                    self.done = results.is_empty();
                    self.after = results.last().map_or(after, |(id, _)| *id);
                    self.ready.extend(results.into_iter().map(|(_, result)| result));
                }
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
