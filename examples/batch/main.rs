//! Runs a file of requests as an LLM batch: by a computation on this machine, at a chat endpoint, or at a provider.
//!
//! ```text
//! cargo run --release --example batch -- [FILE.jsonl] [--provider local|anthropic|openai] [--out PATH] [--db PATH]
//! ```
//!
//! Without a provider the requests are run here, each by a real computation and no model: how easily a passage reads. It
//! needs no network and no key.

#[path = "../shared/database.rs"]
mod database;
mod readability;

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use database::{beside, lock, remove};
use indicatif::{ProgressBar, ProgressStyle};
use jobmill::provider::{Anthropic, Key, Local, LocalError, OpenAi, Outgoing};
use jobmill::{
    Batch, Batches, Client, Durability, Engine, EngineBuilder, ErrorKind, JobId, NewBatch, PriceTable, Status, Unique,
};
use readability::{Measures, measure};
use serde::Deserialize;

const USAGE: &str = "\
Runs a file of requests as an LLM batch.

Usage: batch [FILE.jsonl] [--provider NAME] [--base-url URL] [--prices FILE] [--out PATH] [--db PATH]

  FILE.jsonl        a request on each line; the paragraphs of a novel unless said otherwise
  --provider NAME   local (the default): computes here how easily each passage reads, without any model
                    anthropic: Message Batches, with the key of ANTHROPIC_API_KEY
                    openai: the Batch API, with the key of OPENAI_API_KEY
  --base-url URL    another address of that provider's interface
  --prices FILE     what models cost, as JSON, for the cost line
  --out PATH        where the results go; FILE.results.jsonl in the current directory unless said otherwise
  --db PATH         where the batch is kept while it lasts

Ctrl-C stops it. The same command goes on with it, after a kill or a power cut too, and pays for nothing twice.
";

/// How often the progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// How long a stop waits for what is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// The exit code of a program that was stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;

type Boxed = Box<dyn Error + Send + Sync>;
type Result<T, E = Boxed> = std::result::Result<T, E>;

/// The file is no batch.
#[derive(Debug)]
struct Refused(String);

impl Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the command line asks for.
struct Options {
    file: PathBuf,
    provider: String,
    base_url: Option<String>,
    prices: Option<PathBuf>,
    out: PathBuf,
    database: PathBuf,
    /// Tells this batch from others: its file, and to whom it goes.
    key: String,
}

impl Options {
    /// Whether nothing leaves this process.
    fn is_free(&self) -> bool {
        self.provider == "local" && self.base_url.is_none()
    }
}

/// A passage to be measured, as the sample's lines hold it.
#[derive(Deserialize)]
struct Passage {
    text: String,
}

fn readability(request: &Outgoing<'_>) -> Result<Measures, LocalError> {
    let passage: Passage = request.parse()?;
    Ok(measure(&passage.text))
}

fn options() -> Result<Option<Options>> {
    use lexopt::prelude::*;

    let (mut file, mut provider, mut base_url, mut prices, mut out, mut database) =
        (None, "local".to_owned(), None, None, None, None);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(path) if file.is_none() => file = Some(PathBuf::from(path)),
            Long("provider") => provider = parser.value()?.string()?,
            Long("base-url") => base_url = Some(parser.value()?.string()?),
            Long("prices") => prices = Some(PathBuf::from(parser.value()?)),
            Long("out") => out = Some(PathBuf::from(parser.value()?)),
            Long("db") => database = Some(PathBuf::from(parser.value()?)),
            Short('h') | Long("help") => return Ok(None),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let sample = || Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/batch/sample.jsonl");
    let file = file.unwrap_or_else(sample);
    let named = |error: io::Error| format!("{}: {error}", file.display());
    let mut hash = blake3::Hasher::new();
    io::copy(&mut BufReader::new(File::open(&file).map_err(named)?), &mut hash).map_err(named)?;
    let key = format!("{provider} {} {}", base_url.as_deref().unwrap_or_default(), hash.finalize().to_hex());
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{stem}.results.jsonl")));
    let kept = blake3::hash(key.as_bytes()).to_hex();
    let database = database.unwrap_or_else(|| std::env::temp_dir().join(format!("jobmill-batch-{}.db", &kept[..16])));
    Ok(Some(Options { file, provider, base_url, prices, out, database, key }))
}

/// An engine with the provider that is asked for.
fn builder(options: &Options) -> Result<EngineBuilder> {
    let mut batches = Batches::new();
    if let Some(path) = &options.prices {
        let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let prices: PriceTable = serde_json::from_slice(&text).map_err(|error| format!("--prices: {error}"))?;
        batches = batches.prices(prices);
    }
    // What a power cut undoes of a computation is computed again. What is paid must be known for certain to be sent.
    let durability = if options.is_free() { Durability::Normal } else { Durability::Full };
    with_provider(Engine::builder(&options.database).durability(durability).batches(batches), options)
}

fn with_provider(builder: EngineBuilder, options: &Options) -> Result<EngineBuilder> {
    Ok(match (&*options.provider, &options.base_url) {
        ("local", None) => builder.provider(Local::function("local", readability)),
        ("local", Some(url)) => builder.provider(Local::chat_openai(url).build()?),
        ("anthropic", url) => {
            let provider = Anthropic::builder(Key::env("ANTHROPIC_API_KEY"));
            let provider = url.iter().fold(provider, |provider, url| provider.base_url(url.as_str()));
            builder.provider(provider.build()?)
        }
        ("openai", url) => {
            let provider = OpenAi::builder(Key::env("OPENAI_API_KEY"));
            let provider = url.iter().fold(provider, |provider, url| provider.base_url(url.as_str()));
            builder.provider(provider.build()?)
        }
        (other, _) => return Err(format!("--provider: {other} is none of local, anthropic and openai").into()),
    })
}

/// Submits the file, unless it has been and the batch is still there.
fn begin(client: &Client, options: &Options) -> Result<JobId> {
    let statuses = [Status::Created, Status::Pending, Status::Running, Status::Completed, Status::Failed];
    loop {
        let unique = Unique::key(options.key.as_str()).while_in(statuses);
        let batch = NewBatch::new(options.provider.as_str()).unique(unique);
        let file = File::open(&options.file)?;
        let submitted = client.submit_jsonl(batch, BufReader::new(file)).map_err(|error| {
            let named = format!("{}: {error}", options.file.display());
            if error.kind() == ErrorKind::Invalid { Refused(named).into() } else { Boxed::from(named) }
        })?;
        let id = submitted.id();
        if submitted.is_new() {
            return Ok(id);
        }
        if client.get(id)?.status != Status::Created {
            eprintln!("Going on with a batch that was interrupted.");
            return Ok(id);
        }
        // A kill came before its last item was written, and nothing of it was sent.
        client.delete(id)?;
    }
}

/// Shows how far the batch is until it has ended. False if it was stopped before.
fn follow(client: &Client, id: JobId, stop: &Receiver<()>) -> Result<bool> {
    // It shows nothing if standard error is no terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos}/{human_len} items, {msg}")?);
    loop {
        let batch = client.batch(id)?;
        bar.set_length(batch.items.total());
        bar.set_position(batch.items.ended());
        bar.set_message(format!("{} at the provider", batch.items.sent));
        if batch.job.status.is_terminal() {
            bar.finish_and_clear();
            return Ok(true);
        }
        match stop.recv_timeout(SHOW_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                bar.finish_and_clear();
                return Ok(false);
            }
        }
    }
}

/// What was paid, in words.
fn cost(batch: &Batch, options: &Options) -> String {
    let spent = &batch.spent;
    let tokens = |tokens: Option<u64>| tokens.map_or("unknown".to_owned(), |tokens| tokens.to_string());
    if options.is_free() {
        return "cost: nothing, for it was computed here".to_owned();
    }
    let usage = format!("{} tokens in, {} out", tokens(spent.usage.input), tokens(spent.usage.output));
    match (&spent.currency, spent.unpriced) {
        (Some(currency), 0) => format!("cost: {:.4} {currency}, {usage}", spent.cost_nanos as f64 / 1e9),
        (Some(currency), unpriced) => format!(
            "cost: {:.4} {currency} and {unpriced} results of unknown cost, {usage}",
            spent.cost_nanos as f64 / 1e9
        ),
        (None, _) => format!("cost: unknown without --prices, {usage}"),
    }
}

/// Writes the results beside their place first, so that a kill leaves no half of them.
fn write(client: &Client, id: JobId, out: &Path) -> Result<u64> {
    let part = beside(out, ".part");
    let named = |error: io::Error| format!("{}: {error}", part.display());
    let file = File::create(&part).map_err(named)?;
    let count = client.write_batch_results(id, BufWriter::new(&file))?;
    file.sync_all().map_err(named)?;
    fs::rename(&part, out).map_err(|error| format!("{}: {error}", out.display()))?;
    Ok(count)
}

fn run() -> Result<ExitCode> {
    let Some(options) = options()? else {
        print!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    let (stopper, stop) = sync_channel(1);
    ctrlc::set_handler(move || {
        let _ = stopper.try_send(());
    })?;
    let builder = builder(&options)?;
    let _lock = lock(&options.database, "batch")?;
    let engine = builder.start().inspect_err(|_| drop(fs::remove_file(beside(&options.database, ".lock"))))?;
    let client = engine.client();
    let id = match begin(client, &options) {
        Ok(id) => id,
        Err(error) => {
            engine.shutdown(STOP_PATIENCE)?;
            // A file that is refused has never become a batch, so nothing is lost with the database.
            if error.downcast_ref::<Refused>().is_some() {
                remove(&options.database)?;
            }
            return Err(error);
        }
    };
    if !follow(client, id, &stop)? {
        engine.shutdown(STOP_PATIENCE)?;
        eprintln!("Stopped. The same command goes on.");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let batch = client.batch(id)?;
    let count = write(client, id, &options.out)?;
    engine.shutdown(STOP_PATIENCE)?;
    println!(
        "{count} results in {}: {} completed, {} failed, {} expired, {} cancelled",
        options.out.display(),
        batch.items.completed,
        batch.items.failed,
        batch.items.expired,
        batch.items.cancelled
    );
    println!("{}", cost(&batch, &options));
    if let Some(error) = &batch.job.error {
        println!("{error}");
    }
    remove(&options.database)?;
    Ok(if batch.job.status == Status::Completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn main() -> ExitCode {
    env_logger::init();
    run().unwrap_or_else(|error| {
        eprintln!("batch: {error}");
        ExitCode::FAILURE
    })
}
