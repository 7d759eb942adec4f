//! Every method against its own declaration: whatever is wrong with its parameters is refused with the
//! declared code, and a refused call changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{Service, run};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// JSON of every kind, and numbers around the bounds of the integer types.
const VALUES: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "256",
    "65536",
    "4294967296",
    "18446744073709551616",
    "1e30",
    "\"no such value\"",
    "\"1\"",
    "\"true\"",
    "[]",
    "[[]]",
    "[null]",
    "{}",
    "{\"a\":1}",
];

fn declared() -> Vec<Value> {
    let printed = run(&["rpc", "--schema"]);
    let document: Value = serde_json::from_slice(&printed.stdout).unwrap();
    document["methods"].as_array().unwrap().clone()
}

/// A connection on which texts are sent as they are.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn connect(service: &Service) -> Self {
        let stream = UnixStream::connect(service.data("rpc.sock")).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The reply to a call with these parameters.
    fn call(&mut self, method: &str, params: &str) -> Value {
        let request = format!("{{\"method\":\"{method}\",\"params\":{params},\"id\":1}}");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {request} -> {line:?}"))
    }

    fn is_refused(&mut self, method: &str, params: &str, code: i64) {
        let reply = self.call(method, params);
        assert_eq!(reply["error"]["code"], code, "{method} {params}: {reply}");
    }
}

/// The greatest number of an integer format.
fn integer_max(schema: &Value) -> f64 {
    let by_format = match schema["format"].as_str() {
        Some("uint8") => f64::from(u8::MAX),
        Some("uint16") => f64::from(u16::MAX),
        Some("uint32") => f64::from(u32::MAX),
        Some("int32") => f64::from(i32::MAX),
        _ => 1.8e19,
    };
    schema["maximum"].as_f64().unwrap_or(by_format)
}

fn is_of_type(schema: &Value, name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| {
            let min = schema["minimum"].as_f64().unwrap_or(f64::MIN);
            number.fract() == 0.0 && number >= min && number <= integer_max(schema)
        }),
        "string" => value.as_str().is_some_and(|text| {
            // Neither of the strings here is a UUID.
            schema["format"] != "uuid" || text.len() == 36
        }),
        "array" => value
            .as_array()
            .is_some_and(|list| list.iter().all(|one| accepts(&schema["items"], one))),
        "object" => value.as_object().is_some_and(|members| {
            let known = schema["properties"].as_object();
            let required = schema["required"].as_array();
            members.iter().all(|(key, one)| {
                known.is_some_and(|known| known.get(key).is_some_and(|s| accepts(s, one)))
            }) && required.is_none_or(|keys| {
                keys.iter()
                    .all(|key| members.contains_key(key.as_str().unwrap()))
            })
        }),
        other => panic!("the test knows no type {other}: {schema}"),
    }
}

/// Whether a parameter of this schema may be `value`.
fn accepts(schema: &Value, value: &Value) -> bool {
    for key in ["anyOf", "oneOf"] {
        if let Some(ways) = schema[key].as_array() {
            return ways.iter().any(|way| accepts(way, value));
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    if let Some(one) = schema.get("const") {
        return one == value;
    }
    match &schema["type"] {
        Value::String(name) => is_of_type(schema, name, value),
        Value::Array(names) => names
            .iter()
            .any(|name| is_of_type(schema, name.as_str().unwrap(), value)),
        other => panic!("a parameter without a type: {schema} ({other})"),
    }
}

/// A value that a parameter of this schema may be.
fn sample(schema: &Value) -> String {
    let given = [
        "\"none\"",
        "1",
        "false",
        "[]",
        "\"00000000-0000-4000-8000-000000000001\"",
    ];
    let fits = |text: &&&str| accepts(schema, &serde_json::from_str(text).unwrap());
    if let Some(fit) = given.iter().find(fits) {
        return (*fit).to_owned();
    }
    for key in ["anyOf", "oneOf", "enum"] {
        if let Some(ways) = schema[key].as_array() {
            return match key {
                "enum" => ways[0].to_string(),
                _ => sample(&ways[0]),
            };
        }
    }
    if let Some(one) = schema.get("const") {
        return one.to_string();
    }
    // An object; one of which nothing is required may be empty.
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    let members = required.iter().map(|key| {
        let key = key.as_str().unwrap();
        format!("\"{key}\":{}", sample(&schema["properties"][key]))
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// An object of the method's required parameters, `changed` in place of or besides them.
fn object(schema: &Value, without: Option<&str>, changed: &[(&str, &str)]) -> String {
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    let mut members: Vec<String> = required
        .iter()
        .map(|key| key.as_str().unwrap())
        .filter(|key| Some(*key) != without && changed.iter().all(|(other, _)| other != key))
        .map(|key| format!("\"{key}\":{}", sample(&schema["properties"][key])))
        .collect();
    members.extend(
        changed
            .iter()
            .map(|(key, value)| format!("\"{key}\":{value}")),
    );
    format!("{{{}}}", members.join(","))
}

/// Every wrong way to call a method that takes parameters.
fn wrong_calls(schema: &Value) -> Vec<String> {
    let mut wrong = vec![
        "[]".to_owned(),
        "7".to_owned(),
        "\"name\"".to_owned(),
        "true".to_owned(),
        object(schema, None, &[("no_such_key", "1")]),
        object(schema, None, &[("", "null")]),
    ];
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    for key in required {
        wrong.push(object(schema, key.as_str(), &[]));
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let good = sample(property);
        wrong.push(object(schema, None, &[(key, &good), (key, &good)]));
        for text in VALUES {
            // One that is beyond 64 bits reads as a float.
            if !accepts(property, &serde_json::from_str(text).unwrap()) {
                wrong.push(object(schema, None, &[(key, text)]));
            }
        }
    }
    wrong
}

/// A service with one object of each kind.
fn populated() -> Service {
    let service = Service::start();
    let disk = json!({"name": "d0", "block_size": 512, "num_blocks": 32768});
    service.call("bdev_malloc_create", disk);
    let pmem = json!({"name": "m0", "path": "anon:", "size": 64 << 20});
    service.call("bdev_pmem_create", pmem);
    let pool = json!({"name": "p0", "bdev_name": "m0", "segment_size": 1 << 20});
    service.call("pool_create", pool);
    let cache = json!({"name": "c0", "pool": "p0", "backing_bdev": "d0", "size": 32 << 20});
    service.call("bdev_pmcache_create", cache);
    service.call("nbd_export_add", json!({"bdev_name": "c0"}));
    let address = format!("unix:{}", service.data("nbd.sock").display());
    service.call("nbd_server_start", json!({"address": address}));
    service
}

/// All that a call could have changed.
fn state(service: &Service) -> Vec<Value> {
    let asked = [
        "bdev_get_bdevs",
        "bdev_pmem_get_devices",
        "pool_get",
        "bdev_pmcache_get",
        "nbd_server_get",
        "keyring_get_keys",
        "log_get_level",
        "log_get_flags",
        "framework_get_scheduler",
        "notify_get_notifications",
    ];
    let mut found: Vec<Value> = asked
        .iter()
        .map(|method| service.call(method, Value::Null))
        .collect();
    let health = service.call("service_get_health", Value::Null);
    found.push(health["degraded"].clone());
    found
}

#[test]
fn every_wrong_call_is_refused_with_the_declared_code_and_changes_nothing() {
    let service = populated();
    let listed = service.call("rpc_get_methods", Value::Null);
    let declared = declared();
    let mut names: Vec<&str> = declared
        .iter()
        .map(|m| m["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        json!(names),
        listed,
        "what is declared is what can be called"
    );
    let before = state(&service);
    let mut raw = Raw::connect(&service);
    let mut calls = 0;
    for method in &declared {
        let name = method["name"].as_str().unwrap();
        let code = method["decode_error"].as_i64().unwrap();
        let is_bdevs = name.starts_with("bdev_") && !name.starts_with("bdev_pm");
        let wrong = match &method["schema"] {
            Value::Null => ["{}", "[]", "{\"name\":1}", "0", "false", "\"\""]
                .map(str::to_owned)
                .to_vec(),
            schema => wrong_calls(schema),
        };
        let code = match &method["schema"] {
            _ if method["runtime"] == false => -1,
            Value::Null => -32602,
            _ => code,
        };
        assert!([-1, -32602, -32603].contains(&code), "{name}");
        assert!(
            code != -32603 || is_bdevs,
            "{name} is none of SPDK's bdev methods"
        );
        for params in &wrong {
            raw.is_refused(name, params, code);
            calls += 1;
        }
    }
    assert_eq!(state(&service), before);
    assert!(
        calls > 20 * declared.len(),
        "{calls} calls of {} methods",
        declared.len()
    );
}

#[test]
fn the_messages_are_those_that_scripts_know() {
    let service = Service::start();
    for (method, params, expected) in [
        (
            "pool_get",
            json!({"x": 1}),
            "Invalid parameters: unknown field `x`",
        ),
        (
            "bdev_null_delete",
            json!({}),
            "spdk_json_decode_object failed: missing field `name`",
        ),
        (
            "thread_get_stats",
            json!({}),
            "'thread_get_stats' requires no arguments",
        ),
        (
            "bdev_malloc_create",
            json!({"block_size": 512, "num_blocks": 8, "md_size": 8}),
            "Invalid parameters: md_size is not supported",
        ),
    ] {
        let (_, message) = service.refused(method, params);
        assert!(message.starts_with(expected), "{message}");
    }
}
