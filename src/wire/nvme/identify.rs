//! Identify pages: what a controller tells of itself and of its namespaces (spec/nvmf-tcp.md, section 5.3).

use super::IDENTIFY_BYTES;

/// Which page Identify wants.
pub mod cns {
    /// A namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// The controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespaces.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// A namespace's descriptors.
    pub const DESCRIPTORS: u8 = 0x03;
    /// A namespace, for one command set.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// The controller, for one command set.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// Active namespaces of one command set.
    pub const CSI_ACTIVE_NAMESPACES: u8 = 0x07;
    /// A namespace, whatever its command set.
    pub const ANY_NAMESPACE: u8 = 0x08;
    /// Which command sets go together.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// A page that is filled field by field. Fields are placed by constants: none can leave the page.
struct Page<'a>(&'a mut [u8]);

impl Page<'_> {
    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        let place = self.0.get_mut(at..).unwrap_or_default();
        for (to, from) in place.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    fn u8(&mut self, at: usize, value: u8) {
        self.bytes(at, &[value]);
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_le_bytes());
    }

    /// ASCII, padded with spaces to `len`.
    fn text(&mut self, at: usize, len: usize, text: &str) {
        let mut padded = vec![b' '; len];
        for (to, from) in padded.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.bytes(at, &padded);
    }
}

/// What a controller tells of itself.
#[derive(Clone, Copy, Debug)]
pub struct ControllerPage<'a> {
    /// 1 to 20 ASCII characters; the same for all controllers of the subsystem.
    pub serial: &'a str,
    /// 1 to 40 ASCII characters; likewise.
    pub model: &'a str,
    /// Firmware, at most 8 characters; likewise.
    pub firmware: &'a str,
    /// The subsystem's name.
    pub subnqn: &'a str,
    /// Unique in the subsystem.
    pub cntlid: u16,
    /// It lists other subsystems, and has no namespaces.
    pub is_discovery: bool,
    /// The version, as in the property VS.
    pub version: u32,
    /// The longest transfer: 4 KiB << this; 0 without limit.
    pub mdts: u8,
    /// The unit of the keep-alive timer, in 100 ms.
    pub keep_alive_unit: u16,
    /// Event requests that may wait.
    pub event_requests: u8,
    /// Commands that a queue may have under way.
    pub commands_max: u16,
    /// The highest namespace identifier.
    pub namespaces_max: u32,
    /// Some namespace has a volatile cache.
    pub volatile_cache: bool,
    /// Data in the capsule of an I/O command, in bytes; a multiple of 16.
    pub capsule_data_max: u32,
    /// It tells how good the way to each group of namespaces is; groups are 1 to `namespaces_max`.
    pub ana: bool,
}

impl ControllerPage<'_> {
    /// The events it can tell: [`super::async_event`].
    #[must_use]
    pub fn events(&self) -> u32 {
        match self.is_discovery {
            true => super::async_event::DISCOVERY_CHANGED,
            false if self.ana => {
                super::async_event::NAMESPACE_CHANGED | super::async_event::ANA_CHANGED
            }
            false => super::async_event::NAMESPACE_CHANGED,
        }
    }

    /// The page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        let mut page = Page(&mut bytes);
        page.u16(0, 0x1b36);
        page.u16(2, 0x1af4);
        page.text(4, 20, self.serial);
        page.text(24, 40, self.model);
        page.text(64, 8, self.firmware);
        // Several ports, and several controllers.
        page.u8(76, 0b11 | u8::from(self.ana) << 3);
        page.u8(77, self.mdts);
        page.u16(78, self.cntlid);
        page.u32(80, self.version);
        page.u32(92, self.events());
        // Host identifiers of 128 bits; any traffic is a sign of life.
        page.u32(96, 1 | 1 << 6);
        page.u8(111, if self.is_discovery { 2 } else { 1 });
        // Aborts under way, and event requests: 0-based.
        page.u8(258, 3);
        page.u8(259, self.event_requests.saturating_sub(1));
        page.u8(260, 0x03);
        // The commands' effects; log pages by long offsets.
        page.u8(261, 0b110);
        page.u16(266, 0x157);
        page.u16(268, 0x175);
        page.u16(320, self.keep_alive_unit);
        page.u8(512, 0x66);
        page.u8(513, 0x44);
        page.u16(514, self.commands_max);
        page.u16(1802, 0);
        page.u8(1803, 1);
        page.u32(1792, 4 + self.capsule_data_max / 16);
        page.u32(1796, 1);
        // SGLs, with offsets into the capsule.
        page.u32(536, 1 | 1 << 20);
        page.bytes(768, self.subnqn.as_bytes());
        if !self.is_discovery {
            page.u32(516, self.namespaces_max);
            // Compare, Dataset Management, Write Zeroes, Verify.
            page.u16(520, 1 | 1 << 2 | 1 << 3 | 1 << 7);
            // Fused Compare and Write.
            page.u16(522, 1);
            page.u8(525, 0b100 | u8::from(self.volatile_cache));
            page.u32(540, self.namespaces_max);
            if self.ana {
                // 10 s at most between states; the three that there are; a namespace keeps its group.
                page.u8(342, 10);
                page.u8(343, 0b111 | 1 << 6);
                page.u32(344, self.namespaces_max);
                page.u32(348, self.namespaces_max);
            }
            page.u16(2048, 0x09c4);
        }
        bytes
    }
}

/// What a controller tells of a namespace.
#[derive(Clone, Copy, Debug)]
pub struct NamespacePage {
    /// Its size in blocks.
    pub blocks: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// Preferred granularity and alignment of writes, in bytes.
    pub preferred_bytes: u32,
    /// It takes no writes.
    pub read_only: bool,
    /// Deallocated blocks read as zeroes.
    pub discard_zeroes: bool,
    /// Its identity.
    pub nguid: [u8; 16],
    /// Another identity; zero for none.
    pub eui64: [u8; 8],
    /// Its ANA group; 0 without ANA.
    pub ana_group: u32,
}

impl NamespacePage {
    /// The page (CNS 00h).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        let mut page = Page(&mut bytes);
        for at in [0, 8, 16] {
            page.u64(at, self.blocks);
        }
        // The preferred sizes below are there.
        page.u8(24, 1 << 4);
        page.u8(30, 1);
        page.u8(33, u8::from(self.discard_zeroes));
        let preferred = (self.preferred_bytes / self.block_size.max(1)).saturating_sub(1);
        let preferred = u16::try_from(preferred).unwrap_or(u16::MAX);
        for at in [64, 66, 68, 70, 72] {
            page.u16(at, preferred);
        }
        page.u32(92, self.ana_group);
        page.u8(99, u8::from(self.read_only));
        page.bytes(104, &self.nguid);
        page.bytes(120, &self.eui64);
        let exponent = u8::try_from(self.block_size.trailing_zeros());
        page.u8(130, exponent.unwrap_or_default());
        bytes
    }

    /// The page that every command set has (CNS 08h).
    #[must_use]
    pub fn encode_common(&self) -> Vec<u8> {
        let mut bytes = vec![0; IDENTIFY_BYTES];
        let mut page = Page(&mut bytes);
        page.u8(1, 1);
        page.u32(4, self.ana_group);
        page.u8(8, u8::from(self.read_only));
        // Ready.
        page.u8(14, 1);
        bytes
    }
}

/// A list of the namespaces (CNS 02h): those of `nsids` above `after`, in ascending order.
pub fn put_namespace_list(nsids: impl Iterator<Item = u32>, after: u32, out: &mut Vec<u8>) {
    let start = out.len();
    let listed = nsids.filter(|nsid| *nsid > after).take(IDENTIFY_BYTES / 4);
    for nsid in listed {
        out.extend_from_slice(&nsid.to_le_bytes());
    }
    out.resize(start + IDENTIFY_BYTES, 0);
}

/// A namespace's descriptors (CNS 03h). All-zero identities are left out.
pub fn put_descriptors(page: &NamespacePage, uuid: [u8; 16], out: &mut Vec<u8>) {
    let start = out.len();
    let mut put = |kind: u8, bytes: &[u8]| {
        if kind == 4 || bytes.iter().any(|byte| *byte != 0) {
            let len = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
            out.extend_from_slice(&[kind, len, 0, 0]);
            out.extend_from_slice(bytes);
        }
    };
    put(1, &page.eui64);
    put(2, &page.nguid);
    put(3, &uuid);
    put(4, &[0]);
    out.resize(start + IDENTIFY_BYTES, 0);
}

/// The controller for the NVM command set (CNS 06h): `ranges_max` and `range_blocks_max` of one Dataset
/// Management command; `zeroes_exponent` as MDTS, for Write Zeroes.
pub fn put_nvm_controller(
    zeroes_exponent: u8,
    ranges_max: u8,
    range_blocks_max: u32,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.resize(start + IDENTIFY_BYTES, 0);
    let mut page = Page(out.get_mut(start..).unwrap_or_default());
    page.u8(1, zeroes_exponent);
    page.u8(3, ranges_max);
    page.u32(4, range_blocks_max);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(is_discovery: bool) -> ControllerPage<'static> {
        ControllerPage {
            serial: "S1",
            model: "pmcache",
            firmware: "0.1",
            subnqn: "nqn.2026-11.x:y",
            cntlid: 7,
            is_discovery,
            version: 0x0001_0400,
            mdts: 5,
            keep_alive_unit: 10,
            event_requests: 4,
            commands_max: 128,
            namespaces_max: 32,
            volatile_cache: true,
            capsule_data_max: 8192,
            ana: true,
        }
    }

    /// The fields that hosts refuse a controller for.
    #[test]
    fn a_controller_page_has_what_hosts_check() {
        let page = controller(false).encode();
        assert_eq!(page.len(), IDENTIFY_BYTES);
        assert_eq!(&page[4..26], b"S1                  pm");
        assert_eq!(page[76..80], [0b1011, 5, 7, 0]);
        assert_eq!(page[342..352], [10, 0x47, 32, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(page[80..84], [0, 4, 1, 0]);
        assert_eq!(page[320..322], [10, 0]);
        assert_eq!(page[512..516], [0x66, 0x44, 128, 0]);
        assert_eq!(page[516], 32);
        assert_eq!(page[525], 0b101);
        assert_eq!(page[536..540], [1, 0, 0x10, 0]);
        assert_eq!(page[1792..1796], 516_u32.to_le_bytes());
        assert_eq!(page[1800..1804], [0, 0, 0, 1]);
        assert_eq!(&page[768..784], b"nqn.2026-11.x:y\0");
        let page = controller(true).encode();
        assert_eq!((page[111], page[516], page[525]), (2, 0, 0));
    }

    #[test]
    fn a_namespace_page_speaks_in_its_own_blocks() {
        let namespace = NamespacePage {
            blocks: 0x1234,
            block_size: 512,
            preferred_bytes: 4096,
            read_only: true,
            discard_zeroes: true,
            nguid: [1; 16],
            eui64: [0; 8],
            ana_group: 3,
        };
        let page = namespace.encode_common();
        assert_eq!(page[..15], [0, 1, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        let page = namespace.encode();
        assert_eq!(page[92..96], [3, 0, 0, 0]);
        assert_eq!(page[..2], [0x34, 0x12]);
        assert_eq!((page[64], page[99], page[130], page[33]), (7, 1, 9, 1));
        let mut out = vec![];
        put_descriptors(&namespace, [2; 16], &mut out);
        assert_eq!(out.len(), IDENTIFY_BYTES);
        assert_eq!(out[..5], [2, 16, 0, 0, 1]);
        assert_eq!(out[20..25], [3, 16, 0, 0, 2]);
        assert_eq!(out[40..46], [4, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_list_begins_behind_the_given_namespace() {
        let mut out = vec![];
        put_namespace_list([1, 2, 5, 9].into_iter(), 2, &mut out);
        assert_eq!(out.len(), IDENTIFY_BYTES);
        assert_eq!(out[..12], [5, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        let mut out = vec![];
        put_namespace_list(1..5000, 0, &mut out);
        assert_eq!(out.len(), IDENTIFY_BYTES);
    }
}
