//! What pods name, and when they are replaced.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use super::plan::{of_config_map, of_secret};
use super::*;

fn source(source: Source, name: &str) -> Named {
    let name = name.to_owned();
    Named { source, name }
}

fn map(name: &str) -> Named {
    source(Source::ConfigMap, name)
}

/// A ConfigMap of that revision, as pods find it.
fn found(name: &str, revision: u32, value: &str) -> Found {
    let object = json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": revision.to_string()},
        "data": {"key": value},
    });
    let object = serde_json::from_value(object).expect("a ConfigMap");
    Found {
        named: map(name),
        is_optional: false,
        version: Some(of_config_map(&object)),
    }
}

fn absent(name: &str, is_optional: bool) -> Found {
    Found {
        named: map(name),
        is_optional,
        version: None,
    }
}

/// What is remembered after that was seen.
fn noted(found: &[Found]) -> (String, Contents) {
    match plan(None, found, None) {
        (Step::Note(seen), Some(contents)) => (seen, contents),
        other => panic!("{other:?}"),
    }
}

fn why(step: Step) -> String {
    match step {
        Step::Roll { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_that_pods_name_is_found_once_wherever_it_is_named() {
    let container = json!({
        "name": "c",
        "envFrom": [{"configMapRef": {"name": "a", "optional": true}}, {"secretRef": {"name": "a"}}],
        "env": [
            {"name": "PLAIN", "value": "a"},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "b", "key": "k", "optional": true}}},
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "c", "key": "k"}}},
            {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "", "key": "k"}}},
        ],
    });
    let first = json!({"name": "i", "envFrom": [{"configMapRef": {"name": "a"}}]});
    let volumes = json!([
        {"name": "1", "configMap": {"name": "d"}},
        {"name": "2", "secret": {"secretName": "e", "optional": true}},
        {"name": "3", "projected": {"sources": [{"configMap": {"name": "f"}}, {"secret": {"name": "g"}}]}},
        {"name": "4", "emptyDir": {}},
    ]);
    let spec = json!({
        "containers": [container], "initContainers": [first], "volumes": volumes,
        "imagePullSecrets": [{"name": "pull"}],
    });
    let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
    let secret = |name| source(Source::Secret, name);
    let expected = BTreeMap::from([
        (map("a"), false),
        (map("b"), true),
        (map("d"), false),
        (map("f"), false),
        (secret("a"), false),
        (secret("c"), false),
        (secret("e"), true),
        (secret("g"), false),
    ]);
    assert_eq!(named(&spec), expected);
}

#[test]
fn what_an_object_contains_is_told_apart_and_nothing_else() {
    let of = |metadata: Value, data: Value| {
        let secret = json!({"metadata": metadata, "data": data});
        of_secret(&serde_json::from_value(secret).expect("a Secret"))
    };
    let digest = |data: Value| {
        let (step, contents) = plan(
            None,
            &[Found {
                named: map("a"),
                is_optional: false,
                version: Some(of(json!({}), data)),
            }],
            None,
        );
        assert!(matches!(step, Step::Note(_)), "{step:?}");
        contents
    };
    let one = digest(json!({"a": "Yg==", "c": "ZA=="}));
    assert_eq!(one, digest(json!({"c": "ZA==", "a": "Yg=="})));
    // "a" is "bc" and then "d", against "b" and then "cd".
    for other in [json!({"a": "YmM="}), json!({"ab": "Yw=="}), json!({})] {
        assert_ne!(one, digest(other));
    }
    let two = of(json!({"resourceVersion": "2"}), json!({"a": "Yg=="}));
    assert_ne!(
        two,
        of(json!({"resourceVersion": "3"}), json!({"a": "Yg=="}))
    );
}

#[test]
fn pods_are_replaced_when_what_they_name_contains_something_else() {
    let before = [found("a", 1, "x"), found("b", 1, "x")];
    let (seen, known) = noted(&before);
    assert_eq!(plan(Some(&seen), &before, Some(&known)).0, Step::Wait);
    // Another label, as far as who leads knows what there was.
    let labelled = [found("a", 2, "x"), found("b", 1, "x")];
    let (step, contents) = plan(Some(&seen), &labelled, Some(&known));
    assert!(matches!(&step, Step::Note(now) if *now != seen), "{step:?}");
    assert!(contents.is_some());
    let (step, _) = plan(Some(&seen), &labelled, None);
    let unknown = "A ConfigMap or a Secret that its pods name has changed";
    assert_eq!(why(step), unknown);
    let changed = [found("a", 2, "y"), found("b", 1, "x")];
    let (step, _) = plan(Some(&seen), &changed, Some(&known));
    assert_eq!(why(step), "ConfigMap a has changed");
    // What is known is of something else than what the workload says.
    let (_, other) = noted(&[found("a", 7, "z"), found("b", 1, "x")]);
    let (step, _) = plan(Some(&seen), &changed, Some(&other));
    assert_eq!(why(step), unknown);
    let both = [found("a", 2, "y"), found("b", 2, "y")];
    let (step, _) = plan(Some(&seen), &both, Some(&known));
    assert_eq!(why(step), "ConfigMap a, ConfigMap b have changed");
}

#[test]
fn a_template_that_names_others_has_rolled_already() {
    let (seen, known) = noted(&[found("a", 1, "x")]);
    for others in [
        vec![],
        vec![found("b", 1, "y")],
        vec![found("a", 2, "y"), found("b", 1, "x")],
    ] {
        let (step, _) = plan(Some(&seen), &others, Some(&known));
        assert!(matches!(step, Step::Note(_)), "{step:?}");
    }
    // Whatever somebody has written.
    let (step, _) = plan(Some("rubbish"), &[found("a", 1, "x")], None);
    assert!(matches!(step, Step::Note(_)), "{step:?}");
}

#[test]
fn nothing_rolls_while_something_is_missing_that_pods_need() {
    let (seen, known) = noted(&[found("a", 1, "x"), absent("b", true)]);
    let gone = [absent("a", false), absent("b", true)];
    assert_eq!(plan(Some(&seen), &gone, Some(&known)), (Step::Wait, None));
    assert_eq!(plan(None, &gone, None), (Step::Wait, None));
    // It is back, as it was and otherwise.
    let (step, _) = plan(
        Some(&seen),
        &[found("a", 9, "x"), absent("b", true)],
        Some(&known),
    );
    assert!(matches!(step, Step::Note(_)), "{step:?}");
    // What need not be there comes.
    let (step, _) = plan(
        Some(&seen),
        &[found("a", 1, "x"), found("b", 2, "x")],
        Some(&known),
    );
    assert_eq!(why(step), "ConfigMap b has changed");
}

#[test]
fn only_workloads_that_ask_for_it_are_found_by_what_they_name() {
    let deployment = |value: Option<&str>| -> Deployment {
        let annotations = value.map(|value| json!({ROLL_ON_CHANGE: value}));
        let from = json!({"name": "c", "envFrom": [{"configMapRef": {"name": "a"}}]});
        let spec = json!({"selector": {}, "template": {"spec": {"containers": [from]}}});
        let metadata = json!({"name": "web", "namespace": "ns", "annotations": annotations});
        let object = json!({"metadata": metadata, "spec": spec});
        serde_json::from_value(object).expect("a deployment")
    };
    for (value, is_found) in [
        (None, false),
        (Some("false"), false),
        (Some("yes"), false),
        (Some("true"), true),
    ] {
        let values = naming(&deployment(value));
        assert_eq!(
            values == ["ConfigMap ns/a"],
            is_found,
            "{value:?}: {values:?}"
        );
    }
    let said = deployment(Some("yes"));
    assert_eq!(asked(&said.metadata), Err("yes"));
}
