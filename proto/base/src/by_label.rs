//! Things that select pods, found by the labels of a pod: looking costs what the pod has labels, however many things there
//! are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::selector::LabelSelector;

/// The labels of a pod.
type Labels = BTreeMap<String, String>;

/// The things; see the module's documentation.
#[derive(Debug)]
pub struct ByLabel<T> {
    /// By a label, and its value, that all pods have which the thing selects.
    labelled: HashMap<String, HashMap<String, Vec<Arc<T>>>>,
    /// Those without such a label.
    others: Vec<Arc<T>>,
}

impl<T> Default for ByLabel<T> {
    fn default() -> Self {
        Self {
            labelled: HashMap::new(),
            others: Vec::new(),
        }
    }
}

impl<T: PartialEq> ByLabel<T> {
    /// Adds a thing that selects pods by `selector`, perhaps beside something else.
    pub fn insert(&mut self, selector: &LabelSelector, thing: Arc<T>) {
        let things = match selector.common_label() {
            Some((label, value)) => self
                .labelled
                .entry(label.to_owned())
                .or_default()
                .entry(value.to_owned())
                .or_default(),
            None => &mut self.others,
        };
        things.push(thing);
    }

    /// Takes out what was added with that selector.
    pub fn remove(&mut self, selector: &LabelSelector, thing: &T) {
        let Some((label, value)) = selector.common_label() else {
            self.others.retain(|known| **known != *thing);
            return;
        };
        let Some(values) = self.labelled.get_mut(label) else {
            return;
        };
        if let Some(things) = values.get_mut(value) {
            things.retain(|known| **known != *thing);
            if things.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.labelled.remove(label);
        }
    }

    /// The things that may select a pod with these labels; it is left to the caller to ask them.
    pub fn candidates<'a>(&'a self, labels: &Labels) -> impl Iterator<Item = &'a Arc<T>> {
        let labelled = labels
            .iter()
            .filter_map(move |(label, value)| self.labelled.get(label)?.get(value))
            .flatten();
        labelled.chain(&self.others)
    }
}

/// An object that selects pods of its own namespace.
#[derive(Debug)]
struct Named<T> {
    name: Arc<str>,
    selector: LabelSelector,
    object: T,
}

/// Objects of a namespace have different names.
impl<T> PartialEq for Named<T> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

#[derive(Debug)]
struct OfNamespace<T> {
    by_name: HashMap<Arc<str>, Arc<Named<T>>>,
    by_label: ByLabel<Named<T>>,
}

impl<T> Default for OfNamespace<T> {
    fn default() -> Self {
        Self {
            by_name: HashMap::new(),
            by_label: ByLabel::default(),
        }
    }
}

/// Objects that select pods of their own namespace, such as budgets of disruptions, found by a pod: that costs its labels, the
/// objects that share one of them with it, and those of its namespace whose selectors name no label with one value.
#[derive(Debug)]
pub struct Selecting<T> {
    namespaces: HashMap<Arc<str>, OfNamespace<T>>,
}

impl<T> Default for Selecting<T> {
    fn default() -> Self {
        Self {
            namespaces: HashMap::new(),
        }
    }
}

impl<T> Selecting<T> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// Takes in an object as it is now, in the place of what it was.
    pub fn set(&mut self, namespace: &str, name: &str, selector: LabelSelector, object: T) {
        self.remove(namespace, name);
        let name: Arc<str> = name.into();
        let known = Arc::new(Named {
            name: name.clone(),
            selector,
            object,
        });
        let own = self.namespaces.entry(namespace.into()).or_default();
        own.by_label.insert(&known.selector, known.clone());
        own.by_name.insert(name, known);
    }

    /// Forgets an object that is gone.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(own) = self.namespaces.get_mut(namespace) else {
            return;
        };
        if let Some(known) = own.by_name.remove(name) {
            own.by_label.remove(&known.selector, &known);
        }
        if own.by_name.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// The objects of a namespace that select a pod with these labels.
    pub fn of(&self, namespace: &str, labels: &Labels) -> Vec<&T> {
        let Some(own) = self.namespaces.get(namespace) else {
            return Vec::new();
        };
        let candidates = own.by_label.candidates(labels);
        let selecting = candidates.filter(|known| known.selector.matches_map(Some(labels)));
        selecting.map(|known| &known.object).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_select_a_pod_is_found() {
        let mut things = ByLabel::default();
        let selectors = ["app=a", "app=b,tier=x", "app in (a,b)", "!app", "tier=x"];
        for text in selectors {
            let selector = LabelSelector::parse(text).expect("a selector");
            things.insert(&selector, Arc::new(text));
        }
        let found = |things: &ByLabel<&'static str>, labels: &[(&str, &str)]| {
            let labels: Labels = labels
                .iter()
                .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                .collect();
            let mut found: Vec<_> = things.candidates(&labels).map(|thing| **thing).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found(&things, &[]), ["!app", "app in (a,b)"]);
        assert_eq!(
            found(&things, &[("app", "a"), ("tier", "x")]),
            ["!app", "app in (a,b)", "app=a", "tier=x"]
        );
        for text in selectors {
            let selector = LabelSelector::parse(text).expect("a selector");
            things.remove(&selector, &text);
        }
        assert!(found(&things, &[("app", "a"), ("tier", "x")]).is_empty());
        assert!(things.labelled.is_empty());
    }

    #[test]
    fn an_object_is_found_by_what_it_selects_now_and_in_its_namespace() {
        let mut budgets = Selecting::default();
        let selector = |text: &str| LabelSelector::parse(text).expect("a selector");
        budgets.set("a", "web", selector("app=web"), 1);
        budgets.set("a", "most", selector("app!=db"), 2);
        budgets.set("a", "nobody", LabelSelector::nothing(), 3);
        budgets.set("b", "web", selector("app=web"), 4);
        let found = |budgets: &Selecting<i32>, namespace: &str, app: &str| {
            let labels = Labels::from([("app".to_owned(), app.to_owned())]);
            let mut found: Vec<i32> = budgets
                .of(namespace, &labels)
                .into_iter()
                .copied()
                .collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found(&budgets, "a", "web"), [1, 2]);
        assert!(found(&budgets, "a", "db").is_empty());
        assert_eq!(found(&budgets, "b", "web"), [4]);
        assert!(found(&budgets, "c", "web").is_empty());
        // Of two objects with one selector, the one that is gone is forgotten.
        budgets.set("a", "more", selector("app=web"), 5);
        budgets.set("a", "web", selector("app=db"), 6);
        assert_eq!(found(&budgets, "a", "web"), [2, 5]);
        assert_eq!(found(&budgets, "a", "db"), [6]);
        for name in ["web", "most", "nobody", "more", "none"] {
            budgets.remove("a", name);
            budgets.remove("b", name);
        }
        assert!(budgets.is_empty());
    }
}
