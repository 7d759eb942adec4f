//! A qpair: commands in, what they ask for, completions out.

mod auth;
mod data;
mod fused;

use super::TransportOptions;
use super::admin::{Admin, Outcome};
use super::auth::Authentication;
use super::connect::{Origin, Refusal, connect};
use super::controller::Controller;
use super::io::What;
use super::io_queue::{IoQueue, Means, Started};
use super::listener::ListenAddress;
use super::receiver::{Payload, Receiver};
use super::replies::Replies;
use super::slots::{Slot, Slots, Stage, Wants};
use super::stats::ReactorCounters;
use super::target::NvmfTarget;
use super::transfer::Transfer;
use crate::bdev::{BufPool, IoBuf};
use crate::target::stream::Output;
use crate::wire::nvme::{
    Alignment, ConnectCommand, ConnectData, Digests, Fault, FaultKind, Fuse, Limits, Sqe, Status,
    admin, fctype,
};
use reactors::{Cx, Nanos, Wake};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Data of commands that one qpair may hold, in bytes.
const HELD_BYTES_MAX: usize = 16 << 20;
/// Completions without their data that may wait to be sent, in bytes.
const HEADS_BYTES_MAX: usize = 256 << 10;
/// Data in a capsule that are always taken, on any queue (spec section 3.2).
const CAPSULE_BYTES_MIN: u32 = 8192;
/// How long a Connect whose number is taken waits for its predecessor to go.
const RETRY_NS: u64 = 200_000_000;

/// What a connection is.
#[derive(Debug)]
enum Role {
    /// Before Connect.
    New,
    Admin(Box<Admin>),
    Io(Box<IoQueue>),
}

/// A Connect that is tried again.
#[derive(Debug)]
struct Retry {
    slot: u16,
    data: ConnectData,
    until: Nanos,
}

/// Who is at the other end, and of which target.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) target: NvmfTarget,
    pub(super) options: TransportOptions,
    pub(super) address: ListenAddress,
    pub(super) peer: SocketAddr,
    pub(super) counters: Arc<ReactorCounters>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Qpair {
    pub(super) side: Side,
    role: Role,
    replies: Replies,
    slots: Slots,
    /// Commands that may be under way.
    depth: usize,
    /// Commands that wait for memory, in order.
    parked: VecDeque<u16>,
    retry: Option<Retry>,
    /// Of a host that must prove who it is.
    auth: Option<Box<Authentication>>,
    /// The first half of a fused operation, until the second comes.
    first: Option<(u16, Transfer)>,
    pool: Rc<RefCell<BufPool>>,
    /// Requests that bdevs had when that was last counted.
    pending: u32,
    /// The host does not know where it is: hang up once it has been told.
    pub(super) is_lost: bool,
}

impl Qpair {
    pub(super) fn new(side: Side, pool: Rc<RefCell<BufPool>>) -> Self {
        side.counters.unassociated.fetch_add(1, Ordering::Relaxed);
        Self {
            side,
            role: Role::New,
            replies: Replies::default(),
            slots: Slots::default(),
            depth: 1,
            parked: VecDeque::new(),
            retry: None,
            auth: None,
            first: None,
            pool,
            pending: 0,
            is_lost: false,
        }
    }

    /// The host has said hello.
    pub(super) fn agreed(&mut self, digests: Digests, alignment: Alignment) {
        self.replies.digests = digests;
        self.replies.alignment = alignment;
    }

    /// What may come.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            from: Receiver::FROM,
            digests: self.replies.digests,
            alignment: Alignment::default(),
            capsule_data_max: self.side.options.in_capsule_bytes.max(CAPSULE_BYTES_MIN),
            data_max: self.side.options.io_bytes_max,
        }
    }

    fn controller(&self) -> Option<&Arc<Controller>> {
        match &self.role {
            Role::New => None,
            Role::Admin(admin) => Some(&admin.entry.controller),
            Role::Io(io) => Some(&io.entry.controller),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        !matches!(self.role, Role::New)
    }

    /// Whether the controller has ended, or wants this qpair gone.
    pub(super) fn is_to_close(&self) -> bool {
        match &self.role {
            Role::New => false,
            Role::Admin(admin) => admin.entry.controller.has_ended(),
            Role::Io(io) => io.is_to_close(),
        }
    }

    /// Since when the host must have been heard of, in ns; nothing for never.
    pub(super) fn patience_ns(&self) -> Option<u64> {
        match &self.role {
            Role::Admin(admin) => admin.patience_ns(),
            _ => None,
        }
    }

    /// The host was not heard of for so long.
    pub(super) fn host_is_lost(&self) {
        if let Some(controller) = self.controller() {
            controller.fail();
        }
    }

    /// Whether no bdev has anything of it.
    pub(super) fn is_idle(&self) -> bool {
        match &self.role {
            Role::Io(io) => io.namespaces.under_way() == 0,
            _ => true,
        }
    }

    /// Gives up what waits for space or a stalled device.
    pub(super) fn cancel(&mut self, cx: &Cx) {
        if let Role::Io(io) = &mut self.role {
            io.namespaces.cancel(cx);
        }
    }

    pub(super) fn wake(&self) -> Wake {
        let wake = match &self.role {
            Role::New => Wake::OnEvent,
            Role::Admin(admin) => admin.wake(),
            Role::Io(io) if io.is_waiting() => Wake::Now,
            Role::Io(io) => io.namespaces.wake(),
        };
        let wake = wake.sooner(self.auth_wake());
        match &self.retry {
            // Its predecessor tells nobody that it is gone.
            Some(retry) => wake.sooner(Wake::At(Nanos(retry.until.0.saturating_sub(RETRY_NS / 2)))),
            None => wake,
        }
    }

    /// Whether no further command is taken now.
    pub(super) fn is_full(&self, output: &Output) -> bool {
        self.retry.is_some()
            || self.slots.held_bytes() + output.body_bytes() > HELD_BYTES_MAX
            || output.head_bytes() > HEADS_BYTES_MAX
    }

    /// A command has come.
    ///
    /// # Errors
    /// Why the connection must end.
    pub(super) fn command(
        &mut self,
        cx: &Cx,
        sqe: Sqe,
        came: Option<Payload>,
        output: &mut Output,
    ) -> Result<(), Fault> {
        if self.slots.count() >= self.depth {
            return Err(Fault::of(FaultKind::Sequence));
        }
        self.replies.command_taken();
        let held_bytes = came.as_ref().map_or(0, |payload| payload.buf.len());
        let transfer = Transfer::of(&sqe, came)?;
        let slot = self.slots.insert(Slot::new(sqe, held_bytes));
        if let Some(status) = self.refuses_unproved(&sqe) {
            self.refuse(slot, transfer, status, output);
            return Ok(());
        }
        let fuse = match &self.role {
            Role::Io(_) if sqe.opcode != admin::FABRICS => sqe.fuse(),
            _ => Fuse::Normal,
        };
        if fuse == Fuse::Normal {
            self.give_up_first(output);
            self.move_data(cx, slot, transfer, output);
        } else {
            self.fused(cx, slot, fuse, transfer, output);
        }
        Ok(())
    }

    /// Completes a command without data.
    fn complete(&mut self, slot: u16, status: Status, result: u64, output: &mut Output) {
        if let Some(slot) = self.slots.remove(slot) {
            let cid = slot.sqe.cid.get();
            self.replies.complete(cid, status, result, output);
        }
    }

    fn execute(&mut self, cx: &Cx, slot: u16, data: Option<IoBuf>, output: &mut Output) {
        let Some(sqe) = self.slots.get(slot).map(|slot| slot.sqe) else {
            return;
        };
        match &self.role {
            Role::New => {
                let connected = self.first_command(cx, slot, &sqe, data.as_deref(), output);
                if let Err(refusal) = connected {
                    self.complete(slot, refusal.status, refusal.dw0.into(), output);
                }
                self.give(data);
            }
            Role::Admin(_) | Role::Io(_) if auth::is_auth(&sqe) => {
                self.authenticate(cx, slot, &sqe, data.as_deref(), output);
                self.give(data);
            }
            Role::Admin(_) => {
                self.give(data);
                self.execute_admin(cx, slot, &sqe, output);
            }
            Role::Io(_) if sqe.opcode == admin::FABRICS => {
                self.give(data);
                let status = match sqe.fctype() {
                    fctype::CONNECT => Status::SEQUENCE_ERROR,
                    _ => Status::INVALID_OPCODE,
                };
                self.complete(slot, status, 0, output);
            }
            Role::Io(io) => match io.plan(&sqe, &self.side.options) {
                Ok((plan, _)) if matches!(plan.what, What::Read | What::Verify) => {
                    let len = usize::try_from(plan.range.len()).unwrap_or(usize::MAX);
                    self.want_memory(cx, slot, len, Wants::BdevData, output);
                }
                Ok(_) => self.start_io(cx, slot, data, output),
                Err(status) => {
                    self.give(data);
                    self.complete(slot, status, 0, output);
                }
            },
        }
    }

    /// The first command must be Connect.
    fn first_command(
        &mut self,
        cx: &Cx,
        slot: u16,
        sqe: &Sqe,
        data: Option<&[u8]>,
        output: &mut Output,
    ) -> Result<(), Refusal> {
        if (sqe.opcode, sqe.fctype()) != (admin::FABRICS, fctype::CONNECT) {
            self.is_lost = true;
            return Err(Refusal::plain(Status::SEQUENCE_ERROR));
        }
        let data = data.and_then(ConnectData::decode);
        let data = data.ok_or(Refusal::plain(Status::INVALID_FIELD))?;
        match self.connect(cx, slot, &data, output) {
            Err(refusal) if refusal.may_pass => {
                let until = cx.now().after(RETRY_NS);
                self.retry = Some(Retry { slot, data, until });
                Ok(())
            }
            result => result,
        }
    }

    fn connect(
        &mut self,
        cx: &Cx,
        slot: u16,
        data: &ConnectData,
        output: &mut Output,
    ) -> Result<(), Refusal> {
        let Some(sqe) = self.slots.get(slot).map(|slot| slot.sqe) else {
            return Ok(());
        };
        let side = &self.side;
        let origin = Origin {
            target: &side.target,
            options: &side.options,
            address: side.address,
            peer: side.peer,
            reactor: cx.id(),
        };
        let connected = connect(&ConnectCommand::of(&sqe), data, origin)?;
        let counters = &side.counters;
        let is_admin = connected.entry.status.qid == 0;
        let (ever, now) = match is_admin {
            true => (&counters.admin_qpairs, &counters.current_admin),
            false => (&counters.io_qpairs, &counters.current_io),
        };
        ever.fetch_add(1, Ordering::Relaxed);
        now.fetch_add(1, Ordering::Relaxed);
        counters.unassociated.fetch_sub(1, Ordering::Relaxed);
        self.depth = connected.size.into();
        let success = side.options.c2h_success;
        self.replies
            .connected(connected.size, connected.flow_control, success);
        let cntlid = connected.entry.controller.cntlid;
        let is_to_prove = connected.is_to_prove;
        tracing::info!(
            peer = %side.peer, qid = connected.entry.status.qid, cntlid,
            host = connected.entry.controller.host.nqn,
            subsystem = connected.entry.controller.subsystem.nqn(), "nvmf: connected"
        );
        self.role = match is_admin {
            true => {
                let admin = Admin::new(connected, &side.target, &side.options, cx.now());
                Role::Admin(Box::new(admin))
            }
            false => Role::Io(Box::new(IoQueue::new(connected.entry))),
        };
        let mut result = u64::from(cntlid);
        if is_to_prove {
            self.begin_authentication(cx);
            result |= auth::AUTH_REQUIRED;
        }
        self.complete(slot, Status::SUCCESS, result, output);
        Ok(())
    }

    /// Tries a Connect again whose number was taken.
    fn connect_again(&mut self, cx: &Cx, output: &mut Output) -> u32 {
        let Some(retry) = self.retry.take() else {
            return 0;
        };
        match self.connect(cx, retry.slot, &retry.data, output) {
            Err(refusal) if refusal.may_pass && cx.now() < retry.until => {
                self.retry = Some(retry);
                return 0;
            }
            Err(refusal) => self.complete(retry.slot, refusal.status, refusal.dw0.into(), output),
            Ok(()) => {}
        }
        1
    }

    fn execute_admin(&mut self, cx: &Cx, slot: u16, sqe: &Sqe, output: &mut Output) {
        let Role::Admin(admin) = &mut self.role else {
            return;
        };
        let (target, options) = (&self.side.target, &self.side.options);
        let slots = &self.slots;
        let find = |cid| slots.find(cid);
        match admin.execute(sqe, slot, find, target, options, cx.now()) {
            Err(status) => self.complete(slot, status, 0, output),
            Ok(Outcome::Done(result)) => self.complete(slot, Status::SUCCESS, result, output),
            Ok(Outcome::Data(dw0, page)) => {
                let room = sqe.sgl_len.get() as usize;
                let page = page.get(..page.len().min(room)).unwrap_or_default();
                self.replies.page(sqe.cid.get(), page, dw0, output);
                self.slots.remove(slot);
            }
            Ok(Outcome::Waits) => {}
            Ok(Outcome::Aborted(other)) => {
                self.complete(other, Status::ABORTED, 0, output);
                self.complete(slot, Status::SUCCESS, 0, output);
            }
        }
    }

    /// Hands a command to its bdev. `buf`: the host's data, or room for the bdev's.
    fn start_io(&mut self, cx: &Cx, slot: u16, buf: Option<IoBuf>, output: &mut Output) {
        let (Role::Io(io), Some(sqe)) = (&mut self.role, self.slots.get(slot).map(|s| s.sqe))
        else {
            return;
        };
        let means = Means {
            options: &self.side.options,
            pool: &self.pool,
        };
        match io.start(cx, slot, &sqe, buf, means) {
            Ok(Started::Job(job)) => {
                self.slots.update(slot, |slot| slot.stage = Stage::Io(job));
            }
            Ok(Started::Waits) => self.wake_writers(),
            Ok(Started::Nothing) => self.complete(slot, Status::SUCCESS, 0, output),
            Err(status) => self.complete(slot, status, 0, output),
        }
    }

    /// Collects what has completed and what has happened; without `output` nobody is there to hear
    /// of it. Returns how much there was.
    pub(super) fn reap(&mut self, cx: &Cx, output: Option<&mut Output>) -> u32 {
        let mut count = 0;
        let means = Means {
            options: &self.side.options,
            pool: &self.pool,
        };
        let Some(output) = output else {
            if let Role::Io(io) = &mut self.role {
                count = io.reap(cx, means, &mut self.slots, None);
            }
            self.report_pending();
            return count;
        };
        if let Role::Io(io) = &mut self.role {
            let replies = Some((&self.replies, &mut *output));
            count = io.reap(cx, means, &mut self.slots, replies);
            let completed = &self.side.counters.completed;
            completed.fetch_add(count.into(), Ordering::Relaxed);
        }
        while let Role::Admin(admin) = &mut self.role
            && let Some((slot, event)) = admin.event(&self.side.target, cx.now())
        {
            self.complete(slot, Status::SUCCESS, event.to_dw0().into(), output);
            count += 1;
        }
        count += self.connect_again(cx, output) + self.unpark(cx, output);
        count += self.go_on_with_authentication(cx, output);
        self.report_pending();
        count
    }

    /// Brings the reactor's count of requests that bdevs have up to date.
    fn report_pending(&mut self) {
        let now = match &self.role {
            Role::Io(io) => io.namespaces.under_way(),
            _ => 0,
        };
        let pending = &self.side.counters.pending;
        if now > self.pending {
            pending.fetch_add((now - self.pending).into(), Ordering::Relaxed);
        } else if now < self.pending {
            pending.fetch_sub((self.pending - now).into(), Ordering::Relaxed);
        }
        self.pending = now;
    }
}

impl Drop for Qpair {
    fn drop(&mut self) {
        let counters = &self.side.counters;
        let now = match &self.role {
            Role::New => &counters.unassociated,
            Role::Admin(_) => &counters.current_admin,
            Role::Io(_) => &counters.current_io,
        };
        now.fetch_sub(1, Ordering::Relaxed);
    }
}
