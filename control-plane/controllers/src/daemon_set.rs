//! DaemonSet: a pod on every node that it fits, and on those alone.
//!
//! A node that changes costs each set a look at that node; only those to which it is another node than before are looked at
//! whole, which costs them their nodes and pods.

mod backoff;
mod placement;
mod plan;
mod pod;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Informer, Informers, Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;

use self::backoff::Failures;
use self::placement::{Place, Placement, places, spots};
use self::plan::{Observed, Plan, Why, plan};
use self::pod::{Version, hash_of, pod_of, revision_of};
use crate::claim::{Claim, claim};
use crate::context::{Context, ON_NODE, ORPHANS, orphan};
use crate::error::{Doing, Error, Result, code, taken_in};
use crate::history::{self, Kept, Naming};
use crate::pod_control::{self, Claiming, Failure, claimed};
use crate::selecting::{Selecting, Selects, Wanted, selector_of};

pub(crate) const COMPONENT: &str = "daemonset-controller";
const AT_ONCE: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Set(Key),
    /// A node that came, went, or is not as it was.
    Node(Arc<str>),
}

/// Nodes that wait in the queue, with all that they were since they were last looked at; none that were not there. A set may have
/// gone by any of it.
type Changed = HashMap<Arc<str>, Vec<Option<Arc<Node>>>>;
/// One that has been more than this is another node to all sets.
const MOST_STATES: usize = 8;

/// What the controller works with.
struct Controller {
    context: Arc<Context>,
    sets: Selecting<DaemonSet>,
    revisions: Informer<ControllerRevision>,
    recorder: Recorder,
    queue: Arc<Queue<Work>>,
    changed: Arc<Mutex<Changed>>,
    failures: Failures,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers, recorder: Recorder) {
    let controller = Arc::new(Controller {
        sets: Selecting::new(informers.of()),
        revisions: informers.of().index(ORPHANS, orphan),
        recorder,
        queue: Arc::default(),
        changed: Arc::default(),
        failures: Failures::default(),
        context,
    });
    let stop = controller.context.stop.clone();
    let filled = async {
        controller.sets.synced().await;
        controller.revisions.synced().await;
    };
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    controller.follow_nodes();
    controller.follow_sets();
    let queue = controller.queue.clone();
    runner::run("daemonset", queue, AT_ONCE, stop, move |work| {
        let controller = controller.clone();
        async move {
            match work {
                Work::Set(key) => controller.reconcile(&key).await,
                Work::Node(name) => {
                    controller.look_at(&name);
                    Ok(Next::Changed)
                }
            }
        }
    })
    .await;
}

impl Selects for DaemonSet {
    fn wanted(&self) -> Option<Wanted<'_>> {
        let spec = self.spec.as_ref()?;
        Some(Wanted::Selector(&spec.selector))
    }
}

impl Controller {
    /// Notes nodes that change in a way that may matter. Those that are here already every set looks at anyway, to begin with.
    fn follow_nodes(&self) {
        let is_following = Arc::new(AtomicBool::new(false));
        self.context.nodes.subscribe(Box::new({
            let (queue, changed) = (self.queue.clone(), self.changed.clone());
            let is_following = is_following.clone();
            move |change| {
                let is_same = change
                    .old
                    .zip(change.new)
                    .is_some_and(|(old, new)| placement::is_same(old, new));
                if is_same || !is_following.load(Ordering::Acquire) {
                    return;
                }
                let Some(node) = change.last() else { return };
                let name = Key::of(&node.metadata).name;
                let mut changed = changed.lock();
                let states = changed.entry(name.clone()).or_default();
                if states.len() <= MOST_STATES {
                    states.push(change.old.cloned());
                }
                drop(changed);
                queue.add(Work::Node(name));
            }
        }));
        is_following.store(true, Ordering::Release);
    }

    /// Queues the sets that something has happened to.
    fn follow_sets(&self) {
        self.sets.subscribe(Box::new({
            let queue = self.queue.clone();
            move |change| {
                if let Some(set) = change.last() {
                    queue.add(Work::Set(Key::of(&set.metadata)));
                }
            }
        }));
        self.context.pods.subscribe(Box::new({
            let (queue, sets) = (self.queue.clone(), self.sets.clone());
            move |change| {
                let states = change.old.zip(change.new);
                if states.is_some_and(|(old, new)| pod::is_same(old, new)) {
                    return;
                }
                for pod in [change.old, change.new].into_iter().flatten() {
                    for key in sets.concerned(&pod.metadata) {
                        queue.add(Work::Set(key));
                    }
                }
            }
        }));
        self.revisions.subscribe(Box::new({
            let (queue, sets) = (self.queue.clone(), self.sets.clone());
            move |change| {
                for revision in [change.old, change.new].into_iter().flatten() {
                    for key in sets.concerned(&revision.metadata) {
                        queue.add(Work::Set(key));
                    }
                }
            }
        }));
    }

    /// Queues the sets to which the node is another than it was.
    fn look_at(&self, name: &Arc<str>) {
        let Some(states) = self.changed.lock().remove(name) else {
            return;
        };
        let now = self.context.nodes.get(&Key::new("", name));
        let pods = self.context.pods.indexed(ON_NODE, name);
        let with_pods: BTreeSet<&str> = pods
            .iter()
            .filter_map(|pod| controller_of(&pod.metadata))
            .map(|owner| owner.uid.as_str())
            .collect();
        for set in self.sets.list() {
            let placement = Placement::of(&set);
            let place = |node: Option<&Arc<Node>>| node.map(|node| placement.place(node));
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            let has_pods = with_pods.contains(uid);
            // One that is not there is as good as one that is to have no pod, as long as it has none.
            let matters = |place: Option<Place>| place.filter(|place| *place != Place::Refused);
            let now = place(now.as_ref());
            let is_other = states.len() > MOST_STATES
                || states.iter().any(|state| {
                    let before = place(state.as_ref());
                    matters(before) != matters(now) || (before != now && has_pods)
                });
            if is_other {
                self.queue.add(Work::Set(Key::of(&set.metadata)));
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next> {
        let Some(set) = self.sets.get(key) else {
            self.failures.forget(key);
            return Ok(Next::Changed);
        };
        let Some(spec) = &set.spec else {
            return Ok(Next::Changed);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Changed);
        }
        let selector = selector_of(&*set);
        if selector.is_everything() {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            let about = Reference::to(&*set);
            self.recorder
                .warning(about, "SelectingAll", message.to_owned());
            return Ok(Next::Changed);
        }
        let client = &self.context.client;
        let revisions = history::claimed(client, &self.revisions, &*set, &selector).await?;
        let before = set.status.as_ref();
        let collisions = before.and_then(|status| status.collision_count);
        let wanted = history::wanted(
            &*set,
            &spec.template,
            &revisions,
            Naming::ByTemplate,
            collisions,
        );
        let current = match history::keep(client, &self.revisions, &*set, wanted).await? {
            Kept::Is(revision) => revision,
            Kept::Collides => return self.count_collision(&set, collisions).await,
        };
        let version = Version::of(&set, &current, &revisions);
        let claiming = Claiming {
            owner: &*set,
            selector: &selector,
            concerns: |_| true,
            finalizer: None,
        };
        let pods = claimed(&self.context, &claiming).await?;
        let nodes = self.context.nodes.list();
        let places = places(&Placement::of(&set), &nodes);
        let now = self.context.clock.now();
        let plan = plan(&Observed {
            set: &set,
            spots: &spots(&places, &pods),
            version: &version,
            held: &self.failures.held(&set, now),
            now,
        });
        let plan_wakes = plan.wake;
        let outcome = self.carry_out(&set, &version, plan).await;
        // What has just been done is in the caches already, and is told of at once.
        let pods = self.own(&set, &selector);
        let now = self.context.clock.now();
        let (status, wake) = status::status(&set, &spots(&places, &pods), &version, now);
        let told = self.write_status(&set, status).await;
        outcome.map_err(|failure| Error::Refused {
            object: key.to_string(),
            why: failure.message,
        })?;
        told?;
        self.forget_history(&set, &current, &revisions, &pods)
            .await?;
        let wake = [plan_wakes, wake].into_iter().flatten().min();
        Ok(wake.map_or(Next::Changed, Next::After))
    }

    /// Makes and deletes pods, as far as it can.
    async fn carry_out(
        &self,
        set: &DaemonSet,
        version: &Version,
        plan: Plan,
    ) -> std::result::Result<(), Failure> {
        if plan.is_idle() {
            return Ok(());
        }
        let (about, recorder) = (Reference::to(set), &self.recorder);
        for removal in &plan.delete {
            let (pod, node) = (Key::of(&removal.pod.metadata), &removal.node);
            match removal.why {
                Why::Failed => {
                    self.failures.note(set, node, self.context.clock.now());
                    let message = format!(
                        "Found failed daemon pod {pod} on node {node}, will try to kill it"
                    );
                    recorder.warning(about.clone(), "FailedDaemonPod", message);
                }
                Why::Succeeded => {
                    let message = format!(
                        "Found succeeded daemon pod {pod} on node {node}, will try to delete it"
                    );
                    recorder.normal(about.clone(), "SucceededDaemonPod", message);
                }
                Why::Superfluous | Why::Outdated => {}
            }
        }
        let new: Vec<Pod> = plan
            .create
            .iter()
            .map(|node| pod_of(set, version, node))
            .collect();
        let victims: Vec<Arc<Pod>> = plan.delete.into_iter().map(|removal| removal.pod).collect();
        let made = pod_control::create(&self.context, recorder, &about, &new).await;
        let deleted = pod_control::delete(&self.context, recorder, &about, &victims).await;
        made.and(deleted)
    }

    /// The pods that are the set's already.
    fn own(&self, set: &DaemonSet, selector: &LabelSelector) -> Vec<Arc<Pod>> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let mut pods = self.context.pods.owned_by(uid);
        pods.retain(|pod| claim(&set.metadata, selector, &pod.metadata) == Claim::Own);
        pods
    }

    /// Deletes revisions beyond the limit that no pod is of. Those that pods are of count, too.
    async fn forget_history(
        &self,
        set: &DaemonSet,
        current: &ControllerRevision,
        revisions: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
    ) -> Result<()> {
        let limit = set
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit);
        let limit = limit.unwrap_or(10);
        if i32::try_from(revisions.len()).is_ok_and(|count| count <= limit) {
            return Ok(());
        }
        let hashes: BTreeSet<&str> = pods.iter().filter_map(|pod| revision_of(pod)).collect();
        let current = history::name_of(current);
        let used = revisions
            .iter()
            .filter(|known| hashes.contains(hash_of(known)));
        let mut live: BTreeSet<&str> = used.map(|known| history::name_of(known)).collect();
        live.remove(current);
        let counted = i32::try_from(live.len()).unwrap_or(i32::MAX);
        let limit = if limit < 0 {
            limit
        } else {
            (limit - counted).max(0)
        };
        live.insert(current);
        let expired = history::expired(revisions, &live, limit);
        history::forget(&self.context.client, &self.revisions, &expired).await
    }

    /// Another object has the name that the set's revision would have: the next has another.
    async fn count_collision(&self, set: &DaemonSet, collisions: Option<i32>) -> Result<Next> {
        let mut status = set.status.clone().unwrap_or_default();
        status.collision_count = Some(collisions.unwrap_or(0).saturating_add(1));
        self.write_status(set, status).await?;
        Err(Error::NotYet {
            object: Key::of(&set.metadata).to_string(),
            why: "the name of its revision is taken, and it will have another".to_owned(),
        })
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let key = Key::of(&set.metadata);
        let api: Api<DaemonSet> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let mut changed = set.clone();
        changed.status = Some(status);
        let written = api
            .replace_status(&key.name, &PostParams::default(), &changed)
            .await;
        match taken_in(written, &api, &self.sets, &key.name).await {
            Err(error) if code(&error) == Some(404) => Ok(()),
            other => other.doing("updating the status of daemon set", &key),
        }
    }
}
