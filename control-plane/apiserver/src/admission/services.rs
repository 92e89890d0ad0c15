//! Services: address families, cluster IPs and node ports. An address or port is unique in the cluster by a key of its
//! own, which is guarded in the transaction that writes the service.

mod addresses;
mod families;
mod ports;

use gantry_api::status::StatusError;
use gantry_store::{Guard, Index, Key, Operation, Transaction};
use serde_json::{Value, json};

use super::plugin::{Attributes, Plugin};
use crate::context::{Context, meta};
use crate::ranges::Ranges;

/// A service that is being written, and what it was.
struct Allocation<'a> {
    ranges: &'a Ranges,
    context: &'a Context<'a>,
    current: Option<&'a Value>,
    transaction: &'a mut Transaction,
    /// `namespace/name`
    owner: String,
}

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

fn free(key: Key, transaction: &mut Transaction) {
    transaction
        .operations
        .push(Operation::Delete { key, last: None });
}

impl Allocation<'_> {
    /// Takes the key for the service, unless somebody has taken it since this server looked.
    fn take(&mut self, key: Key) {
        self.transaction.guards.push(Guard::Absent(key.clone()));
        self.transaction.operations.push(Operation::Put {
            key,
            value: json!(self.owner).to_string().into(),
            index: Index::default(),
        });
    }

    fn refuse(&self, service: &Value, errors: gantry_api::field::ErrorList) -> StatusError {
        invalid(self.context, service, errors)
    }
}

fn invalid(
    context: &Context<'_>,
    service: &Value,
    errors: gantry_api::field::ErrorList,
) -> StatusError {
    StatusError::invalid(context.resource.info(), meta(service, "name"), errors)
}

fn service_type(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

/// The texts of a list in the spec.
fn listed(service: &Value, field: &str) -> Vec<String> {
    service["spec"][field]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests;
