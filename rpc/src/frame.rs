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

    /// Whether something of a value is there that is not taken off yet.
    pub(crate) fn has_part(&self) -> bool {
        let pending = self.buf.get(self.start..).unwrap_or_default();
        !pending.iter().all(u8::is_ascii_whitespace)
    }

    /// Takes the next value off.
    pub(crate) fn next(&mut self) -> Frame {
        let pending = self.buf.get(self.start..).unwrap_or_default();
        let deserializer = serde_json::Deserializer::from_slice(pending);
        let mut values = deserializer.into_iter::<Box<RawValue>>();
        let may_go_on = |cut_off: bool| match cut_off && pending.len() < self.bytes_max {
            true => Frame::Incomplete,
            false => Frame::Bad,
        };
        match values.next() {
            None => {
                self.start = self.buf.len();
                Frame::Incomplete
            }
            Some(Ok(value)) => {
                let end = values.byte_offset();
                // A number or a word may go on with what arrives next.
                if end == pending.len() && !value.get().starts_with(['{', '[', '"']) {
                    return may_go_on(true);
                }
                self.start += end;
                Frame::Value(value)
            }
            Some(Err(error)) => may_go_on(error.is_eof() || ends_in_a_number(pending)),
        }
    }
}

/// Whether `pending` ends in the middle of a number and is good so far: of `-`, `1.` and `1e` the parser
/// does not say that they were cut off.
fn ends_in_a_number(pending: &[u8]) -> bool {
    if !pending.last().is_some_and(|byte| b"-+.eE".contains(byte)) {
        return false;
    }
    let with_digit = [pending, b"0"].concat();
    let mut values = serde_json::Deserializer::from_slice(&with_digit).into_iter();
    let next: Option<Result<Box<RawValue>, _>> = values.next();
    next.is_some_and(|next| next.map_or_else(|error| error.is_eof(), |_| true))
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
        let text = " {\"a\": \"}\\\"é\"}\n[1, {\"b\": []}] {\"c\":-2.5e+10}";
        let bytes = text.as_bytes();
        for cut in 0..=bytes.len() {
            let mut framer = Framer::new(1000);
            let (front, rest) = bytes.split_at(cut);
            framer.push(front);
            let mut found = values(&mut framer);
            framer.push(rest);
            found.extend(values(&mut framer));
            let expected = [
                "{\"a\": \"}\\\"é\"}",
                "[1, {\"b\": []}]",
                "{\"c\":-2.5e+10}",
            ];
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    /// Found by fuzzing: a number that was cut in two became two of them, or one and an error.
    #[test]
    fn a_number_goes_on_until_something_else_comes() {
        let mut framer = Framer::new(1000);
        for part in ["1", "2e", "1", "\nnull", "\n"] {
            framer.push(part.as_bytes());
            match part {
                "\nnull" => assert_eq!(values(&mut framer), ["12e1"]),
                "\n" => assert_eq!(values(&mut framer), ["null"]),
                _ => assert!(matches!(framer.next(), Frame::Incomplete), "{part}"),
            }
        }
        let mut framer = Framer::new(1000);
        framer.push(&[b'1'; 1000]);
        assert!(matches!(framer.next(), Frame::Bad));
    }

    #[test]
    fn what_cannot_become_json_is_bad_at_once() {
        for garbage in [
            "hello",
            "{]",
            "hell-",
            "1..",
            "{\"a\":1ee",
            "{\"a\" 1",
            "\u{1}",
            "{\"a\":1,}",
        ] {
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
