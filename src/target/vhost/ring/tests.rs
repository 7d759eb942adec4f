//! The device's side of a ring, against a driver that writes its memory by hand.

use super::super::guest_mem::GuestMemory;
use super::super::guest_mem::tests::region;
use super::*;

const ENTRIES: u16 = 4;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

fn places() -> RingPlaces {
    let memory = GuestMemory::default().with(region(0, 0, 0x4000)).unwrap();
    RingPlaces {
        entries: ENTRIES,
        desc: memory.window(0, RingPlaces::desc_bytes(ENTRIES)).unwrap(),
        avail: memory
            .window(AVAIL, RingPlaces::avail_bytes(ENTRIES))
            .unwrap(),
        used: memory
            .window(USED, RingPlaces::used_bytes(ENTRIES))
            .unwrap(),
    }
}

fn set(window: &Window, at: usize, value: u16) {
    window.store(at, value.to_le(), Ordering::SeqCst).unwrap();
}

fn get(window: &Window, at: usize) -> u16 {
    u16::from_le(window.load(at, Ordering::SeqCst).unwrap())
}

#[test]
fn heads_are_taken_once_and_answers_show_when_published() {
    let places = places();
    let mut ring = Ring::new(places.clone(), false, 0).unwrap();
    assert_eq!(ring.take().unwrap(), None);
    set(&places.avail, 4, 3);
    set(&places.avail, 6, 1);
    set(&places.avail, 2, 2);
    assert_eq!(ring.take().unwrap(), Some(3));
    assert_eq!(ring.take().unwrap(), Some(1));
    assert_eq!(ring.take().unwrap(), None);
    ring.answer(1, 513).unwrap();
    assert_eq!(get(&places.used, 2), 0);
    ring.publish().unwrap();
    assert_eq!(get(&places.used, 2), 1);
    let mut entry = [0; 8];
    places.used.read(4, &mut entry).unwrap();
    assert_eq!(entry, [1, 0, 0, 0, 1, 2, 0, 0]);
}

#[test]
fn indices_wrap() {
    let places = places();
    set(&places.used, 2, 65534);
    set(&places.avail, 2, 65534);
    let mut ring = Ring::new(places.clone(), true, 65534).unwrap();
    for round in 0..9_u16 {
        let at = 65534_u16.wrapping_add(round);
        set(
            &places.avail,
            4 + 2 * usize::from(at % ENTRIES),
            round % ENTRIES,
        );
        set(&places.avail, 2, at.wrapping_add(1));
        assert_eq!(ring.take().unwrap(), Some(round % ENTRIES));
        ring.answer(round % ENTRIES, 1).unwrap();
        ring.publish().unwrap();
        assert_eq!(get(&places.used, 2), at.wrapping_add(1));
    }
}

#[test]
fn an_index_too_far_ahead_and_a_head_outside_are_faults() {
    let places = places();
    let mut ring = Ring::new(places.clone(), false, 0).unwrap();
    set(&places.avail, 2, ENTRIES + 1);
    assert!(matches!(
        ring.take(),
        Err(RingFault::Overrun {
            available: 5,
            entries: 4
        })
    ));
    set(&places.avail, 2, 65535);
    assert!(matches!(ring.take(), Err(RingFault::Overrun { .. })));
    set(&places.avail, 4, ENTRIES);
    set(&places.avail, 2, 1);
    assert!(matches!(
        ring.take(),
        Err(RingFault::Head {
            head: 4,
            entries: 4
        })
    ));
}

/// Makes `count` requests available, takes and answers them.
fn turn(ring: &mut Ring, count: u16) {
    for _ in 0..count {
        let avail = ring.places().avail.clone();
        let idx = get(&avail, 2);
        set(&avail, 2, idx.wrapping_add(1));
        ring.take().unwrap().unwrap();
        ring.answer(0, 0).unwrap();
    }
    ring.publish().unwrap();
}

#[test]
fn without_event_idx_flags_say_who_wants_to_be_told() {
    let places = places();
    let mut ring = Ring::new(places.clone(), false, 0).unwrap();
    turn(&mut ring, 1);
    assert_eq!(get(&places.used, 0), USED_NO_NOTIFY);
    assert!(ring.wants_call().unwrap());
    assert!(!ring.wants_call().unwrap(), "nothing is new");
    set(&places.avail, 0, AVAIL_NO_INTERRUPT);
    turn(&mut ring, 1);
    assert!(!ring.wants_call().unwrap());
    assert!(!ring.arm().unwrap());
    assert_eq!(get(&places.used, 0), 0);
    set(&places.avail, 2, 3);
    assert!(ring.arm().unwrap(), "there is work, so nobody may sleep");
}

#[test]
fn with_event_idx_the_driver_is_told_when_its_index_is_passed() {
    let places = places();
    let mut ring = Ring::new(places.clone(), true, 0).unwrap();
    let event = 4 + 2 * usize::from(ENTRIES);
    turn(&mut ring, 1);
    assert!(
        ring.wants_call().unwrap(),
        "the first time, whatever it asked for"
    );
    set(&places.avail, event, 3);
    turn(&mut ring, 2);
    assert!(!ring.wants_call().unwrap());
    turn(&mut ring, 2);
    assert!(ring.wants_call().unwrap());
    turn(&mut ring, 4);
    assert!(!ring.wants_call().unwrap());
    // We ask for a kick at the next request, and for none while we look.
    let avail_event = 4 + 8 * usize::from(ENTRIES);
    assert!(!ring.arm().unwrap());
    assert_eq!(get(&places.used, avail_event), 9);
    turn(&mut ring, 3);
    assert_eq!(get(&places.used, avail_event), 9);
    assert_eq!(get(&places.used, 0), 0, "flags are not for this feature");
}
