//! The pool and its threads, as the turns see them.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::desk::Crew;
use crate::engine::pool::Pool;
use crate::engine::worker::Shop;
use crate::model::explain::Reason;
use crate::model::id::JobId;
use crate::model::job::Job;
use crate::model::retry::Backoff;
use crate::store::lane::Demand;
use crate::store::row::Claim;

/// The pool and its threads. Every handle is kept until its thread has ended, or is known never to.
pub(crate) struct Staff {
    pool: Arc<Pool>,
    /// What threads work in. None if there are no threads, or none any more.
    shop: Mutex<Option<Arc<Shop>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Staff {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self { pool, shop: Mutex::default(), threads: Mutex::default() }
    }

    /// Opens the shop: from now on threads are started as jobs come.
    pub(crate) fn open(&self, shop: Arc<Shop>) {
        *self.shop.lock().unwrap_or_else(PoisonError::into_inner) = Some(shop);
        self.hire();
    }

    /// Starts as many threads as the ready jobs call for.
    fn hire(&self) {
        let shop = self.shop.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(shop) = shop else { return };
        for worker in self.pool.hire() {
            let shop = shop.clone();
            let life = move || {
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shop.work(worker))).is_err() {
                    log::error!("a worker panicked outside of a handler");
                    shop.bereave(worker);
                }
            };
            match Builder::new().name(format!("jobmill-worker-{worker}")).spawn(life) {
                Ok(thread) => {
                    let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
                    threads.retain(|thread| !thread.is_finished());
                    threads.push(thread);
                }
                Err(error) => {
                    log::warn!("cannot start a worker: {error}");
                    self.pool.unhire();
                }
            }
        }
    }

    /// Sends all workers home and waits for those who will come: not for abandoned ones, who may never.
    pub(crate) fn dismiss(&self) {
        self.shop.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.pool.close();
        self.pool.wait_until_gone();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lost = threads.len();
        for thread in threads {
            // A thread that has left the pool ends at once.
            if self.pool.abandoned() == 0 || thread.is_finished() {
                lost -= 1;
                if thread.join().is_err() {
                    log::error!("a worker panicked outside of a handler");
                }
            }
        }
        if lost > 0 {
            // They may have had no timeouts to ignore: the shutdown's own time was up.
            log::warn!("handlers that have not ended and are left behind: {}", self.pool.abandoned());
        }
    }
}

impl Crew for Staff {
    fn is_open(&self) -> bool {
        self.pool.is_open()
    }

    fn demand(&self) -> Box<dyn Demand + '_> {
        Box::new(self.pool.demand())
    }

    fn turn_took(&self, took: Duration) {
        self.pool.turn_took(took);
    }

    fn accept(&self, claims: Vec<Claim>) {
        self.pool.accept(claims);
        self.hire();
    }

    fn stop(&self, jobs: &[JobId]) {
        self.pool.stop(jobs);
    }

    fn settled(&self, slots: &[u32]) {
        self.pool.settled(slots);
    }

    fn backoff(&self) -> &Backoff {
        self.pool.backoff()
    }

    fn lacks(&self, job: &Job, weight: u32) -> Option<Reason> {
        self.pool.lacks(job, weight)
    }
}
