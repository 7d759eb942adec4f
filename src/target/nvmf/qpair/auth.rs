//! The commands by which a host proves who it is.

use super::{Qpair, Role};
use crate::target::nvmf::auth::{Authentication, Told};
use crate::target::stream::Output;
use crate::wire::nvme::{AuthCommand, Sqe, Status, admin, fctype};
use reactors::{Cx, Wake};
use std::sync::Arc;

/// ATR, in the answer to Connect: the host must authenticate itself.
pub(super) const AUTH_REQUIRED: u64 = 1 << 17;

/// Whether a command is of the authentication.
pub(super) fn is_auth(sqe: &Sqe) -> bool {
    let is_either = matches!(sqe.fctype(), fctype::AUTH_SEND | fctype::AUTH_RECEIVE);
    sqe.opcode == admin::FABRICS && is_either
}

impl Qpair {
    /// The host has connected, and must prove who it is.
    pub(super) fn begin_authentication(&mut self, cx: &Cx) {
        let entry = match &self.role {
            Role::New => return,
            Role::Admin(admin) => &admin.entry,
            Role::Io(io) => &io.entry,
        };
        let controller = &entry.controller;
        let auth = Authentication::new(
            Arc::clone(&entry.status),
            Arc::clone(&controller.subsystem),
            &controller.host.nqn,
            controller.keep_alive_ms,
            cx.now(),
        );
        self.auth = Some(Box::new(auth));
    }

    /// Why not to take a command of a host that has not proved yet who it is.
    pub(super) fn refuses_unproved(&self, sqe: &Sqe) -> Option<Status> {
        let is_unproved = self.auth.as_ref().is_some_and(|auth| !auth.is_completed());
        (is_unproved && !is_auth(sqe)).then_some(Status::AUTHENTICATION_REQUIRED)
    }

    /// A command of the authentication, with its data.
    pub(super) fn authenticate(
        &mut self,
        cx: &Cx,
        slot: u16,
        sqe: &Sqe,
        data: Option<&[u8]>,
        output: &mut Output,
    ) {
        // Nobody is authenticated twice, as with SPDK.
        let auth = self.auth.as_mut().filter(|auth| !auth.is_completed());
        let status = match (auth, AuthCommand::len_of(sqe)) {
            (None, _) => Status::SEQUENCE_ERROR,
            (Some(_), None) => Status::INVALID_FIELD,
            (Some(auth), Some(_)) if sqe.fctype() == fctype::AUTH_SEND => {
                let target = &self.side.target;
                let offer = target.chap_offer();
                auth.said(cx, &offer, target.calculator(), data.unwrap_or_default());
                Status::SUCCESS
            }
            (Some(auth), Some(len)) => match auth.asks(slot, len as usize) {
                true => {
                    self.go_on_with_authentication(cx, output);
                    return;
                }
                false => Status::SEQUENCE_ERROR,
            },
        };
        self.complete(slot, status, 0, output);
        self.welcome();
        self.go_on_with_authentication(cx, output);
    }

    /// Tells the host what it has asked for, if it is there. Returns how much happened.
    pub(super) fn go_on_with_authentication(&mut self, cx: &Cx, output: &mut Output) -> u32 {
        let Some(auth) = self.auth.as_mut().filter(|auth| !auth.is_completed()) else {
            return 0;
        };
        let told = auth.tell(cx.now());
        let count = u32::from(told.is_some());
        let has_ended = auth.has_ended(cx.now());
        match told {
            Some((slot, Told::Message(bytes))) => {
                if let Some(slot) = self.slots.remove(slot) {
                    self.replies.page(slot.sqe.cid.get(), &bytes, 0, output);
                }
            }
            Some((slot, Told::NoRoom)) => self.complete(slot, Status::INVALID_FIELD, 0, output),
            None => {}
        }
        self.is_lost |= has_ended;
        self.welcome();
        count
    }

    /// Tells of the controller, if this is its first qpair and the host has proved who it is.
    fn welcome(&self) {
        let is_completed = self.auth.as_ref().is_some_and(|auth| auth.is_completed());
        if let (true, Role::Admin(admin)) = (is_completed, &self.role) {
            let controller = &admin.entry.controller;
            controller.subsystem.welcome(controller);
        }
    }

    /// When to look at the authentication again.
    pub(super) fn auth_wake(&self) -> Wake {
        let auth = self.auth.as_ref().filter(|_| !self.is_lost);
        auth.map_or(Wake::OnEvent, |auth| auth.wake())
    }
}
