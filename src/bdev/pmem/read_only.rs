//! A medium that is only looked at: opened for reading, locked, and never changed by one byte.

use super::map::Mapping;
use super::open::open_to_read;
use crate::bdev::{Barrier, BdevError, IoBuf, MemView, Persistence, Pmem, PmemError};
use reactors::Cx;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How its bytes are read.
#[derive(Debug)]
enum Source {
    /// By system calls: a file that shrinks meanwhile is an error, not a signal.
    File(File),
    /// A DAX device can't be read otherwise.
    Mapped(Mapping),
}

/// A file or DAX device, open for reading and locked against everybody else.
///
/// As a [`Pmem`] it can only be loaded from; what lies behind its end, or can't be read, is
/// [`PmemError::Poison`].
#[derive(Debug)]
pub struct ReadOnlyPmem {
    source: Source,
    bytes: u64,
}

impl ReadOnlyPmem {
    /// Opens what exists at `path`. Does not wait for its lock.
    ///
    /// # Errors
    /// [`BdevError::Busy`] if another process has it open; what is missing, can't be read, or is
    /// neither a file nor a DAX device.
    pub fn open(path: &Path) -> Result<Self, BdevError> {
        let (file, bytes, device_page) = open_to_read(path)?;
        let source = if let Some(page) = device_page {
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            let page = usize::try_from(page).unwrap_or(0);
            let mapping =
                Mapping::file_to_read(file, len, page).map_err(|source| BdevError::Os {
                    what: format!("map {}", path.display()),
                    source,
                })?;
            Source::Mapped(mapping)
        } else {
            Source::File(file)
        };
        Ok(Self { source, bytes })
    }
}

impl Pmem for ReadOnlyPmem {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Nothing is stored, so nothing can be lost.
    fn persistence(&self) -> Persistence {
        match self.source {
            Source::File(_) => Persistence::Msync,
            Source::Mapped(_) => Persistence::Dax,
        }
    }

    /// # Panics
    /// Always: whoever stores here has our own bug. The file would not take it either.
    fn store(&self, at: u64, src: &[u8]) -> Result<(), PmemError> {
        unreachable!("{} bytes for {at:#x} of a read-only medium", src.len());
    }

    fn load(&self, at: u64, dst: &mut [u8]) -> Result<(), PmemError> {
        let len = dst.len() as u64;
        let poison = PmemError::Poison { at, len };
        if at.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(poison);
        }
        match &self.source {
            Source::File(file) => file.read_exact_at(dst, at).map_err(|_| poison),
            Source::Mapped(mapping) => mapping.load(at, dst),
        }
    }

    /// A copy.
    fn view(&self, at: u64, len: usize) -> Result<MemView, PmemError> {
        let mut buf = IoBuf::zeroed(len);
        self.load(at, &mut buf)?;
        Ok(MemView::from_buf(buf))
    }

    /// Views are copies.
    fn check(&self, _at: u64, _len: usize) -> Result<(), PmemError> {
        Ok(())
    }

    /// Nothing: we have stored nothing, and what others left stays as it is.
    fn write_back(&self, _at: u64, _len: u64) {}

    fn open_barrier(&self, _cx: &Cx) -> Result<Box<dyn Barrier>, BdevError> {
        Err(BdevError::NotSupported(
            "a read-only medium has no barrier".into(),
        ))
    }

    fn barrier_wait(&self) -> Result<(), PmemError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_up_to_the_end_also_of_a_file_that_shrank() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        std::fs::write(&path, [7; 8192]).unwrap();
        let pmem = ReadOnlyPmem::open(&path).unwrap();
        assert_eq!(pmem.bytes(), 8192);
        let mut bytes = [0; 100];
        pmem.load(8092, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 100]);
        let poison = |at| Err(PmemError::Poison { at, len: 100 });
        assert_eq!(pmem.load(8093, &mut bytes), poison(8093));
        assert_eq!(pmem.load(u64::MAX, &mut bytes), poison(u64::MAX));
        assert!(matches!(ReadOnlyPmem::open(&path), Err(BdevError::Busy(_))));
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(pmem.load(8000, &mut bytes), poison(8000));
    }
}
