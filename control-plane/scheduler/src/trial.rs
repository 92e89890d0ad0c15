//! What a node would say to the pod that is being placed if other pods were on it, or were not.

use std::sync::Arc;

use crate::cycle::Cycle;
use crate::filters::Refusal;
use crate::nominations::Nominations;
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// A copy of a node, on which pods are tried. What the attempt was told of them is taken back when this ends.
pub(crate) struct Trial<'t, 'a> {
    cycle: &'t mut Cycle<'a>,
    node: &'a NodeInfo,
    copy: NodeInfo,
    shifts: Vec<(&'a PodInfo, i64)>,
}

impl<'t, 'a> Trial<'t, 'a> {
    /// Of a node of the snapshot, as it is.
    pub(crate) fn new(cycle: &'t mut Cycle<'a>, node: &'a NodeInfo) -> Self {
        Self {
            cycle,
            node,
            copy: node.clone(),
            shifts: Vec::new(),
        }
    }

    fn shift(&mut self, pod: &'a PodInfo, by: i64) {
        self.cycle.shift(pod, self.node, by);
        self.shifts.push((pod, by));
    }

    /// As if the pod were there, too.
    pub(crate) fn add(&mut self, pod: &'a Arc<PodInfo>) {
        self.copy.add(pod.clone());
        self.shift(pod, 1);
    }

    /// As if the pod were not there.
    pub(crate) fn remove(&mut self, pod: &'a Arc<PodInfo>) {
        if self.copy.remove(&pod.uid).is_some() {
            self.shift(pod, -1);
        }
    }

    /// Whether the pod that is being placed can run there.
    fn check(&self) -> Result<(), Refusal> {
        self.cycle.check(&self.copy)
    }

    /// Whether it can beside those that are expected there, and also without them: they may be what it needs, and never come.
    pub(crate) fn check_beside(&mut self, expected: &[&'a Arc<PodInfo>]) -> Result<(), Refusal> {
        if !expected.is_empty() {
            for pod in expected.iter().copied() {
                self.add(pod);
            }
            let beside = self.check();
            for pod in expected.iter().copied() {
                self.remove(pod);
            }
            beside?;
        }
        self.check()
    }
}

impl Drop for Trial<'_, '_> {
    fn drop(&mut self) {
        for (pod, by) in std::mem::take(&mut self.shifts) {
            self.cycle.shift(pod, self.node, -by);
        }
    }
}

/// Whether the pod that is being placed can run on the node now, and when those have come that are expected there and do not
/// give way to it.
pub(crate) fn check<'a>(
    cycle: &mut Cycle<'a>,
    node: &'a NodeInfo,
    nominations: &'a Nominations,
) -> Result<(), Refusal> {
    cycle.check(node)?;
    let expected = nominations.ahead_of(cycle.pod(), &node.name);
    if expected.is_empty() {
        return Ok(());
    }
    Trial::new(cycle, node).check_beside(&expected)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Affinity, Pod, TopologySpreadConstraint};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::cycle;
    use crate::snapshot::Snapshot;
    use crate::snapshot::tests::{node, pod};

    fn near(kind: &str, app: usize) -> Value {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app.to_string()}}});
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})
    }

    fn saying(uid: &str, app: usize, affinity: Value) -> Pod {
        let mut pod = pod(uid, "", "");
        pod.metadata.labels = Some([("app".to_owned(), app.to_string())].into());
        let affinity: Affinity = serde_json::from_value(affinity).expect("an affinity");
        pod.spec.get_or_insert_default().affinity = Some(affinity);
        pod
    }

    fn running(uid: &str, app: usize, says: usize) -> Pod {
        let affinity = match says {
            0 => json!({}),
            1 => near("podAffinity", app),
            says => near("podAntiAffinity", says - 2),
        };
        saying(uid, app, affinity)
    }

    fn placed(kind: usize) -> Pod {
        let affinity = match kind {
            0 => near("podAntiAffinity", 1),
            1 => near("podAffinity", 0),
            2 => near("podAffinity", 1),
            _ => json!({}),
        };
        let mut pod = saying("placed", 0, affinity);
        if kind == 3 {
            let constraint = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "0"}}}]);
            let constraints: Vec<TopologySpreadConstraint> =
                serde_json::from_value(constraint).expect("constraints");
            pod.spec.get_or_insert_default().topology_spread_constraints = Some(constraints);
        }
        pod
    }

    const NODES: [(&str, &str); 3] = [("n0", "a"), ("n1", "a"), ("n2", "b")];

    fn snapshot<'a>(pods: impl Iterator<Item = &'a (usize, Pod)>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, zone) in NODES {
            let mut node = node(name, "8", "16Gi");
            node.metadata.labels = Some([("zone".to_owned(), zone.to_owned())].into());
            snapshot.set_node(&node);
        }
        for (at, pod) in pods {
            snapshot.assign(Arc::new(PodInfo::new(pod)), NODES[*at].0);
        }
        snapshot
    }

    fn verdicts(cycle: &Cycle<'_>, snapshot: &Snapshot) -> Vec<Result<(), Refusal>> {
        let nodes = snapshot.nodes().iter();
        nodes.map(|node| cycle.check(node)).collect()
    }

    proptest! {
        /// A trial says what would be so without the pods that it takes away, and nothing of it lasts.
        #[test]
        fn a_trial_says_what_would_be_so(
            pods in prop::collection::vec((0usize..3, 0usize..2, 0usize..4), 0..8),
            kind in 0usize..5,
            going in any::<u8>(),
        ) {
            let pods: Vec<(usize, Pod)> = pods
                .into_iter()
                .enumerate()
                .map(|(index, (at, app, says))| (at, running(&index.to_string(), app, says)))
                .collect();
            let goes = |pod: &Pod| {
                let index: usize = pod.metadata.uid.as_deref().unwrap_or_default().parse().expect("a number");
                (going >> index) & 1 == 1
            };
            let placed = PodInfo::new(&placed(kind));
            let mut whole = snapshot(pods.iter());
            cycle::prepare(&placed, &mut whole);
            let mut cycle = Cycle::new(&placed, &whole);
            let before = verdicts(&cycle, &whole);
            for (at, node) in whole.nodes().iter().enumerate() {
                let mut rest = snapshot(pods.iter().filter(|(on, pod)| *on != at || !goes(pod)));
                cycle::prepare(&placed, &mut rest);
                let expected = Cycle::new(&placed, &rest).check(&rest.nodes()[at]);
                let mut trial = Trial::new(&mut cycle, node);
                let gone: Vec<_> = pods
                    .iter()
                    .filter(|(on, pod)| *on == at && goes(pod))
                    .filter_map(|(_, pod)| node.pods.get(pod.metadata.uid.as_deref().unwrap_or_default()))
                    .collect();
                for pod in gone.iter().copied() {
                    trial.remove(pod);
                }
                prop_assert_eq!(trial.check(), expected);
                for pod in gone {
                    trial.add(pod);
                }
                prop_assert_eq!(&trial.check(), &before[at]);
                drop(trial);
                prop_assert_eq!(verdicts(&cycle, &whole), before.clone());
            }
        }
    }

    #[test]
    fn those_who_are_expected_are_in_the_way_though_not_there() {
        let whole = snapshot(std::iter::empty());
        let (expected, asking) = (pod("expected", "6", ""), pod("asking", "6", ""));
        let (expected, asking) = (PodInfo::new(&expected), PodInfo::new(&asking));
        let mut nominations = Nominations::default();
        nominations.set(Arc::new(expected), "n0".into());
        let mut cycle = Cycle::new(&asking, &whole);
        let mut takers = Vec::new();
        for node in whole.nodes() {
            if check(&mut cycle, node, &nominations).is_ok() {
                takers.push(node.name.to_string());
            }
        }
        assert_eq!(takers, ["n1", "n2"]);
    }

    #[test]
    fn who_is_needed_must_be_there_and_not_only_expected() {
        let mut whole = snapshot(std::iter::empty());
        let asking = PodInfo::new(&placed(2));
        let mut nominations = Nominations::default();
        let needed = PodInfo::new(&saying("needed", 1, json!({})));
        nominations.set(Arc::new(needed), "n0".into());
        cycle::prepare(&asking, &mut whole);
        let mut cycle = Cycle::new(&asking, &whole);
        let refusal = check(&mut cycle, &whole.nodes()[0], &nominations);
        assert!(refusal.is_err());
    }
}
