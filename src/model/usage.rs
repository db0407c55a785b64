//! What a model's answer used up, and what that costs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Tokens that a request used up, as its provider counted them. What the provider did not tell is `None`, never 0.
///
/// The meanings are the same whoever counted: the input includes what was read from and written to a cache, the output
/// includes reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// All tokens of the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<u64>,
    /// Of these, read from a cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<u64>,
    /// Of these, written to a cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
    /// All tokens of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<u64>,
    /// Of these, spent on reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<u64>,
}

impl Usage {
    /// So many tokens of input and of output.
    pub fn of(input: u64, output: u64) -> Self {
        Self { input: Some(input), output: Some(output), ..Self::default() }
    }

    /// Sets how many tokens of the input were read from a cache and written to one.
    pub fn cached(mut self, read: Option<u64>, write: Option<u64>) -> Self {
        (self.cache_read, self.cache_write) = (read, write);
        self
    }

    /// Sets how many tokens of the output were spent on reasoning.
    pub fn reasoning(mut self, tokens: Option<u64>) -> Self {
        self.reasoning = tokens;
        self
    }

    /// Whether the provider told nothing.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another request used up. What is known of one only is taken from it.
    pub fn add(&mut self, other: &Self) {
        let sum = |mine: &mut Option<u64>, more: Option<u64>| {
            if let Some(more) = more {
                *mine = Some(mine.unwrap_or(0).saturating_add(more));
            }
        };
        sum(&mut self.input, other.input);
        sum(&mut self.cache_read, other.cache_read);
        sum(&mut self.cache_write, other.cache_write);
        sum(&mut self.output, other.output);
        sum(&mut self.reasoning, other.reasoning);
    }
}

/// What a model costs, in a currency's units for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Price {
    /// Input that no cache knew.
    pub input: f64,
    /// Output.
    pub output: f64,
    /// Input that was read from a cache. Defaults to the price of input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<f64>,
    /// Input that was written to a cache. Defaults to the price of input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<f64>,
    /// What a batch pays of all that. Defaults to 0.5.
    #[serde(default = "half")]
    pub batch_factor: f64,
}

fn half() -> f64 {
    0.5
}

impl Price {
    /// So much for a million tokens of input and of output, half of it in a batch.
    pub fn new(input: f64, output: f64) -> Self {
        Self { input, output, cache_read: None, cache_write: None, batch_factor: half() }
    }

    /// Sets what a million tokens cost that are read from a cache.
    pub fn cache_read(mut self, price: f64) -> Self {
        self.cache_read = Some(price);
        self
    }

    /// Sets what a million tokens cost that are written to a cache.
    pub fn cache_write(mut self, price: f64) -> Self {
        self.cache_write = Some(price);
        self
    }

    /// Sets what a batch pays of the price, from 0 to 1. Defaults to 0.5.
    pub fn batch_factor(mut self, factor: f64) -> Self {
        self.batch_factor = factor;
        self
    }

    fn check(&self, model: &str) -> Result<()> {
        let field = |name: &str| format!("prices.models[{model:?}].{name}");
        for (name, price) in [
            ("input", Some(self.input)),
            ("output", Some(self.output)),
            ("cache_read", self.cache_read),
            ("cache_write", self.cache_write),
        ] {
            if price.is_some_and(|price| !(0.0..=1e6).contains(&price)) {
                return Err(Error::invalid(&field(name), "must be from 0 to 1000000 for a million tokens"));
            }
        }
        if !(0.0..=1.0).contains(&self.batch_factor) {
            return Err(Error::invalid(&field("batch_factor"), "must be from 0 to 1"));
        }
        Ok(())
    }

    /// What a request of a batch costs, in billionths of the currency's unit. `None` if the provider did not count.
    fn nanos(&self, usage: &Usage) -> Option<i64> {
        let (input, output) = (usage.input?, usage.output.unwrap_or(0));
        let (read, write) = (usage.cache_read.unwrap_or(0), usage.cache_write.unwrap_or(0));
        let plain = input.saturating_sub(read.saturating_add(write));
        // A price for a million tokens is a thousandth of that in billionths for one.
        let sum = plain as f64 * self.input
            + read as f64 * self.cache_read.unwrap_or(self.input)
            + write as f64 * self.cache_write.unwrap_or(self.input)
            + output as f64 * self.output;
        Some((sum * self.batch_factor * 1000.0).round() as i64)
    }
}

/// What models cost: the user's own table, for no answer of a provider tells it. It has a version, which is kept with
/// each cost that was reckoned by it.
///
/// A model that stands not in it has an unknown cost: never 0, never a guess. A name ending in `*` stands for every model
/// that begins so; the longest that fits counts.
///
/// As JSON it is an object with `version`, `currency` and `models`, each model's name with its [`Price`]. Names of fields
/// that are unknown are refused, for they may be misspelt.
///
/// ```
/// use jobmill::{Price, PriceTable, Usage};
///
/// let prices = PriceTable::new("2026-11", "USD").model("small-*", Price::new(1.0, 5.0));
/// // 3 mills for a thousand tokens of each, halved.
/// assert_eq!(prices.cost_nanos("small-2", &Usage::of(1000, 1000)), Some(3_000_000));
/// assert_eq!(prices.cost_nanos("large", &Usage::of(1000, 1000)), None);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    version: String,
    currency: String,
    models: BTreeMap<String, Price>,
}

impl PriceTable {
    /// An empty table of this version, whose prices are in this currency.
    pub fn new(version: impl Into<String>, currency: impl Into<String>) -> Self {
        Self { version: version.into(), currency: currency.into(), models: BTreeMap::new() }
    }

    /// Sets what a model costs.
    pub fn model(mut self, name: impl Into<String>, price: Price) -> Self {
        self.models.insert(name.into(), price);
        self
    }

    /// The table's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The currency of its prices.
    pub fn currency(&self) -> &str {
        &self.currency
    }

    /// What a model costs, if the table knows it.
    pub fn price(&self, model: &str) -> Option<&Price> {
        let fits = |name: &str| name.strip_suffix('*').is_some_and(|start| model.starts_with(start));
        let widest = || self.models.iter().filter(|(name, _)| fits(name)).max_by_key(|(name, _)| name.len());
        self.models.get(model).or_else(|| widest().map(|(_, price)| price))
    }

    /// What a request of a batch costs, in billionths of the currency's unit. `None` if the table does not know the model
    /// or the provider did not count.
    pub fn cost_nanos(&self, model: &str, usage: &Usage) -> Option<i64> {
        self.price(model)?.nanos(usage)
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (field, text) in [("prices.version", &self.version), ("prices.currency", &self.currency)] {
            if text.is_empty() || text.len() > 64 {
                return Err(Error::invalid(field, "must have 1 to 64 bytes"));
            }
        }
        self.models.iter().try_for_each(|(model, price)| price.check(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_are_part_of_the_input_and_have_their_own_price() {
        let price = Price::new(3.0, 15.0).cache_read(0.3).cache_write(3.75).batch_factor(1.0);
        let usage = Usage::of(1_000_000, 100_000).cached(Some(600_000), Some(100_000));
        // 0.3 M plain, 0.6 M read, 0.1 M written, 0.1 M out.
        assert_eq!(price.nanos(&usage), Some(900_000_000 + 180_000_000 + 375_000_000 + 1_500_000_000));
        assert_eq!(price.batch_factor(0.5).nanos(&usage), Some(2_955_000_000 / 2));
    }

    #[test]
    fn what_was_not_counted_has_no_cost() {
        let price = Price::new(1.0, 1.0);
        assert_eq!(price.nanos(&Usage::default()), None);
        assert_eq!(price.nanos(&Usage { input: Some(2), ..Usage::default() }), Some(1000));
        // A provider that counts more cached tokens than tokens does not make the cost negative.
        assert_eq!(price.nanos(&Usage::of(1, 0).cached(Some(2), None)), Some(1000));
    }

    #[test]
    fn the_longest_name_that_fits_counts() {
        let table = PriceTable::new("1", "USD")
            .model("m-*", Price::new(1.0, 1.0))
            .model("m-large-*", Price::new(2.0, 2.0))
            .model("m-large-1", Price::new(3.0, 3.0));
        let input = |model| table.price(model).map(|price| price.input);
        assert_eq!(["m-x", "m-large-2", "m-large-1", "n"].map(input), [Some(1.0), Some(2.0), Some(3.0), None]);
    }

    #[test]
    fn bad_prices_are_refused() {
        let check = |price| PriceTable::new("1", "USD").model("m", price).check().is_ok();
        assert!(check(Price::new(0.0, 1e6)));
        for price in
            [Price::new(-1.0, 0.0), Price::new(f64::NAN, 0.0), Price::new(0.0, 1e7), Price::new(f64::INFINITY, 1.0)]
        {
            assert!(!check(price), "{price:?}");
        }
        let error =
            PriceTable::new("1", "USD").model("m-*", Price::new(1.0, 1.0).cache_read(-1.0)).check().unwrap_err();
        assert!(error.to_string().starts_with("prices.models[\"m-*\"].cache_read: "), "{error}");
        assert!(!check(Price::new(1.0, 1.0).batch_factor(1.5)));
        assert!(PriceTable::new("", "USD").check().is_err());
    }

    #[test]
    fn a_table_is_read_from_json_and_what_is_misspelt_is_refused() {
        let read = |models: &str| {
            let text = format!(r#"{{ "version": "1", "currency": "USD", "models": {models} }}"#);
            serde_json::from_str::<PriceTable>(&text).map_err(|error| error.to_string())
        };
        let table = PriceTable::new("1", "USD").model("m", Price::new(1.0, 2.0).cache_read(0.1));
        assert_eq!(read(r#"{ "m": { "input": 1, "output": 2, "cache_read": 0.1 } }"#), Ok(table));
        let error = read(r#"{ "m": { "input": 1, "output": 2, "cache_raed": 0.1 } }"#).unwrap_err();
        assert!(error.contains("cache_raed"), "{error}");
        assert!(read(r#"{}, "modles": {}"#).is_err());
    }

    #[test]
    fn sums_keep_what_is_unknown_apart_from_nothing() {
        let mut sum = Usage::default();
        sum.add(&Usage::of(1, 2));
        sum.add(&Usage { cache_read: Some(4), ..Usage::default() });
        assert_eq!(sum, Usage::of(1, 2).cached(Some(4), None));
    }
}
