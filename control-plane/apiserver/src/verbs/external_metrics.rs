//! Reading metrics from outside of the cluster: `external.metrics.k8s.io`. A metric is what a resource is elsewhere, in a namespace.

use gantry_api::kinds::external_metrics::{
    GROUP, KIND, VERSION, external_metric_value, external_metric_value_list,
};
use gantry_api::selector::LabelSelector;
use gantry_api::status::StatusError;
use http::Method;
use serde_json::{Value, json};

use crate::external_metrics::{ExternalMetrics, NoExternalMetric};
use crate::request::{RequestInfo, ResourcePath};

/// GET of a metric: the series that are selected by their labels.
pub(crate) async fn get(
    source: &dyn ExternalMetrics,
    info: &RequestInfo,
    path: &ResourcePath,
) -> Result<Value, StatusError> {
    let namespace = path.namespace.as_deref();
    let namespace = namespace.filter(|_| path.name.is_none() && !path.watches);
    let namespace = namespace.ok_or_else(StatusError::unknown_resource)?;
    if !matches!(info.method, Method::GET | Method::HEAD) {
        return Err(StatusError::method_not_allowed());
    }
    info.query.check()?;
    let selector = LabelSelector::parse(info.query.get("labelSelector").unwrap_or_default())
        .map_err(|error| StatusError::bad_request(error.to_string()))?;
    let metric = &path.resource;
    let series = source.series(namespace, metric).await;
    let series = series.map_err(|none| match none {
        NoExternalMetric::Unknown(why) => StatusError::new(404, "NotFound", why, None),
        NoExternalMetric::Unavailable(why) => StatusError::service_unavailable(why),
    })?;
    let selected = series
        .iter()
        .filter(|series| selector.matches_map(Some(&series.labels)));
    let items = selected.map(|series| {
        external_metric_value(metric, &series.labels, series.millis, series.unix_nanos)
    });
    Ok(external_metric_value_list(items.collect()))
}

/// `/apis/external.metrics.k8s.io/v1beta1`. Which metrics there are is their namespaces' business: it says that there are some.
pub(crate) fn resource_list() -> Value {
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [{
            "name": "externalmetrics",
            "singularName": "",
            "namespaced": true,
            "kind": KIND,
            "verbs": ["get"],
        }],
    })
}

#[cfg(test)]
mod tests;
