//! One module per kind, each a [`crate::kind::Kind`], and what several of them share.

mod addresses;
pub mod config_map;
pub mod controller_revision;
pub mod cron_job;
pub mod csi_driver;
pub mod csi_node;
pub mod csi_storage_capacity;
pub mod custom_metrics;
pub mod daemon_set;
pub mod deployment;
mod difference;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event;
pub mod external_metrics;
pub mod horizontal_pod_autoscaler;
pub mod ingress;
pub mod ingress_class;
mod internal;
pub mod ip_address;
pub mod job;
pub mod lease;
pub mod limit_range;
pub mod metrics;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_disruption_budget;
pub mod pod_spec;
pub mod pod_template;
pub mod priority_class;
pub mod rbac;
mod references;
pub mod replica_set;
pub mod replication_controller;
pub mod resource_quota;
pub mod reviews;
pub mod runtime_class;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod service_cidr;
pub mod stateful_set;
pub mod storage_class;
pub mod table;
pub mod volume_attachment;
pub mod volume_attributes_class;
pub mod workload;

use crate::kind::ResourceKind;
use crate::typed::Typed;

/// Every built-in kind. Of several versions of one kind, the preferred one is first, and so is that which is stored.
pub fn all() -> Vec<Box<dyn ResourceKind>> {
    vec![
        Typed::<replica_set::ReplicaSetKind>::boxed(),
        Typed::<deployment::DeploymentKind>::boxed(),
        Typed::<pod::PodKind>::boxed(),
        Typed::<service::ServiceKind>::boxed(),
        Typed::<node::NodeKind>::boxed(),
        Typed::<event::EventKind>::boxed(),
        Typed::<event::v1::EventKind>::boxed(),
        Typed::<endpoint_slice::EndpointSliceKind>::boxed(),
        Typed::<endpoints::EndpointsKind>::boxed(),
        Typed::<lease::LeaseKind>::boxed(),
        Typed::<config_map::ConfigMapKind>::boxed(),
        Typed::<namespace::NamespaceKind>::boxed(),
        Typed::<secret::SecretKind>::boxed(),
        Typed::<service_account::ServiceAccountKind>::boxed(),
        Typed::<network_policy::NetworkPolicyKind>::boxed(),
        Typed::<ingress::IngressKind>::boxed(),
        Typed::<ingress_class::IngressClassKind>::boxed(),
        Typed::<ip_address::IpAddressKind>::boxed(),
        Typed::<service_cidr::ServiceCidrKind>::boxed(),
        Typed::<runtime_class::RuntimeClassKind>::boxed(),
        Typed::<csi_node::CsiNodeKind>::boxed(),
        Typed::<csi_driver::CsiDriverKind>::boxed(),
        Typed::<csi_storage_capacity::CsiStorageCapacityKind>::boxed(),
        Typed::<storage_class::StorageClassKind>::boxed(),
        Typed::<volume_attachment::VolumeAttachmentKind>::boxed(),
        Typed::<volume_attributes_class::VolumeAttributesClassKind>::boxed(),
        Typed::<horizontal_pod_autoscaler::HorizontalPodAutoscalerKind>::boxed(),
        Typed::<horizontal_pod_autoscaler::v1::HorizontalPodAutoscalerKind>::boxed(),
        Typed::<daemon_set::DaemonSetKind>::boxed(),
        Typed::<replication_controller::ReplicationControllerKind>::boxed(),
        Typed::<rbac::role::RoleKind>::boxed(),
        Typed::<rbac::cluster_role::ClusterRoleKind>::boxed(),
        Typed::<rbac::role_binding::RoleBindingKind>::boxed(),
        Typed::<rbac::cluster_role_binding::ClusterRoleBindingKind>::boxed(),
        Typed::<pod_disruption_budget::PodDisruptionBudgetKind>::boxed(),
        Typed::<priority_class::PriorityClassKind>::boxed(),
        Typed::<limit_range::LimitRangeKind>::boxed(),
        Typed::<resource_quota::ResourceQuotaKind>::boxed(),
        Typed::<controller_revision::ControllerRevisionKind>::boxed(),
        Typed::<pod_template::PodTemplateKind>::boxed(),
        Typed::<stateful_set::StatefulSetKind>::boxed(),
        Typed::<job::JobKind>::boxed(),
        Typed::<cron_job::CronJobKind>::boxed(),
        Typed::<persistent_volume::PersistentVolumeKind>::boxed(),
        Typed::<persistent_volume_claim::PersistentVolumeClaimKind>::boxed(),
    ]
}
