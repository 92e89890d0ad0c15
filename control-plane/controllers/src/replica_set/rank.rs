//! Which pods go first when there are too many.
//!
//! In this order: not yet on a node; pending before running; not ready; lower deletion cost; more replicas of the same
//! owner on its node; ready for a shorter time; more restarts, of sidecars after those of other containers; younger. Times
//! count by their order of magnitude only, so that among pods of about the same age the choice is spread. Kubernetes lets
//! the uid decide between such times at once, which is no order of all pods; here it decides when nothing else has.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;

use crate::pods::{is_ready, phase, ready_since};

/// Chooses the `count` pods to delete. `related` are the active pods of the same owner's other replica sets, too.
pub(crate) fn victims(
    pods: &[Arc<Pod>],
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        if let Some(node) = node_of(pod) {
            *on_node.entry(node).or_default() += 1;
        }
    }
    let mut ranked: Vec<_> = pods.to_vec();
    ranked.sort_by(|left, right| {
        let crowd = |pod: &Arc<Pod>| {
            node_of(pod)
                .and_then(|node| on_node.get(node))
                .copied()
                .unwrap_or(0)
        };
        order(left, right, crowd(left), crowd(right), now)
    });
    ranked.truncate(count);
    ranked
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|node| !node.is_empty())
}

/// Less: goes first.
fn order(left: &Pod, right: &Pod, crowd: usize, other_crowd: usize, now: Timestamp) -> Ordering {
    let key = |pod: &Pod, crowd: usize| {
        (
            node_of(pod).is_some(),
            phase_rank(phase(pod)),
            is_ready(pod),
            deletion_cost(pod),
            Reverse(crowd),
        )
    };
    key(left, crowd)
        .cmp(&key(right, other_crowd))
        .then_with(|| {
            if is_ready(left) && is_ready(right) {
                by_age(ready_since(left), ready_since(right), now)
            } else {
                Ordering::Equal
            }
        })
        .then_with(|| restarts(right).cmp(&restarts(left)))
        .then_with(|| by_age(created(left), created(right), now))
        .then_with(|| left.metadata.uid.cmp(&right.metadata.uid))
}

fn phase_rank(phase: &str) -> u8 {
    match phase {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost"))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

/// The most restarts of a container, and of a sidecar.
fn restarts(pod: &Pod) -> (i32, i32) {
    fn most<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> i32 {
        statuses
            .map(|status| status.restart_count)
            .max()
            .unwrap_or(0)
    }
    let Some(status) = &pod.status else {
        return (0, 0);
    };
    let is_sidecar = |name: &str| {
        let spec = pod.spec.as_ref();
        spec.and_then(|spec| spec.init_containers.as_ref())
            .into_iter()
            .flatten()
            .any(|container| {
                container.name == name && container.restart_policy.as_deref() == Some("Always")
            })
    };
    let sidecars = status.init_container_statuses.iter().flatten();
    (
        most(status.container_statuses.iter().flatten()),
        most(sidecars.filter(|status| is_sidecar(&status.name))),
    )
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Younger first, by order of magnitude; an unknown time is the youngest.
fn by_age(left: Option<Timestamp>, right: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |time: Option<Timestamp>| {
        time.map(|time| {
            // Of nanoseconds, as in Kubernetes: where one order ends and the next begins follows from the unit.
            let passed = now.duration_since(time).as_nanos().max(0).unsigned_abs();
            passed.checked_ilog2().map_or(0, |log| log + 1)
        })
    };
    magnitude(left).cmp(&magnitude(right))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodCondition, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).expect("in range")
    }

    struct Made<'a> {
        name: &'a str,
        node: Option<&'a str>,
        phase: &'a str,
        ready_for: Option<i64>,
        age: i64,
        restarts: i32,
        cost: Option<&'a str>,
    }

    const RUNNING: Made<'static> = Made {
        name: "running",
        node: Some("n"),
        phase: "Running",
        ready_for: Some(4000),
        age: 4000,
        restarts: 0,
        cost: None,
    };

    fn pod(made: &Made<'_>) -> Arc<Pod> {
        let at = |ago: i64| Time(Timestamp::from_second(1_000_000 - ago).expect("in range"));
        Arc::new(Pod {
            metadata: ObjectMeta {
                name: Some(made.name.to_owned()),
                uid: Some(made.name.to_owned()),
                creation_timestamp: Some(at(made.age)),
                annotations: made.cost.map(|cost| {
                    [(
                        "controller.kubernetes.io/pod-deletion-cost".to_owned(),
                        cost.to_owned(),
                    )]
                    .into()
                }),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: made.node.map(str::to_owned),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(made.phase.to_owned()),
                conditions: made.ready_for.map(|ago| {
                    vec![PodCondition {
                        type_: "Ready".to_owned(),
                        status: "True".to_owned(),
                        last_transition_time: Some(at(ago)),
                        ..PodCondition::default()
                    }]
                }),
                container_statuses: Some(vec![ContainerStatus {
                    restart_count: made.restarts,
                    ..ContainerStatus::default()
                }]),
                ..PodStatus::default()
            }),
        })
    }

    #[test]
    fn each_rule_decides_before_the_next() {
        let keep = pod(&RUNNING);
        let cases = [
            (
                "unassigned",
                Made {
                    name: "v",
                    node: None,
                    phase: "Pending",
                    ready_for: None,
                    ..RUNNING
                },
            ),
            (
                "pending",
                Made {
                    name: "v",
                    phase: "Pending",
                    ready_for: None,
                    ..RUNNING
                },
            ),
            (
                "not ready",
                Made {
                    name: "v",
                    ready_for: None,
                    ..RUNNING
                },
            ),
            (
                "cheaper",
                Made {
                    name: "v",
                    cost: Some("-5"),
                    ..RUNNING
                },
            ),
            (
                "ready later",
                Made {
                    name: "v",
                    ready_for: Some(3),
                    ..RUNNING
                },
            ),
            (
                "restarting",
                Made {
                    name: "v",
                    restarts: 4,
                    ..RUNNING
                },
            ),
            (
                "younger",
                Made {
                    name: "v",
                    age: 3,
                    ..RUNNING
                },
            ),
        ];
        for (why, made) in cases {
            let victim = pod(&made);
            for pods in [
                [keep.clone(), victim.clone()],
                [victim.clone(), keep.clone()],
            ] {
                let chosen = victims(&pods, &pods, 1, now());
                assert_eq!(chosen[0].metadata.name.as_deref(), Some("v"), "{why}");
            }
        }
    }

    #[test]
    fn a_sidecars_restarts_count_after_those_of_other_containers() {
        let with = |name: &str, main: i32, sidecar: i32| {
            let mut pod = (*pod(&Made {
                name,
                restarts: main,
                ..RUNNING
            }))
            .clone();
            pod.spec.get_or_insert_default().init_containers = Some(vec![Container {
                name: "s".to_owned(),
                restart_policy: Some("Always".to_owned()),
                ..Container::default()
            }]);
            pod.status.get_or_insert_default().init_container_statuses = Some(vec![
                ContainerStatus {
                    name: "s".to_owned(),
                    restart_count: sidecar,
                    ..ContainerStatus::default()
                },
                // One that ran once and is over is no sidecar.
                ContainerStatus {
                    name: "setup".to_owned(),
                    restart_count: 99,
                    ..ContainerStatus::default()
                },
            ]);
            Arc::new(pod)
        };
        for (left, right) in [((2, 0), (1, 5)), ((1, 5), (1, 4))] {
            let victim = with("v", left.0, left.1);
            let pods = [with("keep", right.0, right.1), victim];
            let chosen = victims(&pods, &pods, 1, now());
            assert_eq!(chosen[0].metadata.name.as_deref(), Some("v"));
        }
    }

    #[test]
    fn the_crowded_node_gives_up_its_pod() {
        let crowded = pod(&Made {
            name: "v",
            node: Some("full"),
            ..RUNNING
        });
        let alone = pod(&RUNNING);
        let related = [crowded.clone(), crowded.clone(), alone.clone()];
        let chosen = victims(&[alone, crowded], &related, 1, now());
        assert_eq!(chosen[0].metadata.name.as_deref(), Some("v"));
    }

    /// On a node, phase, ready for so long, age, restarts, cost.
    type Drawn = (bool, usize, Option<i64>, i64, i32, usize);

    fn drawn() -> impl Strategy<Value = Drawn> {
        let ready = prop::option::of(-5..5000i64);
        (
            any::<bool>(),
            0..4usize,
            ready,
            -5..5000i64,
            0..4i32,
            0..3usize,
        )
    }

    proptest! {
        /// The choice is one of all pods, whatever they show and in whatever order they come: an order of them all, in
        /// which no pod that works goes while one of the same node does not.
        #[test]
        fn the_choice_does_not_depend_on_where_it_begins(
            all in prop::collection::vec(drawn(), 0..20),
            count in 0..25usize,
            turn in 0..20usize,
        ) {
            let pods: Vec<_> = all
                .iter()
                .enumerate()
                .map(|(at, (on_node, phase, ready, age, restarts, cost))| {
                    pod(&Made {
                        name: &format!("p{at}"),
                        node: on_node.then_some("n"),
                        phase: ["Pending", "Running", "Unknown", ""][*phase],
                        ready_for: *ready,
                        age: *age,
                        restarts: *restarts,
                        cost: [None, Some("-1"), Some("no number")][*cost],
                    })
                })
                .collect();
            let mut turned = pods.clone();
            turned.rotate_left(turn.min(pods.len()));
            let names = |pods: Vec<Arc<Pod>>| -> Vec<_> {
                pods.iter().map(|pod| pod.metadata.name.clone()).collect()
            };
            let chosen = victims(&pods, &pods, count, now());
            prop_assert_eq!(chosen.len(), count.min(pods.len()));
            let spared = |pod: &&Arc<Pod>| !chosen.iter().any(|other| other.metadata.uid == pod.metadata.uid);
            let worth = |pod: &Pod| (node_of(pod).is_some(), phase_rank(phase(pod)), is_ready(pod));
            for gone in &chosen {
                prop_assert!(pods.iter().filter(spared).all(|kept| worth(gone) <= worth(kept)));
            }
            prop_assert_eq!(names(victims(&turned, &turned, count, now())), names(chosen));
        }
    }
}
