//! What each sector may hold, from what was sent and what was acknowledged.
//!
//! A write may be lost while it is not acknowledged, and beats every write that was acknowledged
//! before it was sent. So a sector has a set of values that it may show: an acknowledgement removes
//! those whose own acknowledgement came before the acknowledged one was sent.

use super::mixed;
use std::fmt;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// The same for offsets.
pub const SECTOR_BYTES: u64 = 512;

/// One value that a sector may show.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value {
    /// The moment it was sent; names it.
    version: u64,
    /// Zeroes instead of the version's pattern.
    zero: bool,
    /// The moment it was acknowledged, or `u64::MAX`.
    acknowledged: u64,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.zero { "zero" } else { "data" };
        write!(f, "{kind} {}", self.version)?;
        match self.acknowledged {
            u64::MAX => write!(f, " (in flight)"),
            moment => write!(f, " (acknowledged {moment})"),
        }
    }
}

#[derive(Clone, Debug)]
struct Sector {
    values: Vec<Value>,
    /// When zeroes were last sent.
    zeroed: u64,
}

/// All sectors of a volume.
#[derive(Debug)]
pub struct Model {
    sectors: Vec<Sector>,
    now: u64,
}

/// What a read that is sent now may return.
#[derive(Debug)]
pub struct Expected {
    since: u64,
    first: u64,
    values: Vec<Vec<Value>>,
}

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Zero,
    Version(u64),
}

fn index(sector: u64) -> usize {
    usize::try_from(sector).expect("sectors fit into memory")
}

fn word(version: u64, sector: u64, at: u64) -> u64 {
    mixed(version ^ mixed(sector ^ at << 48))
}

/// The pattern of a version at `sector`: its number, its place, and words that follow from both.
fn put_pattern(version: u64, sector: u64, into: &mut [u8]) {
    for (at, bytes) in (0..).zip(into.chunks_exact_mut(8)) {
        let value = match at {
            0 => version,
            1 => sector,
            _ => word(version, sector, at),
        };
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

/// Names what the sector's bytes are; `None` for bytes that nobody wrote there.
fn recognise(sector: u64, bytes: &[u8]) -> Option<Found> {
    let words = || {
        bytes
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
    };
    if words().all(|word| word == 0) {
        return Some(Found::Zero);
    }
    let version = words().next()?;
    let fits = (0..).zip(words()).all(|(at, found)| match at {
        0 => true,
        1 => found == sector,
        _ => found == word(version, sector, at),
    });
    fits.then_some(Found::Version(version))
}

impl Model {
    /// A volume of zeroes.
    pub fn new(sectors: u64) -> Self {
        let zero = Sector {
            values: vec![Value {
                version: 0,
                zero: true,
                acknowledged: 0,
            }],
            zeroed: 0,
        };
        Self {
            sectors: vec![zero; index(sectors)],
            now: 0,
        }
    }

    /// How many sectors it has.
    pub fn sectors(&self) -> u64 {
        u64::try_from(self.sectors.len()).expect("a length")
    }

    fn range(&mut self, first: u64, count: u64) -> &mut [Sector] {
        &mut self.sectors[index(first)..index(first + count)]
    }

    /// A write (or, with `zero`, a discard or write-zeroes) is about to be sent; names its version.
    pub fn send(&mut self, first: u64, count: u64, zero: bool) -> u64 {
        self.now += 1;
        let version = self.now;
        for sector in self.range(first, count) {
            sector.values.push(Value {
                version,
                zero,
                acknowledged: u64::MAX,
            });
            if zero {
                sector.zeroed = version;
            }
        }
        version
    }

    /// The bytes of a write.
    pub fn payload(version: u64, first: u64, count: u64) -> Vec<u8> {
        let mut bytes = vec![0; index(count) * SECTOR];
        for (sector, into) in (first..).zip(bytes.chunks_exact_mut(SECTOR)) {
            put_pattern(version, sector, into);
        }
        bytes
    }

    /// A write has been acknowledged.
    pub fn acknowledge(&mut self, version: u64, first: u64, count: u64) {
        self.now += 1;
        let now = self.now;
        for sector in self.range(first, count) {
            for value in &mut sector.values {
                if value.version == version {
                    value.acknowledged = now;
                }
            }
            sector.values.retain(|value| value.acknowledged > version);
        }
    }

    /// A read is about to be sent.
    pub fn expect(&mut self, first: u64, count: u64) -> Expected {
        self.now += 1;
        let values = self.range(first, count).iter();
        let values = values.map(|sector| sector.values.clone()).collect();
        Expected {
            since: self.now,
            first,
            values,
        }
    }

    /// Checks what a read returned: a value from when it was sent, or a later one.
    pub fn check(&self, expected: &Expected, data: &[u8]) -> Result<(), String> {
        for ((sector, values), bytes) in (expected.first..)
            .zip(&expected.values)
            .zip(data.chunks_exact(SECTOR))
        {
            let state = &self.sectors[index(sector)];
            let found = recognise(sector, bytes);
            let fits = match found {
                None => false,
                Some(Found::Zero) => {
                    state.zeroed > expected.since || values.iter().any(|value| value.zero)
                }
                Some(Found::Version(version)) => {
                    (version > expected.since && version <= self.now)
                        || values.iter().any(|v| !v.zero && v.version == version)
                }
            };
            if !fits {
                return Err(complaint(sector, found, bytes, values));
            }
        }
        Ok(())
    }

    /// Nothing is in flight: checks the volume's bytes from `first` on, and takes what is found as
    /// what must be there from now on.
    pub fn settle(&mut self, first: u64, data: &[u8]) -> Result<(), String> {
        for (sector, bytes) in (first..).zip(data.chunks_exact(SECTOR)) {
            let found = recognise(sector, bytes);
            let state = &mut self.sectors[index(sector)];
            let fits = |value: &&Value| match found {
                None => false,
                Some(Found::Zero) => value.zero,
                Some(Found::Version(version)) => !value.zero && value.version == version,
            };
            let Some(value) = state.values.iter().find(fits) else {
                return Err(complaint(sector, found, bytes, &state.values));
            };
            let acknowledged = value.acknowledged.min(self.now);
            state.values = vec![Value {
                acknowledged,
                ..*value
            }];
        }
        Ok(())
    }
}

fn complaint(sector: u64, found: Option<Found>, bytes: &[u8], values: &[Value]) -> String {
    let begin: String = bytes[..16].iter().map(|b| format!("{b:02x}")).collect();
    let first = values.first();
    let last = &values[values.len().saturating_sub(3)..];
    format!(
        "sector {sector} holds {found:?} ({begin}…), allowed are {} values, {first:?} … {last:?}",
        values.len()
    )
}

#[test]
fn the_model_tells_lost_writes_from_allowed_ones() {
    let mut model = Model::new(2);
    let old = model.send(0, 2, false);
    model.acknowledge(old, 0, 2);
    let zeroes = vec![0; 2 * SECTOR];
    assert!(
        model.settle(0, &zeroes).is_err(),
        "an acknowledged write is gone"
    );

    // Two in flight: either order, but not what was acknowledged before.
    let one = model.send(0, 1, false);
    let two = model.send(0, 1, true);
    let expected = model.expect(0, 1);
    for bytes in [
        &Model::payload(old, 0, 1),
        &Model::payload(one, 0, 1),
        &zeroes[..SECTOR].to_vec(),
    ] {
        model.check(&expected, bytes).unwrap();
    }
    model.acknowledge(two, 0, 1);
    let expected = model.expect(0, 1);
    assert!(model.check(&expected, &Model::payload(old, 0, 1)).is_err());
    model.check(&expected, &Model::payload(one, 0, 1)).unwrap();
    assert!(
        model.settle(0, &Model::payload(one, 1, 1)).is_err(),
        "misplaced"
    );
    model.settle(0, &Model::payload(one, 0, 1)).unwrap();
    assert!(
        model.settle(0, &zeroes[..SECTOR]).is_err(),
        "it changed afterwards"
    );
}
