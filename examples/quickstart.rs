//! The program of the README: one kind of job, enqueued, run and awaited.

use std::time::Duration;

use jobmill::{Context, Engine, Failure, Payload};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendInvoice {
    customer: u64,
}

impl Payload for SendInvoice {
    const KIND: &'static str = "invoice.send";
}

fn send_invoice(job: SendInvoice, _ctx: &Context) -> Result<String, Failure> {
    Ok(format!("invoice sent to customer {}", job.customer))
}

fn main() -> jobmill::Result<()> {
    let path = std::env::temp_dir().join(format!("quickstart-{}.db", std::process::id()));
    let engine = Engine::builder(path).handle(send_invoice).start()?;
    let id = engine.client().enqueue(&SendInvoice { customer: 7 })?.id();
    let job = engine.client().wait(id, Duration::from_secs(10))?;
    println!("{}", job.result::<String>()?);
    engine.shutdown(Duration::from_secs(30))?;
    Ok(())
}
