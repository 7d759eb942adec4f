//! Where a server listens: a Unix socket with the lock file that guards its path, and TCP if asked.

use crate::stream::ListenSocket;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// A living process serves this path.
    #[error("{0} is served by another process")]
    InUse(PathBuf),
    /// Something that is no socket lies there, and it is not ours to remove.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// Whoever reaches the port may do everything: it is for this machine only.
    #[error("{0} is no loopback address: RPC over TCP is for this machine only")]
    NotLoopback(SocketAddr),
    /// The operating system refused a TCP address.
    #[error("{address}: {source}")]
    Tcp {
        /// Which one.
        address: SocketAddr,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Os {
        /// Which path.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl ListenerError {
    fn os(path: &Path, error: impl Into<io::Error>) -> Self {
        Self::Os {
            path: path.to_owned(),
            source: error.into(),
        }
    }
}

/// A lock file that is ours until this is dropped, which removes it.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: OwnedFd,
}

impl Lock {
    fn take(path: PathBuf, guarded: &Path) -> Result<Self, ListenerError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|error| ListenerError::os(&path, error))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(ListenerError::InUse(guarded.to_owned())),
                Err(error) => return Err(ListenerError::os(&path, error)),
            }
            // Its last owner may have removed the name between our opening and our locking; then
            // we hold a file that nobody else would find.
            let held = rustix::fs::fstat(&file).map_err(|e| ListenerError::os(&path, e))?;
            if let Ok(named) = rustix::fs::stat(&path)
                && (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
            {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked: whoever opened it meanwhile sees below that the name is gone.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "lock file stays");
        }
    }
}

/// A Unix socket, mode 0600, that listens, and any number of TCP ports. Dropped, it removes the socket and its
/// lock file.
#[derive(Debug)]
pub struct Listener {
    pub(crate) sockets: Vec<ListenSocket>,
    path: PathBuf,
    _lock: Lock,
}

impl Listener {
    /// Listens on `path`. `<path>.lock` is held as long as this lives; a socket that a dead process
    /// left is removed, but only with the lock in hand.
    ///
    /// # Errors
    /// If another process holds the lock, if the path is something else than a socket, or if the
    /// operating system refuses (a path of more than 107 bytes, for instance).
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = Lock::take(PathBuf::from(lock_path), path)?;
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(|error| ListenerError::os(path, error))?;
            }
            Ok(_) => return Err(ListenerError::NotASocket(path.to_owned())),
            Err(_) => {}
        }
        let socket = listen(path).map_err(|error| ListenerError::os(path, error))?;
        Ok(Self {
            sockets: vec![ListenSocket::Unix(socket)],
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Listens at `address` too, with port 0 on any free one; tells where.
    ///
    /// # Errors
    /// If `address` is not of this machine alone, or the operating system refuses it.
    pub fn add_tcp(&mut self, address: SocketAddr) -> Result<SocketAddr, ListenerError> {
        if !address.ip().is_loopback() {
            return Err(ListenerError::NotLoopback(address));
        }
        let refused = |source| ListenerError::Tcp { address, source };
        let socket = TcpListener::bind(address).map_err(refused)?;
        socket.set_nonblocking(true).map_err(refused)?;
        let bound = socket.local_addr().map_err(refused)?;
        self.sockets.push(ListenSocket::Tcp(socket));
        Ok(bound)
    }

    /// Where its Unix socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket stays");
        }
    }
}

/// Binds, narrows the mode, then listens: nobody can connect before the mode is right.
fn listen(path: &Path) -> Result<UnixListener, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let ready = rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)
        .and_then(|()| rustix::net::listen(&socket, 128));
    match ready {
        Ok(()) => Ok(UnixListener::from(socket)),
        Err(error) => {
            let _ = rustix::fs::unlink(path);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn guards_its_path_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpc.sock");
        let first = Listener::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let lock = std::fs::metadata(dir.path().join("rpc.sock.lock")).unwrap();
        assert_eq!(lock.permissions().mode() & 0o777, 0o600);
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenerError::InUse(_))
        ));
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn tcp_is_for_this_machine_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut listener = Listener::bind(&dir.path().join("rpc.sock")).unwrap();
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:5260"] {
            let refused = listener.add_tcp(address.parse().unwrap());
            assert!(
                matches!(refused, Err(ListenerError::NotLoopback(_))),
                "{address}"
            );
        }
        let bound = listener.add_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(bound.port() != 0);
        let taken = listener.add_tcp(bound);
        assert!(matches!(taken, Err(ListenerError::Tcp { .. })), "{taken:?}");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpc.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&path).unwrap());
        std::fs::write(&path, b"keep me").unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenerError::NotASocket(_))
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"keep me");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(
            Listener::bind(&long),
            Err(ListenerError::Os { .. })
        ));
    }
}
