//! Log pages and asynchronous events (spec/nvmf-tcp.md, sections 5.5, 5.6 and 8).

use super::{admin, io};

/// Identifiers of log pages.
pub mod log_id {
    /// Which log pages there are.
    pub const SUPPORTED: u8 = 0x00;
    /// Errors.
    pub const ERRORS: u8 = 0x01;
    /// Health.
    pub const SMART: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed namespaces.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands and their effects.
    pub const EFFECTS: u8 = 0x05;
    /// How good the way to each group of namespaces is.
    pub const ANA: u8 = 0x0c;
    /// What there is to connect to.
    pub const DISCOVERY: u8 = 0x70;
}

/// Bits of the feature "asynchronous event configuration", and of OAES.
pub mod async_event {
    /// A namespace has come, gone or changed.
    pub const NAMESPACE_CHANGED: u32 = 1 << 8;
    /// The way to some namespaces has become better or worse.
    pub const ANA_CHANGED: u32 = 1 << 11;
    /// The discovery log has changed.
    pub const DISCOVERY_CHANGED: u32 = 1 << 31;
}

/// A notice: what the answer to an event request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventInfo {
    /// See [`log_id::CHANGED_NAMESPACES`].
    NamespaceChanged,
    /// See [`log_id::ANA`].
    AnaChanged,
    /// See [`log_id::DISCOVERY`].
    DiscoveryChanged,
}

impl EventInfo {
    /// What DW0 of an answer says, if it is one of these.
    #[must_use]
    pub fn from_dw0(dw0: u32) -> Option<Self> {
        let all = [
            Self::NamespaceChanged,
            Self::AnaChanged,
            Self::DiscoveryChanged,
        ];
        // Bits 31:24 are reserved, 7:3 too.
        let told = dw0 & 0x00ff_ff07;
        all.into_iter().find(|event| event.to_dw0() == told)
    }

    /// As DW0.
    #[must_use]
    pub fn to_dw0(self) -> u32 {
        const NOTICE: u32 = 2;
        let (info, log) = match self {
            Self::NamespaceChanged => (0x00, log_id::CHANGED_NAMESPACES),
            Self::AnaChanged => (0x03, log_id::ANA),
            Self::DiscoveryChanged => (0xf0, log_id::DISCOVERY),
        };
        NOTICE | info << 8 | u32::from(log) << 16
    }

    /// The bit that a host sets to hear of it: [`async_event`].
    #[must_use]
    pub fn mask(self) -> u32 {
        match self {
            Self::NamespaceChanged => async_event::NAMESPACE_CHANGED,
            Self::AnaChanged => async_event::ANA_CHANGED,
            Self::DiscoveryChanged => async_event::DISCOVERY_CHANGED,
        }
    }
}

/// The log of commands and their effects. No command holds up others.
#[must_use]
pub fn effects_log(is_discovery: bool) -> Vec<u8> {
    const SUPPORTED: u32 = 1;
    const CHANGES_DATA: u32 = 1 << 1;
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, effects: u32| {
        if let Some(place) = bytes.get_mut(at * 4..at * 4 + 4) {
            place.copy_from_slice(&effects.to_le_bytes());
        }
    };
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ] {
        put(usize::from(opcode), SUPPORTED);
    }
    if !is_discovery {
        for opcode in [io::FLUSH, io::READ, io::COMPARE, io::VERIFY] {
            put(256 + usize::from(opcode), SUPPORTED);
        }
        for opcode in [io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
            put(256 + usize::from(opcode), SUPPORTED | CHANGES_DATA);
        }
    }
    bytes
}

/// A group of namespaces in the log of ways to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// Its number.
    pub id: u32,
    /// 1 optimized, 2 not optimized, 3 inaccessible.
    pub state: u8,
    /// Its namespaces.
    pub nsids: Vec<u32>,
}

/// The log of ways to namespaces; `changes` rises with each change. `groups_only`: without the namespaces.
#[must_use]
pub fn ana_log(changes: u64, groups: &[AnaGroup], groups_only: bool) -> Vec<u8> {
    let mut bytes = changes.to_le_bytes().to_vec();
    let count = u16::try_from(groups.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    for group in groups {
        let nsids: &[u32] = if groups_only { &[] } else { &group.nsids };
        let count = u32::try_from(nsids.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&group.id.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&changes.to_le_bytes());
        bytes.push(group.state);
        bytes.extend_from_slice(&[0; 15]);
        for nsid in nsids {
            bytes.extend_from_slice(&nsid.to_le_bytes());
        }
    }
    bytes
}

/// What the health log counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmartFigures {
    /// Bytes that hosts have read.
    pub bytes_read: u64,
    /// Bytes that hosts have written.
    pub bytes_written: u64,
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Hours since the start.
    pub hours: u64,
    /// Reads and writes that the device failed.
    pub media_errors: u64,
}

/// The health log.
#[must_use]
pub fn smart_log(figures: &SmartFigures) -> Vec<u8> {
    // Thousands of 512-byte units, rounded up.
    const DATA_UNIT: u64 = 512_000;
    let mut bytes = vec![0; 512];
    let mut put = |at: usize, value: u64| {
        if let Some(place) = bytes.get_mut(at..at + 8) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    };
    put(32, figures.bytes_read.div_ceil(DATA_UNIT));
    put(48, figures.bytes_written.div_ceil(DATA_UNIT));
    put(64, figures.reads);
    put(80, figures.writes);
    put(128, figures.hours);
    put(160, figures.media_errors);
    // 300 K, spare 100 % with a threshold of 10 %.
    let head = [0, 0x2c, 0x01, 100, 10];
    for (to, from) in bytes.iter_mut().zip(head) {
        *to = from;
    }
    bytes
}

/// One thing to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// IPv6; else IPv4.
    pub is_ipv6: bool,
    /// Another discovery subsystem: 3 for the one that answers, 1 for a referral, 2 for an NVM subsystem.
    pub subtype: u8,
    /// Identifies the listener.
    pub port: u16,
    /// The longest admin queue.
    pub admin_queue_size: u16,
    /// The port, as text.
    pub service: String,
    /// The address, as text.
    pub address: String,
    /// The subsystem's name.
    pub subnqn: String,
}

const ENTRY_BYTES: usize = 1024;

/// The discovery log: a header and the entries. `generation` rises with each change.
#[must_use]
pub fn discovery_log(generation: u64, entries: &[DiscoveryEntry]) -> Vec<u8> {
    const TCP: u8 = 3;
    let mut bytes = vec![0; ENTRY_BYTES * (entries.len() + 1)];
    let (header, records) = bytes.split_at_mut(ENTRY_BYTES);
    let count = entries.len() as u64;
    let head = generation
        .to_le_bytes()
        .into_iter()
        .chain(count.to_le_bytes());
    for (to, from) in header.iter_mut().zip(head) {
        *to = from;
    }
    for (record, entry) in records.chunks_exact_mut(ENTRY_BYTES).zip(entries) {
        let mut put = |at: usize, len: usize, fill: u8, text: &[u8]| {
            let place = record.get_mut(at..at + len).unwrap_or_default();
            place.fill(fill);
            for (to, from) in place.iter_mut().zip(text) {
                *to = *from;
            }
        };
        let family = if entry.is_ipv6 { 2 } else { 1 };
        // No TLS; the host may do without flow control of its submission queue.
        let secure = 0b100 | 2;
        let port = entry.port.to_le_bytes();
        put(0, 4, 0, &[TCP, family, entry.subtype, secure]);
        put(4, 2, 0, &port);
        put(6, 2, 0, &[0xff, 0xff]);
        put(8, 2, 0, &entry.admin_queue_size.to_le_bytes());
        put(32, 32, b' ', entry.service.as_bytes());
        put(256, 256, 0, entry.subnqn.as_bytes());
        put(512, 256, b' ', entry.address.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_where_to_read_on() {
        assert_eq!(EventInfo::NamespaceChanged.to_dw0(), 0x04_0002);
        assert_eq!(EventInfo::DiscoveryChanged.to_dw0(), 0x70_f002);
        for event in [EventInfo::NamespaceChanged, EventInfo::AnaChanged] {
            assert_eq!(EventInfo::from_dw0(event.to_dw0()), Some(event));
        }
        // An error, and a notice of something else.
        assert_eq!(EventInfo::from_dw0(0x01_0000), None);
        assert_eq!(EventInfo::from_dw0(0x04_0102), None);
    }

    #[test]
    fn a_discovery_log_has_a_header_and_its_entries() {
        let entry = DiscoveryEntry {
            is_ipv6: false,
            subtype: 2,
            port: 1,
            admin_queue_size: 128,
            service: "4420".to_owned(),
            address: "127.0.0.1".to_owned(),
            subnqn: "nqn.2026-11.x:y".to_owned(),
        };
        let log = discovery_log(5, std::slice::from_ref(&entry));
        assert_eq!(log.len(), 2048);
        assert_eq!((log[0], log[8]), (5, 1));
        assert_eq!(
            log[1024..1036],
            [3, 1, 2, 6, 1, 0, 0xff, 0xff, 128, 0, 0, 0]
        );
        assert_eq!(&log[1056..1062], b"4420  ");
        assert_eq!(&log[1280..1296], b"nqn.2026-11.x:y\0");
        assert_eq!(&log[1536..1546], b"127.0.0.1 ");
    }

    #[test]
    fn an_ana_log_lists_groups_with_or_without_their_namespaces() {
        let group = AnaGroup {
            id: 2,
            state: 3,
            nsids: vec![2, 7],
        };
        let log = ana_log(9, std::slice::from_ref(&group), false);
        assert_eq!(log.len(), 16 + 32 + 8);
        assert_eq!(
            (log[0], log[8], log[16], log[20], log[24], log[32]),
            (9, 1, 2, 2, 9, 3)
        );
        assert_eq!(log[48..], [2, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(ana_log(9, &[group], true).len(), 16 + 32);
    }

    #[test]
    fn no_effect_holds_up_others() {
        let log = effects_log(false);
        assert!(
            log.chunks_exact(4)
                .all(|entry| entry[0] <= 3 && entry[1..] == [0; 3])
        );
        assert_eq!((log[4 * 257], log[4 * 258], log[4 * 6]), (3, 1, 1));
    }

    #[test]
    fn data_units_are_rounded_up() {
        let log = smart_log(&SmartFigures {
            bytes_read: 1,
            writes: 3,
            ..SmartFigures::default()
        });
        assert_eq!((log[32], log[48], log[80], log[3]), (1, 0, 3, 100));
    }
}
