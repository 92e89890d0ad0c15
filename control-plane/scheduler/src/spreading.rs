//! Pod topology spread: keeps pods evenly over zones, nodes and whatever else nodes are labelled with.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::census::{ByNode, Question};
use crate::filters::{Refusal, is_selected, is_tolerated};
use crate::pod::PodInfo;
use crate::selection::Selection;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::spread_constraint::SpreadConstraint;

const FILTER: &str = "PodTopologySpread";
const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
const UNLABELLED: &str =
    "node(s) didn't match pod topology spread constraints (missing required label)";

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// What a controller's pods that say nothing themselves would rather have: label, and largest difference.
const DEFAULTS: [(&str, i32); 2] = [(ZONE, 3), (HOSTNAME, 5)];

const MAX: i64 = 100;

/// Whether the node's pods count.
fn includes(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honours_affinity || is_selected(pod, node))
        && (!constraint.honours_taints || is_tolerated(pod, node))
}

/// Which pods are counted; none when, as for a selector that selects everything, no pods are.
fn question(constraint: &SpreadConstraint, pod: &PodInfo) -> Option<Question> {
    let selection = || Selection::within(&pod.key.namespace, &constraint.selector);
    (!constraint.selector.is_everything()).then(|| Question::Staying(selection()))
}

fn has_all(node: &NodeInfo, constraints: &[&SpreadConstraint]) -> bool {
    let mut constraints = constraints.iter();
    constraints.all(|constraint| constraint.value(&node.labels).is_some())
}

fn default_question(pod: &PodInfo) -> Option<Question> {
    let controller = pod.controller.clone().filter(|_| pod.spread.is_empty())?;
    Some(Question::Controlled(pod.key.namespace.clone(), controller))
}

/// What has to be known of running pods.
pub(crate) fn questions(pod: &PodInfo) -> impl Iterator<Item = Question> {
    let own = pod.spread.iter();
    own.filter_map(move |constraint| question(constraint, pod))
        .chain(default_question(pod))
}

/// A hard constraint in one attempt.
struct Rule<'a> {
    constraint: &'a SpreadConstraint,
    /// Pods that match, by the label's value.
    counts: HashMap<&'a str, i64>,
    /// The fewest of any value.
    least: i64,
    /// One, when the pod itself matches.
    own: i64,
}

/// The hard constraints of a pod, with what they are judged by.
#[derive(Default)]
pub(crate) struct Spreading<'a> {
    rules: Vec<Rule<'a>>,
}

impl<'a> Spreading<'a> {
    /// For one attempt; the snapshot must have been asked the [`questions`].
    pub(crate) fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let hard: Vec<&SpreadConstraint> = pod
            .spread
            .iter()
            .filter(|constraint| constraint.hard)
            .collect();
        if hard.is_empty() {
            return Self::default();
        }
        let mut counted: Vec<_> = hard
            .iter()
            .map(|constraint| {
                let question = question(constraint, pod);
                let found = question.and_then(|question| snapshot.answer(&question));
                (*constraint, found, HashMap::<&str, i64>::new())
            })
            .collect();
        let nodes = snapshot.nodes().iter();
        for node in nodes.filter(|node| node.present && has_all(node, &hard)) {
            for (constraint, found, counts) in &mut counted {
                if let Some(value) = constraint.value(&node.labels)
                    && includes(constraint, pod, node)
                {
                    *counts.entry(value).or_default() += on(*found, &node.name);
                }
            }
        }
        let rules = counted.into_iter().map(|(constraint, _, counts)| Rule {
            constraint,
            least: least(constraint, &counts),
            counts,
            own: i64::from(constraint.selector.matches_map(Some(&pod.labels))),
        });
        Self {
            rules: rules.collect(),
        }
    }

    /// Judges from now on as if `by` more pods like the other one were on the node.
    pub(crate) fn shift(&mut self, pod: &PodInfo, other: &PodInfo, node: &'a NodeInfo, by: i64) {
        let mut rules = self.rules.iter();
        if other.deleting
            || other.key.namespace != pod.key.namespace
            || !rules.all(|rule| rule.constraint.value(&node.labels).is_some())
        {
            return;
        }
        for rule in &mut self.rules {
            let constraint = rule.constraint;
            let is_counted = !constraint.selector.is_everything()
                && constraint.selector.matches_map(Some(&other.labels))
                && includes(constraint, pod, node);
            if is_counted && let Some(value) = constraint.value(&node.labels) {
                *rule.counts.entry(value).or_default() += by;
                rule.least = least(constraint, &rule.counts);
            }
        }
    }

    /// Whether the pod can run on the node.
    pub(crate) fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for rule in &self.rules {
            let Some(value) = rule.constraint.value(&node.labels) else {
                return Err(Refusal::one(FILTER, UNLABELLED, false));
            };
            let there = rule.counts.get(value).copied().unwrap_or(0);
            if there + rule.own - rule.least > rule.constraint.max_skew {
                return Err(Refusal::one(FILTER, UNEVEN, true));
            }
        }
        Ok(())
    }
}

/// The fewest pods of any value.
fn least(constraint: &SpreadConstraint, counts: &HashMap<&str, i64>) -> i64 {
    match counts.len() < constraint.min_domains {
        true => 0,
        false => counts.values().copied().min().unwrap_or(0),
    }
}

fn on(found: Option<&ByNode>, node: &Arc<str>) -> i64 {
    found
        .and_then(|found| found.get(node))
        .copied()
        .unwrap_or(0)
}

/// How evenly pods would be spread with this one on each of the nodes, 0 to 100; none when nobody cares.
pub(crate) fn scores(pod: &PodInfo, snapshot: &Snapshot, feasible: &[usize]) -> Option<Vec<i64>> {
    if !pod.spread.is_empty() {
        let soft = pod.spread.iter().filter(|constraint| !constraint.hard);
        let soft: Vec<(&SpreadConstraint, Option<Question>)> = soft
            .map(|constraint| (constraint, question(constraint, pod)))
            .collect();
        return Scoring::new(pod, snapshot, feasible, &soft, true).map(Scoring::normalised);
    }
    let question = default_question(pod)?;
    let defaults = DEFAULTS.map(|(key, max_skew)| SpreadConstraint::soft(key, max_skew));
    let defaults: Vec<_> = defaults
        .iter()
        .map(|constraint| (constraint, Some(question.clone())))
        .collect();
    // Nodes without a zone are as good as those with one: only what they have counts.
    Scoring::new(pod, snapshot, feasible, &defaults, false).map(Scoring::normalised)
}

/// How many pods are in the way on each feasible node; none for a node that lacks a label, which gets the lowest score.
struct Scoring(Vec<Option<i64>>);

impl Scoring {
    fn new(
        pod: &PodInfo,
        snapshot: &Snapshot,
        feasible: &[usize],
        soft: &[(&SpreadConstraint, Option<Question>)],
        all_labels: bool,
    ) -> Option<Self> {
        if soft.is_empty() {
            return None;
        }
        let constraints: Vec<&SpreadConstraint> =
            soft.iter().map(|(constraint, _)| *constraint).collect();
        let qualifies = |node: &NodeInfo| !all_labels || has_all(node, &constraints);
        let candidates: Vec<Option<&NodeInfo>> = feasible
            .iter()
            .map(|at| Some(&snapshot.nodes()[*at]).filter(|node| qualifies(node)))
            .collect();
        let mut scores: Vec<f64> = vec![0.0; candidates.len()];
        for (constraint, question) in soft {
            let found = question.as_ref().and_then(|asked| snapshot.answer(asked));
            let by_value = match constraint.topology_key.as_str() {
                HOSTNAME => None,
                _ => {
                    let values = candidates.iter().flatten();
                    let values: HashSet<&str> = values
                        .filter_map(|node| constraint.value(&node.labels))
                        .collect();
                    Some(sums(pod, snapshot, constraint, found, &values, &qualifies))
                }
            };
            let domains = match &by_value {
                None => candidates.iter().flatten().count(),
                Some(sums) => {
                    let mut nodes = candidates.iter().flatten();
                    let unlabelled = nodes.any(|node| constraint.value(&node.labels).is_none());
                    sums.len() + usize::from(unlabelled)
                }
            };
            // Many small parts weigh more than few large ones.
            let weight = (domains as f64 + 2.0).ln();
            for (score, node) in scores.iter_mut().zip(&candidates) {
                let Some((node, value)) =
                    node.and_then(|node| Some((node, constraint.value(&node.labels)?)))
                else {
                    continue;
                };
                let count = match &by_value {
                    None => on(found, &node.name),
                    Some(sums) => sums.get(value).copied().unwrap_or(0),
                };
                *score += count as f64 * weight + (constraint.max_skew - 1) as f64;
            }
        }
        let rounded = scores.into_iter().zip(&candidates);
        let rounded = rounded.map(|(score, node)| node.map(|_| score.round() as i64));
        Some(Self(rounded.collect()))
    }

    /// The fewer, the better.
    fn normalised(self) -> Vec<i64> {
        let most = self.0.iter().flatten().copied().max().unwrap_or(0);
        let least = self.0.iter().flatten().copied().min().unwrap_or(0);
        let score = |counted: Option<i64>| match counted {
            None => 0,
            Some(_) if most == 0 => MAX,
            Some(counted) => MAX * (most + least - counted) / most,
        };
        self.0.into_iter().map(score).collect()
    }
}

/// Pods that match, by the label's value, of which those in `values` are wanted. Costs the nodes that have such pods.
fn sums<'a>(
    pod: &PodInfo,
    snapshot: &'a Snapshot,
    constraint: &SpreadConstraint,
    found: Option<&ByNode>,
    values: &HashSet<&'a str>,
    qualifies: &impl Fn(&NodeInfo) -> bool,
) -> HashMap<&'a str, i64> {
    let mut sums: HashMap<&str, i64> = values.iter().map(|value| (*value, 0)).collect();
    if sums.is_empty() {
        return sums;
    }
    for (name, count) in found.into_iter().flatten() {
        let node = snapshot.node(name);
        let Some(node) = node.filter(|node| qualifies(node) && includes(constraint, pod, node))
        else {
            continue;
        };
        if let Some(value) = constraint.value(&node.labels)
            && let Some(sum) = sums.get_mut(value)
        {
            *sum += count;
        }
    }
    sums
}

#[cfg(test)]
mod tests;
