//! Services without selectors, and their slices.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const PROBED: &str = "probed";
const PER_SERVICE: usize = 10;
const CLIENTS: usize = 16;

/// Makes and changes them.
pub(crate) struct Objects {
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    /// How many addresses were given to endpoints.
    given: AtomicUsize,
}

fn service(name: &str) -> Result<Service> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }))?)
}

fn slice(service: &str, endpoints: &Value) -> Result<EndpointSlice> {
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))?)
}

fn endpoints(addresses: impl IntoIterator<Item = String>) -> Value {
    let ready = |address| json!({"addresses": [address], "conditions": {"ready": true}});
    addresses.into_iter().map(ready).collect()
}

fn nth(number: usize) -> String {
    format!("service-{number}")
}

impl Objects {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            services: Api::default_namespaced(client.clone()),
            slices: Api::default_namespaced(client),
            given: AtomicUsize::new(0),
        }
    }

    /// How many endpoints so many services have.
    pub(crate) fn endpoints(&self, services: usize) -> usize {
        services * PER_SERVICE
    }

    /// Addresses where nobody is, each given once.
    fn fresh(&self, count: usize) -> Vec<String> {
        let first = self.given.fetch_add(count, Ordering::Relaxed);
        let address = |number: usize| {
            let (net, host) = (number / 250, number % 250 + 1);
            format!("10.{}.{}.{host}", 64 + net / 256, net % 256)
        };
        (first..first + count).map(address).collect()
    }

    /// Creates the service that is measured, leading to one address; returns its own.
    pub(crate) async fn create_probed(&self, address: &str) -> Result<IpAddr> {
        let created = self.make(PROBED, &endpoints([address.to_owned()])).await?;
        let address = created.spec.and_then(|spec| spec.cluster_ip);
        Ok(address.context("it has an address")?.parse()?)
    }

    /// Creates the services of these numbers.
    pub(crate) async fn create(&self, numbers: Range<usize>) -> Result<()> {
        futures::stream::iter(numbers)
            .map(|number| async move {
                let endpoints = endpoints(self.fresh(PER_SERVICE));
                self.make(&nth(number), &endpoints).await.map(drop)
            })
            .buffer_unordered(CLIENTS)
            .try_collect()
            .await
    }

    async fn make(&self, name: &str, endpoints: &Value) -> Result<Service> {
        let parameters = PostParams::default();
        let created = self.services.create(&parameters, &service(name)?).await;
        let created = created.with_context(|| format!("creating {name}"))?;
        let slice = slice(name, endpoints)?;
        let made = self.slices.create(&parameters, &slice).await;
        made.with_context(|| format!("creating the slice of {name}"))?;
        Ok(created)
    }

    async fn set(&self, name: &str, endpoints: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        let parameters = PatchParams::default();
        let slice = format!("{name}-1");
        let changed = self.slices.patch(&slice, &parameters, &patch).await;
        changed
            .map(drop)
            .with_context(|| format!("changing {slice}"))
    }

    /// Replaces the only endpoint of the service that is measured.
    pub(crate) async fn lead_probed_to(&self, address: &str) -> Result<()> {
        self.set(PROBED, &endpoints([address.to_owned()])).await
    }

    /// Replaces one endpoint of a service.
    pub(crate) async fn change_endpoint_of(&self, number: usize) -> Result<()> {
        let name = nth(number);
        let found = self.slices.get(&format!("{name}-1")).await?;
        let addresses = found.endpoints.into_iter().flatten();
        let mut addresses: Vec<String> = addresses.flat_map(|one| one.addresses).collect();
        addresses.splice(0..1, self.fresh(1));
        self.set(&name, &endpoints(addresses)).await
    }
}
