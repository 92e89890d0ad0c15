//! Why a pod fits nowhere: in Kubernetes' words for its status, and node by node for whoever asks.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use parking_lot::RwLock;

use crate::filters::Refusal;
use crate::pod::PodInfo;

/// Explanations are kept for this many pods.
const KEPT: usize = 2000;

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

/// Collects the refusals of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    verdicts: Vec<Verdict>,
    resolvable: usize,
    nodes: usize,
}

impl Diagnosis {
    pub(crate) fn add(&mut self, node: &Arc<str>, refusal: Refusal) {
        self.nodes += 1;
        self.resolvable += usize::from(refusal.resolvable);
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

    /// The message for the pod's condition and event.
    fn message(&self, pod: &PodInfo) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for verdict in &self.verdicts {
            for reason in &verdict.reasons {
                *counts.entry(reason).or_default() += verdict.nodes.len();
            }
        }
        let reasons = histogram(counts);
        let nodes = self.nodes;
        format!(
            "0/{nodes} nodes are available: {reasons}. no new claims to deallocate, preemption: {}",
            self.preemption(pod)
        )
    }

    /// What trying to make room came to. Pods of one priority never evict each other.
    fn preemption(&self, pod: &PodInfo) -> String {
        if pod.never_preempts {
            return "not eligible due to preemptionPolicy=Never.".to_owned();
        }
        let nodes = self.nodes;
        let mut counts = BTreeMap::new();
        if self.resolvable > 0 {
            counts.insert(
                "No preemption victims found for incoming pod",
                self.resolvable,
            );
        }
        if nodes > self.resolvable {
            counts.insert(
                "Preemption is not helpful for scheduling",
                nodes - self.resolvable,
            );
        }
        format!("0/{nodes} nodes are available: {}.", histogram(counts))
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
