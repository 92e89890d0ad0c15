//! Disruption: keeps what budgets say of their pods, which is what evictions go by; and takes back what pods say of a
//! disruption that did not come.
//!
//! A change of a pod costs the budgets of its namespace that select it, and nothing where it changes nothing that they count. A
//! budget costs the pods that have one of the labels which it asks for, or those of its namespace where it asks for none with
//! one value.

mod owners;
mod plan;
mod stale;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::by_label::Selecting;
use gantry_api::kinds::pod_disruption_budget::selected as selector_of;
use gantry_informer::object::controller_of;
use gantry_informer::{Informer, Informers, Key, Next, Object, Queue, Recorder, Reference, runner};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use kube::api::{Api, PostParams};
use parking_lot::RwLock;

use self::owners::{Owners, Wanted};
use self::plan::{asks_owners, failed, plan};
use crate::context::Context;
use crate::error::{Doing, Result, code, taken_in};
use crate::pods::is_ready;
use crate::scale::Targets;
use crate::selection::{selected, template_labels};

/// As Kubernetes' events of budgets name their source.
pub(crate) const COMPONENT: &str = "controllermanager";
const AT_ONCE: usize = 16;
/// When a budget is looked at again that could not be counted, if nothing happens before.
const AGAIN: Duration = Duration::from_secs(120);

type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    Budget(Key),
    /// A pod that says it is about to be disrupted.
    Target(Key),
}

struct Controller {
    context: Arc<Context>,
    budgets: Informer<PodDisruptionBudget>,
    owners: Owners,
    recorder: Recorder,
}

/// Budgets by the pods that they select, and what is to be done.
#[derive(Clone, Default)]
struct Waking {
    selecting: Arc<RwLock<Selecting<Key>>>,
    queue: Arc<Queue<Work>>,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers, recorder: Recorder) {
    let controller = Arc::new(Controller {
        budgets: informers.of(),
        owners: Owners {
            deployments: (*context.deployments).clone(),
            replica_sets: (*context.replica_sets).clone(),
            stateful_sets: informers.of(),
            replication_controllers: informers.of(),
            others: Targets::new(context.client.clone()),
        },
        recorder,
        context,
    });
    let stop = controller.context.stop.clone();
    let filled = async {
        controller.budgets.synced().await;
        controller.owners.stateful_sets.synced().await;
        controller.owners.replication_controllers.synced().await;
    };
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    let queue = controller.watched();
    runner::run("disruption", queue, AT_ONCE, stop, move |work| {
        let controller = controller.clone();
        async move {
            match work {
                Work::Budget(key) => controller.settle(&key).await,
                Work::Target(key) => stale::clean(&controller.context, &key).await,
            }
        }
    })
    .await;
}

impl Waking {
    /// The budgets of a namespace that select a pod with these labels.
    fn of(&self, namespace: Option<&String>, labels: Option<&Labels>) -> Vec<Key> {
        let namespace = namespace.map(String::as_str).unwrap_or_default();
        let none = Labels::new();
        let selecting = self.selecting.read();
        let found = selecting.of(namespace, labels.unwrap_or(&none));
        found.into_iter().cloned().collect()
    }

    /// Has them looked at.
    fn wake(&self, budgets: impl IntoIterator<Item = Key>) {
        for key in budgets {
            self.queue.add(Work::Budget(key));
        }
    }

    /// Has the budgets looked at that select the pods of a workload which is to have more or fewer of them.
    fn follow<K: Object>(&self, workloads: &Informer<K>, facts: fn(&K) -> Facts<'_>) {
        let waking = self.clone();
        workloads.subscribe(Box::new(move |change| {
            let (old, new) = (change.old.map(|old| facts(old)), change.new);
            let Some(new) = new else { return };
            let now = facts(new);
            if old.is_some_and(|old| old.replicas == now.replicas) {
                return;
            }
            waking.wake(waking.of(new.meta().namespace.as_ref(), now.labels));
        }));
    }
}

/// What a workload says of its pods.
struct Facts<'a> {
    replicas: Option<i32>,
    labels: Option<&'a Labels>,
}

fn labels_of(template: Option<&PodTemplateSpec>) -> Option<&Labels> {
    template?.metadata.as_ref()?.labels.as_ref()
}

fn of_deployment(deployment: &Deployment) -> Facts<'_> {
    let spec = deployment.spec.as_ref();
    Facts {
        replicas: spec.and_then(|spec| spec.replicas),
        labels: template_labels(deployment),
    }
}

fn of_replica_set(set: &ReplicaSet) -> Facts<'_> {
    let spec = set.spec.as_ref();
    Facts {
        replicas: spec.and_then(|spec| spec.replicas),
        labels: labels_of(spec.and_then(|spec| spec.template.as_ref())),
    }
}

fn of_stateful_set(set: &StatefulSet) -> Facts<'_> {
    let spec = set.spec.as_ref();
    Facts {
        replicas: spec.and_then(|spec| spec.replicas),
        labels: labels_of(spec.map(|spec| &spec.template)),
    }
}

fn of_replication_controller(controller: &ReplicationController) -> Facts<'_> {
    let spec = controller.spec.as_ref();
    Facts {
        replicas: spec.and_then(|spec| spec.replicas),
        labels: labels_of(spec.and_then(|spec| spec.template.as_ref())),
    }
}

/// Whether budgets count both states of a pod alike.
fn counts_alike(old: &Pod, new: &Pod) -> bool {
    let controller = |pod: &Pod| controller_of(&pod.metadata).map(|owner| owner.uid.clone());
    let (before, after) = (&old.metadata, &new.metadata);
    before.uid == after.uid
        && before.labels == after.labels
        && before.deletion_timestamp.is_some() == after.deletion_timestamp.is_some()
        && is_ready(old) == is_ready(new)
        && controller(old) == controller(new)
}

impl Controller {
    /// A queue of what something has happened to.
    fn watched(&self) -> Arc<Queue<Work>> {
        let waking = Waking::default();
        self.budgets.subscribe(Box::new({
            let waking = waking.clone();
            move |change| {
                let Some(budget) = change.last() else { return };
                let key = Key::of(&budget.metadata);
                let mut selecting = waking.selecting.write();
                match change.new {
                    Some(budget) => {
                        let selector = selector_of(budget);
                        selecting.set(&key.namespace, &key.name, selector, key.clone());
                    }
                    None => selecting.remove(&key.namespace, &key.name),
                }
                drop(selecting);
                waking.wake([key]);
            }
        }));
        let owners = &self.owners;
        waking.follow(&owners.deployments, of_deployment);
        waking.follow(&owners.replica_sets, of_replica_set);
        waking.follow(&owners.stateful_sets, of_stateful_set);
        waking.follow(&owners.replication_controllers, of_replication_controller);
        self.context.pods.subscribe(Box::new({
            let (waking, recorder) = (waking.clone(), self.recorder.clone());
            let clock = self.context.clock.clone();
            move |change| {
                if let Some(pod) = change.new
                    && let Some(left) = stale::left(pod, clock.now())
                {
                    let target = Work::Target(Key::of(&pod.metadata));
                    waking.queue.add_after(target, left);
                }
                if let (Some(old), Some(new)) = (change.old, change.new)
                    && counts_alike(old, new)
                {
                    return;
                }
                for pod in [change.old, change.new].into_iter().flatten() {
                    let (namespace, labels) = (&pod.metadata.namespace, &pod.metadata.labels);
                    let budgets = waking.of(namespace.as_ref(), labels.as_ref());
                    if budgets.len() > 1 && change.new.is_some_and(|new| Arc::ptr_eq(new, pod)) {
                        tell_of_many(&recorder, pod, &budgets);
                    }
                    waking.wake(budgets);
                }
            }
        }));
        waking.queue
    }

    /// Brings what a budget says up to date.
    async fn settle(&self, key: &Key) -> Result<Next> {
        let Some(budget) = self.budgets.get(key) else {
            return Ok(Next::Changed);
        };
        let about = Reference::to(&*budget);
        let selector = selector_of(&budget);
        let pods = selected(&self.context.pods, &key.namespace, &selector);
        if pods.is_empty() {
            let message = "No matching pods found".to_owned();
            self.recorder.normal(about.clone(), "NoPods", message);
        }
        let wanted = match asks_owners(&budget) {
            true => self.owners.wanted(&key.namespace, &pods).await,
            false => Ok(Wanted::default()),
        };
        let now = self.context.clock.now();
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(why) => {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                let reason = "CalculateExpectedPodCountFailed";
                self.recorder.warning(about, reason, message);
                self.tell(key, &budget, failed(&budget, &why, now)).await?;
                return Ok(Next::After(AGAIN));
            }
        };
        if !wanted.unmanaged.is_empty() {
            tracing::debug!(budget = %key, pods = ?wanted.unmanaged, "nobody owns pods of a budget");
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            self.recorder.warning(about, "UnmanagedPods", message);
        }
        let plan = plan(&budget, &pods, wanted.pods, now);
        for pod in &plan.stayed {
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder
                .warning(Reference::to(&**pod), "NotDeleted", message);
        }
        self.tell(key, &budget, plan.status).await?;
        Ok(plan.again.map_or(Next::Changed, Next::After))
    }

    /// Writes what a budget is to say, unless somebody has written since: an eviction takes from what was allowed.
    async fn tell(
        &self,
        key: &Key,
        budget: &PodDisruptionBudget,
        status: Option<PodDisruptionBudgetStatus>,
    ) -> Result<()> {
        let Some(status) = status else {
            return Ok(());
        };
        let mut wanted = budget.clone();
        wanted.status = Some(status);
        let api: Api<PodDisruptionBudget> =
            Api::namespaced(self.context.client.clone(), &key.namespace);
        let written = api
            .replace_status(&key.name, &PostParams::default(), &wanted)
            .await;
        match taken_in(written, &api, &self.budgets, &key.name).await {
            Err(error) if code(&error) == Some(404) => Ok(()),
            told => told.doing("counting the pods of budget", key),
        }
    }
}

/// Tells a pod that evictions will not know which of its budgets to go by.
fn tell_of_many(recorder: &Recorder, pod: &Pod, budgets: &[Key]) {
    let (Some(first), key) = (budgets.iter().min(), Key::of(&pod.metadata)) else {
        return;
    };
    let message = format!(
        "Pod {:?}/{:?} matches multiple PodDisruptionBudgets, {:?} among them: evictions of it are refused.",
        key.namespace, key.name, first.name
    );
    let reason = "MultiplePodDisruptionBudgets";
    recorder.warning(Reference::to(pod), reason, message);
}
