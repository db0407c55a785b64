//! What providers have in common on the wire: JSON that is read with tolerance, and pages that may never end.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::model::time::Timestamp;
use crate::provider::http::unreadable;
use crate::provider::{CallResult, Outgoing, RemoteBatch};

/// The most pages of a list that are read. Nobody has so many batches.
const MAX_PAGES: usize = 1000;

/// A count, whether it is written as a number or as a text. What is negative or no count is none.
pub(super) fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| {
            let float = number.as_f64().filter(|float| (0.0..=9e15).contains(float))?;
            Some(float as u64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A moment: seconds since the epoch, as a number or as a text, or RFC 3339.
pub(super) fn moment(value: &Value) -> Option<Timestamp> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => match text.trim().parse::<f64>() {
            Ok(seconds) => seconds,
            Err(_) => return text.trim().parse().ok(),
        },
        _ => return None,
    };
    ((0.0..=1e11).contains(&seconds) && seconds > 0.0).then(|| Timestamp::from_micros((seconds * 1e6) as i64))
}

/// A text, if it is one and says something.
pub(super) fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.trim().is_empty())
}

/// A code, which some write as a number.
pub(super) fn code(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        other => text(other).map(str::to_owned),
    }
}

/// Whether a request may bear this id at every provider.
pub(super) fn check_custom_id(id: &str) -> Result<(), String> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=64).contains(&id.len()) && id.bytes().all(is_good) {
        Ok(())
    } else {
        Err("custom_id: must be 1 to 64 letters, digits, - and _".to_owned())
    }
}

/// The fields of a request's body that providers of batches have rules for. The rest is the model's business.
#[derive(Deserialize)]
struct Fields<'b> {
    #[serde(borrow)]
    model: Option<Cow<'b, str>>,
    #[serde(borrow)]
    stream: Option<&'b RawValue>,
    #[serde(borrow)]
    background: Option<&'b RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'b RawValue>,
    #[serde(borrow)]
    speed: Option<&'b RawValue>,
}

/// What a request's body must not ask for in a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Anthropic,
    OpenAi,
}

/// Appends the body of a request on one line. It names its model: if it does not by itself, the model is put first.
///
/// # Errors
/// A rule that it breaks.
pub(super) fn push_body(item: &Outgoing<'_>, shape: Shape, to: &mut Vec<u8>) -> Result<(), String> {
    let body = item.body.get().trim();
    if !body.starts_with('{') {
        return Err("body: must be a JSON object".to_owned());
    }
    let fields: Fields<'_> = serde_json::from_str(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data if error.to_string().starts_with("duplicate field") => {
            "body: must name each field once".to_owned()
        }
        _ => "body: must be a JSON object whose model is a text".to_owned(),
    })?;
    let is = |field: Option<&RawValue>, value: &str| field.is_some_and(|field| field.get() == value);
    if is(fields.stream, "true") {
        return Err("body.stream: a batch does not stream".to_owned());
    }
    match shape {
        Shape::Anthropic if is(fields.max_tokens, "0") => {
            return Err("body.max_tokens: must be at least 1 in a batch".to_owned());
        }
        Shape::Anthropic if fields.speed.is_some_and(|speed| speed.get() != "null") => {
            return Err("body.speed: a batch has no speed".to_owned());
        }
        Shape::OpenAi if is(fields.background, "true") => {
            return Err("body.background: a batch runs in the background as it is".to_owned());
        }
        _ => {}
    }
    // A raw line break inside JSON can only stand between two of its parts, where nothing needs it.
    let one_line = |to: &mut Vec<u8>, text: &str| {
        to.extend(text.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    };
    match fields.model.as_deref() {
        Some(model) if item.model.is_empty() || model == item.model => one_line(to, body),
        Some(_) => return Err("body.model: must be the item's model".to_owned()),
        None if item.model.is_empty() => return Err("model: must be named".to_owned()),
        None => {
            let model = serde_json::to_string(item.model).map_err(|_| "model: must be a text".to_owned())?;
            let rest = body[1..].trim_start();
            let comma = if rest.starts_with('}') { "" } else { "," };
            to.extend_from_slice(format!("{{\"model\":{model}{comma}").as_bytes());
            one_line(to, rest);
        }
    }
    Ok(())
}

/// One page of a list.
pub(super) struct ListPage<T> {
    pub(super) entries: Vec<T>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<String>,
}

/// Reads a list page by page, until `enough` says so of one, there are no more, or a page holds nothing new: some servers
/// take no notice of where a page is to begin, and would give the first one for ever.
pub(super) fn pages<T>(
    mut page: impl FnMut(Option<&str>) -> CallResult<ListPage<T>>,
    id: impl Fn(&T) -> &str,
    enough: impl Fn(&[T]) -> bool,
) -> CallResult<Vec<T>> {
    let mut seen: HashSet<String> = HashSet::new();
    let mut all = Vec::new();
    let mut from = None;
    for _ in 0..MAX_PAGES {
        let ListPage { entries, next } = page(from.as_deref())?;
        let is_enough = enough(&entries);
        let before = all.len();
        all.extend(entries.into_iter().filter(|entry| seen.insert(id(entry).to_owned())));
        if is_enough || all.len() == before {
            return Ok(all);
        }
        match next {
            Some(next) if from.as_ref() != Some(&next) => from = Some(next),
            _ => return Ok(all),
        }
    }
    Err(unreadable("the list has no end"))
}

/// Whether a page, newest first, reaches back behind a moment. Only a whole page tells: the order may be another one.
pub(super) fn all_before(batches: &[RemoteBatch], since: impl Fn(&RemoteBatch) -> Timestamp) -> bool {
    batches.iter().all(|batch| batch.created_at.is_some_and(|at| at < since(batch)))
}

/// What is wrong with a line that is not what was promised, without anything of the line.
pub(super) fn problem(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => "the line is not what was promised".to_owned(),
        _ => "the line is not JSON".to_owned(),
    }
}

/// A word of the provider's, no longer than a word is.
pub(super) fn short(word: &str) -> String {
    word[..word.floor_char_boundary(64)].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    #[test]
    fn counts_and_moments_are_read_in_each_form() {
        for (value, expected) in [
            (json!(3), Some(3)),
            (json!("3"), Some(3)),
            (json!(3.0), Some(3)),
            (json!(-3), None),
            (json!(null), None),
            (json!("x"), None),
            (json!(1e300), None),
        ] {
            assert_eq!(count(&value), expected, "{value}");
        }
        let at = Some(Timestamp::from_micros(1_790_000_000_000_000));
        for (value, expected) in [
            (json!(1_790_000_000), at),
            (json!("1790000000"), at),
            (json!("2026-09-21T14:13:20+00:00"), at),
            (json!("2026-09-21T14:13:20.000000Z"), at),
            (json!(0), None),
            (json!(-1), None),
            (json!(null), None),
            (json!("soon"), None),
            (json!({}), None),
        ] {
            assert_eq!(moment(&value), expected, "{value}");
        }
    }

    #[test]
    fn a_body_is_one_line_that_names_its_model() {
        let push = |body: &str, model: &str, shape| {
            let mut to = Vec::new();
            push_body(&Outgoing::new("a", "", model, &raw(body)), shape, &mut to)
                .map(|()| String::from_utf8(to).expect("UTF-8"))
        };
        let good = [
            (r#"{"a":1}"#, "m", r#"{"model":"m","a":1}"#),
            ("{ }", "m", r#"{"model":"m"}"#),
            (
                "{\r\n  \"a\": 1,\n  \"b\": \"\\n\u{2028}\"\n}",
                "m",
                "{\"model\":\"m\",\"a\": 1,  \"b\": \"\\n\u{2028}\"}",
            ),
            (r#"{"model":"m","a":1e2}"#, "m", r#"{"model":"m","a":1e2}"#),
            (r#"{"model":"\u006d"}"#, "m", r#"{"model":"\u006d"}"#),
            (r#"{"model":"m"}"#, "", r#"{"model":"m"}"#),
            (r#"{"stream":false}"#, "a\"b", r#"{"model":"a\"b","stream":false}"#),
        ];
        for (body, model, line) in good {
            assert_eq!(push(body, model, Shape::OpenAi).as_deref(), Ok(line), "{body}");
        }
        let bad = [
            ("[]", "m", "body: must be a JSON object"),
            ("null", "m", "body: must be a JSON object"),
            (r#"{"model":3}"#, "m", "body: must be a JSON object whose model is a text"),
            (r#"{"model":"m","model":"n"}"#, "m", "body: must name each field once"),
            (r#"{"model":"n"}"#, "m", "body.model: must be the item's model"),
            (r#"{"a":1}"#, "", "model: must be named"),
            (r#"{"stream":true}"#, "m", "body.stream: a batch does not stream"),
        ];
        for (body, model, rule) in bad {
            for shape in [Shape::OpenAi, Shape::Anthropic] {
                assert_eq!(push(body, model, shape), Err(rule.to_owned()), "{body}");
            }
        }
        assert!(push(r#"{"max_tokens":0}"#, "m", Shape::OpenAi).is_ok());
        assert!(push(r#"{"max_tokens":0}"#, "m", Shape::Anthropic).is_err());
        assert!(push(r#"{"speed":"fast"}"#, "m", Shape::Anthropic).is_err());
        assert!(push(r#"{"background":true}"#, "m", Shape::OpenAi).is_err());
    }

    #[test]
    fn a_list_that_ignores_its_cursor_ends() {
        let mut asked = 0;
        let page = |_: Option<&str>| {
            asked += 1;
            Ok(ListPage { entries: vec!["a".to_owned(), "b".to_owned()], next: Some(format!("b{asked}")) })
        };
        let all = pages(page, |entry: &String| entry, |_| false);
        assert_eq!((all.expect("a list"), asked), (vec!["a".to_owned(), "b".to_owned()], 2));

        let mut number = 0;
        let endless = |_: Option<&str>| {
            number += 1;
            Ok(ListPage { entries: vec![number.to_string()], next: Some(number.to_string()) })
        };
        let error = pages(endless, |entry: &String| entry, |_| false).expect_err("no end");
        assert_eq!((&*error.message, number), ("the list has no end", MAX_PAGES));
    }
}
