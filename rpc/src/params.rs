//! What a caller gives a method, and how it is decoded.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// What a caller gave as `params`, not yet decoded.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a>(Option<&'a RawValue>);

impl<'a> Params<'a> {
    /// Wraps the raw value; `null` counts as none.
    #[must_use]
    pub fn new(raw: Option<&'a RawValue>) -> Self {
        Self(raw.filter(|raw| raw.get() != "null"))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0.is_none()
    }

    /// Decodes them; none count as an empty object. Strict as far as `P` is: structs should
    /// `deny_unknown_fields`.
    ///
    /// # Errors
    /// What serde says: an unknown, double or missing key, a wrong type.
    pub fn decode<P: DeserializeOwned>(self) -> Result<P, String> {
        let text = self.0.map_or("{}", RawValue::get);
        // Serde would take an array as the fields in order of declaration.
        if !text.starts_with('{') {
            return Err("params must be an object".to_owned());
        }
        serde_json::from_str(&with_plain_integers(text)).map_err(|error| error.to_string())
    }
}

/// Rewrites numbers such as `1e3` and `4.0` as plain integers, which is what serde takes for one.
fn with_plain_integers(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut copied, mut at) = (0, 0);
    let bytes = text.as_bytes();
    let mut in_string = false;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            b'0'..=b'9' | b'-' if !in_string => {
                let token = number_at(text, at);
                if let Some(integer) = integral(token) {
                    out.push_str(text.get(copied..at).unwrap_or_default());
                    out.push_str(&integer);
                    copied = at + token.len();
                }
                at += token.len();
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}

/// The number that starts at `at`, at least one byte long.
fn number_at(text: &str, at: usize) -> &str {
    let rest = text.get(at..).unwrap_or_default();
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
    let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

/// `token` as a plain integer, if it is written otherwise and is one within 64 bits.
fn integral(token: &str) -> Option<String> {
    let (mantissa, exponent) = match token.find(['e', 'E']) {
        Some(at) => {
            let digits = token.get(at + 1..)?;
            (token.get(..at)?, digits.parse::<i32>().ok()?)
        }
        None if token.contains('.') => (token, 0),
        None => return None,
    };
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let zeros = usize::try_from(exponent)
        .ok()?
        .checked_sub(fraction.len())?;
    if zeros > 20 {
        return None;
    }
    let digits = format!("{whole}{fraction}{}", "0".repeat(zeros));
    let digits = match digits.trim_start_matches('0') {
        "" => "0",
        trimmed => trimmed,
    };
    digits.parse::<u64>().ok()?;
    Some(format!("{sign}{digits}"))
}
