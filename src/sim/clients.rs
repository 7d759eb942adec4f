//! The clients of a simulated machine: what they ask, and what must come back.

use super::mix::Mix;
use super::rng::index;
use super::sectors::{SECTOR, Sectors, Version, parse};
use super::universe::CONTROL;
use super::world::{Checked, Violation, World};
use crate::bdev::{Bdev, Channel, Completion, Data, IoBuf, IoStatus, Op, Request};
use crate::units::ByteRange;
use std::collections::BTreeSet;

/// A client on a reactor.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) reactor: usize,
    pub(super) volume: usize,
    pub(super) channel: Box<dyn Channel>,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) client: usize,
    pub(super) op: Op,
    pub(super) range: ByteRange,
    version: Version,
    pub(super) since: u64,
    pub(super) turn: u64,
}

impl World {
    /// Opens one more client of a volume on a reactor.
    pub(super) fn open_client(&mut self, reactor: usize, volume: usize) -> Checked<Client> {
        let cache = self.cache(volume)?;
        let channel = cache.open(self.data[reactor].cx());
        let channel = channel.map_err(|e| Violation::new(format!("open a channel: {e}")))?;
        Ok(Client {
            reactor,
            volume,
            channel,
        })
    }

    /// A place where something may go wrong, more often than not.
    fn random_range(&mut self) -> ByteRange {
        let block = u64::from(self.plan.block_bytes);
        let used = self.plan.used();
        let blocks = used.len() / block;
        let (large, medium) = (self.plan.large_permille, self.plan.medium_permille);
        let small = self.plan.small;
        let rng = &mut self.rng;
        let len_max = match rng.below(1000) {
            n if n < large => 4 << 20,
            _ if small => 2 * block,
            n if n < large + medium => 256 << 10,
            n if n < 350 => 64 << 10,
            _ => 8 << 10,
        };
        let len = 1 + rng.below(len_max / block);
        let near = |rng: &mut super::rng::Rng, border: u64| {
            let count = (blocks * block / border).max(1);
            let at = (1 + rng.below(count)) * border / block;
            at.saturating_sub(rng.below(len + 2))
        };
        let start = match rng.below(10) {
            _ if blocks <= 256 => rng.below(blocks),
            0..=1 => near(rng, 4 << 20),
            2..=3 => near(rng, 64 << 10),
            4 => near(rng, 32 << 10),
            5..=7 => rng.below((128 << 10) / block),
            _ => rng.below(blocks),
        };
        let start = start.min(blocks - 1);
        let len = len.min(blocks - start);
        let first = used.start() / block;
        ByteRange::between((first + start) * block, (first + start + len) * block)
    }

    /// Submits something by some client.
    pub(super) fn submit_random(&mut self, mix: &Mix) -> Checked<()> {
        let client = self.rng.index(self.clients.len());
        let op = mix.draw(&mut self.rng);
        let mut range = if op == Op::Flush {
            ByteRange::default()
        } else {
            self.random_range()
        };
        if self.plan.modes && op != Op::Flush {
            range = self.stream_on(self.clients[client].volume, range);
        }
        self.submit(client, op, range)
    }

    /// Moves a request to where the last one ended, more often than not.
    fn stream_on(&mut self, volume: usize, range: ByteRange) -> ByteRange {
        let at = self.volumes[volume].stream;
        let used = self.plan.used();
        let fits = at >= used.start() && at + range.len() <= used.end();
        let range = if fits && self.rng.permille(400) {
            ByteRange::between(at, at + range.len())
        } else {
            range
        };
        self.volumes[volume].stream = range.end();
        range
    }

    /// Tells the model of a request; gives its memory, version and tick.
    fn begin(&mut self, volume: usize, op: Op, range: ByteRange) -> (Data, Version, u64) {
        let model = &mut self.volumes[volume].model;
        let len = index(range.len());
        match op {
            Op::Write { .. } => {
                let version = model.begin(range.start(), range.len(), false);
                let mut buf = IoBuf::zeroed(len);
                let sectors = buf
                    .chunks_exact_mut(index(SECTOR))
                    .zip(range.start() / SECTOR..);
                for (sector, number) in sectors {
                    model.fill(sector, number, version);
                }
                (Data::Buf(buf), version, 0)
            }
            Op::WriteZeroes { .. } | Op::Discard => {
                let version = model.begin(range.start(), range.len(), true);
                (Data::None, version, 0)
            }
            Op::Read => {
                let mut buf = IoBuf::zeroed(len);
                buf.fill(0xee);
                (Data::Buf(buf), 0, model.begin_read())
            }
            Op::Extents => (Data::None, 0, model.begin_read()),
            Op::Flush => (Data::None, 0, model.now()),
            Op::Prefetch => (Data::None, 0, 0),
        }
    }

    /// Submits a request and tells the model.
    pub(super) fn submit(&mut self, client: usize, op: Op, range: ByteRange) -> Checked<()> {
        let (volume, reactor) = (self.clients[client].volume, self.clients[client].reactor);
        let (data, version, since) = self.begin(volume, op, range);
        let tag = self.next_tag;
        self.next_tag += 1;
        self.trace.at_turn(self.turns);
        let about = |_: &()| format!("request {tag}: {op:?} of {range}, version {version}");
        if op == Op::Flush {
            self.trace.note(|| about(&()));
        } else {
            self.trace.about(volume, range, || about(&()));
        }
        self.flights.insert(
            tag,
            Flight {
                client,
                op,
                range,
                version,
                since,
                turn: self.turns,
            },
        );
        let request = Request {
            tag,
            op,
            range,
            data,
        };
        self.universe.act_as(reactor + 1);
        let cx = self.data[reactor].cx();
        self.clients[client].channel.submit(cx, request);
        self.universe.act_as(CONTROL);
        self.after_engine()
    }

    /// Takes the completions of a client.
    pub(super) fn poll(&mut self, client: usize) -> Checked<()> {
        let mut done = Vec::new();
        let to = &mut self.clients[client];
        let reactor = to.reactor;
        self.universe.act_as(reactor + 1);
        to.channel.poll(self.data[reactor].cx(), &mut done);
        self.universe.act_as(CONTROL);
        self.after_engine()?;
        for completion in done {
            self.ended(completion)?;
        }
        Ok(())
    }

    fn ended(&mut self, completion: Completion) -> Checked<()> {
        let Some(flight) = self.flights.remove(&completion.tag) else {
            return Err(Violation::new(format!(
                "a completion of the unknown request {}",
                completion.tag
            )));
        };
        self.counts.operations += 1;
        let volume = self.clients[flight.client].volume;
        let status = completion.status;
        self.trace.at_turn(self.turns);
        let tag = completion.tag;
        if flight.op == Op::Flush {
            self.trace.note(|| format!("request {tag}: {status:?}"));
        } else {
            let line = || {
                format!(
                    "request {tag}: {status:?}{}",
                    self.shown(&flight, &completion)
                )
            };
            let line = line();
            self.trace.about(volume, flight.range, || line);
        }
        let model = &self.volumes[volume].model;
        let is_lost = flight.op == Op::Read && model.may_fail(flight.range, flight.since);
        // Something may have been wrong at any time while it was under way.
        let was_well = self.mended < flight.turn;
        let cache = self.volumes[volume].cache.as_ref();
        let flush_failed = cache.is_some_and(|cache| cache.status().flush_failed);
        let is_excused = !was_well
            || is_lost
            || status == IoStatus::Aborted
            || (flight.op == Op::Flush && flush_failed);
        if !status.is_ok() && !is_excused && self.is_well() {
            let (op, range) = (flight.op, flight.range);
            return Err(Violation::new(format!(
                "{op:?} of {range} ended with {status:?}, and nothing was wrong"
            )));
        }
        self.judge(volume, &flight, completion)
    }

    /// What a read brought for the sector that the trace is about.
    fn shown(&self, flight: &Flight, completion: &Completion) -> String {
        let Some((_, sector)) = self.trace.focus() else {
            return String::new();
        };
        let place = (sector * SECTOR).checked_sub(flight.range.start());
        match (&completion.data, place) {
            (Data::Buf(buf), Some(place)) => buf
                .get(index(place)..index(place + SECTOR))
                .map_or(String::new(), |sector| format!(", {:?}", parse(sector))),
            _ => String::new(),
        }
    }

    fn judge(&mut self, volume: usize, flight: &Flight, completion: Completion) -> Checked<()> {
        let durable = self.volumes[volume].is_durable();
        let model = &mut self.volumes[volume].model;
        let (start, len) = (flight.range.start(), flight.range.len());
        let ok = completion.status.is_ok();
        match flight.op {
            Op::Write { fua } | Op::WriteZeroes { fua, .. } if ok => {
                model.acknowledge(flight.version, start, len, fua || durable);
            }
            Op::Discard if ok => model.acknowledge(flight.version, start, len, durable),
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard => {
                model.give_up(flight.version);
            }
            Op::Read => {
                model.end_read(flight.since);
                if ok && let Data::Buf(buf) = &completion.data {
                    let checked = model.check(start, buf, flight.since, &BTreeSet::new());
                    return checked.map_err(|wrong| Violation::at(volume, wrong));
                }
            }
            Op::Flush => {
                if ok {
                    model.flushed(flight.since);
                }
            }
            Op::Prefetch => {}
            Op::Extents => {
                model.end_read(flight.since);
                if ok {
                    return check_extents(model, flight, &completion.data);
                }
            }
        }
        Ok(())
    }

    /// A client goes away without waiting for what it has under way, and another takes its place.
    pub(super) fn replace_client(&mut self, number: usize) -> Checked<()> {
        let (reactor, volume) = (self.clients[number].reactor, self.clients[number].volume);
        let model = &mut self.volumes[volume].model;
        self.flights.retain(|_, flight| {
            let gone = flight.client == number;
            // Its modifications may take effect at any later time.
            if gone && matches!(flight.op, Op::Read | Op::Extents) {
                model.end_read(flight.since);
            }
            !gone
        });
        self.clients[number] = self.open_client(reactor, volume)?;
        self.after_engine()
    }

    /// Gives up what waits, for one client.
    pub(super) fn cancel(&mut self, client: usize) -> Checked<()> {
        let to = &mut self.clients[client];
        self.universe.act_as(to.reactor + 1);
        to.channel.cancel(self.data[to.reactor].cx());
        self.universe.act_as(CONTROL);
        self.after_engine()
    }
}

fn check_extents(model: &Sectors, flight: &Flight, data: &Data) -> Checked<()> {
    let Data::Extents(extents) = data else {
        return Err(Violation::new(format!("no extents: {data:?}")));
    };
    let mut at = flight.range.start();
    for extent in extents {
        if extent.zero && !model.may_be_zero(at, extent.len, flight.since) {
            return Err(Violation::new(format!("{extent:?} at {at} is not zero")));
        }
        if (extent.hole && !extent.zero) || (extent.dirty && !extent.cached) || extent.len == 0 {
            return Err(Violation::new(format!("{extent:?} contradicts itself")));
        }
        at += extent.len;
    }
    if at == flight.range.end() {
        Ok(())
    } else {
        Err(Violation::new(format!(
            "the extents of {} end at {at}",
            flight.range
        )))
    }
}
