//! What the cluster adds to objects, and what it refuses: an ordered list of small plugins, each asked at the stages of a
//! write that it takes part in (`verbs/write.rs`).

mod default_tolerations;
mod ingresses;
mod limit_ranger;
mod mountable_secrets;
mod namespace_lifecycle;
pub(crate) mod node_restriction;
mod nodes;
mod persistent_volumes;
mod plugin;
mod pod_resize;
mod pod_security;
mod priority;
mod resource_quota;
mod role_escalation;
mod runtime_classes;
mod service_account;
mod service_cidrs;
mod services;
mod view;

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use gantry_store::Transaction;
use serde_json::Value;

use crate::context::Admission;
use crate::lines::Place;
use crate::ranges::Ranges;

use plugin::{Attributes, Plugin};

/// The plugins that a write passes, in their order.
pub(crate) struct Chain(Vec<Box<dyn Plugin>>);

impl Chain {
    /// The plugins of every cluster, in the order in which Kubernetes has those it knows.
    pub(crate) fn new(ranges: &Ranges) -> Self {
        Self(vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(limit_ranger::LimitRanger::default()),
            Box::new(service_account::ServiceAccount),
            Box::new(node_restriction::NodeRestriction),
            Box::new(role_escalation::RoleEscalation),
            Box::new(nodes::TaintNodes),
            Box::new(pod_security::PodSecurity),
            Box::new(priority::Priority::default()),
            Box::new(default_tolerations::DefaultTolerationSeconds),
            Box::new(persistent_volumes::DefaultStorageClass::default()),
            Box::new(persistent_volumes::StorageObjectInUseProtection),
            Box::new(persistent_volumes::PhaseTransitions),
            Box::new(persistent_volumes::PersistentVolumeClaimResize),
            Box::new(runtime_classes::RuntimeClass),
            Box::new(ingresses::DefaultIngressClass::default()),
            Box::new(pod_resize::PodResizeValidator),
            Box::new(services::ServiceAddresses {
                ranges: ranges.clone(),
            }),
            Box::new(service_cidrs::ServedRanges {
                ranges: ranges.clone(),
            }),
            Box::new(nodes::PodCidrs),
            Box::new(resource_quota::ResourceQuota::default()),
        ])
    }

    fn asked<'a>(&'a self, attributes: &'a Attributes<'_>) -> impl Iterator<Item = &'a dyn Plugin> {
        let plugins = self.0.iter().map(AsRef::as_ref);
        plugins.filter(|plugin| plugin.handles(attributes))
    }
}

#[async_trait]
impl Admission for Chain {
    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<bool, StatusError> {
        let mut any = false;
        for plugin in self.asked(attributes) {
            let admitted = plugin.admit(attributes, draft).await;
            admitted.inspect_err(|error| refused(plugin, error))?;
            any = true;
        }
        Ok(any)
    }

    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        let mut warnings = Vec::new();
        for plugin in self.asked(attributes) {
            let judged = plugin.validate(attributes, draft);
            warnings.extend(judged.inspect_err(|error| refused(plugin, error))?);
        }
        Ok(warnings)
    }

    fn below(&self, attributes: &Attributes<'_>) -> Result<(), StatusError> {
        self.asked(attributes)
            .try_for_each(|plugin| plugin.below(attributes))
    }

    fn delete(&self, attributes: &Attributes<'_>) -> Result<(), StatusError> {
        self.asked(attributes)
            .try_for_each(|plugin| plugin.delete(attributes))
    }

    fn line(&self, attributes: &Attributes<'_>) -> Option<Place> {
        self.asked(attributes)
            .find_map(|plugin| plugin.line(attributes))
    }

    fn reserve(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
        current: Option<&Value>,
        transaction: &mut Transaction,
    ) -> Result<bool, StatusError> {
        let mut changed = false;
        for plugin in self.asked(attributes) {
            changed |= plugin.reserve(attributes, object, current, transaction)?;
        }
        Ok(changed)
    }

    fn release(&self, attributes: &Attributes<'_>, object: &Value, transaction: &mut Transaction) {
        for plugin in self.asked(attributes) {
            plugin.release(attributes, object, transaction);
        }
    }
}

/// Notes which plugin it was: clients are told why, not by whom.
fn refused(plugin: &dyn Plugin, error: &StatusError) {
    tracing::debug!(plugin = plugin.name(), %error, "refused");
}

#[cfg(test)]
mod tests;
