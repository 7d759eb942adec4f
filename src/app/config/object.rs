//! What the calls of a configuration make, and how it is unmade.

use super::call::Call;
use crate::app::caches;
use crate::app::service::Service;
use crate::target::nvmf::{NamespaceInfo, Referral};
use serde_json::{Value, json};
use std::fmt;
use std::net::SocketAddr;

/// Something that a call makes, by what tells it from its like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) enum Object {
    /// A bdev, but for caches.
    Bdev(String),
    /// The pool on a pmem bdev: before it is loaded nobody knows its name.
    PoolOn(String),
    /// A cache, by name, or by UUID if the call gave that alone.
    Cache(String),
    /// An NVMe controller of somebody else, whose namespaces are bdevs.
    NvmeController(String),
    /// A vhost controller.
    VhostController(String),
    /// The NVMe-oF transport.
    NvmfTransport,
    /// An NVMe-oF subsystem, by NQN.
    NvmfSubsystem(String),
    /// A namespace of one, by its number, or by its bdev if the call gave none.
    NvmfNamespace(String, Place),
    /// A host of one.
    NvmfHost(String, String),
    /// A listener of one, at an address.
    NvmfListener(String, String),
    /// Where it leads, and to which subsystem; to the discovery subsystem if none is named.
    NvmfReferral(String, Option<String>),
    /// An NBD server, by address.
    NbdServer(String),
    /// An NBD export.
    NbdExport(String),
    /// A key.
    Key(String),
}

/// What tells a namespace from others of its subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) enum Place {
    /// Its number.
    Nsid(u64),
    /// The number is not known yet, but the bdev.
    Bdev(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nsid(nsid) => write!(f, "{nsid}"),
            Self::Bdev(name) => write!(f, "with bdev '{name}'"),
        }
    }
}

/// Methods that make a bdev whose name they answer, and the ones that delete it.
const BDEV_MAKERS: &[(&str, &str)] = &[
    ("bdev_pmem_create", "bdev_pmem_delete"),
    ("bdev_malloc_create", "bdev_malloc_delete"),
    ("bdev_null_create", "bdev_null_delete"),
    ("bdev_uring_create", "bdev_uring_delete"),
    ("bdev_aio_create", "bdev_aio_delete"),
    ("bdev_delay_create", "bdev_delay_delete"),
    (ERROR_CREATE, "bdev_error_delete"),
    ("bdev_passthru_create", "bdev_passthru_delete"),
    (VIRTIO_ATTACH, "bdev_virtio_detach_controller"),
];

const ERROR_CREATE: &str = "bdev_error_create";
const VIRTIO_ATTACH: &str = "bdev_virtio_attach_controller";
const ADD_KEY: &str = "keyring_file_add_key";
const VHOST_CREATE: &str = "vhost_create_blk_controller";
pub(super) const VHOST_COALESCING: &str = "vhost_controller_set_coalescing";
pub(super) const NVME_ATTACH: &str = "bdev_nvme_attach_controller";
const NVMF_TRANSPORT: &str = "nvmf_create_transport";
const NVMF_SUBSYSTEM: &str = "nvmf_create_subsystem";
const NVMF_NAMESPACE: &str = "nvmf_subsystem_add_ns";
const NVMF_HOST: &str = "nvmf_subsystem_add_host";
const NVMF_LISTENER: &str = "nvmf_subsystem_add_listener";
const NVMF_REFERRAL: &str = "nvmf_discovery_add_referral";
const POOL_LOAD: &str = "pool_load";
const CACHE_LOAD: &str = "bdev_pmcache_load";

/// An address that a call names, and one that there is.
fn place_in(address: &Value) -> Option<String> {
    let text = |key: &str| address[key].as_str();
    Some(format!("{} port {}", text("traddr")?, text("trsvcid")?))
}

fn place_of(address: &SocketAddr) -> String {
    format!("{} port {}", address.ip(), address.port())
}

/// Methods that format or erase media: no configuration may hold them.
pub(super) const FORMATTING: &[&str] =
    &["pool_create", "bdev_pmcache_create", "bdev_pmcache_destroy"];

/// Methods that load a pool or a cache: one that can't be loaded leaves the rest worth having.
pub(super) const LOADERS: &[&str] = &[POOL_LOAD, CACHE_LOAD];

/// The method that deletes what `maker` makes.
fn deleter(maker: &str) -> Option<&'static str> {
    let found = BDEV_MAKERS.iter().find(|(method, _)| *method == maker);
    found.map(|(_, deleter)| *deleter)
}

impl Object {
    /// What `call` is to make; nothing if it makes none.
    pub(super) fn of(call: &Call) -> Option<Self> {
        match call.method.as_str() {
            POOL_LOAD => Some(Self::PoolOn(call.text("bdev_name")?)),
            CACHE_LOAD => {
                let name = call.text("name").or_else(|| call.text("uuid"));
                Some(Self::Cache(name?))
            }
            VHOST_CREATE => Some(Self::VhostController(call.text("ctrlr")?)),
            NVME_ATTACH => Some(Self::NvmeController(call.text("name")?)),
            NVMF_TRANSPORT => Some(Self::NvmfTransport),
            NVMF_SUBSYSTEM => Some(Self::NvmfSubsystem(call.text("nqn")?)),
            NVMF_NAMESPACE => {
                let namespace = &call.value()["namespace"];
                let nsid = namespace["nsid"].as_u64().filter(|nsid| *nsid != 0);
                let place = match nsid {
                    Some(nsid) => Place::Nsid(nsid),
                    None => Place::Bdev(namespace["bdev_name"].as_str()?.to_owned()),
                };
                Some(Self::NvmfNamespace(call.text("nqn")?, place))
            }
            NVMF_HOST => Some(Self::NvmfHost(call.text("nqn")?, call.text("host")?)),
            NVMF_LISTENER => {
                let address = place_in(&call.value()["listen_address"])?;
                Some(Self::NvmfListener(call.text("nqn")?, address))
            }
            NVMF_REFERRAL => {
                let address = place_in(&call.value()["address"])?;
                Some(Self::NvmfReferral(address, call.text("subnqn")))
            }
            "nbd_server_start" => Some(Self::NbdServer(call.text("address")?)),
            "nbd_export_add" => {
                let name = call.text("name").or_else(|| call.text("bdev_name"));
                Some(Self::NbdExport(name?))
            }
            ADD_KEY => Some(Self::Key(call.text("name")?)),
            ERROR_CREATE => Some(Self::Bdev(format!("EE_{}", call.text("base_name")?))),
            maker => {
                deleter(maker)?;
                Some(Self::Bdev(call.text("name")?))
            }
        }
    }

    /// The name of the bdev that it is or will be.
    pub(super) fn bdev_name(&self) -> Option<&str> {
        match self {
            Self::Bdev(name) | Self::Cache(name) => Some(name),
            _ => None,
        }
    }

    /// Whether `call` speaks of a bdev or a controller that it is or will be.
    pub(super) fn is_meant_by(&self, call: &Call) -> bool {
        match self {
            Self::NvmeController(name) => call.mentions_any(&|text| {
                let nsid = text
                    .strip_prefix(&**name)
                    .and_then(|rest| rest.strip_prefix('n'));
                nsid.is_some_and(|nsid| nsid.parse::<u32>().is_ok())
            }),
            Self::VhostController(name) => {
                call.method == VHOST_COALESCING && call.text("ctrlr").as_deref() == Some(name)
            }
            other => other.bdev_name().is_some_and(|name| call.mentions(name)),
        }
    }

    /// Whether the service has it.
    pub(super) fn exists(&self, service: &Service) -> bool {
        match self {
            Self::Bdev(name) => service.bdevs.get(name).is_ok(),
            Self::PoolOn(bdev) => {
                let pools = service.caches.pools();
                pools.iter().any(|pool| pool.bdev_name == *bdev)
            }
            Self::Cache(name) => {
                let caches = caches::all(service);
                let is_it = |uuid: String| uuid == *name;
                let mut caches = caches.iter();
                caches.any(|cache| cache.name() == name || is_it(cache.uuid().to_string()))
            }
            Self::NvmeController(name) => service.bdevs.nvme(name).next().is_some(),
            Self::VhostController(name) => !service.vhost.list(Some(name)).is_empty(),
            Self::NvmfTransport => service.nvmf.transport().is_some(),
            Self::NvmfSubsystem(nqn) => service.nvmf.subsystem(nqn).is_ok(),
            Self::NvmfNamespace(nqn, place) => {
                let is_it = |info: &NamespaceInfo| match place {
                    Place::Nsid(nsid) => u64::from(info.nsid) == *nsid,
                    Place::Bdev(name) => info.bdev_name == *name,
                };
                let subsystem = service.nvmf.subsystem(nqn);
                subsystem.is_ok_and(|found| found.namespaces.iter().any(is_it))
            }
            Self::NvmfHost(nqn, host) => {
                let subsystem = service.nvmf.subsystem(nqn);
                subsystem.is_ok_and(|found| found.invites(host))
            }
            Self::NvmfListener(nqn, address) => {
                let subsystem = service.nvmf.subsystem(nqn);
                subsystem.is_ok_and(|info| info.listeners.iter().any(|at| place_of(at) == *address))
            }
            Self::NvmfReferral(address, nqn) => {
                let is_it = |known: &Referral| {
                    place_of(&known.address) == *address
                        && match nqn {
                            Some(nqn) => known.nqn == *nqn,
                            None => known.is_discovery(),
                        }
                };
                service.nvmf.referrals().iter().any(is_it)
            }
            Self::NbdServer(address) => {
                let servers = service.nbd.servers();
                servers.iter().any(|s| s.address.to_string() == *address)
            }
            Self::NbdExport(name) => {
                let exports = service.nbd.exports();
                exports.iter().any(|export| export.name == *name)
            }
            Self::Key(name) => {
                let keys = service.keyring.list();
                keys.iter().any(|key| key.name == *name)
            }
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bdev(name) => write!(f, "bdev '{name}'"),
            Self::PoolOn(bdev) => write!(f, "pool on '{bdev}'"),
            Self::Cache(name) => write!(f, "pmcache '{name}'"),
            Self::NvmeController(name) => write!(f, "nvme controller '{name}'"),
            Self::VhostController(name) => write!(f, "vhost controller '{name}'"),
            Self::NvmfTransport => write!(f, "nvmf transport"),
            Self::NvmfSubsystem(nqn) => write!(f, "nvmf subsystem '{nqn}'"),
            Self::NvmfNamespace(nqn, place) => write!(f, "nvmf namespace {place} of '{nqn}'"),
            Self::NvmfHost(nqn, host) => write!(f, "nvmf host '{host}' of '{nqn}'"),
            Self::NvmfListener(nqn, address) => {
                write!(f, "nvmf listener at {address} of '{nqn}'")
            }
            Self::NvmfReferral(address, nqn) => {
                let nqn = nqn.as_deref().unwrap_or("discovery");
                write!(f, "nvmf referral to '{nqn}' at {address}")
            }
            Self::NbdServer(address) => write!(f, "nbd server '{address}'"),
            Self::NbdExport(name) => write!(f, "nbd export '{name}'"),
            Self::Key(name) => write!(f, "key '{name}'"),
        }
    }
}

/// What `call`, which answered `result`, has made, for people, and the call that unmakes it.
pub(super) fn undo(call: &Call, result: &Value) -> Option<(String, Call)> {
    let own_name = result
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let text = result.as_str().unwrap_or_default();
    let named = |name: &str| json!({"name": name});
    let (object, method, params) = match call.method.as_str() {
        POOL_LOAD => (format!("pool '{own_name}'"), "pool_unload", named(own_name)),
        CACHE_LOAD => {
            let cache = Object::Cache(own_name.to_owned()).to_string();
            (cache, "bdev_pmcache_unload", named(own_name))
        }
        VHOST_CREATE => {
            let controller = Object::of(call)?.to_string();
            let params = json!({"ctrlr": call.text("ctrlr")?});
            (controller, "vhost_delete_controller", params)
        }
        NVME_ATTACH => {
            let controller = Object::of(call)?.to_string();
            let params = named(&call.text("name")?);
            (controller, "bdev_nvme_detach_controller", params)
        }
        NVMF_TRANSPORT | NVMF_SUBSYSTEM | NVMF_NAMESPACE | NVMF_HOST | NVMF_LISTENER
        | NVMF_REFERRAL => {
            let (method, params) = undo_nvmf(call, result)?;
            (Object::of(call)?.to_string(), method, params)
        }
        "nbd_server_start" => {
            let address = call.text("address")?;
            let params = json!({"address": address});
            let server = Object::NbdServer(address).to_string();
            (server, "nbd_server_stop", params)
        }
        "nbd_export_add" => {
            let export = Object::NbdExport(text.to_owned()).to_string();
            let params = json!({"name": text, "mode": "hard"});
            (export, "nbd_export_remove", params)
        }
        ADD_KEY => {
            let key = Object::of(call)?.to_string();
            (key, "keyring_file_remove_key", named(&call.text("name")?))
        }
        maker => {
            let bdev = match Object::of(call) {
                Some(object) if [ERROR_CREATE, VIRTIO_ATTACH].contains(&maker) => object,
                _ => Object::Bdev(text.to_owned()),
            };
            let params = named(bdev.bdev_name()?);
            (bdev.to_string(), deleter(maker)?, params)
        }
    };
    Some((object, Call::new(method, &params)))
}

/// The method and the parameters that unmake what `call` has made of the NVMe-oF target.
fn undo_nvmf(call: &Call, result: &Value) -> Option<(&'static str, Value)> {
    let value = call.value();
    let nqn = value.get("nqn");
    let undo = match call.method.as_str() {
        NVMF_TRANSPORT => {
            let params = json!({"trtype": value.get("trtype")?});
            ("nvmf_delete_transport", params)
        }
        NVMF_SUBSYSTEM => ("nvmf_delete_subsystem", json!({"nqn": nqn?})),
        NVMF_NAMESPACE => {
            let params = json!({"nqn": nqn?, "nsid": result});
            ("nvmf_subsystem_remove_ns", params)
        }
        NVMF_HOST => {
            let params = json!({"nqn": nqn?, "host": value.get("host")?});
            ("nvmf_subsystem_remove_host", params)
        }
        NVMF_REFERRAL => {
            let nqn = value.get("subnqn").unwrap_or(&Value::Null);
            let params = json!({"address": value.get("address")?, "subnqn": nqn});
            ("nvmf_discovery_remove_referral", params)
        }
        _ => {
            let address = value.get("listen_address")?;
            let params = json!({"nqn": nqn?, "listen_address": address});
            ("nvmf_subsystem_remove_listener", params)
        }
    };
    Some(undo)
}

/// How to find out whether the object of a call is there already, and would be answered as made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lister {
    /// The method that lists objects of the kind.
    pub(super) method: &'static str,
    /// Whether one of its list is the object of the call.
    pub(super) is_it: fn(&Value, &Call) -> bool,
}

impl Lister {
    /// For calls that are answered all the same.
    pub(super) fn of(call: &Call) -> Option<Self> {
        match call.method.as_str() {
            POOL_LOAD => Some(Self {
                method: "pool_get",
                is_it: |pool, call| has_same(pool, call, "bdev_name"),
            }),
            CACHE_LOAD => Some(Self {
                method: "bdev_pmcache_get",
                is_it: |cache, call| {
                    // One that waits for its devices is listed too, with the reason.
                    let waits = cache.get("reason").is_some();
                    !waits && (has_same(cache, call, "uuid") || has_same(cache, call, "name"))
                },
            }),
            _ => None,
        }
    }
}

/// Whether `call` gives a parameter `key`, and `object` has the same.
fn has_same(object: &Value, call: &Call, key: &str) -> bool {
    let wanted = call.text(key);
    wanted.is_some() && object.get(key).and_then(Value::as_str) == wanted.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undone(method: &str, params: &Value, result: &Value) -> Option<(String, Value)> {
        let (_, call) = undo(&Call::new(method, params), result)?;
        Some((call.method.clone(), call.value()))
    }

    fn is_unmade(method: &str, params: &Value, result: &Value, expected: &str, unmade: Value) {
        let found = undone(method, params, result);
        assert_eq!(found, Some((expected.to_owned(), unmade)), "{method}");
    }

    #[test]
    fn what_a_call_made_is_unmade_by_name() {
        for (method, params, result, expected, unmade) in [
            (
                "bdev_malloc_create",
                json!({"num_blocks": 1}),
                json!("Malloc0"),
                "bdev_malloc_delete",
                json!({"name": "Malloc0"}),
            ),
            (
                "bdev_error_create",
                json!({"base_name": "d"}),
                json!(true),
                "bdev_error_delete",
                json!({"name": "EE_d"}),
            ),
            (
                "bdev_virtio_attach_controller",
                json!({"name": "v", "traddr": "/x"}),
                json!(["v"]),
                "bdev_virtio_detach_controller",
                json!({"name": "v"}),
            ),
            (
                "pool_load",
                json!({"bdev_name": "pm"}),
                json!({"name": "p"}),
                "pool_unload",
                json!({"name": "p"}),
            ),
            (
                "bdev_pmcache_load",
                json!({"pool": "p", "uuid": "x"}),
                json!({"name": "c"}),
                "bdev_pmcache_unload",
                json!({"name": "c"}),
            ),
            (
                "vhost_create_blk_controller",
                json!({"ctrlr": "v", "dev_name": "c"}),
                json!(true),
                "vhost_delete_controller",
                json!({"ctrlr": "v"}),
            ),
            (
                "bdev_nvme_attach_controller",
                json!({"name": "Nvme0", "trtype": "tcp"}),
                json!(["Nvme0n1", "Nvme0n2"]),
                "bdev_nvme_detach_controller",
                json!({"name": "Nvme0"}),
            ),
            (
                "nbd_server_start",
                json!({"address": "unix:/x"}),
                json!(true),
                "nbd_server_stop",
                json!({"address": "unix:/x"}),
            ),
            (
                "nbd_export_add",
                json!({"bdev_name": "c"}),
                json!("c"),
                "nbd_export_remove",
                json!({"name": "c", "mode": "hard"}),
            ),
        ] {
            is_unmade(method, &params, &result, expected, unmade);
        }
        let setter = undone("reactor_set_idle", &json!({}), &json!(true));
        assert_eq!(setter, None);
    }

    #[test]
    fn what_a_call_made_of_the_nvmf_target_is_unmade_too() {
        let address = json!({"trtype": "TCP", "traddr": "::1", "trsvcid": "1"});
        let listener = json!({"nqn": "n", "listen_address": address});
        for (method, params, result, expected, unmade) in [
            (
                "nvmf_create_transport",
                json!({"trtype": "tcp", "kas": 5}),
                json!(true),
                "nvmf_delete_transport",
                json!({"trtype": "tcp"}),
            ),
            (
                "nvmf_create_subsystem",
                json!({"nqn": "n", "allow_any_host": true}),
                json!(true),
                "nvmf_delete_subsystem",
                json!({"nqn": "n"}),
            ),
            (
                "nvmf_subsystem_add_ns",
                json!({"nqn": "n", "namespace": {"bdev_name": "c"}}),
                json!(3),
                "nvmf_subsystem_remove_ns",
                json!({"nqn": "n", "nsid": 3}),
            ),
            (
                "nvmf_subsystem_add_host",
                json!({"nqn": "n", "host": "h"}),
                json!(true),
                "nvmf_subsystem_remove_host",
                json!({"nqn": "n", "host": "h"}),
            ),
            (
                "nvmf_subsystem_add_listener",
                listener.clone(),
                json!(true),
                "nvmf_subsystem_remove_listener",
                listener,
            ),
            (
                "nvmf_discovery_add_referral",
                json!({"address": address, "secure_channel": false}),
                json!(true),
                "nvmf_discovery_remove_referral",
                json!({"address": address, "subnqn": null}),
            ),
        ] {
            is_unmade(method, &params, &result, expected, unmade);
        }
    }

    #[test]
    fn every_method_that_makes_something_has_one_that_unmakes_it() {
        let makes = |name: &str| {
            let nvmf = name.starts_with("nvmf_create_") || name.starts_with("nvmf_subsystem_add_");
            let ends = [
                "_create",
                "_load",
                "_add",
                "_add_key",
                "_server_start",
                "_attach_controller",
            ];
            let named = nvmf || ends.iter().any(|end| name.ends_with(end));
            named && !FORMATTING.contains(&name)
        };
        let registry = Service::registry();
        let known = registry.names();
        for maker in known.iter().filter(|name| makes(name)) {
            let address = json!({"traddr": "x", "trsvcid": "x"});
            let named = json!({
                "name": "x", "base_name": "x", "address": "x", "nqn": "x", "host": "x", "trtype": "x",
                "namespace": {"bdev_name": "x"}, "listen_address": address,
            });
            let unmaker = undo(&Call::new(*maker, &named), &json!("x"));
            let (_, unmaker) = unmaker.unwrap_or_else(|| panic!("{maker} is never unmade"));
            assert!(known.contains(&&*unmaker.method), "{}", unmaker.method);
        }
    }
}
