//! What a qpair sends: completions, data, and that it is ready for data.

use crate::bdev::IoBuf;
use crate::target::stream::Output;
use crate::wire::nvme::{
    Alignment, CapsuleRespPdu, Cqe, DataPdu, Digests, R2tPdu, Status, digest, flag,
};

/// How replies look on one connection.
#[derive(Debug)]
pub(super) struct Replies {
    pub(super) digests: Digests,
    pub(super) alignment: Alignment,
    /// Data may also be a completion.
    pub(super) c2h_success: bool,
    /// How far the submission queue has been read; it has so many entries.
    sq_head: u16,
    sq_size: u16,
    flow_control: bool,
}

impl Default for Replies {
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            alignment: Alignment::default(),
            c2h_success: false,
            sq_head: 0,
            sq_size: 2,
            flow_control: true,
        }
    }
}

impl Replies {
    /// The host has connected to a queue of `size` entries.
    pub(super) fn connected(&mut self, size: u16, flow_control: bool, c2h_success: bool) {
        self.sq_size = size.max(2);
        self.flow_control = flow_control;
        self.c2h_success = c2h_success && !flow_control;
    }

    /// A command has been taken from the queue.
    pub(super) fn command_taken(&mut self) {
        self.sq_head = (self.sq_head + 1) % self.sq_size;
    }

    /// Completes command `cid`.
    pub(super) fn complete(&self, cid: u16, status: Status, result: u64, output: &mut Output) {
        let head = match self.flow_control {
            true => self.sq_head,
            false => 0xffff,
        };
        let cqe = Cqe::new(cid, status, result, head);
        output.put(|out| CapsuleRespPdu(cqe).put(self.digests, out));
    }

    fn data_head(&self, cid: u16, len: usize, completes: bool, output: &mut Output) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let mut flags = flag::LAST;
        if completes {
            flags |= flag::SUCCESS;
        }
        let pdu = DataPdu::new(cid, 0, 0, len);
        output.put(|out| pdu.put_to_host(flags, self.digests, self.alignment, out));
    }

    /// Sends the data of a command that went well, from where they are, and completes it.
    pub(super) fn data(&self, cid: u16, buf: IoBuf, output: &mut Output) {
        self.data_head(cid, buf.len(), self.c2h_success, output);
        let sum = self.digests.data.then(|| digest(&buf));
        output.put_body(buf);
        if let Some(sum) = sum {
            output.put(|out| out.extend_from_slice(&sum.to_le_bytes()));
        }
        if !self.c2h_success {
            self.complete(cid, Status::SUCCESS, 0, output);
        }
    }

    /// Sends a page, and completes the command.
    pub(super) fn page(&self, cid: u16, page: &[u8], dw0: u32, output: &mut Output) {
        if !page.is_empty() {
            self.data_head(cid, page.len(), false, output);
            output.put(|out| {
                out.extend_from_slice(page);
                if self.digests.data {
                    out.extend_from_slice(&digest(page).to_le_bytes());
                }
            });
        }
        self.complete(cid, Status::SUCCESS, dw0.into(), output);
    }

    /// Asks for the `len` bytes of command `cid`, under `tag`: all at once.
    pub(super) fn ready(&self, cid: u16, tag: u16, len: usize, output: &mut Output) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let pdu = R2tPdu::new(cid, tag, 0, len);
        output.put(|out| pdu.put(self.digests, out));
    }
}
