//! Asymmetric namespace access: which way to a namespace a host should take (spec section 9).

use std::net::SocketAddr;

/// How good the way through a listener is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnaState {
    /// The best there is.
    #[default]
    Optimized,
    /// It works, and there are better ones.
    NonOptimized,
    /// It does not work now.
    Inaccessible,
}

impl AnaState {
    /// As in the log.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Optimized => 1,
            Self::NonOptimized => 2,
            Self::Inaccessible => 3,
        }
    }
}

/// The states of one subsystem's listeners; optimized unless said otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct AnaTable(Vec<(SocketAddr, u32, AnaState)>);

impl AnaTable {
    /// Of group `group` through `listener`.
    pub(super) fn state(&self, listener: SocketAddr, group: u32) -> AnaState {
        let found = self
            .0
            .iter()
            .find(|(known, g, _)| (*known, *g) == (listener, group));
        found.map_or(AnaState::default(), |(.., state)| *state)
    }

    /// Sets it for these groups.
    pub(super) fn set(
        &mut self,
        listener: SocketAddr,
        groups: impl Iterator<Item = u32> + Clone,
        state: AnaState,
    ) {
        let set = groups.clone();
        self.0.retain(|(known, group, _)| {
            *known != listener || !set.clone().any(|other| other == *group)
        });
        if state != AnaState::default() {
            self.0.extend(groups.map(|group| (listener, group, state)));
        }
    }

    /// Forgets a listener.
    pub(super) fn forget(&mut self, listener: SocketAddr) {
        self.0.retain(|(known, ..)| *known != listener);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_kept_by_listener_and_group() {
        let one: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let other: SocketAddr = "127.0.0.1:2".parse().unwrap();
        let mut table = AnaTable::default();
        table.set(one, 1..=3, AnaState::Inaccessible);
        table.set(one, 2..=2, AnaState::NonOptimized);
        let states = |table: &AnaTable, listener| [1, 2, 3, 4].map(|g| table.state(listener, g));
        let [best, second, none] = [
            AnaState::Optimized,
            AnaState::NonOptimized,
            AnaState::Inaccessible,
        ];
        assert_eq!(states(&table, one), [none, second, none, best]);
        assert_eq!(states(&table, other), [best; 4]);
        table.set(one, 1..=2, best);
        assert_eq!(states(&table, one), [best, best, none, best]);
        table.forget(one);
        assert_eq!(states(&table, one), [best; 4]);
    }
}
