//! What pod workers need of the agent that runs them: objects to follow, somebody to report to, and two waits.

#[cfg(test)]
pub(crate) mod fake;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};

/// The objects that are bound to this node and what they name, as far as they are known: a kubelet's pod, ConfigMap and
/// Secret managers and its lister of services. Nothing here waits.
pub trait Objects: Send + Sync + 'static {
    /// All pods of this node.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// Whether a server has said everything at least once. Until then a pod that is not known may exist.
    fn is_synced(&self) -> bool;
    /// A ConfigMap.
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>>;
    /// A Secret.
    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>>;
    /// A ServiceAccount.
    fn service_account(&self, namespace: &str, name: &str) -> Option<Arc<ServiceAccount>>;
    /// The services of one namespace.
    fn services_of(&self, namespace: &str) -> Vec<Arc<Service>>;
}

/// Whether an Event tells of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// `Normal`
    Normal,
    /// `Warning`
    Warning,
}

/// Where pods' statuses and Events go: a kubelet's status manager and its event recorder. Nothing here waits.
pub trait PodReports: Send + Sync + 'static {
    /// The latest status of a pod, as JSON; one that was not sent yet is replaced.
    fn pod_status(&self, pod: &Pod, status: Vec<u8>);
    /// Everything of a deleted pod is gone from this node.
    fn pod_terminated(&self, pod: &Pod);
    /// The pod no longer exists: nothing more is said about it.
    fn forget(&self, uid: &str);
    /// An Event about a pod, or about one of its containers.
    fn event(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: &str,
    );
}

/// Why a pod's isolation is not in force, worded for its Events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotIsolated(pub String);

/// Keeps to NetworkPolicies what pods send and are sent.
#[async_trait]
pub trait PodIsolation: Send + Sync + 'static {
    /// Isolates a pod that has just been attached, as its policies say; answers when the kernel does it. Until then no
    /// container of it may start.
    async fn isolate(&self, uid: &str, addresses: Vec<IpAddr>) -> Result<(), NotIsolated>;
    /// A pod is about to give its addresses back.
    fn forget(&self, uid: &str);
}

/// Sends services' new connections past pods that end.
#[async_trait]
pub trait TrafficDrain: Send + Sync + 'static {
    /// Returns when the service rules of no node choose one of these addresses any more. While no server says how far the
    /// other nodes are, it does not.
    async fn drained(&self, addresses: &[IpAddr]);
    /// Somebody has not waited for that any longer.
    fn given_up(&self);
}
