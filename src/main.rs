//! The `pmcache` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    pmcache::app::main()
}
