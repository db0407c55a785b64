//! Jobs and the application's own tables in one file: a job that comes with the order that needs it or not at all, and
//! an effect that comes with the end of its job, once.

use std::time::Duration;

use jobmill::rusqlite::{Transaction, TransactionBehavior};
use jobmill::{Client, Context, Engine, Failure, JobId, Payload};
use serde::{Deserialize, Serialize};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Serialize, Deserialize)]
struct ShipOrder {
    order: i64,
}

impl Payload for ShipOrder {
    const KIND: &'static str = "order.ship";
}

/// Records an order, and the job that ships it, in one transaction of the application's own.
fn take_order(client: &Client, item: &str, pay: impl FnOnce() -> Result<(), Error>) -> Result<JobId, Error> {
    let mut conn = client.connection()?;
    let tx = Transaction::new(&mut conn, TransactionBehavior::Immediate)?;
    tx.execute("INSERT INTO orders (item) VALUES (?1)", [item])?;
    let id = client.enqueue_in(&tx, &ShipOrder { order: tx.last_insert_rowid() })?.id();
    // If this fails, there is neither an order nor a job.
    pay()?;
    tx.commit()?;
    Ok(id)
}

/// Takes the item out of the stock in the very transaction that completes the job. Were the process killed here at any
/// moment, the job would run again, and the stock be one less only once.
fn ship_order(job: ShipOrder, ctx: &Context) -> Result<(), Failure> {
    let mut conn = ctx.client().connection()?;
    let tx = Transaction::new(&mut conn, TransactionBehavior::Immediate)?;
    tx.execute("UPDATE stock SET items = items - 1 WHERE item = (SELECT item FROM orders WHERE id = ?1)", [job.order])?;
    ctx.complete_in(&tx, &"shipped")?;
    tx.commit()?;
    Ok(())
}

fn main() -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let engine = Engine::builder(directory.path().join("shop.db")).handle(ship_order).start()?;
    let client = engine.client();
    client.write(|tx| -> Result<(), Error> {
        tx.execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL);
             CREATE TABLE stock (item TEXT PRIMARY KEY, items INTEGER NOT NULL);
             INSERT INTO stock VALUES ('lamp', 10);",
        )?;
        Ok(())
    })?;

    let refused = take_order(client, "lamp", || Err("the card is refused".into()));
    println!("an order that is not paid: {}", refused.map_or_else(|error| error.to_string(), |id| id.to_string()));
    let id = take_order(client, "lamp", || Ok(()))?;
    let job = client.wait(id, Duration::from_secs(10))?;
    println!("an order that is paid: {}", job.result::<String>()?);

    let conn = client.connection()?;
    let left: i64 = conn.query_row("SELECT items FROM stock WHERE item = 'lamp'", [], |row| row.get(0))?;
    let orders: i64 = conn.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
    let jobs = client.stats()?.total.total();
    println!("{orders} order, {jobs} job, {left} lamps left");
    assert_eq!((orders, jobs, left), (1, 1, 9));
    engine.shutdown(Duration::from_secs(30))?;
    Ok(())
}
