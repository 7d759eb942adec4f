//! `pmcache rpc`: one method call from the command line.

use super::cli::{UNUSABLE, fail, rpc_command};
use super::reference;
use super::serve::{DATA_DIR, RPC_SOCKET};
use clap::Args;
use rpc::{Client, ClientError};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Where the service is that a command talks to.
#[derive(Debug, Args)]
pub(super) struct SocketArgs {
    /// The service's socket [default: rpc.sock in the data directory].
    #[arg(long, value_name = "PATH")]
    rpc_socket: Option<PathBuf>,
    /// The service's data directory.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
}

impl SocketArgs {
    /// A connection to it.
    ///
    /// # Errors
    /// If nobody listens there; the text has the path.
    pub(super) fn connect(&self) -> Result<Client, ClientError> {
        let socket = match &self.rpc_socket {
            Some(path) => path.clone(),
            None => self.data_dir.join(RPC_SOCKET),
        };
        Client::connect(&socket).map_err(|error| {
            let text = format!("{}: {error}", socket.display());
            ClientError::Io(std::io::Error::new(error.kind(), text))
        })
    }
}

/// Calls a method and prints its result; exit code 1 with the error if it refuses.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct RpcArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print every method's declaration and parameters' JSON Schema.
    #[arg(long, exclusive = true)]
    schema: bool,
    /// Print the reference of all methods, in Markdown.
    #[arg(long, exclusive = true)]
    reference: bool,
    /// Print help; after a method, that method's.
    #[arg(short, long)]
    help: bool,
    /// The method; `rpc_get_methods` lists them.
    method: Option<String>,
    /// Its parameters: one JSON object, or key=value pairs. A value that is JSON counts as such,
    /// any other as a string; for a string that looks like a number: name='"1"'.
    #[arg(value_name = "JSON | KEY=VALUE")]
    params: Vec<String>,
}

/// Runs the command.
pub(super) fn run(args: &RpcArgs, json: bool) -> ExitCode {
    let Some(method) = asked(args) else {
        return ExitCode::SUCCESS;
    };
    let method = match method {
        Ok(method) => method,
        Err(why) => return fail(UNUSABLE, json, why),
    };
    let params = match params(&args.params) {
        Ok(params) => params,
        Err(why) => return fail(UNUSABLE, json, why),
    };
    match call(&args.socket, method, params.as_ref()) {
        Ok(result) => {
            println!("{}", if json { result } else { for_people(&result) });
            ExitCode::SUCCESS
        }
        Err(error) => {
            if let (true, ClientError::Refused(error)) = (json, &error) {
                println!("{}", json!({"error": error}));
                return ExitCode::FAILURE;
            }
            fail(1, json, format_args!("{method}: {error}"))
        }
    }
}

/// The method to call; none if what was asked for is printed, since it needs no service.
fn asked(args: &RpcArgs) -> Option<Result<&str, String>> {
    let text = match &args.method {
        _ if args.schema => reference::schemas().to_string(),
        _ if args.reference => reference::document().trim_end().to_owned(),
        Some(method) if args.help => match reference::help(method) {
            Some(help) => help,
            None => return Some(Err(format!("there is no method {method}"))),
        },
        Some(method) => return Some(Ok(method)),
        None if args.help => rpc_command().render_long_help().to_string(),
        None => return Some(Err("which method? rpc_get_methods lists them".to_owned())),
    };
    println!("{text}");
    None
}

fn call(socket: &SocketArgs, method: &str, params: Option<&Value>) -> Result<String, ClientError> {
    let result = socket.connect()?.call(method, params)?;
    Ok(result.get().to_owned())
}

/// Indented; a string without its quotes, as SPDK's client prints it.
fn for_people(result: &str) -> String {
    match serde_json::from_str(result) {
        Ok(Value::String(text)) => text,
        Ok(value) => serde_json::to_string_pretty(&value).unwrap_or_else(|_| result.to_owned()),
        Err(_) => result.to_owned(),
    }
}

/// The parameters that `words` give.
fn params(words: &[String]) -> Result<Option<Value>, String> {
    match words {
        [] => return Ok(None),
        [text] if text.trim_start().starts_with(['{', '[']) => {
            let value = serde_json::from_str(text);
            return value
                .map(Some)
                .map_err(|error| format!("the parameters are not JSON: {error}"));
        }
        _ => {}
    }
    let mut members = Map::new();
    for word in words {
        let Some((key, text)) = word.split_once('=') else {
            return Err(format!("{word:?} is neither a JSON object nor key=value"));
        };
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        if members.insert(key.to_owned(), value).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(Some(Value::Object(members)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Option<Value>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        params(&words)
    }

    #[test]
    fn parameters_may_be_json_or_pairs() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[r#"{"a":1}"#]), Ok(Some(json!({"a": 1}))));
        let pairs = of(&["name=d0", "size=7", "force=true", "uuid=\"1\"", "path=/a=b"]);
        let expected = json!({"name": "d0", "size": 7, "force": true, "uuid": "1", "path": "/a=b"});
        assert_eq!(pairs, Ok(Some(expected)));
        assert!(of(&["{"]).is_err());
        assert!(of(&["name"]).is_err());
        assert!(of(&["a=1", "a=2"]).is_err());
    }
}
