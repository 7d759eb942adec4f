use super::*;
use serde_json::json;

/// A service that knows a few methods, and writes down what it is asked to do.
#[derive(Default)]
struct Fake {
    started: bool,
    /// The method that fails, and whether that is borne.
    bad: Option<(&'static str, bool)>,
    calls: Vec<String>,
    forgotten: bool,
}

const STARTUP: &[&str] = &["early", "framework_start_init"];
const RUNTIME: &[&str] = &[
    "bdev_null_create",
    "bdev_null_delete",
    "pool_create",
    "pool_get",
    "pool_load",
    "pool_unload",
    "late",
];
const BOTH: &[&str] = &["any", "rpc_get_methods"];

impl Target for Fake {
    fn call(&mut self, method: &str, params: Option<&RawValue>) -> Result<Box<RawValue>, Error> {
        let text = params.map_or("null", RawValue::get);
        let params: Value = serde_json::from_str(text).unwrap();
        let result = match method {
            "rpc_get_methods" => {
                let now = if self.started { RUNTIME } else { STARTUP };
                match params["current"] == true {
                    true => json!([now, BOTH].concat()),
                    false => json!([STARTUP, RUNTIME, BOTH].concat()),
                }
            }
            "pool_get" => json!([{"name": "old", "bdev_name": "old_pmem"}]),
            _ => {
                let name = ["name", "bdev_name"].iter().find_map(|key| params.get(key));
                let name = name.and_then(Value::as_str).unwrap_or_default();
                self.calls
                    .push(format!("{method} {name}").trim_end().to_owned());
                if self.bad.is_some_and(|(bad, _)| bad == method) {
                    return Err(Error::errno(19));
                }
                self.started |= method == "framework_start_init";
                match method {
                    "pool_load" => json!({"name": "p"}),
                    _ => json!(name),
                }
            }
        };
        Ok(serde_json::value::to_raw_value(&result).unwrap())
    }

    fn bears(&mut self, call: &Call, _: &Error) -> bool {
        self.bad
            .is_some_and(|(bad, borne)| borne && bad == call.method)
    }

    fn forget_borne(&mut self) {
        self.forgotten = true;
    }
}

/// Entries of one subsystem; each of some calls.
fn entries(subsystem: &str, lists: &[&[(&str, Value)]]) -> Vec<Entry> {
    let entries = lists.iter().zip(1..).map(|(calls, entry)| {
        let calls = calls.iter().map(|(method, params)| {
            let place = Place {
                subsystem: subsystem.to_owned(),
                entry,
                call: None,
            };
            (place, Call::new(*method, params))
        });
        Entry {
            calls: calls.collect(),
        }
    });
    entries.collect()
}

fn null_bdev(name: &str) -> (&'static str, Value) {
    ("bdev_null_create", json!({"name": name}))
}

#[test]
fn early_calls_come_first_then_the_start_then_the_others() {
    let mut fake = Fake::default();
    let file = entries(
        "bdev",
        &[
            &[null_bdev("a")],
            &[("any", json!(null))],
            &[("late", json!(null)), ("any", json!(null))],
            &[("early", json!(null))],
        ],
    );
    let loaded = load(&mut fake, file).unwrap();
    let expected = [
        "any",
        "early",
        "framework_start_init",
        "bdev_null_create a",
        "late",
        "any",
    ];
    assert_eq!(fake.calls, expected);
    assert_eq!(loaded.calls, 5);
}

#[test]
fn what_comes_too_late_is_left_off() {
    let mut fake = Fake {
        started: true,
        ..Fake::default()
    };
    let file = entries("bdev", &[&[("early", json!(null))], &[null_bdev("a")]]);
    let loaded = load(&mut fake, file).unwrap();
    assert_eq!(fake.calls, ["bdev_null_create a"]);
    assert_eq!(loaded.too_late, ["early"]);
}

#[test]
fn a_failing_call_unmakes_what_was_made_in_reverse() {
    let mut fake = Fake {
        started: true,
        bad: Some(("late", false)),
        ..Fake::default()
    };
    let file = entries(
        "bdev",
        &[
            &[null_bdev("a"), ("any", json!(null))],
            // Gone with what it is about.
            &[("any", json!({"name": "a"}))],
            &[("pool_load", json!({"bdev_name": "pmem"}))],
            &[("pool_load", json!({"bdev_name": "old_pmem"}))],
            &[("late", json!(null))],
            &[null_bdev("b")],
        ],
    );
    let said = load(&mut fake, file).unwrap_err();
    let undone = ["late", "pool_unload p", "bdev_null_delete a"];
    assert_eq!(fake.calls[5..], undone);
    assert_eq!(
        said.to_string(),
        "subsystem bdev, entry 5, late: No such device (-19); unmade again: pool 'p', bdev 'a'; \
         stays as it is: any"
    );
    assert!(fake.forgotten);
}

#[test]
fn a_call_whose_failure_is_borne_is_not_unmade() {
    let mut fake = Fake {
        started: true,
        bad: Some(("pool_load", true)),
        ..Fake::default()
    };
    let file = entries(
        "bdev",
        &[
            &[("pool_load", json!({"bdev_name": "pmem"}))],
            &[null_bdev("a")],
        ],
    );
    load(&mut fake, file).unwrap();
    assert_eq!(fake.calls, ["pool_load pmem", "bdev_null_create a"]);
    assert!(!fake.forgotten);
}

#[test]
fn nothing_is_called_if_something_can_never_be() {
    for (method, said) in [
        ("nope", "Method not found (-32601); nothing was changed"),
        (
            "pool_create",
            "Operation not permitted: a configuration never formats or erases (-1); nothing was \
             changed",
        ),
    ] {
        let mut fake = Fake::default();
        let file = entries("bdev", &[&[null_bdev("a")], &[(method, json!(null))]]);
        let refused = load(&mut fake, file).unwrap_err().to_string();
        let place = format!("subsystem bdev, entry 2, {method}: ");
        assert_eq!(refused, place + said);
        assert!(fake.calls.is_empty());
    }
}

#[test]
fn strangers_are_left_off() {
    let mut fake = Fake::default();
    let file = entries(
        "iscsi",
        &[&[("iscsi_set_options", json!(null))], &[null_bdev("a")]],
    );
    let loaded = load(&mut fake, file).unwrap();
    assert_eq!(loaded.unknown, ["iscsi_set_options"]);
    assert_eq!(fake.calls, ["framework_start_init", "bdev_null_create a"]);
}
