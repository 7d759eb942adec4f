//! Calls of the configuration that have not succeeded: objects whose device is absent, and pools and
//! caches that can't be loaded. The rest of the service goes on without them.
//!
//! A call *waits* if its device, or an object that it needs, is not there yet: it is made again until
//! it is. Any other failure is final until the operator has made the object by hand.

use super::call::Call;
use super::object::{LOADERS, NVME_ATTACH, Object};
use crate::app::service::{Degraded, Service};
use crate::app::shared::Shared;
use rpc::{Error, Params, Registry};
use rustix::io::Errno;

#[derive(Clone, Debug)]
struct Item {
    call: Call,
    object: Option<Object>,
    reason: String,
    waits: bool,
}

impl Item {
    fn shown_object(&self) -> String {
        match &self.object {
            Some(object) => object.to_string(),
            None => format!("{} {}", self.call.method, self.call.value()),
        }
    }
}

/// The list, in the order of the configuration.
#[derive(Debug, Default)]
pub(in crate::app) struct Unresolved(Shared<Vec<Item>>);

/// A cache of the configuration that is not there.
#[derive(Clone, Debug)]
pub(in crate::app) struct MissingCache {
    /// Its call.
    call: Call,
    /// Why it is not there.
    pub(in crate::app) reason: String,
    /// It comes up by itself when what it needs is there.
    pub(in crate::app) waits: bool,
}

impl MissingCache {
    /// What its call gives as `key`.
    pub(in crate::app) fn text(&self, key: &str) -> Option<String> {
        self.call.text(key)
    }
}

/// Methods that open a device by its path or address, which may appear later.
const OPENERS: &[&str] = &[
    "bdev_pmem_create",
    "bdev_uring_create",
    "bdev_aio_create",
    "bdev_virtio_attach_controller",
    NVME_ATTACH,
];

/// What the system says of an address where nobody answers, or not the one who is to be there.
const UNREACHABLE: &[Errno] = &[
    Errno::CONNREFUSED,
    Errno::CONNRESET,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::TIMEDOUT,
];

/// Whether `error` says that there is no device, of a call that opens one.
fn is_absent(call: &Call, error: &Error) -> bool {
    // A back end that serves somebody else does not answer.
    let absent = [Errno::NOENT, Errno::NXIO, Errno::NODEV, Errno::TIMEDOUT];
    let absent = absent.map(Errno::raw_os_error);
    let away = UNREACHABLE.iter().map(|errno| errno.raw_os_error());
    let is_remote = call.method == NVME_ATTACH;
    let says = |errno| absent.contains(&errno) || is_remote && away.clone().any(|it| it == errno);
    OPENERS.contains(&call.method.as_str()) && error.as_errno().is_some_and(says)
}

/// Whether `error` says that an object is missing which one of `items` may still make.
fn lacks_one_of(items: &[Item], call: &Call, error: &Error) -> bool {
    if error.as_errno() != Some(Errno::NODEV.raw_os_error()) || items.is_empty() {
        return false;
    }
    // A pool's name is not known before it is loaded, and a cache knows its backing by itself.
    let is_loader = LOADERS.contains(&call.method.as_str());
    let makes_it = |item: &Item| match &item.object {
        // Known by its UUID alone, it may be anybody.
        Some(Object::Cache(_)) if item.call.text("name").is_none() => true,
        Some(object) => object.is_meant_by(call),
        None => false,
    };
    is_loader || items.iter().any(makes_it)
}

impl Unresolved {
    /// Takes `call`, which failed, if the service may go on without what it makes.
    pub(super) fn note(&self, call: &Call, error: &Error) -> bool {
        let taken = self.0.with(|items| {
            let waits = is_absent(call, error) || lacks_one_of(items, call, error);
            if !waits && !LOADERS.contains(&call.method.as_str()) {
                return None;
            }
            let item = Item {
                call: call.normal(),
                object: Object::of(call),
                reason: error.message.clone(),
                waits,
            };
            items.push(item.clone());
            Some(item)
        });
        let Some(item) = taken else {
            return false;
        };
        let (object, waits, reason) = (item.shown_object(), item.waits, item.reason);
        tracing::warn!(object, waits, reason, "degraded");
        true
    }

    /// Drops all.
    pub(super) fn clear(&self) {
        self.0.with(Vec::clear);
    }

    fn drop_maker(&self, object: &Object) -> bool {
        self.drop_makers(|other| other == object)
    }

    fn drop_makers(&self, is_it: impl Fn(&Object) -> bool) -> bool {
        self.0.with(|items| {
            let before = items.len();
            items.retain(|item| !item.object.as_ref().is_some_and(&is_it));
            items.len() < before
        })
    }

    /// Drops what makes namespaces of the NVMe-oF subsystem `nqn`, which has been ended.
    pub(in crate::app) fn forget_namespaces(&self, nqn: &str) {
        self.drop_makers(|object| matches!(object, Object::NvmfNamespace(of, _) if of == nqn));
    }

    /// Drops what makes `object`, which nobody wants any more, and what sets something of it. Returns
    /// whether anybody did.
    pub(in crate::app) fn forget(&self, object: &Object) -> bool {
        let dropped = self.drop_maker(object);
        if dropped {
            let sets = |item: &Item| item.object.is_none() && object.is_meant_by(&item.call);
            self.0.with(|items| items.retain(|item| !sets(item)));
        }
        dropped
    }

    /// Whether there is something that comes up by itself.
    pub(super) fn any_waits(&self) -> bool {
        self.0.with(|items| items.iter().any(|item| item.waits))
    }

    /// Drops what has been made meanwhile, by hand.
    fn prune(&self, service: &Service) {
        // Asked with the list unlocked: whoever has a lock of theirs may wait for ours.
        let made = self.0.with(|items| items.clone()).into_iter();
        let made = made.filter_map(|item| item.object.filter(|object| object.exists(service)));
        for object in made {
            self.drop_maker(&object);
        }
    }

    /// All calls, with what they are to make.
    pub(super) fn calls(&self, service: &Service) -> Vec<(Option<Object>, Call)> {
        self.prune(service);
        self.0.with(|items| {
            let calls = items.iter();
            calls
                .map(|item| (item.object.clone(), item.call.clone()))
                .collect()
        })
    }

    /// What is not there and why, for the health.
    pub(in crate::app) fn degraded(&self, service: &Service) -> Vec<Degraded> {
        self.prune(service);
        self.0.with(|items| {
            let shown = items.iter().map(|item| Degraded {
                object: item.shown_object(),
                reason: match item.waits {
                    true => format!("waiting: {}", item.reason),
                    false => item.reason.clone(),
                },
            });
            shown.collect()
        })
    }

    /// The caches that are not there.
    pub(in crate::app) fn caches(&self, service: &Service) -> Vec<MissingCache> {
        self.prune(service);
        self.0.with(|items| {
            let caches = items
                .iter()
                .filter(|item| matches!(item.object, Some(Object::Cache(_))));
            let missing = caches.map(|item| MissingCache {
                call: item.call.clone(),
                reason: item.reason.clone(),
                waits: item.waits,
            });
            missing.collect()
        })
    }

    /// Notes how another try of `call` went. What was dropped meanwhile stays dropped.
    fn tried(&self, call: &Call, error: Option<&Error>) {
        self.0.with(|items| {
            let same =
                |item: &Item| item.call.method == call.method && item.call.value() == call.value();
            let Some(at) = items.iter().position(same) else {
                return;
            };
            let Some(error) = error else {
                items.remove(at);
                return;
            };
            if let Some(item) = items.get_mut(at) {
                item.reason.clone_from(&error.message);
                // A device that is just being made may be refused for many reasons.
                let opens = OPENERS.contains(&call.method.as_str());
                item.waits = opens || error.as_errno() == Some(Errno::NODEV.raw_os_error());
            }
        });
    }
}

/// Makes all calls that wait once more, in order.
pub(super) fn retry(registry: &Registry<Service>, service: &Service) {
    let unresolved = &service.unresolved;
    unresolved.prune(service);
    let waiting = unresolved.0.with(|items| items.clone());
    for item in waiting.into_iter().filter(|item| item.waits) {
        let params = Params::new(item.call.params.as_deref());
        let object = item.shown_object();
        match registry.call(service, &item.call.method, params) {
            Ok(_) => {
                tracing::info!(object, "is there now");
                unresolved.tried(&item.call, None);
            }
            Err(error) => {
                if error.message != item.reason {
                    tracing::warn!(object, %error, "is not there yet");
                }
                unresolved.tried(&item.call, Some(&error));
            }
        }
    }
}
