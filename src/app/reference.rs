//! The RPC methods for people and programs: the reference document, schemas, help and completion, all
//! made from the methods' declarations.

use super::service::Service;
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command};
use rpc::Description;
use serde_json::{Value, json};
use std::fmt::Write;

/// What stands before the methods in `docs/rpc.md`.
const INTRO: &str = include_str!("rpc_intro.md");

/// Every method, in the order of the document.
pub(super) fn descriptions() -> Vec<Description> {
    Service::registry().descriptions()
}

/// The text of `docs/rpc.md`.
pub(super) fn document() -> String {
    let mut text = INTRO.trim_end().to_owned();
    text.push('\n');
    let mut section = "";
    for method in descriptions() {
        // Writing to a string can't fail.
        if method.section != section {
            section = method.section;
            let _ = writeln!(text, "\n## {section}");
            if !method.section_text.is_empty() {
                let _ = writeln!(text, "\n{}", method.section_text);
            }
        }
        let _ = write!(text, "\n### {}\n\n{}", method.name, method.markdown());
    }
    text
}

/// All declarations with their parameters' JSON Schemas, as one document.
pub(super) fn schemas() -> Value {
    let methods: Vec<Value> = descriptions().iter().map(Description::to_json).collect();
    json!({"version": env!("CARGO_PKG_VERSION"), "methods": methods})
}

/// What `pmcache rpc METHOD --help` says.
pub(super) fn help(name: &str) -> Option<String> {
    let method = descriptions().into_iter().find(|m| m.name == name)?;
    Some(format!("{name}\n\n{}", method.markdown()))
}

/// `rpc` with each method as a command of its own, whose parameters can be completed.
pub(super) fn for_completion(rpc: Command) -> Command {
    let methods = descriptions().into_iter().map(|method| {
        let about = method.about.split(". ").next().unwrap_or_default();
        let keys: Vec<String> = method
            .params
            .iter()
            .map(|p| format!("{}=", p.name))
            .collect();
        let command = Command::new(method.name).about(about.to_owned());
        if keys.is_empty() {
            return command;
        }
        let parser = PossibleValuesParser::new(keys);
        command.arg(Arg::new("params").num_args(0..).value_parser(parser))
    });
    rpc.mut_args(|arg| arg.required(false)).subcommands(methods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_and_parameter_says_what_it_is() {
        let mut silent = Vec::new();
        for method in descriptions() {
            if method.about.is_empty() || method.result.is_empty() {
                silent.push(method.name.to_owned());
            }
            let mute = method.params.iter().filter(|param| param.about.is_empty());
            silent.extend(mute.map(|param| format!("{}: {}", method.name, param.name)));
        }
        assert!(silent.is_empty(), "{silent:#?}");
    }

    /// Rewrite it with `pmcache rpc --reference > docs/rpc.md`.
    #[test]
    fn the_document_is_what_the_declarations_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rpc.md");
        let written = std::fs::read_to_string(path).unwrap();
        let line = |(a, b): (&str, &str)| (a != b).then(|| format!("{b}\ninstead of\n{a}"));
        let differs = written.lines().zip(document().lines()).find_map(line);
        assert_eq!(differs, None);
        assert_eq!(written.lines().count(), document().lines().count());
    }

    #[test]
    fn parameters_are_strict_and_their_schemas_say_so() {
        for method in descriptions() {
            if method.schema.is_null() {
                continue;
            }
            let strict = &method.schema["additionalProperties"];
            assert_eq!(strict, &json!(false), "{}", method.name);
        }
    }
}
