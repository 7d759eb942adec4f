//! What a host reads of a controller: its hello and its goodbye, capabilities, and Identify pages
//! (spec/nvmf-tcp.md, sections 2, 4.2 and 5.3).

use super::{Alignment, Digests, Fault, IDENTIFY_BYTES, IcPdu};
use std::fmt;

/// What a controller's hello settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Where data of the host must begin.
    pub alignment: Alignment,
    /// The digests.
    pub digests: Digests,
    /// MAXH2CDATA: the most data of one PDU of the host, in bytes; a multiple of 4.
    pub data_max: u32,
}

impl IcPdu {
    /// The least MAXH2CDATA.
    pub const DATA_MAX_LEAST: u32 = 4096;

    /// Checks what a controller says to a host that asked for `digests`.
    ///
    /// # Errors
    /// What to end the connection with.
    pub fn check_response(&self, digests: Digests) -> Result<Agreed, Fault> {
        if self.format.get() != 0 {
            return Err(Fault::field(8));
        }
        let alignment = Alignment::from_byte(self.alignment).ok_or(Fault::field(10))?;
        if self.digests != digests.to_byte() {
            return Err(Fault::field(11));
        }
        let data_max = self.limit.get();
        if data_max < Self::DATA_MAX_LEAST || !data_max.is_multiple_of(4) {
            return Err(Fault::field(12));
        }
        Ok(Agreed {
            alignment,
            digests,
            data_max,
        })
    }
}

/// A termination request of the other side, from the bytes behind its common header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRequest {
    /// FES; see [`super::FaultKind`] for those that have a name.
    pub kind: u16,
    /// FEI: the byte that was wrong, with some of them.
    pub offset: u32,
}

impl TermRequest {
    /// What it says; nothing if that is not all there.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let [k0, k1, o0, o1, o2, o3, ..] = *body else {
            return None;
        };
        Some(Self {
            kind: u16::from_le_bytes([k0, k1]),
            offset: u32::from_le_bytes([o0, o1, o2, o3]),
        })
    }
}

impl fmt::Display for TermRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            1 => "invalid PDU header field",
            2 => "PDU sequence error",
            3 => "header digest error",
            4 => "data transfer out of range",
            5 => "data transfer limit exceeded",
            6 => "unsupported parameter",
            _ => "reserved",
        };
        write!(f, "{name} ({}) at offset {}", self.kind, self.offset)
    }
}

/// Fields of the property CAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Entries that a queue may have: 2 to 65536.
    #[must_use]
    pub fn queue_entries_max(self) -> u32 {
        let [low, high, ..] = self.0.to_le_bytes();
        u32::from(u16::from_le_bytes([low, high])) + 1
    }

    /// How long the controller may take to become ready, in units of 500 ms.
    #[must_use]
    pub fn ready_timeout(self) -> u8 {
        let [_, _, _, timeout, ..] = self.0.to_le_bytes();
        timeout
    }
}

/// A page as it came. Fields are read at constants: none is outside.
#[derive(Clone, Copy)]
struct Told<'a>(&'a [u8; IDENTIFY_BYTES]);

impl Told<'_> {
    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let found = self.0.get(at..).and_then(<[u8]>::first_chunk);
        found.copied().unwrap_or([0; N])
    }

    fn u8(self, at: usize) -> u8 {
        let [byte] = self.array(at);
        byte
    }

    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    /// ASCII without the spaces at its ends; anything else becomes `?`.
    fn text<const N: usize>(self, at: usize) -> String {
        let bytes: [u8; N] = self.array(at);
        let shown = bytes.iter().take_while(|byte| **byte != 0).map(|byte| {
            let printable = byte.is_ascii_graphic() || *byte == b' ';
            if printable { char::from(*byte) } else { '?' }
        });
        shown.collect::<String>().trim().to_owned()
    }
}

/// What of a controller's page (CNS 01h) a host goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerTold {
    /// VID.
    pub vendor: u16,
    /// SN.
    pub serial: String,
    /// MN.
    pub model: String,
    /// FR.
    pub firmware: String,
    /// The longest transfer: 4 KiB << this; 0 without limit.
    pub mdts: u8,
    /// CNTLID.
    pub cntlid: u16,
    /// OAES: the events that it can tell, see [`super::async_event`].
    pub events: u32,
    /// CNTRLTYPE: 1 for I/O, 2 for discovery, 0 from controllers that do not tell.
    pub kind: u8,
    /// Commands that a queue may have under way; 0 if not told.
    pub commands_max: u16,
    /// Dataset Management is there.
    pub dataset_management: bool,
    /// Write Zeroes is there.
    pub write_zeroes: bool,
    /// There is a volatile cache.
    pub volatile_cache: bool,
    /// Data in the capsule of an I/O command, in bytes.
    pub capsule_data_max: u32,
    /// ICDOFF: where these data begin, in 16 bytes; 0 is all that is done here.
    pub capsule_data_offset: u16,
    /// SUBNQN.
    pub subnqn: String,
}

impl ControllerTold {
    /// What `page` tells.
    #[must_use]
    pub fn decode(page: &[u8; IDENTIFY_BYTES]) -> Self {
        let page = Told(page);
        let optional = page.u16(520);
        Self {
            vendor: page.u16(0),
            serial: page.text::<20>(4),
            model: page.text::<40>(24),
            firmware: page.text::<8>(64),
            mdts: page.u8(77),
            cntlid: page.u16(78),
            events: page.u32(92),
            kind: page.u8(111),
            commands_max: page.u16(514),
            dataset_management: optional & 1 << 2 != 0,
            write_zeroes: optional & 1 << 3 != 0,
            volatile_cache: page.u8(525) & 1 != 0,
            // In 16 bytes, and the entry itself counts.
            capsule_data_max: page.u32(1792).saturating_sub(4).saturating_mul(16),
            capsule_data_offset: page.u16(1800),
            subnqn: page.text::<256>(768),
        }
    }
}

/// What of a controller's page for the NVM command set (CNS 06h) a host goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmControllerTold {
    /// WZSL: the longest Write Zeroes is 4 KiB << this; 0 if not told.
    pub zeroes_exponent: u8,
    /// DMRSL: the most blocks of a range of Dataset Management; 0 if not told.
    pub range_blocks_max: u32,
}

impl NvmControllerTold {
    /// What `page` tells.
    #[must_use]
    pub fn decode(page: &[u8; IDENTIFY_BYTES]) -> Self {
        let page = Told(page);
        Self {
            zeroes_exponent: page.u8(1),
            range_blocks_max: page.u32(4),
        }
    }
}

/// What of a namespace's page (CNS 00h) a host goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceTold {
    /// Its size in blocks; 0 if it is not active.
    pub blocks: u64,
    /// Its block is 1 << this.
    pub block_exponent: u8,
    /// Bytes of metadata with each block.
    pub metadata_bytes: u16,
    /// It takes no writes.
    pub read_only: bool,
    /// Write Zeroes may deallocate.
    pub zeroes_deallocate: bool,
    /// NGUID; zero for none.
    pub nguid: [u8; 16],
    /// EUI-64; zero for none.
    pub eui64: [u8; 8],
}

impl NamespaceTold {
    /// What `page` tells.
    #[must_use]
    pub fn decode(page: &[u8; IDENTIFY_BYTES]) -> Self {
        let page = Told(page);
        // FLBAS: bits 3:0, and in 6:5 what is above them.
        let format = usize::from(page.u8(26) & 0xf | (page.u8(26) >> 1 & 0x30));
        let at = 128 + 4 * format;
        Self {
            blocks: page.u64(0),
            block_exponent: page.u8(at + 2),
            metadata_bytes: page.u16(at),
            read_only: page.u8(99) & 1 != 0,
            zeroes_deallocate: page.u8(33) & 1 << 3 != 0,
            nguid: page.array(104),
            eui64: page.array(120),
        }
    }
}

/// A namespace's identities; all zero, or nothing, for those that it has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// UUID.
    pub uuid: Option<[u8; 16]>,
    /// NGUID.
    pub nguid: Option<[u8; 16]>,
    /// EUI-64.
    pub eui64: Option<[u8; 8]>,
}

fn some_if_set<const N: usize>(bytes: [u8; N]) -> Option<[u8; N]> {
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}

impl Identities {
    /// From the descriptors (CNS 03h), and the page where they do not tell. Descriptors of other kinds,
    /// and what stands behind one of a wrong length, are not looked at.
    #[must_use]
    pub fn decode(descriptors: &[u8], page: &NamespaceTold) -> Self {
        let mut found = Self::default();
        let mut rest = descriptors;
        while let [kind, len, _, _, behind @ ..] = rest {
            let Some((body, next)) = behind.split_at_checked((*len).into()) else {
                break;
            };
            match kind {
                1 => found.eui64 = body.try_into().ok().and_then(some_if_set),
                2 => found.nguid = body.try_into().ok().and_then(some_if_set),
                3 => found.uuid = body.try_into().ok().and_then(some_if_set),
                _ => {}
            }
            if *len == 0 {
                break;
            }
            rest = next;
        }
        found.nguid = found.nguid.or_else(|| some_if_set(page.nguid));
        found.eui64 = found.eui64.or_else(|| some_if_set(page.eui64));
        found
    }
}

/// The namespaces of a list (CNS 02h), up to the first zero.
pub fn namespace_list(page: &[u8]) -> impl Iterator<Item = u32> {
    let (entries, _) = page.as_chunks();
    let nsids = entries.iter().map(|entry| u32::from_le_bytes(*entry));
    nsids.take_while(|nsid| *nsid != 0)
}

/// The digest of data that come, or lie, in pieces; see [`super::digest`].
#[derive(Clone, Debug)]
pub struct RunningDigest(crc_fast::Digest);

impl Default for RunningDigest {
    fn default() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }
}

impl RunningDigest {
    /// These bytes are next.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all.
    #[must_use]
    pub fn value(&self) -> u32 {
        u32::try_from(self.0.finalize()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::nvme::{
        ControllerPage, NamespacePage, digest, put_descriptors, put_namespace_list,
        put_nvm_controller,
    };

    fn page(bytes: &[u8]) -> &[u8; IDENTIFY_BYTES] {
        bytes.try_into().unwrap()
    }

    #[test]
    fn pages_are_read_as_they_are_written() {
        let written = ControllerPage {
            serial: "S1",
            model: "pmcache",
            firmware: "0.1",
            subnqn: "nqn.2026-11.x:y",
            cntlid: 7,
            is_discovery: false,
            version: 0x0001_0400,
            mdts: 5,
            keep_alive_unit: 10,
            event_requests: 4,
            commands_max: 128,
            namespaces_max: 32,
            volatile_cache: true,
            capsule_data_max: 8192,
            ana: false,
        };
        let told = ControllerTold::decode(page(&written.encode()));
        assert_eq!((&*told.serial, &*told.model), ("S1", "pmcache"));
        assert_eq!((&*told.firmware, &*told.subnqn), ("0.1", "nqn.2026-11.x:y"));
        assert_eq!((told.cntlid, told.kind, told.mdts), (7, 1, 5));
        assert_eq!((told.commands_max, told.capsule_data_max), (128, 8192));
        assert_eq!(told.events, super::super::async_event::NAMESPACE_CHANGED);
        assert!(told.volatile_cache && told.write_zeroes && told.dataset_management);
        let namespace = NamespacePage {
            blocks: 77,
            block_size: 4096,
            preferred_bytes: 4096,
            read_only: true,
            discard_zeroes: true,
            nguid: [1; 16],
            eui64: [2; 8],
            ana_group: 0,
        };
        let told = NamespaceTold::decode(page(&namespace.encode()));
        assert_eq!((told.blocks, told.block_exponent), (77, 12));
        assert_eq!((told.nguid, told.eui64), ([1; 16], [2; 8]));
        assert!(told.read_only && !told.zeroes_deallocate && told.metadata_bytes == 0);
        let mut descriptors = vec![];
        put_descriptors(&namespace, [3; 16], &mut descriptors);
        let identities = Identities {
            uuid: Some([3; 16]),
            nguid: Some([1; 16]),
            eui64: Some([2; 8]),
        };
        assert_eq!(Identities::decode(&descriptors, &told), identities);
        let uuid = None;
        assert_eq!(
            Identities::decode(&[], &told),
            Identities { uuid, ..identities }
        );
        let mut list = vec![];
        put_namespace_list([2, 5].into_iter(), 0, &mut list);
        assert!(namespace_list(&list).eq([2, 5]));
        let mut nvm = vec![];
        put_nvm_controller(4, 1, 99, &mut nvm);
        let told = NvmControllerTold::decode(page(&nvm));
        assert_eq!((told.zeroes_exponent, told.range_blocks_max), (4, 99));
    }

    #[test]
    fn descriptors_that_make_no_sense_end_the_list() {
        let page = NamespaceTold::default();
        for bytes in [
            &[3, 16, 0, 0, 1, 2][..],
            &[3, 15, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            &[3, 0, 0, 0, 3, 1, 0, 0, 9],
            &[9],
            &[0; 4096],
        ] {
            assert_eq!(Identities::decode(bytes, &page), Identities::default());
        }
    }

    #[test]
    fn a_hello_must_be_what_was_asked_for() {
        let both = Digests::from_byte(3);
        let fine = IcPdu::new(3, both, 8192);
        let agreed = fine.check_response(both).unwrap();
        assert_eq!((agreed.alignment.bytes(), agreed.data_max), (16, 8192));
        let none = Digests::default();
        assert_eq!(fine.check_response(none), Err(Fault::field(11)));
        for (pdu, at) in [
            (IcPdu::new(32, both, 8192), 10),
            (IcPdu::new(0, both, 4092), 12),
            (IcPdu::new(0, both, 8190), 12),
        ] {
            assert_eq!(pdu.check_response(both), Err(Fault::field(at)));
        }
        let mut odd = fine;
        odd.format = 1.into();
        assert_eq!(odd.check_response(both), Err(Fault::field(8)));
    }

    #[test]
    fn a_goodbye_is_read_if_it_is_all_there() {
        let term = TermRequest::decode(&[1, 0, 4, 0, 0, 0, 9, 9]).unwrap();
        assert_eq!((term.kind, term.offset), (1, 4));
        assert_eq!(term.to_string(), "invalid PDU header field (1) at offset 4");
        assert_eq!(TermRequest::decode(&[1, 0, 4, 0, 0]), None);
    }

    #[test]
    fn a_digest_in_pieces_is_the_digest_of_all() {
        let mut running = RunningDigest::default();
        for piece in [&b"1234"[..], b"", b"56789"] {
            running.update(piece);
        }
        assert_eq!(running.value(), 0xe306_9283);
        assert_eq!(running.value(), digest(b"123456789"));
    }
}
