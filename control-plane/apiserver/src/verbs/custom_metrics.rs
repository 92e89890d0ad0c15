//! Reading metrics of objects: `custom.metrics.k8s.io`. A metric is a subresource of what it is of (`pods/NAME/METRIC`), of one
//! object or of all that are selected (`*`); those of a namespace itself are at `metrics/METRIC` in it.

use gantry_api::kinds::custom_metrics::{
    Described, GROUP, KIND, MetricValue, metric_value, metric_value_list,
};
use gantry_api::selector::LabelSelector;
use gantry_api::status::StatusError;
use http::Method;
use serde_json::{Value, json};

use crate::context::Api;
use crate::custom_metrics::{CustomMetrics, MetricOf, NoMetric, ServedMetric};
use crate::registry::Registry;
use crate::request::{Query, RequestInfo, ResourcePath};

/// Objects that are looked at before others have their turn.
const TURN: usize = 256;
/// Stands for all objects in the place of a name.
const ALL: &str = "*";

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    namespace: &'a str,
    resource: &'a str,
    name: &'a str,
    metric: &'a str,
}

impl<'a> Asked<'a> {
    fn of(path: &'a ResourcePath) -> Option<Self> {
        if path.watches {
            return None;
        }
        let (namespace, name) = (path.namespace.as_deref(), path.name.as_deref()?);
        match (namespace, path.subresource.as_deref()) {
            (Some(namespace), None) if path.resource == "metrics" => Some(Self {
                namespace: "",
                resource: "namespaces",
                name: namespace,
                metric: name,
            }),
            (namespace, Some(metric)) if !metric.contains('/') => Some(Self {
                namespace: namespace.unwrap_or_default(),
                resource: &path.resource,
                name,
                metric,
            }),
            _ => None,
        }
    }
}

/// GET of a metric.
pub(crate) async fn get(
    api: &Api,
    registry: &Registry,
    info: &RequestInfo,
    path: &ResourcePath,
) -> Result<Value, StatusError> {
    let source = api.custom_metrics.as_deref();
    let source = source.ok_or_else(StatusError::unknown_resource)?;
    let asked = Asked::of(path).ok_or_else(StatusError::unknown_resource)?;
    if !matches!(info.method, Method::GET | Method::HEAD) {
        return Err(StatusError::method_not_allowed());
    }
    info.query.check()?;
    let is_all = asked.name == ALL;
    let names = match is_all {
        false => vec![asked.name.to_owned()],
        true => selected(api, registry, &asked, &info.query).await?,
    };
    let selector = selector(&info.query, "metricLabelSelector")?;
    let of = MetricOf {
        namespace: asked.namespace,
        resource: asked.resource,
        objects: &names,
        metric: asked.metric,
        selector: &selector,
    };
    let mut values = source.values(of).await.map_err(|none| match none {
        NoMetric::Unknown => not_found(of.unknown()),
        NoMetric::Unavailable(why) => {
            StatusError::service_unavailable(format!("no metrics can be had: {why}"))
        }
    })?;
    if !is_all && values.is_empty() {
        return Err(not_found(of.missing(asked.name)));
    }
    values.sort_by(|one, other| one.object.cmp(&other.object));
    let described = registry.get("", "v1", asked.resource);
    let described = described.map(|resource| resource.info());
    let items = values.iter().map(|value| {
        let described = Described {
            api_version: "v1",
            kind: described.map_or(asked.resource, |info| &info.kind),
            namespace: asked.namespace,
            name: &value.object,
        };
        let value = MetricValue {
            millis: value.millis,
            unix_nanos: value.unix_nanos,
            window: value.window,
        };
        metric_value(&path.version, asked.metric, &described, &value)
    });
    Ok(metric_value_list(&path.version, items.collect()))
}

fn selector(query: &Query, parameter: &str) -> Result<LabelSelector, StatusError> {
    LabelSelector::parse(query.get(parameter).unwrap_or_default())
        .map_err(|error| StatusError::bad_request(error.to_string()))
}

/// The names of the objects that a label selector selects, of the core group's, sorted.
async fn selected(
    api: &Api,
    registry: &Registry,
    asked: &Asked<'_>,
    query: &Query,
) -> Result<Vec<String>, StatusError> {
    let labels = selector(query, "labelSelector")?;
    let resource = registry.get("", "v1", asked.resource);
    let resource = resource.filter(|resource| {
        let in_namespace = !asked.namespace.is_empty();
        resource.info().namespaced == in_namespace && !resource.is_virtual()
    });
    let Some(resource) = resource else {
        // Nobody serves a metric of what does not exist.
        return Ok(Vec::new());
    };
    let snapshot = api.store.snapshot(&resource.table);
    let mut names = Vec::new();
    for (at, (key, entry)) in snapshot.range_namespace(asked.namespace).enumerate() {
        if labels.is_everything() || labels.matches_pairs(&entry.index.labels) {
            names.push(key.1.to_string());
        }
        if (at + 1) % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(names)
}

fn not_found(message: String) -> StatusError {
    StatusError::new(404, "NotFound", message, None)
}

/// `/apis/custom.metrics.k8s.io/VERSION`: the metrics that are served, as resources.
pub(crate) async fn resource_list(
    source: &dyn CustomMetrics,
    version: &str,
) -> Result<Value, StatusError> {
    let mut served = source.served().await.map_err(|why| {
        StatusError::service_unavailable(format!("the metrics cannot be listed: {why}"))
    })?;
    served.sort();
    served.dedup();
    let resources = served.iter().map(|metric: &ServedMetric| {
        json!({
            "name": format!("{}/{}", metric.resource, metric.metric),
            "singularName": "",
            "namespaced": metric.namespaced,
            "kind": KIND,
            "verbs": ["get"],
        })
    });
    Ok(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{GROUP}/{version}"),
        "resources": resources.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests;
