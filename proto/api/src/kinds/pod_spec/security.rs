//! What a pod and its containers may do, and as whom.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile, SecurityContext,
    Sysctl, WindowsSecurityContextOptions,
};
use serde::Serialize;

use super::every::all_containers;
use super::volumes::check_descending;
use super::windows;
use crate::field::{ErrorList, Path};

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
/// The longest name of a profile that AppArmor takes.
const MAX_APP_ARMOR_NAME: usize = 4095;
const SYSCTL: &str = r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// Checks a user's or group's number.
fn check_id(id: Option<i64>, path: &Path, errors: &mut ErrorList) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        let detail = format!("must be between 0 and {}, inclusive", i32::MAX);
        errors.invalid(path, id, &detail);
    }
}

/// Checks what kind of a profile there is; `field` is the profile's.
fn check_type(kind: &str, field: &str, path: &Path, errors: &mut ErrorList) {
    let path = path.child("type");
    match kind {
        "" => errors.required(&path, &format!("type is required when {field} is set")),
        kind if PROFILES.contains(&kind) => {}
        kind => errors.not_supported(&path, kind, &PROFILES),
    }
}

fn check_seccomp(profile: Option<&SeccompProfile>, path: &Path, errors: &mut ErrorList) {
    const FIELD: &str = "seccompProfile";
    let Some(profile) = profile else {
        return;
    };
    let path = path.child(FIELD);
    check_type(&profile.type_, FIELD, &path, errors);
    let path = path.child("localhostProfile");
    let file = profile.localhost_profile.as_deref();
    match (profile.type_.as_str(), file) {
        ("Localhost", None) => {
            errors.required(&path, "must be set when seccomp type is Localhost");
        }
        ("Localhost", Some(file)) => check_descending(file, &path, errors),
        (kind, Some(_)) => {
            let printed = PrintedProfile {
                r#type: kind,
                localhost_profile: file,
            };
            let detail = "can only be set when seccomp type is Localhost";
            errors.invalid(&path, printed, detail);
        }
        (_, None) => {}
    }
}

fn check_app_armor(profile: Option<&AppArmorProfile>, path: &Path, errors: &mut ErrorList) {
    const FIELD: &str = "appArmorProfile";
    const MISSING: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = profile else {
        return;
    };
    let path = path.child(FIELD);
    check_type(&profile.type_, FIELD, &path, errors);
    let path = path.child("localhostProfile");
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", None) => errors.required(&path, MISSING),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errors.invalid(&path, name, "must not be padded with whitespace");
            } else if name.is_empty() {
                errors.required(&path, MISSING);
            }
            if name.trim().len() > MAX_APP_ARMOR_NAME {
                errors.too_long(&path, MAX_APP_ARMOR_NAME);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            let detail = "can only be set when AppArmor type is Localhost";
            errors.invalid(&path, name, detail);
        }
        _ => {}
    }
}

/// A container's security context as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Printed<'a> {
    capabilities: Option<PrintedCapabilities<'a>>,
    privileged: Option<bool>,
    #[serde(rename = "SELinuxOptions")]
    selinux_options: Option<&'a SELinuxOptions>,
    windows_options: Option<&'a WindowsSecurityContextOptions>,
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
    run_as_non_root: Option<bool>,
    read_only_root_filesystem: Option<bool>,
    allow_privilege_escalation: Option<bool>,
    proc_mount: Option<&'a str>,
    seccomp_profile: Option<PrintedProfile<'a>>,
    app_armor_profile: Option<PrintedProfile<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedCapabilities<'a> {
    add: Option<&'a Vec<String>>,
    drop: Option<&'a Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedProfile<'a> {
    r#type: &'a str,
    localhost_profile: Option<&'a str>,
}

impl<'a> From<&'a SecurityContext> for Printed<'a> {
    fn from(context: &'a SecurityContext) -> Self {
        let capabilities = context.capabilities.as_ref();
        let seccomp = context.seccomp_profile.as_ref();
        let app_armor = context.app_armor_profile.as_ref();
        Self {
            capabilities: capabilities.map(|capabilities| PrintedCapabilities {
                add: capabilities.add.as_ref(),
                drop: capabilities.drop.as_ref(),
            }),
            privileged: context.privileged,
            selinux_options: context.se_linux_options.as_ref(),
            windows_options: context.windows_options.as_ref(),
            run_as_user: context.run_as_user,
            run_as_group: context.run_as_group,
            run_as_non_root: context.run_as_non_root,
            read_only_root_filesystem: context.read_only_root_filesystem,
            allow_privilege_escalation: context.allow_privilege_escalation,
            proc_mount: context.proc_mount.as_deref(),
            seccomp_profile: seccomp.map(|profile| PrintedProfile {
                r#type: &profile.type_,
                localhost_profile: profile.localhost_profile.as_deref(),
            }),
            app_armor_profile: app_armor.map(|profile| PrintedProfile {
                r#type: &profile.type_,
                localhost_profile: profile.localhost_profile.as_deref(),
            }),
        }
    }
}

/// Checks a container's own context.
pub(super) fn validate_container(
    context: Option<&SecurityContext>,
    host_users: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(context) = context else {
        return;
    };
    check_id(context.run_as_user, &path.child("runAsUser"), errors);
    check_id(context.run_as_group, &path.child("runAsGroup"), errors);
    let mount_path = path.child("procMount");
    match context.proc_mount.as_deref() {
        None | Some("Default") => {}
        Some("Unmasked") => {
            if host_users {
                let detail = "`hostUsers` must be false to use `Unmasked`";
                errors.invalid(&mount_path, "Unmasked", detail);
            }
        }
        Some(other) => errors.not_supported(&mount_path, other, &["Default", "Unmasked"]),
    }
    check_seccomp(context.seccomp_profile.as_ref(), path, errors);
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, Printed::from(context), detail);
        }
        let capabilities = context.capabilities.as_ref();
        let added = capabilities
            .and_then(|capabilities| capabilities.add.as_ref())
            .into_iter()
            .flatten();
        for _ in added.filter(|capability| *capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, Printed::from(context), detail);
        }
    }
    windows::check_options(context.windows_options.as_ref(), path, errors);
    check_app_armor(context.app_armor_profile.as_ref(), path, errors);
}

fn is_sysctl(name: &str) -> bool {
    let segment = |segment: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = segment.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if inner(first) && inner(last))
            && bytes
                .iter()
                .all(|&byte| inner(byte) || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

/// The field of a pod that makes a setting its host's own. Whoever begins with a slash has parts between slashes.
fn host_field(sysctl: &str) -> Option<&'static str> {
    let first = sysctl.find(['.', '/']);
    let slashes = first.is_some_and(|first| sysctl.as_bytes()[first] == b'/');
    let name = if slashes {
        sysctl
            .replace('.', "\n")
            .replace('/', ".")
            .replace('\n', "/")
    } else {
        sysctl.to_owned()
    };
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name == "kernel.sem" || ipc.iter().any(|begin| name.starts_with(begin)) {
        Some("hostIPC")
    } else {
        name.starts_with("net.").then_some("hostNetwork")
    }
}

fn check_sysctls(spec: &PodSpec, sysctls: &[Sysctl], path: &Path, errors: &mut ErrorList) {
    let shared = |field: &str| match field {
        "hostIPC" => spec.host_ipc == Some(true),
        _ => spec.host_network == Some(true),
    };
    let mut seen = BTreeSet::new();
    for (index, sysctl) in sysctls.iter().enumerate() {
        let path = path.index(index).child("name");
        if sysctl.name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl(&sysctl.name) {
            errors.invalid(&path, &sysctl.name, SYSCTL);
        } else if !seen.insert(&sysctl.name) {
            errors.duplicate(&path, &sysctl.name);
        }
        if let Some(field) = host_field(&sysctl.name).filter(|field| shared(field)) {
            let detail = format!("may not be specified when '{field}' is true");
            errors.invalid(&path, &sysctl.name, &detail);
        }
    }
}

fn check_policy(
    policy: Option<&String>,
    name: &str,
    supported: &[&str],
    path: &Path,
    errors: &mut ErrorList,
) {
    if let Some(policy) = policy
        && !supported.contains(&policy.as_str())
    {
        errors.not_supported(&path.child(name), policy, supported);
    }
}

/// Checks the pod's context, and what its processes share.
pub(super) fn validate_pod(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let path = path.child("securityContext");
    let empty = PodSecurityContext::default();
    let context = spec.security_context.as_ref().unwrap_or(&empty);
    check_id(context.fs_group, &path.child("fsGroup"), errors);
    check_id(context.run_as_user, &path.child("runAsUser"), errors);
    check_id(context.run_as_group, &path.child("runAsGroup"), errors);
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        let path = path.child("supplementalGroups").index(index);
        check_id(Some(*group), &path, errors);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, detail);
    }
    let sysctls = context.sysctls.as_deref().unwrap_or_default();
    check_sysctls(spec, sysctls, &path.child("sysctls"), errors);
    check_policy(
        context.fs_group_change_policy.as_ref(),
        "fsGroupChangePolicy",
        &["Always", "OnRootMismatch"],
        &path,
        errors,
    );
    check_seccomp(context.seccomp_profile.as_ref(), &path, errors);
    windows::check_options(context.windows_options.as_ref(), &path, errors);
    check_app_armor(context.app_armor_profile.as_ref(), &path, errors);
    for (policy, name, supported) in [
        (
            &context.supplemental_groups_policy,
            "supplementalGroupsPolicy",
            ["Merge", "Strict"],
        ),
        (
            &context.se_linux_change_policy,
            "seLinuxChangePolicy",
            ["MountOption", "Recursive"],
        ),
    ] {
        check_policy(policy.as_ref(), name, &supported, &path, errors);
    }
}

/// Checks that a pod in its host's network has its containers' ports there under the same numbers. Of a template, whose ports
/// are not filled in, only those that are given.
pub(super) fn validate_host_network(
    spec: &PodSpec,
    is_pod: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    if spec.host_network != Some(true) {
        return;
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = path.child("containers").index(index).child("ports");
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            if host_port != port.container_port && (is_pod || host_port != 0) {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&path.index(index).child("hostPort"), host_port, detail);
            }
        }
    }
}

/// Checks that a pod with users of its own shares nothing with its host.
pub(super) fn validate_users(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    const DETAIL: &str = "when `hostUsers` is false";
    if spec.host_users != Some(false) {
        return;
    }
    for (name, shared) in [
        ("hostNetwork", spec.host_network),
        ("HostPID", spec.host_pid),
        ("HostIPC", spec.host_ipc),
    ] {
        if shared == Some(true) {
            errors.forbidden(&path.child(name), DETAIL);
        }
    }
    for (container, path) in all_containers(spec, path) {
        let devices = container.volume_devices;
        if devices.is_some_and(|devices| !devices.is_empty()) {
            errors.forbidden(&path.child("volumeDevices"), DETAIL);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(check: impl Fn(&PodSpec, &Path, &mut ErrorList), spec: Value) -> Vec<String> {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let mut errors = ErrorList::default();
        check(&spec, &Path::new("spec"), &mut errors);
        errors.told()
    }

    #[test]
    fn what_is_wrong_with_a_pod_is_told_in_order() {
        let context = json!({
            "supplementalGroups": [-1],
            "sysctls": [{"name": "A"}],
            "fsGroupChangePolicy": "x",
            "seccompProfile": {"type": "Unconfined", "localhostProfile": "p"},
            "appArmorProfile": {"type": "Localhost", "localhostProfile": " p"},
            "supplementalGroupsPolicy": "x",
            "seLinuxChangePolicy": "x"
        });
        let found = told(
            validate_pod,
            json!({
                "containers": [], "hostPID": true, "shareProcessNamespace": true,
                "securityContext": context
            }),
        );
        let places: Vec<&str> = found
            .iter()
            .filter_map(|message| message.strip_prefix("spec.securityContext."))
            .filter_map(|message| message.split(':').next())
            .collect();
        let expected = [
            "supplementalGroups[0]",
            "shareProcessNamespace",
            "sysctls[0].name",
            "fsGroupChangePolicy",
            "seccompProfile.localhostProfile",
            "appArmorProfile.localhostProfile",
            "supplementalGroupsPolicy",
            "seLinuxChangePolicy",
        ];
        assert_eq!(places, expected);
        assert!(found[4].contains(
            r#"{"Type":"Unconfined","LocalhostProfile":"p"}: can only be set when seccomp type"#
        ));
    }

    #[test]
    fn ports_in_a_hosts_network_are_the_hosts() {
        let spec = json!({
            "hostNetwork": true,
            "containers": [{"name": "a", "ports": [
                {"containerPort": 1, "hostPort": 1}, {"containerPort": 2, "hostPort": 3},
                {"containerPort": 4}
            ]}]
        });
        let pod = |spec: &PodSpec, path: &Path, errors: &mut ErrorList| {
            validate_host_network(spec, true, path, errors);
        };
        let template = |spec: &PodSpec, path: &Path, errors: &mut ErrorList| {
            validate_host_network(spec, false, path, errors);
        };
        let expected = "spec.containers[0].ports[1].hostPort: Invalid value: 3: must match `containerPort` when `hostNetwork` is true";
        assert_eq!(told(template, spec.clone()), [expected]);
        assert_eq!(told(pod, spec).len(), 2);
    }

    #[test]
    fn users_of_their_own_share_nothing() {
        let found = told(
            validate_users,
            json!({
                "hostUsers": false, "hostPID": true, "hostIPC": true,
                "containers": [{"name": "a", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]
            }),
        );
        let expected = ["HostPID", "HostIPC", "containers[0].volumeDevices"]
            .map(|place| format!("spec.{place}: Forbidden: when `hostUsers` is false"));
        assert_eq!(found, expected);
    }
}
