//! Budgets of disruptions, as preemption goes by them: those that it can, it keeps.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use gantry_base::by_label::Selecting;
use gantry_base::selector::LabelSelector;
use gantry_informer::Key;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::pod::PodInfo;

/// How many pods may go, of those that a budget selects.
#[derive(Debug)]
struct Budget {
    key: Key,
    allowed: i32,
    /// Names of pods that are on their way out, and counted.
    disrupted: BTreeSet<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    selecting: Selecting<Budget>,
}

impl Budgets {
    /// Takes in a budget as it is now.
    pub(crate) fn set(&mut self, budget: &PodDisruptionBudget) {
        let key = Key::of(&budget.metadata);
        let spec = budget.spec.as_ref();
        let selector = LabelSelector::from_api(spec.and_then(|spec| spec.selector.as_ref()));
        // As in Kubernetes, one that selects everything keeps nobody from making room.
        if selector.is_everything() {
            return self.remove(&key);
        }
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        let known = Budget {
            key: key.clone(),
            allowed: status
                .and_then(|status| status.disruptions_allowed)
                .unwrap_or(0),
            disrupted: disrupted
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        };
        self.selecting
            .set(&key.namespace, &key.name, selector, known);
    }

    /// Forgets one that is gone.
    pub(crate) fn remove(&mut self, key: &Key) {
        self.selecting.remove(&key.namespace, &key.name);
    }

    /// Parts pods into those whose going, after that of all before them, a budget does not allow, and the others; both in
    /// their order. Costs the pods' labels and the budgets that select them.
    pub(crate) fn part<'a>(
        &self,
        pods: Vec<&'a Arc<PodInfo>>,
    ) -> (Vec<&'a Arc<PodInfo>>, Vec<&'a Arc<PodInfo>>) {
        if self.selecting.is_empty() {
            return (Vec::new(), pods);
        }
        let mut taken: HashMap<&Key, i32> = HashMap::new();
        pods.into_iter().partition(|pod| {
            let mut is_violated = false;
            for budget in self.selecting.of(&pod.key.namespace, &pod.labels) {
                // One that is evicted already has been counted.
                if budget.disrupted.contains(&*pod.key.name) {
                    continue;
                }
                let taken = taken.entry(&budget.key).or_default();
                *taken = taken.saturating_add(1);
                is_violated |= *taken > budget.allowed;
            }
            is_violated
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::snapshot::tests::pod;

    fn budget(
        name: &str,
        selector: &Value,
        allowed: i32,
        disrupted: &[&str],
    ) -> PodDisruptionBudget {
        let disrupted: serde_json::Map<String, Value> = disrupted
            .iter()
            .map(|name| ((*name).to_owned(), json!("2026-01-02T03:04:05Z")))
            .collect();
        let object = json!({
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"selector": selector},
            "status": {"disruptionsAllowed": allowed, "disruptedPods": disrupted},
        });
        serde_json::from_value(object).expect("a budget")
    }

    fn labelled(name: &str, app: &str) -> Arc<PodInfo> {
        let mut pod = pod(name, "", "");
        pod.metadata.namespace = Some("ns".to_owned());
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        Arc::new(PodInfo::new(&pod))
    }

    #[test]
    fn pods_beyond_what_a_budget_allows_are_told_apart() {
        let pods: Vec<_> = ["a", "b", "c"]
            .map(|name| labelled(name, "web"))
            .into_iter()
            .chain([labelled("d", "db")])
            .collect();
        let violated = |budgets: &Budgets| {
            let (violated, others) = budgets.part(pods.iter().collect());
            assert_eq!(violated.len() + others.len(), pods.len());
            violated
                .iter()
                .map(|pod| pod.key.name.to_string())
                .collect::<Vec<_>>()
        };
        let mut budgets = Budgets::default();
        assert!(violated(&budgets).is_empty());
        let web = json!({"matchLabels": {"app": "web"}});
        budgets.set(&budget("web", &web, 1, &[]));
        assert_eq!(violated(&budgets), ["b", "c"]);
        // One that goes already is nobody's loss.
        budgets.set(&budget("web", &web, 1, &["a"]));
        assert_eq!(violated(&budgets), ["c"]);
        // Any of its budgets may be violated by a pod.
        let present = json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]});
        budgets.set(&budget("present", &present, 0, &[]));
        assert_eq!(violated(&budgets), ["a", "b", "c", "d"]);
        budgets.remove(&Key::new("ns", "present"));
        budgets.set(&budget("all", &json!({}), 0, &[]));
        assert_eq!(violated(&budgets), ["c"]);
        budgets.remove(&Key::new("ns", "web"));
        assert!(violated(&budgets).is_empty());
    }
}
