//! [`Cluster`]: which pods there are and which are behind a service, as the caches of a server that leads say.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_apiserver::NoMetric;
use gantry_base::annotations::WAKES;
use gantry_controllers::{Informers, by_service, slices_of};
use gantry_informer::{Informer, Key};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

/// The caches.
#[derive(Clone)]
struct Caches {
    pods: Informer<Pod>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

/// Pods and services of the cluster; nothing is known of them where this server does not lead.
#[derive(Default)]
pub(crate) struct Cluster(RwLock<Option<Caches>>);

impl Cluster {
    /// Looks into these caches until stopped.
    pub(crate) async fn follow(&self, informers: &Informers, stop: CancellationToken) {
        let caches = Caches {
            pods: informers.of(),
            services: informers.of(),
            slices: by_service(informers.of()),
        };
        let filled = async {
            caches.pods.synced().await;
            caches.services.synced().await;
            caches.slices.synced().await;
        };
        if stop.run_until_cancelled(filled).await.is_none() {
            return;
        }
        *self.0.write() = Some(caches);
        stop.cancelled().await;
        *self.0.write() = None;
    }

    fn caches(&self) -> Result<Caches, NoMetric> {
        let caches = self.0.read().clone();
        caches.ok_or_else(|| {
            NoMetric::Unavailable("the server that leads has only just begun".to_owned())
        })
    }

    /// The uid of a pod.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Result<Option<String>, NoMetric> {
        let pod = self.caches()?.pods.get(&Key::new(namespace, name));
        Ok(pod.and_then(|pod| pod.metadata.uid.clone()))
    }

    /// The uids of the pods that are behind a service, ready or not; none where there is no such service.
    pub(crate) fn behind(
        &self,
        namespace: &str,
        service: &str,
    ) -> Result<Option<BTreeSet<String>>, NoMetric> {
        let caches = self.caches()?;
        let slices = slices_of(&caches.slices, &Key::new(namespace, service));
        if slices.is_empty() {
            return Ok(None);
        }
        Ok(Some(pods_in(&slices)))
    }

    /// Whether connections to a service may wait for pods of it.
    pub(crate) fn is_woken(&self, namespace: &str, service: &str) -> Result<bool, NoMetric> {
        let service = self.caches()?.services.get(&Key::new(namespace, service));
        let annotations = service
            .as_ref()
            .and_then(|service| service.metadata.annotations.as_ref());
        Ok(annotations.is_some_and(|annotations| annotations.contains_key(WAKES)))
    }
}

/// The pods that slices name, each once however many addresses it has.
fn pods_in(slices: &[Arc<EndpointSlice>]) -> BTreeSet<String> {
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    let targets = endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref());
    let pods = targets.filter(|target| target.kind.as_deref() == Some("Pod"));
    pods.filter_map(|target| target.uid.clone()).collect()
}

#[cfg(test)]
mod tests {
    use gantry_informer::Cache;
    use serde_json::json;

    use super::*;

    impl Cluster {
        /// One of these pods in the default namespace, each with its name for a uid, behind a service `front` with two slices,
        /// which is to be woken; one named `side` is not.
        pub(crate) fn of_pods(names: &[&str]) -> Self {
            let stop = CancellationToken::new();
            let pods = Informer::new(Arc::new(Cache::new(Vec::new())), &stop);
            for name in names {
                let pod = json!({"metadata": {
                    "name": name, "namespace": "default", "uid": name, "resourceVersion": "1",
                }});
                pods.observe(serde_json::from_value(pod).expect("a pod"));
            }
            let slices = Informer::new(Arc::new(Cache::new(Vec::new())), &stop);
            let slices = by_service(slices);
            for family in ["IPv4", "IPv6"] {
                let pods = names.iter().map(|name| {
                    json!({
                        "addresses": ["10.0.0.1"], "conditions": {"ready": *name != "db"},
                        "targetRef": {"kind": "Pod", "namespace": "default", "name": name, "uid": name},
                    })
                });
                let others = [json!({"addresses": ["10.0.0.9"]})];
                let slice = json!({
                    "metadata": {
                        "name": format!("front-{family}"), "namespace": "default", "uid": family,
                        "resourceVersion": "1", "labels": {"kubernetes.io/service-name": "front"},
                    },
                    "addressType": family,
                    "endpoints": pods.chain(others).collect::<Vec<_>>(),
                });
                slices.observe(serde_json::from_value(slice).expect("a slice"));
            }
            let services = Informer::new(Arc::new(Cache::new(Vec::new())), &stop);
            for (name, annotations) in [("front", json!({WAKES: "web"})), ("side", json!({}))] {
                let service = json!({"metadata": {
                    "name": name, "namespace": "default", "uid": name, "resourceVersion": "1",
                    "annotations": annotations,
                }});
                services.observe(serde_json::from_value(service).expect("a service"));
            }
            let cluster = Self::default();
            *cluster.0.write() = Some(Caches {
                pods,
                services,
                slices,
            });
            cluster
        }
    }

    #[test]
    fn a_services_slices_lead_to_its_pods() {
        let cluster = Cluster::of_pods(&["db", "web"]);
        let behind = |service| cluster.behind("default", service);
        let both = BTreeSet::from(["db", "web"].map(str::to_owned));
        assert_eq!(behind("front"), Ok(Some(both)));
        assert_eq!(behind("back"), Ok(None));
        assert_eq!(cluster.behind("other", "front"), Ok(None));
        assert_eq!(cluster.pod("default", "web"), Ok(Some("web".to_owned())));
        assert_eq!(cluster.pod("default", "ghost"), Ok(None));
        for (service, is_woken) in [("front", true), ("side", false), ("ghost", false)] {
            assert_eq!(cluster.is_woken("default", service), Ok(is_woken));
        }
    }

    #[test]
    fn nobody_knows_anything_where_nobody_leads() {
        let cluster = Cluster::default();
        assert!(cluster.pod("default", "web").is_err());
        assert!(cluster.behind("default", "front").is_err());
    }
}
