//! EndpointSlice: where the pods of each service can be reached.

pub(crate) mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gantry_informer::{Key, Next, Queue, runner};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams};
use parking_lot::Mutex;

use self::plan::{MANAGER, Plan, manager};
use crate::context::{Context, ON_NODE};
use crate::error::{Doing, Result, code, namespace_terminating, taken_in};
use crate::pods::readiness_changed;
use crate::selection::{pods_of, selector, service_of};

const AT_ONCE: usize = 16;
const ZONE: &str = "topology.kubernetes.io/zone";

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    wake_on_changes(&context, &queue);
    wake_on_zones(&context, &queue);
    context.slices.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(slice) = change.last()
                && manager(slice) == Some(MANAGER)
                && let Some(service) = service_of(slice)
            {
                queue.add(service);
            }
        }
    }));
    let triggers = Arc::new(Triggers::default());
    let stop = context.stop.clone();
    runner::run("endpointslice", queue, AT_ONCE, stop, move |key| {
        let (context, triggers) = (context.clone(), triggers.clone());
        async move { reconcile(&context, &triggers, &key).await }
    })
    .await;
}

/// Queues each service whose endpoints a change of services or pods may concern.
pub(crate) fn wake_on_changes(context: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    context.services.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(service) = change.last() {
                queue.add(Key::of(&service.metadata));
            }
        }
    }));
    context.pods.subscribe(Box::new({
        let (queue, services) = (queue.clone(), context.services.clone());
        move |change| {
            if let (Some(old), Some(new)) = (change.old, change.new)
                && same_endpoint(old, new)
            {
                return;
            }
            for pod in change.old.into_iter().chain(change.new) {
                for service in services.selecting(&pod.metadata) {
                    queue.add(service);
                }
            }
        }
    }));
}

/// Queues the services with pods on a node that is in another zone than before.
fn wake_on_zones(context: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    context.nodes.subscribe(Box::new({
        let (queue, pods) = (queue.clone(), context.pods.clone());
        let services = context.services.clone();
        move |change| {
            let Some(node) = change.new else { return };
            if change.old.and_then(|old| zone(old)) == zone(node) {
                return;
            }
            let name = node.metadata.name.as_deref().unwrap_or_default();
            for pod in pods.indexed(ON_NODE, name) {
                for service in services.selecting(&pod.metadata) {
                    queue.add(service);
                }
            }
        }
    }));
}

/// Whether a change of a pod leaves all that endpoints tell of it as it was.
fn same_endpoint(old: &Pod, new: &Pod) -> bool {
    fn told(pod: &Pod) -> impl PartialEq + '_ {
        let status = pod.status.as_ref();
        (
            pod.metadata.labels.as_ref(),
            pod.metadata.deletion_timestamp.is_some(),
            crate::pods::is_finished(pod),
            crate::pods::is_ready(pod),
            status.and_then(|status| status.pod_ip.as_ref()),
            status.and_then(|status| status.pod_ips.as_ref()),
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()),
        )
    }
    told(old) == told(new)
}

async fn reconcile(context: &Context, triggers: &Triggers, key: &Key) -> Result<Next> {
    let service = match context.services.get(key) {
        Some(service) if service.metadata.deletion_timestamp.is_none() => service,
        _ => {
            triggers.forget(key);
            return Ok(Next::Changed);
        }
    };
    if selector(&service).is_none() {
        return Ok(Next::Changed);
    }
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    let pods = pods_of(&context.pods, &service);
    let mut existing = context.slices.owned_by(uid);
    existing.retain(|slice| {
        slice.metadata.deletion_timestamp.is_none() && manager(slice) == Some(MANAGER)
    });
    let last_change = triggers.latest(key, &service, &pods);
    let zones = zones(context, &pods);
    let plan = plan::plan(&service, &pods, &zones, &existing, last_change.as_deref());
    carry_out(context, key, &plan).await
}

/// Writes what a plan says of the slices of a service.
pub(crate) async fn carry_out(context: &Context, key: &Key, plan: &Plan) -> Result<Next> {
    let api: Api<EndpointSlice> = Api::namespaced(context.client.clone(), &key.namespace);
    for slice in &plan.create {
        match api.create(&PostParams::default(), slice).await {
            Ok(slice) => context.slices.observe(slice),
            Err(error) if namespace_terminating(&error) => return Ok(Next::Changed),
            Err(error) => return Err(error).doing("creating an endpoint slice of service", key),
        }
    }
    for slice in &plan.update {
        let slice_key = Key::of(&slice.metadata);
        let written = api
            .replace(&slice_key.name, &PostParams::default(), slice)
            .await;
        taken_in(written, &api, &context.slices, &slice_key.name)
            .await
            .doing("updating endpoint slice", &slice_key)?;
    }
    for slice in &plan.delete {
        let slice_key = Key::of(&slice.metadata);
        match api.delete(&slice_key.name, &DeleteParams::default()).await {
            Ok(_) => {
                let uid = slice.metadata.uid.as_deref().unwrap_or_default();
                context.slices.observe_gone(&slice_key, uid);
            }
            Err(error) if code(&error) == Some(404) => {}
            Err(error) => return Err(error).doing("deleting endpoint slice", &slice_key),
        }
    }
    Ok(Next::Changed)
}

fn zones(context: &Context, pods: &[Arc<Pod>]) -> BTreeMap<String, String> {
    let mut zones = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
            continue;
        };
        if zones.contains_key(node) {
            continue;
        }
        let known = context.nodes.get(&Key::new("", node));
        if let Some(zone) = known.as_ref().and_then(|node| zone(node)) {
            zones.insert(node.to_owned(), zone.clone());
        }
    }
    zones
}

fn zone(node: &Node) -> Option<&String> {
    let labels = node.metadata.labels.as_ref()?;
    labels.get(ZONE).filter(|zone| !zone.is_empty())
}

/// When what made the endpoints change took place: the earliest cause not yet told of. By it, the delay from a pod's
/// change to the rules on the nodes can be measured.
#[derive(Default)]
pub(crate) struct Triggers {
    seen: Mutex<HashMap<Key, Seen>>,
}

#[derive(Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl Triggers {
    pub(crate) fn latest(&self, key: &Key, service: &Service, pods: &[Arc<Pod>]) -> Option<String> {
        let mut all = self.seen.lock();
        let seen = all.entry(key.clone()).or_default();
        let created = service
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let mut causes = Vec::new();
        if created > seen.service {
            causes.extend(created);
            seen.service = created;
        }
        let mut current = HashMap::with_capacity(pods.len());
        for pod in pods {
            let (Some(uid), Some(changed)) = (pod.metadata.uid.as_ref(), readiness_changed(pod))
            else {
                continue;
            };
            if seen.pods.get(uid).is_none_or(|before| *before < changed) {
                causes.push(changed);
            }
            current.insert(uid.clone(), changed);
        }
        seen.pods = current;
        let earliest = causes.into_iter().min()?;
        Some(earliest.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }

    pub(crate) fn forget(&self, key: &Key) {
        self.seen.lock().remove(key);
    }
}
