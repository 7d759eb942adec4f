//! The hand-over between a reactor that goes to sleep and those who have work for it.
//!
//! Lost wake-ups are impossible because each side writes before it reads, with a full fence in
//! between: the sleeper says that it sleeps and then looks for work once more; the sender
//! publishes its work and then looks whether the reactor sleeps. At least one of them sees the
//! other. Loom runs this file.

use crate::sync::{AtomicBool, Ordering, fence};

/// What makes the sleeper's wait end: an eventfd. A wait that a ring ended takes it.
pub(crate) trait Bell {
    /// Ends the wait under way, or the next one.
    fn ring(&self);
}

/// Says whether the reactor sleeps, and wakes it.
#[derive(Debug)]
pub(crate) struct Doorbell<B> {
    sleeping: AtomicBool,
    bell: B,
}

impl<B: Bell> Doorbell<B> {
    pub(crate) fn new(bell: B) -> Self {
        Self {
            sleeping: AtomicBool::new(false),
            bell,
        }
    }

    pub(crate) fn bell(&self) -> &B {
        &self.bell
    }

    /// Wakes the sleeper, if it sleeps, so that it finds what the caller has published. Of many
    /// callers one pays for the bell.
    #[inline]
    pub(crate) fn ring(&self) {
        // Orders the caller's publishing before the look at the flag.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            self.ring_slow();
        }
    }

    #[cold]
    fn ring_slow(&self) {
        // Whoever clears the flag rings. The others need not: a ring is on its way, and the
        // sleeper looks for work after it. AcqRel hands what they published over with it.
        if self.sleeping.swap(false, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// Says that the sleeper is about to wait. It must look for work once more between this call
    /// and the wait, and call [`Doorbell::awake`] in either case.
    pub(crate) fn prepare(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        // Orders the flag before the last look for work.
        fence(Ordering::SeqCst);
    }

    /// Ends what [`Doorbell::prepare`] began. The sleeper looks for work before it prepares anew.
    ///
    /// If it did not wait, a ring may be there or on its way: it ends the next wait for nothing,
    /// once. So the wait takes the ring, and not this call, which may come before it.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::{Bell, Doorbell};
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// An eventfd: a counter to wait for. A wait that nobody ends is loom's deadlock. (That no
    /// ring stays for ever is tested in `watch.rs`.)
    #[derive(Default)]
    struct Event {
        rings: Mutex<u32>,
        rung: Condvar,
    }

    impl Event {
        fn wait(&self) {
            let mut rings = self.rings.lock().unwrap();
            while *rings == 0 {
                rings = self.rung.wait(rings).unwrap();
            }
            *rings = 0;
        }
    }

    impl Bell for Event {
        fn ring(&self) {
            *self.rings.lock().unwrap() += 1;
            self.rung.notify_one();
        }
    }

    /// Senders publish `work` with relaxed stores, the weakest that a poller could be given; the
    /// sleeper must have seen it all in the end.
    fn hand_over(senders: usize, each: usize) {
        let doorbell = Arc::new(Doorbell::new(Event::default()));
        let work = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..senders)
            .map(|_| {
                let (doorbell, work) = (doorbell.clone(), work.clone());
                thread::spawn(move || {
                    for _ in 0..each {
                        work.fetch_add(1, Ordering::Relaxed);
                        doorbell.ring();
                    }
                })
            })
            .collect();
        while work.load(Ordering::Relaxed) < senders * each {
            doorbell.prepare();
            if work.load(Ordering::Relaxed) < senders * each {
                doorbell.bell().wait();
            }
            doorbell.awake();
        }
        for sender in threads {
            sender.join().unwrap();
        }
    }

    #[test]
    fn loom_one_sender_never_leaves_the_sleeper_asleep() {
        loom::model(|| hand_over(1, 2));
    }

    #[test]
    fn loom_two_senders_never_leave_the_sleeper_asleep() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| hand_over(2, 1));
    }
}
