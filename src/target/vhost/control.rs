//! The loop that a controller's thread runs: takes front ends, one at a time, and their messages.

use super::backing::Backing;
use super::controller::Shared;
use super::notices::Notices;
use super::session::Session;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{BackendReqHandler, Error};

/// How long a front end may take to send the rest of a message, or to read our answer.
const MESSAGE_WAIT: Duration = Duration::from_secs(2);
/// How often to look for what changes without a message.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// How long to leave the listener alone when the system has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Something can be read.
    Ready,
    /// Time has passed.
    Tick,
    /// The controller is to stop.
    Stop,
}

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
        while self.wait_for(&self.listener, None) == Event::Ready {
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

    /// Waits for what happens next with `fd`, at most until the `tick` if there is one.
    fn wait_for(&self, fd: &impl AsFd, tick: Option<&Timespec>) -> Event {
        loop {
            if self.shared.stopping.load(Ordering::Acquire) {
                return Event::Stop;
            }
            let mut fds = [
                PollFd::new(fd, PollFlags::IN),
                PollFd::new(&self.shared.bell, PollFlags::IN),
            ];
            // A failure is a signal: look again.
            let polled = rustix::event::poll(&mut fds, tick);
            let [waited_for, _] = fds;
            match polled {
                Ok(0) => return Event::Tick,
                Ok(_) if !waited_for.revents().is_empty() => return Event::Ready,
                _ => {}
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
        loop {
            match self.wait_for(&watched, Some(&TICK)) {
                Event::Stop => break,
                Event::Tick => {
                    session.tick();
                    continue;
                }
                Event::Ready => {}
            }
            match Self::handle(&session, &mut handler, &watched) {
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

    /// Handles the message that comes next.
    fn handle(
        session: &Session,
        handler: &mut BackendReqHandler<Session>,
        socket: &UnixStream,
    ) -> Result<(), Error> {
        let offered = VhostUserProtocolFeatures::BACKEND_REQ;
        if session.has_protocol(offered) && Notices::are_next(socket) {
            let answers = session.has_protocol(VhostUserProtocolFeatures::REPLY_ACK);
            let notices = Notices::take(socket, answers);
            session.set_notices(notices.map_err(super::session::refuse)?);
            return Ok(());
        }
        handler.handle_request()
    }
}
