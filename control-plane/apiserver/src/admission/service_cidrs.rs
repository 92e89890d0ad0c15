//! ServiceCIDR: the servers' own range serves; any other says of itself that it does not.

use gantry_api::json::Members;
use gantry_api::status::StatusError;
use gantry_store::Transaction;
use serde_json::{Value, json};

use super::plugin::{Attributes, Plugin};
use crate::context::Context;
use crate::ranges::Ranges;

/// Says of a new ServiceCIDR whether services get their addresses from it.
pub(super) struct ServedRanges {
    pub(super) ranges: Ranges,
}

impl Plugin for ServedRanges {
    fn name(&self) -> &'static str {
        "ServiceCIDRReady"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("networking.k8s.io", "ServiceCIDR")
    }

    // Its kind drops a status that a client gives it, so this comes after.
    fn reserve(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
        _current: Option<&Value>,
        _transaction: &mut Transaction,
    ) -> Result<bool, StatusError> {
        mark(&self.ranges, attributes.context, object);
        Ok(true)
    }
}

fn mark(ranges: &Ranges, context: &Context<'_>, object: &mut Value) {
    let own = ranges.service_cidrs();
    let asked = object["spec"]["cidrs"].as_array();
    let serves =
        asked.is_some_and(|cidrs| cidrs.iter().all(|cidr| own.iter().any(|own| cidr == own)));
    let (status, reason, message) = match serves {
        true => ("True", "", "Kubernetes Service CIDR is ready"),
        false => (
            "False",
            "NotServed",
            "services get their addresses from the range that the servers were started with (--service-cidr)",
        ),
    };
    *object.member(&["status", "conditions"]) = json!([{
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": context.api.clock.stamp(),
    }]);
}
