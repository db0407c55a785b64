//! The hub: how those who asked are told what was committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::model::event::Event;

/// How many events may wait for a subscriber.
const MAX_CAPACITY: usize = 65_536;

/// A second marker and the event after it need a place each before the one that is kept for the next marker.
const MIN_CAPACITY: usize = 2;

/// With this many subscribers, those who have left in silence are looked for.
const FIRST_SWEEP: usize = 64;

/// Tells subscribers what was committed, without ever waiting for one of them.
#[derive(Default)]
pub(crate) struct Hub {
    subscribers: Mutex<Subscribers>,
    /// How many there are, so that a turn need not gather events that nobody will read.
    count: AtomicUsize,
}

#[derive(Default)]
struct Subscribers {
    all: Vec<Subscriber>,
    /// With how many of them the next sweep is due.
    sweep_at: usize,
    closed: bool,
}

impl Hub {
    /// Tells this subscriber everything that is published from now on; one who is bound to a user, what happens to
    /// the jobs and workflows of that user. Dropping the receiver ends it.
    ///
    /// At most `capacity` events wait, at least two. What finds no room is left out, and an [`Event::Lagged`] stands
    /// in its place.
    ///
    /// # Errors
    /// `Invalid` if `capacity` is not from 1 to 65 536; `Shutdown` if the hub is closed.
    pub(crate) fn subscribe(&self, capacity: usize, user: Option<String>) -> Result<Receiver<Event>> {
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(Error::invalid("capacity", format_args!("must be from 1 to {MAX_CAPACITY}")));
        }
        let capacity = capacity.max(MIN_CAPACITY);
        let mut subscribers = self.subscribers.lock();
        if subscribers.closed {
            return Err(Error::shutdown());
        }
        subscribers.sweep();
        let (sender, receiver) = bounded(capacity + 1);
        subscribers.all.push(Subscriber { sender, user: user.map(Arc::from), capacity, missed: 0, last: Last::Other });
        self.count.store(subscribers.all.len(), Ordering::Relaxed);
        Ok(receiver)
    }

    /// Whether anybody would read what is published.
    pub(crate) fn has_listeners(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Tells every subscriber what concerns them. Never waits.
    pub(crate) fn publish(&self, events: &[Event]) {
        if events.is_empty() || !self.has_listeners() {
            return;
        }
        let mut subscribers = self.subscribers.lock();
        subscribers.all.retain_mut(|subscriber| events.iter().all(|event| subscriber.tell(event)));
        self.count.store(subscribers.all.len(), Ordering::Relaxed);
    }

    /// Ends every subscription: those who read find the end after what waits for them.
    pub(crate) fn close(&self) {
        let mut subscribers = self.subscribers.lock();
        *subscribers = Subscribers { closed: true, ..Subscribers::default() };
        self.count.store(0, Ordering::Relaxed);
    }
}

impl Subscribers {
    /// Forgets those who have left. A channel tells that its reader is gone only to whoever sends, and a user to whom
    /// nothing happens is sent nothing; so once they are many, all are told to look anew, which harms nobody. The next
    /// sweep is due when they have doubled.
    fn sweep(&mut self) {
        if self.all.len() >= self.sweep_at.max(FIRST_SWEEP) {
            self.all.retain_mut(Subscriber::probe);
            self.sweep_at = 2 * self.all.len();
        }
    }
}

/// What a subscriber was sent last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Lagged,
    Elsewhere,
    Other,
}

/// One who is told. Only the hub sends, and under its lock, so room that was seen does not vanish.
struct Subscriber {
    /// Has one place more than `capacity`. Only a marker takes the last one, so there is room for a marker whenever
    /// the last thing sent is not one itself.
    sender: Sender<Event>,
    user: Option<Arc<str>>,
    capacity: usize,
    /// Events left out that no marker has counted. If there are any, the last thing sent is a marker.
    missed: u64,
    last: Last,
}

impl Subscriber {
    fn wants(&self, event: &Event) -> bool {
        match (&self.user, event) {
            (None, _) => true,
            (Some(user), Event::Changed(change)) => change.user.as_ref() == Some(user),
            (Some(user), Event::Workflow(change)) => change.user.as_ref() == Some(user),
            (Some(_), Event::Elsewhere) => true,
            (Some(_), _) => false,
        }
    }

    /// Sends an event, or counts it as missed. False if the subscriber has left.
    fn tell(&mut self, event: &Event) -> bool {
        if !self.wants(event) {
            return true;
        }
        let waiting = self.sender.len();
        // What says to look anew and is not read yet says so for this one, too.
        if *event == Event::Elsewhere && waiting > 0 && self.last != Last::Other {
            return true;
        }
        if let Some(sent) = self.send_if_room(event, waiting) {
            return sent;
        }
        self.missed += 1;
        // The marker is due where the loss begins. Behind a marker it can wait, but the attempt to send one is also how
        // a reader who has left is noticed, so it is made where it costs no place, and now and then where it does.
        let due = self.last != Last::Lagged || waiting > self.capacity || self.missed >= self.capacity as u64;
        !due || self.mark()
    }

    /// Sends something whatever was sent before, to learn whether the subscriber has left.
    fn probe(&mut self) -> bool {
        self.send_if_room(&Event::Elsewhere, self.sender.len()).unwrap_or_else(|| {
            self.missed += 1;
            self.mark()
        })
    }

    /// None if there is no room for the event, and for a marker before it if one is due.
    fn send_if_room(&mut self, event: &Event, waiting: usize) -> Option<bool> {
        let places = if self.missed > 0 { 2 } else { 1 };
        (waiting + places <= self.capacity).then(|| (self.missed == 0 || self.mark()) && self.send(event.clone()))
    }

    /// Tells that events were left out, at the place where they were, if there is a place at all: behind a marker that
    /// stands in the last one there is not, and the next marker tells it.
    fn mark(&mut self) -> bool {
        match self.sender.try_send(Event::Lagged { missed: self.missed }) {
            Ok(()) => {
                self.missed = 0;
                self.last = Last::Lagged;
                true
            }
            Err(TrySendError::Full(_)) => true,
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    fn send(&mut self, event: Event) -> bool {
        self.last = if event == Event::Elsewhere { Last::Elsewhere } else { Last::Other };
        self.sender.try_send(event).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;
    use crate::model::alert::{Alert, AlertState};
    use crate::model::event::{Cause, Change, Transition};
    use crate::model::id::JobId;
    use crate::model::job::{Priority, Status};
    use crate::model::threshold::Measure;
    use crate::model::time::Timestamp;

    fn change(number: u64, user: Option<&str>) -> Event {
        let transition = Transition {
            job: JobId::from_raw(number.cast_signed()),
            lane: 1,
            share: None,
            from: None,
            to: Some(Status::Pending),
            cause: Cause::Enqueued,
            at: Timestamp::EPOCH,
            attempt: 0,
            waited: None,
            ran: None,
        };
        Event::Changed(Change::new(&transition, "mail".into(), "letter".into(), Priority::High, user.map(Arc::from)))
    }

    fn alert() -> Event {
        Event::Alert(Alert {
            threshold: "full".into(),
            state: AlertState::Raised,
            measure: Measure::Depth,
            queue: None,
            value: 2.0,
            bound: 1.0,
            at: Timestamp::EPOCH,
        })
    }

    /// What waits for a subscriber: numbers of jobs, `-n` for a marker, `e` for elsewhere, `a` for an alert.
    fn read(receiver: &Receiver<Event>) -> String {
        let words = receiver.try_iter().map(|event| match event {
            Event::Changed(change) => change.id.raw().to_string(),
            Event::Lagged { missed } => format!("-{missed}"),
            Event::Elsewhere => "e".to_owned(),
            Event::Alert(_) => "a".to_owned(),
            Event::Workflow(change) => format!("w{}", change.id.raw()),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn publish(hub: &Hub, numbers: std::ops::RangeInclusive<u64>) {
        numbers.for_each(|number| hub.publish(&[change(number, None)]));
    }

    #[test]
    fn every_subscriber_is_told_everything_in_order() {
        let hub = Hub::default();
        assert!(!hub.has_listeners());
        publish(&hub, 1..=1);
        let one = hub.subscribe(10, None).unwrap();
        assert!(hub.has_listeners());
        publish(&hub, 2..=3);
        let other = hub.subscribe(10, None).unwrap();
        hub.publish(&[change(4, None), alert(), Event::Elsewhere, change(5, Some("ann"))]);
        assert_eq!(read(&one), "2 3 4 a e 5");
        assert_eq!(read(&other), "4 a e 5");
    }

    #[test]
    fn the_marker_stands_where_events_were_left_out_and_a_second_one_counts_the_rest() {
        let hub = Hub::default();
        let slow = hub.subscribe(3, None).unwrap();
        publish(&hub, 1..=10);
        assert_eq!(read(&slow), "1 2 3 -1");
        publish(&hub, 11..=11);
        assert_eq!(read(&slow), "-6 11");
        publish(&hub, 12..=15);
        assert_eq!(read(&slow), "12 13 14 -1", "what was missed before is not counted again");
        publish(&hub, 16..=16);
        assert_eq!(read(&slow), "16", "one marker was enough");
    }

    #[test]
    fn after_a_marker_the_next_event_waits_for_room_for_two() {
        let hub = Hub::default();
        let slow = hub.subscribe(3, None).unwrap();
        publish(&hub, 1..=5);
        assert_eq!(slow.len(), 4);
        slow.recv().unwrap();
        slow.recv().unwrap();
        // 3 and the marker wait: room for an event, but not for the second marker as well.
        publish(&hub, 6..=6);
        slow.recv().unwrap();
        publish(&hub, 7..=9);
        assert_eq!(read(&slow), "-1 -2 7 -1");
    }

    #[test]
    fn the_smallest_capacity_works() {
        let hub = Hub::default();
        let slow = hub.subscribe(1, None).unwrap();
        // A marker and one event are all that there is room for once something was missed.
        for (round, told) in ["1 2 -1", "-6 11 -1", "-7 21 -1", "-7 31 -1"].into_iter().enumerate() {
            let first = 10 * round as u64 + 1;
            publish(&hub, first..=first + 8);
            assert_eq!(read(&slow), told);
        }
    }

    #[test]
    fn a_capacity_that_makes_no_sense_is_refused() {
        let hub = Hub::default();
        for capacity in [0, MAX_CAPACITY + 1, usize::MAX] {
            let error = hub.subscribe(capacity, None).expect_err("a bad capacity");
            assert_eq!(error.to_string(), "capacity: must be from 1 to 65536");
        }
        assert!(!hub.has_listeners());
        assert!(hub.subscribe(MAX_CAPACITY, None).is_ok());
    }

    #[test]
    fn elsewhere_is_told_once_until_it_is_read() {
        let hub = Hub::default();
        let reader = hub.subscribe(3, None).unwrap();
        hub.publish(&[Event::Elsewhere, Event::Elsewhere]);
        hub.publish(&[Event::Elsewhere]);
        assert_eq!(read(&reader), "e");
        hub.publish(&[Event::Elsewhere]);
        assert_eq!(read(&reader), "e", "what was changed after the reading is told");
        hub.publish(&[Event::Elsewhere, change(1, None), Event::Elsewhere]);
        assert_eq!(read(&reader), "e 1 e", "and what was changed after another event, too");
        publish(&hub, 1..=5);
        hub.publish(&[Event::Elsewhere, Event::Elsewhere]);
        assert_eq!(read(&reader), "1 2 3 -1", "a marker that is not read says the same");
        hub.publish(&[Event::Elsewhere]);
        assert_eq!(read(&reader), "-1 e");
    }

    #[test]
    fn elsewhere_that_finds_no_room_is_missed() {
        let hub = Hub::default();
        let reader = hub.subscribe(2, None).unwrap();
        publish(&hub, 1..=2);
        hub.publish(&[Event::Elsewhere]);
        assert_eq!(read(&reader), "1 2 -1");
    }

    #[test]
    fn one_who_is_bound_to_a_user_is_told_of_that_user_alone() {
        let hub = Hub::default();
        let ann = hub.subscribe(3, Some("ann".to_owned())).unwrap();
        hub.publish(&[
            change(1, Some("ann")),
            change(2, Some("bob")),
            change(3, None),
            alert(),
            change(4, Some("ann")),
        ]);
        hub.publish(&[Event::Elsewhere]);
        assert_eq!(read(&ann), "1 4 e");
        for number in 1..=20 {
            hub.publish(&[change(number, Some(if number % 2 == 0 { "ann" } else { "bob" })), alert()]);
        }
        hub.publish(&[change(100, Some("bob"))]);
        assert_eq!(read(&ann), "2 4 6 -1", "what others do cannot make one lag");
        hub.publish(&[change(101, Some("ann"))]);
        assert_eq!(read(&ann), "-6 101");
    }

    #[test]
    fn one_who_has_left_is_forgotten_however_much_waits_for_them() {
        const CAPACITY: usize = 4;
        for published in 0..12 {
            for taken in 0..=CAPACITY + 1 {
                let hub = Hub::default();
                let leaves = hub.subscribe(CAPACITY, None).unwrap();
                publish(&hub, 1..=published);
                leaves.try_iter().take(taken).for_each(drop);
                publish(&hub, 1..=1);
                drop(leaves);
                let stays = hub.subscribe(100, None).unwrap();
                publish(&hub, 1..=CAPACITY as u64 * 2);
                assert_eq!(hub.subscribers.lock().all.len(), 1, "{published} published, {taken} taken");
                assert_eq!(read(&stays), "1 2 3 4 5 6 7 8");
                drop(stays);
                publish(&hub, 9..=9);
                assert!(!hub.has_listeners());
            }
        }
    }

    #[test]
    fn those_who_leave_in_silence_do_not_pile_up() {
        let hub = Hub::default();
        let subscribe = |user: &str| hub.subscribe(2, Some(user.to_owned())).unwrap();
        let quiet: Vec<_> = (0..10).map(|_| subscribe("ann")).collect();
        let full: Vec<_> = (0..10).map(|_| subscribe("bob")).collect();
        hub.publish(&[1, 2, 3].map(|number| change(number, Some("bob"))));
        for number in 0..10_000 {
            let leaves = subscribe("cid");
            if number % 100 == 0 {
                hub.publish(&[4, 5, 6].map(|number| change(number, Some("cid"))));
            }
            drop(leaves);
        }
        assert!(hub.subscribers.lock().all.len() <= FIRST_SWEEP);
        hub.publish(&[change(7, Some("ann"))]);
        for (ann, bob) in quiet.iter().zip(&full) {
            assert!(read(ann).starts_with('e'), "a sweep says to look anew");
            assert_eq!(read(bob), "1 2 -1", "or finds that this is said");
        }
        assert_eq!(hub.subscribers.lock().all.iter().filter(|left| left.user.as_deref() != Some("cid")).count(), 20);
    }

    #[test]
    fn closing_ends_every_subscription_after_what_waits() {
        let hub = Hub::default();
        let reader = hub.subscribe(10, None).unwrap();
        publish(&hub, 1..=2);
        hub.close();
        assert!(!hub.has_listeners());
        publish(&hub, 3..=3);
        assert_eq!(reader.iter().count(), 2, "and then the end");
        assert_eq!(hub.subscribe(10, None).expect_err("a closed hub").kind(), ErrorKind::Shutdown);
    }

    /// Reads as a subscriber does who counts: what came between two events must be what the markers say.
    #[derive(Default)]
    struct Account {
        next: u64,
        missed: u64,
        received: u64,
    }

    impl Account {
        fn note(&mut self, event: Event) {
            match event {
                Event::Changed(change) => {
                    let number = change.id.raw().cast_unsigned();
                    assert_eq!(number, self.next + self.missed, "the markers before it count what is left out");
                    self.next = number + 1;
                    self.missed = 0;
                    self.received += 1;
                }
                Event::Lagged { missed } => {
                    assert!(missed > 0, "a marker tells of something");
                    self.missed += missed;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_when_all_that_is_left_out_is_counted_in_its_place(
            capacity in 1usize..9,
            schedule in prop::collection::vec((1u64..12, 0usize..14), 0..60),
        ) {
            let hub = Hub::default();
            let reader = hub.subscribe(capacity, None).unwrap();
            let mut account = Account::default();
            let mut published = 0;
            for (publishing, reading) in schedule {
                let events: Vec<Event> = (published..published + publishing).map(|n| change(n, None)).collect();
                hub.publish(&events);
                published += publishing;
                let full = reader.len() > capacity.max(MIN_CAPACITY);
                let mut last = None;
                for event in reader.try_iter().take(reading) {
                    last = Some(matches!(event, Event::Lagged { .. }));
                    account.note(event);
                }
                if full && reader.is_empty() {
                    prop_assert_eq!(last, Some(true), "who drains a full channel finds the marker at its end");
                }
            }
            reader.try_iter().for_each(|event| account.note(event));
            hub.publish(&[change(published, None)]);
            reader.try_iter().for_each(|event| account.note(event));
            // The last event came through, so everything before it was received or is counted.
            prop_assert_eq!((account.next, account.missed), (published + 1, 0));
        }
    }

    #[test]
    fn publishing_and_reading_at_once_loses_nothing_in_silence() {
        const PUBLISHERS: u64 = 3;
        const EACH: u64 = 2_000;
        let hub = Hub::default();
        let readers: Vec<_> = [2, 7, 64, 10_000].map(|capacity| hub.subscribe(capacity, None).unwrap()).into();
        let totals = std::thread::scope(|scope| {
            let reading: Vec<_> = readers
                .iter()
                .map(|reader| {
                    scope.spawn(move || {
                        let mut last = [0; PUBLISHERS as usize];
                        let (mut received, mut missed) = (0, 0);
                        for event in reader {
                            match event {
                                Event::Changed(change) => {
                                    let number = change.id.raw().cast_unsigned();
                                    let last = &mut last[(number / 1_000_000) as usize];
                                    assert!(number > *last, "{number} came after {last}");
                                    *last = number;
                                    received += 1;
                                }
                                Event::Lagged { missed: more } => missed += more,
                                other => panic!("{other:?}"),
                            }
                        }
                        (received, missed)
                    })
                })
                .collect();
            let publishing: Vec<_> = (0..PUBLISHERS)
                .map(|publisher| {
                    let hub = &hub;
                    scope.spawn(move || {
                        for number in 1..=EACH {
                            hub.publish(&[change(publisher * 1_000_000 + number, None)]);
                        }
                    })
                })
                .collect();
            publishing.into_iter().for_each(|thread| thread.join().unwrap());
            let untold: Vec<u64> = hub.subscribers.lock().all.iter().map(|subscriber| subscriber.missed).collect();
            hub.close();
            reading
                .into_iter()
                .zip(untold)
                .map(|(thread, untold)| {
                    let (received, missed) = thread.join().unwrap();
                    received + missed + untold
                })
                .collect::<Vec<u64>>()
        });
        assert_eq!(totals, [PUBLISHERS * EACH; 4]);
    }
}
