//! What needs system calls that no crate of ours wraps: `SO_ZEROCOPY`, its notices, and a mapped file.
#![expect(
    unsafe_code,
    reason = "a socket option, a message's control data and a mapping of a file that is ours"
)]

use memmap2::MmapMut;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// `SO_EE_CODE_ZEROCOPY_COPIED`: the kernel has copied after all.
const CODE_COPIED: u8 = 1;

/// A file in memory without a name, and its mapping.
pub(crate) struct Mapped {
    file: File,
    map: MmapMut,
}

impl Mapped {
    pub(crate) fn new(bytes: u64) -> Self {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("bodies", flags).unwrap());
        file.set_len(bytes).unwrap();
        // SAFETY: the file has no name, so nobody else changes it or its length.
        let mut map = unsafe { MmapMut::map_mut(&file).unwrap() };
        map.fill(0x5a);
        Self { file, map }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// What the kernel told of sends without a copy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Notices {
    /// Sends whose memory is free again; of them, those that were copied after all.
    pub(crate) done: u64,
    pub(crate) copied: u64,
}

impl Notices {
    pub(crate) fn add(&mut self, other: Self) {
        self.done += other.done;
        self.copied += other.copied;
    }
}

pub(crate) fn allow_zero_copy(socket: &TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    let bytes = libc::socklen_t::try_from(size_of_val(&on)).unwrap();
    // SAFETY: the option is an int, and `on` is one.
    let result = unsafe {
        let option = (&raw const on).cast();
        let fd = socket.as_raw_fd();
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, option, bytes)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes one range of notices from the socket's error queue, if there is one.
fn take_range(socket: &TcpStream) -> Option<libc::sock_extended_err> {
    let mut control = [0_u64; 16];
    // SAFETY: all zeroes are a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message has no place for data, and control data of the length that it says, aligned for
    // their head. The head that is read is within what the kernel has written, or null; so is what
    // follows it, by the checked type.
    unsafe {
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        if libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) < 0 {
            return None;
        }
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        if head.is_null() || (*head).cmsg_type != libc::IP_RECVERR {
            return None;
        }
        Some(
            libc::CMSG_DATA(head)
                .cast::<libc::sock_extended_err>()
                .read_unaligned(),
        )
    }
}

/// Takes the notices that wait.
pub(crate) fn take_notices(socket: &TcpStream, notices: &mut Notices) {
    while let Some(range) = take_range(socket) {
        let count = u64::from(range.ee_data.wrapping_sub(range.ee_info)) + 1;
        notices.done += count;
        if range.ee_code == CODE_COPIED {
            notices.copied += count;
        }
    }
}
