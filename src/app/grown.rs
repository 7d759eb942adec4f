//! Bdevs that have another size than before: the one place where the service learns of it.

use super::bdevs::{Kind, bdev_error, no_such_device};
use super::caches::{cache_error, cache_object};
use super::service::Service;
use crate::bdev::{Bdev, BdevError, NullBdev, UringBdev};
use rpc::Error;
use rustix::io::Errno;
use std::sync::Arc;

/// Gives a bdev that `pick` finds to be of its kind another size. It may shrink only while nobody uses it.
///
/// # Errors
/// −19 for another kind, −16 for a shrink under somebody, whatever `size` and `apply` say.
fn change_size<B>(
    service: &Service,
    name: &str,
    pick: impl Fn(&Kind) -> Option<B>,
    bytes: impl FnOnce(&B) -> Result<u64, Error>,
    apply: impl FnOnce(&B, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let entry = service.bdevs.get(name)?;
    let bdev = pick(&entry.kind).ok_or_else(no_such_device)?;
    let (old, new) = (entry.bdev.info().bytes(), bytes(&bdev)?);
    if let Some(by) = entry.owner.as_ref().or(entry.users.first())
        && new < old
    {
        return Err(Error::errno_with(
            Errno::BUSY.raw_os_error(),
            format!(
                "Device or resource busy: bdev '{name}' is in use by {by}, and can't shrink from {old} \
                 to {new} bytes"
            ),
        ));
    }
    apply(&bdev, new)?;
    bdev_resized(service, name)
}

/// Looks how large the file or device of a bdev is now; `pick` names its kind.
pub(super) fn rescan(
    service: &Service,
    name: &str,
    pick: impl Fn(&Kind) -> Option<Arc<UringBdev>>,
) -> Result<(), Error> {
    let error = |e: BdevError| bdev_error(&e);
    change_size(
        service,
        name,
        pick,
        |bdev| {
            let blocks = bdev.blocks_now().map_err(error)?;
            let info = bdev.info();
            if blocks == 0 {
                let text = format!("bdev '{name}' has less than a block of {}", info.block_size);
                return Err(error(BdevError::Invalid(text)));
            }
            Ok(blocks * u64::from(info.block_size))
        },
        |bdev, bytes| {
            bdev.set_blocks(bytes / u64::from(bdev.info().block_size));
            Ok(())
        },
    )
}

/// Gives a null bdev another size.
pub(super) fn resize_null(service: &Service, name: &str, bytes: u64) -> Result<(), Error> {
    change_size(
        service,
        name,
        |kind| match kind {
            Kind::Null(bdev) => Some(Arc::clone(bdev)),
            _ => None,
        },
        |_: &Arc<NullBdev>| Ok(bytes),
        |bdev, bytes| bdev.resize(bytes).map_err(|error| bdev_error(&error)),
    )
}

/// The bdev `name` may have another size: whatever stands on it learns of it. Filters have it at once;
/// caches record it, and their volumes grow. Exports show it to clients that come from now on.
///
/// # Errors
/// Of the first cache that does not follow; those beside it do. The bdev has its new size all the same.
pub(super) fn bdev_resized(service: &Service, name: &str) -> Result<(), Error> {
    let mut result = Ok(());
    for entry in service.bdevs.list() {
        if entry.base.as_deref() != Some(name) {
            continue;
        }
        let above = entry.bdev.info().name.clone();
        let followed = match &entry.kind {
            Kind::Cache(cache) => cache
                .follow_backing()
                .map(drop)
                .map_err(|error| cache_error(&cache_object(&above), &error)),
            _ => Ok(()),
        };
        result = result.and(followed).and(bdev_resized(service, &above));
    }
    result
}
