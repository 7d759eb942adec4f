//! Random requests over several connections, each reply checked against the model.

use super::fleet::{Done, Fleet, FleetError, Io};
use super::model::{Expected, Model, SECTOR_BYTES};
use super::{Random, elapsed};
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What requests are made; percents, the rest are writes.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub reads: u64,
    pub flushes: u64,
    pub zeroes: u64,
    /// Of the writes.
    pub fua: u64,
    /// Longest request in sectors.
    pub sectors_max: u64,
    /// Of the requests that may be as long; the others are at most 8 sectors.
    pub long: u64,
    /// Requests that each connection keeps under way.
    pub depth: usize,
}

#[derive(Debug)]
enum Pending {
    Read(Expected),
    Change {
        version: u64,
        first: u64,
        count: u64,
    },
    Flush,
}

/// The connections, what they wait for, and what the volume may hold.
#[derive(Debug)]
pub struct Load {
    pub fleet: Fleet,
    pub model: Model,
    pending: HashMap<u64, Pending>,
    /// Bytes of writes, zeroes included, that were sent.
    pub written: u64,
    /// Changes that were acknowledged.
    pub acknowledged: u64,
    last_reply: SystemTime,
    /// The service is going down: requests that wait may be told so.
    ending: bool,
}

/// Longer than any request takes while the service is alive.
const STALL: Duration = Duration::from_secs(30);
/// What NBD says of a request that was given up since the server stops.
const ESHUTDOWN: u32 = 108;
/// Bytes of a read that looks at the whole volume.
const PIECE: u64 = 1 << 20;

impl Load {
    /// `links` connections to `export`, whose content `model` knows.
    pub fn new(socket: &Path, export: &str, links: usize, model: Model) -> Self {
        Self {
            fleet: Fleet::connect(socket, export, links),
            model,
            pending: HashMap::new(),
            written: 0,
            acknowledged: 0,
            last_reply: SystemTime::now(),
            ending: false,
        }
    }

    /// Writes version patterns on a connection.
    pub fn write(&mut self, link: usize, first: u64, count: u64, fua: bool) {
        let version = self.model.send(first, count, false);
        let io = Io::Write {
            offset: first * SECTOR_BYTES,
            data: Model::payload(version, first, count),
            fua,
        };
        self.change(link, &io, version, first, count);
    }

    /// Zeroes on a connection.
    pub fn zero(&mut self, link: usize, first: u64, count: u64, trim: bool) {
        let version = self.model.send(first, count, true);
        let len = u32::try_from(count * SECTOR_BYTES).unwrap();
        let offset = first * SECTOR_BYTES;
        self.change(link, &Io::Zero { offset, len, trim }, version, first, count);
    }

    fn change(&mut self, link: usize, io: &Io, version: u64, first: u64, count: u64) {
        self.written += count * SECTOR_BYTES;
        let cookie = self.fleet.submit(link, io);
        let change = Pending::Change {
            version,
            first,
            count,
        };
        self.pending.insert(cookie, change);
    }

    /// Reads on a connection; the answer is checked when it comes.
    pub fn read(&mut self, link: usize, first: u64, count: u64) {
        let expected = self.model.expect(first, count);
        let len = u32::try_from(count * SECTOR_BYTES).unwrap();
        let offset = first * SECTOR_BYTES;
        let cookie = self.fleet.submit(link, &Io::Read { offset, len });
        self.pending.insert(cookie, Pending::Read(expected));
    }

    /// A FLUSH on a connection.
    pub fn flush(&mut self, link: usize) {
        let cookie = self.fleet.submit(link, &Io::Flush);
        self.pending.insert(cookie, Pending::Flush);
    }

    fn random(&mut self, link: usize, mix: &Mix, random: &mut Random) {
        let longest = if random.chance(mix.long) {
            mix.sectors_max
        } else {
            mix.sectors_max.min(8)
        };
        let count = 1 + random.below(longest);
        let first = random.below(self.model.sectors() - count + 1);
        let kind = random.below(100);
        if kind < mix.reads {
            self.read(link, first, count);
        } else if kind < mix.reads + mix.flushes {
            self.flush(link);
        } else if kind < mix.reads + mix.flushes + mix.zeroes {
            self.zero(link, first, count, random.chance(50));
        } else {
            self.write(link, first, count, random.chance(mix.fua));
        }
    }

    /// Fills the pipelines of all connections and takes what comes back.
    ///
    /// # Errors
    /// A connection ended.
    pub fn step(&mut self, mix: &Mix, random: &mut Random) -> Result<(), FleetError> {
        for link in 0..self.fleet.links() {
            while self.fleet.in_flight(link) < mix.depth {
                self.random(link, mix, random);
            }
        }
        self.take_or_stall()
    }

    /// Takes the replies that come within `wait`.
    ///
    /// # Errors
    /// A connection ended.
    pub fn take(&mut self, wait: Duration) -> Result<(), FleetError> {
        let replies = self.fleet.pump(wait)?;
        if !replies.is_empty() || self.pending.is_empty() {
            self.last_reply = SystemTime::now();
        }
        for reply in replies {
            self.account(&reply);
        }
        Ok(())
    }

    /// As [`Load::take`]; nothing for long, though something is under way, is a stall.
    ///
    /// # Errors
    /// A connection ended.
    pub fn take_or_stall(&mut self) -> Result<(), FleetError> {
        self.take(Duration::from_millis(100))?;
        let silent = elapsed(self.last_reply);
        assert!(
            silent < STALL,
            "no reply for {silent:?}: {:?}",
            self.pending.len()
        );
        Ok(())
    }

    fn account(&mut self, reply: &Done) {
        let pending = self.pending.remove(&reply.cookie).expect("a reply once");
        if self.ending && reply.error == ESHUTDOWN {
            return;
        }
        assert_eq!(reply.error, 0, "an error reached the client: {pending:?}");
        match pending {
            Pending::Flush => {}
            Pending::Read(expected) => {
                if let Err(complaint) = self.model.check(&expected, &reply.data) {
                    panic!("a read under load: {complaint}");
                }
            }
            Pending::Change {
                version,
                first,
                count,
            } => {
                self.model.acknowledge(version, first, count);
                self.acknowledged += 1;
            }
        }
    }

    /// Requests without a reply.
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// Whether nothing came back for `time`.
    pub fn is_silent_for(&self, time: Duration) -> bool {
        elapsed(self.last_reply) >= time
    }

    /// Takes what comes until `condition` holds.
    pub fn take_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let begun = SystemTime::now();
        while !condition(self) {
            assert!(elapsed(begun) < STALL, "{what} does not happen");
            self.take(Duration::from_millis(20))
                .expect("the service is alive");
        }
    }

    /// Takes all that is under way.
    pub fn drain(&mut self) {
        while !self.pending.is_empty() {
            self.take_or_stall().expect("the service is alive");
        }
    }

    /// Nothing is under way: hangs up, and returns what the volume may hold.
    pub fn hang_up(self) -> Model {
        assert!(self.pending.is_empty(), "{:?}", self.pending);
        self.model
    }

    /// The service has ended: takes the replies that it had sent, and returns what the volume may
    /// hold.
    pub fn bury(mut self) -> Model {
        self.ending = true;
        while self.take_or_stall().is_ok() {}
        self.model
    }

    /// Reads the whole volume while nothing else is under way, and settles what it holds.
    pub fn verify(&mut self) {
        self.drain();
        self.last_reply = SystemTime::now();
        let sectors = self.model.sectors();
        let piece = PIECE / SECTOR_BYTES;
        let mut next = 0;
        let mut first_of = HashMap::new();
        while next < sectors || !first_of.is_empty() {
            for link in 0..self.fleet.links() {
                if self.fleet.in_flight(link) < 2 && next < sectors {
                    let count = piece.min(sectors - next);
                    let io = Io::Read {
                        offset: next * SECTOR_BYTES,
                        len: u32::try_from(count * SECTOR_BYTES).unwrap(),
                    };
                    first_of.insert(self.fleet.submit(link, &io), next);
                    next += count;
                }
            }
            let pumped = self.fleet.pump(Duration::from_millis(100));
            let replies = pumped.expect("the service is alive");
            if !replies.is_empty() {
                self.last_reply = SystemTime::now();
            }
            assert!(elapsed(self.last_reply) < STALL, "a read stalls");
            for reply in replies {
                let first = first_of.remove(&reply.cookie).expect("a reply once");
                assert_eq!(reply.error, 0, "sector {first}: a read fails");
                if let Err(complaint) = self.model.settle(first, &reply.data) {
                    panic!("the volume: {complaint}");
                }
            }
        }
    }
}
