//! A RAM disk that can hold back and fail, a server on stepped reactors, and a client that speaks
//! bytes.
#![allow(dead_code, reason = "each test file uses its part")]

mod client;
mod disk;
pub(crate) mod driver;
pub(crate) mod fake;

#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use client::{Client, GO, hex, meta, named};
pub(crate) use disk::RamDisk;

use pmcache::bdev::Bdev;
use pmcache::target::nbd::{
    ExportConfig, NbdAddress, NbdExports, NbdOptions, NbdServer, PAYLOAD_BYTES_MAX,
};
use reactors::{
    Clock, IdlePolicy, MonotonicClock, Quiescence, Reactor, ReactorConfig, ReactorHandle, ReactorId,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Waits until `condition` holds; stops the test after 20 seconds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = SystemTime::now();
    while !condition() {
        let waited = begun.elapsed().unwrap_or_default();
        assert!(waited < Duration::from_secs(20), "never happened: {what}");
        std::thread::yield_now();
    }
}

fn reactor_thread(
    id: u32,
    clock: Arc<dyn Clock>,
    stop: Arc<AtomicBool>,
    started: mpsc::Sender<ReactorHandle>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let config = ReactorConfig {
            id: ReactorId(id),
            idle: IdlePolicy::Poll,
            seed: 1,
        };
        let domain = Quiescence::new(8);
        let mut reactor = Reactor::new(&config, clock, domain).unwrap();
        started.send(reactor.handle()).unwrap();
        while !stop.load(Ordering::Relaxed) {
            if reactor.step() == 0 {
                // As the reactor does before it sleeps.
                let _ = reactor.wake();
                std::thread::yield_now();
            }
        }
    })
}

/// Reactors that threads step.
pub(crate) struct Stepped {
    pub(crate) handles: Vec<ReactorHandle>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stepped {
    pub(crate) fn new(count: u32) -> Self {
        Self::with_clock(count, &(Arc::new(MonotonicClock) as Arc<dyn Clock>))
    }

    pub(crate) fn with_clock(count: u32, clock: &Arc<dyn Clock>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (started, starting) = mpsc::channel();
        let threads = (0..count)
            .map(|id| reactor_thread(id, Arc::clone(clock), Arc::clone(&stop), started.clone()))
            .collect();
        let handles = (0..count).map(|_| starting.recv().unwrap()).collect();
        Self {
            handles,
            stop,
            threads,
        }
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a reactor panicked"
            );
        }
    }
}

/// A server on a Unix socket, with its reactors.
pub(crate) struct Fixture {
    pub(crate) exports: NbdExports,
    pub(crate) server: Option<NbdServer>,
    pub(crate) reactors: Vec<ReactorHandle>,
    pub(crate) socket: PathBuf,
    pub(crate) dir: tempfile::TempDir,
    _stepped: Stepped,
}

impl Fixture {
    pub(crate) fn new(reactor_count: u32, options: NbdOptions) -> Self {
        let stepped = Stepped::new(reactor_count);
        let reactors = stepped.handles.clone();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let exports = NbdExports::new();
        let address = NbdAddress::Unix(socket.clone());
        let server = NbdServer::start(&address, &exports, reactors.clone(), options).unwrap();
        Self {
            exports,
            server: Some(server),
            reactors,
            socket,
            dir,
            _stepped: stepped,
        }
    }

    /// One reactor, and a writable 1 MiB disk exported as `vol`.
    pub(crate) fn with_disk() -> (Self, Arc<RamDisk>) {
        let fixture = Self::new(1, NbdOptions::default());
        let disk = Arc::new(RamDisk::new("disk", 1 << 20));
        fixture.export("vol", &disk);
        (fixture, disk)
    }

    pub(crate) fn export(&self, name: &str, disk: &Arc<RamDisk>) {
        self.exports.add(config(name, disk)).unwrap();
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.socket)
    }

    pub(crate) fn server(&self) -> &NbdServer {
        self.server.as_ref().unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server
            && !std::thread::panicking()
        {
            server.stop();
            wait_until("the server stops", || server.is_stopped());
        }
    }
}

pub(crate) fn config(name: &str, disk: &Arc<RamDisk>) -> ExportConfig {
    ExportConfig {
        name: name.to_owned(),
        bdev: Arc::clone(disk) as Arc<dyn Bdev>,
        description: String::new(),
        read_only: false,
        max_payload: PAYLOAD_BYTES_MAX,
    }
}
