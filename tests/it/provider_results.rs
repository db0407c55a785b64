//! How results are read from a provider: in any order, form and size, and what each of them says.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use jobmill::provider::{
    Body, CallClass, Create, Fate, Finish, ItemError, ItemOutcome, Outgoing, Provider, Quirks, RemoteEnd, RemoteState,
    ResultLine, Usage,
};
use serde_json::json;

use crate::support::another::{Another, CHILD};
use crate::support::http::Server;
use crate::support::provider::{None_, SHAPES, create, ended, openai, raw, results, start};
use crate::support::provider_server::KEY;
use crate::support::provider_server::script::{Fault, Framing, Outcome, Route, Shape};

#[test]
fn results_on_another_host_are_not_asked_for() {
    let (server, provider) = start(Shape::Anthropic);
    let batch = ended(&server, &*provider, 2);
    let trap = Server::answering(200);
    let port = server.http().address.port();
    for url in [
        trap.url("/v1/messages/batches/x/results"),
        format!("//{}/x", trap.address),
        format!("http://127.0.0.1:{port}@{}/x", trap.address),
        format!("https://127.0.0.1:{port}/x"),
        format!("http://localhost:{port}/x"),
    ] {
        server.state().results_url = Some(url.clone());
        let batch = provider.poll(&batch.id).expect("a batch");
        let asked = server.asked(Route::Results);
        let (lines, end) = results(&*provider, &batch);
        let error = end.expect_err(&url);
        assert_eq!((lines.len(), error.fate, server.asked(Route::Results)), (0, Fate::NotSent, asked), "{url}");
        assert!(!error.message.contains("127.0.0.1"), "{error}");
    }
    trap.is_untouched();
    for url in [server.http().url(&format!("/v1/x/../messages/batches/{}/results", batch.id)), "/nowhere".to_owned()] {
        server.state().results_url = Some(url.clone());
        let batch = provider.poll(&batch.id).expect("a batch");
        let (lines, end) = results(&*provider, &batch);
        assert_eq!((lines.len(), end.is_ok()), if url == "/nowhere" { (0, false) } else { (2, true) }, "{url}");
    }
}

#[test]
fn results_that_are_not_kept_any_more_are_not_found() {
    let (server, provider) = start(Shape::Anthropic);
    let mut batch = ended(&server, &*provider, 1);
    let told = |archived: serde_json::Value| {
        json!({"id": batch.id, "processing_status": "ended", "results_url": null, "archived_at": archived}).to_string()
    };
    batch.raw = told(json!(null));
    // It is asked once more, for what is known may be older than the end.
    assert_eq!(results(&*provider, &batch), (vec!["k-0 good".to_owned()], Ok(())));
    server.fault(Route::Poll, Fault::Answer(200, Vec::new(), told(json!("2026-01-31T00:00:00Z"))));
    assert_eq!(results(&*provider, &batch).1.expect_err("gone").class, CallClass::NotFound);
    server.fault(Route::Poll, Fault::Answer(200, Vec::new(), told(json!(null))));
    assert_eq!(results(&*provider, &batch).1.expect_err("no address").class, CallClass::Server);
}

/// A batch whose file of errors was there before the other lost what had succeeded, and it was paid again.
#[test]
fn results_that_succeeded_and_whose_file_is_not_named_yet_are_not_missing() {
    let (server, provider) = start(Shape::OpenAi);
    server.decide(|item| match item.custom_id.as_str() {
        "k-0" => Outcome::Fail(400, "c".to_owned(), "m".to_owned()),
        _ => Outcome::Say("x".to_owned()),
    });
    let mut batch = ended(&server, &*provider, 2);
    let whole: serde_json::Value = serde_json::from_str(&batch.raw).expect("JSON");
    let mut half = whole.clone();
    half["output_file_id"] = json!(null);
    assert!(half["error_file_id"].is_string(), "{half}");
    batch.raw = half.to_string();
    let mut all = results(&*provider, &batch);
    all.0.sort();
    assert_eq!(all, (vec!["k-0 Invalid".to_owned(), "k-1 good".to_owned()], Ok(())), "it is asked once more");
    server.fault(Route::Poll, Fault::Answer(200, Vec::new(), half.to_string()));
    let (lines, end) = results(&*provider, &batch);
    assert_eq!((lines, end.expect_err("a half").class), (vec!["k-0 Invalid".to_owned()], CallClass::Server));
}

#[test]
fn results_come_in_any_order_and_form() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let batch = ended(&server, &*provider, 3);
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        let all = ["k-0 good", "k-1 good", "k-2 good"];
        assert_eq!(results(&*provider, &batch), (all.map(str::to_owned).to_vec(), Ok(())));

        // Backwards, the last line without an end.
        server.arrange(|mut lines| {
            lines.reverse();
            lines.join("\n").into_bytes()
        });
        let (lines, end) = results(&*provider, &batch);
        assert_eq!((lines, end), (vec!["k-2 good".to_owned(), "k-1 good".to_owned(), "k-0 good".to_owned()], Ok(())));

        // One twice, one missing, one that nobody sent, blank lines and a broken one.
        server.arrange(|lines| {
            let stray = lines[0].replace("k-0", "stray");
            format!("\n{0}\r\n\n{0}\n  \n{{\"custom_id\":\n{stray}\n{1}\n", lines[0], lines[1]).into_bytes()
        });
        let (lines, end) = results(&*provider, &batch);
        let expected = ["(the line is not JSON)", "k-0 good", "k-0 good", "k-1 good", "stray good"];
        assert_eq!((sorted(lines), end), (expected.map(str::to_owned).to_vec(), Ok(())), "{shape:?}");

        server.arrange(|lines| lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().into());
        for framing in [Framing::Chunked, Framing::Length, Framing::Close] {
            for (packs, kind) in
                [(false, None), (true, None), (true, Some("application/binary")), (false, Some("text/html"))]
            {
                {
                    let mut state = server.state();
                    (state.framing, state.packs, state.content_type) = (framing, packs, kind);
                }
                let found = results(&*provider, &batch);
                assert_eq!(found, (all.map(str::to_owned).to_vec(), Ok(())), "{shape:?} {framing:?} {packs}");
            }
        }
    }
}

#[test]
fn results_that_are_cut_off_are_an_error_and_not_the_end() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        let batch = ended(&server, &*provider, 3);
        for framing in [Framing::NoLastChunk, Framing::ShortLength] {
            for packs in [false, true] {
                {
                    let mut state = server.state();
                    (state.framing, state.packs) = (framing, packs);
                }
                let error = results(&*provider, &batch).1.expect_err("cut off");
                assert_eq!(error.class, CallClass::Transport, "{shape:?} {framing:?} {packs}: {error:?}");
            }
        }
        server.state().packs = false;
        // Within a line.
        server.arrange(|lines| {
            let text = lines.join("\n");
            text.as_bytes()[..text.len() - 9].to_vec()
        });
        for framing in [Framing::Chunked, Framing::Length, Framing::Close] {
            server.state().framing = framing;
            let (lines, end) = results(&*provider, &batch);
            assert_eq!((lines.len(), end.expect_err("torn").class), (2, CallClass::Transport), "{shape:?} {framing:?}");
        }
        // Between two lines, where nothing but the count tells it.
        server.arrange(|lines| (lines[..2].join("\n") + "\n").into_bytes());
        let (lines, end) = results(&*provider, &batch);
        assert_eq!((lines.len(), end.expect_err("cut").class), (2, CallClass::Transport), "{shape:?}");
        // An answer that says where it ends may hold fewer lines.
        server.state().framing = Framing::Length;
        assert_eq!(results(&*provider, &batch).1, Ok(()));
    }
}

#[test]
fn what_ends_lines_in_texts_ends_none_in_results() {
    let nasty = "a\u{2028}b\u{2029}c\u{85}d\u{b}\u{c}e";
    for shape in SHAPES {
        let (server, provider) = start(shape);
        server.decide(move |_| Outcome::Say(nasty.to_owned()));
        let batch = ended(&server, &*provider, 2);
        let mut replies = Vec::new();
        let end = provider.results(&batch, &mut None_, &mut |line| {
            if let ResultLine::Result { outcome: ItemOutcome::Succeeded { reply, .. }, .. } = line {
                let said: serde_json::Value = serde_json::from_str(reply.get()).expect("JSON");
                let text = said.pointer("/content/0/text").or(said.pointer("/choices/0/message/content"));
                replies.push(text.and_then(|text| text.as_str()).expect("a text").to_owned());
            }
            ControlFlow::Continue(())
        });
        assert_eq!((end, replies), (Ok(()), vec![nasty.to_owned(); 2]), "{shape:?}");
    }
}

#[test]
fn a_line_of_64_mb_is_read_and_a_longer_one_is_passed_over() {
    let (server, provider) = start(Shape::Anthropic);
    let batch = ended(&server, &*provider, 1);
    server.stream(|out| {
        let piece = "x".repeat(1 << 20);
        let mut line = |id: &str, mb: usize| {
            let head = r#","result":{"type":"succeeded","message":{"stop_reason":"end_turn","content":[{"text":""#;
            write!(out, "{{\"custom_id\":\"{id}\"{head}")?;
            for _ in 0..mb {
                out.write_all(piece.as_bytes())?;
            }
            out.write_all(b"\"}]}}}\n")
        };
        line("long", 63)?;
        line("too-long", 65)?;
        line("short", 0)
    });
    let (lines, end) = results(&*provider, &batch);
    let expected = ["long good", "(the line is longer than a line may be)", "short good"].map(str::to_owned);
    assert_eq!((lines, end), (expected.to_vec(), Ok(())));
}

/// The most memory that this process has ever had, in KiB, where the system tells.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[test]
fn results_of_any_size_need_little_memory() {
    if std::env::var_os(CHILD).is_none() {
        // Alone in a process, for the memory of other tests would count.
        let name = "provider_results::results_of_any_size_need_little_memory";
        return Another::start(name, Path::new("nothing")).end();
    }
    let (server, provider) = start(Shape::Anthropic);
    let batch = ended(&server, &*provider, 1);
    let before = peak_kib();
    const LINES: usize = 10_000;
    server.stream(|out| {
        let text = "0123456789abcdef".repeat(1280);
        for number in 0..LINES {
            let head = r#","result":{"type":"succeeded","message":{"stop_reason":"end_turn","content":[{"text":""#;
            writeln!(out, "{{\"custom_id\":\"{number}\"{head}{text}\"}}]}}}}}}")?;
        }
        Ok(())
    });
    let (mut count, mut bytes) = (0, 0);
    let end = provider.results(&batch, &mut None_, &mut |line| {
        if let ResultLine::Result { raw, .. } = line {
            count += 1;
            bytes += raw.len();
        }
        ControlFlow::Continue(())
    });
    assert_eq!((end, count), (Ok(()), LINES));
    assert!(bytes > 200_000_000);
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        assert!(after - before < 16 << 10, "{before} KiB before, {after} KiB at most");
    }
}

#[test]
fn a_sink_that_wants_no_more_gets_no_more() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        server.decide(|item| match item.custom_id.as_str() {
            "k-1" => Outcome::Fail(400, "invalid_request_error".to_owned(), "m".to_owned()),
            _ => Outcome::Say("x".to_owned()),
        });
        let batch = ended(&server, &*provider, 3);
        let mut count = 0;
        let end = provider.results(&batch, &mut None_, &mut |_| {
            count += 1;
            ControlFlow::Break(())
        });
        assert_eq!((end, count), (Ok(()), 1), "{shape:?}");
    }
}

#[test]
fn each_outcome_of_a_request_is_told() {
    for shape in SHAPES {
        let (server, provider) = start(shape);
        server.decide(|item| match item.custom_id.as_str() {
            "k-0" => Outcome::Say("x".to_owned()),
            "k-1" => Outcome::Fail(400, "invalid_request_error".to_owned(), format!("m {KEY}")),
            "k-2" => Outcome::Expire,
            "k-3" => Outcome::Cancel,
            _ => Outcome::Nothing,
        });
        let batch = ended(&server, &*provider, 5);
        assert_eq!(batch.state, RemoteState::Ended(RemoteEnd::Expired));
        let mut found = BTreeMap::new();
        let end = provider.results(&batch, &mut None_, &mut |line| {
            if let ResultLine::Result { custom_id, outcome, raw } = line {
                assert!(raw.starts_with('{') && raw.contains(custom_id));
                found.insert(custom_id.to_owned(), outcome);
            }
            ControlFlow::Continue(())
        });
        assert_eq!((end, found.len()), (Ok(()), 4));
        assert!(
            matches!(&found["k-0"], ItemOutcome::Succeeded { finish: Finish::Stop, usage, .. } if *usage == Usage::of(10, 5))
        );
        assert!(matches!(
            &found["k-1"],
            ItemOutcome::Errored { class: ItemError::Invalid, message, .. } if message == "m [redacted]"
        ));
        assert!(matches!(found["k-2"], ItemOutcome::Expired));
        assert!(matches!(found["k-3"], ItemOutcome::Cancelled));
    }
}

#[test]
fn both_files_of_results_are_read_however_a_batch_ended() {
    let (server, provider) = start(Shape::OpenAi);
    for (status, end) in [
        ("completed", RemoteEnd::Completed),
        ("expired", RemoteEnd::Expired),
        ("cancelled", RemoteEnd::Cancelled),
        ("Completed", RemoteEnd::Completed),
    ] {
        server.decide(|item| match item.custom_id.as_str() {
            "k-0" => Outcome::Say("x".to_owned()),
            _ => Outcome::Fail(500, "server_error".to_owned(), "m".to_owned()),
        });
        let batch = create(&*provider, "k", 2);
        server.end(&batch.id);
        let completed = provider.poll(&batch.id).expect("a batch");
        server.set_status(&batch.id, status);
        let polled = provider.poll(&batch.id).expect("a batch");
        assert_eq!(polled.state, RemoteState::Ended(end), "{status}");
        // What is known may name no files: older than the end, or from a list.
        let known = if status == "Completed" { completed } else { polled };
        assert_eq!(results(&*provider, &known), (vec!["k-0 good".to_owned(), "k-1 Server".to_owned()], Ok(())));
        let mut known = known;
        known.raw = "{}".to_owned();
        if status != "Completed" {
            assert_eq!(results(&*provider, &known).0.len(), 2, "{status}");
        }
    }
    // Completed, and all of it failed.
    server.decide(|_| Outcome::Fail(400, "invalid_value".to_owned(), "m".to_owned()));
    let batch = ended(&server, &*provider, 2);
    assert!(batch.raw.contains("\"output_file_id\":null"));
    assert_eq!(results(&*provider, &batch), (vec!["k-0 Invalid".to_owned(), "k-1 Invalid".to_owned()], Ok(())));
    // One of the two files cannot be had: that is an error, not the end.
    server.fault(Route::Results, Fault::status(500));
    assert!(results(&*provider, &batch).1.is_err());
    // What the other holds is not lost with the one that is not kept any more.
    server.decide(|item| match item.custom_id.as_str() {
        "k-0" => Outcome::Say("x".to_owned()),
        _ => Outcome::Fail(400, "invalid_value".to_owned(), "m".to_owned()),
    });
    let batch = ended(&server, &*provider, 2);
    server.fault(Route::Results, Fault::status(404));
    let (told, end) = results(&*provider, &batch);
    assert_eq!((told, end.is_err()), (vec!["k-1 Invalid".to_owned()], true));
}

#[test]
fn each_endpoint_has_its_usage() {
    let (server, provider) = start(Shape::OpenAi);
    for (endpoint, usage) in [
        ("/v1/chat/completions", Usage::of(10, 5)),
        ("/v1/responses", Usage::of(10, 5)),
        ("/v1/embeddings", {
            let mut usage = Usage::default();
            usage.input = Some(10);
            usage
        }),
    ] {
        for as_text in [false, true] {
            server.state().bodies_as_text = as_text;
            let mut bytes = Vec::new();
            let request = raw(r#"{"input":"hello"}"#);
            provider.encode(&Outgoing::new("a", endpoint, "m", &request), &mut bytes).expect("a good request");
            let (length, mut reader) = (bytes.len() as u64, &bytes[..]);
            let file = provider.upload("k.jsonl", Body { length, reader: &mut reader }).expect("a file");
            let batch = provider.create(Create::with_file("k", endpoint, 1, &file)).expect("a batch");
            server.end(&batch.id);
            let batch = provider.poll(&batch.id).expect("a batch");
            let mut found = None;
            let end = provider.results(&batch, &mut None_, &mut |line| {
                if let ResultLine::Result { outcome: ItemOutcome::Succeeded { finish, usage, .. }, .. } = line {
                    found = Some((finish, usage));
                }
                ControlFlow::Continue(())
            });
            assert_eq!((end, found), (Ok(()), Some((Finish::Stop, usage))), "{endpoint} {as_text}");
        }
    }
    let request = raw("{}");
    let error = provider.encode(&Outgoing::new("a", "chat", "m", &request), &mut Vec::new());
    // Any endpoint is good for a server that nothing is known of.
    assert!(error.is_ok());
    let known = openai(server.url()).quirks(Quirks::groq()).build().expect("good settings");
    let error = known.encode(&Outgoing::new("a", "/v1/responses", "m", &request), &mut Vec::new());
    assert_eq!(error, Err("endpoint: must be one of /v1/chat/completions".to_owned()));
}
