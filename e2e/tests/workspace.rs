//! The direction of dependencies: a forbidden edge between crates fails here, with the rule it breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Tests of the whole, which nothing in turn imports.
const IMPORT_ANYTHING: &[&str] = &["gantry-e2e", "gantry-fuzz-targets"];

/// What a crate of a layer may depend on inside the workspace.
const ALLOWED: &[(&str, &[&str])] = &[
    ("gantry-rpc", &[]),
    ("gantry-durable", &[]),
    ("gantry-tls", &["gantry-durable"]),
    ("gantry-base", &[]),
    ("gantry-api", &["gantry-base"]),
    ("gantry-tasks", &[]),
    ("gantry-store", &["gantry-tasks"]),
    (
        "gantry-apiserver",
        &[
            "gantry-api",
            "gantry-rpc",
            "gantry-store",
            "gantry-tasks",
            "gantry-tls",
        ],
    ),
    (
        "gantry-members",
        &[
            "gantry-apiserver",
            "gantry-base",
            "gantry-rpc",
            "gantry-store",
            "gantry-tasks",
            "gantry-tls",
            "gantry-usage",
        ],
    ),
    (
        "gantry-authority",
        &[
            "gantry-apiserver",
            "gantry-base",
            "gantry-durable",
            "gantry-members",
            "gantry-store",
            "gantry-tls",
        ],
    ),
    (
        "gantry-nodes",
        &[
            "gantry-apiserver",
            "gantry-base",
            "gantry-informer",
            "gantry-members",
            "gantry-rpc",
            "gantry-store",
            "gantry-tasks",
            "gantry-usage",
        ],
    ),
    ("gantry-usage", &[]),
    ("gantry-external", &["gantry-base", "gantry-tls"]),
    ("gantry-informer", &["gantry-tasks"]),
    (
        "gantry-scheduler",
        &["gantry-base", "gantry-informer", "gantry-tasks"],
    ),
    (
        "gantry-controllers",
        &["gantry-api", "gantry-informer", "gantry-tasks"],
    ),
    (
        "gantry-server",
        &[
            "gantry-apiserver",
            "gantry-authority",
            "gantry-base",
            "gantry-controllers",
            "gantry-durable",
            "gantry-external",
            "gantry-informer",
            "gantry-members",
            "gantry-nodes",
            "gantry-scheduler",
            "gantry-store",
            "gantry-tasks",
            "gantry-tls",
            "gantry-usage",
        ],
    ),
    ("gantry-idmap", &[]),
    ("gantry-cri", &["gantry-idmap"]),
    (
        "gantry-runtime",
        &["gantry-cri", "gantry-durable", "gantry-idmap", "gantry-rpc"],
    ),
    (
        "gantry-image",
        &["gantry-cri", "gantry-durable", "gantry-idmap"],
    ),
    ("gantry-network", &["gantry-cri", "gantry-durable"]),
    ("gantry-dns", &["gantry-cri"]),
    (
        "gantry-pods",
        &[
            "gantry-base",
            "gantry-cri",
            "gantry-durable",
            "gantry-idmap",
            "gantry-tasks",
            "gantry-tls",
        ],
    ),
    (
        "gantry-agent",
        &[
            "gantry-base",
            "gantry-cri",
            "gantry-dns",
            "gantry-durable",
            "gantry-image",
            "gantry-network",
            "gantry-pods",
            "gantry-rpc",
            "gantry-runtime",
            "gantry-tasks",
            "gantry-tls",
        ],
    ),
    (
        "gantry",
        &[
            "gantry-agent",
            "gantry-api",
            "gantry-durable",
            "gantry-image",
            "gantry-network",
            "gantry-rpc",
            "gantry-runtime",
            "gantry-server",
            "gantry-tasks",
            "gantry-tls",
        ],
    ),
    ("gantry-demo", &[]),
];

/// Crates whose normal and build dependencies in the workspace break [`ALLOWED`], as `from -> to`.
fn forbidden_edges(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut forbidden = Vec::new();
    for (from, targets) in edges {
        if IMPORT_ANYTHING.contains(&from.as_str()) {
            continue;
        }
        let Some(allowed) = allowed.get(from.as_str()) else {
            forbidden.push(format!("{from} is not in the table of layers: add it"));
            continue;
        };
        for to in targets {
            if !allowed.contains(&to.as_str()) {
                forbidden.push(format!("{from} -> {to}"));
            }
        }
    }
    forbidden
}

fn workspace_edges() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--manifest-path",
        ])
        .arg(manifest)
        .output()
        .expect("cargo metadata runs");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().expect("name").to_owned();
            let targets = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .filter_map(|dependency| dependency["name"].as_str())
                .filter(|name| name.starts_with("gantry"))
                .map(str::to_owned)
                .collect();
            (name, targets)
        })
        .collect()
}

#[test]
fn dependencies_point_in_the_allowed_direction() {
    let edges = workspace_edges();
    assert!(edges.len() >= ALLOWED.len(), "the workspace lost a crate");
    assert_eq!(forbidden_edges(&edges), Vec::<String>::new());
}

#[test]
fn a_forbidden_edge_is_found() {
    let edges = BTreeMap::from([(
        "gantry-scheduler".to_owned(),
        BTreeSet::from(["gantry-store".to_owned()]),
    )]);
    assert_eq!(
        forbidden_edges(&edges),
        ["gantry-scheduler -> gantry-store"]
    );
}
