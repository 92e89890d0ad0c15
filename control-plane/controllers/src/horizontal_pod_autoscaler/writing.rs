//! Amounts and selectors as Kubernetes writes them in what it says of autoscalers.

use gantry_api::quantity::Quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Thousandths, rounded up; none of what is no amount.
pub(super) fn millis(amount: &Written) -> i64 {
    let amount: Quantity = amount.0.parse().unwrap_or_default();
    amount.millis()
}

/// Thousandths in decimal form.
pub(super) fn decimal(millis: i64) -> Option<Written> {
    Some(Written(Quantity::from_millis(millis).to_string()))
}

/// Thousandths in the form of amounts of the resource.
pub(super) fn of_its_kind(resource: &str, millis: i64) -> Option<Written> {
    if resource != "memory" {
        return decimal(millis);
    }
    let whole = Quantity::from_bytes(millis / 1000);
    let amount = whole.plus(Quantity::from_millis(millis % 1000));
    Some(Written(amount.to_string()))
}

/// A selector as Go prints it.
pub(super) fn written(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else {
        return "nil".to_owned();
    };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels
        .map(|(key, value)| format!("{key}: {value},"))
        .collect();
    let expressions = selector.match_expressions.iter().flatten();
    let expressions = expressions.map(|expression| {
        let values = expression.values.as_deref().unwrap_or_default().join(" ");
        let (key, operator) = (&expression.key, &expression.operator);
        format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
    });
    let expressions: String = expressions.collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_and_amounts_are_told_as_kubernetes_tells_them() {
        assert_eq!(written(None), "nil");
        let selector = json!({
            "matchLabels": {"queue": "q", "app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
        });
        let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
        assert_eq!(
            written(Some(&selector)),
            "&LabelSelector{MatchLabels:map[string]string{app: web,queue: q,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:tier,Operator:In,Values:[a b],},},}"
        );
        for (resource, millis, text) in [
            ("cpu", 1500, "1500m"),
            ("memory", 3 * 1024 * 1024 * 1000, "3Mi"),
            ("memory", 1_048_576_001, "1048577"),
            ("memory", 500, "500m"),
            ("memory", 0, "0"),
        ] {
            let amount = of_its_kind(resource, millis).expect("an amount");
            assert_eq!(amount.0, text, "{resource} {millis}");
        }
        assert_eq!(millis(&Written("1500u".to_owned())), 2);
        assert_eq!(millis(&Written("rubbish".to_owned())), 0);
    }
}
