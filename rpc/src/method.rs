//! Methods by name, with typed parameters.

use crate::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

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

type Handler<S> = dyn Fn(&S, Params<'_>) -> Result<Box<RawValue>, Error> + Send + Sync;

/// The methods of a service whose state is an `S`.
pub struct Registry<S> {
    methods: BTreeMap<&'static str, Box<Handler<S>>>,
}

impl<S> fmt::Debug for Registry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.methods.keys()).finish()
    }
}

/// `rpc_get_methods`. Every method here is current, and none has an alias.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetMethods {
    #[serde(default, rename = "current")]
    _current: bool,
    #[serde(default, rename = "include_aliases")]
    _include_aliases: bool,
}

const GET_METHODS: &str = "rpc_get_methods";

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self {
            methods: BTreeMap::new(),
        }
    }
}

impl<S> Registry<S> {
    /// A registry that knows only `rpc_get_methods`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a method with parameters. Ones that don't decode are answered with −32602.
    pub fn method<P, R>(
        &mut self,
        name: &'static str,
        run: impl Fn(&S, P) -> Result<R, Error> + Send + Sync + 'static,
    ) where
        P: DeserializeOwned,
        R: Serialize,
    {
        self.add(name, move |state, params| {
            let params = params
                .decode()
                .map_err(|why| Error::invalid_params(format!("Invalid parameters: {why}")))?;
            to_reply(&run(state, params)?)
        });
    }

    /// As [`Registry::method`], but says −32603 of parameters that don't decode, as most of SPDK's
    /// bdev methods do and its users' scripts expect.
    pub fn bdev_method<P, R>(
        &mut self,
        name: &'static str,
        run: impl Fn(&S, P) -> Result<R, Error> + Send + Sync + 'static,
    ) where
        P: DeserializeOwned,
        R: Serialize,
    {
        self.add(name, move |state, params| {
            let params = params.decode().map_err(|why| {
                Error::new(
                    Error::INTERNAL_ERROR,
                    format!("spdk_json_decode_object failed: {why}"),
                )
            })?;
            to_reply(&run(state, params)?)
        });
    }

    /// Adds a method that takes no parameters, and refuses any.
    pub fn plain<R: Serialize>(
        &mut self,
        name: &'static str,
        run: impl Fn(&S) -> Result<R, Error> + Send + Sync + 'static,
    ) {
        self.add(name, move |state, params| {
            if !params.is_none() {
                return Err(Error::invalid_params(format!(
                    "'{name}' requires no arguments"
                )));
            }
            to_reply(&run(state)?)
        });
    }

    fn add(
        &mut self,
        name: &'static str,
        handler: impl Fn(&S, Params<'_>) -> Result<Box<RawValue>, Error> + Send + Sync + 'static,
    ) {
        let old = self.methods.insert(name, Box::new(handler));
        assert!(old.is_none(), "method {name} is declared twice");
    }

    /// The names of all methods, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.methods.keys().copied().collect();
        names.push(GET_METHODS);
        names.sort_unstable();
        names
    }

    /// Runs method `name`, on this thread, until it has an answer.
    ///
    /// # Errors
    /// What the method says, or that there is none.
    pub fn call(&self, state: &S, name: &str, params: Params<'_>) -> Result<Box<RawValue>, Error> {
        if name == GET_METHODS {
            params
                .decode::<GetMethods>()
                .map_err(|why| Error::invalid_params(format!("Invalid parameters: {why}")))?;
            return to_reply(&self.names());
        }
        match self.methods.get(name) {
            Some(run) => run(state, params),
            None => Err(Error::new(Error::METHOD_NOT_FOUND, "Method not found")),
        }
    }
}

fn to_reply<R: Serialize>(result: &R) -> Result<Box<RawValue>, Error> {
    to_raw_value(result)
        .map_err(|error| Error::new(Error::INTERNAL_ERROR, format!("Internal error: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Add {
        a: u64,
        #[serde(default)]
        b: i64,
        name: Option<String>,
    }

    fn registry() -> Registry<u64> {
        let mut registry = Registry::new();
        registry.method("add", |base: &u64, p: Add| {
            let sum = i128::from(*base) + i128::from(p.a) + i128::from(p.b);
            Ok(format!("{sum}{}", p.name.unwrap_or_default()))
        });
        registry.bdev_method("bdev_add", |_: &u64, p: Add| Ok(p.a));
        registry.plain("base", |base: &u64| Ok(*base));
        registry
    }

    fn call(name: &str, params: &str) -> Result<String, i64> {
        let raw = RawValue::from_string(params.to_owned()).unwrap();
        let found = registry().call(&100, name, Params::new(Some(&raw)));
        found.map(|v| v.get().to_owned()).map_err(|e| e.code)
    }

    #[test]
    fn decodes_strictly() {
        assert_eq!(call("add", r#"{"a":1,"name":"x"}"#).unwrap(), "\"101x\"");
        assert_eq!(call("add", r#"{"a":1,"name":null}"#).unwrap(), "\"101\"");
        for bad in [
            r#"{"a":1,"c":2}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"b":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":-1}"#,
            r#"{"a":1.5}"#,
            r#"{"a":18446744073709551616}"#,
            r#"{"a":true}"#,
            r"[1,2,null]",
            "7",
            "null",
        ] {
            assert_eq!(call("add", bad), Err(Error::INVALID_PARAMS), "{bad}");
            assert_eq!(call("bdev_add", bad), Err(Error::INTERNAL_ERROR), "{bad}");
        }
    }

    #[test]
    fn integral_numbers_may_be_written_as_floats() {
        for (text, sum) in [
            (r#"{"a":1e3}"#, "\"1100\""),
            (r#"{"a":1.50E+1,"b":-2.0}"#, "\"113\""),
            (r#"{"name":"1e3 \" 2e1","a":0.0}"#, "\"1001e3 \\\" 2e1\""),
        ] {
            assert_eq!(call("add", text).unwrap(), sum, "{text}");
        }
        assert_eq!(call("add", r#"{"a":1e-1}"#), Err(Error::INVALID_PARAMS));
        assert_eq!(call("add", r#"{"a":1e30}"#), Err(Error::INVALID_PARAMS));
    }

    #[test]
    fn a_method_without_parameters_refuses_them() {
        assert_eq!(call("base", "null").unwrap(), "100");
        assert_eq!(call("base", "{}"), Err(Error::INVALID_PARAMS));
        assert_eq!(call("base", r#"{"a":1}"#), Err(Error::INVALID_PARAMS));
    }

    #[test]
    fn lists_its_methods_and_knows_no_others() {
        let names = r#"["add","base","bdev_add","rpc_get_methods"]"#;
        let flags = r#"{"current":false,"include_aliases":false}"#;
        assert_eq!(call(GET_METHODS, flags).unwrap(), names);
        assert_eq!(call(GET_METHODS, "null").unwrap(), names);
        assert_eq!(call(GET_METHODS, r#"{"x":1}"#), Err(Error::INVALID_PARAMS));
        assert_eq!(call("nope", "null"), Err(Error::METHOD_NOT_FOUND));
    }
}
