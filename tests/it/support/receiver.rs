//! Who receives callbacks, and reads them as a receiver does.

use std::cell::Cell;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jobmill::{CallbackDelivery, Callbacks, Client, Job, JobId, Order, Query};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::http::{Connection, Request, Server};

/// A callback as it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Post {
    pub(crate) path: String,
    /// By what a repeat is known.
    pub(crate) id: String,
    pub(crate) body: Value,
    pub(crate) request: Request,
}

impl Post {
    pub(crate) fn new(request: Request) -> Self {
        let path = request.line.strip_prefix("POST ").and_then(|line| line.strip_suffix(" HTTP/1.1"));
        Self {
            path: path.expect("a POST").to_owned(),
            id: request.header("webhook-id").expect("an id").to_owned(),
            body: serde_json::from_slice(&request.body).expect("JSON"),
            request,
        }
    }

    /// Verifies it by a key in base64, as Standard Webhooks says.
    pub(crate) fn is_signed_with(&self, key: &str) -> bool {
        let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(key).expect("base64")).expect("any length");
        let part = |name| self.request.header(name).expect(name);
        mac.update([part("webhook-id"), ".", part("webhook-timestamp"), "."].concat().as_bytes());
        mac.update(&self.request.body);
        let expected = mac.finalize().into_bytes();
        part("webhook-signature").split(' ').any(|signature| {
            let signature = STANDARD.decode(signature.strip_prefix("v1,").expect("the version")).expect("base64");
            signature == expected[..]
        })
    }
}

/// A server that takes callbacks from an engine without threads, so that all that were sent have come.
pub(crate) struct Mailbox {
    pub(crate) server: Server,
    taken: Cell<usize>,
}

impl Mailbox {
    pub(crate) fn answering(status: u16) -> Self {
        Self::of(Server::answering(status))
    }

    pub(crate) fn start(serve: impl Fn(usize, &mut Connection) + Send + Sync + 'static) -> Self {
        Self::of(Server::start(serve))
    }

    fn of(server: Server) -> Self {
        Self { server, taken: Cell::new(0) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// What has come since this was last asked: so many callbacks, and no more.
    #[track_caller]
    pub(crate) fn take(&self, count: usize) -> Vec<Post> {
        assert_eq!(self.server.connections() - self.taken.get(), count, "callbacks came");
        self.taken.set(self.server.connections());
        (0..count).map(|_| Post::new(self.server.next())).collect()
    }

    /// The only one that has come since this was last asked.
    #[track_caller]
    pub(crate) fn only(&self) -> Post {
        self.take(1).remove(0)
    }

    /// All that have come since this was last asked, by path.
    #[track_caller]
    pub(crate) fn take_all(&self) -> BTreeMap<String, Vec<Post>> {
        let mut posts: BTreeMap<String, Vec<Post>> = BTreeMap::new();
        for post in self.take(self.server.connections() - self.taken.get()) {
            posts.entry(post.path.clone()).or_default().push(post);
        }
        posts
    }
}

/// Callbacks to servers of this machine.
pub(crate) fn here() -> Callbacks {
    Callbacks::new().allow_private_addresses().timeout(crate::support::PATIENCE)
}

/// What a callback is to say of a job that has just ended.
pub(crate) fn body_of(job: &Job) -> Value {
    json!({
        "job_id": job.id, "status": job.status, "completed_at": job.completed_at, "metadata": job.metadata,
    })
}

/// The only delivery of a job's callback.
#[track_caller]
pub(crate) fn only_delivery(client: &Client, id: JobId) -> CallbackDelivery {
    let mut deliveries = client.deliveries(id).expect("a job");
    assert_eq!(deliveries.len(), 1, "{deliveries:?}");
    deliveries.remove(0)
}

/// The engine's own jobs, the oldest first.
pub(crate) fn own_jobs(client: &Client) -> Vec<Job> {
    let query = Query::new().queues(["system"]).order(Order::Ascending);
    client.jobs(query).expect("a query").collect::<jobmill::Result<_>>().expect("jobs")
}
