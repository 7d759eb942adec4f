//! The RPC server on a real socket: however the bytes are cut on their way, the replies are the same,
//! and each is a reply as JSON-RPC has it.

use super::input::Input;
use rpc::{Error, Limits, Listener, Registry, Server};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Replies to an input of this length fit into any socket's buffer.
const INPUT_BYTES_MAX: usize = 2048;

#[derive(Clone, Copy, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Strict,
    Relaxed,
}

/// A parameter of every type that the service's methods have.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Typed {
    name: String,
    size: u64,
    lanes: Option<u32>,
    delta: Option<i64>,
    uuid: Option<Uuid>,
    order: Option<Order>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    bdevs: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Echo {
    text: String,
}

struct Fixture {
    _server: Server,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

thread_local! {
    /// Its socket goes with the thread.
    static FIXTURE: Fixture = Fixture::new();
}

impl Fixture {
    fn new() -> Self {
        let mut registry = Registry::new();
        registry.method("echo", |_: &(), p: Echo| Ok(p.text));
        registry.method("typed", |_: &(), p: Typed| Ok(p));
        registry.bdev_method("bdev_typed", |_: &(), p: Typed| Ok(p.size));
        registry.plain("plain", |_: &()| Ok(true));
        registry.plain("fail", |_: &()| Err::<(), _>(Error::errno(16)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpc.sock");
        let listener = Listener::bind(&path).unwrap();
        let server = Server::start(
            listener,
            Limits::default(),
            Arc::new(registry),
            Arc::new(()),
        );
        Self {
            _server: server.unwrap(),
            path,
            _dir: dir,
        }
    }
}

/// What the server answers to these bytes, sent in these parts.
fn converse(parts: &[&[u8]]) -> String {
    let mut stream = FIXTURE.with(|fixture| UnixStream::connect(&fixture.path).unwrap());
    // A thread of the server that panics would leave us waiting.
    let bound = Some(Duration::from_secs(20));
    stream.set_read_timeout(bound).unwrap();
    for part in parts {
        // The server hangs up on what is not JSON.
        let _ = stream.write_all(part);
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut replies = String::new();
    match stream.read_to_string(&mut replies) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
            panic!("no answer: {error}")
        }
        _ => replies,
    }
}

fn check_reply(reply: &Map<String, Value>) {
    assert_eq!(reply.get("jsonrpc").and_then(Value::as_str), Some("2.0"));
    let id = reply.get("id").unwrap();
    assert!(id.is_null() || id.is_number() || id.is_string(), "{id}");
    match (reply.get("result"), reply.get("error")) {
        (Some(_), None) => assert!(!id.is_null()),
        (None, Some(error)) => {
            assert!(error.get("code").is_some_and(Value::is_i64));
            assert!(error.get("message").is_some_and(Value::is_string));
        }
        _ => panic!("neither result nor error, or both: {reply:?}"),
    }
}

/// If the bytes are one call of `echo`, its text.
fn echo_text(bytes: &[u8]) -> Option<Value> {
    let request: Value = serde_json::from_slice(bytes).ok()?;
    let is_echo = request.get("method")?.as_str()? == "echo";
    is_echo.then(|| request.get("params")?.get("text").cloned())?
}

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let cut = usize::from(input.u16());
    let bytes = input.bytes(INPUT_BYTES_MAX);
    let replies = converse(&[bytes]);
    for line in replies.lines() {
        match serde_json::from_str(line).unwrap() {
            Value::Object(reply) => check_reply(&reply),
            Value::Array(batch) => {
                assert!(!batch.is_empty());
                for reply in &batch {
                    check_reply(reply.as_object().unwrap());
                }
            }
            other => panic!("a reply is {other}"),
        }
    }
    if let Some(text) = echo_text(bytes)
        && let Ok(reply) = serde_json::from_str::<Value>(&replies)
        && let Some(result) = reply.get("result")
    {
        assert_eq!(*result, text);
    }
    let (front, rest) = bytes.split_at(cut % (bytes.len() + 1));
    assert_eq!(converse(&[front, rest]), replies);
}
