//! What the targets on byte streams have in common: who connects, and replies on their way out.

mod acceptor;
mod line;
mod output;
mod socket;

pub(in crate::target) use acceptor::{Acceptor, Door};
pub(in crate::target) use line::Line;
pub(in crate::target) use output::Output;
pub(in crate::target) use socket::listen_tcp;

use reactors::ReactorHandle;

/// Makes each reactor run a round. One whose inbox is full is awake anyway.
pub(in crate::target) fn wake_all(reactors: &[ReactorHandle]) {
    for reactor in reactors {
        let _ = reactor.send(Box::new(|_| {}));
    }
}
