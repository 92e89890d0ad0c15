//! The nodes that a pod can run on. They are asked in turn until enough are found; of a pod that names its nodes, as those of
//! a DaemonSet do, these alone, however many others there are.

use crate::cycle::Cycle;
use crate::filters::Refusal;
use crate::nominations::Nominations;
use crate::snapshot::Snapshot;
use crate::trial;
use crate::verdict::Diagnosis;

/// Once that many nodes can take a pod, no more are looked at; the next pod begins where this one ended. So a decision
/// costs the same on fifty nodes and on five thousand.
const ENOUGH: usize = 100;
const NOT_NAMED: &str = "node(s) didn't satisfy plugin(s) [NodeAffinity]";

/// Adds the places of nodes that the cycle's pod can run on to `feasible`, which is empty, and says why others will not do:
/// all of them, where none will. The place where the next search is to begin comes with it.
pub(crate) fn search<'a>(
    cycle: &mut Cycle<'a>,
    snapshot: &'a Snapshot,
    nominations: &'a Nominations,
    start: usize,
    feasible: &mut Vec<usize>,
) -> (Diagnosis, usize) {
    let nodes = snapshot.nodes();
    let named = cycle.pod().named_nodes();
    let mut diagnosis = Diagnosis::default();
    let mut judge = |at: usize| {
        let Some(node) = nodes.get(at).filter(|node| node.present) else {
            return true;
        };
        match trial::check(cycle, node, nominations) {
            Ok(()) => feasible.push(at),
            Err(refusal) if feasible.is_empty() => diagnosis.add(&node.name, refusal),
            // Some node will do: nobody will ask why this one does not.
            Err(_) => {}
        }
        feasible.len() < ENOUGH
    };
    let mut next = start;
    match &named {
        Some(names) => {
            for at in names.iter().filter_map(|name| snapshot.place(name)) {
                if !judge(at) {
                    break;
                }
            }
        }
        None => {
            for offset in 0..nodes.len() {
                next = (start + offset) % nodes.len();
                if !judge(next) {
                    break;
                }
            }
            next = (next + 1) % nodes.len().max(1);
        }
    }
    if let Some(names) = named.filter(|_| feasible.is_empty()) {
        let others = nodes
            .iter()
            .filter(|node| node.present && !names.contains(&*node.name));
        for node in others {
            let refusal = Refusal::one("NodeAffinity", NOT_NAMED, false);
            diagnosis.add(&node.name, refusal);
        }
    }
    (diagnosis, next)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Affinity;
    use serde_json::json;

    use super::*;
    use crate::cycle;
    use crate::pod::PodInfo;
    use crate::snapshot::tests::{node, pod};

    #[test]
    fn a_pod_that_names_its_node_is_told_of_the_others_in_one_word() {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b", "c"] {
            snapshot.set_node(&node(name, "2", "4Gi"));
        }
        let nominations = Nominations::default();
        let mut found = |name: &str, cpu: &str| {
            let fields = json!([{"key": "metadata.name", "operator": "In", "values": [name]}]);
            let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": fields}]}}});
            let affinity: Affinity = serde_json::from_value(affinity).expect("an affinity");
            let mut wanting = pod("p", cpu, "");
            wanting.spec.get_or_insert_default().affinity = Some(affinity);
            let info = PodInfo::new(&wanting);
            cycle::prepare(&info, &mut snapshot);
            let mut cycle = Cycle::new(&info, &snapshot);
            let mut feasible = Vec::new();
            let (diagnosis, next) = search(&mut cycle, &snapshot, &nominations, 1, &mut feasible);
            assert_eq!(next, 1, "others are asked in turn as before");
            let names: Vec<String> = feasible
                .iter()
                .map(|at| snapshot.nodes()[*at].name.to_string())
                .collect();
            let explanation = diagnosis.explain(&info, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
            (names, explanation.message)
        };
        assert_eq!(found("b", "1").0, ["b"]);
        let (names, message) = found("b", "9");
        assert!(names.is_empty());
        let expected = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity].";
        assert!(message.starts_with(expected), "{message}");
        let (names, message) = found("gone", "1");
        assert!(names.is_empty());
        let expected =
            "0/3 nodes are available: 3 node(s) didn't satisfy plugin(s) [NodeAffinity].";
        assert!(message.starts_with(expected), "{message}");
    }

    #[test]
    fn others_are_asked_in_turn() {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b", "c"] {
            snapshot.set_node(&node(name, "2", "4Gi"));
        }
        let nominations = Nominations::default();
        let info = PodInfo::new(&pod("p", "1", ""));
        let mut cycle = Cycle::new(&info, &snapshot);
        let mut feasible = Vec::new();
        let (_, next) = search(&mut cycle, &snapshot, &nominations, 2, &mut feasible);
        assert_eq!((feasible, next), (vec![2, 0, 1], 2));
    }
}
