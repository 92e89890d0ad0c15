//! What controllers of pods do to them: claim, create and delete, with the events that tell of it.

use std::borrow::Borrow;
use std::sync::Arc;

use futures::future::join_all;
use gantry_api::selector::LabelSelector;
use gantry_informer::{Key, Object, Recorder, Reference};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::Resource;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use crate::claim::{Adoption, claim};
use crate::context::{Context, ORPHANS};
use crate::error::{Result, code, namespace_terminating, words};

/// A failure to create or delete pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub(crate) reason: &'static str,
    /// The API server's words.
    pub(crate) message: String,
}

/// No more than this many pods of one owner are created or deleted in one pass.
pub(crate) const BURST: usize = 500;
/// What the pods that are made for one pass may have as JSON, in bytes, where each is another. In memory it is ten times that.
const MOST_TEXT: usize = 1 << 20;

/// As many pods of their own from this template as may be held in memory at once, up to [`BURST`].
pub(crate) fn burst(template: &PodTemplateSpec) -> usize {
    let size = serde_json::to_vec(template).map_or(MOST_TEXT, |text| text.len());
    (MOST_TEXT / size.max(1)).clamp(1, BURST)
}

/// Sizes of the batches in which `total` pods are created: each twice the one before, so that a cause that refuses
/// all of them is met by one request and not by hundreds.
pub(crate) fn batches(total: usize) -> impl Iterator<Item = usize> {
    let mut left = total;
    let mut size = 1;
    std::iter::from_fn(move || {
        let batch = size.min(left);
        left -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

/// Creates pods in the namespace of whom it is about.
pub(crate) async fn create(
    context: &Context,
    recorder: &Recorder,
    about: &Reference,
    pods: &[impl Borrow<Pod>],
) -> std::result::Result<(), Failure> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &about.namespace);
    let parameters = PostParams::default();
    let mut left = pods;
    for size in batches(pods.len()) {
        let (batch, rest) = left.split_at(size);
        left = rest;
        let made = join_all(
            batch
                .iter()
                .map(|pod| api.create(&parameters, pod.borrow())),
        )
        .await;
        let mut first = None;
        let mut refused = false;
        for outcome in made {
            match outcome {
                Ok(pod) => {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    let message = format!("Created pod: {name}");
                    recorder.normal(about.clone(), "SuccessfulCreate", message);
                    context.pods.observe(pod);
                }
                // The owner goes with its namespace: that is no failure of it, and no retry helps.
                Err(error) if namespace_terminating(&error) => refused = true,
                Err(error) => {
                    let message = words(&error);
                    let told = format!("Error creating: {message}");
                    recorder.warning(about.clone(), "FailedCreate", told);
                    first.get_or_insert(message);
                }
            }
        }
        if let Some(message) = first {
            return Err(Failure {
                reason: "FailedCreate",
                message,
            });
        }
        if refused {
            return Ok(());
        }
    }
    Ok(())
}

/// Deletes pods in the namespace of whom it is about.
pub(crate) async fn delete(
    context: &Context,
    recorder: &Recorder,
    about: &Reference,
    victims: &[Arc<Pod>],
) -> std::result::Result<(), Failure> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &about.namespace);
    let api = &api;
    let deleted = join_all(victims.iter().map(|pod| async move {
        let key = Key::of(&pod.metadata);
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        });
        (pod, api.delete(&key.name, &parameters).await)
    }))
    .await;
    let mut failure = None;
    for (pod, outcome) in deleted {
        let key = Key::of(&pod.metadata);
        match outcome {
            Ok(answer) => {
                let message = format!("Deleted pod: {}", key.name);
                recorder.normal(about.clone(), "SuccessfulDelete", message);
                if let Some(pod) = answer.left() {
                    context.pods.observe_deleting(pod);
                }
            }
            Err(error) if matches!(code(&error), Some(404 | 409)) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                context.pods.observe_gone(&key, uid);
            }
            Err(error) => {
                let message = words(&error);
                let told = format!("Error deleting: {message}");
                recorder.warning(about.clone(), "FailedDelete", told);
                failure.get_or_insert(Failure {
                    reason: "FailedDelete",
                    message: format!("unable to delete pods: {message}"),
                });
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// How a controller claims pods.
pub(crate) struct Claiming<'a, K> {
    pub(crate) owner: &'a K,
    pub(crate) selector: &'a LabelSelector,
    /// The pods that are worth claiming: others stay whose they are, and are not returned.
    pub(crate) concerns: fn(&Pod) -> bool,
    /// What the adopted have to have as a finalizer.
    pub(crate) finalizer: Option<&'static str>,
}

/// The pods that are the owner's, after adopting and releasing.
pub(crate) async fn claimed<K>(
    context: &Context,
    claiming: &Claiming<'_, K>,
) -> Result<Vec<Arc<Pod>>>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let owner = claiming.owner;
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let mut candidates = context.pods.owned_by(uid);
    candidates.extend(context.pods.indexed(ORPHANS, namespace));
    candidates.retain(|pod| (claiming.concerns)(pod));
    let decided = candidates.into_iter().map(|pod| {
        let decision = claim(owner.meta(), claiming.selector, &pod.metadata);
        (pod, decision)
    });
    let adoption = Adoption {
        client: &context.client,
        owner,
        finalizer: claiming.finalizer,
    };
    adoption.settle(&context.pods, decided.collect()).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    #[test]
    fn large_pods_are_made_a_few_at_a_time() {
        let of_size = |size: usize| {
            let annotations = [("a".to_owned(), "x".repeat(size))].into();
            let metadata = ObjectMeta {
                annotations: Some(annotations),
                ..ObjectMeta::default()
            };
            burst(&PodTemplateSpec {
                metadata: Some(metadata),
                spec: None,
            })
        };
        assert_eq!(of_size(10), BURST);
        assert!((2..=10).contains(&of_size(100_000)));
        assert_eq!(of_size(2 << 20), 1);
    }

    #[test]
    fn batches_double_and_add_up() {
        assert_eq!(batches(10).collect::<Vec<_>>(), [1, 2, 4, 3]);
        assert_eq!(batches(1).collect::<Vec<_>>(), [1]);
        assert_eq!(batches(0).count(), 0);
        assert_eq!(batches(500).sum::<usize>(), 500);
    }
}
