//! One user's way to a uring bdev.

use super::device::Device;
use super::hub::{Hub, Replies};
use super::job::{Job, Next};
use crate::bdev::inline::{take_all, wake_for};
use crate::bdev::live_info::Gate;
use crate::bdev::{Channel, Completion, IoStatus, Request};
use reactors::{Cx, Wake};
use std::rc::Rc;
use std::sync::Arc;

/// Turns requests into jobs of the reactor's hub. Dropped early, it leaves its jobs to the hub,
/// which keeps their memory until the kernel is done.
#[derive(Debug)]
pub(super) struct UringChannel {
    device: Arc<Device>,
    gate: Gate,
    hub: Rc<Hub>,
    replies: Rc<Replies>,
    ready: Vec<Completion>,
}

impl UringChannel {
    pub(super) fn new(device: Arc<Device>, hub: Rc<Hub>) -> Self {
        Self {
            gate: Gate::new(&device.info),
            device,
            hub,
            replies: Rc::default(),
            ready: Vec::new(),
        }
    }

    fn follow(&mut self, next: Next) {
        match next {
            Next::Run(job) => self.hub.push(job, &self.replies),
            Next::Done(completion) => self.ready.push(completion),
        }
    }
}

impl Channel for UringChannel {
    fn submit(&mut self, _cx: &Cx, request: Request) {
        let next = match self.gate.admit(&request) {
            Ok(()) => Job::start(&self.device, request, &mut self.hub.pool()),
            Err(status) => Next::Done(request.complete(status)),
        };
        self.follow(next);
    }

    fn poll(&mut self, _cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        self.hub.turn();
        loop {
            let reply = self.replies.borrow_mut().pop_front();
            let Some((job, result)) = reply else {
                break;
            };
            let next = job.advance(result, &mut self.hub.pool());
            self.follow(next);
        }
        // Jobs that take another step go on at once.
        self.hub.submit();
        take_all(&mut self.ready, done)
    }

    fn wake(&self) -> Wake {
        if !self.replies.borrow().is_empty() {
            return Wake::Now;
        }
        wake_for(&self.ready).sooner(self.hub.wake())
    }

    fn cancel(&mut self, _cx: &Cx) {
        for job in self.hub.unpark(&self.replies) {
            self.ready.push(job.request.complete(IoStatus::Aborted));
        }
    }
}

impl Drop for UringChannel {
    fn drop(&mut self) {
        // Jobs that never reached the kernel would only be done for nobody.
        drop(self.hub.unpark(&self.replies));
        self.hub.detach();
    }
}
