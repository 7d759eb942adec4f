//! Keys by which a host and a controller authenticate each other, and their names.

use crate::wire::nvme::ChapKey;

/// A key, and what the keyring calls it.
#[derive(Clone, Debug)]
pub struct NamedKey {
    /// Its name.
    pub name: String,
    /// The key.
    pub key: ChapKey,
}

/// What a host proves, and what a controller proves to it.
#[derive(Clone, Debug)]
pub struct HostKeys {
    /// The host's key.
    pub host: NamedKey,
    /// The controller's, for hosts that ask.
    pub controller: Option<NamedKey>,
}

impl HostKeys {
    /// Whether one of them is called `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let controller = self.controller.as_ref();
        self.host.name == name || controller.is_some_and(|key| key.name == name)
    }
}
