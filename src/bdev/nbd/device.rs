//! The bdev: what the server said when it was made, and where each channel connects.

use super::link::Link;
use super::negotiation::Agreed;
use super::opening::{Address, Opening};
use super::uri::{NbdPlace, NbdUri};
use super::{NbdFault, link};
use crate::bdev::{Bdev, BdevError, BdevInfo, Channel, Supports, check_name, derived_uuid};
use crate::wire::nbd::{Command, CommandFlags, RequestHeader, export_flags};
use reactors::{Clock, Cx, Interest};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;
use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use uuid::Uuid;

/// How long a server may take to answer a handshake.
pub(super) const HANDSHAKE_NS: u64 = 10_000_000_000;
/// How long to wait before looking again at a connection that nothing announces.
pub(super) const LOOK_AGAIN_NS: u64 = 1_000_000;

/// How to make an [`NbdBdev`].
#[derive(Clone, Debug)]
pub struct NbdConfig {
    /// Its name.
    pub name: String,
    /// Which export of which server.
    pub uri: NbdUri,
    /// Its identity; otherwise derived from the address.
    pub uuid: Option<Uuid>,
    /// Refuse writes, even if the server takes them.
    pub read_only: bool,
    /// Ask for structured replies. Without them a READ that fails half-way ends the connection.
    pub structured_replies: bool,
}

impl NbdConfig {
    /// The export at `uri` as bdev `name`: as the server has it.
    #[must_use]
    pub fn new(name: &str, uri: NbdUri) -> Self {
        Self {
            name: name.to_owned(),
            uri,
            uuid: None,
            read_only: false,
            structured_replies: true,
        }
    }
}

/// "NBD disk": an export of an NBD server. Each channel is a connection of its own.
///
/// A channel whose server broke the protocol, hung up or was given up on fails every request with
/// [`IoError`](crate::bdev::IoStatus::IoError) from then on; a new channel connects again.
#[derive(Debug)]
pub struct NbdBdev {
    device: Arc<Device>,
}

/// What the channels share.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) info: Arc<BdevInfo>,
    pub(super) agreed: Agreed,
    pub(super) uri: NbdUri,
    address: Address,
    structured_replies: bool,
    channels: AtomicU32,
}

impl Device {
    pub(super) fn offers(&self, flag: u16) -> bool {
        self.agreed.flags & flag != 0
    }

    /// Whether a flush on one connection means nothing to the writes of another.
    fn is_for_one(&self) -> bool {
        !self.info.read_only
            && self.offers(export_flags::SEND_FLUSH)
            && !self.offers(export_flags::CAN_MULTI_CONN)
    }

    pub(super) fn dial(&self) -> Opening {
        Opening::new(
            self.address.clone(),
            &self.uri.export,
            self.structured_replies,
        )
    }

    /// Checks that a connection found what the bdev was made from.
    pub(super) fn recognise(&self, agreed: &Agreed) -> Result<(), NbdFault> {
        let was = &self.agreed;
        if (was.bytes, was.flags) == (agreed.bytes, agreed.flags) {
            return Ok(());
        }
        Err(NbdFault::Changed {
            was: was.bytes,
            was_flags: was.flags,
            is: agreed.bytes,
            is_flags: agreed.flags,
        })
    }
}

/// A channel's place among those of its bdev.
#[derive(Debug)]
pub(super) struct Seat(Arc<Device>);

impl Seat {
    fn take(device: &Arc<Device>) -> Result<Self, BdevError> {
        let before = device.channels.fetch_add(1, Ordering::SeqCst);
        let seat = Self(Arc::clone(device));
        if before > 0 && device.is_for_one() {
            return Err(BdevError::NotSupported(format!(
                "{}: the server does not say that a flush on one connection covers the others, \
                 so there can be one channel only",
                device.uri
            )));
        }
        Ok(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.channels.fetch_sub(1, Ordering::SeqCst);
    }
}

impl NbdBdev {
    /// Connects, learns what the export is, and disconnects. May wait for the server, by `clock` for
    /// 10 s at most, and for the resolution of its name; so it is for control threads.
    ///
    /// # Errors
    /// [`BdevError::Nbd`] if there is no such server or export, or it breaks the protocol;
    /// [`BdevError::NotSupported`] for an export whose blocks no bdev can have;
    /// [`BdevError::Invalid`] for a bad name or an export smaller than a block.
    pub fn connect(config: NbdConfig, clock: &dyn Clock) -> Result<Self, BdevError> {
        check_name(&config.name)?;
        let addresses = resolve(&config.uri)?;
        let mut failed = NbdFault::End;
        for address in addresses {
            let opening = Opening::new(
                address.clone(),
                &config.uri.export,
                config.structured_replies,
            );
            match probe(opening, clock) {
                Ok(agreed) => return Self::new(config, address, agreed),
                Err(fault) => failed = fault,
            }
        }
        Err(BdevError::Nbd {
            uri: config.uri.to_string(),
            source: failed,
        })
    }

    fn new(config: NbdConfig, address: Address, agreed: Agreed) -> Result<Self, BdevError> {
        let block_size = block_size(&config.uri, &agreed)?;
        let blocks = agreed.bytes / u64::from(block_size);
        if blocks == 0 {
            return Err(BdevError::Invalid(format!(
                "{}: an export of {} bytes is smaller than a block",
                config.uri, agreed.bytes
            )));
        }
        let derived = || derived_uuid("nbd", &[config.uri.to_string().as_bytes()]);
        let offers = |flag| agreed.flags & flag != 0;
        let info = Arc::new(BdevInfo {
            uuid: config.uuid.unwrap_or_else(derived),
            name: config.name,
            product_name: "NBD disk",
            block_size,
            blocks,
            volatile_cache: offers(export_flags::SEND_FLUSH),
            read_only: config.read_only || offers(export_flags::READ_ONLY),
            supports: Supports {
                discard: offers(export_flags::SEND_TRIM),
                discard_zeroes: false,
                write_zeroes: offers(export_flags::SEND_WRITE_ZEROES),
                extents: false,
            },
        });
        let device = Device {
            info,
            agreed,
            uri: config.uri,
            address,
            structured_replies: config.structured_replies,
            channels: AtomicU32::new(0),
        };
        Ok(Self {
            device: Arc::new(device),
        })
    }

    /// Which export of which server.
    #[must_use]
    pub fn uri(&self) -> &NbdUri {
        &self.device.uri
    }
}

impl Bdev for NbdBdev {
    fn info(&self) -> Arc<BdevInfo> {
        Arc::clone(&self.device.info)
    }

    /// Begins to connect; requests wait until that is done.
    fn open(&self, cx: &Cx) -> Result<Box<dyn Channel>, BdevError> {
        let seat = Seat::take(&self.device)?;
        let link = Link::start(cx, Arc::clone(&self.device));
        Ok(Box::new(link::NbdChannel::new(link, seat)))
    }
}

fn resolve(uri: &NbdUri) -> Result<Vec<Address>, BdevError> {
    match &uri.place {
        NbdPlace::Unix(path) => Ok(vec![Address::Unix(path.clone())]),
        NbdPlace::Tcp { host, port } => {
            let found = (host.as_str(), *port).to_socket_addrs();
            let found = found.map_err(|source| BdevError::Os {
                what: format!("looking up {host}"),
                source,
            })?;
            Ok(found.map(Address::Tcp).collect())
        }
    }
}

/// The bdev's block for the server's smallest unit.
fn block_size(uri: &NbdUri, agreed: &Agreed) -> Result<u32, BdevError> {
    match agreed.block_min {
        min @ 0..=512 if min.max(1).is_power_of_two() && agreed.payload_max >= 512 => Ok(512),
        1024 | 2048 | 4096 if agreed.payload_max >= 4096 => Ok(4096),
        min => Err(BdevError::NotSupported(format!(
            "{uri}: I/O in units of {min} bytes, at most {} at once",
            agreed.payload_max
        ))),
    }
}

/// Takes `opening` through its handshake and says goodbye. Waits.
fn probe(mut opening: Opening, clock: &dyn Clock) -> Result<Agreed, NbdFault> {
    let deadline = clock.now().after(HANDSHAKE_NS);
    loop {
        if let Some(opened) = opening.turn()? {
            say_goodbye(&opened.socket);
            return Ok(opened.agreed);
        }
        let left = deadline.since(clock.now());
        if left == 0 {
            return Err(NbdFault::Timeout);
        }
        opening.wait(left)?;
    }
}

/// Tells the server that nothing more will come; whether it hears it does not matter.
pub(super) fn say_goodbye(socket: &OwnedFd) {
    let bye = RequestHeader {
        flags: CommandFlags::default(),
        command: Command::Disconnect,
        cookie: 0,
        offset: 0,
        len: 0,
    };
    let _ = rustix::net::send(socket, &bye.encode(), SendFlags::NOSIGNAL);
}

impl Opening {
    /// Waits until there is a point in going on, for `limit_ns` at most.
    fn wait(&self, limit_ns: u64) -> Result<(), NbdFault> {
        let limit = match self.waits_for() {
            Some(_) => limit_ns,
            None => limit_ns.min(LOOK_AGAIN_NS),
        };
        let timeout = Timespec {
            tv_sec: i64::try_from(limit / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(limit % 1_000_000_000).unwrap_or(0),
        };
        let flags = match self.waits_for() {
            Some((_, Interest::Read)) | None => PollFlags::IN,
            Some((_, Interest::Write)) => PollFlags::OUT,
            Some((_, Interest::ReadWrite)) => PollFlags::IN | PollFlags::OUT,
        };
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        fds.extend(self.socket().map(|socket| PollFd::new(socket, flags)));
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(NbdFault::Socket(error)),
        }
    }
}
