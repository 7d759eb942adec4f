//! A channel for devices that do each request at once, in the submitter's thread.

use super::live_info::{Gate, LiveInfo};
use super::{Channel, Completion, Data, Extent, Request};
use crate::units::ByteRange;
use reactors::{Cx, Wake};
use std::fmt::Debug;
use std::sync::Arc;

/// A device whose requests never wait for anything.
pub(super) trait InlineDevice: Send + Sync + Debug {
    /// Its identity and geometry.
    fn info(&self) -> &Arc<LiveInfo>;

    /// Does an admitted request. From any thread.
    fn execute(&self, request: Request) -> Completion;
}

/// Keeps completions until they are polled.
#[derive(Debug)]
pub(super) struct InlineChannel<D> {
    device: Arc<D>,
    gate: Gate,
    done: Vec<Completion>,
}

impl<D: InlineDevice> InlineChannel<D> {
    pub(super) fn new(device: Arc<D>) -> Self {
        Self {
            gate: Gate::new(device.info()),
            device,
            done: Vec::new(),
        }
    }
}

impl<D: InlineDevice> Channel for InlineChannel<D> {
    fn submit(&mut self, _cx: &Cx, request: Request) {
        let completion = match self.gate.admit(&request) {
            Ok(()) => self.device.execute(request),
            Err(status) => request.complete(status),
        };
        self.done.push(completion);
    }

    fn poll(&mut self, _cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        take_all(&mut self.done, done)
    }

    fn wake(&self) -> Wake {
        wake_for(&self.done)
    }
}

/// Moves what is ready to `done`; returns how much.
pub(super) fn take_all(ready: &mut Vec<Completion>, done: &mut Vec<Completion>) -> u32 {
    let count = u32::try_from(ready.len()).unwrap_or(u32::MAX);
    done.append(ready);
    count
}

/// Nobody rings for completions that wait in a channel.
pub(super) fn wake_for(ready: &[Completion]) -> Wake {
    if ready.is_empty() {
        Wake::OnEvent
    } else {
        Wake::Now
    }
}

/// The answer to `Op::Extents` of a device that knows nothing but data.
pub(super) fn all_allocated(range: ByteRange) -> Data {
    if range.is_empty() {
        return Data::Extents(Vec::new());
    }
    Data::Extents(vec![Extent::allocated(range.len())])
}
