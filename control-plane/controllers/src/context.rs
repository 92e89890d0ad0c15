//! What all controllers share: the client, the clock, the caches.

use std::sync::Arc;

use gantry_informer::object::controller_of;
use gantry_informer::{Clock, EventStyle, Informer, Informers, Recorder};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ReplicationController, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Resource;
use tokio_util::sync::CancellationToken;

use crate::departures::Departures;
use crate::ip_address::index::{OF_PARENT, of_parent};
use crate::load_balancer::index::{BALANCED, BALANCED_PORT, balanced, balanced_ports};
use crate::selecting::Selecting;
use crate::selection::{LABELLED, TEMPLATE_LABELLED, by_service, labelled, template_labelled};

/// Index: objects without controller, by namespace.
pub(crate) const ORPHANS: &str = "orphans";
/// Index: pods by the node they are bound to.
pub(crate) const ON_NODE: &str = "node";

/// Shared by all controllers.
pub(crate) struct Context {
    pub(crate) client: kube::Client,
    pub(crate) clock: Clock,
    pub(crate) stop: CancellationToken,
    pub(crate) deployments: Selecting<Deployment>,
    pub(crate) replica_sets: Selecting<ReplicaSet>,
    pub(crate) replication_controllers: Selecting<ReplicationController>,
    pub(crate) jobs: Selecting<Job>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) services: Selecting<Service>,
    pub(crate) slices: Informer<EndpointSlice>,
    pub(crate) endpoints: Informer<Endpoints>,
    pub(crate) ip_addresses: Informer<IPAddress>,
    pub(crate) cluster_roles: Informer<ClusterRole>,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) service_accounts: Informer<ServiceAccount>,
    /// Only those called `kube-root-ca.crt`.
    pub(crate) root_cas: Informer<ConfigMap>,
    pub(crate) departures: Departures,
}

impl Context {
    /// Asks for the caches that controllers work on; they are filled once this returns, unless stopped before.
    pub(crate) async fn start(
        client: kube::Client,
        informers: &Informers,
        clock: Clock,
        stop: CancellationToken,
    ) -> Option<Arc<Self>> {
        let services = informers
            .of()
            .index(BALANCED, balanced)
            .index(BALANCED_PORT, balanced_ports);
        let context = Arc::new(Self {
            deployments: Selecting::new(informers.of().index(TEMPLATE_LABELLED, template_labelled)),
            replica_sets: Selecting::new(informers.of().index(ORPHANS, orphan)),
            replication_controllers: Selecting::new(informers.of()),
            jobs: Selecting::new(informers.of()),
            pods: informers
                .of()
                .index(ORPHANS, orphan)
                .index(ON_NODE, node)
                .index(LABELLED, labelled),
            nodes: informers.of(),
            services: Selecting::new(services),
            slices: by_service(informers.of()),
            endpoints: informers.of(),
            ip_addresses: informers.of().index(OF_PARENT, of_parent),
            cluster_roles: informers.of(),
            namespaces: informers.of(),
            service_accounts: informers.of(),
            root_cas: informers.only("metadata.name=kube-root-ca.crt"),
            departures: Departures::default(),
            client,
            clock,
            stop: stop.clone(),
        });
        let filled = async {
            context.deployments.synced().await;
            context.replica_sets.synced().await;
            context.replication_controllers.synced().await;
            context.jobs.synced().await;
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

/// The values of [`ORPHANS`].
pub(crate) fn orphan<K: Resource>(object: &K) -> Vec<String> {
    if controller_of(object.meta()).is_some() {
        return Vec::new();
    }
    object.meta().namespace.iter().cloned().collect()
}

fn node(pod: &Pod) -> Vec<String> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    node.into_iter().filter(|node| !node.is_empty()).collect()
}
