//! Loading a pool of which single lines can't be read: metadata stand twice, so the other slot has to do,
//! without anything older in the place of what is lost; and the log's end, where nothing may stand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod rig;

use pmcache::bdev::{Bdev, MallocBdev, MallocConfig, Pmem};
use pmcache::cache::{CacheError, CacheOptions, LoadWish, LogDamage, Pool, check_pmem};
use pmcache::media::{KSET_ALIGN, KSET_BYTES_MAX, Parsed, kset_bytes, parse_kset};
use pmcache::units::SegmentId;
use rig::slow_pmem::SlowPmem;
use rig::{Rig, RigConfig};
use std::ops::Range;
use std::sync::Arc;

const SEGMENT: u64 = 256 << 10;
const LINE: u64 = 64;
const PAGE: u64 = 4096;
const SALVAGE: LoadWish = LoadWish {
    force: false,
    salvage: true,
};
/// Where the pairs of every segment end. One of them that is lost is not stored again: the segment is bad.
const SEGMENT_ITEMS_END: u64 = 192;
/// Where the pairs of the first segment end: behind them nothing was ever written.
const ITEMS_END: u64 = 896;

/// A cache on one lane, and what was written to it.
struct Life {
    rig: Option<Rig>,
    config: RigConfig,
    pmem: SlowPmem,
    backing: Arc<dyn Bdev>,
    dir: tempfile::TempDir,
    /// What each block of 4 KiB was written last.
    blocks: Vec<u8>,
    round: u8,
    boot: u8,
    /// The end of its log when it died.
    end: u64,
}

impl Life {
    fn new(options: CacheOptions) -> Self {
        let config = RigConfig {
            reactors: 1,
            lanes: 1,
            segments: 20,
            options,
            ..RigConfig::default()
        };
        let malloc = MallocConfig {
            name: "disk0".into(),
            uuid: uuid::Uuid::from_bytes([9; 16]),
            block_size: 512,
            blocks: (16 << 20) / 512,
        };
        let backing: Arc<dyn Bdev> = Arc::new(MallocBdev::new(malloc).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let pmem = SlowPmem::new((4 << 20) + 20 * SEGMENT, 0, 1);
        let rig = Rig::new(&config, Arc::new(pmem.clone()), backing.clone(), dir.path());
        Self {
            rig: Some(rig),
            config,
            pmem,
            backing,
            dir,
            blocks: vec![0; (16 << 20) / 4096],
            round: 0,
            boot: 7,
            end: 0,
        }
    }

    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }

    /// Writes one byte value to `count` blocks from `first` on.
    fn write(&mut self, first: usize, count: usize, fua: bool) {
        self.round = self.round % 250 + 1;
        let round = self.round;
        let rig = self.rig.as_mut().unwrap();
        let mut channel = rig.open(0);
        for number in first..first + count {
            let at = number as u64 * 4096;
            rig.write(&mut *channel, at, &[round; 4096], fua);
            self.blocks[number] = round;
        }
    }

    fn die(&mut self) {
        self.rig.take().unwrap().die();
    }

    fn stop(&mut self) {
        self.rig().stop();
        self.rig = None;
    }

    /// Another process; it opens the pool and does not load yet.
    fn open(&mut self) {
        let pool = Pool::open(Arc::new(self.pmem.clone())).unwrap();
        let backing = self.backing.clone();
        let mut rig = Rig::over(&self.config, pool, backing, self.dir.path());
        rig.runtime.boot_id = [self.boot; 16];
        self.rig = Some(rig);
    }

    fn load(&mut self) {
        self.open();
        self.rig().load();
    }

    /// `pmcache check` calls nothing damage from which a load recovers.
    fn assert_check_is_clean(&self, what: &str) {
        let pmem: Arc<dyn Pmem> = Arc::new(self.pmem.clone());
        let report = check_pmem(&pmem).unwrap();
        assert!(report.is_clean(), "{what}: {:?}", report.damages);
    }

    fn check(&mut self, what: &str) {
        let rig = self.rig.as_mut().unwrap();
        let mut channel = rig.open(0);
        for (number, round) in self.blocks.iter().enumerate() {
            let read = rig.read(&mut *channel, number as u64 * 4096, 4096);
            assert!(
                read == [*round; 4096],
                "{what}: block {number} is not {round}"
            );
        }
    }

    fn geometry_start(&self) -> u64 {
        let pool = Pool::open(Arc::new(self.pmem.clone())).unwrap();
        pool.geometry().segment_start(SegmentId(0))
    }

    fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        self.pmem.load(range.start, &mut bytes).unwrap();
        bytes
    }

    /// Where the kset that would continue the log has its place.
    fn log_end(&self) -> u64 {
        let bytes = self.bytes(0..self.pmem.bytes());
        let mut last = (0, 0);
        for at in (0..bytes.len()).step_by(KSET_ALIGN) {
            let end = (at + KSET_BYTES_MAX).min(bytes.len());
            if let Ok(Parsed::Kset(kset)) = parse_kset(&bytes[at..end]) {
                let behind = at + kset_bytes(kset.keys.len());
                last = last.max((kset.header.sequence, behind as u64));
            }
        }
        last.1
    }
}

fn dirty_for_long() -> CacheOptions {
    CacheOptions {
        writeback_delay_ms: 3_600_000,
        ..CacheOptions::default()
    }
}

/// Every line of the control areas in turn, in a life in which all of it moves.
#[test]
fn one_unreadable_line_of_metadata_loses_nothing() {
    let mut life = Life::new(CacheOptions::default());
    let start = life.geometry_start();
    for step in 0..ITEMS_END / LINE * 2 {
        for page in [0, PAGE] {
            // Around the pool, so that segments are released and used again.
            let first = usize::try_from(step * 391 % 3000).unwrap();
            life.write(first, 700, false);
            life.write(3100, 20, true);
            life.write(3200, 5, false);
            if step % 3 == 0 {
                life.rig().flush_all();
                life.write(first, 30, true);
            }
            if step % 5 == 4 {
                life.stop();
            } else {
                life.die();
            }
            let at = start + page + step * LINE % ITEMS_END;
            life.pmem.refuse_loads(at..at + LINE);
            life.assert_check_is_clean(&format!("line {at:#x}"));
            life.load();
            life.check(&format!("line {at:#x}"));
            life.pmem.heal();
        }
    }
    life.rig().flush_all();
    life.check("at last");
}

/// A quiet cache does not store its tails again for long. Found by `simulate --profile damage`, seed 1289.
#[test]
fn after_a_load_the_loss_of_the_other_slot_loses_nothing_either() {
    for item in (SEGMENT_ITEMS_END..ITEMS_END).step_by(64) {
        let mut life = Life::new(dirty_for_long());
        life.write(0, 30, true);
        life.die();
        let at = life.geometry_start() + item;
        for page in [0, PAGE, 0] {
            life.pmem.refuse_loads(at + page..at + page + LINE);
            life.load();
            life.check(&format!("line {:#x}", at + page));
            life.die();
            // What was stored there can be read.
            life.pmem.heal();
        }
    }
}

/// The lost slot of the dirty tail may have been the newer one: the backing may be ahead of what is left.
#[test]
fn that_the_backing_may_be_between_boundaries_is_known_until_all_is_written_back() {
    for page in [0, PAGE] {
        let mut life = Life::new(dirty_for_long());
        life.write(0, 30, true);
        life.die();
        let at = life.geometry_start() + 320 + page;
        life.pmem.refuse_loads(at..at + LINE);
        for _ in 0..2 {
            life.load();
            let cache = life.rig().cache.clone().unwrap();
            assert!(cache.status().between_boundaries, "{at:#x}");
            drop(cache);
            life.die();
            life.pmem.heal();
        }
        life.load();
        life.rig().flush_all();
        let cache = life.rig().cache.clone().unwrap();
        assert!(!cache.status().between_boundaries);
    }
}

#[test]
fn the_older_of_two_runs_is_not_continued_when_the_newer_is_lost() {
    // Which of the two slots was written last: each is tried.
    for page in [0, PAGE] {
        let mut life = Life::new(dirty_for_long());
        life.write(0, 10, true);
        life.die();
        life.load();
        life.write(10, 3, true);
        life.die();
        let at = life.geometry_start() + 384 + page;
        life.pmem.refuse_loads(at..at + LINE);
        life.load();
        life.check("loaded");
        life.write(20, 3, true);
        life.die();
        life.pmem.heal();
        life.load();
        life.check("again");
    }
}

#[test]
fn a_page_of_metadata_that_takes_and_gives_nothing_leaves_all_to_be_read() {
    for page in [0, PAGE] {
        let mut life = Life::new(dirty_for_long());
        life.write(0, 300, true);
        life.write(100, 5, false);
        life.die();
        let at = life.geometry_start() + page;
        life.pmem.refuse_loads(at..at + PAGE);
        life.pmem.refuse_stores(at..at + PAGE);
        life.load();
        life.check("read-only");
        let cache = life.rig().cache.clone().unwrap();
        let report = cache.replay_report();
        let lost = report.unwritable.unwrap();
        assert!((at..at + PAGE).contains(&lost.at), "{lost:?}");
        assert_eq!(cache.status().state, "read_only");
        assert!(cache.info().read_only);
        assert_eq!(report.staged_keys, 5);
        drop(cache);
        life.stop();
        life.pmem.heal();
        // Nothing was changed: it goes on as if nothing had been.
        life.load();
        life.check("healed");
        assert_eq!(life.rig().cache.as_ref().unwrap().status().state, "running");
    }
}

#[test]
fn one_unreadable_superblock_is_not_missed() {
    for at in [0, 128 << 10] {
        let mut life = Life::new(dirty_for_long());
        life.write(0, 10, true);
        // Two versions of the table.
        let cache = life.rig().cache.clone().unwrap();
        cache.set_options(cache.options()).unwrap();
        drop(cache);
        life.die();
        life.pmem.refuse_loads(at..at + LINE);
        assert!(Pool::is_formatted(&life.pmem).unwrap());
        life.load();
        life.check("loaded");
    }
}

/// The newer slot of the generation of a segment that is used for the second time.
#[test]
fn a_generation_whose_newer_slot_is_lost_is_found_in_the_log() {
    let mut life = Life::new(dirty_for_long());
    for _ in 0..3 {
        life.write(0, 2000, false);
        life.rig().flush_all();
    }
    life.write(0, 500, true);
    life.die();
    let start = life.geometry_start();
    let mut raised = 0;
    for segment in 0..20 {
        let at = start + segment * SEGMENT + 64;
        let seq = |at| {
            let bytes = life.bytes(at + 8..at + 16);
            u64::from_le_bytes(bytes.try_into().unwrap())
        };
        let newer = if seq(at + PAGE) > seq(at) {
            at + PAGE
        } else {
            at
        };
        raised += u64::from(seq(at + PAGE) > 1);
        life.pmem.refuse_loads(newer..newer + LINE);
        life.assert_check_is_clean(&format!("segment {segment}"));
        life.load();
        life.check(&format!("segment {segment}"));
        let status = life.rig().cache.as_ref().unwrap().status();
        assert_eq!(status.segments_bad, 1);
        life.die();
        life.pmem.heal();
    }
    assert!(raised > 3, "{raised}");
    life.load();
    life.check("healed");
}

fn is_unreadable_end(refused: Result<impl Sized, CacheError>) -> bool {
    let Err(CacheError::LogDamaged { reason, .. }) = refused else {
        return false;
    };
    matches!(reason, LogDamage::Unreadable { .. })
}

/// A log, its end, and `staged` writes that are not in it.
fn with_unreadable_end(staged: usize, lines: Range<u64>) -> Life {
    let mut life = Life::new(dirty_for_long());
    life.write(0, 30, true);
    life.write(100, staged, false);
    life.die();
    let end = life.log_end();
    life.end = end;
    life.pmem
        .refuse_loads(end + lines.start * LINE..end + lines.end * LINE);
    life
}

#[test]
fn an_unreadable_place_behind_the_log_of_a_dead_process_is_its_end() {
    let mut life = with_unreadable_end(5, 0..1);
    life.load();
    // What was stored there can be read.
    life.pmem.heal();
    life.check("loaded");
    let report = life.rig().cache.as_ref().unwrap().replay_report();
    assert_eq!((report.staged_keys, report.unwritable), (5, None));
    life.write(200, 5, true);
    life.die();
    life.pmem.heal();
    life.load();
    life.check("healed");
}

#[test]
fn an_unreadable_place_behind_a_log_that_was_stopped_is_its_end() {
    let mut life = Life::new(dirty_for_long());
    life.write(0, 30, true);
    life.stop();
    let end = life.log_end();
    life.pmem.refuse_loads(end..end + LINE);
    life.boot += 1;
    life.load();
    life.check("loaded");
}

#[test]
fn a_log_that_cannot_go_on_is_read_only() {
    let mut life = with_unreadable_end(5, 0..1);
    let end = life.end;
    life.pmem.refuse_stores(end..end + LINE);
    life.load();
    life.check("read-only");
    let cache = life.rig().cache.clone().unwrap();
    assert_eq!(cache.replay_report().unwritable.unwrap().at, end);
    assert!(cache.info().read_only);
}

/// The last kset of a machine that lost its power may have stood there.
#[test]
fn an_unreadable_place_behind_the_log_is_refused_after_a_power_cut() {
    let mut life = with_unreadable_end(0, 0..1);
    life.boot += 1;
    life.open();
    let refused = life.rig().try_load(LoadWish::default());
    assert!(is_unreadable_end(refused));
    let cache = life.rig().try_load(SALVAGE).unwrap();
    assert!(cache.replay_report().missing.is_some());
    life.check("salvaged");
}

/// Its first line is not that of the next kset: so no durable one stood there.
#[test]
fn an_unreadable_line_behind_the_first_one_is_no_lost_kset() {
    let mut life = with_unreadable_end(0, 1..9);
    life.boot += 1;
    life.load();
    life.check("loaded");
}

/// The process died, and its last kset is where nothing can be read: it was durable. What it had not
/// logged yet is newer than anything, and shown.
#[test]
fn a_last_kset_that_cannot_be_read_is_missed_and_staged_writes_are_salvaged() {
    let mut life = Life::new(dirty_for_long());
    life.write(0, 30, true);
    let before = life.log_end();
    life.write(50, 1, true);
    life.write(100, 5, false);
    life.die();
    life.pmem.refuse_loads(before..before + LINE);
    life.open();
    let refused = life.rig().try_load(LoadWish::default());
    assert!(is_unreadable_end(refused));
    let cache = life.rig().try_load(SALVAGE).unwrap();
    let report = cache.replay_report();
    assert_eq!(report.staged_keys, 5);
    assert!(report.missing.is_some());
    life.blocks[50] = 0;
    life.check("salvaged");
}
