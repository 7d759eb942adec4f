//! The admin qpair: what a host asks of its controller (spec section 5).

use super::TransportOptions;
use super::connect::Connected;
use super::controller::QpairEntry;
use super::events::Events;
use super::features::Features;
use super::identify::{self, EVENT_REQUESTS_MAX};
use super::logs::{self, Sources};
use super::properties;
use super::target::NvmfTarget;
use crate::wire::nvme::{EventInfo, Fuse, Sqe, Status, admin, fctype};
use reactors::{Nanos, Wake};

/// How often a controller looks whether its namespaces have another size.
const LOOK_NS: u64 = 100_000_000;
/// A discovery controller without keep-alive timer goes after this long a silence.
const DISCOVERY_IDLE_NS: u64 = 120_000_000_000;

/// How a command goes on.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It has completed: DW0 and DW1.
    Done(u64),
    /// And with data.
    Data(u32, Vec<u8>),
    /// It waits for an event.
    Waits,
    /// It has completed, and another, which was to be aborted.
    Aborted(u16),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Admin {
    pub(super) entry: QpairEntry,
    events: Events,
    features: Features,
    connected_at: Nanos,
    /// When to look at the namespaces again.
    look_at: Nanos,
    version: u64,
}

impl Admin {
    pub(super) fn new(
        connected: Connected,
        target: &NvmfTarget,
        options: &TransportOptions,
        now: Nanos,
    ) -> Self {
        let controller = &connected.entry.controller;
        Self {
            version: controller.subsystem.version(),
            events: identify::first_look(controller, target.generation()),
            features: Features::new(connected.keep_alive_ms, options),
            connected_at: now,
            look_at: now.after(LOOK_NS),
            entry: connected.entry,
        }
    }

    /// Executes a command; all that it needs is there. `slot_of`: the slot of a command under way.
    ///
    /// # Errors
    /// The status to complete it with.
    pub(super) fn execute(
        &mut self,
        sqe: &Sqe,
        slot: u16,
        slot_of: impl FnOnce(u16) -> Option<u16>,
        target: &NvmfTarget,
        options: &TransportOptions,
        now: Nanos,
    ) -> Result<Outcome, Status> {
        let controller = &self.entry.controller;
        if sqe.opcode == admin::FABRICS {
            return match sqe.fctype() {
                fctype::PROPERTY_GET => properties::get(sqe, controller, options),
                fctype::PROPERTY_SET => properties::set(sqe, controller),
                fctype::CONNECT => Err(Status::SEQUENCE_ERROR),
                _ => Err(Status::INVALID_OPCODE),
            }
            .map(Outcome::Done);
        }
        if !controller.is_enabled() {
            return Err(Status::SEQUENCE_ERROR);
        }
        if sqe.fuse() != Fuse::Normal {
            return Err(Status::INVALID_FIELD);
        }
        let is_discovery = controller.subsystem.is_discovery;
        match sqe.opcode {
            admin::IDENTIFY => {
                let page = identify::page(sqe, controller, options)?;
                Ok(Outcome::Data(0, page))
            }
            admin::GET_LOG_PAGE => {
                let mut sources = Sources {
                    controller,
                    target,
                    events: &mut self.events,
                    connected_at: self.connected_at,
                    now,
                };
                Ok(Outcome::Data(0, logs::part(sqe, &mut sources)?))
            }
            admin::GET_FEATURES => {
                let mask = self.events.mask;
                let (dw0, data) = self.features.get(sqe, controller, options, mask)?;
                if data.len() > sqe.sgl_len.get() as usize {
                    return Err(Status::INVALID_FIELD);
                }
                Ok(Outcome::Data(dw0, data))
            }
            admin::SET_FEATURES => {
                let mask = &mut self.events.mask;
                let dw0 = self.features.set(sqe, controller, options, mask)?;
                Ok(Outcome::Done(dw0.into()))
            }
            admin::ASYNC_EVENT_REQUEST | admin::KEEP_ALIVE | admin::ABORT
                if sqe.nsid.get() != 0 =>
            {
                Err(Status::INVALID_FIELD)
            }
            admin::KEEP_ALIVE => Ok(Outcome::Done(0)),
            admin::ASYNC_EVENT_REQUEST => match self.events.wait(slot, EVENT_REQUESTS_MAX.into()) {
                true => Ok(Outcome::Waits),
                false => Err(Status::AER_LIMIT),
            },
            admin::ABORT if !is_discovery => Ok(self.abort(sqe, slot_of)),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// Only what waits for an event can be given up; all else is short, or the device's.
    fn abort(&mut self, sqe: &Sqe, slot_of: impl FnOnce(u16) -> Option<u16>) -> Outcome {
        const NOT_ABORTED: u64 = 1;
        let [q0, q1, c0, c1] = sqe.cdw10.to_bytes();
        let (qid, cid) = (u16::from_le_bytes([q0, q1]), u16::from_le_bytes([c0, c1]));
        let waiting = match qid {
            0 => slot_of(cid).filter(|slot| self.events.give_up(*slot)),
            _ => None,
        };
        waiting.map_or(Outcome::Done(NOT_ABORTED), Outcome::Aborted)
    }

    /// Looks for what the host wants to hear of; an event request that is answered, and with what.
    pub(super) fn event(&mut self, target: &NvmfTarget, now: Nanos) -> Option<(u16, EventInfo)> {
        let subsystem = &self.entry.controller.subsystem;
        if subsystem.is_discovery {
            self.events.look_at_discovery(target.generation());
        } else if now >= self.look_at || subsystem.version() != self.version {
            self.look_at = now.after(LOOK_NS);
            self.version = subsystem.version();
            self.events.look_at(&subsystem.namespaces());
            self.events.look_at_ana(subsystem.ana_changes());
        }
        self.events.next()
    }

    /// Since when the host must have been heard of, in ns; nothing for never.
    pub(super) fn patience_ns(&self) -> Option<u64> {
        let is_discovery = self.entry.controller.subsystem.is_discovery;
        let discovery = is_discovery.then_some(DISCOVERY_IDLE_NS);
        self.features.keep_alive_ns().or(discovery)
    }

    pub(super) fn wake(&self) -> Wake {
        let subsystem = &self.entry.controller.subsystem;
        // A size changes without a word to us.
        match self.events.is_waited_for() && !subsystem.is_discovery {
            true => Wake::At(self.look_at),
            false => Wake::OnEvent,
        }
    }
}
