//! The handshake as a client: bytes in, bytes out, and in the end what was agreed.

use super::NbdFault;
use crate::bdev::stream::Input;
use crate::wire::nbd::{
    ClientFlags, ClientOption, Greeting, InfoAnswer, InfoKind, InfoRequest, OptionReplyHeader,
    OptionVerdict,
};

/// The longest payload of a server that does not say; what the protocol tells clients to assume.
const PAYLOAD_BYTES_DEFAULT: u32 = 32 << 20;
/// The longest answer to an option that is read.
const ANSWER_BYTES_MAX: u32 = 16 << 10;
/// How many answers an option may have.
const ANSWERS_MAX: u32 = 64;

/// What the server says of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Size in bytes.
    pub(super) bytes: u64,
    /// Transmission flags.
    pub(super) flags: u16,
    /// The smallest unit of I/O in bytes; 1 if it did not say.
    pub(super) block_min: u32,
    /// The longest READ or WRITE in bytes.
    pub(super) payload_max: u32,
    /// Whether READs are answered in chunks.
    pub(super) structured: bool,
}

/// Whether there is more to do with what has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    Hungry,
    /// There may be.
    Again,
    /// Requests may be sent.
    Ready(Agreed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Structured,
    Go,
    ExportName,
}

/// How far the handshake is.
#[derive(Debug)]
pub(super) struct Negotiation {
    export: String,
    wants_structured: bool,
    state: State,
    no_zeroes: bool,
    structured: bool,
    size: Option<(u64, u16)>,
    block_size: Option<(u32, u32)>,
    answers: u32,
}

impl Negotiation {
    pub(super) fn new(export: String, wants_structured: bool) -> Self {
        Self {
            export,
            wants_structured,
            state: State::Greeting,
            no_zeroes: false,
            structured: false,
            size: None,
            block_size: None,
            answers: 0,
        }
    }

    /// Uses one message of `input`, and appends what is to be sent to `out`.
    ///
    /// # Errors
    /// Why there is no going on with this server.
    pub(super) fn step(&mut self, input: &mut Input, out: &mut Vec<u8>) -> Result<Step, NbdFault> {
        match self.state {
            State::Greeting => {
                let Some(greeting) = Greeting::decode(input.unread())? else {
                    return Ok(Step::Hungry);
                };
                input.skip(Greeting::BYTES);
                if !greeting.fixed_newstyle {
                    return Err(NbdFault::NotFixedNewstyle);
                }
                self.no_zeroes = greeting.no_zeroes;
                let no_zeroes = self.no_zeroes;
                ClientFlags { no_zeroes }.put(out);
                if self.wants_structured {
                    self.state = State::Structured;
                    ClientOption::StructuredReply.put(out);
                } else {
                    self.go(out);
                }
                Ok(Step::Again)
            }
            State::Structured | State::Go => self.option_answer(input, out),
            State::ExportName => {
                let answer = InfoAnswer::decode_export_name(input.unread(), self.no_zeroes);
                let Some((answer, taken)) = answer else {
                    return Ok(Step::Hungry);
                };
                input.skip(taken);
                self.learn(answer);
                self.ready()
            }
        }
    }

    fn option(&self) -> ClientOption<'_> {
        let wants = InfoKind {
            block_size: true,
            ..InfoKind::default()
        };
        let name = &self.export;
        match self.state {
            State::Structured => ClientOption::StructuredReply,
            State::ExportName => ClientOption::ExportName(name),
            State::Greeting | State::Go => ClientOption::Go(InfoRequest { name, wants }),
        }
    }

    fn go(&mut self, out: &mut Vec<u8>) {
        self.state = State::Go;
        self.option().put(out);
    }

    fn option_answer(&mut self, input: &mut Input, out: &mut Vec<u8>) -> Result<Step, NbdFault> {
        let Some(header) = OptionReplyHeader::decode(input.unread())? else {
            return Ok(Step::Hungry);
        };
        let option = header.option;
        if option != self.option().number() {
            return Err(NbdFault::OutOfPlace { option });
        }
        if header.len > ANSWER_BYTES_MAX || self.answers >= ANSWERS_MAX {
            return Err(NbdFault::LongAnswer(header.len));
        }
        let whole = OptionReplyHeader::BYTES + header.len as usize;
        let Some(data) = input.unread().get(OptionReplyHeader::BYTES..whole) else {
            return Ok(Step::Hungry);
        };
        let info = match header.verdict {
            OptionVerdict::Info => InfoAnswer::decode(data),
            _ => None,
        };
        input.skip(whole);
        self.answers += 1;
        match (self.state, header.verdict) {
            (State::Structured, OptionVerdict::Ack) => {
                self.structured = true;
                self.go(out);
            }
            (State::Structured, OptionVerdict::Unsupported | OptionVerdict::Refused(_)) => {
                self.go(out);
            }
            (State::Go, OptionVerdict::Ack) => return self.ready(),
            (State::Go, OptionVerdict::Info) => {
                self.learn(info.ok_or(NbdFault::OutOfPlace { option })?);
            }
            // Older than GO: this one has no way of refusing but to hang up.
            (State::Go, OptionVerdict::Unsupported) => {
                self.state = State::ExportName;
                self.option().put(out);
            }
            (State::Go, OptionVerdict::Refused(code)) => return Err(NbdFault::Refused(code)),
            _ => return Err(NbdFault::OutOfPlace { option }),
        }
        Ok(Step::Again)
    }

    fn learn(&mut self, answer: InfoAnswer) {
        match answer {
            InfoAnswer::Export { bytes, flags } => self.size = Some((bytes, flags)),
            InfoAnswer::BlockSize { min, payload_max } => {
                self.block_size = Some((min, payload_max));
            }
            InfoAnswer::Other => {}
        }
    }

    fn ready(&self) -> Result<Step, NbdFault> {
        let (bytes, flags) = self.size.ok_or(NbdFault::NoSize)?;
        let (block_min, payload_max) = self.block_size.unwrap_or((1, PAYLOAD_BYTES_DEFAULT));
        Ok(Step::Ready(Agreed {
            bytes,
            flags,
            block_min,
            payload_max: payload_max.min(PAYLOAD_BYTES_DEFAULT),
            structured: self.structured,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::nbd::{ExportSummary, OptionFault, OptionReply, put_export_name_reply};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const EXPORT: ExportSummary<'_> = ExportSummary {
        name: "vol",
        description: "",
        bytes: 1 << 20,
        flags: 0x6d,
        block_min: 512,
        block_preferred: 4096,
        payload_max: 1 << 20,
    };

    /// Feeds `bytes` one at a time; the last step, and all that was answered.
    fn feed(negotiation: &mut Negotiation, bytes: &[u8]) -> (Result<Step, NbdFault>, Vec<u8>) {
        let (mut peer, own) = UnixStream::pair().unwrap();
        let (mut input, mut out) = (Input::new(), vec![]);
        for byte in bytes {
            peer.write_all(&[*byte]).unwrap();
            input.receive(&own, &mut []).unwrap();
            loop {
                match negotiation.step(&mut input, &mut out) {
                    Ok(Step::Hungry) => break,
                    Ok(Step::Again) => {}
                    other => return (other, out),
                }
            }
        }
        (Ok(Step::Hungry), out)
    }

    fn greeting(flags: u8) -> Vec<u8> {
        let mut bytes = b"NBDMAGICIHAVEOPT\0".to_vec();
        bytes.push(flags);
        bytes
    }

    fn answers(replies: &[(u32, OptionReply<'_>)]) -> Vec<u8> {
        let mut bytes = greeting(3);
        for (option, reply) in replies {
            reply.put(*option, &mut bytes);
        }
        bytes
    }

    fn unsupported(option: u32) -> (u32, OptionReply<'static>) {
        (option, OptionReply::Error(OptionFault::Unsupported))
    }

    #[test]
    fn a_modern_server_agrees_on_everything() {
        let bytes = answers(&[
            (8, OptionReply::Ack),
            (7, OptionReply::InfoExport(EXPORT)),
            (7, OptionReply::InfoName("vol")),
            (7, OptionReply::InfoBlockSize(EXPORT)),
            (7, OptionReply::Ack),
        ]);
        let mut negotiation = Negotiation::new("vol".into(), true);
        let (step, out) = feed(&mut negotiation, &bytes);
        let agreed = Agreed {
            bytes: 1 << 20,
            flags: 0x6d,
            block_min: 512,
            payload_max: 1 << 20,
            structured: true,
        };
        assert_eq!(step, Ok(Step::Ready(agreed)));
        let want = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x07\0\0\0\x0b\
            \0\0\0\x03vol\0\x01\0\x03";
        assert_eq!(out, want);
    }

    #[test]
    fn an_old_server_is_asked_the_old_way() {
        let mut bytes = answers(&[unsupported(8), unsupported(7)]);
        bytes[17] = 1;
        put_export_name_reply(&EXPORT, false, &mut bytes);
        let mut negotiation = Negotiation::new("vol".into(), true);
        let (step, out) = feed(&mut negotiation, &bytes);
        let agreed = Agreed {
            bytes: 1 << 20,
            flags: 0x6d,
            block_min: 1,
            payload_max: 32 << 20,
            structured: false,
        };
        assert_eq!(step, Ok(Step::Ready(agreed)));
        assert!(out.starts_with(b"\0\0\0\x01"));
        assert!(out.ends_with(b"IHAVEOPT\0\0\0\x01\0\0\0\x03vol"));
    }

    #[test]
    fn whoever_wants_simple_replies_does_not_ask_for_others() {
        let mut negotiation = Negotiation::new(String::new(), false);
        let (step, out) = feed(&mut negotiation, &greeting(3));
        assert_eq!(step, Ok(Step::Hungry));
        assert!(out.starts_with(b"\0\0\0\x03IHAVEOPT\0\0\0\x07"));
    }

    #[test]
    fn servers_out_of_step_are_left() {
        let refused = OptionReply::Error(OptionFault::UnknownExport);
        let out_of_place = |option| NbdFault::OutOfPlace { option };
        let bad_info = {
            let mut bytes = answers(&[unsupported(8), (7, OptionReply::InfoExport(EXPORT))]);
            let at = bytes.len() - 13;
            bytes.remove(at);
            let at = bytes.len() - 12;
            bytes[at] = 11;
            bytes
        };
        let mut huge = answers(&[(8, OptionReply::Ack)]);
        let at = huge.len() - 4;
        huge[at] = 1;
        let many: Vec<_> = std::iter::once((8, OptionReply::Ack))
            .chain((0..100).map(|_| (7, OptionReply::InfoName("x"))))
            .collect();
        let ack = (8, OptionReply::Ack);
        for (bytes, fault) in [
            (greeting(2), NbdFault::NotFixedNewstyle),
            (answers(&[(9, OptionReply::Ack)]), out_of_place(9)),
            (answers(&[(8, OptionReply::InfoName("x"))]), out_of_place(8)),
            (
                answers(&[ack, (7, refused)]),
                NbdFault::Refused(0x8000_0006),
            ),
            (answers(&[ack, (7, OptionReply::Ack)]), NbdFault::NoSize),
            (
                answers(&[ack, (7, OptionReply::MetaContext { id: 1, name: "x" })]),
                out_of_place(7),
            ),
            (huge, NbdFault::LongAnswer(1 << 24)),
            (answers(&many), NbdFault::LongAnswer(3)),
        ] {
            let mut negotiation = Negotiation::new("vol".into(), true);
            assert_eq!(feed(&mut negotiation, &bytes).0, Err(fault));
        }
        let mut negotiation = Negotiation::new("vol".into(), true);
        assert!(feed(&mut negotiation, &bad_info).0.is_err());
    }
}
