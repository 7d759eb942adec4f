//! The namespaces that an I/O qpair uses: a channel to each.

use super::namespace::NamespaceClaim;
use super::range_lock::{Hold, Member, WriteMark};
use super::slots::Slots;
use super::subsystem::{NamespaceTable, Subsystem};
use crate::bdev::{BdevInfo, Channel, Completion, Request};
use crate::units::ByteRange;
use crate::wire::nvme::Status;
use reactors::{Cx, Wake};
use std::net::SocketAddr;
use std::sync::Arc;

#[derive(Debug)]
struct Open {
    claim: NamespaceClaim,
    writes: Member,
    channel: Box<dyn Channel>,
    under_way: u32,
    cancelled: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Namespaces {
    subsystem: Arc<Subsystem>,
    version: u64,
    table: Arc<NamespaceTable>,
    /// Where the host came in.
    listener: SocketAddr,
    /// Namespaces that it can't reach from there now.
    inaccessible: Vec<u32>,
    open: Vec<Open>,
    under_way: u32,
}

impl Namespaces {
    pub(super) fn new(subsystem: Arc<Subsystem>, listener: SocketAddr) -> Self {
        Self {
            // First: what changes meanwhile is seen in the next round.
            version: subsystem.version(),
            inaccessible: subsystem.inaccessible(listener),
            listener,
            table: subsystem.namespaces(),
            subsystem,
            open: vec![],
            under_way: 0,
        }
    }

    /// Looks whether namespaces have come or gone. What waits for one that is gone is given up.
    pub(super) fn refresh(&mut self, cx: &Cx) {
        let version = self.subsystem.version();
        if version == self.version {
            return;
        }
        self.version = version;
        self.table = self.subsystem.namespaces();
        self.inaccessible = self.subsystem.inaccessible(self.listener);
        for open in &mut self.open {
            if open.claim.is_removed() && !open.cancelled {
                open.cancelled = true;
                open.channel.cancel(cx);
            }
        }
        self.drop_left();
    }

    /// Closes channels to namespaces that are gone, once nothing is under way there.
    fn drop_left(&mut self) {
        self.open
            .retain(|open| open.under_way > 0 || !open.claim.is_removed());
    }

    /// The device of namespace `nsid`, as it is now.
    ///
    /// # Errors
    /// The status to complete a command with.
    pub(super) fn info(&self, nsid: u32) -> Result<Arc<BdevInfo>, Status> {
        let found = self.table.iter().find(|n| n.nsid == nsid);
        let namespace = found.filter(|n| !n.is_removed());
        let namespace = namespace.ok_or(Status::INVALID_NAMESPACE)?;
        if self.inaccessible.contains(&nsid) {
            return Err(Status::ANA_INACCESSIBLE);
        }
        Ok(namespace.bdev().info())
    }

    /// Opens a channel to namespace `nsid`, if there is none; its place.
    ///
    /// # Errors
    /// The status to complete a command with.
    pub(super) fn channel(&mut self, cx: &Cx, nsid: u32) -> Result<usize, Status> {
        let is_it = |open: &Open| open.claim.nsid == nsid && !open.claim.is_removed();
        if let Some(at) = self.open.iter().position(is_it) {
            return Ok(at);
        }
        let found = self.table.iter().find(|n| n.nsid == nsid);
        let namespace = found.ok_or(Status::INVALID_NAMESPACE)?;
        // Claimed first: a removal that does not see the claim has been seen here.
        let claim = NamespaceClaim::new(namespace);
        if claim.is_removed() {
            return Err(Status::INVALID_NAMESPACE);
        }
        let channel = namespace.bdev().open(cx).map_err(|error| {
            tracing::warn!(%error, nsid, "nvmf: can't open a channel");
            Status::PATH_ERROR
        })?;
        self.open.push(Open {
            writes: Member::join(&claim.locks),
            claim,
            channel,
            under_way: 0,
            cancelled: false,
        });
        Ok(self.open.len() - 1)
    }

    /// A write of `range` begins at `place`; None if the range is held there.
    pub(super) fn begin_write(&self, place: usize, range: ByteRange) -> Option<WriteMark> {
        self.open.get(place)?.writes.begin_write(range)
    }

    /// Asks for `range` at `place`.
    pub(super) fn hold(&self, place: usize, range: ByteRange, alone: bool) -> Option<Hold> {
        let open = self.open.get(place)?;
        Some(Hold::ask(open.writes.locks(), range, alone))
    }

    /// Looks which ranges are held now, and tells those who wait for its writes there.
    pub(super) fn attend(&mut self, slots: &Slots) {
        for open in &mut self.open {
            open.writes
                .attend(|member, range| slots.has_write_in(member, range));
        }
    }

    /// Starts `request` on the channel at `place`.
    pub(super) fn submit(&mut self, cx: &Cx, place: usize, request: Request) {
        if let Some(open) = self.open.get_mut(place) {
            open.under_way += 1;
            self.under_way += 1;
            open.channel.submit(cx, request);
        }
    }

    /// Collects completions, and whether each came from a namespace that is going away.
    pub(super) fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>, leaving: &mut bool) -> u32 {
        let mut count = 0;
        let mut emptied = false;
        for open in self.open.iter_mut().filter(|open| open.under_way > 0) {
            let before = done.len();
            open.channel.poll(cx, done);
            let got = u32::try_from(done.len() - before).unwrap_or(u32::MAX);
            open.under_way -= got;
            count += got;
            if got > 0 && open.cancelled {
                *leaving = true;
                emptied |= open.under_way == 0;
            }
        }
        self.under_way -= count;
        if emptied {
            self.drop_left();
        }
        count
    }

    /// Requests that the devices have.
    pub(super) fn under_way(&self) -> u32 {
        self.under_way
    }

    /// Gives up what waits for space or a stalled device.
    pub(super) fn cancel(&mut self, cx: &Cx) {
        for open in &mut self.open {
            open.channel.cancel(cx);
        }
    }

    pub(super) fn wake(&self) -> Wake {
        let busy = self.open.iter().filter(|open| open.under_way > 0);
        let wake = busy.fold(Wake::OnEvent, |wake, open| wake.sooner(open.channel.wake()));
        let is_behind = self.open.iter().any(|open| open.writes.is_behind());
        match self.version == self.subsystem.version() && !is_behind {
            true => wake,
            false => Wake::Now,
        }
    }
}
