//! The tools of others.

use std::process::{Child, Command, Stdio};

/// Whether `name` can be run. If not, says that its test is skipped; where `CI` is true nothing is.
pub fn tool(name: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    if !found {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!ci, "{name} is missing, and CI is to run everything");
        eprintln!("skipped: no {name}");
    }
    found
}

/// Runs a tool that must succeed; returns what it printed.
pub fn run(name: &str, args: &[&str]) -> String {
    let output = Command::new(name)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name} {args:?}: {}\n{printed}{errors}",
        output.status
    );
    printed
}

/// Starts a tool that works on its own; what it prints is dropped.
pub fn start(name: &str, args: &[&str]) -> Child {
    Command::new(name)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}
