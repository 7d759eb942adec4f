//! Keys that Python made (see `src/wire/nvme/auth/key.rs`), and a target that wants a host's.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod talk;

use crate::nvmf_common::{Fixture, HOST, NQN};
use pmcache::bdev::{ChapKey, HostKeys, NamedKey};

/// Bytes 0 to 31, 0 to 31, 0 to 47 and 0 to 63.
pub(crate) const TEXTS: [&str; 4] = [
    "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
    "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
    "DHHC-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:",
    "DHHC-1:03:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P4zODhA=:",
];

pub(crate) fn named(which: usize) -> NamedKey {
    NamedKey {
        name: format!("key{which}"),
        key: ChapKey::parse(TEXTS[which]).unwrap(),
    }
}

/// The host's key and, perhaps, the controller's.
pub(crate) fn keys(host: usize, controller: Option<usize>) -> HostKeys {
    HostKeys {
        host: named(host),
        controller: controller.map(named),
    }
}

/// Only the host of these tests is let in, with its key.
pub(crate) fn demand(fixture: &Fixture, host: usize, controller: Option<usize>) {
    fixture.target.allow_any_host(NQN, false).unwrap();
    let keys = keys(host, controller);
    fixture.target.add_host(NQN, HOST, Some(keys)).unwrap();
}
