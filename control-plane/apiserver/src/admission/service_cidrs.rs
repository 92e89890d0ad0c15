//! ServiceCIDR: the servers' own range serves; any other says of itself that it does not.

use gantry_api::json::Members;
use serde_json::{Value, json};

use super::Ranges;
use crate::context::Context;

/// Says in the status of a new ServiceCIDR whether services get their addresses from it.
pub(super) fn admit(ranges: &Ranges, context: &Context<'_>, object: &mut Value) {
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
