//! The body of a request: encoded the same way each time, from the file, as it is sent.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::handler::context::Context;
use crate::model::id::{BatchItemId, BatchRequestId, JobId};
use crate::provider::{Frame, Outgoing, OwnedOutgoing, Provider, Todo};
use crate::store::batch::Mark;
use crate::store::batch::plan::{self, Route, WaitingItem};
use crate::store::batch::request::RequestRow;
use crate::store::batch::settle::is_batch_open;
use crate::store::read::Reader;

/// How many items are read from the file at a time.
const CHUNK: usize = 100;
/// How often whoever runs items here looks whether their batch is cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Encodes the items of a request one after the other.
pub(crate) struct Encoder {
    frame: Frame,
    tag: i64,
    routes: Vec<Route>,
    endpoint: String,
    first: bool,
}

impl Encoder {
    pub(crate) fn new(provider: &dyn Provider, tag: i64, routes: Vec<Route>, endpoint: String) -> Self {
        Self { frame: provider.frame(), tag, routes, endpoint, first: true }
    }

    /// What one request of an item is known by, the next that is sent.
    pub(crate) fn mark(&self, item: &WaitingItem, sends: u32) -> Mark {
        Mark { tag: self.tag, item: item.id, step_number: item.step_number, sends }
    }

    pub(crate) fn model(&self, item: &WaitingItem) -> &str {
        self.routes.iter().find(|route| route.id == item.route).map_or("", |route| &*route.model)
    }

    /// Encodes an item that was sent so often with this sending. What stands before it belongs to it. It is in the body once
    /// [`took`](Self::took) says so.
    pub(crate) fn encode(
        &self,
        provider: &dyn Provider,
        item: &WaitingItem,
        sends: u32,
        body: &mut Vec<u8>,
    ) -> std::result::Result<(), String> {
        let start = body.len();
        let custom_id = self.mark(item, sends).custom_id();
        let before = if self.first { self.frame.open } else { self.frame.between };
        body.extend_from_slice(before.as_bytes());
        let encoded = provider.encode(&Outgoing::new(&custom_id, &self.endpoint, self.model(item), &item.body), body);
        if encoded.is_err() {
            body.truncate(start);
        }
        encoded
    }

    /// The item that was encoded last has found room.
    pub(crate) fn took(&mut self) {
        self.first = false;
    }

    pub(crate) fn close(&self) -> &'static str {
        self.frame.close
    }
}

/// The body of a request that is frozen, read from the file as it is sent.
pub(crate) struct BodyReader<'a> {
    pub(crate) provider: &'a dyn Provider,
    pub(crate) reader: &'a Reader,
    pub(crate) request: BatchRequestId,
    encoder: Encoder,
    after: BatchItemId,
    buffer: Vec<u8>,
    at: usize,
    closed: bool,
    hash: Sha256,
    /// What the hash must come to: what was frozen is sent, or nothing.
    frozen: Vec<u8>,
    changed: bool,
}

impl<'a> BodyReader<'a> {
    pub(crate) fn new(
        provider: &'a dyn Provider,
        reader: &'a Reader,
        request: BatchRequestId,
        encoder: Encoder,
        frozen: Vec<u8>,
    ) -> Self {
        let (buffer, after) = (Vec::new(), BatchItemId::from_raw(0));
        let (at, closed, changed, hash) = (0, false, false, Sha256::new());
        Self { provider, reader, request, encoder, after, buffer, at, closed, hash, frozen, changed }
    }

    /// Whether it turned out not to be what was frozen, so that it was not read to its end.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    fn fill(&mut self) -> std::io::Result<()> {
        self.buffer.clear();
        self.at = 0;
        if self.closed {
            return Ok(());
        }
        let (request, after) = (self.request, self.after);
        let items = self
            .reader
            .snapshot("cannot read the items", |conn| plan::bound(conn, request, after, CHUNK))
            .map_err(std::io::Error::other)?;
        for item in &items {
            if let Err(rule) = self.encoder.encode(self.provider, item, item.sends, &mut self.buffer) {
                self.buffer.clear();
                self.changed = true;
                let error = format!("an item that could be encoded cannot be any more: {rule}");
                return Err(std::io::Error::other(error));
            }
            self.encoder.took();
            self.after = item.id;
        }
        if items.is_empty() {
            self.closed = true;
            self.buffer.extend_from_slice(self.encoder.close().as_bytes());
        }
        self.hash.update(&self.buffer);
        if self.closed && self.hash.finalize_reset()[..] != self.frozen[..] {
            self.buffer.clear();
            self.changed = true;
            return Err(std::io::Error::other("the body is not the one that was frozen"));
        }
        Ok(())
    }
}

impl Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.buffer.len() {
            self.fill()?;
        }
        let count = into.len().min(self.buffer.len() - self.at);
        into[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// The items of a request that have no result, for a provider that runs them here. There are no more as soon as no more are
/// wanted: what is under way then comes to its end and counts.
pub(crate) struct OpenItems<'a> {
    ctx: &'a Context,
    batch: JobId,
    request: BatchRequestId,
    encoder: Encoder,
    after: BatchItemId,
    ready: VecDeque<OwnedOutgoing>,
    is_read: bool,
    looked_at: Option<Duration>,
    /// Set when no more are wanted: their batch is cancelled, or the rest could not be read.
    over: &'a AtomicBool,
    /// Why the rest could not be read, if it could not.
    failed: Option<Error>,
}

impl<'a> OpenItems<'a> {
    pub(crate) fn new(ctx: &'a Context, row: &RequestRow, encoder: Encoder, over: &'a AtomicBool) -> Self {
        Self {
            ctx,
            batch: row.batch,
            request: row.id,
            encoder,
            after: BatchItemId::from_raw(0),
            ready: VecDeque::new(),
            is_read: false,
            looked_at: None,
            over,
            failed: None,
        }
    }

    /// # Errors
    /// The rest of the items could not be read.
    pub(crate) fn end(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)
    }

    fn try_next(&mut self) -> Result<Option<OwnedOutgoing>> {
        self.look()?;
        if self.over.load(Ordering::Relaxed) || self.ctx.is_shutting_down() {
            return Ok(None);
        }
        if self.ready.is_empty() && !self.is_read {
            self.read()?;
        }
        Ok(self.ready.pop_front())
    }

    /// Looks whether their batch is cancelled, if that was not done a moment ago.
    fn look(&mut self) -> Result<()> {
        let now = self.ctx.client().desk().clock().monotonic();
        if self.looked_at.is_none_or(|looked_at| now.saturating_sub(looked_at) >= LOOK_EVERY) {
            let batch = self.batch;
            let open =
                self.ctx.client().reader().snapshot("cannot read the batch", |conn| is_batch_open(conn, batch))?;
            self.over.fetch_or(!open, Ordering::Relaxed);
            self.looked_at = Some(now);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let (request, after) = (self.request, self.after);
        let reader = self.ctx.client().reader();
        let items = reader.snapshot("cannot read the items", |conn| plan::bound(conn, request, after, CHUNK))?;
        self.is_read = items.is_empty();
        for item in items {
            self.after = item.id;
            let model = self.encoder.model(&item).to_owned();
            self.ready.push_back(OwnedOutgoing {
                custom_id: self.encoder.mark(&item, item.sends).custom_id(),
                endpoint: self.encoder.endpoint.clone(),
                model,
                body: item.body,
            });
        }
        Ok(())
    }
}

impl Todo for OpenItems<'_> {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        self.try_next().unwrap_or_else(|error| {
            self.over.store(true, Ordering::Relaxed);
            self.failed = Some(error);
            None
        })
    }
}

/// Nothing to do.
pub(crate) struct NoItems;

impl Todo for NoItems {
    fn next(&mut self) -> Option<OwnedOutgoing> {
        None
    }
}
