//! What a pod and its containers may do, and as whom.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSpec, SELinuxOptions, SeccompProfile, SecurityContext, Sysctl,
    WindowsSecurityContextOptions,
};
use serde::Serialize;

use super::volumes::check_descending;
use crate::field::{ErrorList, Path};

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];
const SYSCTL: &str = r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// Checks a user's or group's number.
fn check_id(id: Option<i64>, path: &Path, errors: &mut ErrorList) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        let detail = format!("must be between 0 and {}, inclusive", i32::MAX);
        errors.invalid(path, id, &detail);
    }
}

fn check_profile(kind: &str, file: Option<&str>, what: &str, path: &Path, errors: &mut ErrorList) {
    let type_path = path.child("type");
    match kind {
        "" => errors.required(
            &type_path,
            &format!("type is required when {what}Profile is set"),
        ),
        kind if PROFILES.contains(&kind) => {}
        kind => errors.not_supported(&type_path, kind, &PROFILES),
    }
    let path = path.child("localhostProfile");
    match file {
        None if kind == "Localhost" => {
            let detail = format!("must be set when {what} type is Localhost");
            errors.required(&path, &detail);
        }
        Some(file) if kind == "Localhost" => check_descending(file, &path, errors),
        Some(file) => {
            let detail = format!("can only be set when {what} type is Localhost");
            errors.invalid(&path, file, &detail);
        }
        None => {}
    }
}

fn check_seccomp(profile: Option<&SeccompProfile>, path: &Path, errors: &mut ErrorList) {
    if let Some(profile) = profile {
        let file = profile.localhost_profile.as_deref();
        let path = path.child("seccompProfile");
        check_profile(&profile.type_, file, "seccomp", &path, errors);
    }
}

fn check_app_armor(profile: Option<&AppArmorProfile>, path: &Path, errors: &mut ErrorList) {
    if let Some(profile) = profile {
        let file = profile.localhost_profile.as_deref();
        let path = path.child("appArmorProfile");
        check_profile(&profile.type_, file, "AppArmor", &path, errors);
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
        let mut added = capabilities
            .and_then(|capabilities| capabilities.add.as_ref())
            .into_iter()
            .flatten();
        if added.any(|capability| capability == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, Printed::from(context), detail);
        }
    }
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

/// Checks the pod's context and what it shares with its host.
pub(super) fn validate_pod(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    if spec.host_network == Some(true) {
        let containers = path.child("containers");
        for (index, container) in spec.containers.iter().enumerate() {
            let ports = containers.index(index).child("ports");
            for (index, port) in container.ports.iter().flatten().enumerate() {
                if port.host_port != Some(port.container_port) {
                    let detail = "must match `hostPort` when `hostNetwork` is true";
                    let path = ports.index(index).child("containerPort");
                    errors.invalid(&path, port.container_port, detail);
                }
            }
        }
    }
    if spec.host_users == Some(false) {
        for (name, shared) in [
            ("hostNetwork", spec.host_network),
            ("hostPID", spec.host_pid),
            ("hostIPC", spec.host_ipc),
        ] {
            if shared == Some(true) {
                errors.forbidden(&path.child(name), "when `hostUsers` is false");
            }
        }
    }
    let shares = spec.share_process_namespace == Some(true);
    let path = path.child("securityContext");
    if shares && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, detail);
    }
    let Some(context) = &spec.security_context else {
        return;
    };
    check_id(context.fs_group, &path.child("fsGroup"), errors);
    check_id(context.run_as_user, &path.child("runAsUser"), errors);
    check_id(context.run_as_group, &path.child("runAsGroup"), errors);
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        let path = path.child("supplementalGroups").index(index);
        check_id(Some(*group), &path, errors);
    }
    let sysctls = context.sysctls.as_deref().unwrap_or_default();
    check_sysctls(spec, sysctls, &path.child("sysctls"), errors);
    for (policy, name, supported) in [
        (
            &context.fs_group_change_policy,
            "fsGroupChangePolicy",
            ["Always", "OnRootMismatch"],
        ),
        (
            &context.supplemental_groups_policy,
            "supplementalGroupsPolicy",
            ["Merge", "Strict"],
        ),
    ] {
        if let Some(policy) = policy
            && !supported.contains(&policy.as_str())
        {
            errors.not_supported(&path.child(name), policy, &supported);
        }
    }
    check_seccomp(context.seccomp_profile.as_ref(), &path, errors);
    check_app_armor(context.app_armor_profile.as_ref(), &path, errors);
}
