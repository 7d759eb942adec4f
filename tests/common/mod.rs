//! A service of its own for a test: the binary in a directory that goes away with it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes it, and uses a part of it"
)]

use rpc::{Client, ClientError};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn pmcache() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pmcache"))
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Output {
    pmcache().args(args).output().unwrap()
}

/// A running `pmcache serve`.
#[derive(Debug)]
pub struct Service {
    child: Child,
    /// What it said when it was ready.
    pub ready: Value,
    dir: tempfile::TempDir,
}

impl Service {
    /// Starts one without bdevs, waits until it is ready.
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &["--config", EMPTY_CONFIG])
    }

    /// Starts one with these arguments in `dir`.
    pub fn start_in(dir: tempfile::TempDir, args: &[&str]) -> Self {
        Self::start_with(dir, args, Stdio::inherit())
    }

    /// As [`Service::start_in`]; its log goes to `log`.
    pub fn start_with(dir: tempfile::TempDir, args: &[&str], log: Stdio) -> Self {
        std::fs::write(dir.path().join(EMPTY_CONFIG), "{\"subsystems\":[]}").unwrap();
        std::fs::create_dir_all(dir.path().join("run")).unwrap();
        // Nothing is left in the machine's own run directory, unless a test names another.
        let run_dir: &[&str] = match args.contains(&"--run-dir") {
            true => &[],
            false => &["--run-dir", "run"],
        };
        let mut child = pmcache()
            .args(["serve", "--json", "--data-dir", "data"])
            .args(run_dir)
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            sender.send(line).unwrap();
        });
        let line = receiver
            .recv_timeout(PATIENCE)
            .expect("it never gets ready");
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error} in its first line {line:?}"));
        assert_eq!(ready["error"], Value::Null, "it can't start");
        Self { child, ready, dir }
    }

    /// The directory that `--data-dir data` and everything relative is in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in its data directory.
    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        let client = Client::connect(&self.data("rpc.sock")).unwrap();
        client.set_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// Calls a method that works.
    pub fn call(&self, method: &str, params: Value) -> Value {
        let params = (!params.is_null()).then_some(params);
        match self.client().call(method, params.as_ref()) {
            Ok(result) => serde_json::from_str(result.get()).unwrap(),
            Err(error) => panic!("{method} {params:?}: {error}"),
        }
    }

    /// Calls a method that refuses; returns the code and the message.
    pub fn refused(&self, method: &str, params: Value) -> (i64, String) {
        let params = (!params.is_null()).then_some(params);
        match self.client().call(method, params.as_ref()) {
            Err(ClientError::Refused(error)) => (error.code, error.message),
            other => panic!("{method} {params:?} was to be refused: {other:?}"),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops it in the middle of whatever it does; nothing of it runs when this returns.
    pub fn freeze(&self) {
        use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
        self.signal(Signal::STOP);
        let pid = Pid::from_child(&self.child);
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    }

    /// Waits for its end, and returns how it ended and the directory.
    pub fn wait(mut self) -> (ExitStatus, tempfile::TempDir) {
        let status = self.child.wait().unwrap();
        let empty = tempfile::tempdir().unwrap();
        (status, std::mem::replace(&mut self.dir, empty))
    }

    /// Stops it as an operator would, and returns the directory.
    pub fn stop(self) -> tempfile::TempDir {
        self.signal(rustix::process::Signal::TERM);
        let (status, dir) = self.wait();
        assert!(status.success(), "{status}");
        dir
    }

    /// Ends it without a warning, and returns the directory.
    pub fn kill(self) -> tempfile::TempDir {
        self.signal(rustix::process::Signal::KILL);
        self.wait().1
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration without anything, in the service's directory.
pub const EMPTY_CONFIG: &str = "empty.json";

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = std::time::SystemTime::now();
    while !condition() {
        let waited = begun.elapsed().unwrap_or_default();
        assert!(waited < PATIENCE, "{what} never happens");
        std::thread::yield_now();
    }
}

/// All that a child wrote, as text.
pub fn text(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}
