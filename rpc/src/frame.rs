//! Cuts a byte stream into top-level JSON values: no length prefix and no delimiter on the wire.

use serde_json::value::RawValue;

/// What the bytes so far amount to.
#[derive(Debug)]
pub(crate) enum Frame {
    /// No complete value yet.
    Incomplete,
    /// One value; there may be more.
    Value(Box<RawValue>),
    /// Not JSON, or a value above the limit. The stream can't be understood any further.
    Bad,
}

/// Bytes that have arrived and are not yet understood.
#[derive(Debug)]
pub(crate) struct Framer {
    buf: Vec<u8>,
    start: usize,
    bytes_max: usize,
}

impl Framer {
    /// For values of at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            buf: Vec::new(),
            start: 0,
            bytes_max,
        }
    }

    /// Takes what has arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buf.drain(..self.start);
        self.start = 0;
        self.buf.extend_from_slice(bytes);
    }

    /// Takes the next value off.
    pub(crate) fn next(&mut self) -> Frame {
        let pending = self.buf.get(self.start..).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_slice(pending).into_iter();
        match values.next() {
            None => {
                self.start = self.buf.len();
                Frame::Incomplete
            }
            Some(Ok(value)) => {
                self.start += values.byte_offset();
                Frame::Value(value)
            }
            Some(Err(error)) if error.is_eof() && pending.len() < self.bytes_max => {
                Frame::Incomplete
            }
            Some(Err(_)) => Frame::Bad,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(framer: &mut Framer) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            match framer.next() {
                Frame::Value(value) => found.push(value.get().to_owned()),
                Frame::Incomplete => return found,
                Frame::Bad => panic!("bad after {found:?}"),
            }
        }
    }

    #[test]
    fn a_split_anywhere_makes_no_difference() {
        let text = " {\"a\": \"}\\\"é\"}\n[1, {\"b\": []}] {\"c\":2}";
        let bytes = text.as_bytes();
        for cut in 0..=bytes.len() {
            let mut framer = Framer::new(1000);
            let (front, rest) = bytes.split_at(cut);
            framer.push(front);
            let mut found = values(&mut framer);
            framer.push(rest);
            found.extend(values(&mut framer));
            let expected = ["{\"a\": \"}\\\"é\"}", "[1, {\"b\": []}]", "{\"c\":2}"];
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    #[test]
    fn what_cannot_become_json_is_bad_at_once() {
        for garbage in ["hello", "{]", "{\"a\" 1", "\u{1}", "{\"a\":1,}"] {
            let mut framer = Framer::new(1000);
            framer.push(garbage.as_bytes());
            assert!(matches!(framer.next(), Frame::Bad), "{garbage:?}");
        }
    }

    #[test]
    fn an_endless_value_is_bad() {
        let mut framer = Framer::new(1000);
        framer.push(b"\"");
        assert!(matches!(framer.next(), Frame::Incomplete));
        framer.push(&[b'x'; 1000]);
        assert!(matches!(framer.next(), Frame::Bad));
    }
}
