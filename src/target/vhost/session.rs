//! One front end's session: the vhost-user messages that set what [`Device`] holds.
//!
//! On the controller's thread. Nothing here is on the way of an I/O.

use super::backing::Backing;
use super::device::Device;
use super::eventfd::{is_eventfd, silence};
use super::guest_mem::{GuestMemory, Mapping, MemoryFault, Region};
use super::inflight::{self, Inflight};
use super::notices::Notices;
use super::queue_handle::Order;
use super::vring::VringAddr;
use super::{RING_ENTRIES_MAX, controller::Status};
use crate::wire::virtio::{BlkConfig, feature};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::VhostUserLog;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};
use zerocopy::IntoBytes;

/// Regions of guest memory; each takes a place in the SIGBUS guard's table.
const REGIONS_MAX: usize = 32;
/// Bytes of the configuration space that can be asked for.
const CONFIG_BYTES: usize = 256;
/// Where in it the mode of the cache is.
const AT_WCE: usize = offset_of!(BlkConfig, wce);

/// A refusal: told in the log, and to the front end as an error.
pub(super) fn refuse(why: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(why.to_string()))
}

/// What the `vhost` crate calls.
#[derive(Debug)]
pub(super) struct Session(RefCell<Device>);

impl Session {
    pub(super) fn new(backing: Arc<Backing>, status: Arc<Status>) -> Self {
        Self(RefCell::new(Device::new(backing, status)))
    }

    /// Ends all queues: the front end is gone. What waits is given up, unanswered.
    pub(super) fn close(&self) {
        self.0.borrow_mut().stop_all(Order::Abandon);
    }

    fn map(region: &VhostUserMemoryRegion, file: File) -> std::result::Result<Region, MemoryFault> {
        let mapping = Mapping::new(file, region.mmap_offset, region.memory_size)?;
        Ok(Region {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            len: region.memory_size,
            mapping: Arc::new(mapping),
        })
    }

    /// To be called now and then: for what changes without a message.
    pub(super) fn tick(&self) {
        let mut device = self.0.borrow_mut();
        device.look_at_size();
        device.balance();
    }

    /// Whether the front end has accepted these features of the protocol.
    pub(super) fn has_protocol(&self, features: VhostUserProtocolFeatures) -> bool {
        self.0.borrow().protocol & features.bits() == features.bits()
    }

    /// Where the front end wants to be told of changes from now on.
    pub(super) fn set_notices(&self, notices: Notices) {
        self.0.borrow_mut().notices = Some(notices);
    }

    /// A descriptor for kicks, calls or errors.
    fn eventfd(file: Option<File>) -> Result<Option<OwnedFd>> {
        let fd = file.map(OwnedFd::from);
        match &fd {
            Some(fd) if !is_eventfd(fd) => Err(refuse("a descriptor that is no eventfd")),
            _ => Ok(fd),
        }
    }
}

/// For messages of features that are not offered.
const NOT_OFFERED: Error = Error::InvalidOperation("not offered");

impl VhostUserBackendReqHandler for Session {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        self.0.borrow_mut().reset();
        Ok(())
    }

    fn reset_device(&self) -> Result<()> {
        self.0.borrow_mut().reset();
        Ok(())
    }

    fn get_features(&self) -> Result<u64> {
        Ok(self.0.borrow().backing.features())
    }

    fn set_features(&self, features: u64) -> Result<()> {
        let mut device = self.0.borrow_mut();
        // A driver that has accepted FLUSH keeps it, also if its device has lost its volatile cache since
        // and its front end comes back. Then a flush does nothing.
        let kept = feature::FLUSH | feature::CONFIG_WCE;
        let unknown = features & !(device.backing.features() | kept);
        if unknown != 0 {
            return Err(refuse(format_args!(
                "features {unknown:#x} are not offered"
            )));
        }
        if device.acked != features {
            device.change(|device| device.acked = features)?;
        }
        // Without the protocol's features there are no messages that enable rings.
        if features & feature::VHOST_PROTOCOL == 0 {
            for vring in &mut device.vrings {
                vring.enabled = true;
            }
            device.change(|_| {})?;
        }
        Ok(())
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut memory = GuestMemory::default();
        for (region, file) in regions.iter().zip(files) {
            let region = Self::map(region, file).map_err(refuse)?;
            memory = memory.with(region).map_err(refuse)?;
        }
        let mut device = self.0.borrow_mut();
        device.change(|device| device.memory = Arc::new(memory))?;
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        let mut device = self.0.borrow_mut();
        let vring = device.idle_vring(index)?;
        let entries = u16::try_from(num).unwrap_or(u16::MAX);
        if !entries.is_power_of_two() || entries > RING_ENTRIES_MAX {
            return Err(refuse(format_args!("a ring of {num} entries")));
        }
        vring.entries = entries;
        Ok(())
    }

    fn set_vring_addr(
        &self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return Err(NOT_OFFERED);
        }
        let addr = VringAddr {
            desc: descriptor,
            avail: available,
            used,
        };
        let mut device = self.0.borrow_mut();
        let vring = device.vring(index)?;
        if vring.running.is_some() && vring.addr == Some(addr) {
            return Ok(());
        }
        let vring = device.idle_vring(index)?;
        if !addr.is_aligned() {
            return Err(refuse(format_args!("{addr:x?} is not aligned")));
        }
        vring.addr = Some(addr);
        device.start_if_complete(index)
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        let mut device = self.0.borrow_mut();
        let vring = device.idle_vring(index)?;
        let base = u16::try_from(base);
        vring.again.clear();
        vring.base = base.map_err(|_| refuse("a base that is no index of a split ring"))?;
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let mut device = self.0.borrow_mut();
        let base = device.stop(index)?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = Self::eventfd(fd)?;
        if let Some(fd) = &kick {
            // It must be possible without waiting; what it says is seen in the ring.
            silence(fd).map_err(refuse)?;
        }
        let mut device = self.0.borrow_mut();
        let index = u32::from(index);
        device.pause(index)?;
        device.vring(index)?.kick = Some(kick);
        device.start_if_complete(index)
    }

    fn set_vring_call(&self, index: u8, fd: Option<File>) -> Result<()> {
        let call = Self::eventfd(fd)?;
        let mut device = self.0.borrow_mut();
        let vring = device.vring(u32::from(index))?;
        if let Some(queue) = &vring.running {
            let copy = call.as_ref().map(OwnedFd::try_clone).transpose();
            queue.set_call(copy.map_err(refuse)?).map_err(refuse)?;
        }
        vring.call = call;
        Ok(())
    }

    fn set_vring_err(&self, index: u8, fd: Option<File>) -> Result<()> {
        let err = Self::eventfd(fd)?;
        let mut device = self.0.borrow_mut();
        // A queue that runs keeps the one that it has.
        device.vring(u32::from(index))?.err = err;
        Ok(())
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        if unknown != 0 {
            return Err(refuse(format_args!(
                "protocol features {unknown:#x} are not offered"
            )));
        }
        self.0.borrow_mut().protocol = features;
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(u64::from(self.0.borrow().backing.queues))
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        let mut device = self.0.borrow_mut();
        let vring = device.vring(index)?;
        vring.enabled = enable;
        if enable {
            return device.start_if_complete(index);
        }
        device.pause(index)
    }

    fn get_config(&self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut device = self.0.borrow_mut();
        let config = device.backing.config();
        let mut space = [0; CONFIG_BYTES];
        for (to, from) in space.iter_mut().zip(config.as_bytes()) {
            *to = *from;
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        let found = space.get(start..end).map(<[u8]>::to_vec);
        let found = found.ok_or_else(|| refuse(format_args!("configuration {start}..{end}")))?;
        if (start..end).contains(&AT_WCE) {
            let write_back = device.backing.writes_back();
            device.set_mode(write_back)?;
        }
        Ok(found)
    }

    fn set_config(&self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        let mut device = self.0.borrow_mut();
        let known = device.backing.features() | device.acked;
        let offered = known & feature::CONFIG_WCE != 0;
        match (usize::try_from(offset), bytes) {
            (Ok(AT_WCE), [mode @ (0 | 1)]) if offered => device.set_mode(*mode == 1),
            // Nothing else in it can be written.
            _ => Err(NOT_OFFERED),
        }
    }

    fn set_gpu_socket(&self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, entries) = (asked.num_queues, asked.queue_size);
        let (file, bytes) = inflight::create(queues, entries).map_err(refuse)?;
        Ok((VhostUserInflight::new(bytes, 0, queues, entries), file))
    }

    fn set_inflight_fd(&self, given: &VhostUserInflight, file: File) -> Result<()> {
        let mapped = Inflight::map(
            file,
            given.mmap_offset,
            given.mmap_size,
            given.num_queues,
            given.queue_size,
        );
        let mapped = mapped.map_err(refuse)?;
        self.0.borrow_mut().set_inflight(mapped)
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let mut device = self.0.borrow_mut();
        if device.memory.region_count() >= REGIONS_MAX {
            return Err(refuse("too many regions of memory"));
        }
        let region = Self::map(region, file).map_err(refuse)?;
        let memory = device.memory.with(region).map_err(refuse)?;
        device.change(|device| device.memory = Arc::new(memory))?;
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let mut device = self.0.borrow_mut();
        let (guest, user) = (region.guest_phys_addr, region.user_addr);
        let memory = device.memory.without(guest, user, region.memory_size);
        let memory = memory.map_err(refuse)?;
        device.change(|device| device.memory = Arc::new(memory))
    }

    fn set_device_state_fd(
        &self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}
