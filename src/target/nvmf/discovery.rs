//! What the discovery subsystem tells a host (spec section 8).

use super::listener::ListenAddress;
use super::target::NvmfTarget;
use crate::wire::nvme::{DiscoveryEntry, discovery_log};
use std::net::SocketAddr;

/// Each address has a number, from 1 on.
fn number_of(address: SocketAddr, known: &mut Vec<SocketAddr>) -> u16 {
    let at = known.iter().position(|port| *port == address);
    let at = at.unwrap_or_else(|| {
        known.push(address);
        known.len() - 1
    });
    u16::try_from(at + 1).unwrap_or(u16::MAX)
}

/// The discovery log for host `hostnqn`, which has come in at `here`.
pub(super) fn log(target: &NvmfTarget, hostnqn: &str, here: ListenAddress) -> Vec<u8> {
    // Before the look: a change meanwhile makes the host read again.
    let generation = target.generation();
    let admin_depth = target.transport().map_or(0, |t| t.admin_depth_max);
    let mut ports: Vec<SocketAddr> = vec![];
    let mut entries = vec![];
    for subsystem in target.all() {
        if subsystem.is_discovery || !subsystem.admits(hostnqn) {
            continue;
        }
        for listener in subsystem.listeners() {
            let port = number_of(listener, &mut ports);
            // Of a listener on all addresses, the host is told the one that it has found.
            let ip = match listener.ip().is_unspecified() {
                true => here.local.ip(),
                false => listener.ip(),
            };
            entries.push(DiscoveryEntry {
                is_ipv6: ip.is_ipv6(),
                subtype: 2,
                port,
                admin_queue_size: admin_depth,
                service: listener.port().to_string(),
                address: ip.to_canonical().to_string(),
                subnqn: subsystem.nqn().to_owned(),
            });
        }
    }
    for referral in target.referrals() {
        let port = number_of(referral.address, &mut ports);
        let ip = referral.address.ip();
        entries.push(DiscoveryEntry {
            is_ipv6: ip.is_ipv6(),
            subtype: if referral.is_discovery() { 1 } else { 2 },
            port,
            admin_queue_size: admin_depth,
            service: referral.address.port().to_string(),
            address: ip.to_string(),
            subnqn: referral.nqn,
        });
    }
    discovery_log(generation, &entries)
}
