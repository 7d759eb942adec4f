//! A connection to a back end: what its queues share.

use super::VhostFault;
use super::disk::{Disk, WANTED};
use super::ring::{LARGE_BYTES, Ring, buffer_bytes};
use crossbeam_queue::ArrayQueue;
use rustix::fs::MemfdFlags;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport};
use vm_memory::{FileOffset, MmapRegion};

/// What to ask of a back end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Queues wanted.
    pub(super) queues: u16,
    /// Fewer will not do.
    pub(super) queues_min: u16,
    /// Entries of each, a power of two.
    pub(super) entries: u16,
}

/// A connection, its disk, and the queues that no channel has.
pub(super) struct Connection {
    /// Before the transport, which owns the memory of the rings.
    free: ArrayQueue<Ring>,
    transport: Box<VirtioBlkTransport>,
    pub(super) disk: Disk,
    pub(super) queues: u16,
    /// The back end is gone, or has been given up.
    dead: AtomicBool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("disk", &self.disk)
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, and sets the queues up. Waits for the back end, without an end.
    pub(super) fn open(path: &Path, shape: Shape) -> Result<Self, VhostFault> {
        let not_utf8 = || io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
        let path = path.to_str().ok_or_else(not_utf8);
        let vhost =
            path.and_then(|path| VhostUser::new(path, WANTED).map_err(|error| plain(&error)));
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(vhost.map_err(VhostFault::Handshake)?);
        let config = transport.get_config().map_err(VhostFault::Handshake)?;
        let disk = Disk::new(transport.get_features(), &config, LARGE_BYTES as u64)?;
        let queues = offered_queues(&*transport)?.min(shape.queues);
        if queues < shape.queues_min.max(1) {
            let fewer = io::Error::other(format!("only {queues} queues are offered"));
            return Err(VhostFault::Handshake(fewer));
        }
        let count = usize::from(queues);
        let buffers = share(&mut *transport, count * buffer_bytes(shape.entries))?;
        let rings = VirtioBlkQueue::setup_queues(&mut *transport, count, shape.entries)
            .map_err(VhostFault::Handshake)?;
        let free = ArrayQueue::new(count);
        for (index, queue) in rings.into_iter().enumerate() {
            let place = (queue, index);
            let ring = Ring::new(place, shape.entries, &*transport, Arc::clone(&buffers));
            // There is room for all.
            let _ = free.push(ring);
        }
        Ok(Self {
            free,
            transport,
            disk,
            queues,
            dead: AtomicBool::new(false),
        })
    }

    /// A queue for a channel, if there is one left.
    pub(super) fn take(&self) -> Option<Ring> {
        self.free.pop()
    }

    /// Takes back a queue of its own that has nothing under way.
    pub(super) fn give(&self, ring: Ring) {
        // Each was taken from here, so there is room.
        let _ = self.free.push(ring);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// From now on nothing is expected of the back end.
    pub(super) fn bury(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Asks the back end whether it is there. Waits for its answer.
    pub(super) fn probe(&self) -> io::Result<()> {
        self.transport.get_config().map(|_| ())
    }
}

/// Undoes the crate's wrapping of what the system said, where it can be told.
fn plain(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// How many queues the back end has, by all that it says.
fn offered_queues(transport: &VirtioBlkTransport) -> Result<u16, VhostFault> {
    let by_device =
        virtio_driver::virtio_blk_max_queues(transport).map_err(VhostFault::Handshake)?;
    // Without the protocol's MQ there is one.
    let by_protocol = transport.max_queues().unwrap_or(1);
    Ok(u16::try_from(by_device.min(by_protocol)).unwrap_or(u16::MAX))
}

/// Shares `len` bytes of new memory with the back end.
fn share(transport: &mut VirtioBlkTransport, len: usize) -> Result<Arc<MmapRegion>, VhostFault> {
    let memory = || -> io::Result<(File, MmapRegion)> {
        let fd = rustix::fs::memfd_create("pmcache-vhost", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        let file = File::from(fd);
        let offset = FileOffset::new(file.try_clone()?, 0);
        let region = MmapRegion::from_file(offset, len).map_err(io::Error::other)?;
        Ok((file, region))
    };
    let (file, region) = memory().map_err(VhostFault::Memory)?;
    // Addresses of the rings are our own, so these are too.
    transport
        .map_mem_region(region.as_ptr().addr(), len, file.as_raw_fd(), 0)
        .map_err(VhostFault::Handshake)?;
    Ok(Arc::new(region))
}
