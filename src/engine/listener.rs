//! The thread that sleeps until another process rings.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::desk::Desk;
use crate::engine::vitals::Vitals;
use crate::ring::Bell;

/// The thread that sleeps until another process rings.
pub(crate) struct Listener {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Listener {
    /// Starts to listen for a desk.
    pub(crate) fn start(bell: Bell, desk: Arc<Desk>, vitals: Arc<Vitals>) -> io::Result<Self> {
        let bell = Arc::new(bell);
        let stop = Arc::new(AtomicBool::new(false));
        let (heard, stopped, told) = (bell.clone(), stop.clone(), desk.clone());
        desk.set_listening(true);
        vitals.listener.begins(true);
        let fate = vitals.clone();
        let thread = std::thread::Builder::new().name("jobmill-listener".to_owned()).spawn(move || {
            let listened = vitals.listener.live(|| {
                while !stopped.load(Ordering::SeqCst) {
                    if let Some(ring) = heard.wait() {
                        told.rung(ring);
                    }
                }
            });
            if !listened {
                log::error!("the listener panicked: the engine looks at the file more often instead");
                told.set_listening(false);
            }
        });
        let thread = thread.inspect_err(|_| {
            desk.set_listening(false);
            fate.listener.begins(false);
        })?;
        Ok(Self { bell, stop, thread })
    }

    /// Stops the thread and waits for it.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.bell.mute();
        if self.thread.join().is_err() {
            log::error!("the listener panicked");
        }
    }
}
