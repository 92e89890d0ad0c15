//! Which autoscalers a pod belongs to: by what the targets select, as it was last seen. A pod's own labels lead to them, however
//! many others there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gantry_api::selector::LabelSelector;
use gantry_informer::Key;
use parking_lot::RwLock;

/// Autoscalers by a label that all pods of theirs have, and those that have none in common.
#[derive(Default)]
struct Namespace {
    by_label: HashMap<String, HashMap<String, BTreeSet<Key>>>,
    others: BTreeSet<Key>,
}

#[derive(Default)]
struct State {
    selectors: HashMap<Key, LabelSelector>,
    namespaces: HashMap<String, Namespace>,
}

/// The autoscalers; see the module's documentation.
#[derive(Default)]
pub(super) struct Watched {
    state: RwLock<State>,
}

impl Watched {
    /// What the target of an autoscaler selects.
    pub(super) fn put(&self, key: &Key, selector: &LabelSelector) {
        if self.state.read().selectors.get(key) == Some(selector) {
            return;
        }
        let mut state = self.state.write();
        state.remove(key);
        let namespace = state.namespaces.entry(key.namespace.to_string());
        let namespace = namespace.or_default();
        match selector.common_label() {
            Some((label, value)) => {
                let values = namespace.by_label.entry(label.to_owned()).or_default();
                let keys = values.entry(value.to_owned()).or_default();
                keys.insert(key.clone());
            }
            None => {
                namespace.others.insert(key.clone());
            }
        }
        state.selectors.insert(key.clone(), selector.clone());
    }

    /// An autoscaler that is gone, or whose target selects nothing.
    pub(super) fn remove(&self, key: &Key) {
        self.state.write().remove(key);
    }

    /// The autoscalers of a pod with these labels.
    pub(super) fn of(
        &self,
        namespace: &str,
        labels: Option<&BTreeMap<String, String>>,
    ) -> BTreeSet<Key> {
        let state = self.state.read();
        let Some(known) = state.namespaces.get(namespace) else {
            return BTreeSet::new();
        };
        let by_label = labels.into_iter().flatten();
        let by_label = by_label.filter_map(|(label, value)| known.by_label.get(label)?.get(value));
        let candidates = by_label.flatten().chain(&known.others);
        candidates
            .filter(|key| {
                let selector = state.selectors.get(*key);
                selector.is_some_and(|selector| selector.matches_map(labels))
            })
            .cloned()
            .collect()
    }
}

impl State {
    fn remove(&mut self, key: &Key) {
        let Some(selector) = self.selectors.remove(key) else {
            return;
        };
        let Some(namespace) = self.namespaces.get_mut(&*key.namespace) else {
            return;
        };
        namespace.others.remove(key);
        if let Some((label, value)) = selector.common_label()
            && let Some(values) = namespace.by_label.get_mut(label)
        {
            if let Some(keys) = values.get_mut(value) {
                keys.remove(key);
                if keys.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                namespace.by_label.remove(label);
            }
        }
        if namespace.by_label.is_empty() && namespace.others.is_empty() {
            self.namespaces.remove(&*key.namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> LabelSelector {
        LabelSelector::parse(text).expect("a selector")
    }

    #[test]
    fn pods_lead_to_their_autoscalers() {
        let watched = Watched::default();
        let key = |name: &str| Key::new("ns", name);
        watched.put(&key("web"), &selector("app=web"));
        watched.put(&key("front"), &selector("app=web,tier in (front,edge)"));
        watched.put(&key("any"), &selector("tier in (front,back)"));
        watched.put(&Key::new("other", "web"), &selector("app=web"));
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter();
            let labels = labels.map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
            let found = watched.of("ns", Some(&labels.collect()));
            found.iter().map(Key::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(&[("app", "web")]), ["ns/web"]);
        let both = [("app", "web"), ("tier", "front")];
        assert_eq!(of(&both), ["ns/any", "ns/front", "ns/web"]);
        assert_eq!(of(&[("tier", "back")]), ["ns/any"]);
        assert_eq!(of(&[]), [""; 0]);
        watched.put(&key("web"), &selector("app=api"));
        assert_eq!(of(&[("app", "web")]), [""; 0]);
        assert_eq!(of(&[("app", "api")]), ["ns/web"]);
        for name in ["web", "front", "any"] {
            watched.remove(&key(name));
        }
        watched.remove(&Key::new("other", "web"));
        let state = watched.state.read();
        assert!(state.namespaces.is_empty() && state.selectors.is_empty());
    }
}
