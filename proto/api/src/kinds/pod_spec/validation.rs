//! The checks of a pod's spec, in the order in which Kubernetes makes them.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{PodResourceClaim, PodSpec, ResourceRequirements, Volume};
use serde::Serialize;

use super::every::all_containers;
use super::volumes::{self, Volumes};
use super::{containers, network, resources, scheduling, security, windows};
use crate::field::{ErrorList, Path};
use crate::{meta, names};

const DEFAULT_GRACE_PERIOD: i64 = 30;
const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

/// What of a pod its volumes and containers are checked against.
pub(super) struct Surroundings<'a> {
    /// The pod's name, of a pod and not of a template.
    pub(super) pod_name: Option<&'a str>,
    pub(super) is_pod: bool,
    /// Those without fault.
    pub(super) volumes: Volumes<'a>,
    pub(super) grace_period: i64,
    pub(super) host_users: bool,
    pub(super) restart_policy: &'a str,
    /// The names of the pod's claims of devices.
    pub(super) claims: BTreeSet<&'a str>,
}

/// The names of a pod's claims of devices.
pub(super) fn claims(spec: &PodSpec) -> BTreeSet<&str> {
    let claims = spec.resource_claims.iter().flatten();
    claims.map(|claim| claim.name.as_str()).collect()
}

/// A claim as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedClaim<'a> {
    name: &'a str,
    resource_claim_name: Option<&'a str>,
    resource_claim_template_name: Option<&'a str>,
}

fn check_claims(claims: &[PodResourceClaim], path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let path = path.index(index);
        let name = claim.name.as_str();
        let name_path = path.child("name");
        if name.is_empty() {
            errors.required(&name_path, "");
        } else if !seen.insert(name) {
            errors.duplicate(&name_path, name);
        } else {
            errors.invalid_each(&name_path, name, names::dns1123_label(name));
        }
        let printed = PrintedClaim {
            name,
            resource_claim_name: claim.resource_claim_name.as_deref(),
            resource_claim_template_name: claim.resource_claim_template_name.as_deref(),
        };
        let (direct, template) = (
            printed.resource_claim_name,
            printed.resource_claim_template_name,
        );
        if direct.is_some() && template.is_some() {
            let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            errors.invalid(&path, printed, detail);
        }
        if direct.is_none() && template.is_none() {
            let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.invalid(&path, printed, detail);
        }
        for (field, name) in [
            ("resourceClaimName", direct),
            ("resourceClaimTemplateName", template),
        ] {
            if let Some(name) = name {
                errors.invalid_each(&path.child(field), name, names::dns1123_subdomain(name));
            }
        }
    }
}

fn check_subdomain(name: Option<&str>, path: &Path, errors: &mut ErrorList) {
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        errors.invalid_each(path, name, names::dns1123_subdomain(name));
    }
}

/// Checks that variables out of files have them in volumes that hold nothing else. Wrong sources were told before.
fn check_files(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let volumes = spec.volumes.iter().flatten();
    let by_name: HashMap<&str, &Volume> = volumes
        .map(|volume| (volume.name.as_str(), volume))
        .collect();
    for (container, path) in all_containers(spec, path) {
        for (index, variable) in container.env.into_iter().flatten().enumerate() {
            let source = variable.value_from.as_ref();
            let Some(file) = source.and_then(|source| source.file_key_ref.as_ref()) else {
                continue;
            };
            let path = path.child("env").index(index).child("valueFrom");
            let path = path.child("fileKeyRef").child("volumeName");
            let name = &file.volume_name;
            match by_name.get(name.as_str()) {
                None => errors.not_found(&path, name),
                Some(volume) if volume.empty_dir.is_none() => {
                    let detail = "referenced volume must be of type emptyDir";
                    errors.invalid(&path, name, detail);
                }
                Some(_) => {}
            }
        }
    }
}

fn check_node_selector(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let path = path.child("nodeSelector");
    meta::validate_label_map(spec.node_selector.as_ref(), &path, errors);
}

/// What a pod's spec says after its containers.
fn check_rest(spec: &PodSpec, is_pod: bool, path: &Path, errors: &mut ErrorList) {
    resources::validate_pod(spec, &path.child("resources"), errors);
    security::validate_host_network(spec, is_pod, path, errors);
    let policy_path = path.child("restartPolicy");
    match spec.restart_policy.as_deref().unwrap_or_default() {
        "" => errors.required(&policy_path, ""),
        policy if RESTART_POLICIES.contains(&policy) => {}
        policy => errors.not_supported(&policy_path, policy, &RESTART_POLICIES),
    }
    let policy = spec.dns_policy.as_deref();
    network::validate_dns_policy(policy, &path.child("dnsPolicy"), errors);
    check_node_selector(spec, path, errors);
    security::validate_pod(spec, path, errors);
    scheduling::validate_affinity(spec.affinity.as_ref(), &path.child("affinity"), errors);
    network::validate_dns_config(spec, &path.child("dnsConfig"), errors);
    scheduling::validate_all_gates(spec, path, errors);
    scheduling::validate_spreading(
        spec.topology_spread_constraints
            .as_deref()
            .unwrap_or_default(),
        &path.child("topologySpreadConstraints"),
        errors,
    );
    windows::check_host_processes(spec, path, errors);
    security::validate_users(spec, path, errors);
    network::validate_override(spec, &path.child("hostnameOverride"), errors);
    for (field, name) in [
        ("serviceAccountName", &spec.service_account_name),
        ("nodeName", &spec.node_name),
    ] {
        check_subdomain(name.as_deref(), &path.child(field), errors);
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, &detail);
    }
    network::validate_names(spec, path, errors);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    scheduling::validate_tolerations(tolerations, &path.child("tolerations"), errors);
    network::validate_host_aliases(spec, &path.child("hostAliases"), errors);
    check_classes(spec, path, errors);
    if let Some(overhead) = &spec.overhead {
        let amounts = ResourceRequirements {
            limits: Some(overhead.clone()),
            ..ResourceRequirements::default()
        };
        resources::validate(&amounts, &path.child("overhead"), errors);
    }
    windows::check_system(spec, path, errors);
    check_files(spec, path, errors);
}

fn check_classes(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    const POLICIES: [&str; 2] = ["PreemptLowerPriority", "Never"];
    let class = spec.priority_class_name.as_deref();
    check_subdomain(class, &path.child("priorityClassName"), errors);
    if let Some(class) = &spec.runtime_class_name {
        let path = path.child("runtimeClassName");
        errors.invalid_each(&path, class, names::dns1123_subdomain(class));
    }
    let path = path.child("preemptionPolicy");
    match spec.preemption_policy.as_deref() {
        None => {}
        Some("") => errors.required(&path, ""),
        Some(policy) if POLICIES.contains(&policy) => {}
        Some(policy) => errors.not_supported(&path, policy, &POLICIES),
    }
}

fn check(
    spec: Option<&PodSpec>,
    pod_name: Option<&str>,
    is_pod: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let empty = PodSpec::default();
    let spec = spec.unwrap_or(&empty);
    let mut surroundings = Surroundings {
        pod_name,
        is_pod,
        volumes: Volumes::new(),
        grace_period: spec
            .termination_grace_period_seconds
            .unwrap_or(DEFAULT_GRACE_PERIOD),
        host_users: spec.host_users.unwrap_or(true),
        restart_policy: spec.restart_policy.as_deref().unwrap_or_default(),
        claims: claims(spec),
    };
    let list = spec.volumes.as_deref().unwrap_or_default();
    let list_path = path.child("volumes");
    surroundings.volumes = volumes::validate(list, &surroundings, &list_path, errors);
    let list = spec.resource_claims.as_deref().unwrap_or_default();
    check_claims(list, &path.child("resourceClaims"), errors);
    containers::validate(spec, &surroundings, path, errors);
    containers::validate_init(spec, &surroundings, path, errors);
    containers::validate_ephemeral(spec, &surroundings, path, errors);
    check_rest(spec, is_pod, path, errors);
}

/// Checks the spec of a template. `None` is checked as an empty one.
pub fn validate(spec: Option<&PodSpec>, path: &Path, errors: &mut ErrorList) {
    check(spec, None, false, path, errors);
}

/// As [`validate`], with what is asked of pods and not of templates; `name` is the pod's.
pub fn validate_for_pod(
    spec: Option<&PodSpec>,
    name: Option<&str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    check(spec, name, true, path, errors);
    let Some(spec) = spec else {
        return;
    };
    let account = spec.service_account_name.as_deref().unwrap_or_default();
    if account.is_empty() {
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            let sources = volume
                .projected
                .as_ref()
                .and_then(|projected| projected.sources.as_ref());
            for (source_index, source) in sources.into_iter().flatten().enumerate() {
                if source.service_account_token.is_some() {
                    let path = path.child("volumes").index(index).child("projected");
                    let path = path.child("sources").index(source_index);
                    let detail = "must not be specified when serviceAccountName is not set";
                    errors.forbidden(&path.child("serviceAccountToken"), detail);
                }
            }
        }
    }
    containers::validate_images(&spec.containers, &path.child("containers"), errors);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    containers::validate_images(init, &path.child("initContainers"), errors);
}
