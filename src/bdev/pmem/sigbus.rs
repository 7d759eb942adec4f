//! The SIGBUS guard: a page of a medium that can't be accessed is an error of the requests that want
//! it, not the end of the process.
//!
//! A load or store faults with SIGBUS where a file was truncated, where the disk gave an I/O error for
//! a page, or where the memory is poisoned. The handler, on the thread that faulted,
//!
//! 1. finds the mapping of the address in a table;
//! 2. marks the page in the mapping's bitmap, and counts it;
//! 3. maps an anonymous page in its place, and returns: the instruction is run again, on memory that
//!    means nothing.
//!
//! Whoever accesses a mapping asks [`Guarded::check`] *afterwards*, and believes nothing if there is a
//! marked page in its range. Marks are never taken back while the mapping lives, so each later access
//! is an error too, also by code and devices that only read from a view: they see the replacement, and
//! whoever gave them the view asks afterwards. Unless something was marked, a check is one load.
//!
//! **Why nobody is fooled.** Marks come before the replacement. Who faults itself runs the handler
//! before its own check. Another thread that *reads* the replacement does so after it was mapped, so
//! after the mark, and looks for marks after that read: the order of loads is kept by x86, and by the
//! acquire fence elsewhere. Another thread whose *store* goes to the replacement may on x86 have looked
//! for marks early, and not see this one. Then its store counts as made just before the page was lost:
//! every later load is an error, as if it had gone to the page itself. What the kernel reads for a
//! device follows the same order, and where there is no replacement yet it says `EFAULT`.
//!
//! **The table** is read in a signal handler, so there are no locks and nothing in it is freed. A slot
//! is guarded by a version, odd while it changes. A reader skips what changes under its eyes: the
//! mapping it is looking for can't, since the thread that faulted keeps it alive. For the same reason
//! the marks may be followed by pointer once a slot fits.
//!
//! **The unit** is the page of the mapping, which for huge pages and DAX devices is larger than the
//! system's: parts of it can't be replaced. If the kernel says that more is lost than one page, the
//! others fault by themselves. Each lost page among good ones is a mapping of its own to the kernel,
//! which bounds the number of these for a process. So beyond [`ISLANDS_MAX`] of them, and if a page
//! can't be replaced, the whole mapping is, and all of it counts as lost.
//!
//! **All else** dies of SIGBUS as it would without us: what is not in the table, what a process sends,
//! and what comes from a misaligned access goes to whoever handled SIGBUS before.
#![expect(
    unsafe_code,
    reason = "a signal handler that maps pages in the place of lost ones"
)]

use crate::bdev::PmemError;
use libc::{c_int, c_void, siginfo_t};
use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence,
};
use std::sync::{Arc, OnceLock};

/// Mappings that can be guarded at a time.
const SLOTS: usize = 1024;
/// Lost pages of a mapping that had no lost neighbour. Each costs two of the kernel's mappings, of which
/// a process has 65530 by default.
const ISLANDS_MAX: usize = 4096;

/// A slot of the table.
#[derive(Debug)]
struct Slot {
    /// Odd while the rest changes.
    version: AtomicUsize,
    base: AtomicUsize,
    /// 0 if the slot is free.
    bytes: AtomicUsize,
    marks: AtomicPtr<Marks>,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicUsize::new(0),
        base: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        marks: AtomicPtr::new(ptr::null_mut()),
    }
}; SLOTS];

/// What handled SIGBUS before us.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl Slot {
    /// Takes the slot if it is free and nobody else is about to.
    fn claim(&self, base: usize, bytes: usize, marks: *mut Marks) -> bool {
        let version = self.version.load(Ordering::Acquire);
        let busy = version % 2 == 1 || self.bytes.load(Ordering::Relaxed) != 0;
        if busy
            || self
                .version
                .compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
        {
            return false;
        }
        self.write(version, base, bytes, marks);
        true
    }

    /// Frees the slot. Its owner alone calls this.
    fn release(&self) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        self.write(version, 0, 0, ptr::null_mut());
    }

    /// Changes a slot whose version has been made odd; `version` is the even one before.
    fn write(&self, version: usize, base: usize, bytes: usize, marks: *mut Marks) {
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.marks.store(marks, Ordering::Relaxed);
        self.version.store(version + 2, Ordering::Release);
    }

    /// The marks of the mapping that contains `address`, if it is this one and does not change.
    fn find(&self, address: usize) -> Option<*mut Marks> {
        let version = self.version.load(Ordering::Acquire);
        let base = self.base.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let marks = self.marks.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let stable = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        let inside = address.wrapping_sub(base) < bytes;
        (stable && inside).then_some(marks)
    }
}

/// Which units of a mapping are lost.
#[derive(Debug)]
struct Marks {
    base: usize,
    bytes: usize,
    /// Bytes that are replaced at a time; a power of two.
    unit: usize,
    /// Units that are lost, each counted after its bit was set and before it is replaced.
    lost: AtomicU64,
    /// Those that had no lost neighbour when they were marked.
    islands: AtomicUsize,
    /// All units are lost.
    all: AtomicBool,
    /// A bit for each unit. Zeroed pages of their own: those that are never touched cost nothing.
    bits: MmapRaw,
    /// How many were lost when a check logged it last.
    told: AtomicU64,
}

impl Marks {
    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!((index + 1) * 8 <= self.bits.len());
        // SAFETY: a multiple of 8 bytes from the start of a mapping, inside it (it was made with a bit
        // for every unit, and all indices come from offsets below `bytes`), zeroed when made, and
        // accessed as `AtomicU64` only.
        unsafe { AtomicU64::from_ptr(self.bits.as_mut_ptr().cast::<u64>().add(index)) }
    }

    /// Also for a unit beyond the end, which never is.
    fn is_marked(&self, unit: usize) -> bool {
        let inside = unit < self.bytes.div_ceil(self.unit);
        inside && self.word(unit / 64).load(Ordering::Relaxed) >> (unit % 64) & 1 == 1
    }

    /// Marks the unit that contains `address`, and replaces it. False if nothing can be done.
    ///
    /// In a signal handler: atomics and one system call.
    fn lose(&self, address: usize) -> bool {
        let unit = (address - self.base) / self.unit;
        let bit = 1 << (unit % 64);
        if self.word(unit / 64).fetch_or(bit, Ordering::SeqCst) & bit == 0 {
            self.lost.fetch_add(1, Ordering::SeqCst);
            if !self.is_marked(unit.wrapping_sub(1)) && !self.is_marked(unit + 1) {
                self.islands.fetch_add(1, Ordering::SeqCst);
            }
        }
        let offset = unit * self.unit;
        if self.islands.load(Ordering::SeqCst) <= ISLANDS_MAX
            && replace(self.base + offset, self.unit.min(self.bytes - offset))
        {
            return true;
        }
        self.all.store(true, Ordering::SeqCst);
        self.lost.fetch_add(1, Ordering::SeqCst);
        replace(self.base, self.bytes)
    }

    /// The first lost bytes of a range, offset and length.
    fn first_lost(&self, at: usize, len: usize) -> Option<(usize, usize)> {
        if len == 0 {
            return None;
        }
        let end = at + len;
        if self.all.load(Ordering::SeqCst) {
            return Some((at, len));
        }
        let unit = (at / self.unit..=(end - 1) / self.unit).find(|unit| self.is_marked(*unit))?;
        let from = at.max(unit * self.unit);
        let to = end.min((unit + 1).saturating_mul(self.unit));
        Some((from, to - from))
    }
}

/// Maps zeroed anonymous memory over `bytes` at `start`. In a signal handler.
fn replace(start: usize, bytes: usize) -> bool {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the range lies in a mapping of ours, which a thread that is accessing it keeps alive.
    // Its old content can't be accessed anyway, or is given up as a whole. The call is a bare system
    // call in every libc for Linux, so a handler may make it.
    let mapped = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(start),
            bytes,
            access,
            flags,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// A mapping that is in the table.
#[derive(Debug)]
pub(crate) struct Guarded {
    marks: Arc<Marks>,
    slot: &'static Slot,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.slot.release();
    }
}

impl Guarded {
    /// Guards `bytes` at `base` until it is dropped, which must be before they are unmapped. `unit` is
    /// what can be replaced of the mapping at a time; 0 for the system's page.
    ///
    /// # Errors
    /// No memory for the bitmap, no room in the table (`ENFILE`), or what sigaction says.
    pub(crate) fn new(base: usize, bytes: usize, unit: usize) -> io::Result<Self> {
        install()?;
        let unit = if unit.is_power_of_two() {
            unit.max(system_page())
        } else {
            system_page()
        };
        let words = bytes.div_ceil(unit).div_ceil(64);
        let marks = Arc::new(Marks {
            base,
            bytes,
            unit,
            lost: AtomicU64::new(0),
            islands: AtomicUsize::new(0),
            all: AtomicBool::new(false),
            bits: MmapRaw::from(MmapOptions::new().len(words * 8).map_anon()?),
            told: AtomicU64::new(0),
        });
        let pointer = Arc::as_ptr(&marks).cast_mut();
        match TABLE.iter().find(|slot| slot.claim(base, bytes, pointer)) {
            Some(slot) => Ok(Self { marks, slot }),
            None => Err(io::Error::from_raw_os_error(libc::ENFILE)),
        }
    }

    /// Whether what was copied to or from these bytes, which are inside, went to or came from the
    /// medium. To be asked after the copy.
    ///
    /// # Errors
    /// [`PmemError::Poison`] with the first of them that are lost.
    pub(crate) fn check(&self, at: u64, len: usize) -> Result<(), PmemError> {
        // The copy is over: for the compiler, and for the CPU as far as loads are concerned.
        compiler_fence(Ordering::SeqCst);
        fence(Ordering::Acquire);
        if self.marks.lost.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        self.check_marks(at, len)
    }

    #[cold]
    fn check_marks(&self, at: u64, len: usize) -> Result<(), PmemError> {
        let offset = usize::try_from(at).unwrap_or(usize::MAX);
        let Some((at, len)) = self.marks.first_lost(offset, len) else {
            return Ok(());
        };
        let error = PmemError::Poison {
            at: at as u64,
            len: len as u64,
        };
        // Each page of a large loss is met by itself: a line whenever it has become twice as much.
        let lost = self.marks.lost.load(Ordering::Relaxed);
        let told = self.marks.told.load(Ordering::Relaxed);
        if lost >= 2 * told && lost > told {
            // Two threads may both tell.
            self.marks.told.store(lost, Ordering::Relaxed);
            tracing::error!(lost_bytes = self.lost_bytes(), %error, "the medium has lost data");
        }
        Err(error)
    }

    /// How many bytes are known to be lost.
    pub(super) fn lost_bytes(&self) -> u64 {
        if self.marks.all.load(Ordering::Relaxed) {
            return self.marks.bytes as u64;
        }
        self.marks.lost.load(Ordering::Relaxed) * self.marks.unit as u64
    }
}

fn system_page() -> usize {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096)
}

/// The action for SIGBUS. With `new` it becomes that.
fn sigaction(new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    // SAFETY: a structure of integers and nullable pointers.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: both point to a structure that outlives the call, or `new` to none.
    match unsafe { libc::sigaction(libc::SIGBUS, new, &raw mut old) } {
        0 => Ok(old),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs the handler, once in the life of the process.
fn install() -> io::Result<()> {
    static ERRNO: OnceLock<c_int> = OnceLock::new();
    let errno = *ERRNO.get_or_init(|| {
        let installed = sigaction(None).and_then(|before| {
            // It is the first and only time. Known before the handler can run.
            let _ = BEFORE.set(before);
            // SAFETY: as in `sigaction`.
            let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
            ours.sa_sigaction = handle as *const () as usize;
            // On the thread's alternate stack, where the one before us may have to be.
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            sigaction(Some(&ours))
        });
        match installed {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EINVAL),
        }
    });
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The signal handler. Nothing in it locks, allocates or logs.
extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with `SA_SIGINFO` a valid structure; for SIGBUS it has an
    // address, unless a process sent it, which `code` tells. The thread's errno is its own.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let code = (*info).si_code;
        if code <= 0 || !is_ours(code, (*info).si_addr().addr()) {
            pass_on(signal, info, context);
        }
        *errno = saved;
    }
}

/// Deals with a SIGBUS of the kernel's at `address` if that is in one of our mappings.
fn is_ours(code: c_int, address: usize) -> bool {
    let Some(marks) = TABLE.iter().find_map(|slot| slot.find(address)) else {
        return false;
    };
    match code {
        libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR => {
            // SAFETY: this very thread was accessing the mapping when it faulted, so it is alive, and
            // with it its slot and its marks.
            unsafe { &*marks }.lose(address)
        }
        // Found while nobody was there: whoever comes by will fault.
        libc::BUS_MCEERR_AO => true,
        _ => false,
    }
}

/// Leaves the signal to whoever would have had it without us.
///
/// # Safety
/// With the arguments of a signal handler, in one.
unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: as in `handle`.
    let sent = unsafe { (*info).si_code } <= 0;
    let before = BEFORE.get();
    match before.map_or(libc::SIG_DFL, |before| before.sa_sigaction) {
        libc::SIG_IGN if sent => {}
        // An instruction that faults can't be ignored: it faults again, now without a handler.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: both may be called in a handler; a signal that is raised waits for its end.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if sent {
                    libc::raise(signal);
                }
            }
        }
        handler if before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: what `sigaction` gave as a handler with this flag has this type.
            unsafe {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        handler => {
            // SAFETY: what `sigaction` gave as a handler without the flag has this type.
            unsafe {
                let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests;
