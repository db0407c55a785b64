//! How long a page takes, at any depth.

use jobmill::{Client, JobId, Query, Status};

use crate::floor;
use crate::report::{Report, Target, now, percentile, rounds, rows};
use crate::scale::fill_history;

/// Where pages begin: each at another depth, the same ones in every run.
pub struct Depths {
    first: i64,
    span: i64,
    state: u64,
}

impl Depths {
    pub fn new(client: &Client) -> Self {
        let end = |order| {
            let page = client.list(Query::new().order(order).limit(1)).expect("a page");
            page.jobs[0].created_at().as_micros()
        };
        let (first, last) = (end(jobmill::Order::Ascending), end(jobmill::Order::Descending));
        Self { first, span: last - first, state: 0x9E37_79B9_7F4A_7C15 }
    }

    /// An id at some depth. It need not exist.
    pub fn next(&mut self) -> JobId {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let micros = self.first + (self.state % self.span.unsigned_abs()).cast_signed();
        crockford(micros << 10).parse().expect("an id")
    }
}

fn crockford(mut value: i64) -> String {
    let mut digits = Vec::new();
    for _ in 0..13 {
        digits.push(b"0123456789abcdefghjkmnpqrstvwxyz"[(value & 31) as usize]);
        value >>= 5;
    }
    digits.reverse();
    format!("job-{}", String::from_utf8_lossy(&digits))
}

/// The 99th percentile in milliseconds of pages of 50 at random depths, after as many that are not counted.
fn p99(client: &Client, query: &Query) -> f64 {
    let mut depths = Depths::new(client);
    let mut times = Vec::new();
    for count in 0..1000 {
        let query = query.clone().before(depths.next());
        let began = now();
        let page = client.list(query).expect("a page");
        let took = began.elapsed().as_secs_f64() * 1e3;
        std::hint::black_box(page);
        if count >= 500 {
            times.push(took);
        }
    }
    percentile(&mut times, 0.99)
}

pub fn page(report: &mut Report) {
    let directory = floor::directory();
    let (large, small) = (floor::fresh(&directory, "large"), floor::fresh(&directory, "small"));
    fill_history(&large, rows(), 1000);
    // As many rare rows as fill a page at most depths.
    fill_history(&small, 10_000, 10);
    let (large, small) = (Client::open(&large).expect("a client"), Client::open(&small).expect("a client"));
    let queries = [
        ("all", Query::new()),
        ("completed (99.8 %)", Query::new().statuses([Status::Completed])),
        ("failed (0.1 %)", Query::new().statuses([Status::Failed])),
        ("failed or cancelled", Query::new().statuses([Status::Failed, Status::Cancelled])),
        ("one kind, failed", Query::new().kinds(["nothing"]).statuses([Status::Failed])),
    ];
    for (name, query) in queries {
        let mut series = Vec::new();
        for _ in 0..rounds() {
            series.push((p99(&large, &query) * 1e3, p99(&small, &query) * 1e3));
        }
        let worst = series.iter().map(|round| round.0).fold(0.0, f64::max) / 1e3;
        report.value(&format!("page of 50 of {}, {name}, worst p99", rows()), worst, "ms", Target::AtMost(2.0));
        report.ratio(&format!("the same in us against 10,000 rows, {name}"), &series, Target::AtMost(2.0));
    }
}
