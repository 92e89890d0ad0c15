//! ExternalMetricValueList of `external.metrics.k8s.io`: the series of a metric from outside of the cluster, as it is read. Nobody
//! writes one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::quantity::Quantity;
use crate::time;

/// The group.
pub const GROUP: &str = "external.metrics.k8s.io";
/// Its only version.
pub const VERSION: &str = "v1beta1";
/// The kind of every answer.
pub const KIND: &str = "ExternalMetricValueList";

/// One item: a series of the metric, in thousandths, and when it was so, nanoseconds since the epoch.
pub fn external_metric_value(
    metric: &str,
    labels: &BTreeMap<String, String>,
    millis: i64,
    unix_nanos: i64,
) -> Value {
    json!({
        "metricName": metric,
        "metricLabels": labels,
        "timestamp": time::seconds(unix_nanos),
        "value": Quantity::from_millis(millis).to_string(),
    })
}

/// All items of an answer.
pub fn external_metric_value_list(items: Vec<Value>) -> Value {
    json!({
        "kind": KIND,
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": {},
        "items": items,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_as_kubernetes_has_it() {
        let labels = [("queue".to_owned(), "a".to_owned())].into();
        let item = external_metric_value("depth", &labels, 2500, 1_767_323_045_999_999_999);
        let expected = json!({
            "kind": "ExternalMetricValueList",
            "apiVersion": "external.metrics.k8s.io/v1beta1",
            "metadata": {},
            "items": [{"metricName": "depth", "metricLabels": {"queue": "a"},
                "timestamp": "2026-01-02T03:04:05Z", "value": "2500m"}],
        });
        assert_eq!(external_metric_value_list(vec![item]), expected);
    }
}
