//! From a top-level JSON value to what is written back.

use crate::{Error, Params, Phased, Registry};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// How many requests one batch may hold.
const BATCH_MAX: usize = 8192;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<'a> {
    #[serde(default)]
    jsonrpc: Option<String>,
    method: String,
    #[serde(default, borrow)]
    params: Option<&'a RawValue>,
    #[serde(default)]
    id: Value,
}

/// Member order is part of what people see: keep SPDK's.
#[derive(Serialize)]
struct Reply {
    jsonrpc: &'static str,
    id: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
}

/// Runs what `raw` asks for. Returns the text to write, without newline; nothing for notifications
/// that went well.
pub(crate) fn answer<S: Phased + 'static>(
    registry: &Registry<S>,
    state: &S,
    raw: &RawValue,
) -> Option<String> {
    match raw.get().as_bytes().first() {
        Some(b'[') => answer_batch(registry, state, raw.get()),
        Some(b'{') => answer_one(registry, state, raw.get()),
        _ => Some(refusal(Error::INVALID_REQUEST, "Invalid request")),
    }
}

fn answer_batch<S: Phased + 'static>(
    registry: &Registry<S>,
    state: &S,
    text: &str,
) -> Option<String> {
    let requests: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
    if requests.is_empty() || requests.len() > BATCH_MAX {
        return Some(refusal(Error::INVALID_REQUEST, "Invalid request"));
    }
    let replies: Vec<String> = requests
        .iter()
        .filter_map(|request| answer_one(registry, state, request.get()))
        .collect();
    (!replies.is_empty()).then(|| format!("[{}]", replies.join(",")))
}

fn answer_one<S: Phased + 'static>(
    registry: &Registry<S>,
    state: &S,
    text: &str,
) -> Option<String> {
    let (id, outcome) = match decode(text) {
        Ok(request) => {
            let params = Params::new(request.params);
            let outcome = registry.call(state, &request.method, params);
            if let Err(error) = &outcome {
                tracing::debug!(method = request.method, %error, "method refused");
            }
            (request.id, outcome)
        }
        Err(id) => (
            id,
            Err(Error::new(Error::INVALID_REQUEST, "Invalid request")),
        ),
    };
    match outcome {
        Ok(_) if id.is_null() => None,
        Ok(result) => Some(write(id, Ok(result))),
        Err(error) => Some(write(id, Err(error))),
    }
}

/// The request in `text`, or the id to refuse it under.
fn decode(text: &str) -> Result<Request<'_>, Value> {
    match serde_json::from_str::<Request<'_>>(text) {
        Ok(request)
            if is_id(&request.id) && request.jsonrpc.as_deref().unwrap_or("2.0") == "2.0" =>
        {
            Ok(request)
        }
        Ok(request) if is_id(&request.id) => Err(request.id),
        Ok(_) => Err(Value::Null),
        Err(_) => {
            let value: Value = serde_json::from_str(text).unwrap_or_default();
            let id = value.get("id").cloned().unwrap_or_default();
            Err(if is_id(&id) { id } else { Value::Null })
        }
    }
}

fn is_id(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Number(_) | Value::String(_))
}

/// An error reply that belongs to no request.
pub(crate) fn refusal(code: i64, message: &str) -> String {
    write(Value::Null, Err(Error::new(code, message)))
}

fn write(id: Value, outcome: Result<Box<RawValue>, Error>) -> String {
    let (result, error) = match outcome {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    let reply = Reply {
        jsonrpc: "2.0",
        id,
        result,
        error,
    };
    // Strings, numbers and raw JSON always serialise; the fallback keeps this free of panics.
    serde_json::to_string(&reply).unwrap_or_else(|_| "null".to_owned())
}

/// A short text in place of a reply that is longer than a client would take.
pub(crate) fn bounded(reply: String, bytes_max: usize) -> String {
    if reply.len() <= bytes_max {
        return reply;
    }
    refusal(Error::INTERNAL_ERROR, "Internal error: reply too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Phased for u64 {}

    fn ask(text: &str) -> Option<String> {
        let mut registry = Registry::new();
        registry.plain("one", |state: &u64| Ok(*state));
        registry.plain("no", |_: &u64| Err::<(), _>(Error::errno(19)));
        let raw = RawValue::from_string(text.to_owned()).unwrap();
        answer(&registry, &1, &raw)
    }

    #[test]
    fn ids_come_back_as_they_were() {
        let reply = ask(r#"{"jsonrpc":"2.0","method":"one","id":7}"#).unwrap();
        assert_eq!(reply, r#"{"jsonrpc":"2.0","id":7,"result":1}"#);
        let reply = ask(r#"{"method":"one","params":null,"id":"x"}"#).unwrap();
        assert_eq!(reply, r#"{"jsonrpc":"2.0","id":"x","result":1}"#);
        let reply = ask(r#"{"method":"no","id":1}"#).unwrap();
        let expected =
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-19,"message":"No such device"}}"#;
        assert_eq!(reply, expected);
    }

    #[test]
    fn a_notification_is_answered_only_by_an_error() {
        assert_eq!(ask(r#"{"method":"one"}"#), None);
        assert_eq!(ask(r#"{"method":"one","id":null}"#), None);
        let reply = ask(r#"{"method":"no"}"#).unwrap();
        assert!(reply.contains(r#""id":null,"error":{"code":-19"#));
    }

    #[test]
    fn what_is_no_request_is_refused_under_its_id() {
        for (text, id) in [
            (r#"{"jsonrpc":"1.0","method":"one","id":3}"#, "3"),
            (r#"{"id":3}"#, "3"),
            (r#"{"method":"one","id":3,"extra":1}"#, "3"),
            (r#"{"method":1,"id":"a"}"#, "\"a\""),
            (r#"{"method":"one","id":[]}"#, "null"),
            ("{}", "null"),
            ("[]", "null"),
            ("7", "null"),
            ("\"one\"", "null"),
        ] {
            let expected = format!("\"id\":{id},\"error\":{{\"code\":-32600");
            assert!(ask(text).unwrap().contains(&expected), "{text}");
        }
    }

    #[test]
    fn a_batch_is_answered_by_one_array_without_its_notifications() {
        let batch = r#"[{"method":"one","id":1},{"method":"one"},5,{"method":"no","id":2}]"#;
        let reply: Vec<Value> = serde_json::from_str(&ask(batch).unwrap()).unwrap();
        assert_eq!(reply.len(), 3);
        assert_eq!(reply[0]["result"], 1);
        assert_eq!(reply[1]["error"]["code"], -32600);
        assert_eq!(reply[2]["error"]["code"], -19);
        assert_eq!(ask(r#"[{"method":"one"},{"method":"one"}]"#), None);
    }

    #[test]
    fn depth_harms_nobody() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(ask(&deep).unwrap().contains("-32600"));
        let params = format!(r#"{{"method":"one","id":1,"params":{deep}}}"#);
        assert!(ask(&params).unwrap().contains("-32602"));
        let id = format!(r#"{{"method":"one","id":{deep}}}"#);
        assert!(ask(&id).unwrap().contains("-32600"));
    }

    #[test]
    fn a_reply_has_a_bound() {
        assert_eq!(bounded("abc".to_owned(), 3), "abc");
        assert!(bounded("abcd".to_owned(), 3).contains("-32603"));
    }
}
