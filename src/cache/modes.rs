//! What an operator does about modes: see `bypass.rs` for what they mean.

use super::CacheError;
use super::cache::Cache;
use super::options::Mode;

impl Cache {
    /// Changes the mode, on media first, while requests run. Nothing that is dirty is forgotten: until it is
    /// written back, writes that overlap it are kept from the backing. A mode that bypasses writes promises
    /// that the backing alone has what was flushed; with `flush` what is dirty begins to be written back,
    /// and that holds from when this has ended.
    ///
    /// # Errors
    /// [`CacheError::Busy`] if something is dirty that such a mode would have to wait for, without `flush`;
    /// or what [`Cache::set_options`] says.
    pub fn set_mode(&self, mode: Mode, flush: bool) -> Result<(), CacheError> {
        let dirty_bytes = self.dirty_bytes();
        let wants_clean = mode.bypasses() && dirty_bytes > 0;
        if wants_clean && !flush {
            return Err(CacheError::Busy(format!(
                "{dirty_bytes} bytes are dirty: flush, or let the change of mode do it"
            )));
        }
        let mut options = self.options();
        options.mode = mode;
        self.set_options(options)?;
        if wants_clean {
            self.flush_start();
        }
        Ok(())
    }

    /// Takes note that writes may be lost which had bypassed the cache and were acknowledged: FLUSH does
    /// not fail any more. Whoever calls it has read or written them anew.
    pub fn clear_flush_failure(&self) {
        self.shared.bypassed.clear_failure();
        self.shared.kick_writeback();
    }
}
