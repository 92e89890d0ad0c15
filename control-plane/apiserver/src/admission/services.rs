//! Services: address families, cluster IPs and node ports. An address or port is unique in the cluster by a key of its
//! own, which is guarded in the transaction that writes the service.

mod addresses;
mod allocation;
mod families;
mod ports;

use gantry_api::status::StatusError;
use gantry_store::Transaction;
use serde_json::Value;

use self::allocation::Allocation;
use super::plugin::{Attributes, Plugin};
use crate::context::{Context, meta};
use crate::ranges::Ranges;

/// Cluster IPs and node ports.
pub(super) struct ServiceAddresses {
    pub(super) ranges: Ranges,
}

impl Plugin for ServiceAddresses {
    fn name(&self) -> &'static str {
        "ServiceAddresses"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "Service")
    }

    fn reserve(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
        current: Option<&Value>,
        transaction: &mut Transaction,
    ) -> Result<bool, StatusError> {
        let is_main = attributes.subresource().is_empty();
        if is_main {
            let (ranges, context) = (&self.ranges, attributes.context);
            allocate(ranges, context, object, current, transaction)?;
        }
        Ok(is_main)
    }

    fn release(&self, _: &Attributes<'_>, object: &Value, transaction: &mut Transaction) {
        addresses::release(object, transaction);
        ports::release(object, transaction);
    }
}

/// Gives the service what it lacks and takes what it no longer uses.
fn allocate(
    ranges: &Ranges,
    context: &Context<'_>,
    service: &mut Value,
    current: Option<&Value>,
    transaction: &mut Transaction,
) -> Result<(), StatusError> {
    if let Some(current) = current {
        ports::keep(service, current);
    }
    families::choose(ranges, context, service, current)?;
    let mut allocation = Allocation {
        ranges,
        context,
        current,
        transaction,
        owner: format!("{}/{}", meta(service, "namespace"), meta(service, "name")),
    };
    addresses::allocate(&mut allocation, service)?;
    ports::allocate(&mut allocation, service)
}

#[cfg(test)]
mod tests;
