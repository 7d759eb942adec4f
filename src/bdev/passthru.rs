//! A filter that does nothing: what a layer costs, and a second name for a bdev.

use super::identity::filter_info;
use super::inline::{take_all, wake_for};
use super::live_info::{Gate, LiveInfo};
use super::{Bdev, BdevError, BdevInfo, Channel, Completion, Request};
use reactors::{Cx, Wake};
use std::sync::Arc;
use uuid::Uuid;

/// "passthru": hands everything on to its base.
#[derive(Debug)]
pub struct PassthruBdev {
    info: Arc<LiveInfo>,
    base: Arc<dyn Bdev>,
}

impl PassthruBdev {
    /// A filter `name` over `base`. Without a `uuid`, one is derived from the base's.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a bad name.
    pub fn new(name: String, base: Arc<dyn Bdev>, uuid: Option<Uuid>) -> Result<Self, BdevError> {
        let info = filter_info(&*base, name, "passthru", uuid)?;
        let info = Arc::new(LiveInfo::over(info, Arc::clone(&base)));
        Ok(Self { info, base })
    }

    /// The bdev below.
    #[must_use]
    pub fn base(&self) -> &Arc<dyn Bdev> {
        &self.base
    }
}

impl Bdev for PassthruBdev {
    fn info(&self) -> Arc<BdevInfo> {
        self.info.get()
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        Ok(Box::new(PassthruChannel {
            gate: Gate::new(&self.info),
            base: self.base.open(cx)?,
            ready: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct PassthruChannel {
    gate: Gate,
    base: Box<dyn Channel>,
    ready: Vec<Completion>,
}

impl Channel for PassthruChannel {
    fn submit(&mut self, cx: &Cx, request: Request) {
        match self.gate.admit(&request) {
            Ok(()) => self.base.submit(cx, request),
            Err(status) => self.ready.push(request.complete(status)),
        }
    }

    fn poll(&mut self, cx: &Cx, done: &mut Vec<Completion>) -> u32 {
        let own = take_all(&mut self.ready, done);
        own.saturating_add(self.base.poll(cx, done))
    }

    fn wake(&self) -> Wake {
        wake_for(&self.ready).sooner(self.base.wake())
    }

    fn cancel(&mut self, cx: &Cx) {
        self.base.cancel(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, malloc, pattern, read, write};
    use super::*;
    use crate::bdev::IoStatus;

    #[test]
    fn it_is_its_base_under_another_name() {
        let base = malloc(128);
        let filter = PassthruBdev::new("Pt0".into(), base.clone(), None).unwrap();
        let (info, below) = (filter.info(), base.info());
        assert_eq!((&*info.name, info.product_name), ("Pt0", "passthru"));
        assert_eq!((info.blocks, info.supports), (below.blocks, below.supports));
        assert_ne!(info.uuid, below.uuid);
        let again = PassthruBdev::new("Pt0".into(), base.clone(), None).unwrap();
        assert_eq!(again.info().uuid, info.uuid);

        let mut rig = Rig::new();
        let (mut top, mut bottom) = (rig.open(&filter), rig.open(&*base));
        let bytes = pattern(1, 1024);
        assert!(rig.run(&mut *top, write(512, &bytes)).status.is_ok());
        assert_eq!(rig.bytes(&mut *bottom, 512, 1024), bytes);
        let done = rig.run(&mut *top, read(128 * 512, 512));
        assert_eq!(done.status, IoStatus::OutOfRange);
    }

    #[test]
    fn it_wakes_when_its_base_does() {
        let filter = PassthruBdev::new("Pt0".into(), malloc(128), None).unwrap();
        let mut rig = Rig::new();
        let mut channel = rig.open(&filter);
        assert_eq!(channel.wake(), Wake::OnEvent);
        channel.submit(rig.cx(), read(0, 512));
        assert_eq!(channel.wake(), Wake::Now);
        rig.wait(&mut *channel, 1);
        channel.submit(rig.cx(), read(1, 512));
        assert_eq!(channel.wake(), Wake::Now);
        rig.wait(&mut *channel, 1);
        assert_eq!(channel.wake(), Wake::OnEvent);
    }

    #[test]
    fn a_bad_name_is_refused() {
        let refused = PassthruBdev::new("a b".into(), malloc(128), None);
        assert!(matches!(refused, Err(BdevError::Invalid(_))));
    }
}
