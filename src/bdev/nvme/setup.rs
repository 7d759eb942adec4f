//! What is said on an admin queue until the controller can be used, and what it tells meanwhile.

use super::auth::{HostAuth, Step};
use super::dialogue::Saying;
use super::{NvmeConfig, NvmeFault};
use crate::wire::nvme::{
    Capabilities, ConnectCommand, ConnectData, ControllerTold, Cqe, IDENTIFY_BYTES, Identities,
    NamespaceTold, NvmControllerTold, PropertyCommand, Sqe, Status, admin, async_event, cc, cns,
    connect_flag, csts, feature, log_id, namespace_list, property,
};
use reactors::ReactorHandle;
use zerocopy::IntoBytes;

/// Namespaces that are looked at; controllers have few.
const NAMESPACES_MAX: usize = 128;
/// SQSIZE of the admin queue, 0-based, as other hosts have it.
const ADMIN_QUEUE_SIZE: u16 = 31;

/// One namespace, as it was told.
#[derive(Clone, Debug)]
pub(super) struct FoundNamespace {
    pub(super) nsid: u32,
    pub(super) told: NamespaceTold,
    pub(super) identities: Identities,
}

/// A controller, as it was told.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) cntlid: u16,
    pub(super) version: u32,
    pub(super) capabilities: Capabilities,
    pub(super) controller: ControllerTold,
    pub(super) nvm: NvmControllerTold,
    /// I/O queues that it grants.
    pub(super) queues: u16,
    pub(super) namespaces: Vec<FoundNamespace>,
    /// It tells when they change.
    pub(super) tells: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connect,
    Authenticate,
    Capabilities,
    Version,
    Enable,
    Ready,
    Controller,
    NvmController,
    Events,
    /// Here a visit begins.
    Changes,
    List,
    Namespace(usize),
    Descriptors(usize),
    Queues,
    Done,
}

impl Stage {
    /// For people.
    fn what(self) -> &'static str {
        match self {
            Self::Connect => "Connect",
            Self::Authenticate => "Authentication",
            Self::Capabilities | Self::Version | Self::Ready => "Property Get",
            Self::Enable => "Property Set",
            Self::Controller | Self::NvmController => "Identify Controller",
            Self::List => "Identify Active Namespaces",
            Self::Namespace(_) => "Identify Namespace",
            Self::Descriptors(_) => "Identify Descriptors",
            Self::Changes => "Get Log Page",
            Self::Events | Self::Queues | Self::Done => "Set Features",
        }
    }
}

/// The conversation.
#[derive(Debug)]
pub(super) struct Setup {
    stage: Stage,
    connect: Saying,
    config: NvmeConfig,
    waker: Option<ReactorHandle>,
    /// Where the controller wants it.
    auth: Option<HostAuth>,
    queues_wanted: u16,
    only: Option<u32>,
    /// The controller is known; only its namespaces are looked at.
    is_visit: bool,
    found: Found,
}

/// Connect to queue `qid`; `cntlid` is [`ConnectData::ANY`] for the admin queue.
pub(super) fn connect(config: &NvmeConfig, qid: u16, cntlid: u16, queue_size: u16) -> Saying {
    let flags = match config.no_flow_control && qid > 0 {
        true => connect_flag::NO_FLOW_CONTROL,
        false => 0,
    };
    let keep_alive_ms = if qid == 0 { config.keep_alive_ms } else { 0 };
    let command = ConnectCommand::new(qid, queue_size, flags, keep_alive_ms);
    let (host_id, subnqn) = (config.host_id(), &config.uri.subnqn);
    let data = ConnectData::new(host_id, cntlid, subnqn, &config.host_nqn);
    Saying {
        sqe: command.to_sqe(0),
        data: data.as_bytes().to_vec(),
        ..Saying::plain(Sqe::default())
    }
}

/// How a Connect ended: the controller's identifier, and whether it wants to know who we are.
pub(super) fn connected(cqe: &Cqe) -> Result<(u16, bool), NvmeFault> {
    const AUTHENTICATION: u8 = 1 << 1;
    const SECURE_CHANNEL: u8 = 1 << 2;
    accept("Connect", cqe.status())?;
    let [low, high, wants, ..] = cqe.result().to_le_bytes();
    if wants & SECURE_CHANNEL != 0 {
        return Err(NvmeFault::Unusable("wants a secure channel"));
    }
    let wants_to_know = wants & AUTHENTICATION != 0;
    Ok((u16::from_le_bytes([low, high]), wants_to_know))
}

fn accept(what: &'static str, status: Status) -> Result<(), NvmeFault> {
    match status.is_ok() {
        true => Ok(()),
        false => Err(NvmeFault::Refused { what, status }),
    }
}

fn identify(page: u8, nsid: u32) -> Saying {
    let mut sqe = Sqe::new(admin::IDENTIFY, 0, nsid);
    sqe.cdw10 = u32::from(page).into();
    Saying::for_page(sqe)
}

fn set_feature(id: u8, value: u32) -> Saying {
    let mut sqe = Sqe::new(admin::SET_FEATURES, 0, 0);
    sqe.cdw10 = u32::from(id).into();
    sqe.cdw11 = value.into();
    Saying::plain(sqe)
}

impl Setup {
    /// With the controller of `config`. `waker`: who is to be told when something has been calculated.
    pub(super) fn new(config: &NvmeConfig, waker: Option<ReactorHandle>) -> Self {
        Self {
            config: config.clone(),
            waker,
            auth: None,
            stage: Stage::Connect,
            connect: connect(config, 0, ConnectData::ANY, ADMIN_QUEUE_SIZE),
            queues_wanted: config.io_queues,
            only: config.uri.nsid,
            is_visit: false,
            found: Found {
                cntlid: 0,
                version: 0,
                capabilities: Capabilities(0),
                controller: ControllerTold::decode(&[0; IDENTIFY_BYTES]),
                nvm: NvmControllerTold::default(),
                queues: 0,
                namespaces: vec![],
                tells: false,
            },
        }
    }

    /// A look at the namespaces of a controller that is set up, since it says that they have changed.
    /// One that has none any more is no error.
    pub(super) fn visit(config: &NvmeConfig, known: &Found) -> Self {
        let mut setup = Self::new(config, None);
        (setup.stage, setup.is_visit) = (Stage::Changes, true);
        setup.found = Found {
            namespaces: vec![],
            ..known.clone()
        };
        setup
    }

    /// Whether what is to be said next is being calculated.
    pub(super) fn is_calculating(&self) -> bool {
        let auth = self.auth.as_ref();
        self.stage == Stage::Authenticate && auth.is_some_and(HostAuth::is_calculating)
    }

    /// What to do next; only while nothing is under way.
    ///
    /// # Errors
    /// Why this controller can't be used.
    pub(super) fn next(&mut self) -> Result<Step, NvmeFault> {
        if let (Stage::Authenticate, Some(auth)) = (self.stage, &mut self.auth) {
            match auth.next()? {
                Step::Done => self.stage = Stage::Capabilities,
                step => return Ok(step),
            }
        }
        Ok(self.saying().map_or(Step::Done, Step::Say))
    }

    /// What to say next, but for who we are; nothing if all has been said.
    pub(super) fn saying(&mut self) -> Option<Saying> {
        let get = |offset, long| Saying::plain(PropertyCommand::get(0, offset, long));
        Some(match self.stage {
            Stage::Connect => {
                let none = Saying::plain(Sqe::default());
                std::mem::replace(&mut self.connect, none)
            }
            Stage::Authenticate => return None,
            Stage::Capabilities => get(property::CAP, true),
            Stage::Version => get(property::VS, false),
            Stage::Enable => {
                let config = cc::ENTRY_SIZES | cc::ENABLE;
                Saying::plain(PropertyCommand::set(0, property::CC, config))
            }
            Stage::Ready => get(property::CSTS, false),
            Stage::Controller => identify(cns::CONTROLLER, 0),
            Stage::NvmController => identify(cns::CSI_CONTROLLER, 0),
            Stage::Events => {
                // Before the namespaces are looked at, so that no change is missed.
                let wanted = async_event::NAMESPACE_CHANGED;
                set_feature(feature::ASYNC_EVENTS, wanted)
            }
            Stage::Changes => {
                // All namespaces are looked at, whatever it lists. To read it, without RAE, is what
                // makes the controller tell of the next change.
                let mut sqe = Sqe::new(admin::GET_LOG_PAGE, 0, u32::MAX);
                let dwords = 4096 / 4 - 1;
                sqe.cdw10 = (u32::from(log_id::CHANGED_NAMESPACES) | dwords << 16).into();
                Saying::for_page(sqe)
            }
            Stage::List => identify(cns::ACTIVE_NAMESPACES, 0),
            Stage::Namespace(at) => identify(cns::NAMESPACE, self.nsid(at)),
            Stage::Descriptors(at) => identify(cns::DESCRIPTORS, self.nsid(at)),
            Stage::Queues => {
                let last = u32::from(self.queues_wanted.saturating_sub(1));
                set_feature(feature::QUEUES, last | last << 16)
            }
            Stage::Done => return None,
        })
    }

    fn nsid(&self, at: usize) -> u32 {
        let namespace = self.found.namespaces.get(at);
        namespace.map_or(0, |namespace| namespace.nsid)
    }

    /// What older controllers lack can be done without. A namespace may be gone since it was listed.
    fn may_be_refused(&self) -> bool {
        match self.stage {
            Stage::NvmController | Stage::Events | Stage::Changes | Stage::Descriptors(_) => true,
            Stage::Namespace(_) => self.is_visit,
            _ => false,
        }
    }

    /// Takes the answer to what [`Setup::next`] said.
    ///
    /// # Errors
    /// Why this controller can't be used.
    pub(super) fn answered(
        &mut self,
        cqe: &Cqe,
        page: &[u8; IDENTIFY_BYTES],
    ) -> Result<(), NvmeFault> {
        if let (Stage::Authenticate, Some(auth)) = (self.stage, &mut self.auth) {
            return auth.answered(cqe, page);
        }
        let (stage, status) = (self.stage, cqe.status());
        if !self.may_be_refused() {
            accept(stage.what(), status)?;
        }
        let [b0, b1, b2, b3, ..] = cqe.result().to_le_bytes();
        let dw0 = u32::from_le_bytes([b0, b1, b2, b3]);
        self.stage = match stage {
            Stage::Connect => {
                let (cntlid, wants) = connected(cqe)?;
                self.found.cntlid = cntlid;
                self.auth = HostAuth::behind_connect(&self.config, wants, self.waker.clone())?;
                match self.auth {
                    Some(_) => Stage::Authenticate,
                    None => Stage::Capabilities,
                }
            }
            Stage::Authenticate => Stage::Capabilities,
            Stage::Capabilities => {
                self.found.capabilities = Capabilities(cqe.result());
                Stage::Version
            }
            Stage::Version => {
                self.found.version = dw0;
                Stage::Enable
            }
            Stage::Enable => Stage::Ready,
            Stage::Ready if dw0 & csts::FATAL != 0 => return Err(NvmeFault::Fatal),
            // Asked again until the time for the set-up is over.
            Stage::Ready if dw0 & csts::READY == 0 => Stage::Ready,
            Stage::Ready => Stage::Controller,
            Stage::Controller => {
                self.found.controller = ControllerTold::decode(page);
                self.check_controller()?;
                Stage::NvmController
            }
            Stage::NvmController => {
                if status.is_ok() {
                    self.found.nvm = NvmControllerTold::decode(page);
                }
                match self.found.controller.events & async_event::NAMESPACE_CHANGED {
                    0 => Stage::List,
                    _ => Stage::Events,
                }
            }
            Stage::Events => {
                self.found.tells = status.is_ok();
                Stage::List
            }
            Stage::Changes => Stage::List,
            Stage::List => self.listed(page)?,
            Stage::Namespace(at) => {
                if let Some(namespace) = self.found.namespaces.get_mut(at)
                    && status.is_ok()
                {
                    namespace.told = NamespaceTold::decode(page);
                }
                Stage::Descriptors(at)
            }
            Stage::Descriptors(at) => self.described(at, status.is_ok().then_some(page)),
            Stage::Queues => {
                // Submission and completion queues, 0-based.
                let granted = u16::from_le_bytes([b0, b1]).min(u16::from_le_bytes([b2, b3]));
                self.found.queues = granted.saturating_add(1).min(self.queues_wanted);
                Stage::Done
            }
            Stage::Done => Stage::Done,
        };
        Ok(())
    }

    fn check_controller(&self) -> Result<(), NvmeFault> {
        let told = &self.found.controller;
        if told.cntlid != self.found.cntlid {
            return Err(NvmeFault::ControllerId {
                connect: self.found.cntlid,
                identify: told.cntlid,
            });
        }
        match told {
            told if told.kind > 1 => Err(NvmeFault::Unusable("has no namespaces: it lists others")),
            told if told.capsule_data_offset != 0 => Err(NvmeFault::Unusable(
                "wants data at an offset in the capsule",
            )),
            _ => Ok(()),
        }
    }

    /// Takes the list. More than a page of it would be too many anyway.
    fn listed(&mut self, page: &[u8; IDENTIFY_BYTES]) -> Result<Stage, NvmeFault> {
        let mut last = 0;
        for nsid in namespace_list(page) {
            if nsid <= last {
                return Err(NvmeFault::Unusable("lists its namespaces out of order"));
            }
            last = nsid;
            if self.only.is_some_and(|only| only != nsid) {
                continue;
            }
            if self.found.namespaces.len() == NAMESPACES_MAX {
                return Err(NvmeFault::Unusable("has more than 128 namespaces"));
            }
            self.found.namespaces.push(FoundNamespace {
                nsid,
                told: NamespaceTold::default(),
                identities: Identities::default(),
            });
        }
        match (self.only, self.found.namespaces.is_empty()) {
            (Some(only), true) if !self.is_visit => Err(NvmeFault::NoNamespace(only)),
            (_, true) => Ok(self.after_namespaces()),
            _ => Ok(Stage::Namespace(0)),
        }
    }

    /// Takes a namespace's descriptors, if it has some.
    fn described(&mut self, at: usize, page: Option<&[u8; IDENTIFY_BYTES]>) -> Stage {
        let descriptors: &[u8] = page.map_or(&[], |page| page);
        if let Some(namespace) = self.found.namespaces.get_mut(at) {
            namespace.identities = Identities::decode(descriptors, &namespace.told);
        }
        match at + 1 < self.found.namespaces.len() {
            true => Stage::Namespace(at + 1),
            false => self.after_namespaces(),
        }
    }

    fn after_namespaces(&self) -> Stage {
        match self.is_visit {
            true => Stage::Done,
            false => Stage::Queues,
        }
    }

    /// What was found, once all has been said.
    pub(super) fn finish(self) -> Option<Found> {
        (self.stage == Stage::Done).then_some(self.found)
    }
}
