//! Rounds, medians, ratios, and how they are printed.

use std::time::{Duration, Instant};

use jobmill::Durability;

/// Prints figures as they come.
pub struct Report {
    missed: Vec<String>,
}

/// Which way a figure is good.
#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// It is only told.
    None,
}

impl Report {
    pub fn new() -> Self {
        println!("{:<58} {:>12} {:>12} {:>8}  target", "figure", "ours", "against", "ratio");
        Self { missed: Vec::new() }
    }

    pub fn section(&mut self, name: &str) {
        println!("-- {name}");
    }

    /// Prints the medians of two series that were measured in turn, and the median of their ratios round by round.
    pub fn ratio(&mut self, name: &str, rounds: &[(f64, f64)], target: Target) {
        let ours = median(rounds.iter().map(|round| round.0));
        let against = median(rounds.iter().map(|round| round.1));
        let ratio = median(rounds.iter().map(|round| round.0 / round.1));
        self.line(name, &format!("{ours:.0}"), &format!("{against:.0}"), ratio, target);
    }

    /// Prints one value against its bound.
    pub fn value(&mut self, name: &str, value: f64, unit: &str, target: Target) {
        self.line(name, &format!("{value:.3} {unit}"), "", value, target);
    }

    fn line(&mut self, name: &str, ours: &str, against: &str, measured: f64, target: Target) {
        let (reached, word) = match target {
            Target::AtLeast(bound) => (measured >= bound, format!(">= {bound}")),
            Target::AtMost(bound) => (measured <= bound, format!("<= {bound}")),
            Target::None => (true, String::new()),
        };
        let mark = match target {
            Target::None => "",
            _ if reached => "reached",
            _ => "MISSED",
        };
        println!("{name:<58} {ours:>12} {against:>12} {measured:>8.3}  {word} {mark}");
        if !reached {
            self.missed.push(name.to_owned());
        }
    }

    pub fn close(self) {
        if self.missed.is_empty() {
            println!("every target reached");
        } else {
            println!("missed: {}", self.missed.join("; "));
        }
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

pub fn rounds() -> usize {
    std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

pub fn rows() -> usize {
    std::env::var("BENCH_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000_000)
}

pub const DURABILITIES: [(&str, Durability); 2] = [("NORMAL", Durability::Normal), ("FULL", Durability::Full)];

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
pub fn now() -> Instant {
    Instant::now()
}

/// How many of `count` things were done in a second.
pub fn rate(count: usize, work: impl FnOnce()) -> f64 {
    let began = now();
    work();
    count as f64 / began.elapsed().as_secs_f64()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark of what happens at rest must rest")]
pub fn rest(time: Duration) {
    std::thread::sleep(time);
}
