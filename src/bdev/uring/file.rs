//! Opening a file or block device for ourselves alone, and finding out what it can do.

use super::device::UringConfig;
use super::sysfs::BlockSysfs;
use crate::bdev::{BdevError, IoBuf, Supports, check_block_size, derived_uuid};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat, StatxFlags,
};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// How long to wait before asking for a lock again.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// An open file or block device and what was found out about it.
#[derive(Debug)]
pub(super) struct BackingFile {
    /// Locked; the description that all I/O goes through.
    pub(super) fd: OwnedFd,
    /// I/O bypasses the page cache.
    pub(super) direct: bool,
    /// What the address of memory must be a multiple of; a power of two.
    pub(super) mem_align: usize,
    pub(super) is_block_device: bool,
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    pub(super) volatile_cache: bool,
    pub(super) supports: Supports,
    pub(super) uuid: Uuid,
}

/// Alignment that direct I/O demands, in bytes.
#[derive(Clone, Copy, Debug)]
struct DirectAlign {
    mem: u32,
    offset: u32,
}

fn os(what: &str, path: &Path, errno: Errno) -> BdevError {
    BdevError::Os {
        what: format!("{what} {}", path.display()),
        source: errno.into(),
    }
}

impl BackingFile {
    /// Opens, locks and examines what `config` names. May wait for the lock, so it is for control
    /// threads, never for a reactor.
    ///
    /// # Errors
    /// [`BdevError::Busy`] if somebody else holds it, [`BdevError::Invalid`] if the block size does
    /// not fit it or it is smaller than a block, [`BdevError::NotSupported`] if it is neither file
    /// nor block device, [`BdevError::Os`] for the rest.
    pub(super) fn open(config: &UringConfig) -> Result<Self, BdevError> {
        let path = config.path.as_path();
        let stat = rustix::fs::stat(path).map_err(|e| os("opening", path, e))?;
        let is_block_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            _ => {
                let what = format!("{} is neither a file nor a block device", path.display());
                return Err(BdevError::NotSupported(what));
            }
        };
        let (fd, direct) = open_exclusive(config, is_block_device)?;
        let now = rustix::fs::fstat(&fd).map_err(|e| os("examining", path, e))?;
        if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(BdevError::Busy(path.display().to_string()));
        }
        let align = direct.then(|| direct_align(&fd, is_block_device)).flatten();
        let (block_size, align) = choose_block_size(config, is_block_device, &fd, align)?;
        let direct = align.is_some();
        if !direct {
            buffered(&fd).map_err(|e| os("examining", path, e))?;
        }
        let bytes = rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|e| os("sizing", path, e))?;
        let blocks = bytes / u64::from(block_size);
        if blocks == 0 {
            return Err(BdevError::Invalid(format!(
                "{} has {bytes} bytes, less than a block of {block_size}",
                path.display()
            )));
        }
        let sysfs = is_block_device.then(|| find_sysfs(&stat)).flatten();
        let derived = || identity(path, &stat, sysfs.as_ref());
        Ok(Self {
            direct,
            mem_align: align.map_or(1, |align| align.mem as usize),
            is_block_device,
            block_size,
            blocks,
            // A file's writes end in the page cache, or in a disk that we can't ask.
            volatile_cache: sysfs.as_ref().is_none_or(BlockSysfs::has_volatile_cache),
            supports: supports(config, is_block_device, &fd, bytes, sysfs.as_ref()),
            uuid: config.uuid.unwrap_or_else(derived),
            fd,
        })
    }
}

impl BackingFile {
    /// The blocks that it has now.
    ///
    /// # Errors
    /// [`BdevError::Os`]
    pub(super) fn count_blocks(&self, path: &Path) -> Result<u64, BdevError> {
        let bytes = rustix::fs::seek(&self.fd, SeekFrom::End(0));
        let bytes = bytes.map_err(|e| os("sizing", path, e))?;
        Ok(bytes / u64::from(self.block_size))
    }
}

fn find_sysfs(stat: &Stat) -> Option<BlockSysfs> {
    let (major, minor) = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    BlockSysfs::find(Path::new("/sys"), major, minor)
}

/// Opens and locks it. In-flight I/O of a process that was killed keeps its file open, and with it
/// the lock, so somebody who holds it is given `lock_wait` to go away.
fn open_exclusive(
    config: &UringConfig,
    is_block_device: bool,
) -> Result<(OwnedFd, bool), BdevError> {
    let mut left = config.lock_wait;
    loop {
        if let Some(opened) = try_open(config, is_block_device)? {
            return Ok(opened);
        }
        if left.is_zero() {
            return Err(BdevError::Busy(config.path.display().to_string()));
        }
        let pause = left.min(LOCK_PAUSE);
        left -= pause;
        if let Ok(timeout) = pause.try_into() {
            // Nothing announces that a lock is free. A signal only shortens the pause.
            let _ = rustix::event::poll(&mut [], Some(&timeout));
        }
    }
}

/// One attempt: nothing if somebody else holds it. The flag says whether I/O is direct.
fn try_open(
    config: &UringConfig,
    is_block_device: bool,
) -> Result<Option<(OwnedFd, bool)>, BdevError> {
    let path = config.path.as_path();
    let mut flags = OFlags::CLOEXEC;
    flags |= if config.read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    if is_block_device && !config.read_only {
        // Keeps mounts and other exclusive users away.
        flags |= OFlags::EXCL;
    }
    let (opened, direct) = match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Err(Errno::INVAL) => (rustix::fs::open(path, flags, Mode::empty()), false),
        opened => (opened, true),
    };
    let fd = match opened {
        Ok(fd) => fd,
        Err(Errno::BUSY) => return Ok(None),
        Err(errno) => return Err(os("opening", path, errno)),
    };
    let lock = if config.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(&fd, lock) {
        Ok(()) => Ok(Some((fd, direct))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(os("locking", path, errno)),
    }
}

/// What direct I/O demands here; nothing if it is not possible after all.
fn direct_align(fd: &OwnedFd, is_block_device: bool) -> Option<DirectAlign> {
    if is_block_device {
        let block = rustix::fs::ioctl_blksszget(fd).ok()?;
        let told = statx_align(fd).filter(|align| align.mem > 0);
        return Some(DirectAlign {
            mem: told.map_or(block, |align| align.mem),
            offset: block,
        });
    }
    match statx_align(fd) {
        Some(align) if align.mem == 0 || align.offset == 0 => None,
        Some(align) => Some(align),
        // An older kernel does not tell: try.
        None => [512, 4096]
            .into_iter()
            .find(|block| reads_directly(fd, *block))
            .map(|block| DirectAlign {
                mem: block,
                offset: block,
            }),
    }
}

/// What the kernel says, if it does; zeroes mean that direct I/O is not supported.
fn statx_align(fd: &OwnedFd) -> Option<DirectAlign> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    told.then_some(DirectAlign {
        mem: stat.stx_dio_mem_align,
        offset: stat.stx_dio_offset_align,
    })
}

/// Whether a direct read of one block is well-formed; whether it succeeds is another matter.
fn reads_directly(fd: &OwnedFd, block: u32) -> bool {
    let mut buf = IoBuf::zeroed(block as usize);
    rustix::io::pread(fd, &mut buf[..], 0) != Err(Errno::INVAL)
}

fn buffered(fd: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags - OFlags::DIRECT)
}

/// The block size to offer, and how to align direct I/O (nothing: go through the page cache).
fn choose_block_size(
    config: &UringConfig,
    is_block_device: bool,
    fd: &OwnedFd,
    align: Option<DirectAlign>,
) -> Result<(u32, Option<DirectAlign>), BdevError> {
    let path = config.path.as_path();
    let least = match align {
        Some(align) => align.offset,
        None if is_block_device => {
            rustix::fs::ioctl_blksszget(fd).map_err(|e| os("examining", path, e))?
        }
        None => 512,
    };
    let block_size = match config.block_size {
        Some(block_size) => block_size,
        None if least <= 512 => 512,
        None => 4096,
    };
    check_block_size(block_size)?;
    if block_size >= least {
        let usable = align.filter(|align| align.mem.is_power_of_two());
        let usable = usable.filter(|align| align.mem <= 4096 && reads_directly(fd, align.offset));
        return Ok((block_size, usable));
    }
    if is_block_device {
        return Err(BdevError::Invalid(format!(
            "{} has blocks of {least} bytes, more than {block_size}",
            path.display()
        )));
    }
    Ok((block_size, None))
}

fn supports(
    config: &UringConfig,
    is_block_device: bool,
    fd: &OwnedFd,
    bytes: u64,
    sysfs: Option<&BlockSysfs>,
) -> Supports {
    if config.read_only {
        return Supports::default();
    }
    let zeroes = if is_block_device {
        sysfs.is_some_and(BlockSysfs::zeroes_blocks)
    } else {
        // A hole behind the end changes nothing, and tells whether holes are possible.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(fd, flags, bytes.next_multiple_of(1 << 20), 4096).is_ok()
    };
    Supports {
        discard: zeroes,
        discard_zeroes: zeroes && !is_block_device,
        write_zeroes: zeroes,
        extents: false,
    }
}

/// The same whenever the same file or disk is opened. Device numbers may change with a reboot, so
/// they are left out.
fn identity(path: &Path, stat: &Stat, sysfs: Option<&BlockSysfs>) -> Uuid {
    if let Some(known) = sysfs.and_then(BlockSysfs::identity) {
        return derived_uuid("disk", &[known.as_bytes()]);
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        // As given: a link in /dev/disk/by-id is more stable than what it points to.
        return derived_uuid("disk path", &[path.as_os_str().as_bytes()]);
    }
    let canonical = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let inode = stat.st_ino.to_le_bytes();
    derived_uuid("file", &[canonical.as_os_str().as_bytes(), &inode])
}
