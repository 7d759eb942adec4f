//! Methods about NVMe/TCP controllers of others, whose namespaces are bdevs here.

use super::{or_forget, refuse_unless_default};
use crate::app::bdevs::{Entry, Kind, bdev_error};
use crate::app::config::{Object, Recipe};
use crate::app::service::Service;
use crate::bdev::{
    Bdev, ControllerState, NvmeAuth, NvmeBdev, NvmeConfig, NvmeController, NvmeUri, Patience,
};
use rpc::{Error, Registry};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use uuid::Uuid;

/// Adds this file's methods.
pub(super) fn register(registry: &mut Registry<Service>) {
    registry
        .bdev_method("bdev_nvme_attach_controller", attach)
        .about(
            "Connects to a subsystem behind NVMe/TCP: each of its namespaces becomes a bdev \
             `<name>n<nsid>`. Of the three parameters about its absence, either none is given \
             (it is connected to again each second, for ever, and requests wait) or all that \
             are not are 0, as SPDK has it. A flush fails once if the controller was away and \
             may have forgotten writes that were not flushed.",
            "A list of the bdevs' names. −17 if there is a controller of this name, −19 if it \
             has no namespaces, −22 for values that contradict each other, −95 for blocks that \
             are neither 512 nor 4096 bytes, −111 and others of the system if it can't be \
             reached or refuses, −13 if it does not let this host in or does not prove who it is, −126 \
             for a key that the keyring has not.",
        );
    registry
        .bdev_method("bdev_nvme_detach_controller", detach)
        .about(
            "Deletes the bdevs of a controller and disconnects. With an address, only if it is \
             that one's.",
            "True. −19 if there is none, −16 while one of its bdevs is in use.",
        );
    registry
        .bdev_method("bdev_nvme_get_controllers", get_controllers)
        .about(
            "All controllers, or one.",
            "A list, by name, in SPDK's shape: `name`, and in `ctrlrs` one path with `state` \
             (`enabled`, `resetting` while it is connected to again, `failed`), `trid`, `cntlid` \
             and `host`. −19 if there is none of this name.",
        );
}

/// The only transport.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
enum Transport {
    #[serde(rename = "tcp", alias = "TCP")]
    Tcp,
}

/// The families of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
enum Family {
    #[serde(rename = "ipv4", alias = "IPv4", alias = "IPV4")]
    Ipv4,
    #[serde(rename = "ipv6", alias = "IPv6", alias = "IPV6")]
    Ipv6,
}

/// Several paths to a controller are not made here.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Multipath {
    Disable,
}

/// `bdev_nvme_attach_controller`: the subsystem `subnqn` at `traddr` and `trsvcid`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Attach {
    /// Its name; its bdevs are `<name>n<nsid>`.
    name: String,
    /// `tcp`.
    trtype: Transport,
    /// An IP address.
    traddr: String,
    /// If given, what the address must be.
    adrfam: Option<Family>,
    /// The port; 4420 if not given.
    trsvcid: Option<String>,
    /// The subsystem's qualified name.
    subnqn: String,
    /// This host's qualified name; made of a new UUID if not given.
    hostnqn: Option<String>,
    /// Whether headers have digests.
    #[serde(default)]
    hdgst: bool,
    /// Whether data have digests.
    #[serde(default)]
    ddgst: bool,
    /// How long a connection may take to be set up, in microseconds; 10 s if not given.
    fabrics_connect_timeout_us: Option<u64>,
    /// I/O queues at most, one for each reactor that uses the controller; 64 if not given.
    num_io_queues: Option<u16>,
    /// Entries of an I/O queue, 2 to 1024; 128 if not given.
    io_queue_size: Option<u16>,
    /// After so many milliseconds without a sign of life each side gives the other up; 0: never;
    /// 10 s if not given.
    keep_alive_timeout_ms: Option<u32>,
    /// Seconds until it is given up for good; −1: never; 0: at once.
    ctrlr_loss_timeout_sec: Option<i32>,
    /// Seconds between two attempts to connect.
    reconnect_delay_sec: Option<u32>,
    /// Seconds until requests fail instead of waiting; 0: they wait.
    fast_io_fail_timeout_sec: Option<u32>,
    /// Do without the controller's telling how far it has read its queue.
    #[serde(default)]
    disable_sq_flow_control: bool,
    /// More namespaces than this are an error; 128 if not given.
    max_bdevs: Option<u32>,
    /// `disable` only.
    multipath: Option<Multipath>,
    /// Not taken.
    priority: Option<String>,
    /// Not taken.
    hostaddr: Option<String>,
    /// Not taken.
    hostsvcid: Option<String>,
    /// False only.
    prchk_reftag: Option<bool>,
    /// False only.
    prchk_guard: Option<bool>,
    /// Not taken.
    psk: Option<String>,
    /// The key, by its name in the keyring, that this host proves to have, to a controller that wants it.
    dhchap_key: Option<String>,
    /// The key that the controller must prove to have; only with `dhchap_key`.
    dhchap_ctrlr_key: Option<String>,
    /// False only.
    allow_unrecognized_csi: Option<bool>,
}

impl Attach {
    fn refuse_what_is_not_done(&self) -> Result<(), Error> {
        refuse_unless_default("prchk_reftag", self.prchk_reftag, &false)?;
        refuse_unless_default("prchk_guard", self.prchk_guard, &false)?;
        let csi = self.allow_unrecognized_csi;
        refuse_unless_default("allow_unrecognized_csi", csi, &false)?;
        for (option, given) in [
            ("priority", &self.priority),
            ("hostaddr", &self.hostaddr),
            ("hostsvcid", &self.hostsvcid),
            ("psk", &self.psk),
        ] {
            let given = given.as_deref().filter(|text| !text.is_empty());
            refuse_unless_default(option, given, &"")?;
        }
        let (Transport::Tcp, None | Some(Multipath::Disable)) = (self.trtype, self.multipath);
        Ok(())
    }

    fn uri(&self) -> Result<NvmeUri, Error> {
        let port = match &self.trsvcid {
            None => Some(NvmeUri::PORT),
            Some(text) => text.parse().ok().filter(|port| *port > 0),
        };
        let wrong = |what: &str| Error::invalid_params(format!("Invalid parameters: {what}"));
        let port = port.ok_or_else(|| wrong("trsvcid is no port"))?;
        let ip: IpAddr = self
            .traddr
            .parse()
            .map_err(|_no| wrong("traddr is no IP address"))?;
        let family = match ip {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        };
        if self.adrfam.is_some_and(|wanted| wanted != family) {
            return Err(wrong("traddr is not of adrfam"));
        }
        Ok(NvmeUri {
            host: ip.to_string(),
            port,
            subnqn: self.subnqn.clone(),
            nsid: None,
        })
    }

    fn patience(&self) -> Patience {
        let given = (
            self.ctrlr_loss_timeout_sec,
            self.reconnect_delay_sec,
            self.fast_io_fail_timeout_sec,
        );
        match given {
            (None, None, None) => Patience::default(),
            (loss, delay, fast) => Patience {
                ctrlr_loss_timeout_sec: loss.unwrap_or_default(),
                reconnect_delay_sec: delay.unwrap_or_default(),
                fast_io_fail_timeout_sec: fast.unwrap_or_default(),
            },
        }
    }

    fn config(&self) -> Result<NvmeConfig, Error> {
        let own_nqn = || NvmeConfig::host_nqn_of(Uuid::new_v4());
        let host_nqn = self.hostnqn.clone().unwrap_or_else(own_nqn);
        let mut config = NvmeConfig::new(&self.name, self.uri()?, host_nqn);
        (config.header_digest, config.data_digest) = (self.hdgst, self.ddgst);
        config.io_queues = self.num_io_queues.unwrap_or(config.io_queues);
        config.queue_entries = self.io_queue_size.unwrap_or(config.queue_entries);
        config.keep_alive_ms = self.keep_alive_timeout_ms.unwrap_or(config.keep_alive_ms);
        let timeout = self.fabrics_connect_timeout_us.filter(|us| *us > 0);
        config.connect_timeout_us = timeout.unwrap_or(config.connect_timeout_us);
        config.patience = self.patience();
        config.no_flow_control = self.disable_sq_flow_control;
        Ok(config)
    }

    /// The call that attaches it again.
    fn recipe(&self, uri: &NvmeUri) -> Recipe {
        let params = json!({
            "name": self.name,
            "trtype": "tcp",
            "traddr": uri.host,
            "trsvcid": uri.port.to_string(),
            "subnqn": self.subnqn,
            "hostnqn": self.hostnqn,
            "hdgst": self.hdgst,
            "ddgst": self.ddgst,
            "fabrics_connect_timeout_us": self.fabrics_connect_timeout_us,
            "num_io_queues": self.num_io_queues,
            "io_queue_size": self.io_queue_size,
            "keep_alive_timeout_ms": self.keep_alive_timeout_ms,
            "ctrlr_loss_timeout_sec": self.ctrlr_loss_timeout_sec,
            "reconnect_delay_sec": self.reconnect_delay_sec,
            "fast_io_fail_timeout_sec": self.fast_io_fail_timeout_sec,
            "disable_sq_flow_control": self.disable_sq_flow_control,
            "max_bdevs": self.max_bdevs,
            "dhchap_key": self.dhchap_key,
            "dhchap_ctrlr_key": self.dhchap_ctrlr_key,
        });
        Recipe::new("bdev_nvme_attach_controller", params)
    }
}

fn attach(service: &Service, params: Attach) -> Result<Vec<String>, Error> {
    params.refuse_what_is_not_done()?;
    let mut config = params.config()?;
    if service.bdevs.nvme(&params.name).next().is_some() {
        return Err(Error::errno(Errno::EXIST.raw_os_error()));
    }
    let keys = (params.dhchap_key.as_ref(), params.dhchap_ctrlr_key.as_ref());
    if let Some(keys) = service.keyring.host_keys(keys.0, keys.1)? {
        let auth = NvmeAuth::new(keys).map_err(|error| Error::os("authentication", &error))?;
        config.auth = Some(Arc::new(auth));
    }
    let keepers = service.reactors().data_handles();
    let keeper = keepers
        .first()
        .ok_or(Error::errno(Errno::NODEV.raw_os_error()))?;
    let recipe = params.recipe(&config.uri);
    let attached = NvmeController::attach(config, &*service.clock(), keeper);
    let controller = attached.map_err(|error| bdev_error(&error))?;
    let bdevs = controller.bdevs();
    if bdevs.is_empty() {
        let errno = Errno::NODEV.raw_os_error();
        let message = "No such device: the controller has no namespaces";
        return Err(Error::errno_with(errno, message.to_owned()));
    }
    if bdevs.len() > params.max_bdevs.unwrap_or(128) as usize {
        let errno = Errno::RANGE.raw_os_error();
        return Err(Error::errno(errno));
    }
    // All names or none.
    let places: Result<Vec<_>, Error> = bdevs
        .iter()
        .map(|bdev| service.bdevs.reserve(&bdev.info().name))
        .collect();
    let filled = places?.into_iter().zip(bdevs).map(|(place, bdev)| {
        let bdev = Arc::new(bdev);
        let specific = describe(&bdev);
        let kind = Kind::Nvme(Arc::clone(&bdev));
        place.fill(kind, bdev, specific, None, recipe.clone())
    });
    Ok(filled.collect())
}

/// How a controller is addressed, as SPDK shows it.
fn trid(controller: &NvmeController) -> Value {
    let address = controller.address();
    json!({
        "trtype": "TCP",
        "adrfam": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
        "subnqn": controller.config().uri.subnqn,
    })
}

/// What `bdev_get_bdevs` tells of a namespace.
fn describe(bdev: &NvmeBdev) -> Value {
    let controller = bdev.controller();
    let facts = controller.facts();
    let [high, low, minor, _] = facts.version.to_be_bytes();
    let major = u16::from_be_bytes([high, low]);
    json!({"nvme": [{
        "trid": trid(controller),
        "ctrlr_data": {
            "cntlid": facts.cntlid,
            "vendor_id": format!("{:#06x}", facts.vendor),
            "model_number": facts.model,
            "serial_number": facts.serial,
            "firmware_revision": facts.firmware,
            "subnqn": controller.config().uri.subnqn,
        },
        "vs": {"nvme_version": format!("{major}.{minor}")},
        "ns_data": {"id": bdev.nsid()},
    }]})
}

/// `bdev_nvme_detach_controller`: by name; the rest must be what it is, if it is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Detach {
    /// Which one.
    name: String,
    /// `tcp`.
    trtype: Option<Transport>,
    /// Its address.
    traddr: Option<String>,
    /// The address's family.
    adrfam: Option<Family>,
    /// Its port.
    trsvcid: Option<String>,
    /// Its subsystem.
    subnqn: Option<String>,
    /// Not taken.
    hostaddr: Option<String>,
    /// Not taken.
    hostsvcid: Option<String>,
}

impl Detach {
    fn means(&self, controller: &NvmeController) -> bool {
        let (Some(Transport::Tcp) | None) = self.trtype;
        let address = controller.address();
        let is = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|it| it == is);
        let family = if address.is_ipv4() {
            Family::Ipv4
        } else {
            Family::Ipv6
        };
        is(&self.traddr, &address.ip().to_string())
            && self.adrfam.is_none_or(|wanted| wanted == family)
            && is(&self.trsvcid, &address.port().to_string())
            && is(&self.subnqn, &controller.config().uri.subnqn)
            && is(&self.hostaddr, "")
            && is(&self.hostsvcid, "")
    }
}

fn detach(service: &Service, params: Detach) -> Result<bool, Error> {
    let is_meant = |kind: &Kind| match kind {
        Kind::Nvme(bdev) => {
            let controller = bdev.controller();
            controller.config().name == params.name && params.means(controller)
        }
        _ => false,
    };
    let removed = service.bdevs.remove_all(is_meant);
    or_forget(
        service,
        removed,
        &Object::NvmeController(params.name.clone()),
    )
}

/// `bdev_nvme_get_controllers`: all, or the one called `name`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetControllers {
    /// Only this one.
    name: Option<String>,
}

fn get_controllers(service: &Service, params: GetControllers) -> Result<Vec<Value>, Error> {
    let mut shown: Vec<Value> = Vec::new();
    let is_wanted = |name: &str| params.name.as_ref().is_none_or(|wanted| wanted == name);
    for entry in service.bdevs.list() {
        let Some(controller) = controller_of(&entry) else {
            continue;
        };
        let name = &controller.config().name;
        // Bdevs come by name, so those of a controller may have others between them.
        let is_new = shown.iter().all(|other| other["name"] != **name);
        if is_wanted(name) && is_new {
            shown.push(show(controller));
        }
    }
    match (params.name, shown.is_empty()) {
        (Some(_), true) => Err(Error::errno(Errno::NODEV.raw_os_error())),
        _ => Ok(shown),
    }
}

fn controller_of(entry: &Entry) -> Option<&Arc<NvmeController>> {
    match &entry.kind {
        Kind::Nvme(bdev) => Some(bdev.controller()),
        _ => None,
    }
}

fn show(controller: &NvmeController) -> Value {
    json!({
        "name": controller.config().name,
        "ctrlrs": [{
            "state": match controller.state() {
                ControllerState::Enabled => "enabled",
                ControllerState::Reconnecting => "resetting",
                ControllerState::Failed => "failed",
            },
            "trid": trid(controller),
            "cntlid": controller.facts().cntlid,
            "host": {
                "nqn": controller.config().host_nqn,
                "addr": "",
                "svcid": "",
            },
        }],
    })
}
