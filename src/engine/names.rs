//! The threads that look up names. The operating system's call for it knows no timeout and cannot be interrupted, so
//! whoever asks waits beside it, and may leave before it ends.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::builtin::callback::doorman::Names;
use crate::clock::{Clock, SystemClock};

type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

struct Question {
    name: String,
    answer: Sender<io::Result<Vec<IpAddr>>>,
}

struct Thread {
    handle: JoinHandle<()>,
    is_looking_up: Arc<AtomicBool>,
}

/// Looks names up by the operating system. Threads are started when needed, up to a number, and stay. Where all of them
/// are stuck, who asks waits for one, as long as for an answer.
pub(crate) struct SystemNames {
    /// Holds no question by itself: one goes from the asker's hands into a thread's, or stays with the asker.
    ask: Option<Sender<Question>>,
    questions: Receiver<Question>,
    threads: Mutex<Vec<Thread>>,
    threads_max: usize,
    look_up: Arc<LookUp>,
}

impl SystemNames {
    pub(crate) fn new(threads_max: usize) -> Self {
        // The port is of no account.
        Self::asking(threads_max, |name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    fn asking(threads_max: usize, look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        let (ask, questions) = bounded(0);
        Self { ask: Some(ask), questions, threads: Mutex::default(), threads_max, look_up: Arc::new(look_up) }
    }

    fn start_another(&self) -> io::Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.len() >= self.threads_max {
            return Ok(());
        }
        let (questions, look_up) = (self.questions.clone(), self.look_up.clone());
        let is_looking_up = Arc::new(AtomicBool::new(false));
        let busy = is_looking_up.clone();
        let body = move || {
            for question in questions {
                busy.store(true, Ordering::Release);
                let answer = look_up(&question.name);
                busy.store(false, Ordering::Release);
                // Who asked may have left.
                let _ = question.answer.send(answer);
            }
        };
        let name = format!("jobmill-names-{}", threads.len() + 1);
        let handle = std::thread::Builder::new().name(name).spawn(body)?;
        threads.push(Thread { handle, is_looking_up });
        Ok(())
    }
}

impl Names for SystemNames {
    fn look_up(&self, name: &str, within: Duration) -> io::Result<Vec<IpAddr>> {
        let deadline = SystemClock.monotonic().saturating_add(within);
        let left = || deadline.saturating_sub(SystemClock.monotonic());
        let ask = self.ask.as_ref().expect("the sender goes with its owner");
        let (answer, answers) = bounded(1);
        let question = Question { name: name.to_owned(), answer };
        if let Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) = ask.try_send(question) {
            self.start_another()?;
            ask.send_timeout(question, left()).map_err(|_| io::ErrorKind::TimedOut)?;
        }
        answers.recv_timeout(left()).map_err(|_| io::ErrorKind::TimedOut)?
    }
}

impl Drop for SystemNames {
    fn drop(&mut self) {
        drop(self.ask.take());
        for thread in self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that is stuck ends by itself when the operating system lets it go, and nobody waits for its answer.
            if thread.is_looking_up.load(Ordering::Acquire) {
                log::debug!("left a thread behind that is looking up a name");
            } else {
                let _ = thread.handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(50);

    fn addresses(text: &str) -> Vec<IpAddr> {
        vec![text.parse().expect("an address")]
    }

    #[test]
    fn the_system_knows_this_machine() {
        let names = SystemNames::new(1);
        let found = names.look_up("localhost", PATIENCE).expect("an answer");
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }

    #[test]
    fn one_thread_serves_who_asks_in_turn_and_threads_never_exceed_their_number() {
        let names = SystemNames::asking(2, |name| {
            if name == "none" { Err(io::ErrorKind::NotFound.into()) } else { Ok(addresses("192.0.2.1")) }
        });
        for _ in 0..100 {
            assert_eq!(names.look_up("some", PATIENCE).expect("an answer"), addresses("192.0.2.1"));
            assert_eq!(names.look_up("none", PATIENCE).expect_err("no answer").kind(), io::ErrorKind::NotFound);
        }
        assert!((1..=2).contains(&names.threads.lock().expect("threads").len()));
    }

    #[test]
    fn who_asks_leaves_in_time_while_the_system_hangs_and_stuck_threads_are_bounded() {
        let (release, released) = bounded::<()>(0);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let names = SystemNames::asking(2, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = released.recv();
            Ok(addresses("192.0.2.2"))
        });
        let times_out = || {
            assert_eq!(names.look_up("stuck", SHORT).expect_err("no answer").kind(), io::ErrorKind::TimedOut);
        };
        // A thread that takes long to begin comes too late for the question that it was started for.
        while asked.load(Ordering::SeqCst) < 2 {
            times_out();
        }
        (0..4).for_each(|_| times_out());
        assert_eq!(names.threads.lock().expect("threads").len(), 2);
        assert_eq!(asked.load(Ordering::SeqCst), 2, "a question that nobody waits for is not asked");
        drop(release);
        assert_eq!(names.look_up("free", PATIENCE).expect("an answer"), addresses("192.0.2.2"));
    }

    #[test]
    fn nobody_waits_for_a_stuck_thread_at_the_end() {
        let (release, released) = bounded::<()>(0);
        let names = SystemNames::asking(2, move |name| {
            if name == "stuck" {
                let _ = released.recv();
            }
            Ok(addresses("192.0.2.3"))
        });
        assert!(names.look_up("stuck", SHORT).is_err());
        assert!(names.look_up("free", PATIENCE).is_ok());
        drop(names);
        drop(release);
    }
}
