//! From the greeting to the choice of an export.

use super::export::{Export, ExportClaim, NbdExports};
use crate::bdev::stream::Input;
use crate::wire::nbd::{
    ClientFlags, InfoKind, InfoRequest, MetaRequest, NbdOption, OptionFault, OptionHeader,
    OptionReply, WireError, put_export_name_reply,
};
use std::sync::Arc;

/// Options that a client may send before it chooses.
const OPTIONS_MAX: u32 = 128;
/// The longest data of an option that are looked at.
const OPTION_BYTES_MAX: u32 = 16 << 10;
/// The longest data of an option that are read and thrown away, so that it can be refused politely.
const OPTION_BYTES_SKIPPED_MAX: u32 = 1 << 20;

const ALLOCATION: &str = "base:allocation";
const CACHE: &str = "pmcache:cache";

/// Which contexts `BLOCK_STATUS` answers for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contexts {
    /// `base:allocation`: bit 0 hole, bit 1 zero.
    pub(super) allocation: bool,
    /// `pmcache:cache`: bit 0 cached, bit 1 dirty.
    pub(super) cache: bool,
}

impl Contexts {
    pub(super) const ALLOCATION_ID: u32 = 1;
    pub(super) const CACHE_ID: u32 = 2;

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// Why a connection ends in its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HandshakeFault {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("more than {OPTIONS_MAX} options")]
    TooManyOptions,
    #[error("an option of {0} bytes")]
    HugeOption(u32),
    #[error("EXPORT_NAME, which has no error reply: {0}")]
    ExportName(OptionFault),
}

/// What a step of the handshake led to.
#[derive(Debug)]
pub(super) enum Step {
    /// More bytes are needed.
    Hungry,
    /// An option was answered; there may be another.
    Again,
    /// The client has said goodbye; its answer is to be sent.
    Bye,
    /// The client has chosen; the answer is still owed.
    Begin(Begin),
}

/// How the client chose, and so how it is answered.
#[derive(Clone, Copy, Debug)]
enum Manner {
    ExportName { no_zeroes: bool },
    Go(InfoKind),
}

/// A choice that awaits its answer.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) claim: ExportClaim,
    pub(super) structured: bool,
    pub(super) contexts: Contexts,
    manner: Manner,
}

const GO: u32 = 7;

impl Begin {
    /// Answers that transmission begins.
    pub(super) fn accept(&self, out: &mut Vec<u8>) {
        let info = self.claim.config.bdev.info();
        match self.manner {
            Manner::ExportName { no_zeroes } => {
                put_export_name_reply(&self.claim.summary(&info, self.structured), no_zeroes, out);
            }
            Manner::Go(wants) => put_info(GO, &self.claim, wants, self.structured, out),
        }
    }

    /// Answers that the export can't be opened.
    ///
    /// # Errors
    /// If the option has no error reply.
    pub(super) fn refuse(&self, out: &mut Vec<u8>) -> Result<(), HandshakeFault> {
        match self.manner {
            Manner::ExportName { .. } => Err(HandshakeFault::ExportName(OptionFault::CannotOpen)),
            Manner::Go(_) => {
                OptionReply::Error(OptionFault::CannotOpen).put(GO, out);
                Ok(())
            }
        }
    }
}

/// All that INFO and GO answer on success. The sizes are told to everybody: who does not know them
/// ignores them, and who aligns by them is served better.
fn put_info(option: u32, export: &Export, wants: InfoKind, structured: bool, out: &mut Vec<u8>) {
    let info = export.config.bdev.info();
    let summary = export.summary(&info, structured);
    OptionReply::InfoExport(summary).put(option, out);
    if wants.name {
        OptionReply::InfoName(summary.name).put(option, out);
    }
    if wants.description && !summary.description.is_empty() {
        OptionReply::InfoDescription(summary.description).put(option, out);
    }
    OptionReply::InfoBlockSize(summary).put(option, out);
    OptionReply::Ack.put(option, out);
}

/// The server's side of one handshake.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    flags: Option<ClientFlags>,
    options: u32,
    /// Data still to be thrown away, of an option that was refused.
    skip: usize,
    structured: bool,
    /// What `SET_META_CONTEXT` selected, and for which export.
    selected: Option<(u64, Contexts)>,
}

impl Handshake {
    /// Takes at most one option from `input` and answers it.
    ///
    /// # Errors
    /// Why the connection must end.
    pub(super) fn step(
        &mut self,
        input: &mut Input,
        exports: &NbdExports,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeFault> {
        self.skip -= input.skip(self.skip);
        if self.skip > 0 {
            return Ok(Step::Hungry);
        }
        let Some(flags) = self.flags else {
            self.flags = ClientFlags::decode(input.unread())?;
            if self.flags.is_none() {
                return Ok(Step::Hungry);
            }
            input.skip(ClientFlags::BYTES);
            return Ok(Step::Again);
        };
        let Some(header) = OptionHeader::decode(input.unread())? else {
            return Ok(Step::Hungry);
        };
        if header.len > OPTION_BYTES_MAX {
            self.count_option()?;
            input.skip(OptionHeader::BYTES);
            return self.refuse_long(header, out);
        }
        let len = header.len as usize;
        let Some(data) = input
            .unread()
            .get(OptionHeader::BYTES..OptionHeader::BYTES + len)
        else {
            return Ok(Step::Hungry);
        };
        self.count_option()?;
        let step = self.answer(flags, header.option, data, exports, out);
        input.skip(OptionHeader::BYTES + len);
        step
    }

    fn count_option(&mut self) -> Result<(), HandshakeFault> {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(HandshakeFault::TooManyOptions);
        }
        Ok(())
    }

    fn refuse_long(
        &mut self,
        header: OptionHeader,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeFault> {
        if NbdOption::is_export_name(header.option) {
            return Err(HandshakeFault::ExportName(OptionFault::TooBig));
        }
        if header.len > OPTION_BYTES_SKIPPED_MAX {
            return Err(HandshakeFault::HugeOption(header.len));
        }
        self.skip = header.len as usize;
        OptionReply::Error(OptionFault::TooBig).put(header.option, out);
        Ok(Step::Again)
    }

    fn answer(
        &mut self,
        flags: ClientFlags,
        number: u32,
        data: &[u8],
        exports: &NbdExports,
        out: &mut Vec<u8>,
    ) -> Result<Step, HandshakeFault> {
        let step = match NbdOption::decode(number, data) {
            Ok(NbdOption::ExportName(name)) => {
                let manner = Manner::ExportName {
                    no_zeroes: flags.no_zeroes,
                };
                let begin = self.begin(exports, name, manner);
                return begin.map_err(HandshakeFault::ExportName);
            }
            Ok(NbdOption::Go(request)) => {
                self.begin(exports, request.name, Manner::Go(request.wants))
            }
            Ok(NbdOption::Abort) => {
                OptionReply::Ack.put(number, out);
                return Ok(Step::Bye);
            }
            Ok(option) => self.reply(number, &option, exports, out),
            Err(fault) if NbdOption::is_export_name(number) => {
                return Err(HandshakeFault::ExportName(fault));
            }
            Err(fault) => Err(fault),
        };
        Ok(step.unwrap_or_else(|fault| {
            OptionReply::Error(fault).put(number, out);
            Step::Again
        }))
    }

    /// Answers an option that leads to neither transmission nor goodbye.
    fn reply(
        &mut self,
        number: u32,
        option: &NbdOption<'_>,
        exports: &NbdExports,
        out: &mut Vec<u8>,
    ) -> Result<Step, OptionFault> {
        match option {
            NbdOption::List => {
                for export in exports.all() {
                    let (name, description) = (&export.config.name, &export.config.description);
                    OptionReply::Server { name, description }.put(number, out);
                }
                OptionReply::Ack.put(number, out);
            }
            NbdOption::Info(InfoRequest { name, wants }) => {
                let export = exports.find(name).ok_or(OptionFault::UnknownExport)?;
                put_info(number, &export, *wants, self.structured, out);
            }
            NbdOption::StructuredReply if self.structured => {
                return Err(OptionFault::AlreadyStructured);
            }
            NbdOption::StructuredReply => {
                self.structured = true;
                OptionReply::Ack.put(number, out);
            }
            NbdOption::ListMetaContext(request) => {
                find(exports, request)?;
                let contexts = matching(request, true);
                put_contexts(number, contexts, true, out);
            }
            NbdOption::SetMetaContext(request) => {
                self.selected = None;
                if !self.structured {
                    return Err(OptionFault::NeedsStructured);
                }
                let export = find(exports, request)?;
                let contexts = matching(request, false);
                self.selected = Some((export.id, contexts));
                put_contexts(number, contexts, false, out);
            }
            _ => return Err(OptionFault::Unsupported),
        }
        Ok(Step::Again)
    }

    fn begin(&self, exports: &NbdExports, name: &str, manner: Manner) -> Result<Step, OptionFault> {
        let claim = exports.claim(name).ok_or(OptionFault::UnknownExport)?;
        // A selection for another export counts for nothing.
        let contexts = match self.selected {
            Some((id, contexts)) if id == claim.id => contexts,
            _ => Contexts::default(),
        };
        Ok(Step::Begin(Begin {
            claim,
            structured: self.structured,
            contexts,
            manner,
        }))
    }
}

fn find(exports: &NbdExports, request: &MetaRequest<'_>) -> Result<Arc<Export>, OptionFault> {
    exports.find(request.name).ok_or(OptionFault::UnknownExport)
}

/// The contexts that the queries name. In a listing no query at all means every context, and a bare
/// namespace all that is in it.
fn matching(request: &MetaRequest<'_>, listing: bool) -> Contexts {
    let asked = |name: &str, namespace: &str| {
        (listing && request.queries.is_empty())
            || request
                .queries
                .iter()
                .any(|query| *query == name || (listing && *query == namespace))
    };
    Contexts {
        allocation: asked(ALLOCATION, "base:"),
        cache: asked(CACHE, "pmcache:"),
    }
}

fn put_contexts(option: u32, contexts: Contexts, listing: bool, out: &mut Vec<u8>) {
    let all = [
        (contexts.allocation, Contexts::ALLOCATION_ID, ALLOCATION),
        (contexts.cache, Contexts::CACHE_ID, CACHE),
    ];
    for (_, id, name) in all.into_iter().filter(|(asked, ..)| *asked) {
        let id = if listing { 0 } else { id };
        OptionReply::MetaContext { id, name }.put(option, out);
    }
    OptionReply::Ack.put(option, out);
}
