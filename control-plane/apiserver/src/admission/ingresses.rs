//! DefaultIngressClass: an Ingress that names no class gets the cluster's default one.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use super::plugin::{Attributes, Plugin};
use crate::tables::table;

const CLASS: &str = "kubernetes.io/ingress.class";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("networking.k8s.io", "Ingress")
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let Some(ingress) = draft.typed_mut::<Ingress>() else {
            return Ok(());
        };
        let annotations = ingress.metadata.annotations.as_ref();
        let annotated = annotations.is_some_and(|annotations| annotations.contains_key(CLASS));
        if let Some(spec) = &mut ingress.spec
            && spec.ingress_class_name.is_none()
            && !annotated
        {
            let classes = table("networking.k8s.io", "ingressclasses");
            let classes = attributes.context.api.store.snapshot(&classes);
            let classes = classes
                .iter()
                .filter_map(|(_, entry)| serde_json::from_slice(&entry.value).ok());
            spec.ingress_class_name = default_class(classes);
        }
        Ok(())
    }
}

/// The newest class that says it is the default; of several at once, the first by name.
fn default_class(classes: impl Iterator<Item = IngressClass>) -> Option<String> {
    let is_default = |class: &IngressClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.is_some_and(|all| all.get(DEFAULT).is_some_and(|value| value == "true"))
    };
    classes
        .filter(is_default)
        .map(|class| {
            let created = class.metadata.creation_timestamp.map(|time| time.0);
            let name = class.metadata.name.unwrap_or_default();
            (std::cmp::Reverse(created), name)
        })
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_default_counts() {
        let class = |name: &str, created: &str, default: &str| -> IngressClass {
            let class = json!({"metadata": {
                "name": name, "creationTimestamp": created, "annotations": {DEFAULT: default}
            }});
            serde_json::from_value(class).expect("a class")
        };
        let classes = [
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("z", "2026-02-01T00:00:00Z", "true"),
            class("y", "2026-02-01T00:00:00Z", "true"),
            class("no", "2026-03-01T00:00:00Z", "false"),
        ];
        assert_eq!(default_class(classes.into_iter()).as_deref(), Some("y"));
        assert_eq!(default_class(std::iter::empty()), None);
    }
}
