//! Which address families a service has: from what its client says, and what this cluster has.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::status::StatusError;
use serde_json::{Value, json};

use super::allocation::{invalid, listed, service_type};
use crate::context::Context;
use crate::ranges::Ranges;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn family_of(address: &str) -> &'static str {
    match address.contains(':') {
        true => "IPv6",
        false => "IPv4",
    }
}

fn policy_of(service: &Value) -> &str {
    service["spec"]["ipFamilyPolicy"]
        .as_str()
        .unwrap_or_default()
}

/// Completes `ipFamilies` and `ipFamilyPolicy`, or says what the cluster lacks.
pub(super) fn choose(
    ranges: &Ranges,
    context: &Context<'_>,
    service: &mut Value,
    current: Option<&Value>,
) -> Result<(), StatusError> {
    if service_type(service) == "ExternalName" {
        return Ok(());
    }
    let errors = complete(service, current, &ranges.families());
    match errors.is_empty() {
        true => Ok(()),
        false => Err(invalid(context, service, errors)),
    }
}

fn complete(service: &mut Value, current: Option<&Value>, configured: &[&str]) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = ErrorList::default();
    let addresses = listed(service, "clusterIPs");
    let headless = service["spec"]["clusterIP"] == "None";
    let selects = service["spec"]["selector"]
        .as_object()
        .is_some_and(|labels| !labels.is_empty());
    // Without selector the endpoints are somebody else's, of whatever family.
    let bare = headless && !selects;
    let mut families = listed(service, "ipFamilies");
    if !headless {
        let beyond = addresses.iter().skip(families.len());
        families.extend(
            beyond
                .map(|address| family_of(address).to_owned())
                .collect::<Vec<_>>(),
        );
    }
    let policy = match policy_of(service) {
        "" if bare => REQUIRE.to_owned(),
        "" => SINGLE.to_owned(),
        given => given.to_owned(),
    };
    if !bare {
        for (index, family) in families.iter().enumerate() {
            if !configured.contains(&family.as_str()) {
                let path = path.child("ipFamilies").index(index);
                errors.invalid(&path, family, "not configured on this cluster");
            }
        }
        if policy == REQUIRE && configured.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            errors.invalid(&path.child("ipFamilyPolicy"), &policy, detail);
        }
    }
    if families.is_empty() {
        families.extend(configured.first().map(|family| (*family).to_owned()));
    }
    let may_have_both = bare || configured.len() == 2;
    if policy != SINGLE
        && may_have_both
        && families.len() == 1
        && !current.is_some_and(|current| prefers_as_before(service, current))
    {
        let other = ["IPv4", "IPv6"]
            .into_iter()
            .find(|family| *family != families[0]);
        families.extend(other.map(str::to_owned));
    }
    *service.member(&["spec", "ipFamilyPolicy"]) = json!(policy);
    *service.member(&["spec", "ipFamilies"]) = json!(families);
    errors
}

/// Whether a service took what families there were, and asks for nothing else now: it gets no second family only
/// because the cluster has one since.
fn prefers_as_before(service: &Value, current: &Value) -> bool {
    policy_of(service) == PREFER
        && policy_of(current) == PREFER
        && ["ipFamilies", "clusterIPs"]
            .into_iter()
            .all(|field| listed(service, field) == listed(current, field))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[&str] = &["IPv4"];
    const BOTH: &[&str] = &["IPv4", "IPv6"];

    fn chosen(mut service: Value, configured: &[&str]) -> (Vec<String>, String, Vec<String>) {
        let errors = complete(&mut service, None, configured);
        let told = errors.0.iter().map(|error| error.path.to_string());
        let policy = policy_of(&service).to_owned();
        (listed(&service, "ipFamilies"), policy, told.collect())
    }

    #[test]
    fn families_follow_policy_addresses_and_cluster() {
        let cases = [
            (json!({}), ONE, vec!["IPv4"], SINGLE),
            (json!({}), BOTH, vec!["IPv4"], SINGLE),
            (json!({"ipFamilies": ["IPv6"]}), BOTH, vec!["IPv6"], SINGLE),
            (
                json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
                BOTH,
                vec!["IPv6"],
                SINGLE,
            ),
            (json!({"ipFamilyPolicy": PREFER}), ONE, vec!["IPv4"], PREFER),
            (
                json!({"ipFamilyPolicy": PREFER}),
                BOTH,
                vec!["IPv4", "IPv6"],
                PREFER,
            ),
            (
                json!({"ipFamilyPolicy": REQUIRE, "ipFamilies": ["IPv6"]}),
                BOTH,
                vec!["IPv6", "IPv4"],
                REQUIRE,
            ),
            (
                json!({"clusterIP": "None"}),
                ONE,
                vec!["IPv4", "IPv6"],
                REQUIRE,
            ),
            (
                json!({"clusterIP": "None", "selector": {"a": "b"}}),
                ONE,
                vec!["IPv4"],
                SINGLE,
            ),
        ];
        for (spec, configured, families, policy) in cases {
            let (found, found_policy, told) = chosen(json!({"spec": spec}), configured);
            assert_eq!(found, families, "{spec}");
            assert_eq!((found_policy.as_str(), told.len()), (policy, 0), "{spec}");
        }
    }

    #[test]
    fn what_the_cluster_lacks_is_told() {
        let spec = json!({"spec": {"ipFamilies": ["IPv6"], "ipFamilyPolicy": REQUIRE}});
        let (_, _, told) = chosen(spec, ONE);
        assert_eq!(told, ["spec.ipFamilies[0]", "spec.ipFamilyPolicy"]);
    }

    #[test]
    fn a_preference_is_not_looked_at_again_by_itself() {
        let spec = |families: &[&str], policy: &str| {
            json!({"spec": {
                "ipFamilyPolicy": policy, "ipFamilies": families, "clusterIPs": ["10.96.0.9"], "clusterIP": "10.96.0.9"
            }})
        };
        let old = spec(ONE, PREFER);
        let mut same = spec(ONE, PREFER);
        assert!(complete(&mut same, Some(&old), BOTH).is_empty());
        assert_eq!(listed(&same, "ipFamilies"), ONE);
        let mut insists = spec(ONE, REQUIRE);
        assert!(complete(&mut insists, Some(&old), BOTH).is_empty());
        assert_eq!(listed(&insists, "ipFamilies"), BOTH);
    }
}
