//! Node: its conditions become taints, by which pods are kept away or told to go; and pods that must leave a tainted
//! node do so once their toleration ends.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::json::Members as _;
use gantry_api::taints::{NO_EXECUTE, NO_SCHEDULE, covers};
use gantry_informer::clock::seconds;
use gantry_informer::{Disruption, Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::{Context, ON_NODE};
use crate::error::{Doing, Result, code, taken_in};
use crate::pods::{is_active, is_ready};

pub(crate) const COMPONENT: &str = "taint-eviction-controller";
const TTL: &str = "node.alpha.kubernetes.io/ttl";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that are trouble when true, and their taints.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// Why a pod goes that does not tolerate what its node is tainted with.
const TAINTED: Disruption<'static> = Disruption {
    reason: "DeletionByTaintManager",
    message: "Taint manager: deleting due to NoExecute taint",
};

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, recorder: Recorder) {
    let queue = Arc::new(Queue::<Key>::default());
    context.nodes.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(node) = change.new {
                queue.add(Key::of(&node.metadata));
            }
        }
    }));
    context.pods.subscribe(Box::new({
        let (queue, nodes) = (queue.clone(), context.nodes.clone());
        move |change| {
            let bound = change
                .new
                .and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
            let was = change
                .old
                .and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
            if let Some(name) = bound.filter(|_| bound != was) {
                let key = Key::new("", name);
                if nodes
                    .get(&key)
                    .is_some_and(|node| evicting(&node).next().is_some())
                {
                    queue.add(key);
                }
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("node-lifecycle", queue, 8, stop, move |key| {
        let (context, recorder) = (context.clone(), recorder.clone());
        async move { reconcile(&context, &recorder, &key).await }
    })
    .await;
}

async fn reconcile(context: &Context, recorder: &Recorder, key: &Key) -> Result<Next> {
    let Some(node) = context.nodes.get(key) else {
        return Ok(Next::Changed);
    };
    let now = context.clock.now();
    let mut wanted = (*node).clone();
    let spec = wanted.spec.get_or_insert_default();
    spec.taints = Some(taints(&node, now)).filter(|taints| !taints.is_empty());
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    annotations
        .entry(TTL.to_owned())
        .or_insert_with(|| "0".to_owned());
    if wanted != *node {
        let api: Api<Node> = Api::all(context.client.clone());
        let written = api
            .replace(&key.name, &PostParams::default(), &wanted)
            .await;
        match taken_in(written, &api, &context.nodes, &key.name).await {
            Err(error) if code(&error) == Some(404) => return Ok(Next::Changed),
            other => other.doing("tainting node", key)?,
        }
    }
    let pods = context.pods.indexed(ON_NODE, &key.name);
    if !status_is(&wanted, "Ready", "True") {
        for pod in pods.iter().filter(|pod| is_ready(pod)) {
            mark_ready(context, pod, false, now).await?;
        }
    } else {
        // A node that said itself that it was not Ready was never away, and does not say everything anew.
        for pod in pods.iter().filter(|pod| was_marked(pod)) {
            mark_ready(context, pod, true, now).await?;
        }
    }
    let mut wake: Option<Duration> = None;
    for pod in pods.iter().filter(|pod| is_active(pod)) {
        match eviction(&wanted, pod, now) {
            Eviction::Never => {}
            Eviction::In(left) => wake = Some(wake.map_or(left, |wake| wake.min(left))),
            Eviction::Now => evict(context, recorder, pod, now).await?,
        }
    }
    Ok(wake.map_or(Next::Changed, Next::After))
}

fn status_is(node: &Node, type_: &str, status: &str) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == type_ && condition.status == status)
}

/// The node's taints as they should be: those that follow from its state, and all others as they are.
fn taints(node: &Node, now: Timestamp) -> Vec<Taint> {
    let mut due: Vec<(&str, &str)> = Vec::new();
    for (status, key) in [("False", NOT_READY), ("Unknown", UNREACHABLE)] {
        if status_is(node, "Ready", status) {
            due.extend([(key, NO_SCHEDULE), (key, NO_EXECUTE)]);
        }
    }
    let silent = !["True", "False", "Unknown"]
        .iter()
        .any(|status| status_is(node, "Ready", status));
    if silent {
        // It was tainted at its creation, and has not said yet that it is ready.
        due.push((NOT_READY, NO_SCHEDULE));
    }
    for (type_, key) in PRESSURES {
        if status_is(node, type_, "True") {
            due.push((key, NO_SCHEDULE));
        }
    }
    let spec = node.spec.as_ref();
    if spec.and_then(|spec| spec.unschedulable).unwrap_or(false) {
        due.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let managed = |taint: &Taint| {
        let key = taint.key.as_str();
        let scheduling = [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key)
            || PRESSURES.iter().any(|(_, pressure)| *pressure == key);
        match taint.effect.as_str() {
            NO_SCHEDULE => scheduling,
            NO_EXECUTE => [NOT_READY, UNREACHABLE].contains(&key),
            _ => false,
        }
    };
    let mut taints: Vec<Taint> = spec
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default()
        .into_iter()
        .filter(|taint| {
            !managed(taint) || due.contains(&(taint.key.as_str(), taint.effect.as_str()))
        })
        .collect();
    for (key, effect) in due {
        if !taints
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(seconds(now)),
            });
        }
    }
    taints
}

fn evicting(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == NO_EXECUTE)
}

/// When a pod must leave its node.
#[derive(Debug, PartialEq, Eq)]
enum Eviction {
    Never,
    In(Duration),
    Now,
}

fn eviction(node: &Node, pod: &Pod, now: Timestamp) -> Eviction {
    let tolerations = pod
        .spec
        .iter()
        .flat_map(|spec| spec.tolerations.iter().flatten());
    let tolerations: Vec<&Toleration> = tolerations.collect();
    let mut soonest: Option<Duration> = None;
    for taint in evicting(node) {
        let mut tolerated = false;
        let mut limit: Option<u64> = None;
        for toleration in tolerations
            .iter()
            .filter(|toleration| covers(toleration, taint))
        {
            tolerated = true;
            if let Some(seconds) = toleration.toleration_seconds {
                let seconds = u64::try_from(seconds).unwrap_or(0);
                limit = Some(limit.map_or(seconds, |limit| limit.min(seconds)));
            }
        }
        if !tolerated {
            return Eviction::Now;
        }
        if let Some(limit) = limit {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            let left = Duration::from_secs(limit).saturating_sub(passed);
            soonest = Some(soonest.map_or(left, |soonest| soonest.min(left)));
        }
    }
    match soonest {
        None => Eviction::Never,
        Some(left) if left.is_zero() => Eviction::Now,
        Some(left) => Eviction::In(left),
    }
}

/// Whether a pod is not Ready only because [`mark_ready`] said so for its node's sake: its node would give a reason, and
/// says that the containers are ready.
fn was_marked(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let is = |type_: &str, status: &str, reasonless: bool| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|condition| {
            condition.type_ == type_
                && condition.status == status
                && (!reasonless || condition.reason.as_deref().unwrap_or_default().is_empty())
        })
    };
    is_active(pod) && is("Ready", "False", true) && is("ContainersReady", "True", false)
}

/// Requests must not be sent to a pod whose node nobody hears from, or which says itself that it is not Ready; and again
/// when that is over. What has changed since it was looked at is not overwritten with the latter.
async fn mark_ready(context: &Context, pod: &Pod, ready: bool, now: Timestamp) -> Result<()> {
    let key = Key::of(&pod.metadata);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let mut patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
        "type": "Ready",
        "status": if ready { "True" } else { "False" },
        "lastTransitionTime": seconds(now),
    }]}});
    if ready {
        *patch.member(&["metadata", "resourceVersion"]) = json!(pod.metadata.resource_version);
    }
    match api
        .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(pod) => context.pods.observe(pod),
        // Gone, or another pod under its name.
        Err(error) if matches!(code(&error), Some(404 | 422)) => {}
        Err(error) if !ready && code(&error) == Some(409) => {}
        Err(error) => return Err(error).doing("marking as ready or not the pod", &key),
    }
    Ok(())
}

async fn evict(context: &Context, recorder: &Recorder, pod: &Pod, now: Timestamp) -> Result<()> {
    let key = Key::of(&pod.metadata);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    if let Some(status) = TAINTED.status(pod, now) {
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        let told = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        if let Err(error) = told
            && !matches!(code(&error), Some(404 | 409 | 422))
        {
            return Err(error).doing("marking for eviction the pod", &key);
        }
    }
    let parameters = DeleteParams::default().preconditions(Preconditions {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    });
    match api.delete(&key.name, &parameters).await {
        Ok(answer) => {
            recorder.normal(
                Reference::to(pod),
                "TaintManagerEviction",
                format!("Marking for deletion Pod {key}"),
            );
            if let Some(pod) = answer.left() {
                context.pods.observe_deleting(pod);
            }
            Ok(())
        }
        Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(()),
        Err(error) => Err(error).doing("evicting pod", &key),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeCondition, NodeSpec, NodeStatus, PodSpec};
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).expect("in range")
    }

    fn node(conditions: &[(&str, &str)], known: Vec<Taint>) -> Node {
        Node {
            spec: Some(NodeSpec {
                taints: Some(known),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                conditions: Some(
                    conditions
                        .iter()
                        .map(|(type_, status)| NodeCondition {
                            type_: (*type_).to_owned(),
                            status: (*status).to_owned(),
                            ..NodeCondition::default()
                        })
                        .collect(),
                ),
                ..NodeStatus::default()
            }),
            ..Node::default()
        }
    }

    fn named(taints: &[Taint]) -> Vec<(String, String)> {
        let name = |taint: &Taint| {
            let key = taint.key.rsplit('/').next().unwrap_or_default();
            (key.to_owned(), taint.effect.clone())
        };
        taints.iter().map(name).collect()
    }

    #[test]
    fn taints_follow_conditions_and_spare_the_users() {
        let own = Taint {
            key: "dedicated".to_owned(),
            effect: NO_EXECUTE.to_owned(),
            ..Taint::default()
        };
        let lost = node(&[("Ready", "False")], vec![own.clone()]);
        let tainted = taints(&lost, now());
        let pair = |key: &str, effect: &str| (key.to_owned(), effect.to_owned());
        assert_eq!(
            named(&tainted),
            [
                pair("dedicated", NO_EXECUTE),
                pair("not-ready", NO_SCHEDULE),
                pair("not-ready", NO_EXECUTE)
            ]
        );
        // Told again, they keep their time.
        let again = node(&[("Ready", "False")], tainted.clone());
        assert_eq!(
            taints(&again, now() + SignedDuration::from_secs(9)),
            tainted
        );
        let back = node(&[("Ready", "True"), ("MemoryPressure", "True")], tainted);
        assert_eq!(
            named(&taints(&back, now())),
            [
                pair("dedicated", NO_EXECUTE),
                pair("memory-pressure", NO_SCHEDULE)
            ]
        );
        let mut cordoned = node(&[("Ready", "True")], Vec::new());
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(
            named(&taints(&cordoned, now())),
            [pair("unschedulable", NO_SCHEDULE)]
        );
    }

    #[test]
    fn only_what_was_marked_for_the_nodes_sake_is_taken_back() {
        let pod = |ready: serde_json::Value, containers: &str| -> Pod {
            let containers = json!({"type": "ContainersReady", "status": containers});
            serde_json::from_value(json!({"status": {"conditions": [ready, containers]}})).unwrap()
        };
        let marked = json!({"type": "Ready", "status": "False"});
        let meant = json!({"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady"});
        assert!(was_marked(&pod(marked.clone(), "True")));
        assert!(!was_marked(&pod(marked, "False")));
        assert!(!was_marked(&pod(meant, "True")));
        assert!(!was_marked(&pod(
            json!({"type": "Ready", "status": "True"}),
            "True"
        )));
    }

    #[test]
    fn pods_leave_when_their_toleration_ends() {
        let since = now() - SignedDuration::from_secs(100);
        let lost = |keys: &[&str]| {
            let taint = |key: &&str| Taint {
                key: (*key).to_owned(),
                effect: NO_EXECUTE.to_owned(),
                time_added: Some(seconds(since)),
                ..Taint::default()
            };
            node(&[], keys.iter().map(taint).collect())
        };
        let pod = |tolerations: &[(&str, Option<i64>)]| Pod {
            spec: Some(PodSpec {
                tolerations: Some(
                    tolerations
                        .iter()
                        .map(|(key, seconds)| Toleration {
                            key: Some((*key).to_owned()),
                            operator: Some("Exists".to_owned()),
                            effect: Some(NO_EXECUTE.to_owned()),
                            toleration_seconds: *seconds,
                            ..Toleration::default()
                        })
                        .collect(),
                ),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        let cases = [
            (lost(&[]), pod(&[]), Eviction::Never),
            (lost(&["a"]), pod(&[]), Eviction::Now),
            (lost(&["a"]), pod(&[("a", None)]), Eviction::Never),
            (
                lost(&["a"]),
                pod(&[("a", Some(300))]),
                Eviction::In(Duration::from_secs(200)),
            ),
            (lost(&["a"]), pod(&[("a", Some(60))]), Eviction::Now),
            (lost(&["a", "b"]), pod(&[("a", Some(300))]), Eviction::Now),
            (
                lost(&["a", "b"]),
                pod(&[("a", Some(300)), ("b", Some(150))]),
                Eviction::In(Duration::from_secs(50)),
            ),
        ];
        for (node, pod, expected) in cases {
            assert_eq!(eviction(&node, &pod, now()), expected, "{:?}", pod.spec);
        }
    }
}
