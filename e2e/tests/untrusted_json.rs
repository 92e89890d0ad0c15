//! Two habits that turned a stranger's text into a crash or into another request, and that no lint of the compiler finds:
//!
//! - changing JSON by index (`value["field"] = ...`), which panics where the value is no object: `gantry_base::json::Members`
//!   has no such case;
//! - making a path of the API with `format!`, in which a name may add a segment or a query: `gantry_base::paths` escapes it.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// What is not read from anybody: JSON that is made where it is changed.
const OWN: &[&str] = &["node-agent/runtime/src/spec.rs"];

/// What nobody writes, and what to write instead. Texts are matched without line breaks.
fn rules() -> Vec<(Regex, &'static str)> {
    // An expression that is indexed by a text, and perhaps indexed further.
    let indexed = r#"[\w\])]\["[^"\]]*"\](?:\[[^\]]*\])*"#;
    let changing = "as_array_mut|as_object_mut|get_mut|pointer_mut|take|insert|remove|push";
    let members = "JSON is changed by index: use gantry_base::json::Members";
    [
        (format!(r"{indexed} ?[-+*/|&^]?= ?[^=>]"), members),
        (format!(r"{indexed} ?\. ?(?:{changing})\("), members),
        (r#"&mut [\w.]+(?:\[[^\]]*\])*\[""#.to_owned(), members),
        (
            r#"format!\( ?"/apis?/[^"]*\{"#.to_owned(),
            "a path is made with format!: use gantry_base::paths",
        ),
    ]
    .map(|(rule, instead)| (Regex::new(&rule).expect("a rule"), instead))
    .into()
}

/// What of a source file breaks a rule. Tests may, and comments.
fn broken(rules: &[(Regex, &'static str)], text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = code.lines().map(str::trim);
    let lines: Vec<&str> = lines.filter(|line| !line.starts_with("//")).collect();
    // A method call may begin the next line.
    let code = lines.join(" ").replace(" .", ".");
    let found = rules.iter().flat_map(|(rule, instead)| {
        let matches = rule.find_iter(&code);
        matches.map(move |found| format!("`{}`: {instead}", found.as_str()))
    });
    found.collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.unwrap_or_default().to_owned();
        match path.is_dir() {
            true if name != "tests" && name != "benches" => sources(&path, found),
            false if name.ends_with(".rs") && !name.ends_with("tests.rs") => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn nobody_changes_json_by_index_or_formats_a_path() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for part in ["proto", "control-plane", "node-agent"] {
        for krate in fs::read_dir(root.join(part)).expect("a directory of crates") {
            let source = krate.expect("a crate").path().join("src");
            if source.is_dir() {
                sources(&source, &mut files);
            }
        }
    }
    sources(&root.join("cli/src"), &mut files);
    assert!(files.len() > 300, "sources are missing: {}", files.len());
    let rules = rules();
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).expect("below the root");
        let name = name.display().to_string();
        if OWN.contains(&name.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a readable file");
        let broken = broken(&rules, &text).into_iter();
        found.extend(broken.map(|what| format!("{name}: {what}")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_is_forbidden_is_found() {
    let rules = rules();
    for statement in [
        r#"value["a"] = other;"#,
        r#"value["a"][key] = other;"#,
        r#"value[0]["a"][1] = other;"#,
        r#"value["count"] += 1;"#,
        r#"let spec = &mut pod["spec"];"#,
        r#"let spec = &mut self.pod["spec"]["containers"];"#,
        r#"if let Some(map) = pod["spec"].as_object_mut() {}"#,
        "let taken = value[\"a\"]\n        .take();",
        r#"let path = format!("/api/v1/nodes/{name}");"#,
        "let path = format!(\n    \"/apis/apps/v1/namespaces/{namespace}/deployments\"\n);",
    ] {
        assert_eq!(broken(&rules, statement).len(), 1, "{statement}");
        let test = format!("#[cfg(test)]\nmod tests {{ {statement} }}");
        assert!(broken(&rules, &test).is_empty(), "tests may: {statement}");
    }
    let allowed = r#"
        list[0] = 1;
        let name = pod["metadata"]["name"].as_str();
        if pod["spec"]["nodeName"] == node && pod["a"] != other {}
        let ["goto", chain] = pair else { return };
        match parts { ["api"] => {} }
        *value.member(&["a"]) = other;
        let path = paths::node(name, &[]);
        // value["a"] = other;
    "#;
    assert_eq!(broken(&rules, allowed), Vec::<String>::new());
}
