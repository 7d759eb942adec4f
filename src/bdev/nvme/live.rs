//! What is said on the admin queue of a controller that is set up: signs of life, event requests, and
//! what an event makes necessary.

use super::NvmeFault;
use super::dialogue::{Dialogue, Saying};
use super::setup::Setup;
use super::shared::Shared;
use crate::wire::nvme::{Cqe, EventInfo, PropertyCommand, Sqe, admin, cc, property};
use reactors::Nanos;

/// An association.
#[derive(Debug)]
pub(super) struct Live {
    dialogue: Dialogue,
    /// How long a side waits for a sign of life, if not for ever.
    patience_ns: Option<u64>,
    /// When to give the next one.
    next: Nanos,
    /// When the controller must have answered what is under way.
    answer_by: Option<Nanos>,
    /// The controller tells of changes.
    tells: bool,
    /// A look at the namespaces, under way between signs of life.
    visit: Option<Box<Setup>>,
    /// The command under way is the visit's.
    is_visiting: bool,
    /// Another change was told of since the visit began.
    again: bool,
}

impl Live {
    /// On a queue of which a set-up has been made; `tells`: it is worth asking for events.
    pub(super) fn new(
        now: Nanos,
        dialogue: Dialogue,
        tells: bool,
        patience_ns: Option<u64>,
    ) -> Self {
        Self {
            dialogue,
            patience_ns,
            next: now.after(patience_ns.map_or(u64::MAX, |ns| ns / 2)),
            answer_by: None,
            tells,
            visit: None,
            is_visiting: false,
            again: false,
        }
    }

    pub(super) fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// Whether there is something to do before anything comes.
    pub(super) fn has_to_say(&self, now: Nanos) -> bool {
        let must_listen = self.tells && !self.dialogue.is_listening();
        must_listen || self.is_life_due(now)
    }

    fn is_life_due(&self, now: Nanos) -> bool {
        self.answer_by.is_none() && self.patience_ns.is_some() && now >= self.next
    }

    /// When to look again even if nothing comes.
    pub(super) fn due(&self) -> Option<Nanos> {
        self.patience_ns?;
        Some(self.answer_by.unwrap_or(self.next))
    }

    /// Goes on. Returns how much happened.
    ///
    /// # Errors
    /// Why the association ends.
    pub(super) fn turn(&mut self, now: Nanos, shared: &Shared) -> Result<u32, NvmeFault> {
        let is_free = self.dialogue.turn()?;
        let mut handled = 0;
        if let Some(cqe) = self.dialogue.answer() {
            handled += 1;
            self.answer_by = None;
            if std::mem::take(&mut self.is_visiting)
                && let Some(visit) = &mut self.visit
            {
                visit.answered(&cqe, self.dialogue.page())?;
            }
        }
        if self.answer_by.is_some_and(|by| now >= by) {
            return Err(NvmeFault::Unanswered);
        }
        if let Some(cqe) = self.dialogue.event() {
            handled += 1;
            self.told(&cqe, shared);
        }
        if self.tells && !self.dialogue.is_listening() {
            self.dialogue.listen()?;
        }
        if is_free {
            handled += u32::from(self.say_next(now, shared)?);
        }
        Ok(handled)
    }

    fn told(&mut self, cqe: &Cqe, shared: &Shared) {
        let uri = &shared.config.uri;
        if !cqe.status().is_ok() {
            // Asked again, it would say the same again.
            self.tells = false;
            tracing::info!(%uri, status = ?cqe.status(), "nvme: the controller tells no events");
            return;
        }
        let [b0, b1, b2, b3, ..] = cqe.result().to_le_bytes();
        let dw0 = u32::from_le_bytes([b0, b1, b2, b3]);
        match EventInfo::from_dw0(dw0) {
            Some(EventInfo::NamespaceChanged) if self.visit.is_some() => self.again = true,
            Some(EventInfo::NamespaceChanged) => self.begin_visit(shared),
            // Errors and the device's health: nobody has asked, and there is nothing to be done here.
            _ => tracing::warn!(%uri, "nvme: the controller tells event {dw0:#x}"),
        }
    }

    fn begin_visit(&mut self, shared: &Shared) {
        self.visit = Some(Box::new(Setup::visit(&shared.config, &shared.found)));
    }

    /// Says what is due while nothing is under way; whether something was.
    fn say_next(&mut self, now: Nanos, shared: &Shared) -> Result<bool, NvmeFault> {
        let life = self.is_life_due(now);
        let saying = if life {
            self.next = now.after(self.patience_ns.unwrap_or(u64::MAX) / 2);
            Saying::plain(Sqe::new(admin::KEEP_ALIVE, 0, 0))
        } else {
            match self.next_of_visit(shared) {
                Some(saying) => saying,
                None => return Ok(false),
            }
        };
        self.is_visiting = !life;
        self.answer_by = self.patience_ns.map(|ns| now.after(ns));
        self.dialogue.say(saying)?;
        Ok(true)
    }

    /// The next command of a visit, of the one after if that has ended.
    fn next_of_visit(&mut self, shared: &Shared) -> Option<Saying> {
        loop {
            if let Some(saying) = self.visit.as_mut()?.saying() {
                return Some(saying);
            }
            self.end_visit(shared);
        }
    }

    fn end_visit(&mut self, shared: &Shared) {
        let found = self.visit.take().and_then(|visit| visit.finish());
        if let Some(found) = found {
            shared.review(&found);
        }
        if std::mem::take(&mut self.again) {
            self.begin_visit(shared);
        }
    }

    /// Shuts the controller down, as far as that can be done without waiting.
    pub(super) fn shut_down(&mut self) {
        if matches!(self.dialogue.turn(), Ok(true)) {
            let config = cc::ENTRY_SIZES | cc::ENABLE | cc::SHN_NORMAL;
            let shutdown = PropertyCommand::set(0, property::CC, config);
            let _ = self.dialogue.say(Saying::plain(shutdown));
        }
    }
}
