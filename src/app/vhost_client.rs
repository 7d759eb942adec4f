//! Disks of other people's vhost-user back ends.

use crate::bdev::{BdevError, VhostBdev, VhostConfig};

/// Connects to a back end, with a thread that keeps the connection. It ends by itself when the bdev is
/// gone.
///
/// # Errors
/// What [`VhostBdev::connect`] says.
pub(super) fn connect(config: VhostConfig) -> Result<VhostBdev, BdevError> {
    VhostBdev::connect(config, |keeper| {
        let thread = std::thread::Builder::new().name("vhost-client".to_owned());
        thread.spawn(move || keeper.run()).map(|_detached| ())
    })
}
