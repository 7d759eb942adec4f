//! Asynchronous events: what a host is told without having asked for it just now (spec section 5.6).

use super::subsystem::NamespaceTable;
use crate::wire::nvme::EventInfo;
use std::collections::BTreeSet;

/// The most namespaces that the log of changed ones lists.
const CHANGED_MAX: usize = 1024;

/// What a host could see of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    nsid: u32,
    uuid: [u8; 16],
    blocks: u64,
    read_only: bool,
    ana_group: u32,
}

fn look(table: &NamespaceTable) -> Vec<Seen> {
    let seen = table.iter().map(|namespace| {
        let page = namespace.page(true);
        Seen {
            nsid: namespace.nsid,
            uuid: namespace.uuid(),
            blocks: page.blocks,
            read_only: page.read_only,
            ana_group: page.ana_group,
        }
    });
    seen.collect()
}

/// The events of one controller.
#[derive(Debug)]
pub(super) struct Events {
    /// What the host wants to hear of.
    pub(super) mask: u32,
    /// Its requests that wait.
    waiting: Vec<u16>,
    /// What it has not been told.
    untold: Vec<EventInfo>,
    /// What it has been told, and has not read up on.
    unread: Vec<EventInfo>,
    seen: Vec<Seen>,
    changed: BTreeSet<u32>,
    generation: u64,
    ana_changes: u64,
}

impl Events {
    pub(super) fn new(table: &NamespaceTable, generation: u64, ana_changes: u64) -> Self {
        Self {
            mask: 0,
            waiting: vec![],
            untold: vec![],
            unread: vec![],
            seen: look(table),
            changed: BTreeSet::new(),
            generation,
            ana_changes,
        }
    }

    /// Takes an event request; false if there are `most` already.
    pub(super) fn wait(&mut self, slot: u16, most: usize) -> bool {
        let has_room = self.waiting.len() < most;
        if has_room {
            self.waiting.push(slot);
        }
        has_room
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives an event request up, if `slot` is one.
    pub(super) fn give_up(&mut self, slot: u16) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| *waiting != slot);
        self.waiting.len() < before
    }

    /// Compares the namespaces with what was seen last.
    pub(super) fn look_at(&mut self, table: &NamespaceTable) {
        let now = look(table);
        if now == self.seen {
            return;
        }
        let differs = |one: &[Seen], other: &[Seen]| -> Vec<u32> {
            let missing = one.iter().filter(|seen| !other.contains(seen));
            missing.map(|seen| seen.nsid).collect()
        };
        self.changed.extend(differs(&now, &self.seen));
        self.changed.extend(differs(&self.seen, &now));
        self.seen = now;
        self.note(EventInfo::NamespaceChanged);
    }

    /// The discovery log is at `generation`.
    pub(super) fn look_at_discovery(&mut self, generation: u64) {
        if generation != self.generation {
            self.generation = generation;
            self.note(EventInfo::DiscoveryChanged);
        }
    }

    /// Ways to namespaces have changed so often.
    pub(super) fn look_at_ana(&mut self, changes: u64) {
        if changes != self.ana_changes {
            self.ana_changes = changes;
            self.note(EventInfo::AnaChanged);
        }
    }

    fn note(&mut self, event: EventInfo) {
        let known = self.untold.contains(&event) || self.unread.contains(&event);
        if self.mask & event.mask() != 0 && !known {
            self.untold.push(event);
        }
    }

    /// What to answer which request with.
    pub(super) fn next(&mut self) -> Option<(u16, EventInfo)> {
        if self.waiting.is_empty() || self.untold.is_empty() {
            return None;
        }
        let event = self.untold.remove(0);
        self.unread.push(event);
        Some((self.waiting.remove(0), event))
    }

    /// The host has read up on `event`: it may be told again.
    pub(super) fn was_read(&mut self, event: EventInfo) {
        self.unread.retain(|unread| *unread != event);
    }

    /// The log of changed namespaces, which is empty after this: 4096 bytes.
    pub(super) fn take_changed(&mut self) -> Vec<u8> {
        let changed = std::mem::take(&mut self.changed);
        let mut bytes: Vec<u8> = match changed.len() > CHANGED_MAX {
            true => u32::MAX.to_le_bytes().to_vec(),
            false => changed.iter().flat_map(|n| n.to_le_bytes()).collect(),
        };
        bytes.resize(CHANGED_MAX * 4, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::{MallocBdev, MallocConfig};
    use crate::target::nvmf::namespace::{Namespace, NamespaceConfig};
    use crate::wire::nvme::async_event;
    use std::sync::Arc;

    fn table(sizes: &[(u32, u64)]) -> NamespaceTable {
        let namespace = |&(nsid, blocks): &(u32, u64)| {
            let malloc = MallocBdev::new(MallocConfig {
                name: format!("m{nsid}"),
                uuid: uuid::Uuid::from_u128(nsid.into()),
                block_size: 512,
                blocks,
            });
            let config = NamespaceConfig {
                bdev: Arc::new(malloc.unwrap()),
                nsid: None,
                nguid: None,
                eui64: None,
                uuid: None,
                ana_group: None,
            };
            Arc::new(Namespace::new(nsid, config, Arc::default()))
        };
        sizes.iter().map(namespace).collect()
    }

    #[test]
    fn a_change_is_told_once_until_it_is_read() {
        let mut events = Events::new(&table(&[(1, 8), (2, 8)]), 1, 1);
        events.look_at(&table(&[(1, 8), (2, 8)]));
        events.mask = async_event::NAMESPACE_CHANGED;
        assert!(events.wait(5, 2) && events.wait(6, 2) && !events.wait(7, 2));
        assert_eq!(events.next(), None);
        events.look_at(&table(&[(1, 16), (3, 8)]));
        assert_eq!(events.next(), Some((5, EventInfo::NamespaceChanged)));
        events.look_at(&table(&[(1, 16)]));
        assert_eq!(events.next(), None);
        let log = events.take_changed();
        assert_eq!(log[..16], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(events.take_changed(), vec![0; 4096]);
        events.was_read(EventInfo::NamespaceChanged);
        events.look_at(&table(&[]));
        assert_eq!(events.next(), Some((6, EventInfo::NamespaceChanged)));
    }

    #[test]
    fn what_the_host_does_not_want_to_hear_is_not_told() {
        let mut events = Events::new(&table(&[]), 1, 1);
        assert!(events.wait(5, 4));
        events.look_at_discovery(2);
        assert_eq!(events.next(), None);
        events.mask = async_event::DISCOVERY_CHANGED;
        events.look_at_discovery(3);
        events.look_at_discovery(4);
        assert_eq!(events.next(), Some((5, EventInfo::DiscoveryChanged)));
        assert!(events.wait(6, 4) && events.give_up(6) && !events.give_up(6));
    }
}
