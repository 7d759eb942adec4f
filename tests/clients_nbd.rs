//! The embedded default with the clients that people have: libnbd's, QEMU's and fio.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod client_common;
mod common;

use client_common::{
    Layout, Random, cache, elapsed, flush_cache, run, stop_within, tool, wait_for,
};
use common::Service;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// An orderly stop may not take longer.
const STOP: Duration = Duration::from_secs(5);
const DISK_BYTES: u64 = 1 << 30;

fn embedded() -> Service {
    Service::start_in(tempfile::tempdir().unwrap(), &[])
}

fn uri(service: &Service, export: &str) -> String {
    format!(
        "nbd+unix:///{export}?socket={}",
        service.data("nbd.sock").display()
    )
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A sparse image as large as the disk: random pieces, some at odd sectors, and holes.
fn make_image(path: &Path, random: &mut Random) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    for _ in 0..48 {
        let bytes = random.bytes(512 * 1024);
        let sectors = DISK_BYTES / 512 - 1024;
        file.write_all_at(&bytes, random.below(sectors) * 512)
            .unwrap();
    }
}

/// `qemu-img compare` of a raw image with the export.
fn compare(image: &Path, uri: &str) {
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &text(image), uri],
    );
}

/// libnbd finds the export, and a map of all of it.
fn is_listed_and_mapped(service: &Service, uri_text: &str) {
    assert!(
        service.ready["nbd"]
            .as_array()
            .unwrap()
            .iter()
            .any(|address| address.as_str().unwrap().starts_with("unix:")),
        "{}",
        service.ready
    );
    let listed = run("nbdinfo", &["--list", uri_text]);
    assert!(listed.contains("export=\"cache0\""), "{listed}");
    assert!(listed.contains("can_fua: true"), "{listed}");
    let map: Value = serde_json::from_str(&run("nbdinfo", &["--map", "--json", uri_text])).unwrap();
    let mapped = map.as_array().unwrap().iter();
    let mapped: u64 = mapped
        .map(|extent| extent["length"].as_u64().unwrap())
        .sum();
    assert_eq!(mapped, DISK_BYTES, "{map}");
}

#[test]
fn libnbd_and_qemu_copy_images_through_the_embedded_default() {
    if !["nbdinfo", "nbdcopy", "qemu-img"].into_iter().all(tool) {
        return;
    }
    let mut random = Random::new("images");
    let service = embedded();
    let uri_text = uri(&service, "cache0");
    is_listed_and_mapped(&service, &uri_text);
    // Something is to be left for the next start, however long the copies take.
    service.call(
        "bdev_pmcache_set_options",
        json!({"name": "cache0", "writeback_delay_ms": 3_600_000}),
    );
    let image = service.dir().join("image");
    make_image(&image, &mut random);
    run("nbdcopy", &[&text(&image), &uri_text]);
    let back = service.dir().join("back");
    run("nbdcopy", &[&uri_text, &text(&back)]);
    compare(&image, &uri_text);
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &text(&image),
            &text(&back),
        ],
    );
    // QEMU's own way in, over what is there.
    let other = service.dir().join("other");
    make_image(&other, &mut random);
    run(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            &text(&other),
            &uri_text,
        ],
    );
    compare(&other, &uri_text);

    let dirty = cache(&service)["dirty_bytes"].as_u64().unwrap();
    assert!(dirty > 0, "nothing is left to be kept");
    let (dir, took) = stop_within(service, STOP);
    eprintln!("stopped in {took:?}");
    let service = Service::start_in(dir, &[]);
    let kept = service.ready["caches"][0]["dirty_bytes"].as_u64().unwrap();
    assert!(kept > 0, "the dirty data are kept: {}", service.ready);
    compare(&other, &uri(&service, "cache0"));
    flush_cache(&service, Duration::from_secs(60));
    let (dir, _) = stop_within(service, STOP);
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &text(&other),
            &text(&dir.path().join("data/disk.img")),
        ],
    );
}

fn qemu_io(uri: &str, commands: &[&str]) {
    let mut args = vec!["-f", "raw"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(uri);
    let printed = run("qemu-io", &args);
    // It ends with 0 also after a pattern that differs.
    for bad in ["failed", "error", "Invalid"] {
        assert!(!printed.contains(bad), "{commands:?}: {printed}");
    }
}

#[test]
fn qemu_io_writes_patterns_at_odd_sectors_and_finds_them_after_a_restart() {
    if !tool("qemu-io") {
        return;
    }
    let service = embedded();
    let edge = DISK_BYTES - 512;
    let last = format!("write -P 0x77 {edge} 512");
    qemu_io(
        &uri(&service, "cache0"),
        &[
            "write -P 0x11 512 1536",
            "write -f -P 0x22 5632 512",
            // Across a border of lanes, at an odd sector.
            "write -P 0x33 4193792 1536",
            "write -P 0x44 1M 64k",
            "flush",
            "discard 1049088 3072",
            "write -z 1052672 512",
            "write -z -u 1054720 1024",
            "write -P 0x55 1055232 512",
            &last,
            "flush",
        ],
    );
    let last = format!("read -P 0x77 {edge} 512");
    let expected = [
        "read -P 0 0 512",
        "read -P 0x11 512 1536",
        "read -P 0 2048 3584",
        "read -P 0x22 5632 512",
        "read -P 0 6144 512",
        "read -P 0x33 4193792 1536",
        "read -P 0x44 1M 512",
        "read -P 0 1049088 3072",
        "read -P 0x44 1052160 512",
        "read -P 0 1052672 512",
        "read -P 0x44 1053184 1536",
        "read -P 0 1054720 512",
        "read -P 0x55 1055232 512",
        "read -P 0x44 1055744 512",
        &last,
    ];
    qemu_io(&uri(&service, "cache0"), &expected);
    let (dir, _) = stop_within(service, STOP);
    let service = Service::start_in(dir, &[]);
    qemu_io(&uri(&service, "cache0"), &expected);
    flush_cache(&service, Duration::from_secs(60));
    let (dir, _) = stop_within(service, STOP);
    qemu_io(&text(&dir.path().join("data/disk.img")), &expected);
}

/// fio's random writes of odd sizes, each read back and checked after every `size` bytes.
fn fio_verifies(service: &Service, export: &str, size: u64, loops: u64) {
    let begun = SystemTime::now();
    let uri = uri(service, export);
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            &format!("--size={size}"),
            &format!("--loops={loops}"),
            &format!("--aux-path={}", service.dir().display()),
        ],
    );
    eprintln!(
        "fio: {} MiB and their check in {:?}",
        (loops * size) >> 20,
        elapsed(begun)
    );
}

#[test]
fn fio_writes_ten_times_the_pool_and_verifies_it() {
    if !tool("fio") {
        return;
    }
    let pool = 16 << 20;
    let layout = Layout {
        segment_bytes: 512 << 10,
        segments: pool / (512 << 10),
        lanes: 2,
        disk_bytes: 2 * pool,
        kset_flush_ms: 1000,
        may_fail: false,
        persistence: "auto",
    };
    let service = layout.create(&[]);
    fio_verifies(&service, "c", layout.disk_bytes, 5);
    let written = client_common::stats(&service)["blocks"]["volume_wr_bytes"].as_u64();
    assert!(written >= Some(10 * pool), "{written:?} bytes");
    wait_for("writeback under way", Duration::from_secs(10), || {
        client_common::stats(&service)["writeback"]["bytes"].as_u64() > Some(0)
    });
    stop_within(service, STOP);
}
