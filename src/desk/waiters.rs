//! Those who wait for jobs to end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::model::id::JobId;

/// Those who wait for jobs to end, by job.
#[derive(Default)]
pub(super) struct Waiters {
    by_job: Mutex<HashMap<JobId, Vec<Sender<()>>>>,
    /// How many there are, so that a turn need not take the lock to learn that there are none.
    count: AtomicUsize,
}

impl Waiters {
    /// Asks to be told when a job ends.
    pub(super) fn watch(&self, id: JobId) -> Watch<'_> {
        let (sender, receiver) = bounded(1);
        self.count.fetch_add(1, Ordering::SeqCst);
        self.by_job.lock().entry(id).or_default().push(sender.clone());
        Watch { waiters: self, id, sender, receiver }
    }

    /// Tells those who wait for these jobs.
    pub(super) fn notify(&self, ended: &[JobId]) {
        if ended.is_empty() || self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut by_job = self.by_job.lock();
        for id in ended {
            for waiter in by_job.remove(id).unwrap_or_default() {
                let _ = waiter.try_send(());
            }
        }
    }

    /// Tells everybody to look again.
    pub(super) fn notify_all(&self) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        for waiter in self.by_job.lock().values().flatten() {
            let _ = waiter.try_send(());
        }
    }
}

/// Somebody who waits for a job to end.
pub(crate) struct Watch<'d> {
    waiters: &'d Waiters,
    id: JobId,
    sender: Sender<()>,
    receiver: Receiver<()>,
}

impl Watch<'_> {
    /// Hears something whenever it is worth looking again.
    pub(crate) fn receiver(&self) -> &Receiver<()> {
        &self.receiver
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut by_job = self.waiters.by_job.lock();
        if let Some(all) = by_job.get_mut(&self.id) {
            all.retain(|waiter| !waiter.same_channel(&self.sender));
            if all.is_empty() {
                by_job.remove(&self.id);
            }
        }
        self.waiters.count.fetch_sub(1, Ordering::SeqCst);
    }
}
