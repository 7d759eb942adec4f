//! What both ends of a polled byte stream need: the received bytes, and how often to look for more.

mod input;
mod pace;

pub(crate) use input::{Input, Received};
pub(crate) use pace::Pace;
