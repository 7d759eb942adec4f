//! A blocking client, for the command line and for tests.

use crate::Error;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The method refused, or there is none.
    #[error("{0}")]
    Refused(Error),
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server hung up before it answered.
    #[error("the server closed the connection without an answer")]
    Closed,
    /// What came back is no reply.
    #[error("the server's answer can't be understood: {0}")]
    Garbled(serde_json::Error),
}

#[derive(Serialize)]
struct Request<'a, P: ?Sized> {
    jsonrpc: &'static str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a P>,
    id: u64,
}

#[derive(Deserialize)]
struct Reply {
    result: Option<Box<RawValue>>,
    error: Option<Error>,
}

/// One connection to a server.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    pending: Vec<u8>,
    next: u64,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// If nobody listens there, or the caller may not.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::connect(path)?,
            pending: Vec::new(),
            next: 1,
        })
    }

    /// Waits at most this long for each part of an answer; by default without end.
    ///
    /// # Errors
    /// If `timeout` is zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// Calls `method` and waits for its result.
    ///
    /// # Errors
    /// What the method answered, or that no answer came.
    pub fn call(
        &mut self,
        method: &str,
        params: Option<&Value>,
    ) -> Result<Box<RawValue>, ClientError> {
        self.send(method, params)
    }

    /// As [`Client::call`], with parameters that are sent as they are written.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_raw(
        &mut self,
        method: &str,
        params: Option<&RawValue>,
    ) -> Result<Box<RawValue>, ClientError> {
        self.send(method, params)
    }

    fn send<P: Serialize + ?Sized>(
        &mut self,
        method: &str,
        params: Option<&P>,
    ) -> Result<Box<RawValue>, ClientError> {
        let request = Request {
            jsonrpc: "2.0",
            method,
            params,
            id: self.next,
        };
        self.next += 1;
        let text = serde_json::to_string(&request).map_err(ClientError::Garbled)?;
        self.stream.write_all(text.as_bytes())?;
        let reply = self.read_reply()?;
        match (reply.result, reply.error) {
            (_, Some(error)) => Err(ClientError::Refused(error)),
            (Some(result), None) => Ok(result),
            // A result of `null` reads as none.
            (None, None) => RawValue::from_string("null".to_owned()).map_err(ClientError::Garbled),
        }
    }

    fn read_reply(&mut self) -> Result<Reply, ClientError> {
        let mut bytes = vec![0_u8; 64 << 10];
        loop {
            // Replies end with a newline and hold none, so the parser runs once per reply.
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(ClientError::Garbled);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => {
                    let arrived = bytes.get(..count).unwrap_or_default();
                    self.pending.extend_from_slice(arrived);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
