//! What the cluster adds to objects, and what it refuses: an ordered list of small plugins, each asked at the stages of a
//! write that it takes part in (`verbs/write.rs`).

mod default_tolerations;
mod ingresses;
mod namespace_lifecycle;
pub(crate) mod node_restriction;
mod nodes;
mod plugin;
mod pod_security;
mod priority;
mod role_escalation;
mod runtime_classes;
mod service_account;
mod service_cidrs;
mod services;

use std::sync::Arc;

use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use gantry_store::Transaction;
use serde_json::Value;

use crate::ranges::Ranges;

pub(crate) use plugin::{Attributes, Operation, Plugin};

/// The plugins that a write passes, in their order.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) ranges: Ranges,
    plugins: Arc<[Box<dyn Plugin>]>,
}

impl Admission {
    /// The plugins of every cluster, in the order in which Kubernetes has those it knows.
    pub(crate) fn new(ranges: Ranges) -> Self {
        let plugins: Vec<Box<dyn Plugin>> = vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(service_account::ServiceAccount),
            Box::new(node_restriction::NodeRestriction),
            Box::new(role_escalation::RoleEscalation),
            Box::new(nodes::TaintNodes),
            Box::new(pod_security::PodSecurity),
            Box::new(priority::Priority),
            Box::new(default_tolerations::DefaultTolerationSeconds),
            Box::new(runtime_classes::RuntimeClass),
            Box::new(ingresses::DefaultIngressClass),
            Box::new(services::ServiceAddresses {
                ranges: ranges.clone(),
            }),
            Box::new(service_cidrs::ServedRanges {
                ranges: ranges.clone(),
            }),
            Box::new(nodes::PodCidrs),
        ];
        Self::of(ranges, plugins)
    }

    fn of(ranges: Ranges, plugins: Vec<Box<dyn Plugin>>) -> Self {
        let plugins = plugins.into();
        Self { ranges, plugins }
    }

    fn asked<'a>(&'a self, attributes: &'a Attributes<'_>) -> impl Iterator<Item = &'a dyn Plugin> {
        let plugins = self.plugins.iter().map(AsRef::as_ref);
        plugins.filter(|plugin| plugin.handles(attributes))
    }

    /// Completes or refuses an object that has its defaults. Returns whether any plugin was asked.
    pub(crate) async fn admit(
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

    /// Refuses an object that is valid by itself, or warns of it. The last word before it is written.
    pub(crate) fn validate(
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

    /// Refuses a deletion.
    pub(crate) fn delete(&self, attributes: &Attributes<'_>) -> Result<(), StatusError> {
        self.asked(attributes)
            .try_for_each(|plugin| plugin.delete(attributes))
    }

    /// Gives a valid object the cluster-wide unique things it needs, guarded in its own transaction. Returns whether the
    /// object is changed by that.
    pub(crate) fn reserve(
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

    /// Returns what [`Self::reserve`] gave, with the object's removal.
    pub(crate) fn release(
        &self,
        attributes: &Attributes<'_>,
        object: &Value,
        transaction: &mut Transaction,
    ) {
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
