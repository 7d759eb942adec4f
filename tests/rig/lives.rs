//! What happens to a machine as a whole: flushes of everything, comparisons, stops, deaths.

use super::slow_pmem::{CONTROL, act_as};
use super::world::{World, machine};
use pmcache::bdev::{Bdev, Data, IoBuf, IoStatus, Op, Pmem, Request};
use pmcache::cache::Pool;
use pmcache::units::ByteRange;
use std::sync::Arc;

impl World {
    /// Writes all dirty data of all volumes back; nothing is under way.
    pub(crate) fn flush_all(&mut self) {
        for number in 0..self.volumes.len() {
            let cache = self.cache(number).clone();
            cache.flush_start();
            self.until("a flush ends", |_| !cache.is_flushing());
            assert_eq!(cache.dirty_bytes(), 0, "{}", self.describe());
        }
    }

    /// Reads the whole of a volume through some bdev.
    pub(crate) fn read_all(&mut self, bdev: &dyn Bdev) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut channel = bdev.open(self.data[0].cx()).unwrap();
        let total = bdev.info().bytes();
        let mut at = 0;
        while at < total {
            let range = ByteRange::between(at, total.min(at + (1 << 20)));
            let data = Data::Buf(IoBuf::zeroed(usize::try_from(range.len()).unwrap()));
            let request = Request {
                tag: 0,
                op: Op::Read,
                range,
                data,
            };
            act_as(1);
            channel.submit(self.data[0].cx(), request);
            let mut done = Vec::new();
            for _ in 0..self.turns_max {
                act_as(1);
                let count = channel.poll(self.data[0].cx(), &mut done);
                act_as(CONTROL);
                if count > 0 {
                    break;
                }
                self.turn();
            }
            let done = done.pop().expect("a read of everything ends");
            assert_eq!(done.status, IoStatus::Ok, "reading {range} after all");
            bytes.extend_from_slice(&done.data.into_buf().unwrap());
            at = range.end();
        }
        bytes
    }

    /// Every byte of every volume is what the model says; nothing is under way.
    pub(crate) fn check_volumes(&mut self) {
        for number in 0..self.volumes.len() {
            let cache = self.cache(number).clone();
            let bytes = self.read_all(&*cache);
            self.check_bytes(number, &bytes, "volume");
        }
    }

    /// Every byte of every backing is what the model says: after a flush of everything.
    pub(crate) fn check_backings(&mut self) {
        for number in 0..self.volumes.len() {
            let backing = self.volumes[number].backing.clone();
            let bytes = self.read_all(&*backing);
            self.check_bytes(number, &bytes, "backing");
        }
    }

    /// The bytes of a volume as its disk keeps them are what the model says: after a flush of
    /// everything.
    pub(crate) fn check_image(&mut self, number: usize, bytes: &[u8]) {
        self.check_bytes(number, bytes, "disk");
    }

    fn check_bytes(&mut self, number: usize, bytes: &[u8], what: &str) {
        let model = &mut self.volumes[number].model;
        let since = model.now();
        if let Err(text) = model.check(0, bytes, since) {
            panic!("{what} {number}: {text}\n{}", self.describe());
        }
    }

    /// Closes the clients; all that they submitted has ended.
    pub(crate) fn close_clients(&mut self) {
        assert!(self.flights.is_empty());
        self.clients.clear();
    }

    fn some_turns_without_clients(&mut self) {
        self.clock.advance(10_000);
        for _ in 0..self.rng.below(5) {
            let reactor = self.rng.index(self.data.len() + 1);
            act_as(reactor + 1);
            match self.data.get_mut(reactor) {
                Some(reactor) => reactor.step(),
                None => self.maintenance.step(),
            };
            act_as(CONTROL);
        }
    }

    /// Stops every cache; after `patience` rounds in a hurry.
    pub(crate) fn stop(&mut self, patience: u64) {
        self.close_clients();
        for number in 0..self.volumes.len() {
            let cache = self.volumes[number].cache.take().unwrap();
            let mut rounds = 0;
            // A medium that has failed can't take the mark of a clean stop, and says so at the end.
            while !cache
                .stop_step(rounds > patience)
                .unwrap_or(self.errors_allowed)
            {
                // The control thread and each reactor go at their own pace.
                self.some_turns_without_clients();
                rounds += 1;
                assert!(
                    rounds < patience + 1000,
                    "a stop ends: {:?}",
                    cache.status()
                );
            }
        }
    }

    /// The process dies: reactors, caches and clients are gone, the media's bytes stay. A new one
    /// opens the pool, with `reactors` data reactors.
    pub(crate) fn die(&mut self, reactors: u32) {
        self.flights.clear();
        self.clients.clear();
        for volume in &mut self.volumes {
            volume.cache = None;
            volume.model.die();
        }
        self.config.reactors = reactors;
        self.restart();
    }

    /// Fresh reactors over the same media, nothing loaded.
    pub(crate) fn restart(&mut self) {
        let (data, maintenance, runtime) =
            machine(&self.config, &self.clock, &self.run_dir, self.boot);
        self.data = data;
        self.maintenance = maintenance;
        self.runtime = runtime;
        self.pool = Pool::open(self.pmem.clone()).unwrap();
    }

    /// Reads everything, checks that what was promised is there, and goes on from what was read.
    pub(crate) fn settle(&mut self, power: bool) {
        for number in 0..self.volumes.len() {
            let cache = self.cache(number).clone();
            let bytes = self.read_all(&*cache);
            if let Err(text) = self.volumes[number].model.settle(&bytes, power) {
                panic!(
                    "after a death, volume {number}: {text}\n{}",
                    self.describe()
                );
            }
        }
    }

    /// The machine lost its power: tmpfs is empty, and the kernel starts anew.
    pub(crate) fn lose_power(&mut self, pmem: Arc<dyn Pmem>, reactors: u32) {
        for entry in std::fs::read_dir(&self.run_dir).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        self.boot += 1;
        self.pmem = pmem;
        self.die(reactors);
    }

    /// The process died on this medium while it was loading.
    pub(crate) fn continue_on(&mut self, pmem: Arc<dyn Pmem>) {
        self.pmem = pmem;
        let reactors = self.config.reactors;
        self.die(reactors);
    }

    /// A client goes away without waiting for what it has under way, and another takes its place.
    pub(crate) fn replace_client(&mut self, number: usize) {
        let gone: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.client == number)
            .map(|(tag, _)| *tag)
            .collect();
        let client = &mut self.clients[number];
        for tag in gone {
            let flight = self.flights.remove(&tag).unwrap();
            // Its modifications may take effect at any later time.
            if matches!(flight.op, Op::Read | Op::Extents) {
                self.volumes[client.volume].model.end_read(flight.since);
            }
        }
        let cache = self.volumes[client.volume].cache.as_ref().unwrap();
        client.channel = cache.open(self.data[client.reactor].cx()).unwrap();
        client.under_way = 0;
    }

    /// Gives up what waits, for one client.
    pub(crate) fn cancel(&mut self, client: usize) {
        let to = &mut self.clients[client];
        act_as(to.reactor + 1);
        to.channel.cancel(self.data[to.reactor].cx());
        act_as(CONTROL);
    }
}
