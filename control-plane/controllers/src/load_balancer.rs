//! Services of type LoadBalancer, balanced by the cluster itself: the addresses of its nodes, each of which serves the
//! service's own ports. A service with another class is somebody else's, and so is one without a class whose status
//! somebody else has written.

pub(crate) mod index;
mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_informer::clock::seconds;
use gantry_informer::{Key, Next, Queue, Recorder, Reference, runner};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use self::index::{ALL, BALANCED, BALANCED_PORT, balanced, balanced_ports, ports};
use self::plan::{Change, Plan, balances, is_local, serves};
use crate::context::Context;
use crate::error::{Doing, Result, code, taken_in};
use crate::selection::{service_of, slices_of};

pub(crate) const COMPONENT: &str = "service-controller";

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, recorder: Recorder) {
    let queue = Arc::new(Queue::<Key>::default());
    context.services.subscribe(Box::new({
        let (queue, services) = (queue.clone(), context.services.clone());
        move |change| {
            for service in change.old.into_iter().chain(change.new) {
                if balanced(service).is_empty() {
                    continue;
                }
                queue.add(Key::of(&service.metadata));
            }
            // Ports that it had may now be another's.
            let Some(old) = change.old.filter(|old| serves(old)) else {
                return;
            };
            if change
                .new
                .is_some_and(|new| serves(new) && balanced_ports(new) == balanced_ports(old))
            {
                return;
            }
            for port in balanced_ports(old) {
                for other in services.indexed(BALANCED_PORT, &port) {
                    queue.add(Key::of(&other.metadata));
                }
            }
        }
    }));
    context.nodes.subscribe(Box::new({
        let (queue, services) = (queue.clone(), context.services.clone());
        move |change| {
            if change.old.map(|node| plan::addresses(node))
                == change.new.map(|node| plan::addresses(node))
            {
                return;
            }
            for service in services.indexed(BALANCED, ALL) {
                queue.add(Key::of(&service.metadata));
            }
        }
    }));
    context.slices.subscribe(Box::new({
        let (queue, services) = (queue.clone(), context.services.clone());
        move |change| {
            let key = change.last().and_then(|slice| service_of(slice));
            let service = key.as_ref().and_then(|key| services.get(key));
            if let (Some(key), Some(service)) = (key, service)
                && balances(&service)
                && is_local(&service)
            {
                queue.add(key);
            }
        }
    }));
    let stop = context.stop.clone();
    // One at a time: two services that want the same port must not get it at once.
    runner::run("load-balancer", queue, 1, stop, move |key| {
        let (context, recorder) = (context.clone(), recorder.clone());
        async move { reconcile(&context, &recorder, &key).await }
    })
    .await;
}

async fn reconcile(context: &Context, recorder: &Recorder, key: &Key) -> Result<Next> {
    let Some(service) = context.services.get(key) else {
        return Ok(Next::Changed);
    };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Changed);
    }
    let nodes = context.nodes.list();
    let local = is_local(&service).then(|| {
        let slices = slices_of(&context.slices, key);
        with_endpoints(&slices)
    });
    let rival = rival(context, key, &service);
    let Some(plan) = plan::plan(&service, &nodes, local.as_ref(), rival.as_deref()) else {
        return Ok(Next::Changed);
    };
    tell(recorder, &service, &plan);
    if !plan.write {
        return Ok(Next::Changed);
    }
    let now = seconds(context.clock.now());
    let conditions = plan.conditions(&service, now);
    let patch = json!({
        // Nobody's change is overwritten: somebody else may balance it by now.
        "metadata": {"resourceVersion": service.metadata.resource_version},
        "status": {
            "loadBalancer": {"ingress": Some(&plan.ingress).filter(|ingress| !ingress.is_empty())},
            "conditions": Some(conditions).filter(|conditions| !conditions.is_empty()),
        },
    });
    let api: Api<Service> = Api::namespaced(context.client.clone(), &key.namespace);
    let parameters = PatchParams::default();
    let written = api
        .patch_status(&key.name, &parameters, &Patch::Merge(patch))
        .await;
    match taken_in(written, &api, &context.services, &key.name).await {
        Ok(()) => Ok(Next::Changed),
        Err(error) if code(&error) == Some(404) => Ok(Next::Changed),
        Err(error) => Err(error).doing("writing the load balancer's addresses of service", key),
    }
}

/// The port of the nodes that the API or another service is served on already.
fn rival(context: &Context, key: &Key, service: &Service) -> Option<String> {
    let api = context.services.get(&Key::new("default", "kubernetes"));
    let api_ports: Vec<String> = api
        .iter()
        .flat_map(|api| ports(api))
        .filter_map(|port| match &port.target_port {
            Some(IntOrString::Int(number)) => Some(format!("{number}/TCP")),
            _ => None,
        })
        .collect();
    for port in balanced_ports(service) {
        if api_ports.contains(&port) {
            return Some(format!(
                "port {port} of the nodes serves the Kubernetes API"
            ));
        }
        let others = context.services.indexed(BALANCED_PORT, &port);
        let holder = others
            .iter()
            .filter(|other| serves(other))
            .map(|other| Key::of(&other.metadata))
            .find(|other| other != key);
        if let Some(holder) = holder {
            return Some(format!("port {port} of the nodes serves service {holder}"));
        }
    }
    None
}

/// The nodes with endpoints that take requests.
fn with_endpoints(slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints
        .filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready) != Some(false)
        })
        .filter_map(|endpoint| endpoint.node_name.clone())
        .collect()
}

fn tell(recorder: &Recorder, service: &Service, plan: &Plan) {
    let about = Reference::to(service);
    let text = |words: &str| words.to_owned();
    match &plan.change {
        Change::None => {}
        Change::Given => {
            recorder.normal(about, "EnsuredLoadBalancer", text("Ensured load balancer"));
        }
        Change::Moved => {
            let words = "Updated load balancer with new hosts";
            recorder.normal(about, "UpdatedLoadBalancer", text(words));
        }
        Change::Unavailable => {
            let words = "There are no available nodes for LoadBalancer";
            recorder.warning(about, "UnAvailableLoadBalancer", text(words));
        }
        Change::Refused(why) => {
            let words = format!("Error syncing load balancer: {why}");
            recorder.warning(about, "SyncLoadBalancerFailed", words);
        }
    }
}
