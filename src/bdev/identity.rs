//! What every bdev must have right before it exists: a name, a block size, a stable uuid.

use super::{Bdev, BdevError, BdevInfo};
use std::sync::Arc;
use uuid::{Builder, Uuid};

/// Longest name of a bdev, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Checks that `name` is 1 to 255 bytes of `[A-Za-z0-9_.:-]`.
///
/// # Errors
/// [`BdevError::Invalid`] with the name.
pub fn check_name(name: &str) -> Result<(), BdevError> {
    let known = |c: u8| c.is_ascii_alphanumeric() || b"_.:-".contains(&c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(known) {
        return Err(BdevError::Invalid(format!(
            "bdev name {name:?} is not 1 to {NAME_BYTES_MAX} bytes of [A-Za-z0-9_.:-]"
        )));
    }
    Ok(())
}

/// Checks that `block_size` is 512 or 4096 bytes.
///
/// # Errors
/// [`BdevError::Invalid`] with the size.
pub fn check_block_size(block_size: u32) -> Result<(), BdevError> {
    if matches!(block_size, 512 | 4096) {
        return Ok(());
    }
    Err(BdevError::Invalid(format!(
        "block size {block_size} is neither 512 nor 4096"
    )))
}

/// A uuid (version 8) that depends on `kind` and `parts` only: the same after a restart.
///
/// 128-bit FNV-1a over the parts, each preceded by its length, so that moving a byte from one part
/// to the next gives another uuid. It tells things apart; it does not resist forgery.
#[must_use]
pub fn derived_uuid(kind: &str, parts: &[&[u8]]) -> Uuid {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = BASIS;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    };
    for part in std::iter::once(kind.as_bytes()).chain(parts.iter().copied()) {
        eat(&(part.len() as u64).to_le_bytes());
        eat(part);
    }
    Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid()
}

/// What a filter named `name` over `base` says of itself: the base's geometry, and an identity that
/// follows from the base's unless one is given.
///
/// # Errors
/// [`BdevError::Invalid`] for a bad name.
pub(super) fn filter_info(
    base: &dyn Bdev,
    name: String,
    product_name: &'static str,
    uuid: Option<Uuid>,
) -> Result<Arc<BdevInfo>, BdevError> {
    check_name(&name)?;
    let below = base.info();
    let derived = || derived_uuid(product_name, &[below.uuid.as_bytes(), name.as_bytes()]);
    let uuid = uuid.unwrap_or_else(derived);
    Ok(Arc::new(BdevInfo {
        name,
        product_name,
        uuid,
        ..(*below).clone()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_depends_on_every_part_and_on_where_it_ends() {
        let uuid = derived_uuid("file", &[b"ab", b"c"]);
        assert_eq!(uuid, derived_uuid("file", &[b"ab", b"c"]));
        assert_ne!(uuid, derived_uuid("file", &[b"a", b"bc"]));
        assert_ne!(uuid, derived_uuid("disk", &[b"ab", b"c"]));
        assert_eq!(uuid.get_version_num(), 8);
    }

    #[test]
    fn names_and_block_sizes_have_bounds() {
        check_name("Malloc0_a.b:c-d").unwrap();
        check_name(&"x".repeat(255)).unwrap();
        for bad in ["", "a b", "a/b", "é", &"x".repeat(256)] {
            assert!(matches!(check_name(bad), Err(BdevError::Invalid(_))));
        }
        check_block_size(512).unwrap();
        check_block_size(4096).unwrap();
        assert!(check_block_size(1024).is_err());
    }
}
