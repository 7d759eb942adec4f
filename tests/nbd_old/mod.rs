//! The smallest NBD client: one request at a time, simple replies.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "not every test uses all of it, and each stops at the first surprise"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const OPTION_EXPORT_NAME: u32 = 1;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;

/// A client in transmission.
pub(crate) struct OldClient {
    stream: UnixStream,
    /// The export's size in bytes, as it was told when this client came.
    pub(crate) size: u64,
}

impl OldClient {
    pub(crate) fn connect(socket: &Path, export: &str) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(OPTION_EXPORT_NAME.to_be_bytes());
        hello.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello).unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        let size = u64::from_be_bytes(answer[..8].try_into().unwrap());
        Self { stream, size }
    }

    fn request(&mut self, command: u16, at: u64, len: usize, data: &[u8]) {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(reply[4..8], [0; 4], "the request failed");
    }

    /// Whether the server has closed the connection; waits for it or for an unasked byte.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    pub(crate) fn write(&mut self, at: u64, data: &[u8]) {
        self.request(COMMAND_WRITE, at, data.len(), data);
    }

    pub(crate) fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.request(COMMAND_READ, at, len, &[]);
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).unwrap();
        data
    }
}
