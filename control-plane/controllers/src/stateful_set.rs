//! StatefulSet: keeps pods that have names and volumes of their own, and brings them to another template in order.

mod claims;
mod effects;
mod identity;
mod plan;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Informer, Informers, Key, Next, Queue, Recorder, runner};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};

use self::identity::Version;
use self::plan::Observed;
use self::status::Revisions;
use crate::claim::{Claim, claim_matching, settle};
use crate::context::{Context, ORPHANS, orphan};
use crate::error::{Doing, Error, Result, code, taken_in};
use crate::history::{self, Kept, Naming};
use crate::selecting::{Selecting, Selects, Wanted, selector_of};

pub(crate) const COMPONENT: &str = "statefulset-controller";
const AT_ONCE: usize = 16;
const KIND: &str = "StatefulSet";
/// Index: pods without controller, by the namespace and name of the set that would have named them so.
const NAMESAKES: &str = "namesakes";

/// What the controller works with.
struct Controller {
    context: Arc<Context>,
    sets: Selecting<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    recorder: Recorder,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers, recorder: Recorder) {
    let controller = Arc::new(Controller {
        sets: Selecting::new(informers.of()),
        pods: context.pods.clone().index(NAMESAKES, namesake),
        claims: informers.of(),
        revisions: informers.of().index(ORPHANS, orphan),
        recorder,
        context,
    });
    let stop = controller.context.stop.clone();
    let filled = async {
        controller.sets.synced().await;
        controller.claims.synced().await;
        controller.revisions.synced().await;
    };
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    let queue = controller.watched();
    runner::run("statefulset", queue, AT_ONCE, stop, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

/// The values of [`NAMESAKES`].
fn namesake(pod: &Pod) -> Vec<String> {
    let set = match controller_of(&pod.metadata) {
        Some(_) => None,
        None => named(&pod.metadata),
    };
    set.map(|set| set.to_string()).into_iter().collect()
}

/// The set that would give that name.
fn named(pod: &ObjectMeta) -> Option<Key> {
    let (set, _) = identity::parse(pod.name.as_deref()?)?;
    Some(Key::new(pod.namespace.as_deref()?, set))
}

impl Selects for StatefulSet {
    fn wanted(&self) -> Option<Wanted<'_>> {
        let spec = self.spec.as_ref()?;
        Some(Wanted::Selector(&spec.selector))
    }
}

/// The sets that a claim's name may tell: `data-a-b-3` is of `b` or of `a-b`.
fn of_claim(claim: &PersistentVolumeClaim) -> impl Iterator<Item = Key> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let named = claim.metadata.name.as_deref().and_then(identity::parse);
    let named = named.map(|(name, _)| name).unwrap_or_default();
    let dashes = named.match_indices('-');
    dashes.map(move |(at, _)| Key::new(namespace, &named[at + 1..]))
}

impl Controller {
    /// A queue of the sets that something has happened to.
    fn watched(&self) -> Arc<Queue<Key>> {
        let queue = Arc::new(Queue::<Key>::default());
        self.sets.subscribe(Box::new({
            let queue = queue.clone();
            move |change| {
                if let Some(set) = change.last() {
                    queue.add(Key::of(&set.metadata));
                }
            }
        }));
        self.pods.subscribe(Box::new({
            let (queue, sets) = (queue.clone(), self.sets.clone());
            move |change| {
                for pod in [change.old, change.new].into_iter().flatten() {
                    let concerned = match controller_of(&pod.metadata) {
                        Some(owner) if owner.kind == KIND => {
                            let namespace = pod.metadata.namespace.as_deref();
                            Some(Key::new(namespace.unwrap_or_default(), &owner.name))
                        }
                        Some(_) => None,
                        // One that a set would adopt, or one that has the name of another that a set would make.
                        None => named(&pod.metadata).filter(|key| sets.get(key).is_some()),
                    };
                    if let Some(key) = concerned {
                        queue.add(key);
                    }
                }
            }
        }));
        self.claims.subscribe(Box::new({
            let (queue, sets) = (queue.clone(), self.sets.clone());
            move |change| {
                let concerned = change.last().into_iter().flat_map(|claim| of_claim(claim));
                for key in concerned.filter(|key| sets.get(key).is_some()) {
                    queue.add(key);
                }
            }
        }));
        self.revisions.subscribe(Box::new({
            let (queue, sets) = (queue.clone(), self.sets.clone());
            move |change| {
                for revision in [change.old, change.new].into_iter().flatten() {
                    for key in sets.concerned(&revision.metadata) {
                        queue.add(key);
                    }
                }
            }
        }));
        queue
    }

    async fn reconcile(&self, key: &Key) -> Result<Next> {
        let Some(set) = self.sets.get(key) else {
            return Ok(Next::Changed);
        };
        let Some(spec) = set.spec.as_ref() else {
            return Ok(Next::Changed);
        };
        let selector = selector_of(&*set);
        let client = &self.context.client;
        let revisions = history::claimed(client, &self.revisions, &*set, &selector).await?;
        let pods = self.claimed(&set, &selector).await?;
        let before = set.status.as_ref();
        let collisions = before.and_then(|status| status.collision_count);
        let collisions = collisions.unwrap_or(0);
        let wanted = history::wanted(
            &*set,
            &spec.template,
            &revisions,
            Naming::ByData,
            Some(collisions),
        );
        let is_leaving = set.metadata.deletion_timestamp.is_some();
        if is_leaving && !matches!(wanted, history::Wanted::Latest(_)) {
            // What it was meant to become matters to nobody any more.
            return Ok(Next::Changed);
        }
        let update = match history::keep(client, &self.revisions, &*set, wanted).await? {
            Kept::Is(revision) => revision,
            Kept::Collides => return self.count_collision(&set, collisions).await,
        };
        let current = before.and_then(|status| status.current_revision.as_deref());
        let current = revisions
            .iter()
            .find(|known| Some(history::name_of(known)) == current)
            .unwrap_or(&update);
        let version = |revision: &ControllerRevision| Version {
            name: history::name_of(revision).to_owned(),
            template: history::template_of(revision).unwrap_or_else(|| spec.template.clone()),
        };
        let (current_version, update_version) = (version(current), version(&update));
        let phases = plan::plan(&Observed {
            set: &set,
            pods: &pods,
            claims: &|name| self.claims.get(&Key::new(&key.namespace, name)),
            current: &current_version,
            update: &update_version,
            now: self.context.clock.now(),
        });
        let outcome = self.carry_out(&set, phases).await;
        // What has just been done is in the caches already, and is told of at once.
        let pods = self.own(&set, &selector);
        let of = Revisions {
            current: &current_version.name,
            update: &update_version.name,
            collisions,
        };
        let (status, wake) = status::status(&set, &pods, of, self.context.clock.now());
        let mut live: BTreeSet<&str> = pods
            .iter()
            .filter_map(|pod| identity::revision_of(pod))
            .collect();
        live.extend([of.current, of.update]);
        live.extend(status.current_revision.as_deref());
        let told = self.write_status(&set, status.clone()).await;
        outcome?;
        told?;
        if !is_leaving {
            let limit = spec.revision_history_limit.unwrap_or(10);
            let expired = history::expired(&revisions, &live, limit);
            history::forget(client, &self.revisions, &expired).await?;
        }
        Ok(wake.map_or(Next::Changed, Next::After))
    }

    /// Whether a pod is the set's to have: by its labels, and by its name.
    fn claim(&self, set: &StatefulSet, selector: &LabelSelector, pod: &Pod) -> Claim {
        let matches = identity::ordinal_of(set, &pod.metadata).is_some()
            && selector.matches_map(pod.metadata.labels.as_ref());
        claim_matching(&set.metadata, matches, &pod.metadata)
    }

    /// The pods that are the set's, after adopting and releasing.
    async fn claimed(&self, set: &StatefulSet, selector: &LabelSelector) -> Result<Vec<Arc<Pod>>> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let key = Key::of(&set.metadata).to_string();
        let mut pods = self.pods.owned_by(uid);
        pods.extend(self.pods.indexed(NAMESAKES, &key));
        let decided = pods.into_iter().map(|pod| {
            let decision = self.claim(set, selector, &pod);
            (pod, decision)
        });
        let decided = decided.collect();
        settle(&self.context.client, set, &self.pods, decided).await
    }

    /// The pods that are the set's already.
    fn own(&self, set: &StatefulSet, selector: &LabelSelector) -> Vec<Arc<Pod>> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let mut pods = self.pods.owned_by(uid);
        pods.retain(|pod| self.claim(set, selector, pod) == Claim::Own);
        pods
    }

    /// Another object has the name that the set's revision would have: the next has another.
    async fn count_collision(&self, set: &StatefulSet, collisions: i32) -> Result<Next> {
        let mut status = set.status.clone().unwrap_or_default();
        status.collision_count = Some(collisions.saturating_add(1));
        self.write_status(set, status).await?;
        Err(Error::NotYet {
            object: Key::of(&set.metadata).to_string(),
            why: "the name of its revision is taken, and it will have another".to_owned(),
        })
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = Key::of(&set.metadata);
        let api: Api<StatefulSet> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let mut changed = set.clone();
        changed.status = Some(status);
        let written = api
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await;
        match taken_in(written, &api, &self.sets, &key.name).await {
            Err(error) if code(&error) == Some(404) => Ok(()),
            other => other.doing("updating the status of stateful set", &key),
        }
    }
}
