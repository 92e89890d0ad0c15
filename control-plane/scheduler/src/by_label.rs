//! Things that select pods, found by the labels of a pod: looking costs what the pod has labels, however many things there
//! are.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_base::selector::LabelSelector;

use crate::affinity::Labels;

/// The things; see the module's documentation.
#[derive(Debug)]
pub(crate) struct ByLabel<T> {
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
    pub(crate) fn insert(&mut self, selector: &LabelSelector, thing: Arc<T>) {
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
    pub(crate) fn remove(&mut self, selector: &LabelSelector, thing: &T) {
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
    pub(crate) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Arc<T>> {
        let labelled = labels
            .iter()
            .filter_map(move |(label, value)| self.labelled.get(label)?.get(value))
            .flatten();
        labelled.chain(&self.others)
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
}
