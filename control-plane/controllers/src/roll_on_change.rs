//! Rolls workloads when a ConfigMap or a Secret changes that their pods name: Deployments, StatefulSets and DaemonSets with
//! the annotation `gantry.dev/roll-on-change: "true"`.
//!
//! - What a workload has been rolled for is in an annotation of it: which objects its pods name, and which versions of them
//!   ([`plan`]). What they contain is in this leader's memory alone: who may read workloads may not read Secrets.
//! - Objects are only followed once a workload asks for it, and only their metadata is held. A change costs those that name
//!   the object, and they look at what they name.

mod plan;
mod references;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::names::is_dns1123_subdomain;
use gantry_informer::{Change, Informer, Informers, Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PodTemplateSpec, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use self::plan::{Contents, Found, Step, plan};
use self::references::{MOST, Named, Source, named};
use crate::context::Context;
use crate::error::{Doing, Result, code, taken_in};

pub(crate) const COMPONENT: &str = "roll-on-change-controller";
const AT_ONCE: usize = 8;
/// So that one change of several objects, one after the other, rolls once.
const SETTLES: Duration = Duration::from_secs(1);

const ROLL_ON_CHANGE: &str = "gantry.dev/roll-on-change";
/// On a workload: what it has been rolled for.
pub(crate) const ROLLED_FOR: &str = "gantry.dev/rolled-for";
/// In its template, so that there is a new revision.
const CONFIGURATION: &str = "gantry.dev/configuration";

/// Index: workloads that are to be rolled, by what their pods name.
const NAMING: &str = "roll-on-change";

/// A kind whose pods follow from a template.
trait Workload:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + gantry_informer::Object
{
    fn template(&self) -> Option<&PodTemplateSpec>;
}

impl Workload for Deployment {
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref().map(|spec| &spec.template)
    }
}

impl Workload for StatefulSet {
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref().map(|spec| &spec.template)
    }
}

impl Workload for DaemonSet {
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref().map(|spec| &spec.template)
    }
}

/// What the annotation says: whether it asks for it, or what it says instead.
fn asked(metadata: &ObjectMeta) -> std::result::Result<bool, &str> {
    let annotations = metadata.annotations.as_ref();
    match annotations.and_then(|annotations| annotations.get(ROLL_ON_CHANGE)) {
        None => Ok(false),
        Some(text) => text.parse().map_err(|_| text.as_str()),
    }
}

fn is_asked(metadata: &ObjectMeta) -> bool {
    asked(metadata) == Ok(true) && metadata.deletion_timestamp.is_none()
}

fn rolled_for(metadata: &ObjectMeta) -> Option<&str> {
    let annotations = metadata.annotations.as_ref()?;
    annotations.get(ROLLED_FOR).map(String::as_str)
}

/// As [`NAMING`] has an object.
fn index_value(source: Source, namespace: &str, name: &str) -> String {
    format!("{source} {namespace}/{name}")
}

/// The values of [`NAMING`].
fn naming<K: Workload>(workload: &K) -> Vec<String> {
    let metadata = workload.meta();
    let template = workload.template().filter(|_| is_asked(metadata));
    let Some(spec) = template.and_then(|template| template.spec.as_ref()) else {
        return Vec::new();
    };
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let named = named(spec).into_keys().take(MOST);
    named
        .map(|named| index_value(named.source, namespace, &named.name))
        .collect()
}

/// Whether a workload is another one for us: what else changes of it, its status first of all, is not looked at.
fn is_other<K: Workload>(change: &Change<'_, K>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else {
        return true;
    };
    asked(old.meta()) != asked(new.meta())
        || rolled_for(old.meta()) != rolled_for(new.meta())
        || old.meta().generation != new.meta().generation
}

/// What is kept of a workload.
struct Kept {
    uid: Option<String>,
    contents: Contents,
}

/// The workloads of one kind.
struct Rolling<K> {
    context: Arc<Context>,
    workloads: Informer<K>,
    queue: Arc<Queue<Key>>,
    recorder: Recorder,
    kept: Mutex<HashMap<Key, Kept>>,
}

impl<K> Rolling<K>
where
    K: Workload + Debug,
{
    /// Looks at the workloads that there are and will be; `wanted` is told when one asks to be rolled.
    fn start(
        context: &Arc<Context>,
        informers: &Informers,
        recorder: &Recorder,
        wanted: &watch::Sender<bool>,
    ) -> Arc<Self> {
        let rolling = Arc::new(Self {
            context: context.clone(),
            workloads: informers.of().index(NAMING, naming),
            queue: Arc::default(),
            recorder: recorder.clone(),
            kept: Mutex::default(),
        });
        let (queue, wanted) = (rolling.queue.clone(), wanted.clone());
        rolling.workloads.subscribe(Box::new(move |change| {
            let Some(last) = change.last() else {
                return;
            };
            let states = [change.old, change.new].into_iter().flatten();
            let concerns = states
                .clone()
                .any(|workload| asked(workload.meta()) != Ok(false));
            if concerns && is_other(change) {
                wanted.send_replace(true);
                queue.add(Key::of(last.meta()));
            }
        }));
        rolling
    }

    /// An object has changed.
    fn changed(&self, source: Source, object: &ObjectMeta) {
        let (Some(namespace), Some(name)) = (&object.namespace, &object.name) else {
            return;
        };
        let value = index_value(source, namespace, name);
        for workload in self.workloads.indexed(NAMING, &value) {
            self.queue.add_after(Key::of(workload.meta()), SETTLES);
        }
    }

    async fn run(self: Arc<Self>, name: &'static str) {
        let stop = self.context.stop.clone();
        let queue = self.queue.clone();
        runner::run(name, queue, AT_ONCE, stop, move |key| {
            let rolling = self.clone();
            async move { rolling.reconcile(&key).await }
        })
        .await;
    }

    async fn reconcile(&self, key: &Key) -> Result<Next> {
        let workload = self.workloads.get(key);
        // One that is on its way out is not rolled any more.
        let stays = |workload: &Arc<K>| workload.meta().deletion_timestamp.is_none();
        let workload = workload.filter(stays);
        let Some(workload) = workload.filter(|workload| asked(workload.meta()) != Ok(false)) else {
            self.kept.lock().remove(key);
            return Ok(Next::Changed);
        };
        let about = || Reference::to(&*workload);
        if let Err(text) = asked(workload.meta()) {
            let told: String = text.chars().take(64).collect();
            let message = format!(
                "metadata.annotations[{ROLL_ON_CHANGE}]: {told:?} is neither \"true\" nor \"false\": it is not rolled"
            );
            self.recorder.warning(about(), "InvalidAnnotation", message);
            return Ok(Next::Changed);
        }
        let spec = workload
            .template()
            .and_then(|template| template.spec.as_ref());
        let named = spec.map(named).unwrap_or_default();
        if named.len() > MOST {
            let count = named.len();
            let message = format!(
                "Its pods name {count} ConfigMaps and Secrets, and only up to {MOST} are followed: it is not rolled"
            );
            self.recorder.warning(about(), "TooManyReferences", message);
            return Ok(Next::Changed);
        }
        let found = self.look(key, named).await?;
        let uid = &workload.meta().uid;
        let (step, contents) = {
            let kept = self.kept.lock();
            let kept = kept.get(key).filter(|kept| kept.uid == *uid);
            let known = kept.map(|kept| &kept.contents);
            plan(rolled_for(workload.meta()), &found, known)
        };
        self.carry_out(key, &workload, step).await?;
        if let Some(contents) = contents {
            let kept = Kept {
                uid: uid.clone(),
                contents,
            };
            self.kept.lock().insert(key.clone(), kept);
        }
        Ok(Next::Changed)
    }

    /// What there is of that which pods name.
    async fn look(&self, key: &Key, named: BTreeMap<Named, bool>) -> Result<Vec<Found>> {
        let client = || self.context.client.clone();
        let mut found = Vec::with_capacity(named.len());
        for (named, is_optional) in named {
            // What is no name, nobody has.
            let version = match (is_dns1123_subdomain(&named.name), named.source) {
                (Some(_), _) => None,
                (None, Source::ConfigMap) => {
                    let api: Api<ConfigMap> = Api::namespaced(client(), &key.namespace);
                    let map = api.get_opt(&named.name).await;
                    let map = map.doing("looking at a ConfigMap of", key)?;
                    map.map(|map| plan::of_config_map(&map))
                }
                (None, Source::Secret) => {
                    let api: Api<Secret> = Api::namespaced(client(), &key.namespace);
                    let secret = api.get_opt(&named.name).await;
                    let secret = secret.doing("looking at a Secret of", key)?;
                    secret.map(|secret| plan::of_secret(&secret))
                }
            };
            found.push(Found {
                named,
                is_optional,
                version,
            });
        }
        Ok(found)
    }

    async fn carry_out(&self, key: &Key, workload: &K, step: Step) -> Result<()> {
        let (seen, why) = match step {
            Step::Wait => return Ok(()),
            Step::Note(seen) => (seen, None),
            Step::Roll { seen, why } => (seen, Some(why)),
        };
        let metadata = workload.meta();
        let mut changed = json!({"metadata": {
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
            "annotations": {ROLLED_FOR: seen},
        }});
        if why.is_some()
            && let Some(fields) = changed.as_object_mut()
        {
            let template = json!({"metadata": {"annotations": {CONFIGURATION: seen}}});
            fields.insert("spec".to_owned(), json!({"template": template}));
        }
        let api: Api<K> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let patch = Patch::Merge(changed);
        let answer = api.patch(&key.name, &PatchParams::default(), &patch).await;
        match taken_in(answer, &api, &self.workloads, &key.name).await {
            Err(error) if code(&error) == Some(404) => return Ok(()),
            written => written.doing("rolling", key)?,
        }
        if let Some(why) = why {
            tracing::info!(kind = %K::kind(&()), %key, why, "rolled on a change");
            self.recorder
                .normal(Reference::to(workload), "RolledOnChange", why);
        }
        Ok(())
    }
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers, recorder: Recorder) {
    let (wanted, is_wanted) = watch::channel(false);
    let deployments = Rolling::<Deployment>::start(&context, informers, &recorder, &wanted);
    let stateful_sets = Rolling::<StatefulSet>::start(&context, informers, &recorder, &wanted);
    let daemon_sets = Rolling::<DaemonSet>::start(&context, informers, &recorder, &wanted);
    let changed = {
        let all = (
            deployments.clone(),
            stateful_sets.clone(),
            daemon_sets.clone(),
        );
        move |source: Source, object: &ObjectMeta| {
            all.0.changed(source, object);
            all.1.changed(source, object);
            all.2.changed(source, object);
        }
    };
    let following = follow(informers, is_wanted, changed);
    tokio::join!(
        context.stop.run_until_cancelled(following),
        deployments.run("rolling of deployments"),
        stateful_sets.run("rolling of statefulsets"),
        daemon_sets.run("rolling of daemonsets"),
    );
}

/// Tells of every change of a ConfigMap or a Secret, from the moment that somebody wants to know.
async fn follow<F>(informers: &Informers, mut is_wanted: watch::Receiver<bool>, changed: F)
where
    F: Fn(Source, &ObjectMeta) + Clone + Send + Sync + 'static,
{
    if is_wanted.wait_for(|is_wanted| *is_wanted).await.is_err() {
        return;
    }
    subscribe::<ConfigMap>(informers, Source::ConfigMap, changed.clone());
    subscribe::<Secret>(informers, Source::Secret, changed);
}

fn subscribe<K>(
    informers: &Informers,
    source: Source,
    changed: impl Fn(Source, &ObjectMeta) + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let objects = informers.of::<PartialObjectMeta<K>>();
    objects.subscribe(Box::new(move |change| {
        let is_same = change.old.map(|old| old.resource_version())
            == change.new.map(|new| new.resource_version());
        if let Some(object) = change.last().filter(|_| !is_same) {
            changed(source, &object.metadata);
        }
    }));
}
