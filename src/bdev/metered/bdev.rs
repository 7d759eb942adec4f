//! The bdev itself: its base in every respect, but that it counts.

use super::channel::MeteredChannel;
use super::counters::{IoFigures, ResetFigures};
use super::depth::{DepthFigures, sample_every};
use super::histogram::{HistogramCounts, HistogramOptions};
use super::limits::RateLimits;
use super::meter::Meter;
use crate::bdev::{Bdev, BdevError, BdevInfo, Channel, Pmem};
use reactors::{Cx, ReactorId};
use std::sync::Arc;

/// A bdev whose requests are counted, timed and, if an operator wants it, limited.
#[derive(Debug)]
pub struct MeteredBdev {
    base: Arc<dyn Bdev>,
    meter: Arc<Meter>,
}

impl MeteredBdev {
    /// Meters `base`, whose channels will be on reactors 0 to `reactors` − 1.
    #[must_use]
    pub fn new(base: Arc<dyn Bdev>, reactors: usize) -> Self {
        Self {
            base,
            meter: Arc::new(Meter::new(reactors)),
        }
    }

    /// What has passed since the last reset, for every reactor that has ever opened a channel. Then
    /// begins anew what `reset` says. From any thread; of requests that end meanwhile some are in it.
    #[must_use]
    pub fn figures(&self, reset: ResetFigures) -> Vec<(ReactorId, IoFigures)> {
        self.meter.figures(reset)
    }

    /// How many channels every reactor has open, of those that have some.
    #[must_use]
    pub fn channels_open(&self) -> Vec<(ReactorId, u64)> {
        self.meter.channels_open()
    }

    /// The rate limits.
    #[must_use]
    pub fn limits(&self) -> RateLimits {
        self.meter.settings().limits
    }

    /// Makes the limits what `change` makes of them, for what passes from now on, that which waits
    /// included. Whoever calls it rings the reactors, so that they look.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for what can't be counted; nothing has changed.
    pub fn change_limits(
        &self,
        change: impl Fn(RateLimits) -> RateLimits,
    ) -> Result<(), BdevError> {
        self.meter.change_limits(change)
    }

    /// What the histogram holds, if there is one.
    #[must_use]
    pub fn histogram_options(&self) -> Option<HistogramOptions> {
        let settings = self.meter.settings();
        settings.histogram.as_ref().map(|h| h.options)
    }

    /// Begins a histogram, empty; or ends the one there is.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for bounds that make no sense; nothing has changed.
    pub fn set_histogram(&self, options: Option<HistogramOptions>) -> Result<(), BdevError> {
        self.meter.set_histogram(options)
    }

    /// The histogram now, if there is one.
    #[must_use]
    pub fn histogram(&self) -> Option<HistogramCounts> {
        let settings = self.meter.settings();
        settings.histogram.as_ref().map(|h| h.counts())
    }

    /// Looks at the queue depth every `period_us`, or with 0 no more. Always to be called on the same
    /// reactor, which does the looking.
    pub fn sample_depth(&self, cx: &Cx, period_us: u64) {
        sample_every(&self.meter, cx, period_us);
    }

    /// What was seen of the queue depth, while somebody looks.
    #[must_use]
    pub fn depth(&self) -> Option<DepthFigures> {
        self.meter.depth.figures()
    }
}

impl Bdev for MeteredBdev {
    fn info(&self) -> Arc<BdevInfo> {
        self.base.info()
    }

    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let base = self.base.open(cx)?;
        let meter = Arc::clone(&self.meter);
        let channel = MeteredChannel::new(meter, Arc::clone(&self.base), base, cx.id())?;
        Ok(Box::new(channel))
    }

    fn pmem(&self) -> Option<Arc<dyn Pmem>> {
        self.base.pmem()
    }
}
