//! What a plugin keeps of a table: an object is decoded when it changes, not for every write that asks for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_store::{Store, Table, TableSnapshot};
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

/// The objects of a table that matter to a plugin.
pub(super) struct View<T> {
    table: Table,
    matters: fn(&T) -> bool,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// The table as it was when it was looked at last.
    seen: TableSnapshot,
    /// By namespace and name.
    kept: BTreeMap<(Arc<str>, Arc<str>), Arc<T>>,
}

impl<T: DeserializeOwned> View<T> {
    pub(super) fn new(table: Table, matters: fn(&T) -> bool) -> Self {
        Self {
            table,
            matters,
            state: Mutex::new(State {
                seen: TableSnapshot::default(),
                kept: BTreeMap::new(),
            }),
        }
    }

    /// Those of a namespace, by name; the namespace is empty for what is in none. Costs what has changed since the last look.
    pub(super) fn of(&self, store: &Store, namespace: &str) -> Vec<Arc<T>> {
        let mut state = self.state.lock();
        // Taken under the lock, so that the view never goes back.
        let now = store.snapshot(&self.table);
        let State { seen, kept } = &mut *state;
        for (key, entry) in now.changes_since(seen) {
            let object = entry.and_then(|entry| serde_json::from_slice::<T>(&entry.value).ok());
            match object.filter(self.matters) {
                Some(object) => kept.insert(key.clone(), Arc::new(object)),
                None => kept.remove(key),
            };
        }
        *seen = now;
        let first: (Arc<str>, Arc<str>) = (namespace.into(), "".into());
        let own = kept
            .range(first..)
            .take_while(|((space, _), _)| &**space == namespace);
        own.map(|(_, object)| object.clone()).collect()
    }
}

/// The name of the newest object; of several at once, the first by name.
pub(super) fn newest<'a, K: Metadata<Ty = ObjectMeta> + 'a>(
    objects: impl Iterator<Item = &'a K>,
) -> Option<String> {
    objects
        .map(|object| {
            let metadata = object.metadata();
            let created = metadata.creation_timestamp.as_ref();
            let name = metadata.name.clone().unwrap_or_default();
            (std::cmp::Reverse(created.map(|time| time.0)), name)
        })
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use gantry_store::{Index, Key, Operation, Transaction};
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::tables::table;

    fn key(namespace: &str, name: &str) -> Key {
        Key {
            table: table("", "configmaps"),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn put(namespace: &str, name: &str, value: &'static str) -> Operation {
        Operation::Put {
            key: key(namespace, name),
            value: value.into(),
            index: Index::default(),
        }
    }

    #[tokio::test]
    async fn a_view_follows_its_table() {
        let store = Store::ephemeral();
        let view =
            View::<ConfigMap>::new(table("", "configmaps"), |map| map.immutable != Some(true));
        let names = |namespace: &str| -> Vec<String> {
            let objects = view.of(&store, namespace).into_iter();
            let names = objects.map(|map| map.metadata.name.clone());
            names.map(Option::unwrap_or_default).collect()
        };
        let write = async |operations: Vec<Operation>| {
            let transaction = Transaction {
                guards: Vec::new(),
                operations,
            };
            store.propose(transaction).await.expect("written");
        };
        assert!(names("a").is_empty());
        write(vec![
            put("a", "y", r#"{"metadata":{"name":"y"}}"#),
            put("a", "x", r#"{"metadata":{"name":"x"}}"#),
            put("a", "no", r#"{"metadata":{"name":"no"},"immutable":true}"#),
            put("b", "z", r#"{"metadata":{"name":"z"}}"#),
        ])
        .await;
        assert_eq!(names("a"), ["x", "y"]);
        assert_eq!(names("b"), ["z"]);
        write(vec![
            put("a", "x", r#"{"metadata":{"name":"x"},"immutable":true}"#),
            put("a", "no", r#"{"metadata":{"name":"no"}}"#),
            Operation::Delete {
                key: key("a", "y"),
                last: None,
            },
        ])
        .await;
        assert_eq!(names("a"), ["no"]);
    }
}
