//! How the cache of autoscalers finds those of a target, and those that go by the metrics of an object.

use std::sync::Arc;

use gantry_informer::{Cache, Key};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

/// Index: autoscalers by the kind and name of their target.
pub(crate) const OF_TARGET: &str = "target";
/// Index: autoscalers by the kind and name of each object whose metrics they go by; and by their namespace, if there are any.
pub(super) const OF_OBJECTS: &str = "objects";

fn value(kind: &str, object: &Key) -> String {
    format!("{}/{kind}/{}", object.namespace, object.name)
}

/// The values of [`OF_TARGET`].
pub(crate) fn of_target(autoscaler: &HorizontalPodAutoscaler) -> Vec<String> {
    let namespace = autoscaler.metadata.namespace.as_deref();
    let target = &autoscaler.spec.scale_target_ref;
    let key = Key::new(namespace.unwrap_or_default(), &target.name);
    vec![value(&target.kind, &key)]
}

/// The autoscalers whose target is called so. Which group it is of is not looked at.
pub(crate) fn targeting(
    autoscalers: &Cache<HorizontalPodAutoscaler>,
    kind: &str,
    target: &Key,
) -> Vec<Arc<HorizontalPodAutoscaler>> {
    autoscalers.indexed(OF_TARGET, &value(kind, target))
}

/// The values of [`OF_OBJECTS`].
pub(super) fn of_objects(autoscaler: &HorizontalPodAutoscaler) -> Vec<String> {
    let namespace = autoscaler.metadata.namespace.as_deref();
    let namespace = namespace.unwrap_or_default();
    let metrics = autoscaler.spec.metrics.iter().flatten();
    let sources = metrics.filter_map(|metric| metric.object.as_ref());
    let described = sources.map(|source| &source.described_object);
    let values: Vec<String> = described
        .map(|object| value(&object.kind, &Key::new(namespace, &object.name)))
        .collect();
    let any = (!values.is_empty()).then(|| namespace.to_owned());
    values.into_iter().chain(any).collect()
}

/// The autoscalers that go by metrics of the object that is called so.
pub(super) fn going_by(
    autoscalers: &Cache<HorizontalPodAutoscaler>,
    kind: &str,
    object: &Key,
) -> Vec<Arc<HorizontalPodAutoscaler>> {
    autoscalers.indexed(OF_OBJECTS, &value(kind, object))
}
