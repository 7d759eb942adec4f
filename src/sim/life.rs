//! What one seed does: lives of a machine, their ends, and what is looked at in between.

use super::disk::Faults;
use super::lives::End;
use super::plan::{Plan, Profile};
use super::rng::Rng;
use super::trace::Trace;
use super::universe::Snapshot;
use super::world::{Checked, Counts, Violation, World};
use crate::bdev::Op;
use crate::cache::WritebackOrder;
use crate::units::ByteRange;

/// How many lives a machine has at most.
const LIVES_MAX: u32 = 40;

/// Runs a seed; the trace tells of one sector.
pub(super) fn run(
    profile: Profile,
    seed: u64,
    operations: u64,
    trace: Trace,
) -> (Counts, Vec<String>, Checked<()>) {
    let (plan, rng) = Plan::draw(profile, seed);
    let mut world = match World::new(plan, rng, trace) {
        Ok(world) => world,
        Err(violation) => return (Counts::default(), Vec::new(), Err(violation)),
    };
    let lived = world.live(operations);
    let lived = lived.map_err(|mut violation| {
        violation.what = format!(
            "turn {}, persist point {}: {}\n{:?}",
            world.turns,
            world.universe.points(),
            violation.what,
            world.plan
        );
        violation
    });
    (world.counts, world.trace.lines(), lived)
}

impl World {
    fn live(&mut self, operations: u64) -> Checked<()> {
        if self.plan.profile == Profile::Exhaustive {
            return self.live_exhaustively(operations);
        }
        let operations = operations * self.plan.operations_percent / 100;
        for _ in 0..LIVES_MAX {
            if self.counts.operations >= operations {
                break;
            }
            let share = match self.plan.profile {
                Profile::Short => 1 + self.rng.below(8),
                Profile::Hops => operations,
                Profile::Modes => 1 + self.rng.below(120),
                _ => 1 + self.rng.below(operations / 3),
            };
            if self.plan.looks_at_backing {
                self.run_in_order(share)?;
            } else {
                self.run(share)?;
            }
            self.something_happens()?;
        }
        self.finish()
    }

    /// Runs, and looks at the backing alone now and then.
    fn run_in_order(&mut self, count: u64) -> Checked<()> {
        for _ in 0..count.div_ceil(8) {
            self.run(8)?;
            for _ in 0..self.rng.below(40) {
                self.turn()?;
            }
            self.check_order()?;
        }
        Ok(())
    }

    /// The backing alone is at a flush boundary, where that is promised.
    fn check_order(&mut self) -> Checked<()> {
        for number in 0..self.volumes.len() {
            let status = self.volumes[number].cache.as_ref().map(|c| c.status());
            let says_so = status.is_some_and(|s| !s.between_boundaries);
            let promised = match self.volumes[number].options.writeback_order {
                // Whatever the order: writes reach it as they complete.
                _ if self.volumes[number].complete => true,
                WritebackOrder::Strict => says_so || !self.plan.modes,
                WritebackOrder::Adaptive => says_so,
                WritebackOrder::Relaxed => false,
            };
            // A cache that never flushes makes no epochs that a host knows of.
            if promised && !self.volumes[number].is_durable() {
                self.check_boundary(number)?;
            }
        }
        Ok(())
    }

    fn something_happens(&mut self) -> Checked<()> {
        match self.plan.profile {
            Profile::Damage => return self.decay(),
            Profile::Short => {
                if self.rng.permille(150) {
                    self.empty_the_log()?;
                }
                self.crash()?;
                return if self.rng.permille(600) {
                    self.stand_before_leftovers()
                } else {
                    Ok(())
                };
            }
            Profile::Hops if self.rng.permille(800) => return self.crash(),
            Profile::Resize if self.rng.permille(700) => return self.resize(),
            Profile::Modes if self.rng.permille(400) => return self.change_options(),
            _ => {}
        }
        if self.plan.trouble && self.rng.permille(if self.plan.modes { 500 } else { 1000 }) {
            self.make_trouble()?;
        }
        match self.rng.below(12) {
            0..=4 => self.crash(),
            5 => self.stop_and_load(),
            6 => self.change_options(),
            7 => {
                self.drain_or_give_up()?;
                self.flush_and_compare()
            }
            8 => {
                let client = self.rng.index(self.clients.len());
                if self.rng.permille(500) {
                    self.cancel(client)
                } else {
                    self.replace_client(client)
                }
            }
            9 if !self.damaged && !self.has_flush_failed() => self.create_anew(),
            // Timers fire: ksets grow old, writeback looks, the quiet log is noted.
            10 => self.rest(1_500_000_000),
            _ => {
                self.drain_or_give_up()?;
                self.rest(2_500_000_000)?;
                self.audit()
            }
        }
    }

    /// Something goes wrong with a device for a while, and is mended.
    fn make_trouble(&mut self) -> Checked<()> {
        let disk = self.rng.index(self.volumes.len());
        let mut faults = Faults::none(&self.plan);
        match self.rng.below(6) {
            0 => faults.write_permille = 300,
            1 => faults.flush_permille = 600,
            2 => faults.read_permille = 300,
            3 => faults.stalled = true,
            4 => {
                let block = u64::from(self.plan.block_bytes);
                let at = self.rng.below(self.plan.volume_bytes / block) * block;
                faults.bad = ByteRange::between(at, at + block);
            }
            _ => {
                let count = 1 + self.rng.below(40);
                self.universe.write().media.fail_barrier(count);
            }
        }
        self.trace
            .note(|| format!("trouble with disk {disk}: {faults:?}"));
        self.universe.write().disks[disk].faults = faults;
        let count = 1 + self.rng.below(120);
        self.run(count)?;
        let failed = self.universe.read().media.has_failed();
        if failed || self.rng.permille(300) {
            // A medium that failed stays so until another process opens it.
            return self.crash();
        }
        self.mend()
    }

    fn mend(&mut self) -> Checked<()> {
        for disk in &mut self.universe.write().disks {
            disk.faults = Faults::none(&self.plan);
        }
        self.universe.write().media.heal_barriers();
        self.mended = self.turns;
        self.trace.note(|| "everything is well again".into());
        self.after_engine()
    }

    /// Waits for what is under way; on a machine that is not well only for a while.
    fn drain_or_give_up(&mut self) -> Checked<()> {
        if self.is_well() {
            return self.drain();
        }
        self.mend()?;
        if self.is_well() {
            return self.drain();
        }
        self.crash()?;
        self.drain()
    }

    /// The life ends at some persist point of what goes on, and so may be the load behind it, and the
    /// next one.
    fn crash(&mut self) -> Checked<()> {
        let end = self.random_end();
        let moment = if self.rng.permille(700) {
            let ahead = 1 + self.rng.below(self.rng.clone().pick(&[12, 60]));
            self.run_until_kept(ahead)?
        } else {
            None
        };
        self.end_life(end, moment)?;
        self.load_with_ends(end)
    }

    /// The life ends, the medium decays, and the next one makes the best of it.
    fn decay(&mut self) -> Checked<()> {
        if self.rng.permille(400) {
            self.decay_running()?;
        }
        let end = self.random_end();
        if self.rng.permille(300) {
            self.drain()?;
            self.stop(20_000)?;
        }
        self.end_life(end, None)?;
        let damage = self.damage()?;
        self.load_damaged(damage)?;
        self.settle(end)?;
        match self.rng.below(4) {
            0 => self.flush_and_compare(),
            1 => self.rest(2_500_000_000),
            2 => self.crash(),
            _ => Ok(()),
        }
    }

    /// What a crash cut off may still stand behind the log's new end. A few ksets more end the log
    /// somewhere, perhaps just there; then loads that log nothing, so that the leftover's incarnation
    /// and sequence lie in the past.
    fn stand_before_leftovers(&mut self) -> Checked<()> {
        self.drain()?;
        let block = u64::from(self.plan.block_bytes);
        let used = self.plan.used();
        for _ in 0..self.rng.below(4) {
            let client = self.rng.index(self.clients.len());
            let at = used.start() + self.rng.below(used.len() / block) * block;
            let range = ByteRange::between(at, at + block);
            self.submit(client, Op::Write { fua: true }, range)?;
            self.drain()?;
        }
        if self.rng.permille(500) {
            self.empty_the_log()?;
        }
        for _ in 0..2 {
            let end = self.random_end();
            self.end_life(end, None)?;
            self.load()?;
        }
        self.settle(End::Power)
    }

    /// GC passes everything, so that the key tail stands at the log's end.
    fn empty_the_log(&mut self) -> Checked<()> {
        self.drain()?;
        self.flush_all()?;
        for number in 0..self.volumes.len() {
            let cache = self.cache(number)?;
            let before = cache.options();
            let none = crate::cache::CacheOptions {
                gc_percent: 0,
                ..before.clone()
            };
            let failed = |e| Violation::new(format!("set_options: {e}"));
            cache.set_options(none).map_err(failed)?;
            for _ in 0..400 {
                let status = cache.status();
                if status.key_tail.2 > status.durable_sequence {
                    break;
                }
                self.turn()?;
            }
            cache.set_options(before).map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn random_end(&mut self) -> End {
        if self.rng.permille(600) {
            End::Power
        } else {
            End::Death
        }
    }

    /// Goes on until the persist point `ahead` is kept, or nothing happens any more.
    fn run_until_kept(&mut self, ahead: u64) -> Checked<Option<Snapshot>> {
        self.universe.keep_after(ahead, 0);
        let mix = self.plan.mix;
        let mut kept = Vec::new();
        for _ in 0..4000 {
            kept = self.universe.take_kept();
            if !kept.is_empty() {
                break;
            }
            if self.flights.len() < self.plan.depth && self.rng.permille(500) {
                self.submit_random(&mix)?;
                kept = self.universe.take_kept();
                if !kept.is_empty() {
                    break;
                }
            }
            self.turn_until_kept(&mut kept)?;
            if !kept.is_empty() {
                break;
            }
        }
        self.universe.keep_none();
        Ok(kept.pop())
    }

    /// A turn of which a snapshot leaves out what the model would learn behind it.
    pub(super) fn turn_until_kept(&mut self, kept: &mut Vec<Snapshot>) -> Checked<()> {
        self.turns += 1;
        let ns = self.rng.below(20_000);
        self.clock.advance(ns);
        let reactor = self.rng.index(self.reactor_count());
        self.step(reactor);
        *kept = self.universe.take_kept();
        if kept.is_empty() && !self.clients.is_empty() {
            let client = self.rng.index(self.clients.len());
            self.poll(client)?;
            *kept = self.universe.take_kept();
        }
        Ok(())
    }

    /// Loads after a life that ended in `end`; the load may be cut off, again and again.
    pub(super) fn load_with_ends(&mut self, mut end: End) -> Checked<()> {
        let mut tries = 0;
        while tries < 3 && self.rng.permille(450) {
            tries += 1;
            let ahead = 1 + self.rng.below(self.rng.clone().pick(&[20, 120, 600]));
            self.universe.keep_after(ahead, 0);
            self.load()?;
            let moment = self.universe.take_kept().pop();
            self.universe.keep_none();
            let Some(moment) = moment else {
                // The load is whole; what was read once must stay, also over a cut right now.
                self.settle(end)?;
                end = self.random_end();
                self.end_life(end, None)?;
                continue;
            };
            let next = self.random_end();
            if next == End::Power {
                end = next;
            }
            self.end_life(next, Some(moment))?;
        }
        // Lives without a look at the volume log nothing; the promises of the last one hold on.
        while self.rng.permille(self.plan.blind_permille) {
            self.load()?;
            let next = self.random_end();
            if next == End::Power {
                end = next;
            }
            self.end_life(next, None)?;
        }
        self.load()?;
        self.settle(end)?;
        if self.rng.permille(300) {
            let end = self.random_end();
            self.end_life(end, None)?;
            self.load()?;
            self.settle(end)?;
        }
        if self.rng.permille(200) {
            self.audit()?;
        }
        Ok(())
    }

    fn stop_and_load(&mut self) -> Checked<()> {
        let in_hurry = self.rng.permille(200);
        if !in_hurry {
            self.drain_or_give_up()?;
        }
        // Then the backing may lose what was acknowledged, also behind a stop, which is no clean one.
        let is_lossy = self.has_flush_failed();
        let changes = !in_hurry && !is_lossy && self.rng.permille(300);
        if changes {
            self.flush_and_compare()?;
        }
        let patience = if in_hurry { self.rng.below(6) } else { 20_000 };
        self.stop(patience)?;
        for volume in &mut self.volumes {
            volume.model.die();
        }
        // Backing writes that a hurried stop left under way end before the next load.
        for _ in 0..2000 {
            if !self.pool()?.has_loaded() {
                break;
            }
            self.turn()?;
        }
        if changes && !self.pool()?.has_loaded() {
            self.change_backing()?;
        }
        if self.rng.permille(400) {
            // After a clean stop nothing is lost, whatever happens.
            let end = self.random_end();
            let clean = !in_hurry && !is_lossy;
            self.end_life(end, None)?;
            self.check_pool()?;
            self.load()?;
            return self.settle(if clean { End::Death } else { end });
        }
        if !in_hurry {
            self.check_pool()?;
        }
        self.restart()?;
        self.open_pool()?;
        self.load()?;
        self.settle(End::Death)
    }

    /// Whether a flush of a backing failed behind writes that had bypassed a cache.
    fn has_flush_failed(&self) -> bool {
        let caches = self.volumes.iter().filter_map(|v| v.cache.as_ref());
        caches.map(|c| c.status()).any(|s| s.flush_failed)
    }

    fn change_options(&mut self) -> Checked<()> {
        let number = self.rng.index(self.volumes.len());
        let options = self.plan.other_options(&mut self.rng);
        let cache = self.cache(number)?;
        let options = crate::cache::CacheOptions {
            durability: self.volumes[number].options.durability,
            ..options
        };
        self.trace
            .note(|| format!("options of {number}: {options:?}"));
        match cache.set_options(options.clone()) {
            Ok(()) => {
                self.volumes[number].options = options;
                self.volumes[number].complete = false;
                Ok(())
            }
            Err(_) if !self.is_well() => Ok(()),
            Err(e) => Err(Violation::new(format!("set_options: {e}"))),
        }
    }

    /// Everything is written back; the backing alone is complete.
    fn flush_and_compare(&mut self) -> Checked<()> {
        self.flush_all()?;
        for number in 0..self.volumes.len() {
            self.check_backing(number)?;
        }
        Ok(())
    }

    /// A cache is destroyed when all of it is written back, and another takes its place; a cut may
    /// come anywhere in between.
    fn create_anew(&mut self) -> Checked<()> {
        self.drain_or_give_up()?;
        self.flush_and_compare()?;
        self.stop(20_000)?;
        let number = self.rng.index(self.volumes.len());
        let name = self.volumes[number].name.clone();
        self.trace.note(|| format!("destroy {name}"));
        let ahead = 1 + self.rng.below(120);
        self.universe.keep_after(ahead, 0);
        let destroyed = self.pool()?.destroy_cache(&name, 0, 0, None);
        destroyed.map_err(|e| Violation::new(format!("destroy {name}: {e}")))?;
        self.create(number)?;
        let moment = self.universe.take_kept().pop();
        self.universe.keep_none();
        if let Some(moment) = moment {
            let end = self.random_end();
            self.end_life(end, Some(moment))?;
            let exists = self
                .pool()?
                .caches()
                .iter()
                .any(|entry| entry.name() == name);
            if !exists {
                self.create(number)?;
            }
        }
        self.load()?;
        self.settle(End::Death)
    }

    /// The end of all: nothing is wrong any more, all is written back, and all agree.
    fn finish(&mut self) -> Checked<()> {
        self.drain_or_give_up()?;
        self.check_volumes()?;
        self.rest(2_500_000_000)?;
        self.audit()?;
        self.flush_and_compare()?;
        self.stop(20_000)?;
        self.check_pool()
    }

    /// What the engine counts in memory is what its log says; nothing is under way.
    pub(super) fn audit(&mut self) -> Checked<()> {
        if self.damaged {
            return Ok(());
        }
        self.counts.checks += 1;
        for number in 0..self.volumes.len() {
            let cache = self.cache(number)?;
            let Some(gc) = self.maintenance.last() else {
                continue;
            };
            let data: Vec<_> = self.data.iter().map(|reactor| reactor.cx()).collect();
            let audited = cache.audit(&data, gc.cx());
            let at_rest = audited.map_err(|e| Violation::new(format!("audit of {number}: {e}")))?;
            self.counts.audits += u64::from(at_rest);
        }
        Ok(())
    }
}

/// A machine that is only looked at: a copy of another one, cut at a persist point.
impl World {
    fn live_exhaustively(&mut self, operations: u64) -> Checked<()> {
        let count = operations.min(160);
        self.forks = true;
        self.universe.keep_after(1, 1);
        self.run(count / 2)?;
        if self.plan.modes {
            self.change_options()?;
        }
        self.run(count - count / 2)?;
        self.drain()?;
        self.grow_and_shrink(count / 16)?;
        self.drain()?;
        self.rest(1_200_000_000)?;
        self.drain()?;
        self.universe.keep_none();
        self.forks = false;
        self.finish()
    }

    /// Ends the life of a copy of this machine in both ways; the loads of some copies are cut, too.
    pub(super) fn cut_fork(&mut self, moment: &Snapshot) -> Checked<()> {
        for end in [End::Death, End::Power, End::Power] {
            let seed = self.plan.seed ^ moment.point.rotate_left(32);
            let mut fork = self.copy(moment, Rng::new(seed ^ u64::from(end == End::Power)))?;
            let looked = fork.look_after(end, moment.clone());
            self.counts.cuts += fork.counts.cuts;
            self.counts.replays += fork.counts.replays;
            self.counts.checks += fork.counts.checks;
            if let Err(violation) = looked {
                let point = moment.point;
                self.trace = fork.trace;
                return Err(Violation {
                    what: format!("{end:?} at persist point {point}: {}", violation.what),
                    ..violation
                });
            }
        }
        Ok(())
    }

    fn look_after(&mut self, end: End, moment: Snapshot) -> Checked<()> {
        self.end_life(end, Some(moment))?;
        self.check_pool()?;
        if self.rng.permille(300) {
            let ahead = 1 + self.rng.below(150);
            self.universe.keep_after(ahead, 0);
            self.load()?;
            let moment = self.universe.take_kept().pop();
            self.universe.keep_none();
            if let Some(moment) = moment {
                let next = self.random_end();
                self.end_life(next, Some(moment))?;
                self.load()?;
                return self.settle(if next == End::Power { next } else { end });
            }
        } else {
            self.load()?;
        }
        self.settle(end)?;
        if self.rng.permille(200) {
            self.end_life(End::Power, None)?;
            self.load()?;
            self.settle(End::Power)?;
        }
        Ok(())
    }
}
