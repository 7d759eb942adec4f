//! Where a command's data are: in its capsule, or to be moved by the transport (spec section 3.1).

use super::receiver::Payload;
use crate::wire::nvme::{DataDirection, Fault, FaultKind, Sqe, sgl};

/// How a command's data come or go.
#[derive(Debug)]
pub(super) enum Transfer {
    /// There are none, or they go to the host.
    None,
    /// They came with the command.
    InCapsule(Payload),
    /// The host has so many bytes, and waits to be asked for them.
    FromHost(u32),
}

impl Transfer {
    /// What `sqe` says, and what came with it.
    ///
    /// # Errors
    /// What to end the connection with, if that can't be.
    pub(super) fn of(sqe: &Sqe, came: Option<Payload>) -> Result<Self, Fault> {
        // Bytes 24 to 39 of the entry, 8 bytes behind the start of the PDU.
        const SGL_ADDRESS_AT: u32 = 32;
        const SGL_KIND_AT: u32 = 47;
        const PDU_LEN_AT: u32 = 4;
        let len = sqe.sgl_len.get();
        let unsupported = |offset| Fault {
            kind: FaultKind::Unsupported,
            offset,
        };
        match (sqe.sgl_kind, came) {
            (sgl::IN_CAPSULE, came) => {
                if sqe.sgl_address.get() != 0 {
                    return Err(unsupported(SGL_ADDRESS_AT));
                }
                match came {
                    Some(payload) if payload.buf.len() as u64 == u64::from(len) => {
                        Ok(Self::InCapsule(payload))
                    }
                    None if len == 0 => Ok(Self::None),
                    _ => Err(Fault::field(PDU_LEN_AT)),
                }
            }
            (_, Some(_)) => Err(Fault::field(PDU_LEN_AT)),
            (sgl::TRANSPORT, None) => Ok(match sqe.direction() {
                _ if len == 0 => Self::None,
                DataDirection::ToController => Self::FromHost(len),
                _ => Self::None,
            }),
            (_, None) if sqe.direction() == DataDirection::None => Ok(Self::None),
            (_, None) => Err(unsupported(SGL_KIND_AT)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::IoBuf;
    use crate::wire::nvme::io;

    fn came(len: usize) -> Option<Payload> {
        Some(Payload {
            buf: IoBuf::zeroed(len),
            intact: true,
        })
    }

    #[test]
    fn an_sgl_says_where_the_data_are() {
        let write = Sqe::new(io::WRITE, 1, 1);
        let of = |sqe: &Sqe, payload| Transfer::of(sqe, payload);
        let in_capsule = of(&write.with_capsule_data(512), came(512));
        assert!(matches!(in_capsule, Ok(Transfer::InCapsule(_))));
        let asked = of(&write.with_transport_data(512), None);
        assert!(matches!(asked, Ok(Transfer::FromHost(512))));
        let read = Sqe::new(io::READ, 1, 1).with_transport_data(512);
        assert!(matches!(of(&read, None), Ok(Transfer::None)));
        let flush = Sqe::new(io::FLUSH, 1, 1);
        assert!(matches!(of(&flush, None), Ok(Transfer::None)));
    }

    #[test]
    fn what_can_not_be_ends_the_connection() {
        let write = Sqe::new(io::WRITE, 1, 1);
        let of = |sqe: &Sqe, payload| Transfer::of(sqe, payload).err();
        let capsule = write.with_capsule_data(512);
        assert_eq!(of(&capsule, came(256)), Some(Fault::field(4)));
        assert_eq!(of(&capsule, None), Some(Fault::field(4)));
        let transport = write.with_transport_data(512);
        assert_eq!(of(&transport, came(512)), Some(Fault::field(4)));
        let mut shifted = capsule;
        shifted.sgl_address = 4.into();
        let unsupported = |offset| {
            Some(Fault {
                kind: FaultKind::Unsupported,
                offset,
            })
        };
        assert_eq!(of(&shifted, came(512)), unsupported(32));
        let mut keyed = transport;
        keyed.sgl_kind = 0x40;
        assert_eq!(of(&keyed, None), unsupported(47));
        let mut flush = Sqe::new(io::FLUSH, 1, 1);
        flush.sgl_kind = 0;
        assert_eq!(of(&flush, None), None);
    }
}
