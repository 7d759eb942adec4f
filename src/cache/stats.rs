//! Counters. Each is written by one owner only, with plain stores, and read by anybody.

pub(crate) use reactors::Counter;

macro_rules! counters {
    ($(#[$outer:meta])* $name:ident / $(#[$snap:meta])* $snapshot:ident { $($(#[$doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        pub(crate) struct $name { $(pub(crate) $field: Counter),* }

        $(#[$snap])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot { $($(#[$doc])* pub $field: u64),* }

        impl $name {
            /// The counters now; may be torn between, never within one.
            pub(crate) fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.get()),* }
            }
        }

        impl $snapshot {
            /// Adds another lane's figures.
            pub fn add(&mut self, other: &Self) { $(self.$field += other.$field;)* }

            /// What was counted after `earlier`, figures of the same owner.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self { $($field: self.$field.saturating_sub(earlier.$field)),* }
            }

            /// Names and values, in order.
            #[must_use]
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field)),*]
            }
        }
    };
}

counters! {
    /// Counters of a lane.
    LaneStats /
    /// Counters of a lane or a sum over lanes, since the cache was loaded.
    LaneFigures {
        /// Read requests (a request that spans lanes counts in each).
        reads,
        /// Bytes read.
        read_bytes,
        /// Write requests.
        writes,
        /// Bytes written.
        write_bytes,
        /// Discard and write-zeroes requests.
        zeroes,
        /// Bytes discarded or zeroed.
        zero_bytes,
        /// FLUSH visits.
        flushes,
        /// Reads served from the cache alone.
        hits,
        /// Reads served in part.
        partial_hits,
        /// Reads served from the backing alone.
        misses,
        /// Pieces that joined a miss in flight.
        joins,
        /// Backing reads.
        backing_reads,
        /// Bytes of backing reads.
        backing_read_bytes,
        /// Failed backing reads.
        backing_errors,
        /// Keys filled after a miss.
        fills,
        /// Fills left out for lack of space.
        fills_skipped,
        /// Reads whose misses are not kept: by mode, cut-off, or a write under way past the cache.
        reads_around,
        /// Misses that were not kept since they were not the n-th.
        fills_not_admitted,
        /// Fills left out since the backing had not flushed what bypassed the cache there.
        fills_unflushed,
        /// Writes, discards and zeroes that went to the backing past the cache.
        writes_around,
        /// Those that went into the cache and to the backing.
        writes_through,
        /// Bytes of both.
        bypass_bytes,
        /// Those that were cached all the same, since what is older was not written back.
        bypass_cached,
        /// Those that waited for it, or for one that they overlap.
        bypass_waits,
        /// Those that the backing failed.
        bypass_errors,
        /// Reads and writes of streams that were cut off.
        cut_offs,
        /// Requests that waited for space, or for their turn while little was left.
        space_waits,
        /// Nanoseconds that they waited.
        space_wait_ns,
        /// Keys logged.
        keys,
        /// Ksets closed because they were full …
        closed_full,
        /// … old …
        closed_age,
        /// … for a FLUSH …
        closed_flush,
        /// … for a FUA or durable write …
        closed_fua,
        /// … for lack of space, for damaged data, or at stop.
        closed_pressure,
        /// Dirty bytes ever added, those found by replay included.
        dirty_added,
        /// Keys that GC asked to remove.
        gc_posts,
        /// Hits whose data were not what was written …
        crc_errors,
        /// … or could not be read.
        unreadable,
        /// Keys logged again since their kset can't be read.
        settled,
        /// BAD keys logged, those that GC logged again included.
        bad_keys,
        /// Bytes that are BAD now: reads of them fail until they are overwritten.
        bad_bytes,
    }
}

counters! {
    /// Counters of writeback.
    WritebackStats /
    /// What writeback did since the cache was loaded.
    WritebackFigures {
        /// Windows finished.
        windows,
        /// Ksets passed.
        ksets,
        /// Backing writes.
        requests,
        /// Bytes written.
        bytes,
        /// Keys merged into a larger write.
        merged,
        /// Bytes of keys that a later key of the window overwrote.
        elided_bytes,
        /// Failed writes and flushes.
        errors,
        /// Flushes of the backing.
        flushes,
        /// Windows that spanned epochs.
        spanning_windows,
        /// Windows that were gathered while the one before was written.
        windows_ahead,
        /// Keys whose data were not what was written …
        crc_errors,
        /// … or could not be read.
        unreadable,
    }
}

counters! {
    /// Counters of GC.
    GcStats /
    /// What GC did since the cache was loaded.
    GcFigures {
        /// Ksets passed.
        ksets,
        /// Keys passed.
        keys,
        /// Data segments released.
        data_segments,
        /// Log segments released.
        log_segments,
        /// Log segments made ready.
        starts,
        /// BAD keys that had to be logged again.
        relogged,
        /// Ksets, LASTs among them, that could not be read.
        lost_ksets,
    }
}
