//! Modules of `proxy` import downward only; this holds the table and reads the sources.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which modules each module may name. `control` and the data plane meet in `model` alone.
const LAYERS: [(&str, &[&str]); 18] = [
    ("model", &[]),
    ("limit", &[]),
    ("drain", &[]),
    ("dump", &[]),
    ("net", &["model"]),
    ("snapshot", &["model"]),
    ("telemetry", &["model", "net"]),
    ("tls", &["model", "net", "telemetry"]),
    (
        "control",
        &["dump", "model", "net", "snapshot", "telemetry", "tls"],
    ),
    ("upstream", &["limit", "model", "net", "telemetry", "tls"]),
    ("filter", &["limit", "model", "net", "telemetry", "upstream"]),
    ("http", &["model", "net", "telemetry", "upstream"]),
    (
        "listener",
        &[
            "drain",
            "filter",
            "http",
            "limit",
            "model",
            "net",
            "snapshot",
            "telemetry",
            "tls",
            "upstream",
        ],
    ),
    (
        "admin",
        &["drain", "dump", "model", "net", "snapshot", "telemetry"],
    ),
    (
        "app",
        &[
            "admin",
            "drain",
            "dump",
            "limit",
            "listener",
            "net",
            "snapshot",
            "telemetry",
        ],
    ),
    ("demo", &["model", "net"]),
    (
        "cli",
        &["app", "control", "demo", "model", "net", "telemetry", "tls"],
    ),
    ("main", &[]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a source names as `crate::module` or inside `crate::{…}`, comments left out.
fn imports(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for (at, marker) in code.match_indices("crate::") {
        let rest = &code[at + marker.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                    c if depth == 0 => name.push(c),
                    _ => {}
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_owned());
        }
    }
    let word = |text: &String| {
        text.trim()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    found.iter().map(word).filter(|name| !name.is_empty()).collect()
}

#[test]
fn modules_import_downward_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/src");
    let layers: BTreeMap<_, _> = LAYERS.into_iter().collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "the sources were found");
    let mut upward = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let allowed = layers
            .get(module)
            .unwrap_or_else(|| panic!("{module} is not in the table of layers"));
        for import in imports(&std::fs::read_to_string(&file).unwrap()) {
            if import != module && !allowed.contains(&import.as_str()) {
                upward.push(format!("{} imports {import}", relative.display()));
            }
        }
    }
    assert!(
        upward.is_empty(),
        "against the layers of ARCHITECTURE.md:\n{}",
        upward.join("\n")
    );
}

#[test]
fn imports_are_seen_in_every_form() {
    let source = "use crate::a::B;\nuse crate::{c, d::{E, F}};\n// crate::comment\nlet x = crate::g::h();";
    assert_eq!(imports(source), ["a", "c", "d", "g"]);
}

#[test]
fn generated_and_foreign_types_stay_where_they_belong() {
    // rustls' connection types are the TLS stream's secret; everything else relays through `Duplex`.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let relative = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let source = std::fs::read_to_string(&file).unwrap();
        if source.contains("UnbufferedServerConnection") {
            assert_eq!(relative, "tls/stream.rs");
        }
        let data_path = ["filter", "http", "listener", "net", "upstream"]
            .iter()
            .any(|m| relative.starts_with(m));
        assert!(
            !(data_path && source.contains("tokio_rustls")),
            "{relative} bypasses the TLS stream"
        );
    }
}
