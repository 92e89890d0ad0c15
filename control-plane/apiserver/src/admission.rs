//! What the cluster adds to objects, and what it refuses, between decoding and validation.

mod ingresses;
mod namespaces;
mod nodes;
mod pod_security;
mod pods;
mod runtime_classes;
mod service_cidrs;
mod services;

use gantry_api::status::StatusError;
use gantry_store::Transaction;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use crate::context::Context;

/// The cluster's ranges.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// ClusterIPs are allocated here.
    pub service_cidr: Ipv4Net,
    /// Those of a second family, for dual-stack services.
    pub service_cidr_v6: Option<Ipv6Net>,
    /// Node ports are allocated here: first and last.
    pub node_ports: (u16, u16),
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            service_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 12),
            service_cidr_v6: None,
            node_ports: (30000, 32767),
        }
    }
}

impl Ranges {
    /// The range of an address family, when there is one.
    fn of(&self, family: &str) -> Option<IpNet> {
        match family {
            "IPv4" => Some(self.service_cidr.trunc().into()),
            "IPv6" => self.service_cidr_v6.map(|range| range.trunc().into()),
            _ => None,
        }
    }

    /// The families that services can have, the default one first.
    fn families(&self) -> Vec<&'static str> {
        let both = ["IPv4", "IPv6"].into_iter();
        both.filter(|family| self.of(family).is_some()).collect()
    }

    /// All ranges.
    pub(crate) fn service_cidrs(&self) -> Vec<String> {
        let families = self.families().into_iter();
        let ranges = families.filter_map(|family| self.of(family));
        ranges.map(|range| range.to_string()).collect()
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
            ("", "Pod") => {
                pods::admit(context, object).await?;
                match object["spec"].is_object() {
                    true => runtime_classes::admit(context, object),
                    false => Ok(()),
                }
            }
            ("", "Node") => {
                nodes::admit(object);
                Ok(())
            }
            ("networking.k8s.io", "Ingress") => ingresses::admit(context, object),
            _ => Ok(()),
        }
    }

    /// Refuses an object that is valid by itself, or warns of it. The last word before it is written.
    pub(crate) fn validate(
        &self,
        context: &Context<'_>,
        object: &Value,
        current: Option<&Value>,
    ) -> Result<Vec<String>, StatusError> {
        pod_security::validate(context, object, current)
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
            // Its kind drops a status that a client gives it, so this comes after.
            ("networking.k8s.io", "ServiceCIDR") if current.is_none() => {
                service_cidrs::admit(&self.ranges, context, object);
                Ok(())
            }
            ("", "Node") => nodes::allocate(context, object, current, transaction),
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
        match (info.group, info.kind) {
            ("", "Service") => services::release(object, transaction),
            ("", "Node") => nodes::release(context, object, transaction),
            _ => {}
        }
    }
}
