//! Items that go on: their next request is checked, reckoned and put together with others as the first was.

use jobmill::{BatchItem, Batches, NewBatch, Price, PriceTable, Status, Step};
use serde_json::{Value, json};

use crate::support::scene::{Scene, batch};
use crate::support::sound;

/// A scene in which each item goes on with what its first request holds as `next`, and is done then.
fn scene(settings: Batches) -> Scene {
    Scene::of(move |builder| {
        builder.batches(settings.clone()).batch_step("next", |reply, _| {
            let before: Value = reply.request()?;
            Ok(before.get("next").map_or(Step::Done, |next| Step::request(next.clone())))
        })
    })
}

/// Submits items that go on so, and lets their first requests come back.
fn send(t: &Scene, batch: NewBatch, next: &[Value]) -> jobmill::Result<jobmill::JobId> {
    let item = |(n, next): (usize, &Value)| {
        BatchItem::new(&json!({ "model": "m", "max_tokens": 5, "next": next })).key(format!("key-{n}"))
    };
    let id = t.client().submit(batch.step("next"), next.iter().enumerate().map(item))?.id();
    t.drain()?;
    t.complete(60);
    Ok(id)
}

/// What a next request might cost was reckoned by the first.
#[test]
fn a_next_request_goes_not_beyond_the_budget() -> jobmill::Result<()> {
    let t = scene(Batches::new().prices(PriceTable::new("1", "EUR").model("m", Price::new(100.0, 200.0))));
    let next = [json!({ "model": "m", "max_tokens": 5 }), json!({ "model": "m", "max_tokens": 1_000_000 })];
    let id = send(&t, batch().budget(1.0), &next)?;
    t.complete(600);
    let items = t.batch(id).items;
    assert_eq!((items.completed, items.failed, t.sizes()), (1, 1, vec![2, 1]));
    assert_eq!(t.item(id, "key-1").error_class.as_deref(), Some("budget"));
    sound(t.client());
    Ok(())
}

/// A request that named another model than the one before it was put together with those of the old one, and paid as one.
#[test]
fn a_next_request_with_another_model_is_reckoned_by_that() -> jobmill::Result<()> {
    let prices =
        PriceTable::new("1", "EUR").model("m", Price::new(100.0, 200.0)).model("n", Price::new(1000.0, 2000.0));
    let t = scene(Batches::new().prices(prices));
    t.fake.inside().limits.one_model = true;
    let next = [json!({ "model": "m" }), json!({ "model": "n" }), json!({}), json!({ "model": "n" })];
    let id = send(&t, batch(), &next)?;
    let by_hand = BatchItem::new(&json!({ "model": "m", "next": { "model": "n" } })).model("m-large").key("by-hand");
    let other = t.client().submit(batch().step("next"), [by_hand])?.id();
    t.drain()?;
    t.complete(60);
    t.complete(600);
    t.complete(600);
    let models = |id| t.requests(id).into_iter().map(|request| (request.model, request.items)).collect::<Vec<_>>();
    let of = |model: &str, items| (Some(model.to_owned()), items);
    assert_eq!(models(id), [of("m", 4), of("m", 2), of("n", 2)]);
    assert_eq!(models(other), [of("m-large", 1), of("m-large", 1)], "what is set by hand stays");
    assert_eq!([t.status(id), t.status(other)], [Status::Completed; 2]);
    // 10 in and 5 out each, halved: 1000 millionths with the one, and 10,000 with the other.
    let costs = ["key-0", "key-1"].map(|key| t.item(id, key).cost_nanos);
    assert_eq!(costs, [Some(2_000_000), Some(11_000_000)]);
    assert_eq!(t.item(id, "key-1").model, "n");
    sound(t.client());
    Ok(())
}

#[test]
fn a_next_request_that_breaks_a_rule_fails_its_item_and_says_why() -> jobmill::Result<()> {
    let t = scene(Batches::new());
    let object = "request: must be a JSON object, whose `model` is a string if it has one";
    let next = [json!([]), json!("text"), json!({ "model": 5 }), json!({ "model": "m\n" }), json!({ "model": "m" })];
    let id = send(&t, batch(), &next)?;
    t.complete(600);
    let error = |n: usize| t.item(id, &format!("key-{n}")).error.unwrap_or_default();
    assert_eq!([error(0), error(1), error(2)], [object; 3]);
    assert!(error(3).starts_with("request.model: "), "{}", error(3));
    let items = t.batch(id).items;
    assert_eq!((items.failed, items.completed, t.sizes()), (4, 1, vec![5, 1]));
    assert_eq!(t.item(id, "key-0").error_class.as_deref(), Some("step"));
    sound(t.client());
    Ok(())
}
