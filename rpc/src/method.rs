//! Methods by name: each declared once, with its parameters, what it does, and when it may be called.

use crate::describe::{Description, description};
use crate::{Error, Params};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::collections::BTreeMap;
use std::fmt;

/// How far a service has come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for `framework_start_init`.
    Startup,
    /// It serves.
    Runtime,
}

/// The state of a service, which knows how far it has come up.
pub trait Phased {
    /// Which methods may be called now.
    fn phase(&self) -> Phase {
        Phase::Runtime
    }
}

impl Phased for () {}

/// In which phases a method may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Only before `framework_start_init`.
    Startup,
    /// Only after it.
    Runtime,
    /// In both.
    Always,
}

impl Allowed {
    fn refuse(self, phase: Phase) -> Result<(), Error> {
        let text = match (self, phase) {
            (Self::Runtime, Phase::Startup) => {
                "Method may only be called after framework is initialized using \
                 framework_start_init RPC."
            }
            (Self::Startup, Phase::Runtime) => {
                "Method may only be called before framework is initialized. Use --wait-for-rpc \
                 command line parameter and then issue this RPC before the framework_start_init RPC."
            }
            _ => return Ok(()),
        };
        Err(Error::new(Error::WRONG_STATE, text))
    }
}

type Handler<S> = dyn Fn(&S, Params<'_>) -> Result<Box<RawValue>, Error> + Send + Sync;

/// Says what is wrong with parameters before anything is done.
type Decoder = fn(Params<'_>) -> Result<(), String>;

fn decodes<P: DeserializeOwned>(params: Params<'_>) -> Result<(), String> {
    params.decode::<P>().map(drop)
}

/// A declared method. What is not said of it has a default: run time only.
pub struct Method<S> {
    name: &'static str,
    section: usize,
    allowed: Allowed,
    about: &'static str,
    result: &'static str,
    /// Parameters that don't decode are −32603.
    historical: bool,
    /// How parameters decode, and their schema; nothing if it takes none.
    params: Option<(Decoder, fn() -> schemars::Schema)>,
    run: Box<Handler<S>>,
}

impl<S> Method<S> {
    /// The error for parameters that don't decode, for the reason `why`.
    fn undecodable(&self, why: &str) -> Error {
        match self.historical {
            true => undecodable_bdev(why),
            false => undecodable(why),
        }
    }

    fn check(&self, params: Params<'_>) -> Result<(), Error> {
        match self.params {
            Some((decoder, _)) => decoder(params).map_err(|why| self.undecodable(&why)),
            None if params.is_none() => Ok(()),
            None => Err(takes_none(self.name)),
        }
    }

    /// What it does and answers, in Markdown: for the documents and `--help`.
    pub fn about(&mut self, about: &'static str, result: &'static str) -> &mut Self {
        self.about = about;
        self.result = result;
        self
    }

    /// It may be called in the given phases.
    pub fn allowed(&mut self, allowed: Allowed) -> &mut Self {
        self.allowed = allowed;
        self
    }
}

impl<S> fmt::Debug for Method<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Method").field(&self.name).finish()
    }
}

/// The methods of a service whose state is an `S`.
pub struct Registry<S> {
    /// In order of declaration.
    methods: Vec<Method<S>>,
    by_name: BTreeMap<&'static str, usize>,
    sections: Vec<Section>,
}

/// Methods that belong together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) text: &'static str,
}

impl<S> fmt::Debug for Registry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_name.keys()).finish()
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GetMethods {
    /// Only those that may be called now.
    #[serde(default)]
    current: bool,
    /// Without effect: no method has an alias.
    #[serde(default, rename = "include_aliases")]
    _include_aliases: bool,
}

const GET_METHODS: &str = "rpc_get_methods";

impl<S: Phased + 'static> Default for Registry<S> {
    fn default() -> Self {
        let mut registry = Self {
            methods: Vec::new(),
            by_name: BTreeMap::new(),
            sections: Vec::new(),
        };
        registry.section("Service", "");
        // Listed and described as any other; `call` answers it, since it wants the registry.
        registry
            .method(GET_METHODS, |_: &S, _: GetMethods| Ok(()))
            .about("What can be called.", "The names, sorted.")
            .allowed(Allowed::Always);
        registry
    }
}

impl<S: Phased + 'static> Registry<S> {
    /// A registry that knows only `rpc_get_methods`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a section of the documents: the methods declared from here on. `text` is Markdown.
    pub fn section(&mut self, title: &'static str, text: &'static str) {
        self.sections.push(Section { title, text });
    }

    /// Adds a method with parameters. Ones that don't decode are answered with −32602.
    pub fn method<P, R>(
        &mut self,
        name: &'static str,
        run: impl Fn(&S, P) -> Result<R, Error> + Send + Sync + 'static,
    ) -> &mut Method<S>
    where
        P: DeserializeOwned + JsonSchema,
        R: Serialize,
    {
        let params = (
            decodes::<P> as Decoder,
            crate::describe::schema_of::<P> as _,
        );
        self.add(name, Some(params), move |state, params| {
            let params = params.decode().map_err(|why| undecodable(&why))?;
            to_reply(&run(state, params)?)
        })
    }

    /// As [`Registry::method`], but says −32603 of parameters that don't decode, as most of SPDK's
    /// bdev methods do and its users' scripts expect.
    pub fn bdev_method<P, R>(
        &mut self,
        name: &'static str,
        run: impl Fn(&S, P) -> Result<R, Error> + Send + Sync + 'static,
    ) -> &mut Method<S>
    where
        P: DeserializeOwned + JsonSchema,
        R: Serialize,
    {
        let params = (
            decodes::<P> as Decoder,
            crate::describe::schema_of::<P> as _,
        );
        let method = self.add(name, Some(params), move |state, params| {
            let params = params.decode().map_err(|why| undecodable_bdev(&why))?;
            to_reply(&run(state, params)?)
        });
        method.historical = true;
        method
    }

    /// Adds a method that takes no parameters, and refuses any.
    pub fn plain<R: Serialize>(
        &mut self,
        name: &'static str,
        run: impl Fn(&S) -> Result<R, Error> + Send + Sync + 'static,
    ) -> &mut Method<S> {
        self.add(name, None, move |state, params| {
            if !params.is_none() {
                return Err(takes_none(name));
            }
            to_reply(&run(state)?)
        })
    }

    fn add(
        &mut self,
        name: &'static str,
        params: Option<(Decoder, fn() -> schemars::Schema)>,
        handler: impl Fn(&S, Params<'_>) -> Result<Box<RawValue>, Error> + Send + Sync + 'static,
    ) -> &mut Method<S> {
        let old = self.by_name.insert(name, self.methods.len());
        assert!(old.is_none(), "method {name} is declared twice");
        self.methods.push(Method {
            name,
            section: self.sections.len().saturating_sub(1),
            allowed: Allowed::Runtime,
            about: "",
            result: "",
            historical: false,
            params,
            run: Box::new(handler),
        });
        let last = self.methods.len() - 1;
        &mut self.methods[last]
    }

    /// The names of all methods, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.by_name.keys().copied().collect()
    }

    /// The names of the methods that may be called in `phase`, sorted.
    #[must_use]
    pub fn names_in(&self, phase: Phase) -> Vec<&'static str> {
        let allowed = |at: &usize| {
            let method = self.methods.get(*at);
            method.is_some_and(|method| method.allowed.refuse(phase).is_ok())
        };
        let named = self.by_name.iter().filter(|(_, at)| allowed(at));
        named.map(|(name, _)| *name).collect()
    }

    /// Runs method `name`, on this thread, until it has an answer.
    ///
    /// # Errors
    /// What the method says, that there is none, or that this is not the time.
    pub fn call(&self, state: &S, name: &str, params: Params<'_>) -> Result<Box<RawValue>, Error> {
        self.call_in(state.phase(), state, name, params)
    }

    fn find(&self, name: &str) -> Result<&Method<S>, Error> {
        let found = self.by_name.get(name).and_then(|at| self.methods.get(*at));
        found.ok_or_else(|| Error::new(Error::METHOD_NOT_FOUND, "Method not found"))
    }

    /// Whether method `name` would take `params`, without running it.
    ///
    /// # Errors
    /// That there is none, or that they don't decode.
    pub fn check(&self, name: &str, params: Params<'_>) -> Result<(), Error> {
        self.find(name)?.check(params)
    }

    /// As [`Registry::call`], as if the service were in `phase`: for who brings it up.
    ///
    /// # Errors
    /// As [`Registry::call`].
    pub fn call_in(
        &self,
        phase: Phase,
        state: &S,
        name: &str,
        params: Params<'_>,
    ) -> Result<Box<RawValue>, Error> {
        let method = self.find(name)?;
        method.allowed.refuse(phase)?;
        if name == GET_METHODS {
            let wish: GetMethods = params.decode().map_err(|why| undecodable(&why))?;
            return to_reply(&if wish.current {
                self.names_in(phase)
            } else {
                self.names()
            });
        }
        (method.run)(state, params)
    }

    /// All that is known of the methods, in order of declaration.
    #[must_use]
    pub fn descriptions(&self) -> Vec<Description> {
        let described = self.methods.iter().map(|method| {
            let section = self.sections.get(method.section).copied();
            let section = section.unwrap_or(Section {
                title: "",
                text: "",
            });
            let schema = method.params.map(|(_, schema)| schema());
            description(
                section,
                method.name,
                method.allowed,
                (method.about, method.result),
                method.historical,
                schema,
            )
        });
        described.collect()
    }
}

fn undecodable(why: &str) -> Error {
    Error::invalid_params(format!("Invalid parameters: {why}"))
}

fn undecodable_bdev(why: &str) -> Error {
    let text = format!("spdk_json_decode_object failed: {why}");
    Error::new(Error::INTERNAL_ERROR, text)
}

fn takes_none(name: &str) -> Error {
    Error::invalid_params(format!("'{name}' requires no arguments"))
}

fn to_reply<R: Serialize>(result: &R) -> Result<Box<RawValue>, Error> {
    to_raw_value(result)
        .map_err(|error| Error::new(Error::INTERNAL_ERROR, format!("Internal error: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Add {
        a: u64,
        #[serde(default)]
        b: i64,
        name: Option<String>,
    }

    struct Base(u64, Phase);

    impl Phased for Base {
        fn phase(&self) -> Phase {
            self.1
        }
    }

    fn registry() -> Registry<Base> {
        let mut registry = Registry::new();
        registry.method("add", |base: &Base, p: Add| {
            let sum = i128::from(base.0) + i128::from(p.a) + i128::from(p.b);
            Ok(format!("{sum}{}", p.name.unwrap_or_default()))
        });
        registry.bdev_method("bdev_add", |_: &Base, p: Add| Ok(p.a));
        registry.plain("base", |base: &Base| Ok(base.0));
        registry
    }

    fn call(name: &str, params: &str) -> Result<String, i64> {
        let raw = RawValue::from_string(params.to_owned()).unwrap();
        let found = registry().call(&Base(100, Phase::Runtime), name, Params::new(Some(&raw)));
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
    fn parameters_are_checked_without_a_call() {
        let check = |name: &str, params: &str| {
            let raw = RawValue::from_string(params.to_owned()).unwrap();
            registry().check(name, Params::new(Some(&raw)))
        };
        for (name, params) in [
            ("add", r#"{"a":1}"#),
            ("bdev_add", r#"{"a":1}"#),
            ("base", "null"),
        ] {
            assert_eq!(check(name, params), Ok(()), "{name}");
        }
        for (name, params) in [("add", "{}"), ("bdev_add", r#"{"a":-1}"#), ("base", "{}")] {
            let raw = RawValue::from_string(params.to_owned()).unwrap();
            let base = Base(1, Phase::Runtime);
            let called = registry().call(&base, name, Params::new(Some(&raw)));
            let refused = check(name, params).unwrap_err();
            assert_eq!(refused, called.unwrap_err(), "{name}");
        }
        let unknown = check("nope", "null").unwrap_err();
        assert_eq!(unknown.code, Error::METHOD_NOT_FOUND);
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

    #[test]
    fn a_method_may_be_called_in_its_phases_only() {
        let mut registry = registry();
        let early = |base: &Base| Ok(base.0);
        registry.plain("early", early).allowed(Allowed::Startup);
        registry.plain("any", early).allowed(Allowed::Always);
        let ask = |phase, name| {
            let found = registry.call(&Base(1, phase), name, Params::new(None));
            found.map(|v| v.get().to_owned()).map_err(|e| e.code)
        };
        for (phase, good, bad) in [
            (Phase::Startup, "early", "base"),
            (Phase::Runtime, "base", "early"),
        ] {
            assert_eq!(ask(phase, good).unwrap(), "1");
            assert_eq!(ask(phase, "any").unwrap(), "1");
            assert_eq!(ask(phase, bad), Err(Error::WRONG_STATE));
            let names = registry.names_in(phase);
            assert!(names.contains(&good) && !names.contains(&bad), "{names:?}");
        }
        let raw = RawValue::from_string(r#"{"current":true}"#.to_owned()).unwrap();
        let params = Params::new(Some(&raw));
        let listed = registry.call(&Base(1, Phase::Startup), GET_METHODS, params);
        assert_eq!(
            listed.unwrap().get(),
            r#"["any","early","rpc_get_methods"]"#
        );
    }
}
