//! The guest's memory: one file, of which the target is given four parts with something of nobody's
//! around each.

use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;
/// What lies between the regions, and must stay.
const CANARY: u8 = 0xc5;
const FILE_BYTES: usize = 31 * PAGE;

/// A part that the target may touch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    /// Where the guest sees it.
    pub(super) guest: u64,
    /// Where the front end does.
    pub(super) user: u64,
    /// Where it is in the file.
    pub(super) at: usize,
    pub(super) len: usize,
}

impl Region {
    /// As messages have it.
    pub(super) fn words(&self) -> [u64; 4] {
        [self.guest, self.len as u64, self.user, self.at as u64]
    }
}

/// Rings are in the first. The second and third touch; the last ends where addresses end.
pub(super) const REGIONS: [Region; 4] = [
    Region {
        guest: 0x5a5a_1234_0000_0000,
        user: 0x7000_0000_0000,
        at: PAGE,
        len: 4 * PAGE,
    },
    Region {
        guest: 0x1_0000,
        user: 0x1000_0000_0000,
        at: 6 * PAGE,
        len: 16 * PAGE,
    },
    Region {
        guest: 0x2_0000,
        user: 0x2000_0000_0000,
        at: 23 * PAGE,
        len: 4 * PAGE,
    },
    Region {
        guest: 0xffff_ffff_ffff_d000,
        user: 0x3000_0000_0000,
        at: 28 * PAGE,
        len: 2 * PAGE,
    },
];

/// Where the parts of ring 0 are, in the file.
pub(super) const DESC: usize = PAGE;
pub(super) const AVAIL: usize = PAGE + 0x800;
pub(super) const USED: usize = PAGE + 0xc00;

/// The front end's address of a place in the first region.
pub(super) fn user(at: usize) -> u64 {
    REGIONS[0].user + (at - REGIONS[0].at) as u64
}

/// The guest's address of a place in the second region.
pub(super) fn guest(at: usize) -> u64 {
    REGIONS[1].guest + at as u64
}

/// An image of the file, for a model.
pub(super) fn fresh() -> Vec<u8> {
    let mut image = vec![CANARY; FILE_BYTES];
    for region in REGIONS {
        image[region.at..region.at + region.len].fill(0);
    }
    image
}

/// The file itself.
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn new(name: &str) -> Self {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
        let memory = Self(File::from(fd));
        memory.reset();
        memory
    }

    /// All as it was at first.
    pub(super) fn reset(&self) {
        self.put(0, &fresh());
    }

    pub(super) fn fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub(super) fn put(&self, at: usize, bytes: &[u8]) {
        self.0.write_all_at(bytes, at as u64).unwrap();
    }

    pub(super) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; FILE_BYTES];
        self.0.read_exact_at(&mut image, 0).unwrap();
        image
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.0.read_exact_at(&mut bytes, at as u64).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Nobody has touched what was not given.
    pub(super) fn check_canaries(&self) {
        let image = self.image();
        let given = |at: usize| REGIONS.iter().any(|r| (r.at..r.at + r.len).contains(&at));
        let touched = image
            .iter()
            .enumerate()
            .find(|(at, byte)| **byte != CANARY && !given(*at));
        assert_eq!(touched, None, "a byte outside the guest's memory");
    }
}
