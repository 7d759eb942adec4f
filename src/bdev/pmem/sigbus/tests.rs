//! Faults made by cutting files that are mapped.

use super::super::map::Mapping;
use super::super::persist::{CopyKernel, FlushMethod, Persist};
use super::*;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const PAGE: u64 = 4096;

fn persist() -> Persist {
    Persist::new(CopyKernel::detect(), FlushMethod::None)
}

/// A mapped file of `pages` pages of 0x11.
fn mapped(pages: usize) -> (File, Arc<Mapping>) {
    let file = tempfile::tempfile().unwrap();
    let bytes = pages * system_page();
    file.set_len(bytes as u64).unwrap();
    let mapping = Mapping::file(file.try_clone().unwrap(), bytes, 0).unwrap();
    mapping.store(&persist(), 0, &vec![0x11; bytes]).unwrap();
    (file, Arc::new(mapping))
}

fn poison(at: u64, len: u64) -> PmemError {
    PmemError::Poison { at, len }
}

/// Runs the test `name` of this file again, alone in a process of its own, where [`is_child`].
fn run_in_child(name: &str) -> std::process::ExitStatus {
    let name = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env("PMCACHE_SIGBUS_CHILD", "1")
        .status()
        .unwrap()
}

fn is_child() -> bool {
    std::env::var_os("PMCACHE_SIGBUS_CHILD").is_some()
}

#[test]
fn what_a_shorter_file_lacks_is_an_error_each_time_and_the_rest_is_served() {
    let (file, mapping) = mapped(8);
    file.set_len(3 * PAGE).unwrap();
    let mut page = [0; 4096];
    for _ in 0..3 {
        mapping.load(2 * PAGE, &mut page).unwrap();
        assert!(page == [0x11; 4096]);
        let lost = mapping.load(3 * PAGE - 100, &mut page[..200]);
        assert_eq!(lost, Err(poison(3 * PAGE, 100)));
    }
    // Nobody has asked for page 5 yet; and the file that grows again holds zeroes there.
    assert_eq!(mapping.lost_bytes(), PAGE);
    file.set_len(8 * PAGE).unwrap();
    assert_eq!(
        mapping.load(3 * PAGE, &mut page),
        Err(poison(3 * PAGE, PAGE))
    );
    mapping.load(5 * PAGE, &mut page).unwrap();
    assert!(page == [0; 4096]);
}

#[test]
fn a_store_that_does_not_reach_the_file_is_an_error_with_every_kernel() {
    for kernel in CopyKernel::available() {
        for len in [1, 8, 64, 100, 4096, 9000] {
            let (file, mapping) = mapped(8);
            file.set_len(2 * PAGE).unwrap();
            let persist = Persist::new(kernel, FlushMethod::None);
            let src = vec![0x22; len];
            mapping
                .store(&persist, PAGE, &src[..len.min(4096)])
                .unwrap();
            let lost = mapping.store(&persist, 3 * PAGE - 1, &src);
            let first = poison(3 * PAGE - 1, 1);
            assert_eq!(lost, Err(first), "{kernel:?} {len}");
            assert_eq!(
                mapping.store_data_crc(&persist, 3 * PAGE - 1, &src),
                Err(first)
            );
            assert_eq!(mapping.load(3 * PAGE - 1, &mut [0]), Err(first));
        }
    }
}

#[test]
fn a_view_of_what_was_lost_is_refused_or_fails_its_check() {
    let (file, mapping) = mapped(4);
    let view = mapping.view(PAGE, 4096).unwrap();
    mapping.check(PAGE, 4096).unwrap();
    file.set_len(0).unwrap();
    // Not known yet. The kernel refuses, as for any device that reads from a view.
    let disk = tempfile::tempfile().unwrap();
    assert_eq!(
        rustix::io::pwrite(&disk, &view, 0),
        Err(rustix::io::Errno::FAULT)
    );
    mapping.check(PAGE, 4096).unwrap();
    // We find out, and get anything; from then on the kernel gets it too.
    assert_eq!(view.iter().map(|b| u32::from(*b)).sum::<u32>(), 0);
    assert_eq!(rustix::io::pwrite(&disk, &view, 0), Ok(4096));
    assert_eq!(mapping.check(PAGE, 4096), Err(poison(PAGE, PAGE)));
    assert_eq!(mapping.view(PAGE + 8, 8).unwrap_err(), poison(PAGE + 8, 8));
    mapping.check(0, 4096).unwrap();
}

#[test]
fn threads_that_race_with_a_fault_never_believe_the_replacement() {
    let (pages, threads) = (512, 4);
    for _ in 0..20 {
        let (file, mapping) = mapped(pages);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let mapping = &mapping;
                scope.spawn(move || {
                    let mut page = [0; 4096];
                    let mut lost = 0;
                    while lost < 2 * pages {
                        // All at the same pages, two of them from the other end.
                        let step = lost % pages;
                        let at = if thread % 2 == 0 {
                            step
                        } else {
                            pages - 1 - step
                        };
                        match mapping.load(at as u64 * PAGE, &mut page) {
                            Ok(()) => assert!(page == [0x11; 4096]),
                            Err(error) => {
                                assert_eq!(error, poison(at as u64 * PAGE, PAGE));
                                lost += 1;
                            }
                        }
                    }
                });
            }
            file.set_len(0).unwrap();
        });
        assert_eq!(mapping.lost_bytes(), pages as u64 * PAGE);
    }
}

#[test]
fn a_slot_is_used_again_and_guards_only_what_is_mapped_now() {
    for _ in 0..3 * SLOTS {
        let guard = Guarded::new(1 << 20, 4096, 0).unwrap();
        drop(guard);
    }
    let (file, mapping) = mapped(2);
    file.set_len(0).unwrap();
    assert_eq!(mapping.load(0, &mut [0; 8]), Err(poison(0, 8)));
}

#[test]
fn a_large_unit_is_lost_as_a_whole() {
    let (file, mapping) = mapped(8);
    let base = mapping.address();
    let unit = 4 * system_page();
    let guard = Guarded::new(base, 8 * system_page(), unit).unwrap();
    drop(file);
    assert!(guard.marks.lose(base + 5 * system_page()));
    assert_eq!(guard.check(0, 4 * 4096), Ok(()));
    assert_eq!(guard.check(4 * PAGE - 1, 2), Err(poison(4 * PAGE, 1)));
    assert_eq!(guard.check(7 * PAGE, 100), Err(poison(7 * PAGE, 100)));
    assert_eq!(guard.lost_bytes(), 4 * PAGE);
}

#[test]
fn with_too_many_lost_places_all_is_lost_and_the_process_lives() {
    let islands = ISLANDS_MAX as u64;
    let (file, mapping) = mapped(2 * ISLANDS_MAX + 8);
    file.set_len(PAGE).unwrap();
    let lose = |page: u64| {
        let lost = mapping.load(page * PAGE, &mut [0; 8]);
        assert_eq!(lost, Err(poison(page * PAGE, 8)));
    };
    // Neighbours of a lost page cost nothing.
    (1..4).for_each(lose);
    (2..=islands).for_each(|island| lose(2 * island + 1));
    assert_eq!(mapping.lost_bytes(), (islands + 2) * PAGE);
    mapping.load(0, &mut [0; 8]).unwrap();
    lose(2 * islands + 3);
    assert_eq!(mapping.lost_bytes(), (2 * islands + 8) * PAGE);
    assert_eq!(mapping.load(0, &mut [0; 8]), Err(poison(0, 8)));
    let store = mapping.store(&persist(), 100, &[1; 100]);
    assert_eq!(store, Err(poison(100, 100)));
}

#[test]
fn a_sigbus_elsewhere_kills_as_before() {
    if !is_child() {
        let status = run_in_child("a_sigbus_elsewhere_kills_as_before");
        assert_eq!(status.signal(), Some(libc::SIGBUS));
        return;
    }
    // A guarded mapping next to it, and one that was.
    let (guarded, mapping) = mapped(2);
    guarded.set_len(0).unwrap();
    mapping.load(0, &mut [0; 8]).unwrap_err();
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE).unwrap();
    let map = MmapOptions::new().map_raw(&file).unwrap();
    file.set_len(0).unwrap();
    // SAFETY: inside a live mapping, aligned; that it faults is the purpose.
    let byte = unsafe { ptr::read_volatile(map.as_ptr()) };
    panic!("read {byte} behind the end of a file");
}

#[test]
fn a_sigbus_that_a_process_sends_is_not_mistaken_for_a_fault() {
    if !is_child() {
        let name = "a_sigbus_that_a_process_sends_is_not_mistaken_for_a_fault";
        assert_eq!(run_in_child(name).signal(), Some(libc::SIGBUS));
        return;
    }
    // As if it had the default action before us.
    // SAFETY: nobody else handles signals in this process.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    let (_file, mapping) = mapped(2);
    // SAFETY: sends a signal.
    unsafe { libc::raise(libc::SIGBUS) };
    panic!("alive, with {} bytes lost", mapping.lost_bytes());
}
