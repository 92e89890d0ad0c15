//! The loop: takes in changes, tries pods one by one against the snapshot, and binds concurrently.
//!
//! One task owns snapshot and queue, so that nothing in the hot path takes a lock. The watches put changes into an
//! inbox; bindings run beside and report there.

mod preempting;

use std::sync::Arc;

use gantry_base::node_affinity::Labels;
use gantry_informer::{EventStyle, Informers, Key, Recorder, words};
use gantry_tasks::{caught, caught_now};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::SchedulerConfig;
use crate::binding;
use crate::budgets::Budgets;
use crate::cycle::{self, Cycle};
use crate::nominations::Nominations;
use crate::pod::PodInfo;
use crate::preemption;
use crate::queue::PodQueue;
use crate::scores;
use crate::search;
use crate::snapshot::Snapshot;
use crate::trial;
use crate::verdict::{Diagnosis, Explanation, note};
use crate::volumes::Storage;

pub(crate) const COMPONENT: &str = "default-scheduler";
/// Bindings under way at once: each waits for the store's disk, and many share one write to it.
const BINDING_AT_ONCE: usize = 128;

enum Update {
    Node(Arc<Node>),
    NodeGone(String),
    Namespace(Arc<str>, Labels),
    NamespaceGone(Arc<str>),
    Budget(Arc<PodDisruptionBudget>),
    BudgetGone(Key),
    /// A claim that came or changed.
    Claim(Key),
    /// A volume that came or changed.
    Volume(Arc<str>),
    Pod(Arc<PodInfo>),
    PodGone(Arc<str>),
    BindingFailed(Arc<str>),
    /// Not all of the pods that were to make room for the one could be told to: they may stay.
    EvictionFailed(Arc<PodInfo>, Vec<Arc<PodInfo>>),
    /// A binding ended: there is room for another.
    Slot,
}

/// Which waiting pods a change may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Helps {
    Nobody,
    /// Those that other pods matter to, beside the room that they take.
    Looking,
    Everybody,
}

impl Helps {
    fn when(helps: bool, whom: Self) -> Self {
        if helps { whom } else { Self::Nobody }
    }
}

#[derive(Default)]
struct Inbox {
    updates: Mutex<Vec<Update>>,
    changed: Notify,
}

impl Inbox {
    fn put(&self, update: Update) {
        self.updates.lock().push(update);
        self.changed.notify_one();
    }
}

struct Recorders {
    scheduling: Recorder,
    binding: Recorder,
}

/// Schedules until stopped.
pub(crate) async fn run(
    client: kube::Client,
    informers: &Informers,
    config: SchedulerConfig,
    stop: CancellationToken,
) {
    let inbox = Arc::new(Inbox::default());
    let nodes = informers.of::<Node>();
    let namespaces = informers.of::<Namespace>();
    let pods = informers.of::<Pod>();
    let budgets = informers.of::<PodDisruptionBudget>();
    let storage = Storage::new(informers);
    nodes.subscribe(Box::new({
        let inbox = inbox.clone();
        move |change| match (change.new, change.old) {
            (Some(node), _) => inbox.put(Update::Node(node.clone())),
            (None, Some(node)) => {
                inbox.put(Update::NodeGone(
                    node.metadata.name.clone().unwrap_or_default(),
                ));
            }
            (None, None) => {}
        }
    }));
    namespaces.subscribe(Box::new({
        let inbox = inbox.clone();
        move |change| {
            let Some(namespace) = change.last() else {
                return;
            };
            let name = Key::of(&namespace.metadata).name;
            inbox.put(match change.new {
                Some(_) => {
                    let labels = namespace.metadata.labels.clone();
                    Update::Namespace(name, labels.unwrap_or_default())
                }
                None => Update::NamespaceGone(name),
            });
        }
    }));
    budgets.subscribe(Box::new({
        let inbox = inbox.clone();
        move |change| match (change.new, change.old) {
            (Some(budget), _) => inbox.put(Update::Budget(budget.clone())),
            (None, Some(budget)) => inbox.put(Update::BudgetGone(Key::of(&budget.metadata))),
            (None, None) => {}
        }
    }));
    storage.claims.subscribe(Box::new({
        let inbox = inbox.clone();
        move |change| {
            if let Some(claim) = change.new {
                inbox.put(Update::Claim(Key::of(&claim.metadata)));
            }
        }
    }));
    storage.volumes.subscribe(Box::new({
        let inbox = inbox.clone();
        move |change| {
            if let Some(volume) = change.new {
                inbox.put(Update::Volume(Key::of(&volume.metadata).name));
            }
        }
    }));
    // Pods after nodes: bound ones need theirs to count on, and nothing is tried before both are known.
    let both = async {
        nodes.synced().await;
        namespaces.synced().await;
        budgets.synced().await;
        storage.synced().await;
        pods.subscribe(Box::new({
            let inbox = inbox.clone();
            move |change| match (change.new, change.old) {
                (Some(pod), old) => {
                    if let Some(old) = old.filter(|old| old.metadata.uid != pod.metadata.uid) {
                        inbox.put(Update::PodGone(uid(old)));
                    }
                    inbox.put(Update::Pod(Arc::new(PodInfo::new(pod))));
                }
                (None, Some(pod)) => inbox.put(Update::PodGone(uid(pod))),
                (None, None) => {}
            }
        }));
        pods.synced().await;
    };
    if stop.run_until_cancelled(both).await.is_none() {
        return;
    }
    let recorder = |action| {
        let style = EventStyle::Series {
            action,
            instance: config.instance.to_string(),
        };
        Recorder::start(
            client.clone(),
            COMPONENT,
            style,
            config.clock.clone(),
            &stop,
        )
    };
    let scheduling = Scheduling {
        recorders: Arc::new(Recorders {
            scheduling: recorder("Scheduling"),
            binding: recorder("Binding"),
        }),
        client,
        config,
        stop: stop.clone(),
        inbox,
        snapshot: Snapshot::default(),
        storage,
        queue: PodQueue::default(),
        nominations: Nominations::default(),
        budgets: Budgets::default(),
        slots: Arc::new(Semaphore::new(BINDING_AT_ONCE)),
        start: 0,
        turn: 0,
        feasible: Vec::new(),
        helps: Helps::Nobody,
    };
    stop.run_until_cancelled(scheduling.run()).await;
}

fn uid(pod: &Pod) -> Arc<str> {
    pod.metadata.uid.as_deref().unwrap_or_default().into()
}

struct Scheduling {
    client: kube::Client,
    config: SchedulerConfig,
    stop: CancellationToken,
    inbox: Arc<Inbox>,
    snapshot: Snapshot,
    storage: Storage,
    queue: PodQueue,
    nominations: Nominations,
    budgets: Budgets,
    recorders: Arc<Recorders>,
    slots: Arc<Semaphore>,
    /// Where the search for nodes begins.
    start: usize,
    /// Which of equally good nodes is taken.
    turn: usize,
    /// Kept between pods for its memory.
    feasible: Vec<usize>,
    /// Whom it may help what changed since waiting pods were last woken.
    helps: Helps,
}

impl Scheduling {
    async fn run(mut self) {
        loop {
            self.take_in();
            let now = Instant::now();
            let mut tried = false;
            while self.slots.available_permits() > 0 {
                let Some(pod) = self.queue.take(now) else {
                    break;
                };
                // A pod that the code did not foresee waits like one that fits nowhere; others are scheduled.
                if let Err(panicked) = caught_now(|| self.try_pod(&pod, now)) {
                    tracing::error!(pod = %pod.key, %panicked, "scheduling a pod broke off; it is tried again");
                    self.queue.park(&pod.uid, now);
                }
                tried = true;
            }
            if tried {
                // Changes may have come meanwhile; and a long queue must not starve the other tasks.
                tokio::task::yield_now().await;
                continue;
            }
            match self.queue.next_due() {
                Some(due) => tokio::select! {
                    () = self.inbox.changed.notified() => {}
                    () = tokio::time::sleep_until(due), if due > now => {}
                },
                None => self.inbox.changed.notified().await,
            }
        }
    }

    fn take_in(&mut self) {
        let updates = std::mem::take(&mut *self.inbox.updates.lock());
        for update in updates {
            match caught_now(|| self.apply(update)) {
                Ok(helps) => self.helps = self.helps.max(helps),
                Err(panicked) => {
                    tracing::error!(%panicked, "the scheduler could not take in a change");
                }
            }
        }
        match std::mem::replace(&mut self.helps, Helps::Nobody) {
            Helps::Nobody => {}
            Helps::Looking => self.queue.wake_looking(Instant::now()),
            Helps::Everybody => self.queue.wake(Instant::now()),
        }
    }

    /// Which waiting pods may fit by what changed.
    fn apply(&mut self, update: Update) -> Helps {
        match update {
            Update::Node(node) => Helps::when(self.snapshot.set_node(&node), Helps::Everybody),
            Update::NodeGone(name) => {
                self.snapshot.remove_node(&name);
                // What is uneven may be even without it.
                Helps::Looking
            }
            Update::Namespace(name, labels) => {
                let changed = self.snapshot.set_namespace(&name, labels);
                Helps::when(changed, Helps::Looking)
            }
            Update::NamespaceGone(name) => {
                self.snapshot.remove_namespace(&name);
                Helps::Nobody
            }
            // Neither keeps a pod from going, nor lets one go: they only say whom rather not.
            Update::Budget(budget) => {
                self.budgets.set(&budget);
                Helps::Nobody
            }
            Update::BudgetGone(key) => {
                self.budgets.remove(&key);
                Helps::Nobody
            }
            Update::Claim(claim) => {
                self.queue.wake_naming(&claim, Instant::now());
                Helps::Nobody
            }
            Update::Volume(name) => {
                for claim in self.storage.claims_of(&name) {
                    self.queue.wake_naming(&claim, Instant::now());
                }
                Helps::Nobody
            }
            Update::Pod(pod) if pod.finished => self.forget(&pod.uid),
            Update::Pod(pod) => {
                if let Some(node) = pod.node.clone() {
                    self.queue.remove(&pod.uid);
                    self.config.verdicts.remove(&pod.uid);
                    let expected = self.nominations.remove(&pod.uid);
                    let elsewhere = expected.is_some_and(|expected| expected != node);
                    let helps = self.helped_by(&pod);
                    self.snapshot.assign(pod, &node);
                    return helps.max(Helps::when(elsewhere, Helps::Everybody));
                }
                if self.snapshot.is_assigned(&pod.uid) {
                    // It is being bound. Should that fail, it is tried again as it is now.
                    let helps = self.helped_by(&pod);
                    self.snapshot.renew(pod);
                    return helps;
                }
                if !pod.is_waiting_for(&self.config.scheduler_name) {
                    self.queue.remove(&pod.uid);
                    self.config.verdicts.remove(&pod.uid);
                    let was_expected = self.nominations.remove(&pod.uid).is_some();
                    return Helps::when(was_expected, Helps::Everybody);
                }
                let was_expected = self.nominations.take_in(&pod);
                self.queue.put(pod);
                Helps::when(was_expected, Helps::Everybody)
            }
            Update::PodGone(uid) => self.forget(&uid),
            Update::BindingFailed(uid) => {
                // Otherwise it was deleted meanwhile, or is bound for all that.
                let Some(pod) = self.snapshot.take_back(&uid) else {
                    return Helps::Nobody;
                };
                if pod.is_waiting_for(&self.config.scheduler_name) {
                    self.nominations.take_in(&pod);
                    self.queue.retry(pod, Instant::now());
                }
                Helps::Everybody
            }
            Update::EvictionFailed(pod, victims) => {
                for victim in &victims {
                    self.nominations.end_leaving(&victim.uid);
                }
                self.queue.wake_one(&pod.uid, Instant::now());
                Helps::Nobody
            }
            Update::Slot => Helps::Nobody,
        }
    }

    /// Which waiting pods may fit by what is new in a pod that counts on a node, or will.
    fn helped_by(&self, pod: &PodInfo) -> Helps {
        if self.snapshot.leaves_room(pod) {
            return Helps::Everybody;
        }
        Helps::when(!self.snapshot.looks_same(pod), Helps::Looking)
    }

    fn forget(&mut self, uid: &str) -> Helps {
        self.queue.remove(uid);
        self.config.verdicts.remove(uid);
        self.nominations.end_leaving(uid);
        let was_expected = self.nominations.remove(uid).is_some();
        let was_there = self.snapshot.unassign(uid);
        Helps::when(was_there || was_expected, Helps::Everybody)
    }

    fn try_pod(&mut self, pod: &Arc<PodInfo>, now: Instant) {
        match self.find(pod) {
            Ok(at) => {
                let node = self.snapshot.nodes()[at].name.clone();
                self.queue.bind(&pod.uid);
                self.config.verdicts.remove(&pod.uid);
                self.snapshot.assign(pod.clone(), &node);
                let expected = self.nominations.remove(&pod.uid);
                let elsewhere = expected.is_some_and(|expected| expected != node);
                self.helps = self.helps.max(Helps::Looking);
                self.helps = self.helps.max(Helps::when(elsewhere, Helps::Everybody));
                self.bind(pod.clone(), node);
            }
            Err(explanation) => {
                self.queue.park(&pod.uid, now);
                self.tell(pod.clone(), &explanation);
                self.config.verdicts.set(&pod.uid, explanation);
            }
        }
    }

    /// The node for the pod, by index.
    fn find(&mut self, pod: &Arc<PodInfo>) -> Result<usize, Explanation> {
        let volumes = match self.storage.of(pod, &self.snapshot) {
            Ok(volumes) => volumes,
            Err(refusal) => {
                let nodes = self.snapshot.nodes().iter().filter(|node| node.present);
                let diagnosis = Diagnosis::beforehand(nodes.map(|node| &node.name), refusal);
                // Nobody's going would help it.
                self.make_room(pod, preemption::Outcome::Vain);
                return Err(diagnosis.explain(pod, self.config.clock.now()));
            }
        };
        cycle::prepare(pod, &mut self.snapshot);
        let mut cycle = Cycle::new(pod, &self.snapshot).with(volumes);
        let nominations = &self.nominations;
        let expected = nominations.node_of(&pod.uid);
        if let Some(at) = expected.and_then(|name| self.snapshot.place(name))
            && trial::check(&mut cycle, &self.snapshot.nodes()[at], nominations).is_ok()
        {
            return Ok(at);
        }
        let mut feasible = std::mem::take(&mut self.feasible);
        feasible.clear();
        let (mut diagnosis, next) = search::search(
            &mut cycle,
            &self.snapshot,
            nominations,
            self.start,
            &mut feasible,
        );
        self.turn = self.turn.wrapping_add(1);
        let best = scores::best(pod, &self.snapshot, &feasible, self.turn);
        self.start = next;
        self.feasible = feasible;
        if let Some(best) = best {
            return Ok(best);
        }
        let (snapshot, budgets, turn) = (&self.snapshot, &self.budgets, self.turn);
        let outcome = preemption::attempt(
            &mut cycle,
            snapshot,
            nominations,
            budgets,
            &mut diagnosis,
            turn,
        );
        drop(cycle);
        self.make_room(pod, outcome);
        Err(diagnosis.explain(pod, self.config.clock.now()))
    }

    fn bind(&self, pod: Arc<PodInfo>, node: Arc<str>) {
        let (client, inbox) = (self.client.clone(), self.inbox.clone());
        let (recorders, slots) = (self.recorders.clone(), self.slots.clone());
        let stop = self.stop.clone();
        // The loop looked for a free slot before it took the pod.
        let slot = slots.try_acquire_owned().ok();
        tokio::spawn(async move {
            let bound = caught(binding::bind(&client, &pod, &node));
            let Some(outcome) = stop.run_until_cancelled(bound).await else {
                return;
            };
            drop(slot);
            match outcome {
                Ok(Ok(())) => {
                    tracing::debug!(pod = %pod.key, node = &*node, "bound");
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    recorders
                        .binding
                        .normal(pod.reference(), "Scheduled", message);
                    inbox.put(Update::Slot);
                }
                Ok(Err(error)) => {
                    tracing::info!(pod = %pod.key, node = &*node, error = words(&error), "binding failed; trying again");
                    inbox.put(Update::BindingFailed(pod.uid.clone()));
                }
                Err(panicked) => {
                    tracing::error!(pod = %pod.key, node = &*node, %panicked, "binding broke off; it is tried again");
                    inbox.put(Update::BindingFailed(pod.uid.clone()));
                }
            }
        });
    }

    fn tell(&self, pod: Arc<PodInfo>, explanation: &Explanation) {
        tracing::debug!(pod = %pod.key, message = explanation.message, "fits nowhere");
        let message = explanation.message.clone();
        let events = &self.recorders.scheduling;
        events.warning(pod.reference(), "FailedScheduling", note(&message));
        let nominated = self.nominations.node_of(&pod.uid).cloned();
        if binding::is_told(&pod, &message, nominated.as_ref()) {
            return;
        }
        let (client, now, stop) = (self.client.clone(), explanation.at, self.stop.clone());
        tokio::spawn(async move {
            let told = binding::tell(&client, &pod, &message, nominated.as_ref(), now);
            if let Some(Err(error)) = stop.run_until_cancelled(told).await {
                tracing::debug!(pod = %pod.key, error = words(&error), "telling that it fits nowhere");
            }
        });
    }
}
