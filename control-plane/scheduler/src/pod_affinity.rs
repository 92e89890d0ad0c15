//! Pod affinity and anti-affinity: pods that must or would like to be near to some others, or far from them. What running
//! pods say of the pod counts as much as what it says of them.

use std::collections::HashMap;

use crate::census::{ByNode, Question};
use crate::filters::Refusal;
use crate::pod::PodInfo;
use crate::selection::{Namespaces, PodTerm};
use crate::snapshot::{NodeInfo, Snapshot};

const FILTER: &str = "InterPodAffinity";
const FAR: &str = "node(s) didn't match pod affinity rules";
const NEAR: &str = "node(s) didn't match pod anti-affinity rules";
const UNWANTED: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

const MAX: i64 = 100;

/// How many pods count at each value of nodes' labels, by label; values without any are left out.
type Places<'a> = HashMap<&'a str, HashMap<&'a str, i64>>;

fn put<'a>(places: &mut Places<'a>, key: &'a str, value: &'a str, by: i64) {
    let values = places.entry(key).or_default();
    let count = values.entry(value).or_default();
    *count += by;
    if *count == 0 {
        values.remove(value);
    }
    if values.is_empty() {
        places.remove(key);
    }
}

fn alone(term: &PodTerm, namespaces: &Namespaces) -> Question {
    Question::Matching(vec![term.selection(namespaces)])
}

/// The pods near which the pod must be match all of its terms.
fn together(pod: &PodInfo, namespaces: &Namespaces) -> Option<Question> {
    let terms = pod.terms.required.iter();
    let all: Vec<_> = terms.map(|term| term.selection(namespaces)).collect();
    (!all.is_empty()).then_some(Question::Matching(all))
}

fn is_about(term: &PodTerm, pod: &PodInfo, namespaces: &Namespaces) -> bool {
    term.matches(&pod.key.namespace, &pod.labels, namespaces)
}

/// What has to be known of running pods.
pub(crate) fn questions(pod: &PodInfo, namespaces: &Namespaces) -> impl Iterator<Item = Question> {
    let preferred = pod.terms.preferred.iter().map(|(_, term)| term);
    let terms = pod.terms.excluded.iter().chain(preferred);
    terms
        .map(move |term| alone(term, namespaces))
        .chain(together(pod, namespaces))
}

/// The nodes with pods that a question is about, and how many each has.
fn nodes<'a>(
    snapshot: &'a Snapshot,
    question: &Question,
) -> impl Iterator<Item = (&'a NodeInfo, i64)> + use<'a> {
    let found: Option<&'a ByNode> = snapshot.answer(question);
    let found = found.into_iter().flatten();
    found.filter_map(move |(name, count)| Some((snapshot.node(name)?, *count)))
}

fn value<'a>(node: &'a NodeInfo, topology_key: &str) -> Option<&'a str> {
    node.labels.get(topology_key).map(String::as_str)
}

/// What a pod must have near, and must not, in one attempt.
#[derive(Default)]
pub(crate) struct Affinities<'a> {
    /// By each of these labels, the pod must be near others.
    required: Vec<&'a str>,
    /// Where those are.
    wanted: Places<'a>,
    /// It is one of those that it must be near: as long as there are none, it need only be near itself.
    needs_its_like: bool,
    /// Where those are that it must not be near.
    excluded: Places<'a>,
    /// Where those are that must not be near it.
    excluding: Places<'a>,
}

impl<'a> Affinities<'a> {
    /// For one attempt; the snapshot must have been asked the [`questions`].
    pub(crate) fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let namespaces = snapshot.namespaces();
        let mut affinities = Self::default();
        if let Some(question) = together(pod, namespaces) {
            let required = pod.terms.required.iter();
            affinities.required = required.map(|term| &*term.topology_key).collect();
            for (node, count) in nodes(snapshot, &question) {
                for &key in &affinities.required {
                    if let Some(value) = value(node, key) {
                        put(&mut affinities.wanted, key, value, count);
                    }
                }
            }
            let mut terms = pod.terms.required.iter();
            affinities.needs_its_like = terms.all(|term| is_about(term, pod, namespaces));
        }
        for term in &pod.terms.excluded {
            for (node, count) in nodes(snapshot, &alone(term, namespaces)) {
                if let Some(value) = value(node, &term.topology_key) {
                    put(&mut affinities.excluded, &term.topology_key, value, count);
                }
            }
        }
        for (term, tallies) in snapshot.stated(pod) {
            if !is_about(term, pod, namespaces) {
                continue;
            }
            for (name, tally) in tallies.iter().filter(|(_, tally)| tally.excluding > 0) {
                let node = snapshot.node(name);
                if let Some(value) = node.and_then(|node| value(node, &term.topology_key)) {
                    let excluding = &mut affinities.excluding;
                    put(excluding, &term.topology_key, value, tally.excluding);
                }
            }
        }
        affinities
    }

    /// Judges from now on as if `by` more pods like the other one were on the node.
    pub(crate) fn shift(
        &mut self,
        pod: &'a PodInfo,
        other: &'a PodInfo,
        namespaces: &Namespaces,
        node: &'a NodeInfo,
        by: i64,
    ) {
        let mut terms = pod.terms.required.iter();
        if terms.all(|term| is_about(term, other, namespaces)) {
            for &key in &self.required {
                if let Some(value) = value(node, key) {
                    put(&mut self.wanted, key, value, by);
                }
            }
        }
        for term in &pod.terms.excluded {
            if is_about(term, other, namespaces)
                && let Some(value) = value(node, &term.topology_key)
            {
                put(&mut self.excluded, &term.topology_key, value, by);
            }
        }
        if other.says_too_much() {
            return;
        }
        for term in &other.terms.excluded {
            if is_about(term, pod, namespaces)
                && let Some(value) = value(node, &term.topology_key)
            {
                put(&mut self.excluding, &term.topology_key, value, by);
            }
        }
    }

    /// Whether the pod can run on the node.
    pub(crate) fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if !self.is_near(node) {
            return Err(Refusal::one(FILTER, FAR, false));
        }
        for (places, words) in [(&self.excluded, NEAR), (&self.excluding, UNWANTED)] {
            let is_there = |(key, values): (&&str, &HashMap<&str, i64>)| {
                value(node, key).is_some_and(|value| values.contains_key(value))
            };
            if places.iter().any(is_there) {
                return Err(Refusal::one(FILTER, words, true));
            }
        }
        Ok(())
    }

    fn is_near(&self, node: &NodeInfo) -> bool {
        let mut near = true;
        for key in &self.required {
            let Some(value) = value(node, key) else {
                return false;
            };
            let places = self.wanted.get(key);
            near &= places.is_some_and(|places| places.contains_key(value));
        }
        near || self.needs_its_like && self.wanted.is_empty()
    }
}

/// How glad the pod and those near would be on each of the nodes, 0 to 100; none when nobody cares.
pub(crate) fn scores(pod: &PodInfo, snapshot: &Snapshot, feasible: &[usize]) -> Option<Vec<i64>> {
    let namespaces = snapshot.namespaces();
    let mut gladness: HashMap<&str, HashMap<&str, i64>> = HashMap::new();
    for (weight, term) in &pod.terms.preferred {
        for (node, count) in nodes(snapshot, &alone(term, namespaces)) {
            if let Some(value) = value(node, &term.topology_key) {
                let values = gladness.entry(&term.topology_key).or_default();
                *values.entry(value).or_default() += weight * count;
            }
        }
    }
    for (term, tallies) in snapshot.stated(pod) {
        if !is_about(term, pod, namespaces) {
            continue;
        }
        for (name, tally) in tallies.iter().filter(|(_, tally)| tally.gladness != 0) {
            let node = snapshot.node(name);
            if let Some(value) = node.and_then(|node| value(node, &term.topology_key)) {
                let values = gladness.entry(&term.topology_key).or_default();
                *values.entry(value).or_default() += tally.gladness;
            }
        }
    }
    if gladness.is_empty() {
        return None;
    }
    let sum = |at: &usize| -> i64 {
        let node = &snapshot.nodes()[*at];
        let labels = gladness.iter();
        labels
            .filter_map(|(key, values)| values.get(value(node, key)?))
            .sum()
    };
    let sums: Vec<i64> = feasible.iter().map(sum).collect();
    let (least, most) = (sums.iter().min()?, sums.iter().max()?);
    let spread = most - least;
    let score = |sum: &i64| match spread {
        0 => 0,
        _ => MAX.saturating_mul(sum - least) / spread,
    };
    Some(sums.iter().map(score).collect())
}

#[cfg(test)]
mod tests;
