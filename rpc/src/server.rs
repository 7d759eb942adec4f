//! Accepts connections and answers them, each on a thread of its own.

use crate::frame::{Frame, Framer};
use crate::stream::Stream;
use crate::{Error, Listener, Phased, Registry, request};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How much a client may ask of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; one more is told so and closed.
    pub connections_max: usize,
    /// Bytes of one request.
    pub request_bytes_max: usize,
    /// Bytes of one reply.
    pub reply_bytes_max: usize,
    /// How long a client may leave a reply unread.
    pub write_timeout: Duration,
    /// How long a client may take from the first byte of a request to its last.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            request_bytes_max: 256 << 10,
            reply_bytes_max: 32 << 20,
            write_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// A server that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Server {
    /// Starts to answer on `listener` with `registry`'s methods.
    ///
    /// # Errors
    /// If the operating system gives no thread or eventfd.
    pub fn start<S: Phased + Send + Sync + 'static>(
        listener: Listener,
        limits: Limits,
        registry: Arc<Registry<S>>,
        state: Arc<S>,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let path = listener.path().to_owned();
        let (finished, finishing) = channel();
        let acceptor = Acceptor {
            listener,
            limits,
            registry,
            state,
            stop: Arc::clone(&stop),
            open: HashMap::new(),
            next: 0,
            finished,
            finishing,
        };
        let thread = std::thread::Builder::new()
            .name("rpc".to_owned())
            .spawn(move || acceptor.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
            path,
        })
    }

    /// Where it answers.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes no more requests, lets methods that run finish for up to two seconds, and removes the
    /// socket and its lock file.
    pub fn stop(mut self) {
        self.shut();
    }

    fn shut(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A full counter means that it has been told already.
            let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
            if thread.join().is_err() {
                tracing::error!("the RPC server's thread panicked");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut();
    }
}

/// How long methods that run may go on after [`Server::stop`].
const STOP_GRACE: Duration = Duration::from_secs(2);

struct Acceptor<S> {
    listener: Listener,
    limits: Limits,
    registry: Arc<Registry<S>>,
    state: Arc<S>,
    stop: Arc<OwnedFd>,
    /// The connections that have a thread, by number.
    open: HashMap<u64, Stream>,
    next: u64,
    finished: Sender<u64>,
    finishing: Receiver<u64>,
}

impl<S: Phased + Send + Sync + 'static> Acceptor<S> {
    fn run(mut self) {
        loop {
            let sockets = self.listener.sockets.iter();
            let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
            fds.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::IN)));
            let polled = poll(&mut fds, None);
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let [stop, sockets @ ..] = &*ready else {
                break;
            };
            if *stop {
                break;
            }
            let sockets = sockets.iter().enumerate();
            for (index, _) in sockets.filter(|(_, ready)| polled.is_ok() && **ready) {
                self.accept(index);
            }
        }
        self.close_all();
    }

    /// Takes one connection of a socket that has some.
    fn accept(&mut self, index: usize) {
        while let Ok(number) = self.finishing.try_recv() {
            self.open.remove(&number);
        }
        let Some(socket) = self.listener.sockets.get(index) else {
            return;
        };
        let result = match socket.accept() {
            Ok(stream) => self.welcome(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "an RPC connection could not be accepted");
            // Most likely out of descriptors: the next attempt needs some time, not a busy loop.
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            let mut fds = [PollFd::new(&*self.stop, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&pause));
        }
    }

    fn welcome(&mut self, mut stream: Stream) -> io::Result<()> {
        stream.set_blocking()?;
        stream.set_write_timeout(self.limits.write_timeout)?;
        if self.open.len() >= self.limits.connections_max {
            // Fits any socket's buffer; a client that has gone already needs no answer.
            let _ = stream.write_all(&too_many());
            return Ok(());
        }
        let number = self.next;
        self.next += 1;
        let connection = Connection {
            stream: stream.try_clone()?,
            limits: self.limits,
            registry: Arc::clone(&self.registry),
            state: Arc::clone(&self.state),
            _leave: Leave(number, self.finished.clone()),
        };
        std::thread::Builder::new()
            .name(format!("rpc-{number}"))
            .spawn(move || connection.run())?;
        self.open.insert(number, stream);
        Ok(())
    }

    /// Ends reading on all connections, so that each ends after the request that it is at.
    fn close_all(mut self) {
        for stream in self.open.values() {
            // Fails only if the peer has closed already.
            let _ = stream.shutdown(Shutdown::Read);
        }
        while !self.open.is_empty() {
            match self.finishing.recv_timeout(STOP_GRACE) {
                Ok(number) => {
                    self.open.remove(&number);
                }
                Err(_) => break,
            }
        }
        for stream in self.open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn too_many() -> Vec<u8> {
    let mut text = request::refusal(-16, "Device or resource busy: too many connections");
    text.push('\n');
    text.into_bytes()
}

/// Tells the acceptor that a connection's thread has ended, however it did.
struct Leave(u64, Sender<u64>);

impl Drop for Leave {
    fn drop(&mut self) {
        // The acceptor may have gone before us, and then needs to know nothing.
        let _ = self.1.send(self.0);
    }
}

struct Connection<S> {
    stream: Stream,
    limits: Limits,
    registry: Arc<Registry<S>>,
    state: Arc<S>,
    _leave: Leave,
}

impl<S: Phased + 'static> Connection<S> {
    fn run(mut self) {
        if let Err(error) = self.serve() {
            tracing::debug!(%error, "an RPC connection failed");
        }
        // The acceptor holds a duplicate, so dropping ours would not tell the peer.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut framer = Framer::new(self.limits.request_bytes_max);
        let mut bytes = vec![0_u8; 64 << 10];
        // Since when a part of a request is there and the rest is not.
        let mut begun = None;
        loop {
            let count = match self.read(&mut bytes, begun) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    let text = "Parse error: the rest of the request did not come in time";
                    return self.write(request::refusal(Error::PARSE_ERROR, text));
                }
                Err(error) => return Err(error),
            };
            framer.push(bytes.get(..count).unwrap_or_default());
            loop {
                match framer.next() {
                    Frame::Incomplete => break,
                    Frame::Value(raw) => {
                        begun = None;
                        if let Some(reply) = request::answer(&self.registry, &self.state, &raw) {
                            self.write(request::bounded(reply, self.limits.reply_bytes_max))?;
                        }
                    }
                    Frame::Bad => {
                        return self.write(request::refusal(Error::PARSE_ERROR, "Parse error"));
                    }
                }
            }
            begun = match begun {
                _ if !framer.has_part() => None,
                None => Some(now()),
                already => already,
            };
        }
    }

    /// Reads what comes; waits without end for a request, and not for ever for the rest of one.
    fn read(&mut self, bytes: &mut [u8], begun: Option<Duration>) -> io::Result<usize> {
        let timeout = match begun {
            None => None,
            Some(begun) => {
                let spent = now().saturating_sub(begun);
                let left = self.limits.request_timeout.saturating_sub(spent);
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(left)
            }
        };
        self.stream.set_read_timeout(timeout)?;
        let read = self.stream.read(bytes);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }

    fn write(&mut self, mut reply: String) -> io::Result<()> {
        reply.push('\n');
        self.stream.write_all(reply.as_bytes())
    }
}

/// The monotonic clock.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}
