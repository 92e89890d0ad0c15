//! Why a pod fits nowhere: in Kubernetes' words for its status, and node by node for whoever asks.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use parking_lot::RwLock;

use crate::filters::Refusal;
use crate::pod::PodInfo;

/// What a pod that makes nobody go is told.
pub(crate) const NEVER: &str = "not eligible due to preemptionPolicy=Never.";
/// What is said of a node without pods that could go.
pub(crate) const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// Explanations are kept for this many pods.
const KEPT: usize = 2000;
/// An event has no more bytes of text than this.
const NOTE_BYTES: usize = 1024;

/// What one filter said of some nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The filter, by Kubernetes' name for it, such as `NodeResourcesFit`.
    pub filter: &'static str,
    /// Such as `Insufficient cpu`.
    pub reasons: Vec<Cow<'static, str>>,
    /// The nodes it refused for these reasons.
    pub nodes: Vec<Arc<str>>,
}

/// Why a pod could not be scheduled when that was last tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// When it was tried.
    pub at: Timestamp,
    /// As in the pod's condition.
    pub message: String,
    /// How many nodes there were.
    pub nodes: usize,
    /// Every node is in one of these.
    pub verdicts: Vec<Verdict>,
}

/// The explanations of all pods that are unschedulable now. Clones share them.
#[derive(Clone, Default)]
pub struct Verdicts {
    by_pod: Arc<RwLock<HashMap<Arc<str>, Explanation>>>,
}

impl Verdicts {
    /// Why the pod with this uid is not scheduled; none when it is, or has not been tried.
    pub fn of(&self, uid: &str) -> Option<Explanation> {
        self.by_pod.read().get(uid).cloned()
    }

    pub(crate) fn set(&self, uid: &Arc<str>, explanation: Explanation) {
        let mut by_pod = self.by_pod.write();
        if by_pod.len() < KEPT || by_pod.contains_key(uid) {
            by_pod.insert(uid.clone(), explanation);
        }
    }

    pub(crate) fn remove(&self, uid: &str) {
        let mut by_pod = self.by_pod.write();
        by_pod.remove(uid);
    }
}

/// What came of looking for others that could make room for a pod which fits nowhere.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Preemption {
    /// Nobody has looked.
    #[default]
    Untried,
    /// The pod makes nobody go, for this reason.
    NotEligible(&'static str),
    /// Nobody's going would help.
    Vain(Obstacles),
    /// Some go.
    Done,
}

/// What would be in the way on nodes even if all pods left that may have to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Obstacles {
    reasons: BTreeMap<Cow<'static, str>, usize>,
    nodes: usize,
}

impl Obstacles {
    /// On one more node, these are.
    pub(crate) fn add(&mut self, reasons: impl IntoIterator<Item = Cow<'static, str>>) {
        self.nodes += 1;
        for reason in reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }
}

/// Collects the refusals of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    verdicts: Vec<Verdict>,
    /// The nodes where others' going may help.
    resolvable: Vec<Arc<str>>,
    nodes: usize,
    /// Why no node was asked at all.
    beforehand: Option<String>,
    pub(crate) preemption: Preemption,
}

impl Diagnosis {
    /// Of a pod that is refused whatever the node: none of these was asked.
    pub(crate) fn beforehand<'a>(
        nodes: impl Iterator<Item = &'a Arc<str>>,
        refusal: Refusal,
    ) -> Self {
        let nodes: Vec<Arc<str>> = nodes.cloned().collect();
        Self {
            nodes: nodes.len(),
            resolvable: Vec::new(),
            beforehand: Some(refusal.reasons.join(", ")),
            preemption: Preemption::default(),
            verdicts: vec![Verdict {
                filter: refusal.filter,
                reasons: refusal.reasons,
                nodes,
            }],
        }
    }

    pub(crate) fn add(&mut self, node: &Arc<str>, refusal: Refusal) {
        self.nodes += 1;
        if refusal.resolvable {
            self.resolvable.push(node.clone());
        }
        let known = self
            .verdicts
            .iter_mut()
            .find(|verdict| verdict.filter == refusal.filter && verdict.reasons == refusal.reasons);
        match known {
            Some(verdict) => verdict.nodes.push(node.clone()),
            None => self.verdicts.push(Verdict {
                filter: refusal.filter,
                reasons: refusal.reasons,
                nodes: vec![node.clone()],
            }),
        }
    }

    /// The nodes where others' going may help.
    pub(crate) fn resolvable(&self) -> &[Arc<str>] {
        &self.resolvable
    }

    /// The message for the pod's condition and event.
    fn message(&self, pod: &PodInfo) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        if let Some(reason) = &self.beforehand {
            // The end is what Kubernetes' search for claims to take back says, which never got to see such a pod.
            return format!("0/{} nodes are available: {reason}. not found", self.nodes);
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for verdict in &self.verdicts {
            for reason in &verdict.reasons {
                *counts.entry(reason).or_default() += verdict.nodes.len();
            }
        }
        let reasons = histogram(counts);
        let nodes = self.nodes;
        let available = format!("0/{nodes} nodes are available: {reasons}.");
        match self.preemption(pod) {
            Some(preemption) => {
                format!("{available} no new claims to deallocate, preemption: {preemption}")
            }
            None => available,
        }
    }

    /// Why nobody makes room; none when somebody does.
    fn preemption(&self, pod: &PodInfo) -> Option<String> {
        let nodes = self.nodes;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let looked_at = match &self.preemption {
            Preemption::Done => return None,
            Preemption::NotEligible(why) => return Some((*why).to_owned()),
            Preemption::Untried if pod.never_preempts => return Some(NEVER.to_owned()),
            Preemption::Untried => {
                if !self.resolvable.is_empty() {
                    counts.insert(NO_VICTIMS, self.resolvable.len());
                }
                self.resolvable.len()
            }
            Preemption::Vain(obstacles) => {
                let reasons = obstacles.reasons.iter();
                counts.extend(reasons.map(|(reason, count)| (&**reason, *count)));
                obstacles.nodes
            }
        };
        if nodes > looked_at {
            counts.insert(NOT_HELPFUL, nodes - looked_at);
        }
        let counts = histogram(counts);
        Some(format!("0/{nodes} nodes are available: {counts}."))
    }

    pub(crate) fn explain(self, pod: &PodInfo, at: Timestamp) -> Explanation {
        Explanation {
            at,
            message: self.message(pod),
            nodes: self.nodes,
            verdicts: self.verdicts,
        }
    }
}

/// The message for an event: cut short where it is longer than one may have.
pub(crate) fn note(message: &str) -> String {
    const CUT: &str = " ...";
    if message.len() <= NOTE_BYTES {
        return message.to_owned();
    }
    let mut end = NOTE_BYTES - CUT.len();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", message.get(..end).unwrap_or_default())
}

/// `2 this, 3 that`, sorted as text, as Kubernetes does.
fn histogram(counts: BTreeMap<&str, usize>) -> String {
    let mut parts: Vec<String> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::pod;

    fn refusal(reasons: &[&'static str], resolvable: bool) -> Refusal {
        Refusal {
            filter: "NodeResourcesFit",
            reasons: reasons
                .iter()
                .map(|reason| Cow::Borrowed(*reason))
                .collect(),
            resolvable,
        }
    }

    fn message(refusals: &[(&[&'static str], bool)]) -> String {
        let mut diagnosis = Diagnosis::default();
        for (at, (reasons, resolvable)) in refusals.iter().enumerate() {
            diagnosis.add(&format!("n{at}").into(), refusal(reasons, *resolvable));
        }
        let pod = PodInfo::new(&pod("p", "", ""));
        diagnosis.explain(&pod, Timestamp::UNIX_EPOCH).message
    }

    #[test]
    fn the_words_are_those_of_kubernetes() {
        let both: &[&'static str] = &["Insufficient cpu", "Insufficient memory"];
        assert_eq!(
            message(&[(both, false); 3]),
            "0/3 nodes are available: 3 Insufficient cpu, 3 Insufficient memory. no new claims to deallocate, \
             preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        );
        let selector: &[&'static str] = &["node(s) didn't match Pod's node affinity/selector"];
        assert_eq!(
            message(&[
                (selector, false),
                (&["Insufficient cpu"], true),
                (selector, false)
            ]),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector. no new \
             claims to deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for incoming \
             pod, 2 Preemption is not helpful for scheduling."
        );
        assert_eq!(message(&[]), "no nodes available to schedule pods");
    }

    #[test]
    fn a_pod_that_is_refused_whatever_the_node_is_told_so_once() {
        let nodes: Vec<Arc<str>> = vec!["a".into(), "b".into(), "c".into()];
        let explain = |nodes: &[Arc<str>]| {
            let refusal = Refusal::one("VolumeBinding", "it waits", false);
            let mut unwilling = pod("p", "", "");
            let spec = unwilling.spec.get_or_insert_default();
            spec.preemption_policy = Some("Never".to_owned());
            let pod = PodInfo::new(&unwilling);
            Diagnosis::beforehand(nodes.iter(), refusal).explain(&pod, Timestamp::UNIX_EPOCH)
        };
        let explanation = explain(&nodes);
        let expected = "0/3 nodes are available: it waits. not found";
        assert_eq!(explanation.message, expected);
        assert_eq!(explanation.nodes, 3);
        assert_eq!(explanation.verdicts.len(), 1);
        assert_eq!(explanation.verdicts[0].nodes, nodes);
        assert_eq!(explain(&[]).message, "no nodes available to schedule pods");
    }

    #[test]
    fn an_event_tells_as_much_as_it_may() {
        assert_eq!(note("short"), "short");
        assert_eq!(note(&"x".repeat(1024)), "x".repeat(1024));
        assert_eq!(note(&"x".repeat(1025)), format!("{} ...", "x".repeat(1020)));
        // Never half a character.
        let long = |count| format!("x{}", "\u{20ac}".repeat(count));
        assert_eq!(note(&long(342)), format!("{} ...", long(339)));
    }

    #[test]
    fn what_came_of_making_room_is_told_last() {
        let explained = |preemption: Preemption| {
            let mut diagnosis = Diagnosis::default();
            for (name, resolvable) in [("a", true), ("b", true), ("c", false)] {
                diagnosis.add(&name.into(), refusal(&["Insufficient cpu"], resolvable));
            }
            diagnosis.preemption = preemption;
            let pod = PodInfo::new(&pod("p", "", ""));
            diagnosis.explain(&pod, Timestamp::UNIX_EPOCH).message
        };
        let plain = "0/3 nodes are available: 3 Insufficient cpu.";
        let attempt = "no new claims to deallocate, preemption:";
        assert_eq!(explained(Preemption::Done), plain);
        assert_eq!(
            explained(Preemption::NotEligible(NEVER)),
            format!("{plain} {attempt} not eligible due to preemptionPolicy=Never.")
        );
        let mut obstacles = Obstacles::default();
        obstacles.add(["Insufficient memory".into(), "Too many pods".into()]);
        obstacles.add([NO_VICTIMS.into()]);
        assert_eq!(
            explained(Preemption::Vain(obstacles)),
            format!(
                "{plain} {attempt} 0/3 nodes are available: 1 Insufficient memory, 1 No preemption victims found for \
                 incoming pod, 1 Preemption is not helpful for scheduling, 1 Too many pods."
            )
        );
    }

    #[test]
    fn every_node_is_in_the_explanation() {
        let mut diagnosis = Diagnosis::default();
        for name in ["a", "b"] {
            diagnosis.add(&name.into(), refusal(&["Too many pods"], true));
        }
        let explanation =
            diagnosis.explain(&PodInfo::new(&pod("p", "", "")), Timestamp::UNIX_EPOCH);
        assert_eq!(explanation.verdicts.len(), 1);
        assert_eq!(explanation.verdicts[0].nodes, ["a".into(), "b".into()]);
    }
}
