//! What all controllers share: the client, the clock, the caches.

use std::sync::Arc;

use gantry_informer::object::controller_of;
use gantry_informer::{Cache, Clock, EventStyle, Informer, Recorder};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Resource;
use tokio_util::sync::CancellationToken;

use crate::ip_address::{OF_PARENT, of_parent};
use crate::load_balancer::{BALANCED, BALANCED_PORT, balanced, balanced_ports};
use crate::selection::{LABELLED, OF_SERVICE, Selectors, labelled, of_service};

/// Index: objects without controller, by namespace.
pub(crate) const ORPHANS: &str = "orphans";
/// Index: pods by the node they are bound to.
pub(crate) const ON_NODE: &str = "node";

/// Shared by all controllers.
pub(crate) struct Context {
    pub(crate) client: kube::Client,
    pub(crate) clock: Clock,
    pub(crate) stop: CancellationToken,
    pub(crate) deployments: Arc<Cache<Deployment>>,
    pub(crate) replica_sets: Arc<Cache<ReplicaSet>>,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) nodes: Arc<Cache<Node>>,
    pub(crate) services: Arc<Cache<Service>>,
    pub(crate) selectors: Arc<Selectors>,
    pub(crate) slices: Arc<Cache<EndpointSlice>>,
    pub(crate) endpoints: Arc<Cache<Endpoints>>,
    pub(crate) ip_addresses: Arc<Cache<IPAddress>>,
    pub(crate) cluster_roles: Arc<Cache<ClusterRole>>,
    pub(crate) namespaces: Arc<Cache<Namespace>>,
    /// Only those called `default`.
    pub(crate) service_accounts: Arc<Cache<ServiceAccount>>,
    /// Only those called `kube-root-ca.crt`.
    pub(crate) root_cas: Arc<Cache<ConfigMap>>,
}

impl Context {
    /// Starts the caches; they are filled once this returns, unless stopped before.
    pub(crate) async fn start(
        client: kube::Client,
        clock: Clock,
        stop: CancellationToken,
    ) -> Option<Arc<Self>> {
        let of = || client.clone();
        let services = Informer::all(of())
            .index(BALANCED, balanced)
            .index(BALANCED_PORT, balanced_ports)
            .start(&stop);
        let context = Arc::new(Self {
            selectors: Selectors::of(&services),
            deployments: Informer::all(of()).start(&stop),
            replica_sets: Informer::all(of()).index(ORPHANS, orphan).start(&stop),
            pods: Informer::all(of())
                .index(ORPHANS, orphan)
                .index(ON_NODE, node)
                .index(LABELLED, labelled)
                .start(&stop),
            nodes: Informer::all(of()).start(&stop),
            services,
            slices: Informer::all(of())
                .index(OF_SERVICE, of_service)
                .start(&stop),
            endpoints: Informer::all(of()).start(&stop),
            ip_addresses: Informer::all(of()).index(OF_PARENT, of_parent).start(&stop),
            cluster_roles: Informer::all(of()).start(&stop),
            namespaces: Informer::all(of()).start(&stop),
            service_accounts: Informer::all(of())
                .fields("metadata.name=default")
                .start(&stop),
            root_cas: Informer::all(of())
                .fields("metadata.name=kube-root-ca.crt")
                .start(&stop),
            client,
            clock,
            stop: stop.clone(),
        });
        let filled = async {
            context.deployments.synced().await;
            context.replica_sets.synced().await;
            context.pods.synced().await;
            context.nodes.synced().await;
            context.services.synced().await;
            context.slices.synced().await;
            context.endpoints.synced().await;
            context.ip_addresses.synced().await;
            context.cluster_roles.synced().await;
            context.namespaces.synced().await;
            context.service_accounts.synced().await;
            context.root_cas.synced().await;
        };
        stop.run_until_cancelled(filled).await?;
        Some(context)
    }

    /// A recorder of events in the form that controllers write.
    pub(crate) fn recorder(&self, component: &'static str) -> Recorder {
        Recorder::start(
            self.client.clone(),
            component,
            EventStyle::Counted,
            self.clock.clone(),
            &self.stop,
        )
    }
}

fn orphan<K: Resource>(object: &K) -> Vec<String> {
    if controller_of(object.meta()).is_some() {
        return Vec::new();
    }
    object.meta().namespace.iter().cloned().collect()
}

fn node(pod: &Pod) -> Vec<String> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    node.into_iter().filter(|node| !node.is_empty()).collect()
}
