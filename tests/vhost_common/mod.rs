//! Front ends for the tests of the vhost target: the published `virtio-driver` crate, and one by hand.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes it, and uses a part of it"
)]

pub mod disk;
pub mod raw;

use serde_json::json;
use std::path::PathBuf;

use crate::common::Service;

/// Offers `bdev` as "c0"; returns the socket.
pub fn controller(service: &Service, bdev: &str) -> PathBuf {
    let params = json!({"ctrlr": "c0", "dev_name": bdev});
    assert_eq!(service.call("vhost_create_blk_controller", params), true);
    service.data("c0")
}
