//! The header that all PDUs have in common, what may be wrong with it, and digests (spec/nvmf-tcp.md,
//! section 2).

/// Bytes of the header that all PDUs have in common.
pub const HEADER_BYTES: usize = 8;
/// Bytes of the longest header, without digest.
pub const HEADER_BYTES_MAX: usize = 128;
pub(super) const DIGEST_BYTES: u32 = 4;
const TERM_BYTES: u8 = 24;
const TERM_BYTES_MAX: u32 = 152;

/// Flags of the common header.
pub mod flag {
    /// A digest follows the header.
    pub const HEADER_DIGEST: u8 = 1;
    /// A digest follows the data.
    pub const DATA_DIGEST: u8 = 1 << 1;
    /// The last PDU of the data.
    pub const LAST: u8 = 1 << 2;
    /// These data are also the completion.
    pub const SUCCESS: u8 = 1 << 3;
}

/// What a PDU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The host says hello.
    IcReq = 0,
    /// The controller says hello.
    IcResp = 1,
    /// The host ends the connection for an error of the controller.
    H2cTerm = 2,
    /// The controller ends the connection for an error of the host.
    C2hTerm = 3,
    /// A command, perhaps with data.
    CapsuleCmd = 4,
    /// A completion.
    CapsuleResp = 5,
    /// Data of a write.
    H2cData = 6,
    /// Data of a read.
    C2hData = 7,
    /// The controller is ready for data of a write.
    R2t = 9,
}

/// Who sends a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Host to controller.
    FromHost,
    /// Controller to host.
    FromController,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::IcReq,
            1 => Self::IcResp,
            2 => Self::H2cTerm,
            3 => Self::C2hTerm,
            4 => Self::CapsuleCmd,
            5 => Self::CapsuleResp,
            6 => Self::H2cData,
            7 => Self::C2hData,
            9 => Self::R2t,
            _ => return None,
        })
    }

    /// Who sends it.
    #[must_use]
    pub fn direction(self) -> Direction {
        match self {
            Self::IcReq | Self::H2cTerm | Self::CapsuleCmd | Self::H2cData => Direction::FromHost,
            _ => Direction::FromController,
        }
    }

    /// Bytes of its header, without digest.
    #[must_use]
    pub fn header_bytes(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            _ => TERM_BYTES,
        }
    }

    pub(super) fn has_digests(self) -> bool {
        !matches!(
            self,
            Self::IcReq | Self::IcResp | Self::H2cTerm | Self::C2hTerm
        )
    }

    fn may_have_data(self) -> bool {
        matches!(self, Self::CapsuleCmd | Self::H2cData | Self::C2hData)
    }
}

/// What is wrong with a connection: the field FES of a termination request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u16)]
pub enum FaultKind {
    /// A field of the header can't be that.
    #[error("invalid PDU header field")]
    HeaderField = 1,
    /// Not at this point.
    #[error("PDU sequence error")]
    Sequence = 2,
    /// The header was damaged on its way.
    #[error("header digest error")]
    HeaderDigest = 3,
    /// Data leave the range that they were asked for.
    #[error("data transfer out of range")]
    OutOfRange = 4,
    /// More data than was agreed on.
    #[error("data transfer limit exceeded")]
    Limit = 5,
    /// Not done here.
    #[error("unsupported parameter")]
    Unsupported = 6,
}

/// Why a connection must end. `offset`: the byte of the header that is wrong, with
/// [`FaultKind::HeaderField`] and [`FaultKind::Unsupported`]; else 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at offset {offset}")]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// Where.
    pub offset: u32,
}

impl Fault {
    /// One without a place.
    #[must_use]
    pub const fn of(kind: FaultKind) -> Self {
        Self { kind, offset: 0 }
    }

    /// A field of the header can't be that.
    #[must_use]
    pub const fn field(offset: u32) -> Self {
        let kind = FaultKind::HeaderField;
        Self { kind, offset }
    }
}

/// Which digests both sides have agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Of headers.
    pub header: bool,
    /// Of data.
    pub data: bool,
}

impl Digests {
    /// From the field DGST.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        Self {
            header: byte & 1 != 0,
            data: byte & 2 != 0,
        }
    }

    /// As the field DGST.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        u8::from(self.header) | u8::from(self.data) << 1
    }
}

/// Where data begin: at a multiple of so many bytes from the PDU's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alignment(u8);

impl Alignment {
    /// From the fields HPDA and CPDA: 0-based, in 4 bytes; none above 31.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        (byte <= 31).then_some(Self(byte))
    }

    /// In bytes: 4 to 128.
    #[must_use]
    pub fn bytes(self) -> usize {
        (usize::from(self.0) + 1) * 4
    }
}

/// What one side accepts of the other.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Who sends.
    pub from: Direction,
    /// What was agreed on.
    pub digests: Digests,
    /// How the other side must align its data.
    pub alignment: Alignment,
    /// Data in a [`Kind::CapsuleCmd`], in bytes.
    pub capsule_data_max: u32,
    /// Data in a [`Kind::H2cData`] or [`Kind::C2hData`], in bytes.
    pub data_max: u32,
}

/// A checked common header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Its flags.
    pub flags: u8,
    /// Bytes between header (with digest) and data.
    pub pad: usize,
    /// Bytes of data; for termination requests what is copied of the PDU at fault.
    pub data: usize,
}

impl Header {
    /// Checks the first bytes of a PDU against what may come from that side.
    ///
    /// # Errors
    /// What to end the connection with.
    pub fn check(bytes: [u8; HEADER_BYTES], limits: &Limits) -> Result<Self, Fault> {
        let [kind, flags, hlen, pdo, l0, l1, l2, l3] = bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = Kind::from_byte(kind).filter(|kind| kind.direction() == limits.from);
        let kind = kind.ok_or(Fault::field(0))?;
        if hlen != kind.header_bytes() {
            return Err(Fault::field(2));
        }
        let has_digests = kind.has_digests();
        let header_digest = has_digests && limits.digests.header;
        if (flags & flag::HEADER_DIGEST != 0) != header_digest {
            return Err(Fault::field(1));
        }
        let head = u32::from(hlen) + if header_digest { DIGEST_BYTES } else { 0 };
        if len < head {
            return Err(Fault::field(4));
        }
        let plain = |data: u32| Self {
            kind,
            flags,
            pad: 0,
            data: data as usize,
        };
        if !kind.may_have_data() {
            if flags & flag::DATA_DIGEST != 0 {
                return Err(Fault::field(1));
            }
            let last = match kind {
                Kind::H2cTerm | Kind::C2hTerm => TERM_BYTES_MAX,
                _ => head,
            };
            return if (head..=last).contains(&len) {
                Ok(plain(len - head))
            } else {
                Err(Fault::field(4))
            };
        }
        let data_digest = flags & flag::DATA_DIGEST != 0;
        if len == head && kind == Kind::CapsuleCmd {
            // Nothing to sum up.
            return if data_digest {
                Err(Fault::field(1))
            } else {
                Ok(plain(0))
            };
        }
        if data_digest != limits.digests.data {
            return Err(Fault::field(1));
        }
        let start = u32::from(pdo);
        if start < head || !(start as usize).is_multiple_of(limits.alignment.bytes()) {
            return Err(Fault::field(3));
        }
        let tail = if data_digest { DIGEST_BYTES } else { 0 };
        let data = len.checked_sub(start + tail).filter(|data| *data > 0);
        let data = data.ok_or(Fault::field(4))?;
        let most = match kind {
            Kind::CapsuleCmd => limits.capsule_data_max,
            _ => limits.data_max,
        };
        if data > most {
            return Err(Fault::of(FaultKind::Limit));
        }
        Ok(Self {
            kind,
            flags,
            pad: (start - head) as usize,
            data: data as usize,
        })
    }

    /// Bytes of the header, without digest.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.kind.header_bytes().into()
    }

    /// Whether a digest follows the header.
    #[must_use]
    pub fn has_header_digest(&self) -> bool {
        self.flags & flag::HEADER_DIGEST != 0
    }

    /// Whether a digest follows the data.
    #[must_use]
    pub fn has_data_digest(&self) -> bool {
        self.flags & flag::DATA_DIGEST != 0
    }
}

/// CRC-32C, as header and data digests are.
#[must_use]
pub fn digest(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}
