//! Keeping tokens for a dear job, so that cheap ones of other lanes do not take each one as it comes.

use crate::model::limit::blocked;
use crate::store::Turn;
use crate::store::gate::{Dear, Passage};
use crate::store::source::aged_rank;

impl Turn<'_> {
    /// Until when a gate keeps its tokens from a job of this lane and place, in microseconds: others that go before it wait
    /// for them. Those do not count that could not start if they had them.
    pub(crate) fn kept_until(&mut self, gate: i64, lane: i64, place: i64) -> rusqlite::Result<Option<i64>> {
        let known = self.book.gates.get(self.conn, gate)?;
        let in_others = known.lanes.iter().any(|in_lane| in_lane.lane != lane && in_lane.held > 0);
        let limit = known.limit;
        if !in_others || self.book.gates.bounds(limit).rate.is_none() {
            return Ok(None);
        }
        if self.book.gates.dear(gate).is_none() {
            let dear = self.dear_at(gate)?;
            self.book.gates.note_dear(gate, dear);
        }
        let order = self.order_of(lane, place);
        let dear = self.book.gates.dear(gate).unwrap_or_default();
        Ok(dear.iter().filter(|dear| dear.lane != lane && dear.order < order).map(|dear| dear.ready_at).min())
    }

    /// The first job of each lane that waits at a gate for tokens alone.
    fn dear_at(&mut self, gate: i64) -> rusqlite::Result<Vec<Dear>> {
        let known = self.book.gates.get(self.conn, gate)?;
        if blocked(known.bucket.blocked_until, self.now).is_some() {
            return Ok(Vec::new());
        }
        // Where some have been let go already, those have the tokens first.
        let lanes: Vec<i64> = known
            .lanes
            .iter()
            .filter(|in_lane| in_lane.held > 0 && in_lane.ready == 0)
            .map(|in_lane| in_lane.lane)
            .filter(|lane| self.book.lanes.is_open(*lane, self.now))
            .collect();
        let mut dear = Vec::new();
        for lane in lanes {
            let Some(held) = self.first_held(gate, lane)? else { continue };
            let passage = self.book.gates.passage(self.conn, gate, held.cost_at(gate), 0, self.now)?;
            if let Passage::Until(ready_at) = passage {
                dear.push(Dear { lane, order: self.order_of(lane, held.at), ready_at });
            }
        }
        Ok(dear)
    }

    /// Where a job stands among those of all lanes, by its lane and its place.
    fn order_of(&self, lane: i64, place: i64) -> (usize, i64) {
        let rank = self
            .book
            .lanes
            .get(lane)
            .map_or(usize::MAX, |lane| aged_rank(lane.priority, place >> 10, self.now, self.ageing));
        (rank, place)
    }
}
