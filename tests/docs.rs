//! What the documents promise: every method has its heading, and the commands are those that work.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

mod common;

use common::{Service, run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn document(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The third-level headings of a document, in order.
fn headings(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect()
}

/// The section under each third-level heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let begin = format!("\n### {heading}\n");
    let from = text.find(&begin).unwrap() + begin.len();
    let rest = &text[from..];
    rest.find("\n#").map_or(rest, |to| &rest[..to])
}

#[test]
fn every_method_is_in_the_document_and_none_besides() {
    let service = Service::start();
    let methods = service.call("rpc_get_methods", Value::Null);
    let methods: BTreeSet<&str> = methods
        .as_array()
        .unwrap()
        .iter()
        .flat_map(Value::as_str)
        .collect();
    let text = document("docs/rpc.md");
    let headings = headings(&text);
    let documented: BTreeSet<&str> = headings.iter().copied().collect();
    assert_eq!(
        documented.len(),
        headings.len(),
        "a method has two headings"
    );
    let missing: Vec<_> = methods.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&methods).collect();
    assert!(missing.is_empty(), "not in docs/rpc.md: {missing:?}");
    assert!(
        invented.is_empty(),
        "docs/rpc.md has what is no method: {invented:?}"
    );
}

#[test]
fn every_option_of_a_cache_is_documented_with_the_method_that_sets_it() {
    let service = Service::start();
    let text = document("docs/rpc.md");
    // A key that no method has is refused with the list of those that it has.
    for method in [
        "bdev_pmcache_create",
        "bdev_pmcache_set_options",
        "bdev_pmcache_load",
        "bdev_pmem_create",
        "pool_create",
    ] {
        let (_, message) = service.refused(method, serde_json::json!({"no_such_key": 1}));
        let (_, expected) = message.split_once("expected one of ").unwrap();
        let keys: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        assert!(keys.contains(&"name"), "{message}");
        let section = section(&text, method);
        for key in keys {
            assert!(
                section.contains(&format!("`{key}`")),
                "{method}: {key} is not in docs/rpc.md"
            );
        }
    }
}

#[test]
fn the_readme_names_the_two_commands() {
    let readme = document("README.md");
    for command in ["cargo run --release -- serve", "scripts/test"] {
        assert!(readme.contains(command), "{command}");
    }
}

#[test]
fn every_option_of_serve_is_in_the_operations_document() {
    let help = run(&["serve", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let options: BTreeSet<&str> = words
        .filter(|word| word.starts_with("--") && *word != "--help")
        .collect();
    assert!(options.contains("--data-dir"), "{help}");
    let text = document("docs/operations.md");
    for option in options {
        assert!(
            text.contains(&format!("`{option}")),
            "{option} is not in docs/operations.md"
        );
    }
}

/// The targets of `[text](target)` that lead into this repository.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> = vec![root.join("README.md")];
    for entry in std::fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|found| found == "md") {
            documents.push(path);
        }
    }
    let mut seen = 0;
    for path in documents {
        let text = std::fs::read_to_string(&path).unwrap();
        for link in links(&text) {
            let target = path.parent().unwrap().join(link);
            assert!(
                target.exists(),
                "{} links to {link}, which is not there",
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 0, "no link was found");
}
