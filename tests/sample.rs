//! The sample of the example `batch`, and what the example makes of it.

#[path = "../examples/batch/readability.rs"]
mod readability;

use std::collections::HashSet;

use readability::measure;
use serde::Deserialize;

const SAMPLE: &str = include_str!("../examples/batch/sample.jsonl");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    key: String,
    body: Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    model: String,
    text: String,
}

fn items() -> Vec<Item> {
    SAMPLE.lines().map(|line| serde_json::from_str(line).expect("an item")).collect()
}

#[test]
fn the_sample_has_a_thousand_items_with_keys_of_their_own_and_is_small() {
    let items = items();
    assert!(items.len() >= 1000, "{}", items.len());
    assert!(SAMPLE.len() < 400_000, "{}", SAMPLE.len());
    let keys: HashSet<&str> = items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(keys.len(), items.len());
    assert!(items.iter().all(|item| item.body.model == "readability"));
}

#[test]
fn each_passage_of_the_sample_has_scores_and_the_whole_reads_as_a_novel_does() {
    let (mut words, mut sentences, mut syllables) = (0, 0, 0);
    for item in items() {
        let measures = measure(&item.body.text);
        assert!(measures.reading_ease.is_some_and(f64::is_finite), "{}: {measures:?}", item.key);
        assert!(measures.grade.is_some_and(f64::is_finite), "{}: {measures:?}", item.key);
        assert!(measures.longest_word.is_some(), "{}: {measures:?}", item.key);
        words += measures.words;
        sentences += measures.sentences;
        syllables += measures.syllables;
    }
    let (length, weight) = (f64::from(words as u32) / sentences as f64, syllables as f64 / words as f64);
    assert!((15.0..30.0).contains(&length), "{length} words a sentence");
    assert!((1.4..1.6).contains(&weight), "{weight} syllables a word");
}
