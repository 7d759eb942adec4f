//! Eventfds of which the other end is somebody else's.

use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
use std::os::fd::AsFd;

/// Takes all that was rung so far; never waits, even if the descriptor is a blocking one.
pub(crate) fn silence(fd: impl AsFd) -> Result<(), Errno> {
    let mut count = [0_u8; 8];
    let into = &mut [IoSliceMut::new(&mut count)];
    match rustix::io::preadv2(fd, into, u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
