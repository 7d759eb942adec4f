use super::*;
use serde_json::json;

fn document(names: &[&str]) -> Document {
    let runs: Vec<_> = (1..)
        .zip(names)
        .map(|(n, name)| {
            let ns = f64::from(n) * 500.0;
            json!({
                "name": name,
                "iops": 1e9 / ns,
                "latency_ns": {"p50": ns, "p99": ns * 3.0, "p999": ns * 10.0},
                "curve": [[0.0, ns / 2.0], [0.5, ns], [0.99, ns * 3.0], [0.9999, ns * 20.0], [1.0, ns * 99.0]],
                "series": [
                    {"at_ms": 100, "requests": 5, "p50": ns, "p99": ns * 3.0, "max": ns * 9.0},
                    {"at_ms": 200, "requests": 5, "p50": ns, "p99": ns * 4.0, "max": ns * 12.0},
                ],
            })
        })
        .collect();
    Document::parse(&json!({"schema": 1, "runs": runs}).to_string()).unwrap()
}

/// Checks that tags are closed in order, that attributes are quoted, and that text has no bare `<` or
/// `&`; returns the elements with their attributes.
fn elements(xml: &str) -> Vec<(String, String)> {
    let mut open: Vec<String> = Vec::new();
    let mut found = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find('<') {
        let (text, tag) = rest.split_at(at);
        assert!(!text.contains('>'), "a bare > in {text:?}");
        for piece in text.split('&').skip(1) {
            let entity = piece.split_once(';').expect("a bare &").0;
            assert!(
                ["amp", "lt", "gt", "quot", "#39"].contains(&entity),
                "{entity}"
            );
        }
        let end = tag.find('>').expect("a tag without end");
        let inside = &tag[1..end];
        rest = &tag[end + 1..];
        if inside.starts_with('!') {
            continue;
        }
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        let body = inside.strip_suffix('/').unwrap_or(inside);
        let (name, attributes) = body.split_once(' ').unwrap_or((body, ""));
        assert_eq!(attributes.matches('"').count() % 2, 0, "{inside}");
        if name != "style" {
            found.push((name.to_owned(), attributes.to_owned()));
        }
        if !inside.ends_with('/') {
            open.push(name.to_owned());
        }
    }
    assert_eq!((open, rest.trim()), (vec![], ""));
    found
}

fn points<'a>(found: &'a [(String, String)], class: &str) -> Vec<Vec<&'a str>> {
    let class = format!("class=\"{class}\"");
    let lines = found
        .iter()
        .filter(|(name, attributes)| name == "polyline" && attributes.contains(&class));
    lines
        .map(|(_, attributes)| {
            let list = attributes.split_once(" points=\"").unwrap().1;
            list.trim_end_matches('"').split(' ').collect()
        })
        .collect()
}

#[test]
fn every_run_has_its_lines_its_key_and_its_axes() {
    let document = document(&["a", "b", "c"]);
    let svg = render(&document, Format::Svg);
    let found = elements(&svg);
    for (class, count) in [
        ("curve", 5),
        ("series-p50", 2),
        ("series-p99", 2),
        ("series-max", 2),
    ] {
        let lines = points(&found, class);
        assert_eq!(lines.len(), 3, "{class}");
        assert!(lines.iter().all(|line| line.len() == count), "{lines:?}");
    }
    let keys = found.iter().filter(|(_, a)| a.contains("class=\"key\""));
    assert_eq!(keys.count(), 3);
    for text in [
        "p99.99",
        "1 µs",
        "latency (logarithmic)",
        "seconds from",
        ">b</text>",
    ] {
        assert!(svg.contains(text), "{text} is missing");
    }
}

#[test]
fn all_points_are_inside_the_picture_and_slower_is_higher() {
    let found = elements(&render(&document(&["a", "b"]), Format::Svg));
    let mut all = 0;
    for (name, attributes) in &found {
        let Some((_, list)) = attributes.split_once(" points=\"") else {
            continue;
        };
        assert_eq!(name, "polyline");
        for point in list.trim_end_matches('"').split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!(
                (LEFT..=WIDTH - RIGHT).contains(&x) && y >= TITLE_HEIGHT,
                "{point}"
            );
            all += 1;
        }
    }
    assert_eq!(all, 2 * (5 + 6));
    let curves = points(&found, "curve");
    let y = |point: &str| point.split_once(',').unwrap().1.parse::<f64>().unwrap();
    for (fast, slow) in curves[0].iter().zip(&curves[1]) {
        assert!(y(slow) < y(fast), "{slow} against {fast}");
    }
}

#[test]
fn names_are_escaped_wherever_they_stand() {
    let evil = "<script>alert('x')</script> & \"more\" \u{1}";
    let document = document(&[evil, "b"]);
    for format in [Format::Svg, Format::Html] {
        let text = render(&document, format);
        assert!(!text.contains("<script"), "{text}");
        assert!(text.contains(
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;more&quot; \u{fffd}"
        ));
        elements(&text.replace("<!DOCTYPE html>", ""));
    }
}

#[test]
fn documents_without_curves_or_runs_are_pictures_too() {
    for text in [
        r#"{"schema":1,"runs":[]}"#,
        r#"{"schema":1,"runs":[{"name":"a"}]}"#,
        r#"{"schema":1,"runs":[{"name":"a","curve":[[1,0],[2,5],[-1,5],[0.5,-5]],
            "series":[{"at_ms":0,"p50":0,"p99":0,"max":0}]}]}"#,
    ] {
        let document = Document::parse(text).unwrap();
        let svg = render(&document, Format::Svg);
        elements(&svg);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
    // More runs than colours: dashes tell them apart.
    let names: Vec<String> = (0..9).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let svg = render(&document(&names), Format::Svg);
    assert!(svg.contains("stroke-dasharray=\"8 4\""));
}

#[test]
fn the_name_of_the_file_says_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let document = document(&["a"]);
    for (name, begin) in [("o.svg", "<svg"), ("o.HTML", "<!DOCTYPE html>")] {
        let path = dir.path().join(name);
        write(&document, &path).unwrap();
        assert!(std::fs::read_to_string(path).unwrap().starts_with(begin));
    }
    for name in ["o.png", "svg"] {
        let error = write(&document, &dir.path().join(name)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(!dir.path().join(name).exists());
    }
}
