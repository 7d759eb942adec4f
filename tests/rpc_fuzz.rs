//! Random requests to a running service, well-formed, damaged and no requests at all: it answers all of them,
//! a refused call changes nothing, and its memory does not grow.
//!
//! `PMCACHE_RPC_FUZZ` says how many requests (20,000 by default), `PMCACHE_RPC_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{EMPTY_CONFIG, Service, run};
use reactors::SplitMix64;
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::SystemTime;

/// Requests between two looks at the state.
const GROUP: u64 = 16;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

struct Random(SplitMix64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.draw() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[usize::try_from(self.below(list.len() as u64)).unwrap()]
    }
}

/// Names of what may be there; few, so that they meet.
const NAMES: &[&str] = &[
    "n0", "n1", "n2", "EE_n0", "Malloc0", "p0", "c0", "m0", "anon:", "file0", "all", "rpc",
];
const STRINGS: &[&str] = &[
    "", "/", "0x1", "[0]", "unix:s0", "\u{0}", "nvmf_tgt", "é", "TCP", "static", "../x",
];
/// Subsystems and hosts.
const NQNS: &[&str] = &[
    "nqn.2026-11.test:a",
    "nqn.2026-11.test:b",
    "nqn.2014-08.org.nvmexpress.discovery",
    "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001",
];
/// No size here fills a disk, and no time is waited for.
const INTEGERS: &[u64] = &[
    0,
    1,
    2,
    8,
    60,
    512,
    4096,
    65536,
    1 << 20,
    32 << 20,
    1 << 62,
    1 << 63,
    u64::MAX,
];

/// A parameter of this schema, of the right type in most cases.
fn value(schema: &Value, key: &str, random: &mut Random) -> Value {
    if random.one_in(24) {
        return odd(random);
    }
    for way in ["anyOf", "oneOf"] {
        if let Some(ways) = schema[way].as_array() {
            let ways: Vec<&Value> = ways.iter().collect();
            return value(random.of(&ways), key, random);
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<&Value> = values.iter().collect();
        return random.of(&values).clone();
    }
    if let Some(one) = schema.get("const") {
        return one.clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].as_str().unwrap_or("null").to_owned(),
        kind => kind.as_str().unwrap_or("null").to_owned(),
    };
    match &*kind {
        "boolean" => json!(random.one_in(2)),
        // A wait or a latency is short, or the run takes as long.
        "integer" if key == "timeout" || key.contains("latency") => json!(random.below(3)),
        "integer" => json!(INTEGERS[usize::try_from(random.below(INTEGERS.len() as u64)).unwrap()]),
        "string" if schema["format"] == "uuid" => {
            json!(format!(
                "00000000-0000-4000-8000-00000000000{}",
                random.below(4)
            ))
        }
        // The service waits 5 s for a file's lock: it may be held by one that is just ending.
        "string" if key == "path" && !random.one_in(100) => json!(random.of(&["anon:", "none/x"])),
        "string" if matches!(key, "nqn" | "host") => json!(random.of(NQNS)),
        "string" if key == "trtype" => json!("tcp"),
        // Any port that is free: nobody else is disturbed.
        "string" if key == "traddr" => json!(random.of(&["127.0.0.1", "::1", "n0"])),
        "string" if key == "trsvcid" => json!(random.of(&["0", "65536"])),
        "string" if random.one_in(6) => json!(random.of(STRINGS)),
        "string" => json!(random.of(NAMES)),
        "array" => {
            let count = random.below(3);
            (0..count)
                .map(|_| value(&schema["items"], key, random))
                .collect()
        }
        "object" => object(schema, random),
        _ => Value::Null,
    }
}

fn odd(random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(1.5),
        4 => json!([[], {}]),
        5 => json!({"a": {"b": null}}),
        6 => json!("x".repeat(usize::try_from(random.below(300)).unwrap())),
        _ => json!("no such value"),
    }
}

fn object(schema: &Value, random: &mut Random) -> Value {
    let mut members = Map::new();
    let required = schema["required"].as_array();
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let needed = required.is_some_and(|keys| keys.iter().any(|k| k == key));
        if if needed {
            !random.one_in(40)
        } else {
            random.one_in(4)
        } {
            members.insert(key.clone(), value(property, key, random));
        }
    }
    if random.one_in(40) {
        members.insert("no_such_key".to_owned(), odd(random));
    }
    members.into()
}

/// Calls that would end the run, or make all that follows slow: with these parameters never.
fn is_banned(method: &str, params: &Value) -> bool {
    match method {
        "spdk_kill_instance" => true,
        "reactor_set_idle" => params["policy"] == "poll",
        "bdev_error_inject_error" => params["error_type"] == "pending",
        _ => false,
    }
}

/// One request, and whether it may change something.
fn request(methods: &[Value], random: &mut Random) -> Value {
    let at = usize::try_from(random.below(methods.len() as u64)).unwrap();
    let method = &methods[at];
    let name = method["name"].as_str().unwrap();
    let params = match &method["schema"] {
        _ if random.one_in(50) => odd(random),
        Value::Null => Value::Null,
        schema => object(schema, random),
    };
    let (name, params) = if is_banned(name, &params) {
        ("nope", Value::Null)
    } else {
        (name, params)
    };
    let mut request = json!({"jsonrpc": "2.0", "method": name, "params": params, "id": 1});
    if random.one_in(60) {
        request["jsonrpc"] = odd(random);
    }
    if random.one_in(60) {
        request["id"] = json!([]);
    }
    request
}

/// Whether calls that go well change nothing that is looked at.
fn is_harmless(method: &str) -> bool {
    let harmless = [
        "bdev_examine",
        "bdev_pmcache_get",
        "bdev_wait_for_examine",
        "framework_monitor_context_switch",
        "framework_set_scheduler",
        "log_enable_timestamps",
        "nbd_server_get",
        "pool_get",
        "reactor_set_idle",
        "thread_set_cpumask",
        "trace_clear",
    ];
    method.contains("_get_") || method.ends_with("_status") || harmless.contains(&method)
}

const PROBES: &[&str] = &[
    "bdev_get_bdevs",
    "pool_get",
    "nbd_server_get",
    "vhost_get_controllers",
    "nvmf_get_transports",
    "nvmf_get_subsystems",
    "keyring_get_keys",
    "log_get_level",
    "log_get_flags",
];

fn probes() -> Vec<Value> {
    let probes = PROBES
        .iter()
        .map(|method| json!({"method": method, "id": 0}));
    probes.collect()
}

struct Fuzz {
    service: Service,
    methods: Vec<Value>,
    random: Random,
    stream: BufReader<UnixStream>,
    requests: u64,
    refused: u64,
    /// Groups of which all calls were refused.
    compared: u64,
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let printed = run(&["rpc", "--schema"]);
        let document: Value = serde_json::from_slice(&printed.stdout).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let service = Service::start_with(dir, &["--config", EMPTY_CONFIG], Stdio::null());
        let stream = Self::connect(&service);
        Self {
            service,
            methods: document["methods"].as_array().unwrap().clone(),
            random: Random(SplitMix64::new(seed)),
            stream,
            requests: 0,
            refused: 0,
            compared: 0,
        }
    }

    fn connect(service: &Service) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(service.data("rpc.sock")).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        BufReader::new(stream)
    }

    /// A batch of calls between two looks at the state.
    fn group(&mut self) {
        let calls: Vec<Value> = (0..GROUP)
            .map(|_| request(&self.methods, &mut self.random))
            .collect();
        let batch = [probes(), calls.clone(), probes()].concat();
        let text = json!(batch).to_string();
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let replies: Vec<Value> =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(replies.len(), batch.len(), "{text}");
        let (before, rest) = replies.split_at(PROBES.len());
        let (answers, after) = rest.split_at(calls.len());
        for (call, answer) in calls.iter().zip(answers) {
            let code = answer["error"]["code"].as_i64();
            assert!(
                code.is_some() != answer.get("result").is_some(),
                "{call}: {answer}"
            );
            assert!(code.is_none_or(|code| code < 0), "{call}: {answer}");
        }
        let refused = answers
            .iter()
            .filter(|answer| answer.get("error").is_some())
            .count();
        let changes = calls.iter().zip(answers).any(|(call, answer)| {
            answer.get("error").is_none() && !is_harmless(call["method"].as_str().unwrap())
        });
        if !changes {
            assert_eq!(
                before, after,
                "a refused call has changed something: {text}"
            );
            self.compared += 1;
        }
        self.requests += GROUP;
        self.refused += refused as u64;
    }

    /// Bytes that are no request, or were one before they were damaged, on a connection of their own.
    fn garbage(&mut self) {
        let mut bytes = request(&self.methods, &mut self.random)
            .to_string()
            .into_bytes();
        for _ in 0..=self.random.below(4) {
            let at = usize::try_from(self.random.below(bytes.len() as u64)).unwrap();
            match self.random.below(4) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = b'"',
                2 => bytes.insert(at, b'{'),
                _ => bytes[at] = u8::try_from(self.random.below(256)).unwrap(),
            }
        }
        // What was damaged may by chance be a call that ends the run.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if text.contains("kill")
            || text.contains("poll")
            || text.contains("pending")
            || text.contains("timeout")
        {
            return;
        }
        let mut stream = Self::connect(&self.service);
        stream.get_mut().write_all(&bytes).unwrap();
        stream
            .get_mut()
            .shutdown(std::net::Shutdown::Write)
            .unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        for line in said
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let reply: Value = serde_json::from_slice(line).unwrap();
            assert!(
                reply.is_array() || reply["jsonrpc"] == "2.0",
                "{text}: {reply}"
            );
        }
        self.requests += 1;
    }

    fn quietly(&self, method: &str, params: &Value) {
        // What refuses goes with another, or does not matter.
        let _ = self.service.client().call(method, Some(params));
    }

    /// Takes down all that the calls have made.
    fn clean(&mut self) {
        // The exports are told with a server only.
        self.quietly(
            "nbd_server_start",
            &json!({"address": "unix:data/clean.sock"}),
        );
        let servers = self.service.call("nbd_server_get", Value::Null);
        for name in servers[0]["exports"].as_array().unwrap() {
            self.quietly("nbd_export_remove", &json!({"name": name, "mode": "hard"}));
        }
        for server in servers.as_array().unwrap() {
            self.quietly("nbd_server_stop", &json!({"address": server["address"]}));
        }
        for controller in self
            .service
            .call("vhost_get_controllers", Value::Null)
            .as_array()
            .unwrap()
        {
            self.quietly(
                "vhost_delete_controller",
                &json!({"ctrlr": controller["ctrlr"]}),
            );
        }
        self.clean_nvmf();
        for key in self
            .service
            .call("keyring_get_keys", Value::Null)
            .as_array()
            .unwrap()
        {
            self.quietly("keyring_file_remove_key", &json!({"name": key["name"]}));
        }
        for cache in self
            .service
            .call("bdev_pmcache_get", Value::Null)
            .as_array()
            .unwrap()
        {
            let params = json!({"name": cache["name"], "discard_dirty": cache["dirty_bytes"]});
            self.quietly("bdev_pmcache_destroy", &params);
        }
        for pool in self
            .service
            .call("pool_get", Value::Null)
            .as_array()
            .unwrap()
        {
            self.quietly("pool_unload", &json!({"name": pool["name"]}));
        }
        let kinds: Vec<String> = self
            .methods
            .iter()
            .map(|method| method["name"].as_str().unwrap().to_owned())
            .filter(|name| name.starts_with("bdev_") && name.ends_with("_delete"))
            .collect();
        // One that stands on another goes first; each round takes a layer off.
        for _ in 0..16 {
            for bdev in self
                .service
                .call("bdev_get_bdevs", Value::Null)
                .as_array()
                .unwrap()
            {
                for kind in &kinds {
                    self.quietly(kind, &json!({"name": bdev["name"]}));
                }
            }
        }
        let left = self.service.call("bdev_get_bdevs", Value::Null);
        assert_eq!(left, json!([]), "something can't be taken down");
    }

    fn clean_nvmf(&self) {
        for subsystem in self
            .service
            .call("nvmf_get_subsystems", Value::Null)
            .as_array()
            .unwrap()
        {
            // The one for discovery stays, and listens no more.
            let nqn = &subsystem["nqn"];
            self.quietly("nvmf_delete_subsystem", &json!({"nqn": nqn}));
            for address in subsystem["listen_addresses"].as_array().unwrap() {
                let params = json!({"nqn": nqn, "listen_address": address});
                self.quietly("nvmf_subsystem_remove_listener", &params);
            }
        }
        self.quietly("nvmf_delete_transport", &json!({"trtype": "TCP"}));
    }

    /// The service's resident memory, in KiB, with nothing in it.
    fn rss_kib(&mut self) -> u64 {
        self.clean();
        let pid = self.service.ready["pid"].as_u64().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn run_to(&mut self, requests: u64) {
        while self.requests < requests {
            self.group();
            if self.random.one_in(8) {
                self.garbage();
            }
            if self.random.one_in(64) {
                self.clean();
            }
        }
    }
}

#[test]
fn a_million_requests_harm_nobody() {
    let requests = setting("PMCACHE_RPC_FUZZ").unwrap_or(20_000);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let seed = setting("PMCACHE_RPC_SEED").unwrap_or(now.as_secs());
    eprintln!("PMCACHE_RPC_SEED={seed} PMCACHE_RPC_FUZZ={requests}");
    let mut fuzz = Fuzz::new(seed);
    fuzz.run_to(requests / 4);
    let early = fuzz.rss_kib();
    fuzz.run_to(requests);
    let late = fuzz.rss_kib();
    let took = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        - now;
    eprintln!(
        "{} requests, {} refused, {} groups compared, {took:?}, RSS {early} KiB early and {late} KiB late",
        fuzz.requests, fuzz.refused, fuzz.compared
    );
    assert!(
        fuzz.compared * GROUP > requests / 10,
        "too few groups are all refused"
    );
    // The allocator's own slack; a leak of 100 bytes a request would be more in a full run.
    assert!(late < early + 16384, "{early} KiB have become {late} KiB");
    let health = fuzz.service.call("service_get_health", Value::Null);
    assert_eq!(health["ready"], true);
}
