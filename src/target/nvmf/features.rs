//! Get Features and Set Features (spec section 5.4).

use super::TransportOptions;
use super::controller::Controller;
use crate::wire::nvme::{Sqe, Status, feature};

/// What a host has set.
#[derive(Debug)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    temperature: u32,
    error_recovery: u32,
    write_atomicity: u32,
    /// Milliseconds; 0 for never.
    keep_alive_ms: u32,
}

/// The answer: DW0, and data.
pub(super) type Answer = Result<(u32, Vec<u8>), Status>;

impl Features {
    /// The host asked for `keep_alive_ms` when it connected.
    pub(super) fn new(keep_alive_ms: u32, options: &TransportOptions) -> Self {
        let mut features = Self {
            arbitration: 0,
            power: 0,
            temperature: 0x157,
            error_recovery: 0,
            write_atomicity: 0,
            keep_alive_ms: 0,
        };
        features.set_keep_alive(keep_alive_ms, options);
        features
    }

    /// Rounds up to the unit, and not below the least; 0 stays.
    fn set_keep_alive(&mut self, ms: u32, options: &TransportOptions) {
        let unit = u32::from(options.keep_alive_unit) * 100;
        let least = ms.max(options.keep_alive_min_ms);
        let rounded = least.checked_next_multiple_of(unit).unwrap_or(u32::MAX);
        self.keep_alive_ms = if ms == 0 { 0 } else { rounded };
    }

    /// After how long without a word the host is taken for dead, in ns; nothing for never.
    pub(super) fn keep_alive_ns(&self) -> Option<u64> {
        (self.keep_alive_ms > 0).then_some(u64::from(self.keep_alive_ms) * 1_000_000)
    }

    /// Get Features. The current value is the only one that there is.
    ///
    /// # Errors
    /// The status to complete the command with.
    pub(super) fn get(
        &self,
        sqe: &Sqe,
        controller: &Controller,
        options: &TransportOptions,
        event_mask: u32,
    ) -> Answer {
        let [id, ..] = sqe.cdw10.to_bytes();
        let queues = u32::from(options.io_qpairs_max) - 1;
        let value = match id {
            feature::ARBITRATION => self.arbitration,
            feature::POWER => self.power,
            feature::TEMPERATURE => self.temperature,
            feature::ERROR_RECOVERY => self.error_recovery,
            feature::WRITE_CACHE if controller.host_flushes() => 1,
            feature::QUEUES => queues | queues << 16,
            feature::WRITE_ATOMICITY => self.write_atomicity,
            feature::ASYNC_EVENTS => event_mask,
            feature::KEEP_ALIVE => self.keep_alive_ms,
            feature::HOST_ID => return Ok((0, controller.host.id.to_vec())),
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok((value, vec![]))
    }

    /// Set Features; the mask of events is the caller's to keep.
    ///
    /// # Errors
    /// The status to complete the command with.
    pub(super) fn set(
        &mut self,
        sqe: &Sqe,
        controller: &Controller,
        options: &TransportOptions,
        event_mask: &mut u32,
    ) -> Result<u32, Status> {
        const SAVE: u32 = 1 << 31;
        let [id, ..] = sqe.cdw10.to_bytes();
        let value = sqe.cdw11.get();
        if sqe.cdw10.get() & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        let nsid = sqe.nsid.get();
        if nsid != 0 && nsid <= controller.subsystem.config.namespaces_max {
            return Err(Status::FEATURE_NOT_NAMESPACE);
        }
        match id {
            feature::ARBITRATION => self.arbitration = value,
            feature::POWER => self.power = value,
            feature::TEMPERATURE => self.temperature = value,
            feature::ERROR_RECOVERY => self.error_recovery = value,
            feature::WRITE_ATOMICITY => self.write_atomicity = value,
            feature::WRITE_CACHE if controller.host_flushes() => {
                return match value & 1 {
                    1 => Ok(0),
                    _ => Err(Status::FEATURE_NOT_CHANGEABLE),
                };
            }
            feature::QUEUES => {
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                if controller.has_io_qpairs() {
                    return Err(Status::SEQUENCE_ERROR);
                }
                let queues = u32::from(options.io_qpairs_max) - 1;
                return Ok(queues | queues << 16);
            }
            feature::ASYNC_EVENTS => *event_mask = value,
            feature::KEEP_ALIVE if value == 0 => return Err(Status::KEEP_ALIVE_INVALID),
            feature::KEEP_ALIVE => self.set_keep_alive(value, options),
            feature::HOST_ID => return Err(Status::SEQUENCE_ERROR),
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_is_rounded_up_and_not_too_short() {
        let options = TransportOptions::default();
        let ms = |ms| Features::new(ms, &options).keep_alive_ms;
        assert_eq!(
            [ms(0), ms(1), ms(1000), ms(1001), ms(5000)],
            [0, 1000, 1000, 2000, 5000]
        );
        assert_eq!(ms(u32::MAX), u32::MAX);
    }
}
