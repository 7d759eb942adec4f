//! The command line.

use super::{bench, check, config, reference, rpc_client, serve, simulate};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::{Shell, generate};
use serde_json::json;
use std::process::ExitCode;

/// A user-space, polled-mode persistent-memory write-back cache for block devices.
#[derive(Debug, Parser)]
#[command(name = "pmcache", version)]
struct Cli {
    /// Print exactly one JSON document on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service until SIGTERM or SIGINT.
    Serve(serve::ServeArgs),
    /// Call a method of a running service and print its result.
    Rpc(rpc_client::RpcArgs),
    /// Save, load or check a configuration.
    Config(config::ConfigArgs),
    /// Measure latencies in this process, without a service.
    Bench(Box<bench::BenchArgs>),
    /// Verify a pool that no service uses, without changing it.
    Check(check::CheckArgs),
    /// Print a completion script: `source <(pmcache completions bash)`.
    Completions(CompletionsArgs),
    /// Prove the engine on a simulated machine whose power fails.
    Simulate(simulate::SimulateArgs),
}

#[derive(Debug, Args)]
struct CompletionsArgs {
    /// For which shell.
    shell: Shell,
}

/// `pmcache rpc`, as clap sees it.
pub(super) fn rpc_command() -> clap::Command {
    let mut cli = Cli::command();
    cli.build();
    cli.find_subcommand("rpc").cloned().unwrap_or(cli)
}

fn completions(shell: Shell) -> ExitCode {
    let mut cli = Cli::command().mut_subcommand("rpc", reference::for_completion);
    generate(shell, &mut cli, "pmcache", &mut std::io::stdout());
    ExitCode::SUCCESS
}

/// Exit code for input that can't be used.
pub(super) const UNUSABLE: u8 = 2;

/// Says why a command has no result (with `json` as the one document on standard output) and gives
/// its exit code.
pub(super) fn fail(code: u8, json: bool, error: impl std::fmt::Display) -> ExitCode {
    let text = error.to_string();
    if json {
        println!("{}", json!({"error": {"message": text}}));
    } else {
        eprintln!("pmcache: {text}");
    }
    ExitCode::from(code)
}

/// Reads the command line and runs it. What it returns is the process's exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Serve(args) => serve::run(&args, cli.json),
        Command::Rpc(args) => rpc_client::run(&args, cli.json),
        Command::Config(args) => config::run(&args, cli.json),
        Command::Bench(args) => bench::run(&args, cli.json),
        Command::Check(args) => check::run(&args, cli.json),
        Command::Completions(args) => completions(args.shell),
        Command::Simulate(args) => simulate::run(&args, cli.json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_takes_json_anywhere() {
        Cli::command().debug_assert();
        for line in [
            "pmcache --json rpc bdev_get_bdevs",
            "pmcache rpc --json bdev_get_bdevs",
            "pmcache rpc bdev_get_bdevs name=x --json",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.json, "{line}");
        }
    }
}
