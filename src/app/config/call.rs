//! A method call as a configuration has it, and the call that an object remembers.

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

/// A call. Its parameters are kept raw, so that double keys are still seen by who decodes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::app) struct Call {
    /// Which method.
    pub(in crate::app) method: String,
    /// An object; nothing counts as an empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::app) params: Option<Box<RawValue>>,
}

impl Call {
    /// A call with these parameters, an object or null.
    pub(in crate::app) fn new(method: impl Into<String>, params: &Value) -> Self {
        let none = params.is_null() || params.as_object().is_some_and(Map::is_empty);
        Self {
            method: method.into(),
            // A `Value` always serializes.
            params: (!none).then(|| to_raw_value(params).ok()).flatten(),
        }
    }

    /// The parameters, or null.
    pub(super) fn value(&self) -> Value {
        let raw = self.params.as_ref().map_or("null", |raw| raw.get());
        serde_json::from_str(raw).unwrap_or_default()
    }

    /// The parameter `key`, if it is a string.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        Some(self.value().get(key)?.as_str()?.to_owned())
    }

    /// Whether a parameter, or a member of one, is the string `name`.
    pub(super) fn mentions(&self, name: &str) -> bool {
        self.mentions_any(&|text| text == name)
    }

    /// Whether a parameter, however deep, is a string that is `meant`.
    pub(super) fn mentions_any(&self, meant: &dyn Fn(&str) -> bool) -> bool {
        fn says(value: &Value, meant: &dyn Fn(&str) -> bool) -> bool {
            let any = |members: &Map<String, Value>| members.values().any(|one| says(one, meant));
            value.as_str().is_some_and(meant) || value.as_object().is_some_and(any)
        }
        says(&self.value(), meant)
    }

    /// The same call as everybody writes it: without spaces, and without empty parameters.
    pub(super) fn normal(&self) -> Self {
        Self::new(self.method.clone(), &self.value())
    }
}

/// The call that makes an object again, as the object remembers it.
#[derive(Clone, Debug)]
pub(in crate::app) struct Recipe {
    method: &'static str,
    params: Map<String, Value>,
}

impl Recipe {
    /// `params`: an object; members that are null are left out.
    pub(in crate::app) fn new(method: &'static str, params: Value) -> Self {
        let mut params = match params {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        params.retain(|_, value| !value.is_null());
        Self { method, params }
    }

    /// Notes that a parameter has been changed since.
    pub(in crate::app) fn set(&mut self, key: &str, value: Value) {
        self.params.insert(key.to_owned(), value);
    }

    /// The call.
    pub(super) fn call(&self) -> Call {
        Call::new(self.method, &Value::Object(self.params.clone()))
    }
}
