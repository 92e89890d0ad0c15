//! Cluster roles that gather their rules from others: written whenever one that they select changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::kinds::rbac::aggregation::gather;
use gantry_api::selector::LabelSelector;
use gantry_informer::{Key, Next, Queue, runner};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Result, code};

/// The roles that gather, and which others they select.
#[derive(Default)]
struct Gathering(Mutex<BTreeMap<Key, Vec<LabelSelector>>>);

impl Gathering {
    /// Takes over a change, and returns the roles whose rules may be others now.
    fn changed(&self, old: Option<&ClusterRole>, new: Option<&ClusterRole>) -> Vec<Key> {
        let mut gathering = self.0.lock();
        if let Some(role) = new.or(old) {
            let key = Key::of(&role.metadata);
            match new.and_then(selectors) {
                Some(selectors) => gathering.insert(key, selectors),
                None => gathering.remove(&key),
            };
        }
        let is = |key: &Key| new.is_some_and(|role| Key::of(&role.metadata) == *key);
        let selects = |selectors: &[LabelSelector], role: Option<&ClusterRole>| {
            role.is_some_and(|role| {
                let labels = role.metadata.labels.as_ref();
                let mut selectors = selectors.iter();
                selectors.any(|selector| selector.matches_map(labels))
            })
        };
        let concerned = gathering.iter().filter(|(key, selectors)| {
            is(key) || selects(selectors, old) || selects(selectors, new)
        });
        concerned.map(|(key, _)| key.clone()).collect()
    }
}

fn selectors(role: &ClusterRole) -> Option<Vec<LabelSelector>> {
    let aggregation = role.aggregation_rule.as_ref()?;
    let selectors = aggregation.cluster_role_selectors.iter().flatten();
    Some(
        selectors
            .map(|selector| LabelSelector::from_api(Some(selector)))
            .collect(),
    )
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.cluster_roles.subscribe(Box::new({
        let (queue, gathering) = (queue.clone(), Gathering::default());
        move |change| {
            let (old, new) = (
                change.old.map(|role| &**role),
                change.new.map(|role| &**role),
            );
            for key in gathering.changed(old, new) {
                queue.add(key);
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("cluster-role-aggregation", queue, 2, stop, move |key| {
        let context = context.clone();
        async move { reconcile(&context, &key).await }
    })
    .await;
}

async fn reconcile(context: &Context, key: &Key) -> Result<Next> {
    let Some(role) = context.cluster_roles.get(key) else {
        return Ok(Next::Changed);
    };
    let Some(aggregation) = &role.aggregation_rule else {
        return Ok(Next::Changed);
    };
    let others = context.cluster_roles.list();
    let rules = gather(&key.name, aggregation, others.iter().map(|role| &**role));
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(Next::Changed);
    }
    // Of this very version: whoever changes it in between is seen first.
    let patch = json!({
        "metadata": {"resourceVersion": role.metadata.resource_version},
        "rules": rules,
    });
    let api: Api<ClusterRole> = Api::all(context.client.clone());
    let written = api
        .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    match written {
        Ok(written) => context.cluster_roles.observe(written),
        Err(error) if matches!(code(&error), Some(404 | 409)) => {}
        Err(error) => return Err(error).doing("gathering the rules of cluster role", key),
    }
    Ok(Next::Changed)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn role(name: &str, labels: Value, gathers: Option<&str>) -> ClusterRole {
        let aggregation = gathers.map(|label| {
            let selector = json!({"matchLabels": {label: "1"}});
            json!({"clusterRoleSelectors": [selector]})
        });
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels}, "aggregationRule": aggregation,
        }))
        .expect("a role")
    }

    #[test]
    fn only_who_selects_a_changed_role_is_concerned() {
        let gathering = Gathering::default();
        let sum = role("sum", json!({}), Some("x"));
        let key = Key::of(&sum.metadata);
        assert_eq!(gathering.changed(None, Some(&sum)), vec![key.clone()]);
        let (part, other) = (
            role("part", json!({"x": "1"}), None),
            role("part", json!({"y": "1"}), None),
        );
        assert!(gathering.changed(None, Some(&other)).is_empty());
        assert_eq!(
            gathering.changed(Some(&other), Some(&part)),
            vec![key.clone()]
        );
        assert_eq!(gathering.changed(Some(&part), Some(&other)), vec![key]);
        assert!(gathering.changed(Some(&other), None).is_empty());
        let plain = role("sum", json!({}), None);
        assert!(gathering.changed(Some(&sum), Some(&plain)).is_empty());
        assert!(gathering.changed(None, Some(&part)).is_empty());
    }
}
