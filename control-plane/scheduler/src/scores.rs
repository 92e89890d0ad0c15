//! How well each node suits that could take the pod. Each score is 0 to 100, weighted as Kubernetes weights it.

use k8s_openapi::api::core::v1::Taint;

use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};
use crate::{pod_affinity, spreading};

const MAX: i64 = 100;
const LEAST_ALLOCATED: i64 = 1;
const IMAGES: i64 = 1;
const PREFERENCES: i64 = 2;
const TAINTS: i64 = 3;
const SPREADING: i64 = 2;
const AFFINITIES: i64 = 2;

const MEGABYTE: i64 = 1024 * 1024;
/// Images smaller than this make no difference.
const SMALL_IMAGES: i64 = 23 * MEGABYTE;
/// Above this, per container, the score is full.
const LARGE_IMAGES: i64 = 1000 * MEGABYTE;

/// Picks the best of `feasible`, indices of nodes; among equals, by `turn`, another each time.
pub(crate) fn best(
    pod: &PodInfo,
    snapshot: &Snapshot,
    feasible: &[usize],
    turn: usize,
) -> Option<usize> {
    let nodes = snapshot.nodes();
    if let [only] = feasible {
        return Some(*only);
    }
    // Scores that are relative to the best node are worked out only for pods that have a preference at all.
    let preferences: Vec<i64> = if pod.preferred.is_empty() {
        Vec::new()
    } else {
        feasible
            .iter()
            .map(|at| preference(pod, &nodes[*at]))
            .collect()
    };
    let most_preferred = preferences.iter().copied().max().unwrap_or(0);
    let most_taints = feasible
        .iter()
        .map(|at| repelling(pod, &nodes[*at]))
        .max()
        .unwrap_or(0);
    let evenness = spreading::scores(pod, snapshot, feasible);
    let gladness = pod_affinity::scores(pod, snapshot, feasible);
    let of = |scores: &Option<Vec<i64>>, position: usize| {
        let score = scores.as_ref().and_then(|scores| scores.get(position));
        score.copied().unwrap_or(0)
    };
    let mut best: Option<i64> = None;
    let mut equals = 0;
    let score = |position: usize, at: usize| {
        let node = &nodes[at];
        let preference = match preferences.get(position) {
            Some(preference) if most_preferred > 0 => preference * MAX / most_preferred,
            _ => 0,
        };
        let taints = if most_taints > 0 {
            MAX - repelling(pod, node) * MAX / most_taints
        } else {
            MAX
        };
        LEAST_ALLOCATED * least_allocated(pod, node)
            + IMAGES * images(pod, node, snapshot)
            + PREFERENCES * preference
            + TAINTS * taints
            + SPREADING * of(&evenness, position)
            + AFFINITIES * of(&gladness, position)
    };
    for (position, at) in feasible.iter().enumerate() {
        let score = score(position, *at);
        match best {
            Some(known) if score < known => {}
            Some(known) if score == known => equals += 1,
            _ => {
                best = Some(score);
                equals = 1;
            }
        }
    }
    let best = best?;
    let chosen = turn % equals;
    feasible
        .iter()
        .enumerate()
        .filter(|(position, at)| score(*position, **at) == best)
        .nth(chosen)
        .map(|(_, at)| *at)
}

/// The emptier, the better.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let part = |all: i64, used: i64| {
        if all <= 0 || used > all {
            0
        } else {
            // Both are far below what a number can say.
            all.saturating_sub(used).saturating_mul(MAX) / all
        }
    };
    let cpu = part(
        node.allocatable.milli_cpu,
        node.weight_cpu.saturating_add(pod.weight_cpu),
    );
    let memory = part(
        node.allocatable.memory,
        node.weight_memory.saturating_add(pod.weight_memory),
    );
    i64::midpoint(cpu, memory)
}

/// The more of the pod's images is there, the better; an image on few nodes counts less, so that the first node to
/// have it does not draw all pods.
fn images(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
    if node.images.is_empty() {
        return 0;
    }
    let total = i64::try_from(snapshot.len().max(1)).unwrap_or(i64::MAX);
    let there: i64 = pod
        .images
        .iter()
        .filter_map(|image| {
            let size = node.images.get(image)?;
            let spread = i64::try_from(snapshot.image_spread(image)).unwrap_or(i64::MAX);
            Some(size.saturating_mul(spread) / total)
        })
        .fold(0, i64::saturating_add);
    let containers = i64::try_from(pod.containers).unwrap_or(i64::MAX);
    let full = LARGE_IMAGES.saturating_mul(containers);
    if full <= SMALL_IMAGES {
        return 0;
    }
    (there.clamp(SMALL_IMAGES, full) - SMALL_IMAGES).saturating_mul(MAX) / (full - SMALL_IMAGES)
}

fn preference(pod: &PodInfo, node: &NodeInfo) -> i64 {
    pod.preferred
        .iter()
        .filter(|(_, term)| term.matches(&node.name, &node.labels))
        .map(|(weight, _)| weight)
        .sum()
}

/// How many taints would rather not have the pod.
fn repelling(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let repels = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !pod.tolerates(taint);
    i64::try_from(node.taints.iter().filter(repels).count()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{
        Affinity, NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, PreferredSchedulingTerm,
    };

    use super::*;
    use crate::snapshot::tests::{node, pod};

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in ["a", "b", "c"] {
            snapshot.set_node(&node(name, "8", "16Gi"));
        }
        snapshot
    }

    fn choice(pod: &PodInfo, snapshot: &Snapshot, turn: usize) -> String {
        let at = best(pod, snapshot, &[0, 1, 2], turn).expect("one is best");
        snapshot.nodes()[at].name.to_string()
    }

    #[test]
    fn the_emptiest_node_is_best_and_equals_take_turns() {
        let mut snapshot = snapshot();
        let wants = PodInfo::new(&pod("p", "100m", "1Mi"));
        let chosen: HashSet<_> = (0..3).map(|turn| choice(&wants, &snapshot, turn)).collect();
        assert_eq!(chosen.len(), 3);
        snapshot.assign(Arc::new(PodInfo::new(&pod("q", "1", "1Gi"))), "a");
        snapshot.assign(Arc::new(PodInfo::new(&pod("r", "1", "1Gi"))), "b");
        for turn in 0..3 {
            assert_eq!(choice(&wants, &snapshot, turn), "c");
        }
    }

    #[test]
    fn pods_that_ask_for_nothing_are_spread_too() {
        let mut snapshot = snapshot();
        snapshot.assign(Arc::new(PodInfo::new(&pod("q", "", ""))), "a");
        snapshot.assign(Arc::new(PodInfo::new(&pod("r", "", ""))), "c");
        assert_eq!(choice(&PodInfo::new(&pod("p", "", "")), &snapshot, 7), "b");
    }

    #[test]
    fn a_node_that_has_the_image_is_better() {
        let mut wants = pod("p", "", "");
        wants.spec.get_or_insert_default().containers[0].image = Some("image-on-b:1".to_owned());
        assert_eq!(choice(&PodInfo::new(&wants), &snapshot(), 0), "b");
    }

    #[test]
    fn preferences_and_soft_taints_count() {
        let mut snapshot = snapshot();
        let mut wants = pod("p", "", "");
        wants.spec.get_or_insert_default().affinity = Some(Affinity {
            node_affinity: Some(NodeAffinity {
                preferred_during_scheduling_ignored_during_execution: Some(vec![
                    PreferredSchedulingTerm {
                        weight: 5,
                        preference: NodeSelectorTerm {
                            match_expressions: Some(vec![NodeSelectorRequirement {
                                key: "zone".to_owned(),
                                operator: "In".to_owned(),
                                values: Some(vec!["zone-of-c".to_owned()]),
                            }]),
                            match_fields: None,
                        },
                    },
                ]),
                ..NodeAffinity::default()
            }),
            ..Affinity::default()
        });
        let wants = PodInfo::new(&wants);
        assert_eq!(choice(&wants, &snapshot, 0), "c");
        let mut tainted = node("c", "8", "16Gi");
        tainted.spec.get_or_insert_default().taints = Some(vec![Taint {
            key: "k".to_owned(),
            effect: "PreferNoSchedule".to_owned(),
            ..Taint::default()
        }]);
        snapshot.set_node(&tainted);
        assert_ne!(choice(&wants, &snapshot, 0), "c");
    }
}
