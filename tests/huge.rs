//! Results of any size go through an engine in bounded memory.
//!
//! `HUGE_BYTES` says how many bytes the provider sends (200 MB unless it is set; the promise is for 1 GB).

mod support {
    //! What the provider's server is made of.

    #[path = "../it/support/http.rs"]
    pub(crate) mod http;
    #[path = "../it/support/provider_server/mod.rs"]
    pub(crate) mod provider_server;

    /// How long a test waits for what must come. Nothing is measured by it.
    pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
}

use std::process::{Command, Stdio};
use std::time::Duration;

use jobmill::provider::{Anthropic, Key};
use jobmill::{BatchItem, Batches, Clock, Engine, NewBatch, Status, SystemClock};
use serde_json::json;

use crate::support::provider_server::script::Shape;
use crate::support::provider_server::{KEY, ProviderServer};

/// Where a child finds its provider.
const URL: &str = "HUGE_URL";
/// How many bytes the provider sends.
const BYTES: &str = "HUGE_BYTES";
/// What the engine may take beyond what it takes at rest.
const ALLOWED_KIB: u64 = 64 << 10;
/// How long each answer is.
const ANSWER_BYTES: usize = 20_000;

fn items() -> usize {
    let bytes = std::env::var(BYTES).ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(200_000_000);
    // Whoever asks for one means a gigabyte.
    (if bytes == 1 { 1_000_000_000 } else { bytes }) / ANSWER_BYTES
}

/// The most memory that this process has held so far, if the system tells.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Runs as a child if it is told to: takes a batch to its end and tells what it took.
#[test]
fn as_a_child() {
    let Ok(url) = std::env::var(URL) else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let provider = Anthropic::builder(Key::fixed(KEY)).base_url(url).limits(|limits| limits.poll_min = Duration::ZERO);
    let engine = Engine::builder(directory.path().join("jobs.db"))
        .provider(provider.build().expect("a provider"))
        .batches(Batches::new())
        .start()
        .expect("an engine");
    let client = engine.client();
    let item = |n| BatchItem::new(&json!({ "model": "m", "max_tokens": 5, "n": n }));
    let id = client.submit(NewBatch::new("anthropic"), (0..items()).map(item)).expect("a batch").id();
    while client.batch_requests(id, &[], None, 1).expect("requests").iter().all(|request| request.remote_id.is_none()) {
        let _ = client.wait(id, Duration::from_millis(20));
    }
    let at_rest = peak_kib().expect("a peak");
    while client.wait(id, Duration::from_millis(500)).is_err() {
        client.poll_now().expect("a poll");
    }
    let batch = client.batch(id).expect("the batch");
    assert_eq!((batch.job.status, batch.items.completed), (Status::Completed, items() as u64));
    assert_eq!(client.write_batch_results(id, std::io::sink()).expect("results"), items() as u64);
    let peak = peak_kib().expect("a peak");
    assert!(peak - at_rest < ALLOWED_KIB, "{at_rest} KiB at rest and {peak} KiB at most");
    println!("{at_rest} KiB at rest and {peak} KiB at most");
    engine.shutdown(Duration::from_secs(30)).expect("a shutdown");
}

#[test]
fn results_of_any_size_take_little_memory() {
    if peak_kib().is_none() {
        println!("skipped: this system does not tell how much memory a process has held");
        return;
    }
    let server = ProviderServer::start(Shape::Anthropic);
    server.clock(|| SystemClock.now());
    let mut child = Command::new(std::env::current_exe().expect("this executable"));
    child.args(["--exact", "as_a_child", "--nocapture"]).env(URL, server.url()).stdin(Stdio::null());
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a child");
    server.wait_until(|state| state.batches.len() == 1);
    let ids: Vec<String> = server.last().items.into_iter().map(|item| item.custom_id).collect();
    server.stream(move |to| {
        let text = "a\u{2028}".repeat(ANSWER_BYTES / 4);
        let message = json!({
            "content": [{ "type": "text", "text": text }], "stop_reason": "end_turn",
            "usage": { "input_tokens": 10, "output_tokens": 5 },
        });
        for id in &ids {
            writeln!(to, r#"{{"custom_id":"{id}","result":{{"type":"succeeded","message":{message}}}}}"#)?;
        }
        Ok(())
    });
    server.state().ends_after_polls = Some(1);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", said.lines().find(|line| line.contains("at most")).unwrap_or_default());
}
