//! Sequential streams of one client: which requests go on where another one ended, and for how long.

use crate::units::ByteRange;

/// Streams that are followed at once; the one that was quiet for longest makes room.
const STREAMS: usize = 32;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    is_write: bool,
    /// Where the next request of it begins; 0 for none.
    end: u64,
    bytes: u64,
    /// When it went on last.
    used: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: [Stream; STREAMS],
    clock: u64,
}

impl Streams {
    /// Takes note of a request, and tells how many bytes its stream has with it.
    pub(crate) fn follow(&mut self, range: ByteRange, is_write: bool) -> u64 {
        self.clock += 1;
        let goes_on = |stream: &&mut Stream| {
            stream.bytes > 0 && stream.end == range.start() && stream.is_write == is_write
        };
        let found = match self.streams.iter_mut().find(goes_on) {
            Some(stream) => stream,
            None => {
                let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.used) else {
                    return range.len();
                };
                *oldest = Stream {
                    is_write,
                    ..Stream::default()
                };
                oldest
            }
        };
        found.end = range.end();
        found.bytes = found.bytes.saturating_add(range.len());
        found.used = self.clock;
        found.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64) -> ByteRange {
        ByteRange::between(number * 4096, (number + 1) * 4096)
    }

    #[test]
    fn interleaved_streams_are_followed_each_and_strangers_begin_anew() {
        let mut streams = Streams::default();
        for step in 0..10 {
            assert_eq!(streams.follow(block(step), true), (step + 1) * 4096);
            assert_eq!(streams.follow(block(5000 + step), true), (step + 1) * 4096);
            // A read at the same place is another stream.
            assert_eq!(streams.follow(block(5000 + step), false), (step + 1) * 4096);
            assert_eq!(streams.follow(block(9000 + 7 * step), true), 4096);
        }
    }

    #[test]
    fn a_stream_that_was_quiet_for_long_is_forgotten() {
        let mut streams = Streams::default();
        assert_eq!(streams.follow(block(0), true), 4096);
        for stranger in 0..STREAMS as u64 {
            streams.follow(block(1000 + 2 * stranger), true);
        }
        assert_eq!(streams.follow(block(1), true), 4096);
    }
}
