//! Who selects an object by its labels: services, sets and jobs, kept by what they select, so that a change of an object
//! costs those of its namespace that it concerns, however many others there are, and no selector is read twice.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Informer, Key, Object};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self as metav1, ObjectMeta};
use parking_lot::RwLock;

type Labels = BTreeMap<String, String>;

/// What an object selects others by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted<'a> {
    /// These labels, which all that it selects have.
    Labels(&'a Labels),
    /// Labels, and more that is asked of them.
    Selector(&'a metav1::LabelSelector),
}

impl<'a> Wanted<'a> {
    fn labels(self) -> Option<&'a Labels> {
        match self {
            Self::Labels(labels) => Some(labels),
            Self::Selector(selector) => selector.match_labels.as_ref(),
        }
    }

    /// What is asked beside labels with their values.
    fn rest(self) -> Option<LabelSelector> {
        let Self::Selector(selector) = self else {
            return None;
        };
        let expressions = selector.match_expressions.clone();
        let expressions = expressions.filter(|all| !all.is_empty())?;
        Some(LabelSelector::from_api(Some(&metav1::LabelSelector {
            match_labels: None,
            match_expressions: Some(expressions),
        })))
    }
}

/// A kind whose objects select others by their labels.
pub(crate) trait Selects: Object {
    /// What this one selects by; none where it selects nothing.
    fn wanted(&self) -> Option<Wanted<'_>>;
}

/// The selector of an object.
pub(crate) fn selector_of<K: Selects>(object: &K) -> LabelSelector {
    match object.wanted() {
        None => LabelSelector::nothing(),
        Some(Wanted::Labels(labels)) => LabelSelector::from_map(labels),
        Some(Wanted::Selector(selector)) => LabelSelector::from_api(Some(selector)),
    }
}

/// A cache of such a kind, with who in it selects what.
pub(crate) struct Selecting<K> {
    informer: Informer<K>,
    selectors: Arc<Selectors>,
}

impl<K> Clone for Selecting<K> {
    fn clone(&self) -> Self {
        Self {
            informer: self.informer.clone(),
            selectors: self.selectors.clone(),
        }
    }
}

impl<K> Deref for Selecting<K> {
    type Target = Informer<K>;

    fn deref(&self) -> &Informer<K> {
        &self.informer
    }
}

impl<K: Selects> Selecting<K> {
    /// Of the objects in a cache, from now on. To be made before anybody asks who selects what.
    pub(crate) fn new(informer: Informer<K>) -> Self {
        let selectors = Arc::new(Selectors::default());
        informer.subscribe(Box::new({
            let selectors = selectors.clone();
            move |change| {
                let (old, new) = (change.old, change.new);
                if let (Some(old), Some(new)) = (old, new)
                    && old.wanted() == new.wanted()
                {
                    return;
                }
                if let Some(old) = old {
                    selectors.remove(&**old);
                }
                if let Some(new) = new {
                    selectors.add(&**new);
                }
            }
        }));
        Self {
            informer,
            selectors,
        }
    }

    /// Those that a dependent concerns: its controller, or, for an orphan, those that would adopt it.
    pub(crate) fn concerned(&self, dependent: &ObjectMeta) -> Vec<Key> {
        let namespace = dependent.namespace.as_deref().unwrap_or_default();
        match controller_of(dependent) {
            Some(owner) if owner.kind == K::kind(&()) => vec![Key::new(namespace, &owner.name)],
            Some(_) => Vec::new(),
            None => self.selecting(dependent),
        }
    }

    /// Those that select the object with this metadata.
    pub(crate) fn selecting(&self, metadata: &ObjectMeta) -> Vec<Key> {
        self.selecting_labels(metadata.namespace.as_ref(), metadata.labels.as_ref())
    }

    /// Those that select what has these labels.
    pub(crate) fn selecting_labels(
        &self,
        namespace: Option<&String>,
        labels: Option<&Labels>,
    ) -> Vec<Key> {
        self.selectors.matching(namespace, labels)
    }
}

/// Selectors of a namespace name few different sets of labels, however many there are: for each set, an object's own values
/// lead to those that want them.
#[derive(Default)]
struct Selectors {
    namespaces: RwLock<HashMap<String, ByLabels>>,
}

/// Names of labels, their values, and who wants them.
type ByLabels = HashMap<Vec<String>, HashMap<Vec<String>, Wanting>>;

/// Each with what it asks for beside.
type Wanting = BTreeMap<Key, Option<LabelSelector>>;

/// The place of an object among others: its namespace, and the names and values of the labels that it wants.
fn place<K: Selects>(object: &K, wanted: Wanted<'_>) -> (String, Vec<String>, Vec<String>) {
    let labels = wanted.labels().cloned().unwrap_or_default();
    let (names, values) = labels.into_iter().unzip();
    let namespace = object.meta().namespace.clone();
    (namespace.unwrap_or_default(), names, values)
}

impl Selectors {
    fn add<K: Selects>(&self, object: &K) {
        let Some(wanted) = object.wanted() else {
            return;
        };
        let (namespace, names, values) = place(object, wanted);
        let mut namespaces = self.namespaces.write();
        let by_labels = namespaces.entry(namespace).or_default();
        let by_values = by_labels.entry(names).or_default();
        let wanting = by_values.entry(values).or_default();
        wanting.insert(Key::of(object.meta()), wanted.rest());
    }

    fn remove<K: Selects>(&self, object: &K) {
        let Some(wanted) = object.wanted() else {
            return;
        };
        let (namespace, names, values) = place(object, wanted);
        let mut namespaces = self.namespaces.write();
        let Some(by_labels) = namespaces.get_mut(&namespace) else {
            return;
        };
        if let Some(by_values) = by_labels.get_mut(&names) {
            if let Some(wanting) = by_values.get_mut(&values) {
                wanting.remove(&Key::of(object.meta()));
                if wanting.is_empty() {
                    by_values.remove(&values);
                }
            }
            if by_values.is_empty() {
                by_labels.remove(&names);
            }
        }
        if by_labels.is_empty() {
            namespaces.remove(&namespace);
        }
    }

    fn matching(&self, namespace: Option<&String>, labels: Option<&Labels>) -> Vec<Key> {
        let namespaces = self.namespaces.read();
        let namespace = namespace.map(String::as_str).unwrap_or_default();
        let of = |name: &String| labels.and_then(|labels| labels.get(name)).cloned();
        namespaces
            .get(namespace)
            .into_iter()
            .flatten()
            .filter_map(|(names, by_values)| {
                let values = names.iter().map(of).collect::<Option<Vec<String>>>()?;
                by_values.get(&values)
            })
            .flatten()
            .filter(|(_, rest)| rest.as_ref().is_none_or(|rest| rest.matches_map(labels)))
            .map(|(key, _)| key.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use gantry_informer::Cache;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn sets() -> Selecting<ReplicaSet> {
        let cache = Arc::new(Cache::new(Vec::new()));
        Selecting::new(Informer::new(cache, &CancellationToken::new()))
    }

    fn set(name: &str, revision: usize, selector: &Value) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": revision.to_string()},
            "spec": {"selector": selector},
        }))
        .expect("a set")
    }

    fn labelled(namespace: &str, labels: &Value) -> ObjectMeta {
        serde_json::from_value(json!({"namespace": namespace, "labels": labels})).expect("metadata")
    }

    /// What a selector may say of two labels.
    fn drawn() -> impl Strategy<Value = Value> {
        let value = || prop::sample::select(vec![json!("x"), json!("y")]);
        let labels = prop::collection::btree_map("[ab]", value(), 0..3);
        let expression = (
            "[ab]",
            prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]),
            value(),
        );
        let expression = expression.prop_map(|(key, operator, value)| match operator {
            "In" | "NotIn" => json!({"key": key, "operator": operator, "values": [value]}),
            _ => json!({"key": key, "operator": operator}),
        });
        let expressions = prop::collection::vec(expression, 0..3);
        (labels, expressions).prop_map(
            |(labels, expressions)| json!({"matchLabels": labels, "matchExpressions": expressions}),
        )
    }

    proptest! {
        /// Whatever sets come, change and go, those are found whose selectors match, and nothing is left of the others.
        #[test]
        fn those_are_found_that_select(
            steps in prop::collection::vec((0usize..4, prop::option::of(drawn())), 1..20),
            pod in prop::collection::btree_map("[ab]", "[xy]", 0..3),
        ) {
            let sets = sets();
            for (at, (which, selector)) in steps.iter().enumerate() {
                let name = format!("set-{which}");
                match selector {
                    Some(selector) => sets.observe(set(&name, at + 1, selector)),
                    None => sets.observe_gone(&Key::new("ns", &name), &name),
                }
                let pod = labelled("ns", &json!(pod));
                let mut found = sets.selecting(&pod);
                found.sort();
                let all = sets.list();
                let matching = all.iter().filter(|set| selector_of(&***set).matches_map(pod.labels.as_ref()));
                let matching: Vec<_> = matching.map(|set| Key::of(&set.metadata)).collect();
                prop_assert_eq!(found, matching);
            }
            for set in sets.list() {
                let key = Key::of(&set.metadata);
                sets.observe_gone(&key, &key.name);
            }
            prop_assert!(sets.selectors.namespaces.read().is_empty(), "nothing is left behind");
        }
    }

    #[test]
    fn namespaces_are_apart_and_who_selects_all_selects_what_has_no_labels() {
        let sets = sets();
        sets.observe(set("web", 1, &json!({"matchLabels": {"app": "web"}})));
        sets.observe(set("all", 2, &json!({})));
        let of = |metadata: &ObjectMeta| {
            let mut found = sets.selecting(metadata);
            found.sort();
            found.iter().map(Key::to_string).collect::<Vec<_>>()
        };
        let web = json!({"app": "web"});
        assert_eq!(of(&labelled("ns", &web)), ["ns/all", "ns/web"]);
        assert_eq!(of(&labelled("ns", &Value::Null)), ["ns/all"]);
        assert_eq!(of(&labelled("elsewhere", &web)), [""; 0]);
    }
}
