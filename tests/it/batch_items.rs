//! Lists of a batch's items.

use jobmill::provider::ItemError;
use jobmill::{ErrorKind, ItemQuery, Order, Status};
use serde_json::json;

use crate::support::fake::{errored, succeeded};
use crate::support::scene::Scene;
use crate::support::tamper;

#[test]
fn items_are_listed_by_status_and_cursor() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items_in_flight = Some(4);
    let id = t.send(10);
    let keys = |query: ItemQuery| -> Vec<String> {
        let page = t.client().batch_items(id, &query).expect("a page");
        page.items.into_iter().map(|item| item.key).collect()
    };
    assert_eq!(keys(ItemQuery::new().statuses([Status::Running])).len(), 4);
    assert_eq!(keys(ItemQuery::new().statuses([Status::Created])).len(), 6);
    let page = t.client().batch_items(id, &ItemQuery::new().limit(3))?;
    assert_eq!(page.next, Some(ItemQuery::new().limit(3).after(page.items[2].id)));
    assert_eq!(keys(page.next.expect("a next page")), ["key-3", "key-4", "key-5"]);
    let wrong = ItemQuery::new().after(page.items[2].id).before(page.items[1].id);
    assert_eq!(t.client().batch_items(id, &wrong).expect_err("a refusal").kind(), ErrorKind::Invalid);
    let bound = t.client().for_user("ada")?;
    assert_eq!(bound.batch(id).expect_err("a refusal").kind(), ErrorKind::NotFound);
    Ok(())
}

/// Pages of pending items were empty, and said that nothing followed, if the first items of the batch were running.
#[test]
fn pages_of_items_hold_all_of_their_statuses_in_order_and_none_twice() -> jobmill::Result<()> {
    let t = Scene::new();
    t.fake.inside().limits.items = 2;
    t.fake.inside().limits.items_in_flight = Some(8);
    t.fake.answer(|_, body| {
        Some(if body["n"] == 3 { errored(ItemError::Invalid, "no") } else { succeeded(&json!("yes")) })
    });
    let id = t.send(20);
    t.complete(60);
    // As crashes leave requests, between one state and the next.
    tamper(
        t.client(),
        "UPDATE jobmill_batch_request SET state = 1 WHERE id = (SELECT max(id) FROM jobmill_batch_request);
         UPDATE jobmill_batch_request SET state = 0 WHERE id = (SELECT max(id) - 2 FROM jobmill_batch_request)",
    );
    let all = t.client().batch_items(id, &ItemQuery::new())?.items;
    let of = |status| all.iter().filter(|item| item.status == status).count();
    let counts = [Status::Completed, Status::Failed, Status::Running, Status::Pending, Status::Created].map(of);
    assert_eq!(counts, [7, 1, 4, 4, 4]);
    let looks: [&[Status]; 6] = [
        &[Status::Pending],
        &[Status::Running],
        &[Status::Completed, Status::Pending],
        &[Status::Pending, Status::Running],
        &[Status::Failed],
        &[Status::Created, Status::Failed, Status::Running],
    ];
    for (statuses, order) in looks.into_iter().flat_map(|look| [(look, Order::Ascending), (look, Order::Descending)]) {
        let mut expected: Vec<_> = all.iter().filter(|item| statuses.contains(&item.status)).cloned().collect();
        if order == Order::Descending {
            expected.reverse();
        }
        let mut found = Vec::new();
        let mut next = Some(ItemQuery::new().statuses(statuses.iter().copied()).order(order).limit(3));
        while let Some(query) = next {
            let page = t.client().batch_items(id, &query)?;
            assert!(!page.has_more() || page.items.len() == 3, "{query:?}");
            found.extend(page.items);
            next = page.next;
        }
        assert_eq!(found, expected, "{statuses:?} {order:?}");
    }
    Ok(())
}
