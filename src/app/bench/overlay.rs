//! `pmcache bench plot A.json … --out FILE`: the runs of several documents in one picture.

use super::plot;
use super::saved::Document;
use crate::app::cli::{UNUSABLE, fail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// All runs as one document. Each name begins with its file's, if there is more than one.
fn overlay(documents: Vec<(&Path, Document)>) -> Document {
    let has_many = documents.len() > 1;
    let mut all = Document::default();
    for (path, document) in documents {
        let stem = path.file_stem().unwrap_or(path.as_os_str());
        all.runs.extend(document.runs.into_iter().map(|mut run| {
            if has_many {
                run.name = format!("{}: {}", stem.to_string_lossy(), run.name);
            }
            run
        }));
    }
    all
}

fn draw(files: &[PathBuf], out: &Path) -> Result<usize, String> {
    let read = |path: &PathBuf| Document::read(path);
    let documents: Vec<Document> = files.iter().map(read).collect::<Result<_, _>>()?;
    let named = files.iter().map(PathBuf::as_path).zip(documents).collect();
    let all = overlay(named);
    if all.runs.is_empty() {
        return Err("there is no run to draw".to_owned());
    }
    plot::write(&all, out).map_err(|error| format!("{}: {error}", out.display()))?;
    Ok(all.runs.len())
}

/// Runs the command.
pub(super) fn run(files: &[PathBuf], out: &Path, json: bool) -> ExitCode {
    match draw(files, out) {
        Ok(runs) => {
            if json {
                println!("{}", json!({"file": out, "runs": runs}));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(UNUSABLE, json, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_several_files_carry_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let run = r#"{"schema":1,"runs":[{"name":"w","curve":[[0,5],[1,9]]}]}"#;
        let (a, b) = (file("old.json", run), file("new.json", run));
        let none = file("none.json", r#"{"schema":1,"runs":[]}"#);
        let out = dir.path().join("all.svg");
        assert_eq!(draw(&[a.clone(), b], &out), Ok(2));
        let picture = std::fs::read_to_string(&out).unwrap();
        assert!(picture.contains("old: w") && picture.contains("new: w"));
        assert_eq!(draw(std::slice::from_ref(&a), &out), Ok(1));
        assert!(!std::fs::read_to_string(&out).unwrap().contains("old: w"));
        assert!(draw(&[none], &out).is_err());
        assert!(draw(&[a, dir.path().join("gone")], &out).is_err());
    }
}
