//! IPAddress: one for each cluster IP. The API server writes and removes it with the service; here the rest is mended: one
//! that was deleted since, one whose service is from before there were any, one that has no service.

pub(crate) mod index;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use gantry_informer::{Key, Next, Queue, runner};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use self::index::{MANAGED_BY, MANAGER, OF_PARENT, parent};
use crate::context::Context;
use crate::error::{Doing, Result, code};

const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.services.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            // Of one that is gone too: an address may have come back before that was known.
            let ips = |service: Option<&Arc<Service>>| service.map(|service| cluster_ips(service));
            if let Some(service) = change.last()
                && ips(change.old) != ips(change.new)
            {
                queue.add(Key::of(&service.metadata));
            }
        }
    }));
    context.ip_addresses.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            let parent = change.last().and_then(|address| parent(address));
            // What changes of an address is whether it is there.
            if let Some(service) = parent.filter(|_| change.old.is_none() || change.new.is_none()) {
                queue.add(service);
            }
        }
    }));
    let stop = context.stop.clone();
    runner::run("ip-address", queue, 4, stop, move |key| {
        let context = context.clone();
        async move { reconcile(&context, &key).await }
    })
    .await;
}

async fn reconcile(context: &Context, key: &Key) -> Result<Next> {
    let known = context.services.get(key);
    if is_whole(context, key, known.as_deref()) {
        return Ok(Next::Changed);
    }
    // One cache may lag behind the other: only the API server knows both at once.
    let services: Api<Service> = Api::namespaced(context.client.clone(), &key.namespace);
    let service = services.get_opt(&key.name).await;
    let service = service.doing("looking at service", key)?;
    let current: Vec<IpAddr> = service.iter().flat_map(cluster_ips).collect();
    let api: Api<IPAddress> = Api::all(context.client.clone());
    for address in &current {
        if context.ip_addresses.get(&name(address)).is_some() {
            continue;
        }
        match api
            .create(&PostParams::default(), &object(key, address))
            .await
        {
            Ok(made) => context.ip_addresses.observe(made),
            Err(error) if code(&error) == Some(409) => {}
            Err(error) => return Err(error).doing("telling of the address of service", key),
        }
    }
    for stray in context.ip_addresses.indexed(OF_PARENT, &key.to_string()) {
        if current
            .iter()
            .any(|address| name(address) == Key::of(&stray.metadata))
        {
            continue;
        }
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: stray.metadata.uid.clone(),
            resource_version: None,
        });
        let address = Key::of(&stray.metadata);
        match api.delete(&address.name, &parameters).await {
            Err(error) if !matches!(code(&error), Some(404 | 409)) => {
                return Err(error)
                    .doing("removing the address of a service that is gone", &address);
            }
            _ => {}
        }
    }
    Ok(Next::Changed)
}

/// Whether the service, as far as it is known, has exactly its addresses.
fn is_whole(context: &Context, key: &Key, service: Option<&Service>) -> bool {
    let wanted: BTreeSet<Key> = service
        .into_iter()
        .flat_map(cluster_ips)
        .map(|address| name(&address))
        .collect();
    let found = context.ip_addresses.indexed(OF_PARENT, &key.to_string());
    let found: BTreeSet<Key> = found
        .iter()
        .map(|address| Key::of(&address.metadata))
        .collect();
    wanted == found
}

fn name(address: &IpAddr) -> Key {
    Key::new("", &address.to_string())
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let listed = service
        .spec
        .iter()
        .flat_map(|spec| spec.cluster_ips.iter().flatten());
    listed.filter_map(|text| text.parse().ok()).collect()
}

fn object(service: &Key, address: &IpAddr) -> IPAddress {
    let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
    let labels = [(FAMILY, family), (MANAGED_BY, MANAGER)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(address.to_string()),
            labels: Some(
                labels
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                resource: "services".to_owned(),
                namespace: Some(service.namespace.to_string()),
                name: service.name.to_string(),
                ..ParentReference::default()
            },
        },
    }
}
