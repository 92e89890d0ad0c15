//! What the cluster adds to objects, and what it refuses, between decoding and validation.

mod namespaces;
mod nodes;
mod pods;
mod services;

use gantry_api::status::StatusError;
use gantry_store::Transaction;
use ipnet::Ipv4Net;
use serde_json::Value;

use crate::context::Context;

/// The cluster's ranges.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// ClusterIPs are allocated here.
    pub service_cidr: Ipv4Net,
    /// Node ports are allocated here: first and last.
    pub node_ports: (u16, u16),
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            service_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 12),
            node_ports: (30000, 32767),
        }
    }
}

/// All admission steps, in order.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) ranges: Ranges,
}

impl Admission {
    /// Completes or refuses a new object, before its kind's defaults and validation.
    pub(crate) async fn create(
        &self,
        context: &Context<'_>,
        object: &mut Value,
    ) -> Result<(), StatusError> {
        let info = context.resource.info();
        namespaces::admit_content(context, object)?;
        match (info.group, info.kind) {
            ("", "Pod") => pods::admit(context, object).await,
            ("", "Node") => {
                nodes::admit(object);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Refuses a deletion.
    pub(crate) fn delete(&self, context: &Context<'_>) -> Result<(), StatusError> {
        namespaces::admit_deletion(context)
    }

    /// Gives a valid object the cluster-wide unique things it needs, guarded in its own transaction.
    pub(crate) fn allocate(
        &self,
        context: &Context<'_>,
        object: &mut Value,
        current: Option<&Value>,
        transaction: &mut Transaction,
    ) -> Result<(), StatusError> {
        let info = context.resource.info();
        match (info.group, info.kind) {
            ("", "Service") => {
                services::allocate(&self.ranges, context, object, current, transaction)
            }
            _ => Ok(()),
        }
    }

    /// Returns what [`Self::allocate`] gave, with the object's removal.
    pub(crate) fn release(
        &self,
        context: &Context<'_>,
        object: &Value,
        transaction: &mut Transaction,
    ) {
        let info = context.resource.info();
        if (info.group, info.kind) == ("", "Service") {
            services::release(object, transaction);
        }
    }
}
