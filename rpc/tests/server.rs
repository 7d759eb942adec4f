//! The server as its clients see it, over a real socket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use rpc::{Client, ClientError, Error, Limits, Listener, Registry, Server};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Default)]
struct State {
    gate_reached: AtomicBool,
    gate_open: AtomicBool,
}

impl rpc::Phased for State {}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Echo {
    text: String,
}

struct Rig {
    server: Option<Server>,
    state: Arc<State>,
    path: PathBuf,
    tcp: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let mut registry = Registry::new();
        registry.method("echo", |_: &State, p: Echo| Ok(p.text));
        registry.plain("big", |_: &State| Ok("x".repeat(1 << 20)));
        registry.plain("fail", |_: &State| Err::<(), _>(Error::errno(16)));
        registry.plain("wait_at_gate", |state: &State| {
            state.gate_reached.store(true, Ordering::SeqCst);
            while !state.gate_open.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            Ok(true)
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpc.sock");
        let mut listener = Listener::bind(&path).unwrap();
        let tcp = listener.add_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let state = Arc::new(State::default());
        let server = Server::start(listener, limits, Arc::new(registry), Arc::clone(&state));
        Self {
            server: Some(server.unwrap()),
            state,
            path,
            tcp,
            _dir: dir,
        }
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        let timeout = Some(Duration::from_secs(30));
        stream.set_read_timeout(timeout).unwrap();
        stream
    }

    fn tcp_stream(&self) -> TcpStream {
        let stream = TcpStream::connect(self.tcp).unwrap();
        let timeout = Some(Duration::from_secs(30));
        stream.set_read_timeout(timeout).unwrap();
        stream
    }

    fn client(&self) -> Client {
        let client = Client::connect(&self.path).unwrap();
        client.set_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }
}

/// All that the server sends until it closes.
fn rest(stream: &mut impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn replies(text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

#[test]
fn a_request_may_arrive_split_at_any_byte() {
    let rig = Rig::new();
    let text = "{\n  \"jsonrpc\": \"2.0\",\n  \"method\": \"echo\", \"id\": 1,\n  \
                \"params\": {\"text\": \"a}{\\\"é\"}\n}\n";
    let bytes = text.as_bytes();
    for cut in 1..bytes.len() {
        let mut stream = rig.stream();
        let (front, back) = bytes.split_at(cut);
        stream.write_all(front).unwrap();
        // Give the server a chance to see the front alone.
        std::thread::yield_now();
        stream.write_all(back).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let found = replies(&rest(&mut stream));
        assert_eq!(found.len(), 1, "cut at {cut}: {found:?}");
        assert_eq!(found[0]["result"], "a}{\"é", "cut at {cut}");
    }
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    let rig = Rig::new();
    let mut stream = rig.stream();
    stream
        .write_all(
            br#"{"method":"echo","params":{"text":"a"},"id":1}{"method":"nope","id":2}
                {"method":"echo","params":{"text":"silent"}} {"method":"fail","id":3}"#,
        )
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let found = replies(&rest(&mut stream));
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[0]["result"], "a");
    assert_eq!(found[1]["error"]["code"], -32601);
    assert_eq!(found[2]["error"]["message"], "Device or resource busy");
}

#[test]
fn a_batch_gets_one_array() {
    let rig = Rig::new();
    let mut stream = rig.stream();
    stream
        .write_all(br#"[{"method":"echo","params":{"text":"a"},"id":1},{"method":"fail","id":2}]"#)
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let found = replies(&rest(&mut stream));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].as_array().unwrap().len(), 2);
}

#[test]
fn garbage_is_told_and_the_connection_closed() {
    let rig = Rig::new();
    for garbage in [&b"hello"[..], b"{\"method\":}", b"{\"a\":1]"] {
        let mut stream = rig.stream();
        stream.write_all(garbage).unwrap();
        let found = replies(&rest(&mut stream));
        assert_eq!(found[0]["error"]["code"], -32700);
        assert_eq!(found[0]["id"], Value::Null);
    }
    // An endless string: refused once it is above the limit. The server may close, and reset what
    // it has not read, before all is written.
    let mut stream = rig.stream();
    let _ = stream.write_all(&[b"\"", &vec![b'x'; 300 << 10][..]].concat());
    let mut found = Vec::new();
    match stream.read_to_end(&mut found) {
        Ok(_) => assert!(String::from_utf8(found).unwrap().contains("-32700")),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert!(rig.client().call("rpc_get_methods", None).is_ok());
}

#[test]
fn the_65th_connection_is_refused_and_a_freed_place_is_used() {
    let rig = Rig::new();
    let mut clients: Vec<Client> = (0..64).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.call("echo", Some(&json!({"text": "x"}))).unwrap();
    }
    let refused = rest(&mut rig.stream());
    assert!(refused.contains("too many connections"), "{refused}");
    drop(clients.pop());
    // The server notices the closed connection a moment later; until then it refuses.
    let mut tries = 0;
    loop {
        match rig.client().call("echo", Some(&json!({"text": "x"}))) {
            Ok(_) => break,
            Err(_) => tries += 1,
        }
        assert!(tries < 10_000, "the freed place is never given out");
    }
}

#[test]
fn a_slow_method_delays_nobody_else() {
    let rig = Rig::new();
    let mut slow = rig.client();
    let waiting =
        std::thread::spawn(move || slow.call("wait_at_gate", None).map(|v| v.to_string()));
    while !rig.state.gate_reached.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    // The slow method cannot end before this has been answered.
    let quick = rig.client().call("echo", Some(&json!({"text": "q"})));
    assert_eq!(quick.unwrap().get(), "\"q\"");
    rig.state.gate_open.store(true, Ordering::SeqCst);
    assert_eq!(waiting.join().unwrap().unwrap(), "true");
}

#[test]
fn a_long_reply_arrives_whole() {
    let rig = Rig::new();
    let found = rig.client().call("big", None).unwrap();
    assert_eq!(found.get().len(), (1 << 20) + 2);
}

#[test]
fn tcp_is_answered_as_the_socket_is_and_counts_among_its_connections() {
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let rig = Rig::with_limits(limits);
    let mut stream = rig.tcp_stream();
    let request = br#"{"method":"echo","params":{"text":"a"},"id":1}"#;
    stream.write_all(request).unwrap();
    let mut byte = [0];
    // Answered: it is one of the two by now.
    stream.read_exact(&mut byte).unwrap();
    let mut other = rig.client();
    other.call("echo", Some(&json!({"text": "x"}))).unwrap();
    for refused in [rest(&mut rig.tcp_stream()), rest(&mut rig.stream())] {
        assert!(refused.contains("too many connections"), "{refused}");
    }
    stream.write_all(b"garbage").unwrap();
    let found = format!("{{{}", rest(&mut stream));
    let found = replies(&found);
    assert_eq!(found[0]["result"], "a");
    assert_eq!(found[1]["error"]["code"], -32700);
}

#[test]
fn the_rest_of_a_request_is_not_waited_for_without_end() {
    let limits = Limits {
        request_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let rig = Rig::with_limits(limits);
    let mut idle = rig.client();
    idle.call("echo", Some(&json!({"text": "x"}))).unwrap();
    let mut silent = rig.stream();
    silent.write_all(b"\n {\"method\":").unwrap();
    let mut slow = rig.tcp_stream();
    slow.write_all(b"[").unwrap();
    // It goes on, a byte at a time, and never comes to an end.
    while slow.write_all(b" ").is_ok() {
        std::thread::yield_now();
    }
    let found = replies(&rest(&mut silent));
    assert_eq!(found[0]["error"]["code"], -32700);
    assert!(
        found[0]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("in time")
    );
    // Who asks for nothing may be silent for as long as he likes.
    idle.call("echo", Some(&json!({"text": "x"}))).unwrap();
}

#[test]
fn a_batch_of_many_and_its_notifications() {
    let rig = Rig::new();
    let mut stream = rig.stream();
    let one = |id: u32| json!({"method": "echo", "params": {"text": "a"}, "id": id});
    let silent = json!({"method": "echo", "params": {"text": "a"}});
    let batch: Vec<Value> = (0..1000).flat_map(|id| [one(id), silent.clone()]).collect();
    stream
        .write_all(json!(batch).to_string().as_bytes())
        .unwrap();
    stream
        .write_all(json!([silent, silent]).to_string().as_bytes())
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let found = replies(&rest(&mut stream));
    assert_eq!(found.len(), 1);
    let ids = found[0]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["id"].as_u64());
    assert!(ids.eq((0..1000).map(Some)));
}

#[test]
fn stop_ends_idle_connections_and_removes_the_socket() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    client.call("echo", Some(&json!({"text": "x"}))).unwrap();
    rig.server.take().unwrap().stop();
    assert!(matches!(
        client.call("echo", Some(&json!({"text": "x"}))),
        Err(ClientError::Closed | ClientError::Io(_))
    ));
    assert!(!rig.path.exists());
    assert!(!rig.path.with_extension("sock.lock").exists());
}
