//! Ingresses: one that names no class gets the cluster's default one.

use gantry_api::json::Members;
use gantry_api::status::StatusError;
use serde_json::{Value, json};

use crate::context::{Context, meta};

const CLASS: &str = "kubernetes.io/ingress.class";
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

pub(super) fn admit(context: &Context<'_>, ingress: &mut Value) -> Result<(), StatusError> {
    let named = !ingress["spec"]["ingressClassName"].is_null()
        || !ingress["metadata"]["annotations"][CLASS].is_null();
    if named || !ingress["spec"].is_object() {
        return Ok(());
    }
    let table = crate::registry::table("networking.k8s.io", "ingressclasses");
    let classes = context.api.store.snapshot(&table);
    let classes = classes
        .iter()
        .filter_map(|(_, entry)| serde_json::from_slice(&entry.value).ok());
    if let Some(name) = default_class(classes) {
        *ingress.member(&["spec", "ingressClassName"]) = json!(name);
    }
    Ok(())
}

/// The newest class that says it is the default; of several at once, the first by name.
fn default_class(classes: impl Iterator<Item = Value>) -> Option<String> {
    classes
        .filter(|class| class["metadata"]["annotations"][DEFAULT] == "true")
        .map(|class| {
            let created = meta(&class, "creationTimestamp").to_owned();
            (std::cmp::Reverse(created), meta(&class, "name").to_owned())
        })
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_counts() {
        let class = |name: &str, created: &str, default: &str| {
            json!({"metadata": {
                "name": name, "creationTimestamp": created, "annotations": {DEFAULT: default}
            }})
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
