//! One front end's session: what it has set, and the vhost-user messages that set it.
//!
//! On the controller's thread. Nothing here is on the way of an I/O.

use super::backing::Backing;
use super::eventfd::{is_eventfd, silence};
use super::guest_mem::{GuestMemory, Mapping, MemoryFault, Region};
use super::inflight::{self, Inflight};
use super::queue::QueuePlan;
use super::queue_handle::{Order, QueueHandle, StartFault};
use super::request::Rules;
use super::vring::{Vring, VringAddr};
use super::{RING_ENTRIES_MAX, controller::Status};
use crate::wire::virtio::feature;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
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
/// How long a queue may take to answer what it has before what waits is given up.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// A refusal: told in the log, and to the front end as an error.
fn refuse(why: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(why.to_string()))
}

/// What the front end has set.
#[derive(Debug)]
struct Device {
    backing: Arc<Backing>,
    status: Arc<Status>,
    /// Features that the driver has accepted.
    acked: u64,
    memory: Arc<GuestMemory>,
    inflight: Option<Inflight>,
    vrings: Vec<Vring>,
}

impl Device {
    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let count = self.vrings.len();
        let vring = self.vrings.get_mut(index);
        vring.ok_or_else(|| refuse(format_args!("ring {index} of {count}")))
    }

    /// A ring that may be changed.
    fn idle_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        match vring.running {
            None => Ok(vring),
            Some(_) => Err(refuse(format_args!("ring {index} runs"))),
        }
    }

    /// Lets controllers' lists see which queues there are.
    fn show(&self) {
        let running = self.vrings.iter().filter_map(|v| v.running.as_ref());
        let queues = running.map(|queue| Arc::clone(queue.shared()));
        self.status.set_queues(queues.collect());
    }

    /// Starts ring `index` if all is there that it needs.
    fn start_if_complete(&mut self, index: u32) -> Result<()> {
        let vring = self.vring(index)?;
        if vring.running.is_some() || !vring.is_complete() {
            return Ok(());
        }
        self.start(index)?;
        self.show();
        Ok(())
    }

    fn start(&mut self, index: u32) -> Result<()> {
        let queue = u16::try_from(index).map_err(refuse)?;
        let memory = Arc::clone(&self.memory);
        let (acked, backing) = (self.acked, Arc::clone(&self.backing));
        let inflight = self.inflight.as_ref().and_then(|all| all.queue(queue));
        let vring = self.vring(index)?;
        let places = vring.places(&memory).transpose().map_err(refuse)?;
        let places = places.ok_or_else(|| refuse("a ring without an address"))?;
        let [kick, call, err] = vring.eventfds().map_err(refuse)?;
        let plan = QueuePlan {
            bdev: Arc::clone(&backing.bdev),
            rules: Rules::new(&backing.info(), backing.read_only, acked),
            memory,
            places,
            base: vring.base,
            event_idx: acked & feature::RING_EVENT_IDX != 0,
            indirect: acked & feature::RING_INDIRECT_DESC != 0,
            inflight,
            kick,
            call,
            err,
            name: format!("{}.{index}", backing.name),
        };
        let reactor = backing.reactor(queue).ok_or_else(|| refuse("no reactor"))?;
        let started = QueueHandle::start(reactor, Backing::next_queue_id(), plan);
        vring.running = Some(started.map_err(|fault: StartFault| refuse(fault))?);
        Ok(())
    }

    /// Ends all queues, and waits until they have. Returns which there were.
    fn stop_all(&mut self, order: Order) -> Vec<u32> {
        let all = 0..u32::try_from(self.vrings.len()).unwrap_or(u32::MAX);
        let of = |index: &u32| usize::try_from(*index).ok();
        let runs = |index: &u32| {
            let vring = of(index).and_then(|at| self.vrings.get(at));
            vring.is_some_and(|vring| vring.running.is_some())
        };
        let running: Vec<u32> = all.filter(runs).collect();
        // All are told before one is waited for.
        for queue in self.vrings.iter().filter_map(|v| v.running.as_ref()) {
            queue.stop(order);
        }
        for vring in &mut self.vrings {
            stop_vring(vring, order);
        }
        self.show();
        running
    }

    /// Changes something that running queues depend on.
    fn change(&mut self, f: impl FnOnce(&mut Self)) -> Result<()> {
        let running = self.stop_all(Order::Drain);
        f(self);
        let started = running.into_iter().try_for_each(|index| self.start(index));
        self.show();
        started
    }

    /// Back to how it was when the front end connected; memory and descriptors stay.
    fn reset(&mut self) {
        self.stop_all(Order::Drain);
        self.acked = 0;
        for vring in &mut self.vrings {
            vring.enabled = false;
            vring.addr = None;
            vring.entries = 0;
            vring.base = 0;
            vring.kick = None;
        }
    }
}

/// Ends the ring's queue, if it has one, and waits until it has.
fn stop_vring(vring: &mut Vring, order: Order) {
    let Some(queue) = vring.running.take() else {
        return;
    };
    queue.stop(order);
    let mut taken = queue.wait(DRAIN_WAIT);
    if taken.is_none() {
        tracing::warn!("vhost: a queue does not end; what waits in it is given up");
        queue.stop(Order::Cancel);
    }
    // Its memory may not be unmapped before, however long a device takes.
    while taken.is_none() {
        taken = queue.wait(DRAIN_WAIT);
    }
    vring.base = taken.unwrap_or(vring.base);
}

/// What the `vhost` crate calls.
#[derive(Debug)]
pub(super) struct Session(RefCell<Device>);

impl Session {
    pub(super) fn new(backing: Arc<Backing>, status: Arc<Status>) -> Self {
        let vrings = (0..backing.queues).map(|_| Vring::default()).collect();
        Self(RefCell::new(Device {
            backing,
            status,
            acked: 0,
            memory: Arc::default(),
            inflight: None,
            vrings,
        }))
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
        let unknown = features & !device.backing.features();
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
        vring.base = base.map_err(|_| refuse("a base that is no index of a split ring"))?;
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let mut device = self.0.borrow_mut();
        let vring = device.vring(index)?;
        stop_vring(vring, Order::Drain);
        vring.kick = None;
        let base = u32::from(vring.base);
        device.show();
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = Self::eventfd(fd)?;
        if let Some(fd) = &kick {
            // It must be possible without waiting; what it says is seen in the ring.
            silence(fd).map_err(refuse)?;
        }
        let mut device = self.0.borrow_mut();
        let index = u32::from(index);
        let vring = device.vring(index)?;
        let was_running = vring.running.is_some();
        stop_vring(vring, Order::Drain);
        vring.kick = Some(kick);
        if was_running {
            tracing::debug!(index, "vhost: a running ring gets another kick");
        }
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
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        match unknown {
            0 => Ok(()),
            _ => Err(refuse(format_args!(
                "protocol features {unknown:#x} are not offered"
            ))),
        }
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
        stop_vring(vring, Order::Drain);
        device.show();
        Ok(())
    }

    fn get_config(&self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = self.0.borrow().backing.config();
        let mut space = [0; CONFIG_BYTES];
        for (to, from) in space.iter_mut().zip(config.as_bytes()) {
            *to = *from;
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        let found = space.get(start..end);
        found
            .map(<[u8]>::to_vec)
            .ok_or_else(|| refuse(format_args!("configuration {start}..{end}")))
    }

    fn set_config(&self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        // Nothing in it can be written without `CONFIG_WCE`.
        Err(NOT_OFFERED)
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
        let mut device = self.0.borrow_mut();
        if device.vrings.iter().any(|vring| vring.running.is_some()) {
            return Err(refuse("inflight memory for rings that run"));
        }
        device.inflight = Some(mapped);
        Ok(())
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
