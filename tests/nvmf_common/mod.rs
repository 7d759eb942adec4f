//! A target on stepped reactors, and a host that speaks bytes.
#![allow(dead_code, reason = "each test file uses its part")]

mod host;

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use host::{Capsule, Host, Pdu, Qpair};

use crate::nbd_common::{RamDisk, Stepped, wait_until};
use pmcache::bdev::Bdev;
use pmcache::target::nvmf::{NamespaceConfig, NvmfTarget, SubsystemConfig, TransportOptions};
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) const NQN: &str = "nqn.2026-11.test.pmcache:one";
pub(crate) const HOST: &str = "nqn.2026-11.test.host:a";

/// A target with one subsystem, which listens.
pub(crate) struct Fixture {
    pub(crate) target: NvmfTarget,
    pub(crate) address: SocketAddr,
    pub(crate) stepped: Stepped,
}

impl Fixture {
    pub(crate) fn new(reactors: u32, options: TransportOptions) -> Self {
        Self::on(Stepped::new(reactors), options)
    }

    pub(crate) fn on(stepped: Stepped, options: TransportOptions) -> Self {
        let target = NvmfTarget::new(stepped.handles.clone());
        target.create_transport(options).unwrap();
        let config = SubsystemConfig {
            allow_any_host: true,
            ..SubsystemConfig::new(NQN)
        };
        target.create_subsystem(config).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let address = target.add_listener(NQN, any).unwrap();
        Self {
            target,
            address,
            stepped,
        }
    }

    /// One reactor, and a disk of 1 MiB as namespace 1.
    pub(crate) fn with_disk() -> (Self, Arc<RamDisk>) {
        let fixture = Self::new(1, TransportOptions::default());
        let disk = Arc::new(RamDisk::new("disk", 1 << 20));
        fixture.add(&disk, None);
        (fixture, disk)
    }

    pub(crate) fn add(&self, disk: &Arc<RamDisk>, nsid: Option<u32>) -> u32 {
        self.add_as(NQN, disk, nsid)
    }

    /// To the subsystem `nqn`.
    pub(crate) fn add_as(&self, nqn: &str, disk: &Arc<RamDisk>, nsid: Option<u32>) -> u32 {
        let config = NamespaceConfig {
            bdev: Arc::clone(disk) as Arc<dyn Bdev>,
            nsid,
            nguid: None,
            eui64: None,
            uuid: None,
            ana_group: None,
        };
        self.target.add_namespace(nqn, config).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.target.stop();
            wait_until("the target stops", || self.target.is_stopped());
        }
    }
}
