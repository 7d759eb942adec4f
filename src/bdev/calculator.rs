//! Long calculations beside the reactors: what takes milliseconds (an exponentiation of thousands of bits)
//! must not hold up what else a reactor has to do.
//!
//! One thread does them, one after the other, so that whoever can make us calculate gets no more than one
//! core. It is started by a control thread: one that a reactor starts would stay on the reactor's core.

use reactors::ReactorHandle;
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Weak};
use zeroize::Zeroizing;

/// Calculations that may wait: as many as there may be connections.
const WAITING_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// See the module. Its thread ends when it is dropped, after what still waits.
pub(crate) struct Calculator(SyncSender<Job>);

impl fmt::Debug for Calculator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calculator")
    }
}

/// A calculation that was begun. Dropped, it is not done if it still waits.
pub(crate) struct Pending<T> {
    result: Receiver<T>,
    _wanted: Arc<()>,
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

/// How a calculation stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress<T> {
    /// It is not done.
    UnderWay,
    /// It came to this; told once.
    Done(T),
    /// Nothing will come of it.
    Lost,
}

impl<T> Pending<T> {
    /// How it stands. Never waits.
    pub(crate) fn progress(&self) -> Progress<T> {
        match self.result.try_recv() {
            Ok(result) => Progress::Done(result),
            Err(TryRecvError::Empty) => Progress::UnderWay,
            Err(TryRecvError::Disconnected) => Progress::Lost,
        }
    }
}

impl Calculator {
    /// Starts the thread. For control threads.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, jobs) = sync_channel::<Job>(WAITING_MAX);
        let thread = std::thread::Builder::new().name("calculator".to_owned());
        thread.spawn(move || jobs.iter().for_each(|job| job()))?;
        Ok(Self(sender))
    }

    /// Has `calculate` done, and then wakes `waker`. Nothing if too many wait.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        waker: Option<ReactorHandle>,
        calculate: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Pending<T>> {
        let (sender, result) = sync_channel(1);
        let wanted = Arc::new(());
        let is_wanted: Weak<()> = Arc::downgrade(&wanted);
        let job = move || {
            if is_wanted.strong_count() == 0 {
                return;
            }
            // The room is for this one.
            let _ = sender.try_send(calculate());
            if let Some(waker) = waker {
                let _ = waker.send(Box::new(|_| {}));
            }
        };
        self.0.try_send(Box::new(job)).ok()?;
        Some(Pending {
            result,
            _wanted: wanted,
        })
    }
}

/// Bytes that nobody can guess; nothing if the system has none. Takes a system call, but does not wait.
pub(crate) fn random_bytes<const N: usize>() -> Option<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice()).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;

    fn wait<T>(pending: &Pending<T>) -> T {
        loop {
            match pending.progress() {
                Progress::Done(result) => return result,
                Progress::UnderWay => std::thread::yield_now(),
                Progress::Lost => panic!("lost"),
            }
        }
    }

    #[test]
    fn results_come_once() {
        let calculator = Calculator::start().unwrap();
        let pending = calculator.begin(None, || 6 * 7).unwrap();
        assert_eq!(wait(&pending), 42);
        assert_eq!(pending.progress(), Progress::Lost);
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_done() {
        let calculator = Calculator::start().unwrap();
        let (go, gate) = channel::<()>();
        let first = calculator.begin(None, move || gate.recv().is_ok()).unwrap();
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let dropped = calculator.begin(None, move || counted.fetch_add(1, Ordering::SeqCst));
        drop(dropped);
        let last = calculator.begin(None, || ()).unwrap();
        assert_eq!(first.progress(), Progress::UnderWay);
        go.send(()).unwrap();
        assert!(wait(&first));
        wait(&last);
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let calculator = Calculator::start().unwrap();
        let (go, gate) = channel::<()>();
        let (at_it, started) = channel();
        let first = calculator.begin(None, move || {
            at_it.send(()).unwrap();
            gate.recv().is_ok()
        });
        started.recv().unwrap();
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|n| calculator.begin(None, move || n))
            .collect();
        assert!(waiting.iter().all(Option::is_some));
        assert!(calculator.begin(None, || ()).is_none());
        go.send(()).unwrap();
        assert!(wait(&first.unwrap()));
        assert_eq!(
            wait(waiting.last().unwrap().as_ref().unwrap()),
            WAITING_MAX - 1
        );
    }

    #[test]
    fn no_two_draws_are_the_same() {
        let [first, second] = [(); 2].map(|()| random_bytes::<32>().unwrap());
        assert_ne!(*first, *second);
    }
}
