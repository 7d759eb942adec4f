//! How a command ended.

/// Which table a status code belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StatusType {
    /// Any command.
    Generic = 0,
    /// The command at hand.
    Command = 1,
    /// Media and data integrity.
    Media = 2,
    /// The way to the controller or the namespace.
    Path = 3,
}

/// The status of a completion, without its phase bit: SC in bits 7:0, SCT in 10:8, DNR in 14.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

const DNR: u16 = 1 << 14;

/// A status that a retry would get again.
const fn lasting(kind: StatusType, code: u8) -> Status {
    Status(transient(kind, code).0 | DNR)
}

const fn transient(kind: StatusType, code: u8) -> Status {
    Status((kind as u16) << 8 | code as u16)
}

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// No such opcode here.
    pub const INVALID_OPCODE: Self = lasting(StatusType::Generic, 0x01);
    /// A field of the command is out of bounds.
    pub const INVALID_FIELD: Self = lasting(StatusType::Generic, 0x02);
    /// Given up on request of the host.
    pub const ABORTED: Self = lasting(StatusType::Generic, 0x07);
    /// Given up since its queue is being deleted.
    pub const ABORTED_QUEUE_DELETED: Self = transient(StatusType::Generic, 0x08);
    /// The other half of its fused operation failed.
    pub const FAILED_FUSED: Self = transient(StatusType::Generic, 0x09);
    /// The other half of its fused operation did not come.
    pub const MISSING_FUSED: Self = lasting(StatusType::Generic, 0x0a);
    /// No such namespace, or no format.
    pub const INVALID_NAMESPACE: Self = lasting(StatusType::Generic, 0x0b);
    /// Not now: the queue or the controller is in another state.
    pub const SEQUENCE_ERROR: Self = lasting(StatusType::Generic, 0x0c);
    /// The data's length does not fit the command.
    pub const SGL_LENGTH_INVALID: Self = lasting(StatusType::Generic, 0x0f);
    /// A fused operation is longer than the controller makes atomic.
    pub const ATOMIC_UNIT_EXCEEDED: Self = lasting(StatusType::Generic, 0x14);
    /// The keep-alive timeout can't be that.
    pub const KEEP_ALIVE_INVALID: Self = lasting(StatusType::Generic, 0x1a);
    /// The namespace takes no writes.
    pub const WRITE_PROTECTED: Self = lasting(StatusType::Generic, 0x20);
    /// The data were damaged on their way.
    pub const TRANSIENT_TRANSPORT: Self = transient(StatusType::Generic, 0x22);
    /// The range leaves the namespace.
    pub const LBA_OUT_OF_RANGE: Self = lasting(StatusType::Generic, 0x80);
    /// No room is left.
    pub const CAPACITY_EXCEEDED: Self = lasting(StatusType::Generic, 0x81);
    /// No such queue, or it is connected already.
    pub const INVALID_QUEUE: Self = lasting(StatusType::Command, 0x01);
    /// Too many event requests wait.
    pub const AER_LIMIT: Self = lasting(StatusType::Command, 0x05);
    /// No such log page.
    pub const INVALID_LOG_PAGE: Self = lasting(StatusType::Command, 0x09);
    /// The feature can't be saved.
    pub const FEATURE_NOT_SAVEABLE: Self = lasting(StatusType::Command, 0x0d);
    /// The feature can't be changed.
    pub const FEATURE_NOT_CHANGEABLE: Self = lasting(StatusType::Command, 0x0e);
    /// The feature is the controller's, not a namespace's.
    pub const FEATURE_NOT_NAMESPACE: Self = lasting(StatusType::Command, 0x0f);
    /// Connect: an unknown record format.
    pub const INCOMPATIBLE_FORMAT: Self = lasting(StatusType::Command, 0x80);
    /// Connect: no controller is free.
    pub const CONTROLLER_BUSY: Self = transient(StatusType::Command, 0x81);
    /// Connect and properties: a parameter is wrong.
    pub const INVALID_PARAMETER: Self = lasting(StatusType::Command, 0x82);
    /// Connect: the host may not come here.
    pub const INVALID_HOST: Self = lasting(StatusType::Command, 0x84);
    /// The host must authenticate itself first.
    pub const AUTHENTICATION_REQUIRED: Self = lasting(StatusType::Command, 0x91);
    /// The write was refused by the device.
    pub const WRITE_FAULT: Self = transient(StatusType::Media, 0x80);
    /// The data can't be read.
    pub const UNRECOVERED_READ: Self = transient(StatusType::Media, 0x81);
    /// The data are others than the host's.
    pub const COMPARE_FAILURE: Self = lasting(StatusType::Media, 0x85);
    /// The way to the namespace failed.
    pub const PATH_ERROR: Self = transient(StatusType::Path, 0x00);
    /// The namespace can't be reached this way now.
    pub const ANA_INACCESSIBLE: Self = transient(StatusType::Path, 0x02);

    /// As the completion's last field holds it: with the phase bit, 0 on fabrics.
    #[must_use]
    pub const fn to_field(self) -> u16 {
        self.0 << 1
    }

    /// From the completion's last field.
    #[must_use]
    pub const fn from_field(field: u16) -> Self {
        Self(field >> 1)
    }

    /// The status code.
    #[must_use]
    pub const fn code(self) -> u8 {
        let [code, _] = self.0.to_le_bytes();
        code
    }

    /// The status code type, 0 to 7.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Whether the same command would fail again.
    #[must_use]
    pub const fn is_lasting(self) -> bool {
        self.0 & DNR != 0
    }

    /// Whether it is [`Status::SUCCESS`].
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.0 & 0x7ff == 0
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}h/{:02x}h", self.kind(), self.code())?;
        if self.is_lasting() {
            f.write_str(" (do not retry)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_what_the_specification_shows() {
        assert_eq!(Status::INVALID_PARAMETER.to_field(), (0x182 | 0x4000) << 1);
        assert_eq!(
            Status::from_field(Status::LBA_OUT_OF_RANGE.to_field()),
            Status::LBA_OUT_OF_RANGE
        );
        assert!(Status::SUCCESS.is_ok() && !Status::PATH_ERROR.is_ok());
        assert_eq!(
            format!("{:?}", Status::INVALID_HOST),
            "1h/84h (do not retry)"
        );
    }
}
