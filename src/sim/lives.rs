//! What happens to a machine as a whole: loads, stops, deaths, power cuts, and looks at all of it.

use super::disk::Faults;
use super::plan::Profile;
use super::rng::index;
use super::sectors::SECTOR;
use super::universe::{CONTROL, Snapshot, State};
use super::world::{Checked, Violation, World, machine};
use crate::bdev::{Bdev, Channel, Data, IoBuf, Op, Request};
use crate::cache::{Cache, CacheError, LoadWish, check_pmem};
use crate::units::ByteRange;
use std::collections::BTreeSet;
use std::sync::Arc;

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The process dies: what it stored stays, what the kernel has ends.
    Death,
    /// The machine loses its power.
    Power,
}

/// Reads of a whole volume are cut in pieces of this size.
const PIECE: u64 = 256 << 10;

impl World {
    /// Loads every cache and opens the clients.
    pub(super) fn load(&mut self) -> Checked<()> {
        for number in 0..self.volumes.len() {
            self.load_volume(number)?;
        }
        self.open_clients()
    }

    pub(super) fn open_clients(&mut self) -> Checked<()> {
        for number in 0..self.plan.clients {
            let (reactor, volume) = (number % self.data.len(), number % self.volumes.len());
            let client = self.open_client(reactor, volume)?;
            self.clients.push(client);
        }
        Ok(())
    }

    /// Loads a cache, or not; its parts have not started yet.
    pub(super) fn try_load(
        &mut self,
        number: usize,
        wish: LoadWish,
    ) -> Checked<Result<Arc<Cache>, CacheError>> {
        let name = self.volumes[number].name.clone();
        let backing = self.volumes[number].backing.clone();
        let begun = self.pool()?.load_start(&name, backing, &self.runtime, wish);
        let mut loading = match begun {
            Ok(loading) => loading,
            Err(error) => return Ok(Err(error)),
        };
        for round in 0..20_000 {
            // The backing is being read meanwhile.
            match loading.step(round == 19_999).transpose() {
                Some(loaded) => return Ok(loaded),
                None => self.clock.advance(50_000),
            }
            self.step_all();
        }
        Err(self.stuck("a load"))
    }

    pub(super) fn load_volume(&mut self, number: usize) -> Checked<()> {
        let name = self.volumes[number].name.clone();
        let loaded = self.try_load(number, LoadWish::default())?;
        let cache = loaded.map_err(|e| Violation::new(format!("load {name}: {e}")))?;
        self.counts.replays += 1;
        self.trace
            .note(|| format!("load {name}: {:?}", cache.replay_report()));
        self.await_parts(&cache)?;
        self.volumes[number].options = cache.options();
        self.volumes[number].complete = false;
        self.volumes[number].cache = Some(cache);
        self.after_engine()
    }

    /// Everything of the process is gone.
    fn forget_process(&mut self) {
        self.flights.clear();
        self.clients.clear();
        for volume in &mut self.volumes {
            volume.cache = None;
            volume.model.die();
        }
        self.pool = None;
        self.universe.write().views.clear();
    }

    /// The life ends now, or if `moment` is given, ended then. Nothing is loaded afterwards.
    pub(super) fn end_life(&mut self, end: End, moment: Option<Snapshot>) -> Checked<()> {
        self.trace.at_turn(self.turns);
        let point = moment.as_ref().map(|moment| moment.point);
        self.trace
            .note(|| format!("{end:?} at persist point {point:?}"));
        self.forget_process();
        if let Some(moment) = moment {
            self.restore(moment)?;
        }
        self.counts.cuts += 1;
        if self.universe.read().media.has_failed() {
            for volume in &mut self.volumes {
                volume.model.lose_volatile();
            }
            self.damaged = true;
        }
        if end == End::Power {
            for entry in std::fs::read_dir(self.run_dir.path())? {
                std::fs::remove_file(entry?.path())?;
            }
            self.boot = self.boot.wrapping_add(1);
        }
        {
            let mut state = self.universe.write();
            let State {
                media, disks, rng, ..
            } = &mut *state;
            for disk in disks {
                match end {
                    End::Death => disk.die(rng),
                    End::Power => disk.cut(rng),
                }
                disk.faults = Faults::none(&self.plan);
            }
            match end {
                End::Death => media.die(),
                End::Power => media.cut(rng),
            }
        }
        self.mended = self.turns;
        if self.plan.profile != Profile::Exhaustive {
            self.plan.reactors = self.rng.pick(&[1, 2, 2, 3]);
        }
        self.restart()?;
        self.open_pool()
    }

    fn restore(&mut self, moment: Snapshot) -> Checked<()> {
        for entry in std::fs::read_dir(self.run_dir.path())? {
            std::fs::remove_file(entry?.path())?;
        }
        for (name, bytes) in moment.files {
            std::fs::write(self.run_dir.path().join(name), bytes)?;
        }
        let mut state = self.universe.write();
        state.media = moment.media;
        state.disks = moment.disks;
        Ok(())
    }

    /// Fresh reactors over the same media, nothing loaded.
    pub(super) fn restart(&mut self) -> Checked<()> {
        let (data, maintenance, runtime) =
            machine(&self.plan, &self.clock, self.run_dir.path(), self.boot)?;
        self.data = data;
        self.maintenance = maintenance;
        self.runtime = runtime;
        self.mood = vec![1; self.reactor_count()];
        Ok(())
    }

    /// Reads everything, checks that what was promised is there, and goes on from what was read.
    pub(super) fn settle(&mut self, end: End) -> Checked<()> {
        for number in 0..self.volumes.len() {
            let cache = self.cache(number)?;
            let (bytes, unreadable) = self.read_all(number, &*cache)?;
            let start = self.plan.used().start();
            let model = &mut self.volumes[number].model;
            let power = end == End::Power;
            // What bypassed the cache is not durable because it was read.
            let settled = model.settle(start, &bytes, power, self.plan.modes, &unreadable);
            settled.map_err(|mut wrong| {
                wrong.what = format!("after {end:?}: {}", wrong.what);
                Violation::at(number, wrong)
            })?;
            if power {
                // What a failed flush has lost is known now.
                cache.clear_flush_failure();
            }
        }
        Ok(())
    }

    /// What a cache shows that was loaded for salvage: nothing but what was written there once.
    pub(super) fn check_salvaged(&mut self, number: usize) -> Checked<()> {
        let wish = LoadWish {
            salvage: true,
            ..LoadWish::default()
        };
        let loaded = self.try_load(number, wish)?;
        let cache = loaded.map_err(|e| Violation::new(format!("salvage: {e}")))?;
        self.await_parts(&cache)?;
        let used = self.plan.used();
        let mut bytes = vec![0; index(used.len())];
        let opened = cache.open(self.data[0].cx());
        let mut channel = opened.map_err(|e| Violation::new(format!("open a channel: {e}")))?;
        let unread = self.read_pieces(&mut *channel, &[used], &mut bytes)?;
        if unread.is_empty() {
            let model = &self.volumes[number].model;
            let checked = model.check_places(used.start(), &bytes);
            checked.map_err(|wrong| Violation::at(number, wrong))?;
        }
        self.counts.checks += 1;
        Ok(())
    }

    fn await_parts(&mut self, cache: &Cache) -> Checked<()> {
        for _ in 0..1000 {
            match cache.is_installed() {
                Ok(true) => return Ok(()),
                Ok(false) => self.step_all(),
                Err(e) => return Err(Violation::new(format!("start {}: {e}", cache.name()))),
            }
        }
        Err(self.stuck("the start of a cache"))
    }

    /// Reads the whole of what is used of a device, on the first reactor.
    fn read_all(&mut self, number: usize, bdev: &dyn Bdev) -> Checked<(Vec<u8>, BTreeSet<u64>)> {
        self.counts.checks += 1;
        let used = self.plan.used();
        let mut bytes = vec![0; index(used.len())];
        let opened = bdev.open(self.data[0].cx());
        let mut channel = opened.map_err(|e| Violation::new(format!("open a channel: {e}")))?;
        let mut pieces: Vec<ByteRange> = (used.start()..used.end())
            .step_by(index(PIECE))
            .map(|start| ByteRange::between(start, used.end().min(start + PIECE)))
            .collect();
        let mut unreadable = BTreeSet::new();
        while !pieces.is_empty() {
            let failed = self.read_pieces(&mut *channel, &pieces, &mut bytes)?;
            pieces.clear();
            for range in failed {
                let model = &mut self.volumes[number].model;
                let now = model.now();
                if !model.may_fail(range, now) {
                    return Err(Violation::new(format!(
                        "{range} of volume {number} can't be read, and nothing was lost there"
                    )));
                }
                let block = u64::from(self.plan.block_bytes);
                if range.len() == block {
                    unreadable.extend(range.start() / SECTOR..range.end() / SECTOR);
                } else {
                    let blocks = (range.start()..range.end()).step_by(index(block));
                    pieces.extend(blocks.map(|at| ByteRange::between(at, at + block)));
                }
            }
        }
        Ok((bytes, unreadable))
    }

    /// Reads pieces of what is used into their places of `bytes`; gives those that failed.
    fn read_pieces(
        &mut self,
        channel: &mut dyn Channel,
        pieces: &[ByteRange],
        bytes: &mut [u8],
    ) -> Checked<Vec<ByteRange>> {
        let first = self.plan.used().start();
        for (tag, &range) in (0..).zip(pieces) {
            let data = Data::Buf(IoBuf::zeroed(index(range.len())));
            let request = Request {
                tag,
                op: Op::Read,
                range,
                data,
            };
            self.universe.act_as(1);
            channel.submit(self.data[0].cx(), request);
            self.universe.act_as(CONTROL);
        }
        let mut left = pieces.len();
        let mut failed = Vec::new();
        let mut done = Vec::new();
        self.until("a read of everything", |world| {
            world.universe.act_as(1);
            channel.poll(world.data[0].cx(), &mut done);
            world.universe.act_as(CONTROL);
            for completion in done.drain(..) {
                let range = pieces[index(completion.tag)];
                if !completion.status.is_ok() {
                    failed.push(range);
                } else if let Data::Buf(buf) = completion.data {
                    let at = index(range.start() - first);
                    bytes[at..at + buf.len()].copy_from_slice(&buf);
                }
                left -= 1;
            }
            Ok(left == 0)
        })?;
        failed.sort_by_key(|range| range.start());
        Ok(failed)
    }

    /// Every byte of every volume is what the model says; nothing is under way.
    pub(super) fn check_volumes(&mut self) -> Checked<()> {
        for number in 0..self.volumes.len() {
            let cache = self.cache(number)?;
            let (bytes, unreadable) = self.read_all(number, &*cache)?;
            self.check_bytes(number, &bytes, &unreadable, "volume")?;
        }
        Ok(())
    }

    /// Every byte of a backing is what the model says: after a flush of everything.
    pub(super) fn check_backing(&mut self, number: usize) -> Checked<()> {
        let image = self.universe.read().disks[number].peek(self.plan.used());
        self.counts.checks += 1;
        // What is lost was never written back.
        let model = &mut self.volumes[number].model;
        let now = model.now();
        let lost = model.lost_sectors(self.plan.used(), now);
        self.check_bytes(number, &image, &lost, "backing")
    }

    fn check_bytes(
        &mut self,
        number: usize,
        bytes: &[u8],
        unreadable: &BTreeSet<u64>,
        what: &str,
    ) -> Checked<()> {
        let start = self.plan.used().start();
        let model = &mut self.volumes[number].model;
        let since = model.now();
        model
            .check(start, bytes, since, unreadable)
            .map_err(|mut wrong| {
                wrong.what = format!("{what} {number}: {}", wrong.what);
                Violation::at(number, wrong)
            })
    }

    /// If the pmem were lost now, the backing would be at a flush boundary.
    pub(super) fn check_boundary(&mut self, number: usize) -> Checked<()> {
        self.counts.checks += 1;
        let image = {
            let state = self.universe.read();
            let (mut disk, mut rng) = (state.disks[number].clone(), state.rng.clone());
            drop(state);
            disk.cut(&mut rng);
            disk.image()
        };
        let checked = self.volumes[number].model.check_boundary(&image);
        checked.map_err(|wrong| Violation::at(number, wrong))
    }

    /// Writes all dirty data of all volumes back; nothing is under way.
    pub(super) fn flush_all(&mut self) -> Checked<()> {
        for number in 0..self.volumes.len() {
            let cache = self.cache(number)?;
            cache.flush_start();
            self.until("a flush of everything", |_| Ok(!cache.is_flushing()))?;
            if cache.dirty_bytes() != 0 {
                return Err(Violation::new(format!(
                    "{} bytes are dirty after a flush of everything",
                    cache.dirty_bytes()
                )));
            }
            let volume = &mut self.volumes[number];
            volume.complete = volume.options.mode.bypasses();
        }
        Ok(())
    }

    /// `check` finds the pool clean; nothing is loaded.
    pub(super) fn check_pool(&mut self) -> Checked<()> {
        if self.damaged {
            // It finds what was lost, and must.
            return Ok(());
        }
        self.counts.checks += 1;
        let pmem: Arc<dyn crate::bdev::Pmem> = self.pmem.clone();
        match check_pmem(&pmem) {
            Ok(report) if report.is_clean() => Ok(()),
            Ok(report) => Err(Violation::new(format!(
                "check finds damage: {:?}",
                report.damages
            ))),
            Err(error) => Err(Violation::new(format!("check: {error}"))),
        }
    }

    /// Closes the clients, whatever they have under way, and stops every cache; in a hurry after so
    /// many rounds.
    pub(super) fn stop(&mut self, patience: u64) -> Checked<()> {
        self.clients.clear();
        self.flights.clear();
        for number in 0..self.volumes.len() {
            self.stop_volume(number, patience)?;
        }
        Ok(())
    }

    /// Stops one cache; its clients are gone.
    pub(super) fn stop_volume(&mut self, number: usize, patience: u64) -> Checked<()> {
        let cache = self.cache(number)?;
        self.trace
            .note(|| format!("stop volume {number}, patience {patience}"));
        let mut rounds = 0;
        loop {
            match cache.stop_step(rounds > patience) {
                Ok(true) => break,
                Ok(false) => {}
                // Somebody is slow to take messages: the next step tries again.
                Err(CacheError::Busy(_)) => {}
                // A medium that has failed can't take the mark of a clean stop, and says so.
                Err(_) if !self.is_well() => break,
                Err(e) => return Err(Violation::new(format!("stop: {e}"))),
            }
            // The control thread and each reactor go at their own pace.
            for _ in 0..self.rng.below(6) {
                self.turn()?;
            }
            rounds += 1;
            if rounds > patience + 4000 {
                return Err(self.stuck("a stop"));
            }
        }
        self.volumes[number].cache = None;
        self.after_engine()
    }
}
