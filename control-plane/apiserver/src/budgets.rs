//! The budgets of disruptions that select a pod, for evictions.
//!
//! Budgets are followed from one eviction to the next, so that looking costs those that have changed since, those that share a
//! label with the pod, and those of its namespace whose selectors name no label with one value: neither the others of its
//! namespace nor any pod.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use gantry_api::by_label::Selecting;
use gantry_api::kinds::pod_disruption_budget::{self, GROUP, PLURAL};
use gantry_store::{Store, TableSnapshot};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use parking_lot::Mutex;
use tokio::sync::{Mutex as Turns, MutexGuard};

use crate::tables::table;

/// Budgets that are spent from at once; two may share a turn, which costs them time and nothing else.
const AT_ONCE: usize = 64;

/// See the module.
pub(crate) struct Budgets {
    state: Mutex<State>,
    turns: [Turns<()>; AT_ONCE],
}

#[derive(Default)]
struct State {
    /// The table as it was when it was looked at last.
    seen: TableSnapshot,
    /// The names of budgets, by what they select.
    selecting: Selecting<Arc<str>>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            turns: std::array::from_fn(|_| Turns::default()),
        }
    }
}

impl Budgets {
    /// The names of the budgets of its namespace that select a pod.
    pub(crate) fn of(&self, store: &Store, pod: &Pod) -> Vec<Arc<str>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let mut state = self.state.lock();
        // Taken under the lock, so that what is known never goes back.
        let now = store.snapshot(&table(GROUP, PLURAL));
        let State { seen, selecting } = &mut *state;
        for ((namespace, name), entry) in now.changes_since(seen) {
            let budget = entry
                .and_then(|entry| serde_json::from_slice::<PodDisruptionBudget>(&entry.value).ok());
            match budget {
                Some(budget) => {
                    let selector = pod_disruption_budget::selected(&budget);
                    selecting.set(namespace, name, selector, name.clone());
                }
                None => selecting.remove(namespace, name),
            }
        }
        *seen = now;
        let found = selecting.of(namespace, &labels);
        found.into_iter().cloned().collect()
    }

    /// Waits for the turn to spend from a budget. Evictions of many pods at once would otherwise keep undoing each other's
    /// attempts; what makes them right is the compare-and-swap alone.
    pub(crate) async fn turn(&self, namespace: &str, name: &str) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        (namespace, name).hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % (1 << 31)).unwrap_or(0) % AT_ONCE;
        // There is always one.
        let turn = self.turns.get(at)?;
        Some(turn.lock().await)
    }
}

#[cfg(test)]
mod tests {
    use gantry_store::{Index, Key, Operation, Transaction};
    use serde_json::{Value, json};

    use super::*;

    fn key(namespace: &str, name: &str) -> Key {
        Key {
            table: table(GROUP, PLURAL),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn put(namespace: &str, name: &str, selector: &Value) -> Operation {
        let budget = json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"selector": selector}});
        Operation::Put {
            key: key(namespace, name),
            value: budget.to_string().into(),
            index: Index::default(),
        }
    }

    #[tokio::test]
    async fn budgets_are_followed_from_one_look_to_the_next() {
        let (store, budgets) = (Store::ephemeral(), Budgets::default());
        let write = async |operations: Vec<Operation>| {
            let transaction = Transaction {
                guards: Vec::new(),
                operations,
            };
            store.propose(transaction).await.expect("written");
        };
        let names = |namespace: &str, app: &str| {
            let pod = json!({"metadata": {"namespace": namespace, "labels": {"app": app}}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let mut names: Vec<String> = budgets
                .of(&store, &pod)
                .iter()
                .map(|name| name.to_string())
                .collect();
            names.sort();
            names
        };
        assert!(names("a", "web").is_empty());
        let web = json!({"matchLabels": {"app": "web"}});
        write(vec![
            put("a", "web", &web),
            put("a", "all", &json!({})),
            put("a", "none", &Value::Null),
            put("b", "web", &web),
        ])
        .await;
        assert_eq!(names("a", "web"), ["all", "web"]);
        assert_eq!(names("a", "db"), ["all"]);
        assert_eq!(names("b", "web"), ["web"]);
        let db = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db"]}]});
        write(vec![
            put("a", "web", &db),
            Operation::Delete {
                key: key("a", "all"),
                last: None,
            },
        ])
        .await;
        assert!(names("a", "web").is_empty());
        assert_eq!(names("a", "db"), ["web"]);
    }
}
