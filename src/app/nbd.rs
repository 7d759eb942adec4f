//! The NBD side of the service: which servers run, and which bdevs are exported.

use super::bdevs::{Bdevs, no_such_device};
use super::shared::{Shared, poll_until};
use crate::target::nbd::{
    ConnectionInfo, ExportConfig, ExportInfo, NbdAddress, NbdError, NbdExports, NbdOptions,
    NbdServer, RemoveMode, RemovedExport,
};
use reactors::ReactorHandle;
use rpc::Error;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;

/// How long clients may take to let go before the caller gets its answer.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Servers and exports.
#[derive(Debug, Default)]
pub(super) struct Nbd {
    exports: NbdExports,
    servers: Shared<Vec<Listening>>,
}

/// A server, and what was asked of it.
#[derive(Debug)]
struct Listening {
    server: NbdServer,
    max_connections: Option<usize>,
}

/// A server, for people.
#[derive(Debug)]
pub(super) struct ServerInfo {
    /// Where it listens.
    pub(super) address: NbdAddress,
    /// How many may be connected, if that was said.
    pub(super) max_connections: Option<usize>,
    /// Who is connected.
    pub(super) connections: Vec<ConnectionInfo>,
}

/// What NBD refused, as RPC clients see it.
fn nbd_error(error: &NbdError) -> Error {
    let errno = match error {
        NbdError::BadAddress(_) | NbdError::BadName(_) | NbdError::BadPayload(_) => Errno::INVAL,
        NbdError::AddressInUse(_) => Errno::ADDRINUSE,
        NbdError::NotASocket(_) | NbdError::Exists(_) => Errno::EXIST,
        NbdError::Listen { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        NbdError::NoReactor => Errno::AGAIN,
        NbdError::NotFound(_) => return no_such_device(),
        NbdError::Busy { .. } => Errno::BUSY,
    };
    let errno = errno.raw_os_error();
    let strerror = Error::errno(errno).message;
    Error::errno_with(errno, format!("{strerror}: {error}"))
}

fn user_of(export: &str) -> String {
    format!("nbd export '{export}'")
}

impl Nbd {
    /// Listens on `address`, connections being spread over `reactors`. Returns where it listens.
    ///
    /// # Errors
    /// −22 for what is no address, −17 if it is served already, −98 if by somebody else.
    pub(super) fn start(
        &self,
        address: &str,
        max_connections: Option<usize>,
        reactors: &[ReactorHandle],
    ) -> Result<NbdAddress, Error> {
        let address: NbdAddress = address.parse().map_err(|e| nbd_error(&e))?;
        let mut options = NbdOptions::default();
        options.max_connections = max_connections.unwrap_or(options.max_connections);
        // Listening takes no time, and under the lock nobody else starts the same.
        self.servers.with(|servers| {
            if servers.iter().any(|s| *s.server.address() == address) {
                return Err(Error::errno(Errno::EXIST.raw_os_error()));
            }
            let server = NbdServer::start(&address, &self.exports, reactors.to_vec(), options)
                .map_err(|error| nbd_error(&error))?;
            let address = server.address().clone();
            servers.push(Listening {
                server,
                max_connections,
            });
            Ok(address)
        })
    }

    /// Ends the server on `address` and its connections, in a while at most what devices take.
    ///
    /// # Errors
    /// −22 for what is no address, −19 if none listens there.
    pub(super) fn stop(&self, address: &str) -> Result<(), Error> {
        let address: NbdAddress = address.parse().map_err(|e| nbd_error(&e))?;
        let taken = self.servers.with(|servers| {
            let at = servers
                .iter()
                .position(|s| *s.server.address() == address)?;
            Some(servers.remove(at).server)
        });
        let mut server = taken.ok_or_else(no_such_device)?;
        server.stop();
        poll_until(CLOSE_WAIT, || server.is_stopped());
        Ok(())
    }

    /// The servers that run.
    pub(super) fn servers(&self) -> Vec<ServerInfo> {
        self.servers.with(|servers| {
            let infos = servers.iter().map(|listening| ServerInfo {
                address: listening.server.address().clone(),
                max_connections: listening.max_connections,
                connections: listening.server.connections(),
            });
            infos.collect()
        })
    }

    /// What is exported.
    pub(super) fn exports(&self) -> Vec<ExportInfo> {
        self.exports.list()
    }

    /// Exports the bdev of that name; `config.bdev` is filled in by `bdevs`.
    ///
    /// # Errors
    /// −19 without such a bdev, −16 if it has an owner, −17 if the export exists, −22.
    pub(super) fn add(
        &self,
        bdevs: &Bdevs,
        bdev_name: &str,
        config: impl FnOnce(Arc<dyn crate::bdev::Bdev>) -> ExportConfig,
    ) -> Result<(), Error> {
        // Joined under a name of its own until the table has taken the export's.
        let joining = "an export to come".to_owned();
        let bdev = bdevs.join(bdev_name, joining.clone())?;
        let config = config(bdev);
        let user = user_of(&config.name);
        let added = self.exports.add(config).map_err(|error| nbd_error(&error));
        let joined = added.and_then(|()| bdevs.join(bdev_name, user).map(drop));
        bdevs.leave(bdev_name, &joining);
        joined
    }

    /// Ends an export; with [`RemoveMode::Hard`] also its connections, which may outlast this call
    /// if a device is slow: its bdev stays in use until they have gone.
    ///
    /// # Errors
    /// −19 without such an export, −16 with connections and [`RemoveMode::Safe`].
    pub(super) fn remove(
        &self,
        bdevs: &Arc<Bdevs>,
        name: &str,
        mode: RemoveMode,
    ) -> Result<(), Error> {
        let bdev_name = self
            .exports
            .list()
            .into_iter()
            .find(|export| export.name == name)
            .map(|export| export.bdev_name)
            .ok_or_else(no_such_device)?;
        let removed = self.exports.remove(name, mode);
        let removed = removed.map_err(|error| nbd_error(&error))?;
        let user = user_of(name);
        if poll_until(CLOSE_WAIT, || removed.is_closed()) {
            bdevs.leave(&bdev_name, &user);
            return Ok(());
        }
        leave_later(removed, Arc::clone(bdevs), bdev_name, user)
            .map_err(|error| Error::os("nbd export", &error))
    }

    /// Ends all servers and exports, as far as that is possible in [`CLOSE_WAIT`].
    pub(super) fn stop_all(&self, bdevs: &Arc<Bdevs>) {
        let mut servers = self.servers.with(std::mem::take);
        for listening in &mut servers {
            listening.server.stop();
        }
        let all_stopped = || servers.iter().all(|s| s.server.is_stopped());
        poll_until(CLOSE_WAIT, all_stopped);
        for export in self.exports.list() {
            if let Err(error) = self.remove(bdevs, &export.name, RemoveMode::Hard) {
                tracing::warn!(export = export.name, %error, "export stays");
            }
        }
    }
}

/// Frees the bdev once the last connection is gone.
fn leave_later(
    removed: RemovedExport,
    bdevs: Arc<Bdevs>,
    bdev_name: String,
    user: String,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("nbd-closing".to_owned());
    thread.spawn(move || {
        while !poll_until(Duration::from_secs(3600), || removed.is_closed()) {}
        bdevs.leave(&bdev_name, &user);
    })?;
    Ok(())
}
