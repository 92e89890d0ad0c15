//! Namespace: once it is to go, deletes all that is in it, pods first, and then lets it go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use gantry_api::paths::segment;
use gantry_informer::clock::seconds;
use gantry_informer::{Key, Next, Queue, runner};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::discovery::verbs;

use crate::context::Context;
use crate::error::{Doing, Result, code, words};
use crate::resources::{Resource, deletable};

const FINALIZER: &str = "kubernetes";
/// Nothing tells when the last object of some kind is gone: while there are any, look again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const KINDS_AT_ONCE: usize = 8;

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.namespaces.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            let leaving = change
                .new
                .filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
            if let Some(namespace) = leaving {
                queue.add(Key::of(&namespace.metadata));
            }
        }
    }));
    // Pods take longest to go: their end is news.
    context.pods.subscribe(Box::new({
        let (queue, namespaces) = (queue.clone(), context.namespaces.clone());
        move |change| {
            if let (Some(pod), None) = (change.old, change.new) {
                let key = Key::new("", pod.metadata.namespace.as_deref().unwrap_or_default());
                let namespace = namespaces.get(&key);
                if namespace
                    .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
                {
                    queue.add(key);
                }
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("namespace", queue, 4, stop, move |key| {
        let context = context.clone();
        async move { reconcile(&context, &key).await }
    })
    .await;
}

async fn reconcile(context: &Context, key: &Key) -> Result<Next> {
    let api: Api<Namespace> = Api::all(context.client.clone());
    // The cache may be behind what the last pass wrote, and a conflict would only cost another pass.
    let Some(namespace) = api
        .get_opt(&key.name)
        .await
        .doing("reading namespace", key)?
    else {
        return Ok(Next::Changed);
    };
    if namespace.metadata.deletion_timestamp.is_none() {
        return Ok(Next::Changed);
    }
    let spec = namespace.spec.clone().unwrap_or_default();
    if !spec
        .finalizers
        .iter()
        .flatten()
        .any(|known| known == FINALIZER)
    {
        return Ok(Next::Changed);
    }
    let outcome = empty(context, &key.name).await;
    if outcome.is_clean() {
        return finalize(&api, key, namespace).await;
    }
    let mut changed = namespace.clone();
    let status = changed.status.get_or_insert_default();
    let known = status.conditions.take().unwrap_or_default();
    status.conditions = Some(conditions(known, &outcome, context.clock.now()));
    if changed != namespace {
        match api
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await
        {
            Ok(written) => context.namespaces.observe(written),
            Err(error) if code(&error) == Some(404) => return Ok(Next::Changed),
            Err(error) => return Err(error).doing("updating the status of namespace", key),
        }
    }
    Ok(Next::After(LOOK_AGAIN))
}

async fn finalize(api: &Api<Namespace>, key: &Key, mut namespace: Namespace) -> Result<Next> {
    let spec = namespace.spec.get_or_insert_default();
    let finalizers = spec.finalizers.get_or_insert_default();
    finalizers.retain(|known| known != FINALIZER);
    let finalized = api
        .replace_subresource("finalize", &key.name, &PostParams::default(), &namespace)
        .await;
    match finalized {
        Ok(_) => Ok(Next::Changed),
        Err(error) if code(&error) == Some(404) => Ok(Next::Changed),
        Err(error) => Err(error).doing("finalizing namespace", key),
    }
}

/// What is left in a namespace after deleting all that could be.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    /// Why the kinds are not all known.
    discovery: Option<String>,
    /// Why some could not be deleted.
    failures: Vec<String>,
    /// How many objects remain, by resource.
    remaining: BTreeMap<String, usize>,
    /// How many of them wait for each finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Outcome {
    fn is_clean(&self) -> bool {
        self.discovery.is_none() && self.failures.is_empty() && self.remaining.is_empty()
    }

    fn merge(&mut self, other: Self) {
        self.failures.extend(other.failures);
        for (resource, count) in other.remaining {
            *self.remaining.entry(resource).or_default() += count;
        }
        for (finalizer, count) in other.finalizers {
            *self.finalizers.entry(finalizer).or_default() += count;
        }
    }
}

/// Deletes what is in the namespace: the pods, and, when none is left, everything else.
async fn empty(context: &Context, namespace: &str) -> Outcome {
    let resources = match deletable(&context.client).await {
        Ok(resources) => resources,
        Err(error) => {
            return Outcome {
                discovery: Some(words(&error)),
                ..Outcome::default()
            };
        }
    };
    let (pods, others): (Vec<_>, Vec<_>) = resources
        .into_iter()
        .filter(|resource| resource.namespaced)
        .partition(|resource| resource.api.group.is_empty() && resource.api.plural == "pods");
    let mut outcome = Outcome::default();
    for kinds in [pods, others] {
        let emptied: Vec<Outcome> = stream::iter(kinds)
            .map(|resource| async move {
                empty_of(context, &resource, namespace)
                    .await
                    .unwrap_or_else(|error| Outcome {
                        failures: vec![words(&error)],
                        ..Outcome::default()
                    })
            })
            .buffer_unordered(KINDS_AT_ONCE)
            .collect()
            .await;
        for part in emptied {
            outcome.merge(part);
        }
        if !outcome.is_clean() {
            break;
        }
    }
    outcome
}

/// Deletes the objects of one kind, and counts those that are still there.
async fn empty_of(
    context: &Context,
    resource: &Resource,
    namespace: &str,
) -> kube::Result<Outcome> {
    let api = resource.objects(&context.client, namespace);
    let all = ListParams::default();
    let found = api.list_metadata(&all).await?;
    if found.items.is_empty() {
        return Ok(Outcome::default());
    }
    let parameters = DeleteParams::background();
    if found
        .items
        .iter()
        .any(|object| object.metadata.deletion_timestamp.is_none())
    {
        if resource.can(verbs::DELETE_COLLECTION) {
            api.delete_collection(&parameters, &all).await?;
        } else {
            stream::iter(
                found
                    .items
                    .iter()
                    .filter_map(|object| object.metadata.name.clone()),
            )
            .map(Ok)
            .try_for_each(|name| {
                let (api, parameters) = (&api, &parameters);
                async move {
                    match api.delete(&segment(&name), parameters).await {
                        Err(error) if code(&error) != Some(404) => Err(error),
                        _ => Ok(()),
                    }
                }
            })
            .await?;
        }
    }
    let left = api.list_metadata(&all).await?;
    let mut outcome = Outcome::default();
    if !left.items.is_empty() {
        outcome
            .remaining
            .insert(resource.qualified(), left.items.len());
    }
    for finalizer in left
        .items
        .iter()
        .flat_map(|object| object.metadata.finalizers.iter().flatten())
    {
        *outcome.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(outcome)
}

/// The conditions that tell how far the deletion is; each keeps its time while its status stays.
fn conditions(
    known: Vec<NamespaceCondition>,
    outcome: &Outcome,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let list = |counts: &BTreeMap<String, usize>, what: &str| {
        let parts: Vec<_> = counts
            .iter()
            .map(|(name, count)| format!("{name}{what} {count} resource instances"))
            .collect();
        parts.join(", ")
    };
    let told: [(&str, bool, &str, String); 5] = [
        match &outcome.discovery {
            None => (
                "NamespaceDeletionDiscoveryFailure",
                false,
                "ResourcesDiscovered",
                "All resources successfully discovered".to_owned(),
            ),
            Some(failure) => (
                "NamespaceDeletionDiscoveryFailure",
                true,
                "DiscoveryFailed",
                format!("Discovery failed for some groups: {failure}"),
            ),
        },
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        if outcome.failures.is_empty() {
            (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            )
        } else {
            (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    outcome.failures.len(),
                    outcome.failures.join(", ")
                ),
            )
        },
        if outcome.remaining.is_empty() {
            (
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed".to_owned(),
            )
        } else {
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!(
                    "Some resources are remaining: {}",
                    list(&outcome.remaining, ". has")
                ),
            )
        },
        if outcome.finalizers.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    list(&outcome.finalizers, " in")
                ),
            )
        },
    ];
    let mut conditions = known;
    for (type_, holds, reason, message) in told {
        let status = if holds { "True" } else { "False" };
        let position = conditions
            .iter()
            .position(|condition| condition.type_ == type_);
        let since = position
            .map(|at| &conditions[at])
            .filter(|condition| condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone())
            .unwrap_or_else(|| seconds(now));
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(since),
        };
        match position {
            Some(at) => conditions[at] = condition,
            None => conditions.push(condition),
        }
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_holds_the_namespace() {
        let outcome = Outcome {
            remaining: [("configmaps".to_owned(), 1)].into(),
            finalizers: [("a.example/x".to_owned(), 1)].into(),
            ..Outcome::default()
        };
        let now = Timestamp::from_second(5).expect("in range");
        let told = conditions(Vec::new(), &outcome, now);
        let messages: Vec<_> = told
            .iter()
            .map(|condition| {
                let message = condition.message.as_deref().unwrap_or_default();
                (condition.type_.as_str(), condition.status.as_str(), message)
            })
            .collect();
        assert_eq!(
            messages[2..],
            [
                (
                    "NamespaceDeletionContentFailure",
                    "False",
                    "All content successfully deleted, may be waiting on finalization"
                ),
                (
                    "NamespaceContentRemaining",
                    "True",
                    "Some resources are remaining: configmaps. has 1 resource instances"
                ),
                (
                    "NamespaceFinalizersRemaining",
                    "True",
                    "Some content in the namespace has finalizers remaining: a.example/x in 1 resource instances"
                ),
            ]
        );
        // Told again later, nothing changes: there is nothing to write.
        let later = Timestamp::from_second(9).expect("in range");
        assert_eq!(conditions(told.clone(), &outcome, later), told);
        // What is over changes its status and its time.
        let over = conditions(told, &Outcome::default(), later);
        assert_eq!(over[3].status, "False");
        assert_eq!(over[3].last_transition_time, Some(seconds(later)));
    }
}
