//! Tests of the rings; the loom models run with `RUSTFLAGS="--cfg loom"`.

use super::spsc;

#[cfg(not(loom))]
mod real {
    use super::spsc;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::thread;

    #[test]
    fn full_ring_hands_the_item_back() {
        let (mut producer, mut consumer) = spsc(3);
        for item in 0..3 {
            assert_eq!(producer.push(item), Ok(()));
        }
        assert!(!producer.has_room());
        assert_eq!(producer.push(9), Err(9));
        assert_eq!(consumer.pop(), Some(0));
        assert_eq!(producer.push(3), Ok(()));
        assert_eq!(producer.push(9), Err(9));
        assert_eq!(consumer.pop(), Some(1));
    }

    #[test]
    fn dropping_either_end_is_seen_and_drops_the_items() {
        let item = Rc::new(());
        let (mut producer, consumer) = spsc(4);
        producer.push(item.clone()).unwrap();
        assert!(!producer.is_orphaned());
        drop(consumer);
        assert!(producer.is_orphaned());
        assert_eq!(
            Rc::strong_count(&item),
            1,
            "the consumer drops what is left"
        );
        producer.push(item.clone()).unwrap();
        drop(producer);
        assert_eq!(
            Rc::strong_count(&item),
            1,
            "the last end drops what came later"
        );

        let (mut producer, mut consumer) = spsc(4);
        producer.push(item.clone()).unwrap();
        drop(producer);
        assert!(consumer.is_orphaned());
        assert!(consumer.pop().is_some());
        assert!(consumer.pop().is_none());
    }

    #[test]
    fn items_cross_threads_in_order() {
        let count = 200_000_u64;
        let (mut producer, mut consumer) = spsc(37);
        let sender = thread::spawn(move || {
            for item in 0..count {
                let mut boxed = Box::new(item);
                while let Err(back) = producer.push(boxed) {
                    boxed = back;
                    thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < count {
            match consumer.pop() {
                Some(item) => {
                    assert_eq!(*item, expected);
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        sender.join().unwrap();
        assert!(consumer.is_empty());
    }

    proptest! {
        #[test]
        fn behaves_like_a_bounded_queue(capacity in 1_usize..9, pushes in prop::collection::vec(any::<bool>(), 0..200)) {
            let (mut producer, mut consumer) = spsc(capacity);
            let mut model = VecDeque::new();
            for (item, push) in pushes.into_iter().enumerate() {
                if push {
                    let fits = model.len() < capacity;
                    prop_assert_eq!(producer.has_room(), fits);
                    prop_assert_eq!(producer.push(item).is_ok(), fits);
                    if fits {
                        model.push_back(item);
                    }
                } else {
                    prop_assert_eq!(consumer.pop(), model.pop_front());
                }
                prop_assert_eq!(consumer.is_empty(), model.is_empty());
            }
        }
    }
}

#[cfg(loom)]
mod model {
    use super::spsc;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn loom_items_cross_in_order_while_the_ring_wraps() {
        loom::model(|| {
            let (mut producer, mut consumer) = spsc(1);
            let sender = thread::spawn(move || {
                for item in 0..3 {
                    let mut item = Box::new(item);
                    while let Err(back) = producer.push(item) {
                        item = back;
                        thread::yield_now();
                    }
                }
            });
            for expected in 0..3 {
                loop {
                    if let Some(item) = consumer.pop() {
                        assert_eq!(*item, expected);
                        break;
                    }
                    thread::yield_now();
                }
            }
            sender.join().unwrap();
            assert!(consumer.is_empty());
        });
    }

    #[test]
    fn loom_orphaned_consumer_sees_all_that_was_pushed() {
        loom::model(|| {
            let (mut producer, mut consumer) = spsc(2);
            let sender = thread::spawn(move || {
                producer.push(7).unwrap();
            });
            let mut taken = consumer.pop();
            while taken.is_none() {
                let was_last = consumer.is_orphaned();
                taken = consumer.pop();
                assert!(taken.is_some() || !was_last, "an orphaned ring was empty");
                thread::yield_now();
            }
            assert_eq!(taken, Some(7));
            sender.join().unwrap();
        });
    }

    #[test]
    fn loom_items_are_dropped_once_whichever_end_goes_first() {
        loom::model(|| {
            let item = Arc::new(());
            let (mut producer, consumer) = spsc(2);
            let ours = item.clone();
            let sender = thread::spawn(move || {
                producer.push(ours.clone()).unwrap();
                producer.push(ours).unwrap();
            });
            drop(consumer);
            sender.join().unwrap();
            assert_eq!(Arc::strong_count(&item), 1);
        });
    }
}
