//! The subsystems of a configuration, in order, and what each has to save.

use super::call::{Call, Recipe};
use super::object::{Object, VHOST_COALESCING};
use super::{save, save_nvmf};
use crate::app::service::Service;
use serde_json::json;

/// One subsystem, by SPDK's name.
#[derive(Clone, Copy)]
pub(in crate::app) struct Subsystem {
    /// Its name.
    pub(in crate::app) name: &'static str,
    /// Those that must be up before. SPDK's client looks each up among those listed earlier.
    pub(in crate::app) depends_on: &'static [&'static str],
    /// The calls that make again what it has now.
    pub(in crate::app) save: fn(&Service) -> Vec<Call>,
    /// All its methods are ours: one that is not known is a mistake. Elsewhere SPDK has more.
    pub(super) is_ours: bool,
}

const SUBSYSTEMS: &[Subsystem] = &[
    Subsystem {
        name: "scheduler",
        depends_on: &[],
        save: scheduler,
        is_ours: false,
    },
    Subsystem {
        name: "keyring",
        depends_on: &[],
        save: keyring,
        is_ours: false,
    },
    Subsystem {
        name: "iobuf",
        depends_on: &[],
        save: nothing,
        is_ours: false,
    },
    Subsystem {
        name: "sock",
        depends_on: &[],
        save: nothing,
        is_ours: false,
    },
    Subsystem {
        name: "bdev",
        depends_on: &["keyring", "iobuf", "sock"],
        save: save::bdev,
        is_ours: true,
    },
    Subsystem {
        name: "nvmf",
        depends_on: &["bdev", "keyring", "sock", "iobuf"],
        save: save_nvmf::nvmf,
        is_ours: false,
    },
    Subsystem {
        name: "vhost_blk",
        depends_on: &["bdev"],
        save: vhost_blk,
        is_ours: false,
    },
    Subsystem {
        name: "nbd",
        depends_on: &["bdev"],
        save: nbd,
        is_ours: true,
    },
];

/// All of them; each stands behind those that it depends on.
pub(in crate::app) fn subsystems() -> &'static [Subsystem] {
    SUBSYSTEMS
}

/// Whether a method of subsystem `name` that is not known here may be skipped.
pub(super) fn may_skip(name: &str) -> bool {
    let found = SUBSYSTEMS.iter().find(|subsystem| subsystem.name == name);
    found.is_none_or(|subsystem| !subsystem.is_ours)
}

/// What was set of the reactors' idleness.
fn scheduler(service: &Service) -> Vec<Call> {
    let set = service.idle_set();
    let calls = set.into_iter();
    calls
        .map(|params| Call::new("reactor_set_idle", &params))
        .collect()
}

/// Where the keys are; what they are stays in their files.
fn keyring(service: &Service) -> Vec<Call> {
    let keys = service.keyring.list().into_iter().map(|key| {
        let params = json!({"name": key.name, "path": key.path.to_string_lossy()});
        Call::new("keyring_file_add_key", &params)
    });
    keys.collect()
}

/// Its setters take what is so anyway.
fn nothing(_: &Service) -> Vec<Call> {
    Vec::new()
}

/// By name, so that it makes no difference which came up first.
fn vhost_blk(service: &Service) -> Vec<Call> {
    let saved = service.vhost.saved().into_iter();
    let made =
        saved.map(|(name, params)| (name, Call::new("vhost_create_blk_controller", &params)));
    let mut controllers: Vec<_> = made.collect();
    let said = service.vhost.saved_coalescing().into_iter();
    let said = said.map(|(name, params)| (name, Call::new(VHOST_COALESCING, &params)));
    let mut settings: Vec<_> = said.collect();
    for (object, call) in service.unresolved.calls(service) {
        match (object, call.text("ctrlr")) {
            (Some(Object::VhostController(name)), _) => controllers.push((name, call)),
            (None, Some(name)) if call.method == VHOST_COALESCING => settings.push((name, call)),
            _ => {}
        }
    }
    for calls in [&mut controllers, &mut settings] {
        calls.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let calls = controllers.into_iter().chain(settings);
    calls.map(|(_, call)| call).collect()
}

/// Exports come before servers: a client that finds a server again after a restart and asks for its
/// export at once must not be told that there is none.
fn nbd(service: &Service) -> Vec<Call> {
    let exports = service.nbd.exports().into_iter().map(|export| {
        let params = json!({
            "bdev_name": export.bdev_name,
            "name": export.name,
            "description": export.description,
            "read_only": export.read_only_wish,
            "max_payload": export.max_payload,
        });
        (export.name, Call::new("nbd_export_add", &params))
    });
    let servers = service.nbd.servers().into_iter().map(|server| {
        let address = server.address.to_string();
        let params = json!({"address": address, "max_connections": server.max_connections});
        (address, Recipe::new("nbd_server_start", params).call())
    });
    let (mut exports, mut servers): (Vec<_>, Vec<_>) = (exports.collect(), servers.collect());
    for (object, call) in service.unresolved.calls(service) {
        match object {
            Some(Object::NbdExport(name)) => exports.push((name, call)),
            Some(Object::NbdServer(address)) => servers.push((address, call)),
            _ => {}
        }
    }
    // By name, so that it makes no difference which came up first.
    exports.sort_by(|a, b| a.0.cmp(&b.0));
    servers.sort_by(|a, b| a.0.cmp(&b.0));
    exports
        .into_iter()
        .chain(servers)
        .map(|(_, call)| call)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subsystem_depends_on_earlier_ones_only() {
        let mut earlier = Vec::new();
        for subsystem in SUBSYSTEMS {
            for needed in subsystem.depends_on {
                assert!(earlier.contains(needed), "{} on {needed}", subsystem.name);
            }
            assert!(!earlier.contains(&subsystem.name), "{}", subsystem.name);
            earlier.push(subsystem.name);
        }
    }
}
