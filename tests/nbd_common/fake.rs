//! A server that says bytes, right or wrong.

use pmcache::wire::nbd::{ExportSummary, OptionReply, RequestHeader, put_greeting};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) const EXPORT: ExportSummary<'_> = ExportSummary {
    name: "",
    description: "",
    bytes: 1 << 20,
    // Flags, flush, FUA, trim, write zeroes, several connections.
    flags: 0x16d,
    block_min: 512,
    block_preferred: 4096,
    payload_max: 64 << 10,
};

/// One connection, seen from the server.
pub(crate) struct Peer(pub(crate) UnixStream);

impl Peer {
    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        // The client may have hung up already: that is its verdict.
        let _ = self.0.write_all(bytes);
    }

    /// Number and data of the next option.
    pub(crate) fn option(&mut self) -> (u32, Vec<u8>) {
        let head = self.take(16);
        assert_eq!(&head[..8], b"IHAVEOPT");
        let number = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let len = u32::from_be_bytes(head[12..].try_into().unwrap());
        (number, self.take(len as usize))
    }

    pub(crate) fn reply(&mut self, option: u32, reply: &OptionReply<'_>) {
        let mut out = vec![];
        reply.put(option, &mut out);
        self.say(&out);
    }

    pub(crate) fn greet(&mut self) {
        let mut out = vec![];
        put_greeting(&mut out);
        self.say(&out);
        assert_eq!(self.take(4), [0, 0, 0, 3]);
    }

    /// A handshake in which all is well.
    pub(crate) fn shake_hands(&mut self, export: ExportSummary<'_>) {
        self.greet();
        loop {
            let (option, _) = self.option();
            if option == 7 {
                self.reply(7, &OptionReply::InfoExport(export));
                self.reply(7, &OptionReply::InfoBlockSize(export));
                self.reply(7, &OptionReply::Ack);
                return;
            }
            self.reply(option, &OptionReply::Ack);
        }
    }

    pub(crate) fn request(&mut self) -> RequestHeader {
        let bytes = self.take(RequestHeader::BYTES);
        RequestHeader::decode(&bytes).unwrap().unwrap()
    }

    /// Whether the client hangs up without another byte.
    pub(crate) fn is_left(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}

/// A server whose n-th connection is served by the n-th script.
pub(crate) struct Fake {
    pub(crate) socket: PathBuf,
    _dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

pub(crate) type Script = Box<dyn FnOnce(&mut Peer) + Send>;

impl Fake {
    pub(crate) fn new(scripts: Vec<Script>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fake.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            for script in scripts {
                let (stream, _) = listener.accept().unwrap();
                let bound = Some(Duration::from_secs(20));
                stream.set_read_timeout(bound).unwrap();
                stream.set_write_timeout(bound).unwrap();
                script(&mut Peer(stream));
            }
        });
        Self {
            socket,
            _dir: dir,
            thread: Some(thread),
        }
    }

    /// The first connection, which asks what the export is, goes well; then come `scripts`.
    pub(crate) fn exporting(export: ExportSummary<'static>, scripts: Vec<Script>) -> Self {
        let probe: Script = Box::new(move |peer| peer.shake_hands(export));
        let after = scripts.into_iter().map(|script| {
            let script: Script = Box::new(move |peer| {
                peer.shake_hands(export);
                script(peer);
            });
            script
        });
        Self::new(std::iter::once(probe).chain(after).collect())
    }

    /// Waits until all scripts have run.
    pub(crate) fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}
