//! From a path to a medium: what the path is, its size, its lock, its space, its mapping.

use super::config::{PersistenceWish, PmemConfig, PmemKind};
use super::map::Mapping;
use super::medium::{Medium, pause};
use super::persist::{CopyKernel, FlushMethod, Persist};
use crate::bdev::{BdevError, Persistence};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long to wait between two tries to lock.
const LOCK_POLL: Duration = Duration::from_millis(20);
const TMPFS_MAGIC: i128 = 0x0102_1994;
const RAMFS_MAGIC: i128 = 0x8584_58f6;
const HUGETLBFS_MAGIC: i128 = 0x9584_58f6;

/// What [`open`] found and made.
pub(super) struct Opened {
    pub(super) medium: Medium,
    pub(super) kind: PmemKind,
    pub(super) page_size: u64,
}

fn os(what: &str, path: &Path) -> impl FnOnce(io::Error) -> BdevError {
    let what = format!("{what} {}", path.display());
    move |source| BdevError::Os { what, source }
}

fn invalid(path: &Path, why: &str) -> BdevError {
    BdevError::Invalid(format!("{}: {why}", path.display()))
}

fn not_supported(path: &Path, why: &str) -> BdevError {
    BdevError::NotSupported(format!("{}: {why}", path.display()))
}

/// Opens, creates if wanted, locks and maps what `config` names. Waits: for control threads.
///
/// # Errors
/// All kinds of [`BdevError`]; what existed before is as it was.
pub(super) fn open(config: &PmemConfig) -> Result<Opened, BdevError> {
    let mut opened = if config.is_anonymous() {
        open_anonymous(config)?
    } else {
        let (file, created) = open_locked(config)?;
        let result = open_file(config, file);
        if result.is_err() && created {
            // Ours, empty or half-allocated, and nobody else has ever had its lock.
            let _ = fs::remove_file(&config.path);
        }
        result?
    };
    if opened.page_size == 0 {
        opened.page_size = super::page_size::of_mapping(opened.medium.address());
    }
    Ok(opened)
}

fn open_anonymous(config: &PmemConfig) -> Result<Opened, BdevError> {
    let path = &config.path;
    if !matches!(
        config.persistence,
        PersistenceWish::Auto | PersistenceWish::Volatile
    ) {
        return Err(not_supported(path, "anonymous memory can only be volatile"));
    }
    let size = config
        .size
        .ok_or_else(|| invalid(path, "anonymous memory needs a size"))?;
    let bytes = mappable(config, size)?;
    let mapping = Mapping::anonymous(bytes).map_err(os("map", path))?;
    mapping.advise_huge();
    populate(&mapping, path)?;
    Ok(Opened {
        medium: medium(mapping, Persistence::Volatile, config)?,
        kind: PmemKind::Memory,
        page_size: 0,
    })
}

/// Populates, where only a lack of memory is an error: without, the first stores are slower.
fn populate(mapping: &Mapping, path: &Path) -> Result<(), BdevError> {
    match mapping.populate() {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            Err(os("get the memory of", path)(error))
        }
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "not populated");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn medium(
    mapping: Mapping,
    persistence: Persistence,
    config: &PmemConfig,
) -> Result<Medium, BdevError> {
    let path = &config.path;
    let kernel = config.kernel.unwrap_or_else(CopyKernel::detect);
    if !CopyKernel::available().contains(&kernel) {
        let why = format!("this CPU can't copy with {kernel:?}");
        return Err(not_supported(path, &why));
    }
    let flush = match persistence {
        Persistence::Volatile => FlushMethod::None,
        Persistence::Msync => FlushMethod::Msync,
        Persistence::Dax => FlushMethod::of_this_cpu().ok_or_else(|| {
            not_supported(
                path,
                "this CPU has no cache-line write-back instruction that we know, so stores to DAX \
                 memory can't be made durable",
            )
        })?,
    };
    Medium::new(mapping, Persist::new(kernel, flush), persistence)
}

/// A size that is usable, as a length in memory.
fn mappable(config: &PmemConfig, size: u64) -> Result<usize, BdevError> {
    let block = u64::from(config.block_size);
    if size == 0 || !size.is_multiple_of(block) {
        let why = format!("its size, {size} bytes, is not a multiple of {block} above 0");
        return Err(invalid(&config.path, &why));
    }
    usize::try_from(size).map_err(|_| invalid(&config.path, "larger than the address space"))
}

/// Opens, or creates if that is wanted and needed, and locks. True if it was created.
fn open_locked(config: &PmemConfig) -> Result<(File, bool), BdevError> {
    let path = &config.path;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let old = match fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(os("look at", path)(error)),
    };
    if let Some(metadata) = &old {
        // Before it is opened: opening a device may have effects.
        refuse_type(metadata, path)?;
    }
    let (flags, created) = match (old, config.create_file) {
        (None, true) if config.size.is_none() => {
            return Err(invalid(path, "creating it needs a size"));
        }
        (None, true) => (flags | OFlags::CREATE | OFlags::EXCL, true),
        _ => (flags, false),
    };
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| os("open", path)(errno.into()))?;
    let file = File::from(file);
    lock(&file, path, config.lock_wait)?;
    Ok((file, created))
}

fn refuse_type(metadata: &Metadata, path: &Path) -> Result<(), BdevError> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_char_device() {
        return Ok(());
    }
    let why = if kind.is_block_device() {
        "a block device is not byte-addressable: use its DAX device or a file on a DAX file system"
    } else {
        "neither a regular file nor a DAX device"
    };
    Err(not_supported(path, why))
}

/// Takes the exclusive lock, which the open file keeps. A process that was killed keeps it for as
/// long as its last I/O takes, hence `wait`.
fn lock(file: &File, path: &Path, wait: Duration) -> Result<(), BdevError> {
    let mut left = wait;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if left.is_zero() => {
                return Err(BdevError::Busy(path.display().to_string()));
            }
            Err(Errno::WOULDBLOCK) => {
                let nap = left.min(LOCK_POLL);
                pause(nap);
                left -= nap;
            }
            Err(errno) => return Err(os("lock", path)(errno.into())),
        }
    }
}

fn open_file(config: &PmemConfig, file: File) -> Result<Opened, BdevError> {
    // What is open decides, not what the path was a moment ago.
    let metadata = file.metadata().map_err(os("look at", &config.path))?;
    refuse_type(&metadata, &config.path)?;
    if metadata.file_type().is_char_device() {
        return open_devdax(config, file, metadata.rdev());
    }
    let bytes = settle_size(config, &file, metadata.len())?;
    let statfs =
        rustix::fs::fstatfs(&file).map_err(|errno| os("look at", &config.path)(errno.into()))?;
    match i128::from(statfs.f_type) {
        HUGETLBFS_MAGIC => {
            let page = u64::try_from(statfs.f_bsize).unwrap_or(0);
            open_ram_file(config, file, bytes, page)
        }
        TMPFS_MAGIC | RAMFS_MAGIC => open_ram_file(config, file, bytes, 0),
        _ => open_disk_file(config, file, bytes),
    }
}

/// Checks the size of a file, gives a new one its size, and sees to it that it has no holes: a
/// store to one would be a SIGBUS when the disk is full.
fn settle_size(config: &PmemConfig, file: &File, old: u64) -> Result<usize, BdevError> {
    let path = &config.path;
    let fresh = old == 0 && config.create_file;
    let size = match config.size {
        Some(size) if fresh || size == old => size,
        Some(size) => {
            let why = format!("it has {old} bytes, not the {size} that were given");
            return Err(invalid(path, &why));
        }
        None => old,
    };
    let bytes = mappable(config, size)?;
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP) if fresh => {
            write_zeroes(file, size).map_err(|error| restore(file, path, error))?;
        }
        Err(Errno::OPNOTSUPP) => {
            let metadata = file.metadata().map_err(os("look at", path))?;
            if metadata.blocks().saturating_mul(512) < size {
                let why = "it has holes, and its file system can't allocate them";
                return Err(not_supported(path, why));
            }
        }
        Err(errno) if fresh => return Err(restore(file, path, errno.into())),
        Err(errno) => return Err(os("allocate", path)(errno.into())),
    }
    if fresh {
        // The file and its name must outlive a power failure before anything in it matters.
        file.sync_all().map_err(os("sync", path))?;
        sync_parent(path)?;
    }
    Ok(bytes)
}

/// Makes a file that could not be allocated empty again, as it was.
fn restore(file: &File, path: &Path, error: io::Error) -> BdevError {
    let _ = file.set_len(0);
    os("allocate", path)(error)
}

fn write_zeroes(mut file: &File, size: u64) -> io::Result<()> {
    let zeroes = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let now = usize::try_from(left).map_or(zeroes.len(), |left| left.min(zeroes.len()));
        file.write_all(zeroes.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    Ok(())
}

fn sync_parent(path: &Path) -> Result<(), BdevError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = File::open(parent).map_err(os("open", parent))?;
    directory.sync_all().map_err(os("sync", parent))
}

/// A file on tmpfs, ramfs or hugetlbfs, whose pages are `huge` bytes if not 0.
fn open_ram_file(
    config: &PmemConfig,
    file: File,
    bytes: usize,
    huge: u64,
) -> Result<Opened, BdevError> {
    let path = &config.path;
    let persistence = match config.persistence {
        PersistenceWish::Auto | PersistenceWish::Volatile => Persistence::Volatile,
        PersistenceWish::Msync => {
            tracing::warn!(path = %path.display(), "synced as asked, but this file is only in RAM");
            Persistence::Msync
        }
        PersistenceWish::Dax => {
            return Err(not_supported(path, "a file in RAM can't be dax"));
        }
    };
    if huge != 0 && !(bytes as u64).is_multiple_of(huge) {
        let why = format!("its size, {bytes} bytes, is not a multiple of its {huge}-byte pages");
        return Err(invalid(path, &why));
    }
    let page = usize::try_from(huge).unwrap_or(0);
    let mapping = Mapping::file(file, bytes, page).map_err(os("map", path))?;
    mapping.advise_huge();
    populate(&mapping, path)?;
    Ok(Opened {
        medium: medium(mapping, persistence, config)?,
        kind: PmemKind::Memory,
        page_size: huge,
    })
}

/// A file on any other file system: fsdax if it can be mapped so.
fn open_disk_file(config: &PmemConfig, file: File, bytes: usize) -> Result<Opened, BdevError> {
    let path = &config.path;
    let wish = config.persistence;
    let (file, kind) = match Mapping::file_sync(file, bytes) {
        Ok(mapping) if matches!(wish, PersistenceWish::Auto | PersistenceWish::Dax) => {
            mapping.advise_huge();
            populate(&mapping, path)?;
            return Ok(Opened {
                medium: medium(mapping, Persistence::Dax, config)?,
                kind: PmemKind::Fsdax,
                page_size: 0,
            });
        }
        Ok(mapping) => {
            let file = mapping.into_file();
            (file.map_err(os("open", path))?, PmemKind::Fsdax)
        }
        Err((_, error)) if wish == PersistenceWish::Dax => {
            let why = format!(
                "dax was asked for, but the file can't be mapped with MAP_SYNC ({error}): it is \
                 not on a file system mounted with DAX"
            );
            return Err(not_supported(path, &why));
        }
        Err((file, _)) => (file, PmemKind::File),
    };
    let persistence = if wish == PersistenceWish::Volatile {
        Persistence::Volatile
    } else {
        Persistence::Msync
    };
    // Not populated: that would read the whole file and mark every page as changed.
    let mapping = Mapping::file(file, bytes, 0).map_err(os("map", path))?;
    mapping.advise_huge();
    Ok(Opened {
        medium: medium(mapping, persistence, config)?,
        kind,
        page_size: 0,
    })
}

/// Where the kernel describes the character device `rdev`, which must be a DAX device.
fn devdax_attributes(path: &Path, rdev: u64) -> Result<PathBuf, BdevError> {
    let sys = PathBuf::from(format!(
        "/sys/dev/char/{}:{}",
        rustix::fs::major(rdev),
        rustix::fs::minor(rdev)
    ));
    let subsystem = fs::read_link(sys.join("subsystem")).unwrap_or_default();
    if subsystem.file_name().is_none_or(|name| name != "dax") {
        return Err(not_supported(
            path,
            "a character device, but not a DAX device",
        ));
    }
    Ok(sys)
}

fn number(file: &Path) -> Result<u64, BdevError> {
    let text = fs::read_to_string(file).map_err(os("read", file))?;
    let text = text.trim();
    text.parse()
        .map_err(|_| invalid(file, &format!("{text:?} is not a number")))
}

/// Opens what exists at `path` for reading, locks it without waiting, and says how many bytes it
/// has and, if it is a DAX device, which can only be mapped, how large its pages are.
///
/// # Errors
/// All kinds of [`BdevError`]; [`BdevError::Busy`] if somebody holds the lock.
pub(super) fn open_to_read(path: &Path) -> Result<(File, u64, Option<u64>), BdevError> {
    refuse_type(&fs::metadata(path).map_err(os("look at", path))?, path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| os("open", path)(errno.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(os("look at", path))?;
    refuse_type(&metadata, path)?;
    lock(&file, path, Duration::ZERO)?;
    if !metadata.file_type().is_char_device() {
        return Ok((file, metadata.len(), None));
    }
    let sys = devdax_attributes(path, metadata.rdev())?;
    let size = number(&sys.join("size"))?;
    let page = number(&sys.join("align")).unwrap_or(0);
    Ok((file, size, Some(page)))
}

fn open_devdax(config: &PmemConfig, file: File, rdev: u64) -> Result<Opened, BdevError> {
    let path = &config.path;
    let sys = devdax_attributes(path, rdev)?;
    let persistence = match config.persistence {
        PersistenceWish::Auto | PersistenceWish::Dax => Persistence::Dax,
        PersistenceWish::Volatile => Persistence::Volatile,
        PersistenceWish::Msync => {
            // Its fsync returns without doing anything.
            return Err(not_supported(path, "a DAX device can't be synced"));
        }
    };
    let size = number(&sys.join("size"))?;
    if config.size.is_some_and(|wanted| wanted != size) {
        let why = format!("it has {size} bytes, not the size that was given");
        return Err(invalid(path, &why));
    }
    let bytes = mappable(config, size)?;
    let page_size = number(&sys.join("align")).unwrap_or(0);
    let page = usize::try_from(page_size).unwrap_or(0);
    let mapping = Mapping::file(file, bytes, page).map_err(os("map", path))?;
    populate(&mapping, path)?;
    Ok(Opened {
        medium: medium(mapping, persistence, config)?,
        kind: PmemKind::Devdax,
        page_size,
    })
}
