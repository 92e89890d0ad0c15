//! One module per kind, each a [`crate::kind::Kind`], and what several of them share.

mod addresses;
pub mod config_map;
pub mod deployment;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod pod_spec;
pub mod replica_set;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod table;
pub mod workload;

use crate::kind::ResourceKind;
use crate::typed::Typed;

/// Every built-in kind.
pub fn all() -> Vec<Box<dyn ResourceKind>> {
    vec![
        Typed::<replica_set::ReplicaSetKind>::boxed(),
        Typed::<deployment::DeploymentKind>::boxed(),
        Typed::<pod::PodKind>::boxed(),
        Typed::<service::ServiceKind>::boxed(),
        Typed::<node::NodeKind>::boxed(),
        Typed::<event::EventKind>::boxed(),
        Typed::<endpoint_slice::EndpointSliceKind>::boxed(),
        Typed::<endpoints::EndpointsKind>::boxed(),
        Typed::<lease::LeaseKind>::boxed(),
        Typed::<config_map::ConfigMapKind>::boxed(),
        Typed::<namespace::NamespaceKind>::boxed(),
        Typed::<secret::SecretKind>::boxed(),
        Typed::<service_account::ServiceAccountKind>::boxed(),
    ]
}
