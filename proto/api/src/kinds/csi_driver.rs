//! CSIDriver: what a storage driver needs of the cluster.

use std::collections::HashSet;

use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, TokenRequest};
use serde_json::{Value, json};

use super::table::{self, Printer, field_doc};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::{meta, parts};

/// See [`CSIDriver`].
pub struct CsiDriverKind;

const PERSISTENT: &str = "Persistent";
const MODES: [&str; 2] = [PERSISTENT, "Ephemeral"];
const GROUP_POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];
/// In seconds.
const SHORTEST_TOKEN: i64 = 600;
/// See [`SHORTEST_TOKEN`].
const LONGEST_TOKEN: i64 = 1 << 32;
/// In seconds: how often a node may look how many volumes it can have.
const SHORTEST_PERIOD: i64 = 10;

fn validate_tokens(requests: &[TokenRequest], path: &Path, errors: &mut ErrorList) {
    let mut audiences = HashSet::new();
    for (index, request) in requests.iter().enumerate() {
        let path = path.index(index);
        if !audiences.insert(&request.audience) {
            errors.duplicate(&path.child("audience"), &request.audience);
            continue;
        }
        let Some(seconds) = request.expiration_seconds else {
            continue;
        };
        let path = path.child("expirationSeconds");
        if seconds < SHORTEST_TOKEN {
            let detail = "may not specify a duration less than 10 minutes";
            errors.invalid(&path, seconds, detail);
        }
        if seconds > LONGEST_TOKEN {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errors.invalid(&path, seconds, detail);
        }
    }
}

fn validate_spec(spec: &CSIDriverSpec, errors: &mut ErrorList) {
    let path = Path::new("spec");
    for (field, given) in [
        ("attachedRequired", spec.attach_required),
        ("podInfoOnMount", spec.pod_info_on_mount),
        ("storageCapacity", spec.storage_capacity),
    ] {
        if given.is_none() {
            errors.required(&path.child(field), "");
        }
    }
    if let Some(policy) = spec.fs_group_policy.as_deref()
        && !GROUP_POLICIES.contains(&policy)
    {
        errors.not_supported(&path.child("fsGroupPolicy"), policy, &GROUP_POLICIES);
    }
    let requests = spec.token_requests.as_deref().unwrap_or_default();
    validate_tokens(requests, &path.child("tokenRequests"), errors);
    for mode in spec.volume_lifecycle_modes.iter().flatten() {
        if !MODES.contains(&mode.as_str()) {
            errors.not_supported(&path.child("volumeLifecycleModes"), mode, &MODES);
        }
    }
    if spec.se_linux_mount.is_none() {
        errors.required(&path.child("seLinuxMount"), "");
    }
    let period = spec.node_allocatable_update_period_seconds;
    if let Some(period) = period.filter(|period| *period < SHORTEST_PERIOD) {
        let path = path.child("nodeAllocatableUpdatePeriodSeconds");
        let detail = "must be greater than or equal to 10 seconds";
        errors.invalid(&path, period, detail);
    }
    if let Some(in_secrets) = spec.service_account_token_in_secrets
        && requests.is_empty()
    {
        let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        let path = path.child("serviceAccountTokenInSecrets");
        errors.invalid(&path, in_secrets, detail);
    }
}

/// What of a spec is behind a gate in Kubernetes that is closed.
fn drop_gated(spec: &mut CSIDriverSpec, old: Option<&CSIDriverSpec>) {
    if old.is_none_or(|old| old.prevent_pod_scheduling_if_missing.is_none()) {
        spec.prevent_pod_scheduling_if_missing = None;
    }
}

fn row(spec: &CSIDriverSpec) -> [Value; 6] {
    let tokens = spec.token_requests.as_ref().map(|requests| {
        let audiences = requests.iter().map(|request| request.audience.as_str());
        audiences.collect::<Vec<&str>>().join(",")
    });
    let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
    [
        json!(spec.attach_required.unwrap_or(true)),
        json!(spec.pod_info_on_mount.unwrap_or(false)),
        json!(spec.storage_capacity.unwrap_or(false)),
        json!(tokens.as_deref().unwrap_or("<unset>")),
        json!(spec.requires_republish.unwrap_or(false)),
        json!(table::or_none(modes.join(","))),
    ]
}

impl Kind for CsiDriverKind {
    type Object = CSIDriver;

    const INFO: StaticInfo = StaticInfo {
        group: "storage.k8s.io",
        version: "v1",
        kind: "CSIDriver",
        plural: "csidrivers",
        singular: "csidriver",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<CSIDriver> = parts!(CSIDriver: spec);

    const UNCONDITIONAL_UPDATE: bool = false;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut CSIDriver) {
        let spec = &mut object.spec;
        spec.attach_required.get_or_insert(true);
        spec.pod_info_on_mount.get_or_insert(false);
        spec.storage_capacity.get_or_insert(false);
        let policy = &mut spec.fs_group_policy;
        policy.get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
        let modes = spec.volume_lifecycle_modes.get_or_insert_default();
        if modes.is_empty() {
            modes.push(PERSISTENT.to_owned());
        }
        spec.requires_republish.get_or_insert(false);
        spec.se_linux_mount.get_or_insert(false);
    }

    fn prepare_create(object: &mut CSIDriver) {
        drop_gated(&mut object.spec, None);
        // Only changes are counted.
        object.metadata.generation = None;
    }

    fn validate(object: &CSIDriver, errors: &mut ErrorList) {
        validate_spec(&object.spec, errors);
    }

    fn prepare_update(new: &mut CSIDriver, old: &CSIDriver) {
        drop_gated(&mut new.spec, Some(&old.spec));
    }

    fn validate_update(new: &CSIDriver, old: &CSIDriver, errors: &mut ErrorList) {
        validate_spec(&new.spec, errors);
        let path = Path::new("spec");
        let (now, before) = (&new.spec, &old.spec);
        if now.attach_required != before.attach_required {
            let path = path.child("attachedRequired");
            errors.invalid(&path, now.attach_required, meta::IMMUTABLE);
        }
        if now.volume_lifecycle_modes != before.volume_lifecycle_modes {
            let path = path.child("volumeLifecycleModes");
            errors.invalid(&path, &now.volume_lifecycle_modes, meta::IMMUTABLE);
        }
    }

    fn warnings(new: &CSIDriver, old: Option<&CSIDriver>) -> Vec<String> {
        let spec = &new.spec;
        let requests = spec.token_requests.as_ref().filter(|list| !list.is_empty());
        let before = old.map(|old| old.spec.token_requests.as_ref());
        let is_new = before.is_none_or(|before| before != requests);
        let unsaid = spec.service_account_token_in_secrets.is_none();
        let warning = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes";
        match requests.is_some() && is_new && unsaid {
            true => vec![warning.to_owned()],
            false => Vec::new(),
        }
    }

    fn printer() -> Printer<CSIDriver> {
        let column =
            |name, kind, field| table::column(name, kind, field_doc::<CSIDriverSpec>(field), 0);
        let columns = [
            column("AttachRequired", "boolean", "attachRequired"),
            column("PodInfoOnMount", "boolean", "podInfoOnMount"),
            column("StorageCapacity", "boolean", "storageCapacity"),
            column("TokenRequests", "string", "tokenRequests"),
            column("RequiresRepublish", "boolean", "requiresRepublish"),
            column("Modes", "string", "volumeLifecycleModes"),
        ];
        let printer = Printer::<CSIDriver>::named();
        printer
            .columns(columns, |object, _| row(&object.spec))
            .age()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(spec: Value) -> CSIDriver {
        let driver = json!({"metadata": {"name": "d"}, "spec": spec});
        let mut driver = serde_json::from_value(driver).expect("a driver");
        CsiDriverKind::default(&mut driver);
        driver
    }

    fn refused(spec: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        CsiDriverKind::validate(&driver(spec), &mut errors);
        errors.told()
    }

    #[test]
    fn tokens_are_for_different_ones_and_last_for_a_while() {
        assert_eq!(refused(json!({})), [""; 0]);
        assert_eq!(
            refused(json!({"tokenRequests": [
                {"audience": "a"}, {"audience": "a", "expirationSeconds": 1}, {"audience": "b", "expirationSeconds": 1}]})),
            [
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                "spec.tokenRequests[2].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes",
            ]
        );
        assert_eq!(
            refused(
                json!({"serviceAccountTokenInSecrets": true, "fsGroupPolicy": "x", "volumeLifecycleModes": ["y"]})
            ),
            [
                "spec.fsGroupPolicy: Unsupported value: \"x\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
                "spec.volumeLifecycleModes: Unsupported value: \"y\": supported values: \"Persistent\", \"Ephemeral\"",
                "spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no tokenRequests are specified",
            ]
        );
    }

    #[test]
    fn a_driver_that_starts_to_want_tokens_is_warned_of() {
        let with = |audience: &str| driver(json!({"tokenRequests": [{"audience": audience}]}));
        let told =
            |new: &CSIDriver, old: Option<&CSIDriver>| CsiDriverKind::warnings(new, old).len();
        assert_eq!(told(&with("a"), None), 1);
        assert_eq!(told(&with("a"), Some(&with("b"))), 1);
        assert_eq!(told(&with("a"), Some(&with("a"))), 0);
        assert_eq!(told(&driver(json!({})), None), 0);
    }
}
