#![expect(
    unsafe_code,
    reason = "the crate takes buffers by pointer, since the device reads and writes them too"
)]
//! A disk driven by the `virtio-driver` crate.

use crate::common::PATIENCE;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use virtio_driver::{
    Completion, EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue,
    VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Entries of each ring.
const ENTRIES: u16 = 256;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
    Discard,
    WriteZeroes,
    Flush,
}

/// A connected disk, with a buffer for each of its users.
pub struct Disk {
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    notifiers: Vec<Box<dyn QueueNotifier>>,
    calls: Vec<Arc<EventFd>>,
    /// After the queues, whose rings it holds.
    transport: Box<VirtioBlkTransport>,
    buffers: MmapRegion,
    buffer_bytes: usize,
    /// How often the device has called, as far as that was looked at.
    called: u64,
}

impl Disk {
    /// Connects, and shares `users` buffers of `buffer_bytes`.
    pub fn connect(
        socket: &Path,
        queues: usize,
        users: usize,
        buffer_bytes: usize,
        event_idx: bool,
    ) -> Self {
        let mut features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_INDIRECT_DESC;
        if event_idx {
            features |= VirtioFeatureFlags::RING_EVENT_IDX;
        }
        let features = features.bits() | VirtioBlkFeatureFlags::all().bits();
        let vhost = VhostUser::new(socket.to_str().unwrap(), features).unwrap();
        let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, queues, ENTRIES).unwrap();
        for queue in &mut queues {
            queue.set_used_notif_enabled(true);
        }
        let len = users * buffer_bytes;
        let fd = rustix::fs::memfd_create("buffers", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, len as u64).unwrap();
        let file = File::from(fd);
        let number = file.as_raw_fd();
        let buffers = MmapRegion::from_file(FileOffset::new(file, 0), len).unwrap();
        transport
            .map_mem_region(buffers.as_ptr().addr(), len, number, 0)
            .unwrap();
        let each = 0..queues.len();
        let notifiers = each.clone().map(|q| transport.get_submission_notifier(q));
        let notifiers = notifiers.collect();
        let calls = each.map(|q| transport.get_completion_fd(q)).collect();
        Self {
            queues,
            notifiers,
            calls,
            transport,
            buffers,
            buffer_bytes,
            called: 0,
        }
    }

    /// Shares a piece of memory, and takes it back.
    pub fn plug_and_unplug(&mut self) {
        let fd = rustix::fs::memfd_create("plugged", MemfdFlags::CLOEXEC).unwrap();
        let len = self.buffer_bytes;
        rustix::fs::ftruncate(&fd, len as u64).unwrap();
        // Nobody looks there: any address will do that is not in use.
        let at = 0x1000;
        let shared = self.transport.map_mem_region(at, len, fd.as_raw_fd(), 0);
        shared.unwrap();
        self.transport.unmap_mem_region(at, len).unwrap();
        assert!(self.transport.unmap_mem_region(at, len).is_err());
    }

    pub fn features(&self) -> u64 {
        self.transport.get_features()
    }

    pub fn config(&self) -> virtio_driver::VirtioBlkConfig {
        self.transport.get_config().unwrap()
    }

    pub fn fill(&self, user: usize, bytes: &[u8]) {
        let at = user * self.buffer_bytes;
        self.buffers
            .get_slice(at, bytes.len())
            .unwrap()
            .copy_from(bytes);
    }

    pub fn bytes(&self, user: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = user * self.buffer_bytes;
        self.buffers.get_slice(at, len).unwrap().copy_to(&mut bytes);
        bytes
    }

    /// Starts a request of `user`, on the queue that is its own.
    pub fn start(&mut self, user: usize, op: Op, at: u64, len: usize) {
        assert!(len <= self.buffer_bytes);
        let index = user % self.queues.len();
        let queue = &mut self.queues[index];
        let buffer = self.buffers.as_ptr().wrapping_add(user * self.buffer_bytes);
        let started = match op {
            Op::Read => {
                // SAFETY: the buffer is in a mapping that lives as long as the connection does, and
                // is accessed by volatile copies only.
                unsafe { queue.read_raw(at, buffer, len, user) }
            }
            Op::Write => {
                // SAFETY: as above.
                unsafe { queue.write_raw(at, buffer, len, user) }
            }
            Op::Discard => queue.discard(at, len as u64, user),
            Op::WriteZeroes => queue.write_zeroes(at, len as u64, true, user),
            Op::Flush => queue.flush(user),
        };
        started.unwrap();
        if queue.avail_notif_needed() {
            self.notifiers[index].notify().unwrap();
        }
    }

    /// What has completed: the users, and 0 or minus the error.
    pub fn completed(&mut self) -> Vec<(usize, i32)> {
        let all = self.queues.iter_mut().flat_map(VirtioBlkQueue::completions);
        all.map(|Completion { context, ret }| (context, ret))
            .collect()
    }

    /// Waits until the device calls, and returns what has completed. Nothing is missed: a queue
    /// calls for every answer that was not seen.
    pub fn wait(&mut self) -> Vec<(usize, i32)> {
        loop {
            let found = self.completed();
            if !found.is_empty() {
                return found;
            }
            let mut fds: Vec<PollFd<'_>> = self
                .calls
                .iter()
                .map(|call| PollFd::new(call, PollFlags::IN))
                .collect();
            let patience = Timespec::try_from(PATIENCE).unwrap();
            let ready = rustix::event::poll(&mut fds, Some(&patience)).unwrap();
            assert!(ready > 0, "the device does not call");
            let rung: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            for (call, _) in self.calls.iter().zip(rung).filter(|(_, rung)| *rung) {
                self.called += call.read().unwrap();
            }
        }
    }

    /// How often the device has called.
    pub fn calls(&mut self) -> u64 {
        for call in &self.calls {
            let mut fd = [PollFd::new(call, PollFlags::IN)];
            if rustix::event::poll(&mut fd, Some(&Timespec::default())).unwrap() > 0 {
                self.called += call.read().unwrap();
            }
        }
        self.called
    }

    /// One request of user 0, to its end.
    pub fn run(&mut self, op: Op, at: u64, len: usize) -> i32 {
        self.start(0, op, at, len);
        let done = self.wait();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].0, 0);
        done[0].1
    }
}
