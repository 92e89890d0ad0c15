//! A service that is being given addresses and ports, and how it is read.

use gantry_api::status::StatusError;
use gantry_store::{Guard, Index, Key, Operation, Transaction};
use serde_json::{Value, json};

use crate::context::{Context, meta};
use crate::ranges::Ranges;

/// A service that is being written, and what it was.
pub(super) struct Allocation<'a> {
    pub(super) ranges: &'a Ranges,
    pub(super) context: &'a Context<'a>,
    pub(super) current: Option<&'a Value>,
    pub(super) transaction: &'a mut Transaction,
    /// `namespace/name`
    pub(super) owner: String,
}

pub(super) fn free(key: Key, transaction: &mut Transaction) {
    transaction
        .operations
        .push(Operation::Delete { key, last: None });
}

impl Allocation<'_> {
    /// Takes the key for the service, unless somebody has taken it since this server looked.
    pub(super) fn take(&mut self, key: Key) {
        self.transaction.guards.push(Guard::Absent(key.clone()));
        self.transaction.operations.push(Operation::Put {
            key,
            value: json!(self.owner).to_string().into(),
            index: Index::default(),
        });
    }

    pub(super) fn refuse(
        &self,
        service: &Value,
        errors: gantry_api::field::ErrorList,
    ) -> StatusError {
        invalid(self.context, service, errors)
    }
}

pub(super) fn invalid(
    context: &Context<'_>,
    service: &Value,
    errors: gantry_api::field::ErrorList,
) -> StatusError {
    StatusError::invalid(context.resource.info(), meta(service, "name"), errors)
}

pub(super) fn service_type(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

/// The texts of a list in the spec.
pub(super) fn listed(service: &Value, field: &str) -> Vec<String> {
    service["spec"][field]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect()
}
