use serde_json::{Value, json};

use super::*;

fn affinity(value: Value) -> Vec<String> {
    let affinity: Affinity = serde_json::from_value(value).unwrap();
    let mut errors = ErrorList::default();
    validate_affinity(Some(&affinity), &Path::new("a"), &mut errors);
    errors.told()
}

#[test]
fn keys_that_are_followed_are_asked_for_once() {
    let term = |term: Value| affinity(json!({"podAffinity": {REQUIRED: [term]}}));
    let place = format!("a.podAffinity.{REQUIRED}[0]");
    let both = term(json!({
        "topologyKey": "z", "labelSelector": {"matchLabels": {"x": "1"}},
        "matchLabelKeys": ["k", "x", "/"], "mismatchLabelKeys": ["k"]
    }));
    assert_eq!(both.len(), 4, "{both:?}");
    assert!(both[0].starts_with(&format!("{place}.matchLabelKeys[2]: ")));
    assert_eq!(
        both[3],
        format!(
            "{place}.matchLabelKeys[0]: Invalid value: \"k\": exists in both matchLabelKeys and mismatchLabelKeys"
        )
    );
    let merged = term(json!({
        "topologyKey": "z", "matchLabelKeys": ["k"],
        "labelSelector": {
            "matchLabels": {"k": "1"},
            "matchExpressions": [{"key": "k", "operator": "In", "values": ["1"]}]
        }
    }));
    assert_eq!(
        merged,
        [
            format!(
                "{place}: Invalid value: \"k\": exists in both matchLabelKeys and labelSelector"
            )
            .replace("[0]: ", "[0][0]: ")
        ]
    );
    let alone = term(json!({"topologyKey": "z", "mismatchLabelKeys": ["k"]}));
    assert_eq!(
        alone,
        [format!(
            "{place}.mismatchLabelKeys: Forbidden: must not be specified when labelSelector is not set"
        )]
    );
}

#[test]
fn a_preference_may_ask_for_any_value() {
    let node = |value: &str| {
        let term = json!({"matchExpressions": [
            {"key": "k", "operator": "In", "values": [value]}
        ]});
        affinity(json!({"nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": [term]},
            PREFERRED: [{"weight": 1, "preference": term}]
        }}))
    };
    assert!(node("a").is_empty());
    let told = node("a b");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("nodeSelectorTerms[0].matchExpressions[0].values[0]"));
}

#[test]
fn tolerations_compare_for_equality_alone() {
    let told = |operator: &str| {
        let toleration = json!([{"key": "k", "operator": operator, "value": "1"}]);
        let tolerations: Vec<Toleration> = serde_json::from_value(toleration).unwrap();
        let mut errors = ErrorList::default();
        validate_tolerations(&tolerations, &Path::new("t"), &mut errors);
        errors.told()
    };
    assert!(told("Equal").is_empty() && told("").is_empty());
    assert!(told("Gt")[0].ends_with("\"Equal\", \"Exists\", \"Lt\", \"Gt\""));
    assert!(told("x")[0].ends_with("supported values: \"Equal\", \"Exists\""));
}
