//! MetricValueList of `custom.metrics.k8s.io`: a metric of some objects, as it is read. Nobody writes one.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::json::Members;
use crate::quantity::Quantity;
use crate::time;

/// The group.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// Its versions, the preferred one first.
pub const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
/// The kind of every answer.
pub const KIND: &str = "MetricValueList";

/// What a metric is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described<'a> {
    /// Such as `v1`.
    pub api_version: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// Empty of what is in none.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// The value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricValue {
    /// Thousandths.
    pub millis: i64,
    /// When it was so, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What a rate is over.
    pub window: Option<Duration>,
}

/// One item, in one of [`VERSIONS`].
pub fn metric_value(
    version: &str,
    metric: &str,
    described: &Described<'_>,
    value: &MetricValue,
) -> Value {
    let mut object = Map::new();
    object.insert("kind".to_owned(), json!(described.kind));
    if !described.namespace.is_empty() {
        object.insert("namespace".to_owned(), json!(described.namespace));
    }
    object.insert("name".to_owned(), json!(described.name));
    object.insert("apiVersion".to_owned(), json!(described.api_version));
    let mut item = json!({
        "describedObject": object,
        "timestamp": time::seconds(value.unix_nanos),
        "value": Quantity::from_millis(value.millis).to_string(),
    });
    let is_first = version == "v1beta1";
    if is_first {
        *item.member(&["metricName"]) = json!(metric);
        *item.member(&["selector"]) = Value::Null;
    } else {
        *item.member(&["metric"]) = json!({"name": metric, "selector": null});
    }
    if let Some(window) = value.window {
        let name = if is_first { "window" } else { "windowSeconds" };
        *item.member(&[name]) = json!(window.as_secs() + u64::from(window.subsec_nanos() > 0));
    }
    item
}

/// All items of an answer.
pub fn metric_value_list(version: &str, items: Vec<Value>) -> Value {
    json!({
        "kind": KIND,
        "apiVersion": format!("{GROUP}/{version}"),
        "metadata": {},
        "items": items,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_say_the_same() {
        let web = Described {
            api_version: "v1",
            kind: "Pod",
            namespace: "default",
            name: "web",
        };
        let value = MetricValue {
            millis: 2500,
            unix_nanos: 1_767_323_045_999_999_999,
            window: Some(Duration::from_millis(3001)),
        };
        let described =
            json!({"kind": "Pod", "namespace": "default", "name": "web", "apiVersion": "v1"});
        let newer = metric_value("v1beta2", "m", &web, &value);
        let expected = json!({
            "describedObject": described, "metric": {"name": "m", "selector": null},
            "timestamp": "2026-01-02T03:04:05Z", "windowSeconds": 4, "value": "2500m",
        });
        assert_eq!(newer, expected);
        let older = metric_value("v1beta1", "m", &web, &value);
        let expected = json!({
            "describedObject": described, "metricName": "m", "selector": null,
            "timestamp": "2026-01-02T03:04:05Z", "window": 4, "value": "2500m",
        });
        assert_eq!(older, expected);
        let whole = Described {
            kind: "Namespace",
            namespace: "",
            ..web
        };
        let value = MetricValue {
            millis: 7000,
            window: None,
            ..value
        };
        let item = metric_value("v1beta2", "m", &whole, &value);
        assert_eq!(item["value"], "7");
        assert!(item["describedObject"]["namespace"].is_null() && item["windowSeconds"].is_null());
    }
}
