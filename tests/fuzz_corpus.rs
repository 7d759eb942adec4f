//! The corpora of the fuzz targets, replayed: what fuzzing has found stays found.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

#[path = "../fuzz/checks/mod.rs"]
mod checks;

use std::fs;
use std::path::{Path, PathBuf};

/// Says which input was under way if the test fails.
struct SayInput(PathBuf);

impl Drop for SayInput {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {}", self.0.display());
        }
    }
}

/// Gives every input of `target`'s corpus to `check`.
fn replay(target: &str, check: impl Fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = root.join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&corpus).unwrap();
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    for path in inputs {
        let say = SayInput(path);
        check(&fs::read(&say.0).unwrap());
    }
    check(&[]);
}

#[test]
fn media() {
    replay("media", checks::media::check);
}

#[test]
fn nbd_wire() {
    replay("nbd_wire", checks::nbd_wire::check);
}

#[test]
fn rpc() {
    replay("rpc", checks::rpc::check);
}

#[test]
fn pool_open() {
    replay("pool_open", checks::pool_open::check);
}

#[test]
fn nbd_session() {
    replay("nbd_session", checks::nbd_session::check);
}

#[test]
fn nvmf_wire() {
    replay("nvmf_wire", checks::nvmf_wire::check);
}

#[test]
fn nvmf_session() {
    replay("nvmf_session", checks::nvmf_session::check);
}

#[test]
fn vhost_chain() {
    replay("vhost_chain", checks::vhost::chain::check);
}

#[test]
fn vhost_session() {
    replay("vhost_session", checks::vhost::session::check);
}
