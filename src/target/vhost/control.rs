//! The loop that a controller's thread runs: takes front ends, one at a time, and their messages.

use super::backing::Backing;
use super::controller::Shared;
use super::session::Session;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vhost::vhost_user::{BackendReqHandler, Error};

/// How long a front end may take to send the rest of a message, or to read our answer.
const MESSAGE_WAIT: Duration = Duration::from_secs(2);
/// How long to leave the listener alone when the system has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// A controller's control plane. The caller gives it a thread: [`ControlLoop::run`].
#[derive(Debug)]
pub struct ControlLoop {
    pub(super) listener: OwnedFd,
    pub(super) backing: Arc<Backing>,
    pub(super) shared: Arc<Shared>,
}

impl Drop for ControlLoop {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
    }
}

impl ControlLoop {
    /// Serves front ends until the controller is stopped and the last queue has ended. Further
    /// front ends wait in the listener's queue until the one that is served leaves.
    pub fn run(self) {
        while self.wait_for(&self.listener) {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => self.serve(socket),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::warn!(%error, ctrlr = self.backing.name, "vhost: can't accept");
                    std::thread::park_timeout(PAUSE);
                }
            }
        }
    }

    /// Waits until `fd` is readable; false if the controller is to stop.
    fn wait_for(&self, fd: &impl AsFd) -> bool {
        loop {
            if self.shared.stopping.load(Ordering::Acquire) {
                return false;
            }
            let mut fds = [
                PollFd::new(fd, PollFlags::IN),
                PollFd::new(&self.shared.bell, PollFlags::IN),
            ];
            // A failure is a signal: look again.
            let polled = rustix::event::poll(&mut fds, None);
            let [waited_for, _] = fds;
            if polled.is_ok() && !waited_for.revents().is_empty() {
                return true;
            }
        }
    }

    fn serve(&self, socket: OwnedFd) {
        let name = &self.backing.name;
        let stream = UnixStream::from(socket);
        for direction in [Timeout::Recv, Timeout::Send] {
            if let Err(error) = set_socket_timeout(&stream, direction, Some(MESSAGE_WAIT)) {
                tracing::warn!(%error, ctrlr = name, "vhost: a socket without a time-out");
                return;
            }
        }
        // One to wait for, and one for the controller to break off what is blocked.
        let copies = stream
            .try_clone()
            .and_then(|watched| Ok((watched, stream.try_clone()?)));
        let watched = match copies {
            Ok((watched, to_break)) => {
                self.shared.set_socket(Some(to_break));
                watched
            }
            Err(error) => {
                tracing::warn!(%error, ctrlr = name, "vhost: no descriptors for a front end");
                return;
            }
        };
        let status = Arc::clone(&self.shared.status);
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "the crate wants an `Arc`; it stays on this thread"
        )]
        let session = Arc::new(Session::new(Arc::clone(&self.backing), status));
        let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        let vid = self.shared.status.enter();
        tracing::info!(ctrlr = name, vid, "vhost: a front end connects");
        while self.wait_for(&watched) {
            match handler.handle_request() {
                // What is not offered may be asked for, and goes without.
                Ok(()) | Err(Error::InvalidOperation(_)) => {}
                Err(Error::Disconnected) => break,
                Err(error) => {
                    tracing::warn!(%error, ctrlr = name, vid, "vhost: hanging up");
                    break;
                }
            }
        }
        session.close();
        self.shared.set_socket(None);
        self.shared.status.leave();
        tracing::info!(ctrlr = name, vid, "vhost: the front end is gone");
    }
}
