//! Tagged sectors: what a read may find, given which writes have completed and which are under way.

/// A sector that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where, in bytes.
    pub at: u64,
}
