//! Limits of the transport.

use super::NvmfError;

/// What a transport allows (`nvmf_create_transport`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// Commands that an I/O qpair may have under way: 2 to 4096.
    pub queue_depth_max: u16,
    /// Commands that an admin qpair may have under way: 32 to 4096.
    pub admin_depth_max: u16,
    /// Qpairs of one controller, without the admin qpair: 1 to 127.
    pub io_qpairs_max: u16,
    /// Data in the capsule of an I/O command, in bytes: 0 to 128 KiB, a multiple of 16.
    pub in_capsule_bytes: u32,
    /// Data of one command, in bytes: a power of two from 4 KiB to 4 MiB.
    pub io_bytes_max: u32,
    /// Data of a read may also be its completion, for hosts that do without flow control.
    pub c2h_success: bool,
    /// Unit of the keep-alive timer, in 100 ms: 1 to 65535.
    pub keep_alive_unit: u16,
    /// The shortest keep-alive time, in milliseconds.
    pub keep_alive_min_ms: u32,
    /// Connections of all listeners: a further one is closed at once.
    pub connections_max: usize,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            queue_depth_max: 128,
            admin_depth_max: 128,
            io_qpairs_max: 127,
            in_capsule_bytes: 8192,
            io_bytes_max: 128 << 10,
            c2h_success: true,
            keep_alive_unit: 10,
            keep_alive_min_ms: 1000,
            connections_max: 1024,
        }
    }
}

fn within(what: &'static str, value: u64, min: u64, max: u64) -> Result<(), NvmfError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(NvmfError::OutOfBounds {
            what,
            value,
            min,
            max,
        })
    }
}

impl TransportOptions {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`NvmfError::OutOfBounds`].
    pub(super) fn check(&self) -> Result<(), NvmfError> {
        within("max_queue_depth", self.queue_depth_max.into(), 2, 4096)?;
        within("max_aq_depth", self.admin_depth_max.into(), 32, 4096)?;
        within("max_io_qpairs_per_ctrlr", self.io_qpairs_max.into(), 1, 127)?;
        let capsule = u64::from(self.in_capsule_bytes);
        within("in_capsule_data_size", capsule, 0, 128 << 10)?;
        within("in_capsule_data_size modulo 16", capsule % 16, 0, 0)?;
        let io = u64::from(self.io_bytes_max);
        within("max_io_size", io, 4096, 4 << 20)?;
        within(
            "max_io_size, as a power of two",
            io,
            io.next_power_of_two(),
            io,
        )?;
        within("kas", self.keep_alive_unit.into(), 1, u16::MAX.into())
    }

    /// The longest transfer as an exponent: 4 KiB << this.
    pub(super) fn mdts(&self) -> u8 {
        let exponent = (self.io_bytes_max / 4096).trailing_zeros();
        u8::try_from(exponent).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_held() {
        let good = TransportOptions::default();
        assert!(good.check().is_ok());
        assert_eq!(good.mdts(), 5);
        let bad = [
            TransportOptions {
                queue_depth_max: 1,
                ..good
            },
            TransportOptions {
                in_capsule_bytes: 8,
                ..good
            },
            TransportOptions {
                io_bytes_max: 12288,
                ..good
            },
            TransportOptions {
                keep_alive_unit: 0,
                ..good
            },
        ];
        assert!(bad.iter().all(|options| options.check().is_err()));
    }
}
