//! What sysfs knows about a block device.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a block device and the disk that it is part of are described.
#[derive(Debug)]
pub(super) struct BlockSysfs {
    /// The device itself: a disk or a partition.
    own: PathBuf,
    /// The whole disk; the same as `own` unless that is a partition.
    disk: PathBuf,
}

fn attribute(dir: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(dir.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

impl BlockSysfs {
    /// The description of device `major:minor` below `root` (`/sys`), if there is one.
    pub(super) fn find(root: &Path, major: u32, minor: u32) -> Option<Self> {
        let link = root.join(format!("dev/block/{major}:{minor}"));
        let own = fs::canonicalize(link).ok()?;
        let disk = match own.parent() {
            Some(parent) if own.join("partition").exists() => parent.to_owned(),
            _ => own.clone(),
        };
        Some(Self { own, disk })
    }

    /// Whether a completed write may still be in a cache that power loss empties. If the kernel
    /// does not tell, it may.
    pub(super) fn has_volatile_cache(&self) -> bool {
        let mode = attribute(&self.disk, "queue/write_cache");
        mode.is_none_or(|mode| mode != "write through")
    }

    /// Whether the device can make blocks zero without being sent zeroes.
    pub(super) fn zeroes_blocks(&self) -> bool {
        attribute(&self.disk, "queue/write_zeroes_max_bytes")
            .and_then(|bytes| bytes.parse::<u64>().ok())
            .is_some_and(|bytes| bytes > 0)
    }

    /// What identifies the device wherever it is plugged in, the partition's number included.
    pub(super) fn identity(&self) -> Option<String> {
        const SOURCES: [&str; 6] = [
            "wwid",
            "device/wwid",
            "serial",
            "device/serial",
            "dm/uuid",
            "loop/backing_file",
        ];
        let found = SOURCES
            .iter()
            .find_map(|name| Some(format!("{name}={}", attribute(&self.disk, name)?)))?;
        let partition = attribute(&self.own, "partition").unwrap_or_default();
        Some(format!("{found} partition={partition}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A disk 8:0 with a partition 8:1.
    fn tree(attributes: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("devices/x/block/sda");
        for dir in ["queue", "device", "sda1"] {
            fs::create_dir_all(disk.join(dir)).unwrap();
        }
        fs::create_dir_all(root.path().join("dev/block")).unwrap();
        symlink(&disk, root.path().join("dev/block/8:0")).unwrap();
        symlink(disk.join("sda1"), root.path().join("dev/block/8:1")).unwrap();
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        for (name, value) in attributes {
            fs::write(disk.join(name), value).unwrap();
        }
        root
    }

    #[test]
    fn a_partition_asks_its_disk() {
        let root = tree(&[
            ("queue/write_cache", "write through\n"),
            ("queue/write_zeroes_max_bytes", "65536\n"),
            ("device/serial", "  S3R1AL\n"),
        ]);
        let disk = BlockSysfs::find(root.path(), 8, 0).unwrap();
        let part = BlockSysfs::find(root.path(), 8, 1).unwrap();
        assert!(!disk.has_volatile_cache() && !part.has_volatile_cache());
        assert!(disk.zeroes_blocks() && part.zeroes_blocks());
        assert_eq!(disk.identity().unwrap(), "device/serial=S3R1AL partition=");
        assert_eq!(part.identity().unwrap(), "device/serial=S3R1AL partition=1");
    }

    #[test]
    fn a_cache_is_volatile_unless_said_otherwise() {
        let root = tree(&[("queue/write_cache", "write back\n")]);
        let disk = BlockSysfs::find(root.path(), 8, 0).unwrap();
        assert!(disk.has_volatile_cache());
        assert!(!disk.zeroes_blocks());
        assert_eq!(disk.identity(), None);
        let silent = tree(&[]);
        let disk = BlockSysfs::find(silent.path(), 8, 0).unwrap();
        assert!(disk.has_volatile_cache());
    }

    #[test]
    fn an_unknown_device_is_not_described() {
        let root = tree(&[]);
        assert!(BlockSysfs::find(root.path(), 9, 0).is_none());
    }
}
