//! Making the calls of a configuration, of a service that starts or over its socket.
//!
//! As SPDK's client does: each round makes all calls that the service takes now, in the order of the
//! file; then `framework_start_init`, if it is to be had; until a round finds nothing to do. Every call
//! has an undo, so that a call that fails leaves the service as it was before the first.

use super::call::Call;
use super::file::{Entry, Place};
use super::object::{self, FORMATTING, Lister, Object};
use super::subsystems::may_skip;
use rpc::Error;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;

/// The service that a configuration is loaded into.
pub(super) trait Target {
    /// Calls a method.
    fn call(&mut self, method: &str, params: Option<&RawValue>) -> Result<Box<RawValue>, Error>;

    /// Says what is wrong with a call before any is made.
    fn check(&self, _call: &Call) -> Result<(), Error> {
        Ok(())
    }

    /// Whether to go on though `call` has failed.
    fn bears(&mut self, _call: &Call, _error: &Error) -> bool {
        false
    }

    /// Forgets the calls that it bore.
    fn forget_borne(&mut self) {}
}

/// What a load did.
#[derive(Debug, Default, Serialize)]
pub(super) struct Loaded {
    /// Calls that were made, `framework_start_init` not counted.
    pub(super) calls: usize,
    /// Calls of subsystems of SPDK's that are not known here.
    pub(super) unknown: Vec<String>,
    /// Calls that may only be made while a service starts, and this one had started.
    pub(super) too_late: Vec<String>,
}

/// Why a configuration was not loaded.
#[derive(Debug, thiserror::Error, Serialize)]
pub(in crate::app) struct LoadError {
    /// Where it stands; nothing for what is not in the file.
    #[serde(flatten)]
    place: Option<Place>,
    method: String,
    code: i64,
    /// What the method said.
    message: String,
    /// What the load had made and has unmade again, the last first.
    unmade: Vec<String>,
    /// Calls that the load made and that can't be undone.
    kept: Vec<String>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}, ")?;
        }
        write!(f, "{}: {} ({}); ", self.method, self.message, self.code)?;
        match (&*self.unmade, &*self.kept) {
            ([], []) => write!(f, "nothing was changed"),
            (unmade, []) => write!(f, "unmade again: {}", unmade.join(", ")),
            ([], kept) => write!(f, "stays as it is: {}", kept.join(", ")),
            (unmade, kept) => {
                let (unmade, kept) = (unmade.join(", "), kept.join(", "));
                write!(f, "unmade again: {unmade}; stays as it is: {kept}")
            }
        }
    }
}

impl LoadError {
    fn new(place: Option<&Place>, method: &str, error: Error) -> Box<Self> {
        Box::new(Self {
            place: place.cloned(),
            method: method.to_owned(),
            code: error.code,
            message: error.message,
            unmade: Vec::new(),
            kept: Vec::new(),
        })
    }
}

/// How to take back a call.
#[derive(Debug)]
enum Undo {
    By {
        object: String,
        call: Call,
    },
    /// What it was before is not known. `of`: the object that it was about.
    Nothing {
        what: String,
        of: Option<String>,
    },
}

/// Checks the calls of a file as far as that can be done without making them, and leaves off those of
/// strangers. `known`: the methods that there are.
///
/// # Errors
/// The first call that can't be made.
pub(super) fn plan(
    entries: Vec<Entry>,
    known: &[String],
    check: impl Fn(&Call) -> Result<(), Error>,
) -> Result<(Vec<Entry>, Vec<String>), Box<LoadError>> {
    let mut unknown = Vec::new();
    let mut planned = Vec::new();
    for mut entry in entries {
        entry.calls.retain(|(place, call)| {
            let skipped = !known.contains(&call.method) && may_skip(&place.subsystem);
            if skipped {
                unknown.push(call.method.clone());
            }
            !skipped
        });
        for (place, call) in &entry.calls {
            let refused = |error| LoadError::new(Some(place), &call.method, error);
            if FORMATTING.contains(&call.method.as_str()) {
                let text = "Operation not permitted: a configuration never formats or erases";
                return Err(refused(Error::new(-1, text)));
            }
            if !known.contains(&call.method) {
                return Err(refused(Error::new(
                    Error::METHOD_NOT_FOUND,
                    "Method not found",
                )));
            }
            check(call).map_err(refused)?;
        }
        if !entry.calls.is_empty() {
            planned.push(entry);
        }
    }
    Ok((planned, unknown))
}

/// Loads `entries` into `target`.
///
/// # Errors
/// The first call that fails, or can't be made at all. What was made before is unmade.
pub(super) fn load(
    target: &mut impl Target,
    entries: Vec<Entry>,
) -> Result<Loaded, Box<LoadError>> {
    let mut undos = Vec::new();
    let loaded = load_or_stop(target, entries, &mut undos);
    loaded.map_err(|mut error| {
        target.forget_borne();
        let mut settings = Vec::new();
        for undo in undos.into_iter().rev() {
            match undo {
                Undo::By { object, call } => take_back(target, object, &call, &mut error),
                Undo::Nothing { what, of } => settings.push((what, of)),
            }
        }
        // What was set of something that is gone is gone with it.
        let is_gone = |name: &String| {
            let kinds = [Object::Bdev(name.clone()), Object::Cache(name.clone())];
            kinds
                .iter()
                .any(|kind| error.unmade.contains(&kind.to_string()))
        };
        settings.retain(|(_, of)| !of.as_ref().is_some_and(is_gone));
        error
            .kept
            .extend(settings.into_iter().map(|(what, _)| what));
        error
    })
}

fn names(target: &mut impl Target, current: bool) -> Result<Vec<String>, Box<LoadError>> {
    const METHOD: &str = "rpc_get_methods";
    let call = Call::new(METHOD, &serde_json::json!({"current": current}));
    let listed = target.call(METHOD, call.params.as_deref());
    let listed = listed.map_err(|error| LoadError::new(None, METHOD, error))?;
    serde_json::from_str(listed.get()).map_err(|why| {
        let error = Error::new(Error::INTERNAL_ERROR, why.to_string());
        LoadError::new(None, METHOD, error)
    })
}

fn load_or_stop(
    target: &mut impl Target,
    entries: Vec<Entry>,
    undos: &mut Vec<Undo>,
) -> Result<Loaded, Box<LoadError>> {
    const START: &str = "framework_start_init";
    let known = names(target, false)?;
    let (mut left, unknown) = plan(entries, &known, |call| target.check(call))?;
    let mut loaded = Loaded {
        unknown,
        ..Loaded::default()
    };
    loop {
        let current = names(target, true)?;
        let may_run = |entry: &Entry| {
            let mut calls = entry.calls.iter();
            calls.all(|(_, call)| current.contains(&call.method))
        };
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(may_run);
        left = later;
        let nothing = now.is_empty();
        for (place, call) in now.into_iter().flat_map(|entry| entry.calls) {
            run(target, &call, undos)
                .map_err(|error| LoadError::new(Some(&place), &call.method, error))?;
            loaded.calls += 1;
        }
        if current.iter().any(|name| name == START) {
            let started = target.call(START, None);
            started.map_err(|error| LoadError::new(None, START, error))?;
            undos.push(Undo::Nothing {
                what: START.to_owned(),
                of: None,
            });
        } else if nothing {
            break;
        }
    }
    let late = left.into_iter().flat_map(|entry| entry.calls);
    loaded.too_late = late.map(|(_, call)| call.method).collect();
    Ok(loaded)
}

fn run(target: &mut impl Target, call: &Call, undos: &mut Vec<Undo>) -> Result<(), Error> {
    let was_there = is_there(target, call)?;
    let result = match target.call(&call.method, call.params.as_deref()) {
        Ok(result) => result,
        Err(error) if target.bears(call, &error) => return Ok(()),
        Err(error) => return Err(error),
    };
    // To have waited for something changes nothing.
    if !was_there && !call.method.contains("_wait_") {
        let result: Value = serde_json::from_str(result.get()).unwrap_or_default();
        undos.push(undo_of(call, &result));
    }
    Ok(())
}

/// Whether what `call` is to make exists, where it would be answered all the same.
fn is_there(target: &mut impl Target, call: &Call) -> Result<bool, Error> {
    let Some(lister) = Lister::of(call) else {
        return Ok(false);
    };
    let listed = target.call(lister.method, None)?;
    let listed: Vec<Value> = serde_json::from_str(listed.get()).unwrap_or_default();
    Ok(listed.iter().any(|found| (lister.is_it)(found, call)))
}

fn undo_of(call: &Call, result: &Value) -> Undo {
    match object::undo(call, result) {
        Some((object, call)) => Undo::By { object, call },
        None => Undo::Nothing {
            what: call.method.clone(),
            of: call.text("name"),
        },
    }
}

fn take_back(target: &mut impl Target, object: String, call: &Call, error: &mut LoadError) {
    match target.call(&call.method, call.params.as_deref()) {
        Ok(_) => error.unmade.push(object),
        Err(why) => error.kept.push(format!("{object} ({why})")),
    }
}

#[cfg(test)]
mod tests;
