//! The eventfds of a front end: its kicks, and our calls.

pub(super) use crate::bdev::silence;

use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::{AsRawFd, OwnedFd};

/// Whether the descriptor is an eventfd: anything else could block us, or can't be waited for. It is
/// not read: what has been rung is for somebody else.
pub(super) fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let target = rustix::fs::readlink(link, Vec::new());
    target.is_ok_and(|target| target.as_bytes() == b"anon_inode:[eventfd]")
}

/// Rings. One that is full has been rung already, and a write would wait.
pub(super) fn ring(fd: &OwnedFd) {
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    if rustix::event::poll(&mut fds, Some(&Timespec::default())) == Ok(1) {
        // The only failure is a front end that is going away.
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_blocking_eventfd_never_blocks_us() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert!(is_eventfd(&fd));
        silence(&fd).unwrap();
        ring(&fd);
        rustix::io::write(&fd, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        ring(&fd);
        silence(&fd).unwrap();
        silence(&fd).unwrap();
    }

    #[test]
    fn other_descriptors_are_told_apart() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(!is_eventfd(&reader) && !is_eventfd(&writer));
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(!is_eventfd(&file));
    }
}
