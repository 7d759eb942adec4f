//! `pmcache config`: saving and loading the configuration of a running service, and checking a file.

use super::call::Call;
use super::file::{self, FileError, Saved, SavedPart};
use super::load::{LoadError, Loaded, Target, load, plan};
use crate::app::cli::{UNUSABLE, fail};
use crate::app::rpc_client::SocketArgs;
use crate::app::service::Service;
use clap::{Args, Subcommand};
use rpc::{Client, ClientError, Error, Params};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to do with which configuration.
#[derive(Debug, Args)]
pub(in crate::app) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Write the calls that make again what a running service has.
    Save(SaveArgs),
    /// Make the calls of a file; if one fails, unmake what they made.
    Load(LoadArgs),
    /// Read a file, and say what is wrong with it, without a service.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct SaveArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Where to [default: standard output]. Replaced in one step.
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LoadArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// A configuration in SPDK's layout.
    file: PathBuf,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// A configuration in SPDK's layout.
    file: PathBuf,
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{path}: {source}")]
    Load {
        path: String,
        source: Box<LoadError>,
    },
    #[error("{path}: {source}")]
    Write {
        path: String,
        source: std::io::Error,
    },
}

/// Runs the command.
pub(in crate::app) fn run(args: &ConfigArgs, json: bool) -> ExitCode {
    let done = match &args.command {
        ConfigCommand::Save(args) => save(args, json),
        ConfigCommand::Load(args) => load_file(args).map(|loaded| tell(&loaded, "made", json)),
        ConfigCommand::Check(args) => {
            check(&args.file).map(|loaded| tell(&loaded, "can be made", json))
        }
    };
    let error = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    if let (true, CommandError::Load { source, .. }) = (json, &error) {
        println!("{}", json!({"error": source}));
        return ExitCode::FAILURE;
    }
    let unusable = matches!(error, CommandError::File(_));
    fail(if unusable { UNUSABLE } else { 1 }, json, error)
}

fn tell(loaded: &Loaded, how: &str, json: bool) {
    if json {
        println!("{}", json!(loaded));
        return;
    }
    println!("{} calls {how}", loaded.calls);
    let notes = [
        ("not known here, left off", &loaded.unknown),
        ("only while a service starts, left off", &loaded.too_late),
    ];
    for (why, methods) in notes {
        for method in methods {
            eprintln!("pmcache: {method}: {why}");
        }
    }
}

#[derive(Deserialize)]
struct Listed {
    subsystem: String,
}

fn decoded<T: for<'de> Deserialize<'de>>(raw: &RawValue) -> Result<T, CommandError> {
    let decoded = serde_json::from_str(raw.get());
    decoded.map_err(|error| ClientError::Garbled(error).into())
}

fn save(args: &SaveArgs, json: bool) -> Result<(), CommandError> {
    let mut client = args.socket.connect()?;
    let listed: Vec<Listed> = decoded(&client.call("framework_get_subsystems", None)?)?;
    let mut subsystems = Vec::new();
    for Listed { subsystem } in listed {
        let params = json!({"name": subsystem});
        let config = client.call("framework_get_config", Some(&params))?;
        // Through a value, for the file's indentation.
        let config: Value = decoded(&config)?;
        subsystems.push(SavedPart { subsystem, config });
    }
    let saved = serde_json::to_string_pretty(&Saved { subsystems });
    let text = saved.map_err(ClientError::Garbled)?;
    let Some(path) = &args.file else {
        println!("{text}");
        return Ok(());
    };
    replace(path, &text).map_err(|source| CommandError::Write {
        path: path.display().to_string(),
        source,
    })?;
    if json {
        println!("{}", json!({"saved": path.display().to_string()}));
    }
    Ok(())
}

/// Puts `text` at `path`, whole or not at all.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(dir.unwrap_or(Path::new(".")))?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// A running service, at the other end of its socket.
struct Running(Client);

impl Target for Running {
    fn call(&mut self, method: &str, params: Option<&RawValue>) -> Result<Box<RawValue>, Error> {
        self.0
            .call_raw(method, params)
            .map_err(|error| match error {
                ClientError::Refused(error) => error,
                other => Error::new(Error::INTERNAL_ERROR, other.to_string()),
            })
    }
}

fn load_file(args: &LoadArgs) -> Result<Loaded, CommandError> {
    let entries = file::read(&args.file)?;
    let mut target = Running(args.socket.connect()?);
    load(&mut target, entries).map_err(|source| CommandError::Load {
        path: args.file.display().to_string(),
        source,
    })
}

fn check(path: &Path) -> Result<Loaded, CommandError> {
    let entries = file::read(path)?;
    let registry = Service::registry();
    let known: Vec<String> = registry.names().into_iter().map(str::to_owned).collect();
    let decodes = |call: &Call| registry.check(&call.method, Params::new(call.params.as_deref()));
    let planned = plan(entries, &known, decodes);
    let (planned, unknown) = planned.map_err(|source| CommandError::Load {
        path: path.display().to_string(),
        source,
    })?;
    Ok(Loaded {
        calls: planned.iter().map(|entry| entry.calls.len()).sum(),
        unknown,
        too_late: Vec::new(),
    })
}
