//! A whole pool, damaged: opened, loaded, read, written, flushed, stopped, and looked at by `check`.
//! It is refused, or serves what once was true, and never panics or hangs.
//!
//! An input is a list of changes. It says whether the checksums of what was changed shall be made right
//! again; then the values themselves must be judged, and what is served may be anything: whoever can
//! forge a checksum can say what the data are. Without that, each sector must hold something that was
//! written there once, or what the backing has, or be an error.

mod memory;
mod sample;

use super::input::Input;
use super::rig::Rig;
use super::rig::sectors::parse;
use memory::DISK_VERSION;
use pmcache::bdev::{Bdev, Channel, Completion, Data, IoBuf, IoStatus, Op, Pmem, Request};
use pmcache::cache::{Cache, CacheOptions, Pool, check_pool};
use pmcache::units::ByteRange;
use sample::{SUBTREE_BYTES, Sample, Sealed, USED_BYTES, rig_config};
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Turns of the reactors within which anything that does not wait for space must have ended.
const TURNS_MAX: usize = 20_000;
const READ_BYTES: u64 = 16 << 10;

thread_local! {
    /// Of a cache that died and of one that was stopped cleanly; their files go with the thread.
    static SAMPLES: [Sample; 2] = [false, true].map(Sample::build);
}

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    SAMPLES.with(|samples| check_sample(&samples[usize::from(flags & 1)], flags, &mut input));
}

fn check_sample(sample: &Sample, flags: u8, input: &mut Input) {
    sample.pmem.reset(&sample.image);
    std::fs::write(&sample.staging, &sample.staged).unwrap();
    let mut damage = Damage {
        sample,
        reseal: flags & 2 != 0,
        changed: Vec::new(),
        is_lost: true,
    };
    while !input.is_empty() {
        damage.apply(input);
    }
    let is_lost = damage.finish();
    if flags & 4 != 0 {
        std::fs::remove_file(&sample.staging).unwrap();
    }
    let is_clean = (flags & 8 != 0).then(|| look(sample));
    let use_it = Use {
        is_lost,
        collects: flags & 16 != 0,
    };
    let is_loaded = open(sample, use_it);
    if is_lost && let Some(is_clean) = is_clean {
        assert!(
            is_loaded || !is_clean,
            "a load refuses what `check` finds good"
        );
    }
}

/// What an input does to a sample.
struct Damage<'a> {
    sample: &'a Sample,
    reseal: bool,
    changed: Vec<Sealed>,
    /// All that was changed has lost its checksum: none of it may be believed.
    is_lost: bool,
}

impl Damage<'_> {
    /// Changes some bytes at one place.
    fn apply(&mut self, input: &mut Input) {
        let places = &self.sample.places;
        let (kind, number) = (input.u8(), usize::from(input.u16()));
        let one_of = |places: &[Sealed], number: usize| vec![places[number % places.len()]];
        let both = |places: &[Sealed]| {
            let first = (number % places.len()) & !1;
            places[first..first + 2].to_vec()
        };
        let found = match kind % 10 {
            0 => one_of(&places.superblocks, number),
            1 => places.superblocks.clone(),
            2 => one_of(&places.items, number),
            3 => both(&places.items),
            4 => one_of(&places.slots, number),
            5 => both(&places.slots),
            // The latest of them, which matter most.
            6 => one_of(
                &places.ksets,
                places.ksets.len().wrapping_sub(1 + number % 256),
            ),
            7 => one_of(&places.ksets, number),
            8 => return self.anywhere(number, input),
            _ => return self.copy(number, input),
        };
        // In a superblock only the header and the first cache say anything.
        let within = usize::from(input.u16());
        let value = input.bytes(usize::from(kind / 10) % 8 + 1);
        for place in found {
            let at = within % place.len.min(2048);
            let value = &value[..value.len().min(place.len - at)];
            self.sample.pmem.write(place.at + at, value);
            self.changed.push(place);
        }
    }

    /// Where no checksum is known: data, leftovers, empty space, the staging file.
    fn anywhere(&mut self, number: usize, input: &mut Input) {
        let at = number * 64 + usize::from(input.u8());
        let value = input.bytes(8);
        if number & 1 == 0 && at + value.len() <= self.sample.image.len() {
            self.sample.pmem.write(at, value);
        } else {
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&self.sample.staging);
            let at = at % self.sample.staged.len();
            file.unwrap().write_all_at(value, at as u64).unwrap();
        }
        self.is_lost = false;
    }

    /// Something good in another place.
    fn copy(&mut self, from: usize, input: &mut Input) {
        let places = &self.sample.places;
        let to = usize::from(input.u16());
        let list = if input.u8() & 1 == 0 {
            &places.slots
        } else {
            &places.ksets
        };
        let (from, to) = (list[from % list.len()], list[to % list.len()]);
        let bytes = self.sample.pmem.read(from.at, from.len.min(to.len));
        self.sample.pmem.write(to.at, &bytes);
        self.is_lost = false;
    }

    /// Makes the checksums right, if the input wants it. Whether none of what was changed is good.
    fn finish(self) -> bool {
        let pmem = &self.sample.pmem;
        if self.reseal {
            for place in &self.changed {
                let mut bytes = pmem.read(place.at, place.len);
                place.seal(&mut bytes);
                pmem.write(place.at, &bytes);
            }
        }
        let is_believed = |place: &Sealed| {
            let bytes = pmem.read(place.at, place.len);
            place.is_good(&bytes) && bytes != self.sample.image[place.at..][..place.len]
        };
        self.is_lost && !self.changed.iter().any(is_believed)
    }
}

/// Whether `check` finds nothing in the damaged pool.
fn look(sample: &Sample) -> bool {
    let path = sample.dir.path().join("pool.pmem");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .unwrap();
    if file.metadata().unwrap().len() == 0 {
        file.write_all_at(&sample.image, 0).unwrap();
    }
    let touched = sample.pmem.touched();
    for (at, bytes) in &touched {
        file.write_all_at(bytes, *at as u64).unwrap();
    }
    drop(file);
    let report = check_pool(&path);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (at, bytes) in &touched {
        let before = &sample.image[*at..*at + bytes.len()];
        file.write_all_at(before, *at as u64).unwrap();
    }
    report.is_ok_and(|report| report.is_clean())
}

/// How the pool is used.
#[derive(Clone, Copy)]
struct Use {
    /// What was changed may not be believed.
    is_lost: bool,
    /// GC goes over all that has been written back.
    collects: bool,
}

/// Opens the pool and uses its caches. Whether all of it could be loaded.
fn open(sample: &Sample, use_it: Use) -> bool {
    let pool = match Pool::open(sample.pmem.clone() as Arc<dyn Pmem>) {
        Ok(pool) => pool,
        Err(error) => return error.to_string().is_empty(),
    };
    assert!(pool.free_segments() <= pool.geometry().segments);
    let names: Vec<String> = pool
        .caches()
        .iter()
        .map(|entry| uuid::Uuid::from_bytes(entry.uuid).to_string())
        .collect();
    let mut is_loaded = names.len() == 1;
    for name in names.iter().take(2) {
        is_loaded &= use_cache(sample, &pool, name, use_it);
    }
    is_loaded
}

/// Loads the cache, uses it and stops it. Whether it could be loaded.
fn use_cache(sample: &Sample, pool: &Arc<Pool>, name: &str, use_it: Use) -> bool {
    let disk: Arc<dyn Bdev> = Arc::new(sample.disk.fresh());
    let mut rig = Rig::over(&rig_config(), pool.clone(), disk.clone(), sample.dir.path());
    let cache = match pool.load_cache(name, disk, &rig.runtime, false) {
        Ok(cache) => cache,
        Err(error) => return error.to_string().is_empty(),
    };
    turn_until(&mut rig, "the parts start", |_| {
        cache.is_installed().unwrap()
    });
    rig.cache = Some(cache.clone());
    let mut client = Client {
        channel: rig.open(0),
        pending: BTreeSet::new(),
        done: Vec::new(),
    };
    let first = client.read_all(&mut rig);
    if use_it.is_lost {
        judge(sample, &first);
    }
    client.write_some(&mut rig);
    cache.flush_start();
    if use_it.collects {
        let options = CacheOptions {
            gc_percent: 0,
            ..cache.options()
        };
        cache.set_options(options).unwrap();
    }
    for _ in 0..if use_it.collects { 300 } else { 100 } {
        client.turn(&mut rig);
    }
    let again = client.read_all(&mut rig);
    if use_it.is_lost {
        judge(sample, &again);
        for (first, again) in first.iter().zip(&again) {
            let differ = first.1.is_ok() && again.1.is_ok() && first != again;
            assert!(!differ, "a sector has two values, behind {}", first.0);
        }
    }
    client.leave(&mut rig);
    drop(client);
    let _ = (cache.status(), cache.figures(), cache.gc_figures());
    stop(&mut rig, &cache);
    true
}

fn turn_until(rig: &mut Rig, what: &str, mut is_so: impl FnMut(&mut Rig) -> bool) {
    for _ in 0..TURNS_MAX {
        if is_so(rig) {
            return;
        }
        rig.step();
    }
    let status = rig.cache.as_ref().map(|cache| cache.status());
    panic!("it never came true that {what}: {status:?}");
}

/// A stop ends, whatever is wrong, at the latest when it is told to hurry.
fn stop(rig: &mut Rig, cache: &Cache) {
    for turn in 0..TURNS_MAX {
        match cache.stop_step(turn > 2000) {
            Ok(true) | Err(_) => return,
            Ok(false) => rig.step(),
        }
    }
    panic!("the stop did not end: {:?}", cache.status());
}

/// Somebody who uses the cache.
struct Client {
    channel: Box<dyn Channel>,
    pending: BTreeSet<u64>,
    done: Vec<Completion>,
}

impl Client {
    fn submit(&mut self, rig: &Rig, tag: u64, op: Op, at: u64, data: Data) {
        let range = ByteRange::between(at, at + data.len());
        let request = Request {
            tag,
            op,
            range,
            data,
        };
        self.pending.insert(tag);
        self.channel.submit(rig.data[0].cx(), request);
    }

    /// One turn; what has completed in it stands in `done`.
    fn turn(&mut self, rig: &mut Rig) {
        self.done.clear();
        self.channel.poll(rig.data[0].cx(), &mut self.done);
        for completion in &self.done {
            assert!(self.pending.remove(&completion.tag), "{completion:?}");
        }
        rig.step();
    }

    /// Reads all that was ever written, in parts: where each begins, and what it holds.
    fn read_all(&mut self, rig: &mut Rig) -> Vec<(u64, Result<Vec<u8>, IoStatus>)> {
        let parts = (0..USED_BYTES).step_by(usize::try_from(READ_BYTES).unwrap());
        let parts: BTreeSet<u64> = parts.flat_map(|at| [at, at + SUBTREE_BYTES]).collect();
        for &at in &parts {
            let buf = IoBuf::zeroed(usize::try_from(READ_BYTES).unwrap());
            self.submit(rig, at, Op::Read, at, Data::Buf(buf));
        }
        let mut found = Vec::new();
        for _ in 0..TURNS_MAX {
            self.turn(rig);
            for completion in self.done.drain(..) {
                if !parts.contains(&completion.tag) {
                    continue;
                }
                let bytes = completion.data.into_buf().map(|buf| buf.to_vec());
                let outcome = match completion.status {
                    IoStatus::Ok => Ok(bytes.unwrap()),
                    status => Err(status),
                };
                found.push((completion.tag, outcome));
            }
            if found.len() == parts.len() {
                found.sort_by_key(|(at, _)| *at);
                return found;
            }
        }
        panic!(
            "reads did not end: {:?}",
            rig.cache.as_ref().map(|c| c.status())
        );
    }

    /// Writes behind what is read. They may have to wait for space for ever, if the log is damaged.
    fn write_some(&mut self, rig: &mut Rig) {
        for number in 0..6 {
            let tag = SUBTREE_BYTES * 4 + number;
            let at = USED_BYTES + (number % 2) * SUBTREE_BYTES + number * 4096;
            let data = Data::Buf(IoBuf::zeroed(4096));
            self.submit(rig, tag, Op::Write { fua: number > 3 }, at, data);
        }
    }

    /// Gives up what waits, and waits for what can't be given up.
    fn leave(&mut self, rig: &mut Rig) {
        for _ in 0..TURNS_MAX {
            if self.pending.is_empty() {
                return;
            }
            self.channel.cancel(rig.data[0].cx());
            self.turn(rig);
        }
        panic!("requests were not given up: {:?}", self.pending);
    }
}

/// Each sector holds what was written there once, or what the backing has.
fn judge(sample: &Sample, found: &[(u64, Result<Vec<u8>, IoStatus>)]) {
    for (at, outcome) in found {
        let Ok(bytes) = outcome else { continue };
        for (number, sector) in (at / 512..).zip(bytes.chunks_exact(512)) {
            let is_known = parse(sector).is_some_and(|(said, version)| match version {
                0 => sample.written.contains(&(number, 0)),
                DISK_VERSION => said == number,
                version => said == number && sample.written.contains(&(number, version)),
            });
            assert!(is_known, "sector {number} holds {:x?}", &sector[..16]);
        }
    }
}
