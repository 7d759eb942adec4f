//! The controller's properties (spec section 4.2).

use super::TransportOptions;
use super::controller::Controller;
use crate::wire::nvme::{PropertyCommand, Sqe, Status, cc, property};

/// The version that is followed: 1.4. Later ones ask for more commands.
pub(super) const VERSION: u32 = 0x0001_0400;

/// The longest time to become ready, in 500 ms.
const READY_TIME: u64 = 30;

/// The capabilities.
fn capabilities(options: &TransportOptions) -> u64 {
    const CONTIGUOUS_QUEUES: u64 = 1 << 16;
    const NVM_COMMAND_SET: u64 = 1 << 37;
    let entries = u64::from(options.queue_depth_max) - 1;
    entries | CONTIGUOUS_QUEUES | READY_TIME << 24 | NVM_COMMAND_SET
}

/// Property Get.
///
/// # Errors
/// The status to complete the command with.
pub(super) fn get(
    sqe: &Sqe,
    controller: &Controller,
    options: &TransportOptions,
) -> Result<u64, Status> {
    let command = PropertyCommand::of(sqe).ok_or(Status::INVALID_PARAMETER)?;
    let value = match (command.offset, command.is_long) {
        (property::CAP, true) => capabilities(options),
        (property::CAP, false) => capabilities(options) & 0xffff_ffff,
        (0x04, false) => capabilities(options) >> 32,
        (property::VS, false) => VERSION.into(),
        (property::CC, false) => controller.cc().into(),
        (property::CSTS, false) => controller.settled_csts().into(),
        _ => return Err(Status::INVALID_PARAMETER),
    };
    Ok(value)
}

/// Property Set: only the configuration can be set.
///
/// # Errors
/// The status to complete the command with.
pub(super) fn set(sqe: &Sqe, controller: &Controller) -> Result<u64, Status> {
    let command = PropertyCommand::of(sqe).ok_or(Status::INVALID_PARAMETER)?;
    if command.is_long || command.offset != property::CC {
        return Err(Status::INVALID_PARAMETER);
    }
    let value = u32::try_from(command.value & 0xffff_ffff).unwrap_or_default();
    if value & (cc::MPS | cc::AMS | cc::CSS) != 0 {
        return Err(Status::INVALID_PARAMETER);
    }
    controller.configure(value);
    Ok(0)
}
