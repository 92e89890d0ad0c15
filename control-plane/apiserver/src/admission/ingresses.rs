//! DefaultIngressClass: an Ingress that names no class gets the cluster's default one.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use super::plugin::{Attributes, Plugin};
use super::view::{View, newest};
use crate::tables::table;

const CLASS: &str = "kubernetes.io/ingress.class";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

pub(super) struct DefaultIngressClass {
    /// Those that say that they are the default.
    defaults: View<IngressClass>,
}

impl Default for DefaultIngressClass {
    fn default() -> Self {
        Self {
            defaults: View::new(table("networking.k8s.io", "ingressclasses"), is_default),
        }
    }
}

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
            let defaults = self.defaults.of(&attributes.context.api.store, "");
            spec.ingress_class_name = newest(defaults.iter().map(|class| &**class));
        }
        Ok(())
    }
}

fn is_default(class: &IngressClass) -> bool {
    let annotations = class.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.get(DEFAULT).is_some_and(|value| value == "true"))
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
        let defaults = || classes.iter().filter(|class| is_default(class));
        assert_eq!(defaults().count(), 3);
        assert_eq!(newest(defaults()).as_deref(), Some("y"));
        assert_eq!(newest::<IngressClass>(std::iter::empty()), None);
    }
}
