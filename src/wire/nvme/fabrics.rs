//! Connect and the controller's properties (spec/nvmf-tcp.md, section 4).

use super::{Sqe, fctype};
use std::mem::size_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flags of Connect.
pub mod connect_flag {
    /// The host does not want flow control of its submission queue.
    pub const NO_FLOW_CONTROL: u8 = 1 << 2;
}

/// What Connect says in its submission queue entry, from byte 40.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectCommand {
    /// 0.
    pub format: U16,
    /// 0 for the admin queue.
    pub qid: U16,
    /// 0-based.
    pub queue_size: U16,
    /// See [`connect_flag`].
    pub flags: u8,
    spare: u8,
    /// Milliseconds; 0 for never. Admin queue only.
    pub keep_alive_ms: U32,
    spare2: [u8; 12],
}

/// The data of Connect.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// The host's identifier.
    pub host_id: [u8; 16],
    /// The controller; [`ConnectData::ANY`] for a new one.
    pub cntlid: U16,
    spare: [u8; 238],
    subnqn: [u8; 256],
    hostnqn: [u8; 256],
    spare2: [u8; 256],
}

fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(bytes.get(..end)?).ok()
}

fn field(text: &str) -> [u8; 256] {
    let mut field = [0; 256];
    for (to, from) in field.iter_mut().zip(text.bytes().take(255)) {
        *to = from;
    }
    field
}

impl ConnectCommand {
    /// What a Connect says.
    #[must_use]
    pub fn of(sqe: &Sqe) -> Self {
        let bytes = sqe.as_bytes();
        let own = bytes.get(40..).unwrap_or_default();
        Self::read_from_bytes(own).unwrap_or_else(|_| Self::new(0, 0, 0, 0))
    }

    /// A Connect to queue `qid`.
    #[must_use]
    pub fn new(qid: u16, queue_size: u16, flags: u8, keep_alive_ms: u32) -> Self {
        Self {
            format: U16::new(0),
            qid: U16::new(qid),
            queue_size: U16::new(queue_size),
            flags,
            spare: 0,
            keep_alive_ms: U32::new(keep_alive_ms),
            spare2: [0; 12],
        }
    }

    /// The command, for data in the capsule.
    #[must_use]
    pub fn to_sqe(self, cid: u16) -> Sqe {
        let sqe = Sqe::fabrics(fctype::CONNECT, cid).with_capsule_data(ConnectData::BYTES);
        let mut bytes = [0; 64];
        bytes.copy_from_slice(sqe.as_bytes());
        if let Some(own) = bytes.get_mut(40..) {
            own.copy_from_slice(self.as_bytes());
        }
        Sqe::read_from_bytes(&bytes).unwrap_or(sqe)
    }
}

impl ConnectData {
    /// How many bytes they are.
    pub const BYTES: u32 = 1024;
    /// The identifier of a controller that is to be made.
    pub const ANY: u16 = 0xffff;

    /// What a host says of itself; names above 223 bytes are cut.
    #[must_use]
    pub fn new(host_id: [u8; 16], cntlid: u16, subnqn: &str, hostnqn: &str) -> Self {
        Self {
            host_id,
            cntlid: U16::new(cntlid),
            spare: [0; 238],
            subnqn: field(subnqn),
            hostnqn: field(hostnqn),
            spare2: [0; 256],
        }
    }

    /// From the data of the command, if they are all there.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(data, _)| data)
    }

    /// The subsystem's name, if it is one: ended by a NUL.
    #[must_use]
    pub fn subnqn(&self) -> Option<&str> {
        text(&self.subnqn)
    }

    /// The host's name, if it is one: ended by a NUL.
    #[must_use]
    pub fn hostnqn(&self) -> Option<&str> {
        text(&self.hostnqn)
    }
}

/// Where in the data of Connect a field stands, for its answer.
impl ConnectData {
    /// Of [`ConnectData::cntlid`].
    pub const CNTLID_AT: u32 = 16;
    /// Of [`ConnectData::subnqn`].
    pub const SUBNQN_AT: u32 = 256;
    /// Of [`ConnectData::hostnqn`].
    pub const HOSTNQN_AT: u32 = 512;
}

/// Property Get and Property Set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyCommand {
    /// Whether it has 8 bytes; else 4.
    pub is_long: bool,
    /// Which; see [`property`].
    pub offset: u32,
    /// What to set it to.
    pub value: u64,
}

impl PropertyCommand {
    /// What a Property Get or Set says; nothing if its size is reserved.
    #[must_use]
    pub fn of(sqe: &Sqe) -> Option<Self> {
        let is_long = match sqe.cdw10.get() & 7 {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self {
            is_long,
            offset: sqe.cdw11.get(),
            value: u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32,
        })
    }

    /// A Property Get.
    #[must_use]
    pub fn get(cid: u16, offset: u32, is_long: bool) -> Sqe {
        let mut sqe = Sqe::fabrics(fctype::PROPERTY_GET, cid);
        sqe.cdw10 = U32::new(u32::from(is_long));
        sqe.cdw11 = U32::new(offset);
        sqe
    }

    /// A Property Set of 4 bytes.
    #[must_use]
    pub fn set(cid: u16, offset: u32, value: u32) -> Sqe {
        let mut sqe = Sqe::fabrics(fctype::PROPERTY_SET, cid);
        sqe.cdw11 = U32::new(offset);
        sqe.cdw12 = U32::new(value);
        sqe
    }
}

/// Offsets of the controller's properties.
pub mod property {
    /// Capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version, 4 bytes.
    pub const VS: u32 = 0x08;
    /// Configuration, 4 bytes.
    pub const CC: u32 = 0x14;
    /// Status, 4 bytes.
    pub const CSTS: u32 = 0x1c;
}

/// Fields of the configuration.
pub mod cc {
    /// The controller shall work.
    pub const ENABLE: u32 = 1;
    /// Size of the memory page; 0.
    pub const MPS: u32 = 0xf << 7;
    /// Arbitration; 0.
    pub const AMS: u32 = 7 << 11;
    /// Command set; 0.
    pub const CSS: u32 = 7 << 4;
    /// The host asks for a shutdown.
    pub const SHN: u32 = 3 << 14;
    /// Normal shutdown.
    pub const SHN_NORMAL: u32 = 1 << 14;
    /// Entry sizes of the I/O queues, 64 and 16 bytes, as powers of two.
    pub const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
    /// Where [`ENTRY_SIZES`] stand.
    pub const ENTRY_SIZES_MASK: u32 = 0xff << 16;
}

/// Fields of the status.
pub mod csts {
    /// The controller works.
    pub const READY: u32 = 1;
    /// The controller has failed.
    pub const FATAL: u32 = 1 << 1;
    /// The shutdown is complete.
    pub const SHUTDOWN_COMPLETE: u32 = 2 << 2;
}

const _: () = {
    assert!(size_of::<ConnectCommand>() == 24);
    assert!(size_of::<ConnectData>() == ConnectData::BYTES as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_goes_there_and_back() {
        let command = ConnectCommand::new(3, 127, connect_flag::NO_FLOW_CONTROL, 5000);
        let sqe = command.to_sqe(1);
        assert_eq!(sqe.fctype(), fctype::CONNECT);
        assert_eq!(sqe.as_bytes()[40..48], [0, 0, 3, 0, 127, 0, 4, 0]);
        assert_eq!(ConnectCommand::of(&sqe).as_bytes(), command.as_bytes());
        let data = ConnectData::new([9; 16], ConnectData::ANY, "nqn.a", "nqn.b");
        let bytes = data.as_bytes();
        assert_eq!((bytes[16], bytes[256], bytes[512]), (0xff, b'n', b'n'));
        let data = ConnectData::decode(bytes).unwrap();
        assert_eq!(
            (data.subnqn(), data.hostnqn()),
            (Some("nqn.a"), Some("nqn.b"))
        );
        assert!(ConnectData::decode(&bytes[..1023]).is_none());
    }

    #[test]
    fn names_without_an_end_are_none() {
        let mut bytes = ConnectData::new([0; 16], 1, "a", "b").as_bytes().to_vec();
        bytes[256..512].fill(b'x');
        bytes[512] = 0xff;
        let data = ConnectData::decode(&bytes).unwrap();
        assert_eq!((data.subnqn(), data.hostnqn()), (None, None));
    }

    #[test]
    fn properties_have_two_sizes() {
        let get = PropertyCommand::get(1, property::CAP, true);
        let want = PropertyCommand {
            is_long: true,
            offset: 0,
            value: 0,
        };
        assert_eq!(PropertyCommand::of(&get), Some(want));
        let mut odd = get;
        odd.cdw10 = U32::new(2);
        assert_eq!(PropertyCommand::of(&odd), None);
        let set = PropertyCommand::set(1, property::CC, 0x46_0001);
        assert_eq!(set.as_bytes()[44..52], [0x14, 0, 0, 0, 1, 0, 0x46, 0]);
    }
}
