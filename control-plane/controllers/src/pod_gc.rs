//! Pods that nobody else would remove: those of nodes that are gone, those that were never bound and are to go, and
//! the oldest of very many that have finished.

use std::sync::Arc;
use std::time::Duration;

use gantry_api::paths::segment;
use gantry_informer::{Disruption, Key, Next, Queue, runner};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::context::{Context, ON_NODE};
use crate::error::{Doing, Result, code};
use crate::pods::is_finished;

/// A node may be deleted and registered again: its pods are given this long.
const QUARANTINE: Duration = Duration::from_secs(40);
/// More finished pods than this are not kept.
const FINISHED_KEPT: usize = 12_500;
/// How often finished pods are counted, at most.
const COUNT_EVERY: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// The pods of a node that is gone.
    Node(String),
    /// A pod that is to go and has no node to stop it.
    Unbound(Key),
    Finished,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let queue = Arc::new(Queue::<Work>::default());
    context.nodes.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let (Some(node), None) = (change.old, change.new) {
                let name = node.metadata.name.clone().unwrap_or_default();
                queue.add_after(Work::Node(name), QUARANTINE);
            }
        }
    }));
    context.pods.subscribe(Box::new({
        let (queue, nodes) = (queue.clone(), context.nodes.clone());
        move |change| {
            let Some(pod) = change.new else { return };
            if is_finished(pod) {
                queue.add_after(Work::Finished, COUNT_EVERY);
            }
            match node_of(pod) {
                None if pod.metadata.deletion_timestamp.is_some() => {
                    queue.add(Work::Unbound(Key::of(&pod.metadata)));
                }
                Some(node) if nodes.get(&Key::new("", node)).is_none() => {
                    queue.add_after(Work::Node(node.to_owned()), QUARANTINE);
                }
                _ => {}
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("pod-gc", queue, 4, stop, move |work| {
        let context = context.clone();
        async move { reconcile(&context, &work).await }
    })
    .await;
}

fn node_of(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    Some(node).filter(|node| !node.is_empty())
}

async fn reconcile(context: &Context, work: &Work) -> Result<Next> {
    match work {
        Work::Node(name) => {
            if context.nodes.get(&Key::new("", name)).is_some() {
                return Ok(Next::Changed);
            }
            let api: Api<Node> = Api::all(context.client.clone());
            let found = api
                .get_metadata_opt(&segment(name))
                .await
                .doing("looking for node", &Key::new("", name))?;
            if found.is_none() {
                for pod in context.pods.indexed(ON_NODE, name) {
                    if !is_finished(&pod) {
                        fail(context, &pod).await?;
                    }
                    remove(context, &pod).await?;
                }
            }
        }
        Work::Unbound(key) => {
            let leaving = context
                .pods
                .get(key)
                .filter(|pod| pod.metadata.deletion_timestamp.is_some() && node_of(pod).is_none());
            if let Some(pod) = leaving {
                remove(context, &pod).await?;
            }
        }
        Work::Finished => {
            for pod in excess(&context.pods.list(), FINISHED_KEPT) {
                remove(context, &pod).await?;
            }
        }
    }
    Ok(Next::Changed)
}

/// The oldest of the finished pods beyond `kept`.
fn excess(pods: &[Arc<Pod>], kept: usize) -> Vec<Arc<Pod>> {
    let mut finished: Vec<_> = pods
        .iter()
        .filter(|pod| is_finished(pod))
        .cloned()
        .collect();
    let count = finished.len().saturating_sub(kept);
    finished.sort_by_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref();
        created.map_or(Timestamp::MIN, |time| time.0)
    });
    finished.truncate(count);
    finished
}

/// The pod's containers cannot be running any more: its controller may replace it.
async fn fail(context: &Context, pod: &Pod) -> Result<()> {
    let key = Key::of(&pod.metadata);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let disruption = Disruption {
        reason: "DeletionByPodGC",
        message: "PodGC: node no longer exists",
    };
    let status = disruption.status(pod, context.clock.now());
    let mut status = status.unwrap_or_default();
    status.insert("phase".to_owned(), json!("Failed"));
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    match api
        .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(pod) => context.pods.observe(pod),
        // Gone, or another pod under its name.
        Err(error) if matches!(code(&error), Some(404 | 409 | 422)) => {}
        Err(error) => return Err(error).doing("failing pod", &key),
    }
    Ok(())
}

async fn remove(context: &Context, pod: &Pod) -> Result<()> {
    let key = Key::of(&pod.metadata);
    tracing::info!(pod = %key, "removing a pod that nobody runs");
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let parameters = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        });
    match api.delete(&key.name, &parameters).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(()),
        Err(error) => Err(error).doing("removing pod", &key),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;

    #[test]
    fn the_oldest_finished_pods_go_first() {
        let pod = |second: i64, phase: &str| {
            Arc::new(Pod {
                metadata: ObjectMeta {
                    name: Some(second.to_string()),
                    creation_timestamp: Some(Time(
                        Timestamp::from_second(second).expect("in range"),
                    )),
                    ..ObjectMeta::default()
                },
                status: Some(PodStatus {
                    phase: Some(phase.to_owned()),
                    ..PodStatus::default()
                }),
                ..Pod::default()
            })
        };
        let pods = [
            pod(3, "Failed"),
            pod(1, "Running"),
            pod(2, "Succeeded"),
            pod(4, "Succeeded"),
        ];
        let names: Vec<_> = excess(&pods, 1)
            .iter()
            .filter_map(|pod| pod.metadata.name.clone())
            .collect();
        assert_eq!(names, ["2", "3"]);
        assert!(excess(&pods, 3).is_empty());
    }
}
