//! Answers on their way in: each goes to its command, data to where the request wants them.

use super::NbdFault;
use super::jobs::{Jobs, Part};
use crate::bdev::IoStatus;
use crate::bdev::stream::{Input, Received};
use crate::wire::nbd::{ChunkKind, Command, ReplyHeader, WireErrno, data_offset, error_code, hole};
use std::os::fd::AsFd;

/// System calls that one turn may spend.
const CALLS_MAX: usize = 16;
/// The longest chunk without data: error number, message of 4096 bytes, offset.
const CHUNK_BYTES_MAX: u32 = 8 << 10;
/// Bytes of a data chunk before its data.
const OFFSET_BYTES: u32 = 8;

/// What the next received bytes are.
#[derive(Clone, Copy, Debug)]
enum Incoming {
    Header,
    /// Data of a READ: `left` bytes for `at` of its range. `done`: then the READ has ended.
    Data {
        part: u64,
        at: usize,
        left: usize,
        done: bool,
    },
}

/// Whether the socket may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It was silent.
    Nothing,
    /// Something came.
    Something,
}

/// One connection's answers.
#[derive(Debug)]
pub(super) struct Replies {
    input: Input,
    incoming: Incoming,
    structured: bool,
}

/// One chunk's header, beyond its cookie.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    part: u64,
    kind: ChunkKind,
    done: bool,
    len: u32,
}

fn status_of(error: u32) -> IoStatus {
    match WireErrno::from_code(error) {
        Some(WireErrno::Perm) => IoStatus::ReadOnly,
        Some(WireErrno::Invalid) => IoStatus::Invalid,
        Some(WireErrno::NoSpace) => IoStatus::NoSpace,
        Some(WireErrno::NotSupported) => IoStatus::NotSupported,
        Some(WireErrno::Shutdown) => IoStatus::Aborted,
        Some(WireErrno::Io) | None => IoStatus::IoError,
    }
}

impl Replies {
    pub(super) fn new(input: Input, structured: bool) -> Self {
        Self {
            input,
            incoming: Incoming::Header,
            structured,
        }
    }

    /// Receives and uses what there is, up to a bound.
    ///
    /// # Errors
    /// Why there is no going on with this server.
    pub(super) fn receive(
        &mut self,
        socket: impl AsFd,
        jobs: &mut Jobs,
    ) -> Result<Heard, NbdFault> {
        let mut heard = Heard::Nothing;
        for _ in 0..CALLS_MAX {
            let payload = match self.incoming {
                Incoming::Data { part, at, left, .. } => jobs.target(part, at, left),
                Incoming::Header => &mut [],
            };
            match self.input.receive(&socket, payload)? {
                Received::Nothing => break,
                Received::End => return Err(NbdFault::End),
                Received::Some { payload, all } => {
                    heard = Heard::Something;
                    self.data_came(payload);
                    self.digest(jobs)?;
                    if all {
                        break;
                    }
                }
            }
        }
        Ok(heard)
    }

    fn data_came(&mut self, count: usize) {
        if let Incoming::Data { at, left, .. } = &mut self.incoming {
            *at += count;
            *left -= count;
        }
    }

    /// Uses received bytes until more are needed.
    fn digest(&mut self, jobs: &mut Jobs) -> Result<(), NbdFault> {
        loop {
            if let Incoming::Data { part, at, left, .. } = self.incoming {
                let moved = self.input.move_to(jobs.target(part, at, left));
                self.data_came(moved);
            }
            match self.incoming {
                Incoming::Data { left, .. } if left > 0 => return Ok(()),
                Incoming::Data { part, done, .. } => {
                    self.incoming = Incoming::Header;
                    if done {
                        end(jobs, part)?;
                    }
                }
                Incoming::Header => {
                    let Some(header) = ReplyHeader::decode(self.input.unread())? else {
                        return Ok(());
                    };
                    if !self.header_came(header, jobs)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Uses a header with what belongs to it; false if that is not all there.
    fn header_came(&mut self, header: ReplyHeader, jobs: &mut Jobs) -> Result<bool, NbdFault> {
        let (ReplyHeader::Simple { cookie, .. } | ReplyHeader::Chunk { cookie, .. }) = header;
        let number = jobs.find(cookie).ok_or(NbdFault::Cookie(cookie))?;
        let part = jobs.part(number).ok_or(NbdFault::Cookie(cookie))?;
        if !part.sent {
            return Err(NbdFault::TooEarly(cookie));
        }
        match header {
            ReplyHeader::Simple { error, .. } => {
                let (is_read, len) = (part.command == Command::Read, part.len);
                if is_read && self.structured {
                    return Err(NbdFault::ReplyKind(cookie));
                }
                self.input.skip(header.bytes());
                if is_read && error == 0 {
                    if let Some(part) = jobs.part_mut(number) {
                        part.covered = len;
                    }
                    self.incoming = Incoming::Data {
                        part: number,
                        at: 0,
                        left: len as usize,
                        done: true,
                    };
                } else if error == 0 {
                    jobs.end(number, IoStatus::Ok);
                } else {
                    jobs.end(number, status_of(error));
                }
                Ok(true)
            }
            ReplyHeader::Chunk { .. } if !self.structured => Err(NbdFault::ReplyKind(cookie)),
            ReplyHeader::Chunk {
                done, kind, len, ..
            } => {
                let chunk = Chunk {
                    part: number,
                    kind,
                    done,
                    len,
                };
                self.chunk_came(chunk, jobs)
            }
        }
    }

    fn chunk_came(&mut self, chunk: Chunk, jobs: &mut Jobs) -> Result<bool, NbdFault> {
        let Some(part) = jobs.part_mut(chunk.part) else {
            return Ok(true);
        };
        let (cookie, len) = (part.cookie, chunk.len);
        let is_read = part.command == Command::Read;
        let body_bytes = match chunk.kind {
            ChunkKind::OffsetData if is_read && len > OFFSET_BYTES => OFFSET_BYTES,
            ChunkKind::OffsetHole if is_read => len,
            ChunkKind::None | ChunkKind::Error => len,
            _ => return Err(NbdFault::Chunk(cookie)),
        };
        if body_bytes > CHUNK_BYTES_MAX {
            return Err(NbdFault::ChunkLength { cookie, len });
        }
        let whole = ReplyHeader::CHUNK_BYTES + body_bytes as usize;
        let received = self.input.unread();
        let Some(body) = received.get(ReplyHeader::CHUNK_BYTES..whole) else {
            return Ok(false);
        };
        let wrong_length = NbdFault::ChunkLength { cookie, len };
        match chunk.kind {
            ChunkKind::OffsetData => {
                let offset = data_offset(body).ok_or(wrong_length)?;
                let left = len - OFFSET_BYTES;
                let at = cover(part, offset, left)?;
                self.incoming = Incoming::Data {
                    part: chunk.part,
                    at,
                    left: left as usize,
                    done: chunk.done,
                };
            }
            ChunkKind::OffsetHole => {
                let (offset, len) = hole(body).ok_or(wrong_length)?;
                let at = cover(part, offset, len)?;
                jobs.target(chunk.part, at, len as usize).fill(0);
            }
            ChunkKind::Error => {
                let error = error_code(body).ok_or(wrong_length)?;
                part.status = part.status.and(status_of(error));
            }
            _ if len > 0 => return Err(wrong_length),
            _ if !chunk.done => return Err(NbdFault::Chunk(cookie)),
            _ => {}
        }
        self.input.skip(whole);
        if chunk.done && matches!(self.incoming, Incoming::Header) {
            end(jobs, chunk.part)?;
        }
        Ok(true)
    }
}

/// Books `len` bytes from `offset` of the device for a READ; returns where they are in its range.
fn cover(part: &mut Part, offset: u64, len: u32) -> Result<usize, NbdFault> {
    let outside = NbdFault::Outside(part.cookie);
    let at = offset.checked_sub(part.offset);
    let at = at.filter(|at| at + u64::from(len) <= u64::from(part.len));
    let covered = part.covered.checked_add(len);
    match (at, covered) {
        (Some(at), Some(covered)) if covered <= part.len => {
            part.covered = covered;
            usize::try_from(at).map_err(|_| outside)
        }
        _ => Err(outside),
    }
}

/// Ends a command whose last chunk has come.
fn end(jobs: &mut Jobs, number: u64) -> Result<(), NbdFault> {
    if let Some(part) = jobs.part(number)
        && part.command == Command::Read
        && part.status.is_ok()
        && part.covered < part.len
    {
        return Err(NbdFault::Incomplete {
            cookie: part.cookie,
            wanted: part.len,
            got: part.covered,
        });
    }
    jobs.end(number, IoStatus::Ok);
    Ok(())
}
