//! What a pod may say that is to run on Windows, and what it may not say there or elsewhere.

use k8s_openapi::api::core::v1::{
    PodSecurityContext, PodSpec, SecurityContext, WindowsSecurityContextOptions,
};

use super::every::all_containers;
use crate::field::{ErrorList, Path};
use crate::names;

/// Bytes of a specification of credentials.
const MAX_CREDENTIALS: usize = 64 << 10;
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;
const MAX_NET_BIOS: usize = 15;
/// What neither a user's name nor the old kind of a domain's may have in it.
const RESERVED_USER: &str = "\"/\\:;|=,+*?<>@[]";
const RESERVED_DOMAIN: &str = "\\/:*?\"<>|";

fn is_net_bios(domain: &str) -> bool {
    !domain.is_empty()
        && !domain.starts_with('.')
        && domain.chars().count() <= MAX_NET_BIOS
        && !domain.contains(|letter: char| RESERVED_DOMAIN.contains(letter))
}

/// As a domain of DNS, whose letters may be of either case.
fn is_dns(domain: &str) -> bool {
    names::dns1123_subdomain(&domain.to_ascii_lowercase()).is_empty()
}

/// What is wrong with a user's name, perhaps behind a domain's and a backslash.
fn user_faults(name: &str) -> Vec<String> {
    let alone = |detail: &str| vec![format!("runAsUserName cannot {detail}")];
    if name.is_empty() {
        return alone("be an empty string");
    }
    if name.chars().any(|letter| letter.is_ascii_control()) {
        return alone("contain control characters");
    }
    let (domain, user) = match name.split_once('\\') {
        Some((_, rest)) if rest.contains('\\') => {
            return alone("contain more than one backslash");
        }
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut faults = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= MAX_DOMAIN {
            faults.push(format!(
                "runAsUserName's Domain length must be under {MAX_DOMAIN} characters"
            ));
        }
        if !is_net_bios(domain) && !is_dns(domain) {
            let fault = "runAsUserName's Domain doesn't match the NetBios nor the DNS format";
            faults.push(fault.to_owned());
        }
    }
    match user.len() {
        0 => faults.push("runAsUserName's User cannot be empty".to_owned()),
        1..=MAX_USER => {}
        _ => faults.push(format!(
            "runAsUserName's User length must not be longer than {MAX_USER} characters"
        )),
    }
    if !user.is_empty() && user.chars().all(|letter| matches!(letter, '.' | ' ')) {
        let fault = "runAsUserName's User cannot contain only periods or spaces";
        faults.push(fault.to_owned());
    }
    if user.contains(|letter: char| RESERVED_USER.contains(letter)) {
        faults.push(format!(
            "runAsUserName's User cannot contain the following characters: {RESERVED_USER}"
        ));
    }
    faults
}

/// Checks as whom containers run on Windows.
pub(super) fn check_options(
    options: Option<&WindowsSecurityContextOptions>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(options) = options else {
        return;
    };
    let path = path.child("windowsOptions");
    if let Some(name) = &options.gmsa_credential_spec_name {
        let path = path.child("gmsaCredentialSpecName");
        errors.invalid_each(&path, name, names::dns1123_subdomain(name));
    }
    if let Some(credentials) = &options.gmsa_credential_spec {
        let path = path.child("gmsaCredentialSpec");
        match credentials.len() {
            0 => {
                let detail = "gmsaCredentialSpec cannot be an empty string";
                errors.invalid(&path, credentials, detail);
            }
            1..=MAX_CREDENTIALS => {}
            _ => {
                let most = MAX_CREDENTIALS >> 10;
                let detail = format!("gmsaCredentialSpec size must be under {most} KiB");
                errors.invalid(&path, credentials, &detail);
            }
        }
    }
    if let Some(name) = &options.run_as_user_name {
        errors.invalid_each(&path.child("runAsUserName"), name, user_faults(name));
    }
}

/// Checks that containers are all processes of their host, or none is.
pub(super) fn check_host_processes(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.windows_options.as_ref()?.host_process);
    let (mut all, mut on_host) = (0, 0);
    for (container, path) in all_containers(spec, path) {
        let own = container
            .security_context
            .and_then(|context| context.windows_options.as_ref()?.host_process);
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            let detail =
                format!("pod hostProcess value must be identical if both are specified, was {pod}");
            let path = path.child("securityContext").child("windowsOptions");
            errors.invalid(&path.child("hostProcess"), own, &detail);
        }
        all += 1;
        on_host += usize::from(own.or(of_pod) == Some(true));
    }
    if on_host == 0 {
        return;
    }
    if on_host != all {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid(path, "", detail);
    }
    if spec.host_network != Some(true) {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&path.child("hostNetwork"), false, detail);
    }
}

/// What a pod says that Windows has not, in the order in which Kubernetes looks.
fn foreign_of_pod(spec: &PodSpec, context: &PodSecurityContext) -> [(bool, &'static str); 15] {
    let sysctls = context.sysctls.as_ref();
    [
        (
            context.app_armor_profile.is_some(),
            "securityContext.appArmorProfile",
        ),
        (
            context.se_linux_options.is_some(),
            "securityContext.seLinuxOptions",
        ),
        (spec.host_users.is_some(), "hostUsers"),
        (spec.host_pid == Some(true), "hostPID"),
        (spec.host_ipc == Some(true), "hostIPC"),
        (
            context.seccomp_profile.is_some(),
            "securityContext.seccompProfile",
        ),
        (context.fs_group.is_some(), "securityContext.fsGroup"),
        (
            context.fs_group_change_policy.is_some(),
            "securityContext.fsGroupChangePolicy",
        ),
        (
            sysctls.is_some_and(|all| !all.is_empty()),
            "securityContext.sysctls",
        ),
        (
            spec.share_process_namespace.is_some(),
            "shareProcessNamespace",
        ),
        (context.run_as_user.is_some(), "securityContext.runAsUser"),
        (context.run_as_group.is_some(), "securityContext.runAsGroup"),
        (
            context.supplemental_groups.is_some(),
            "securityContext.supplementalGroups",
        ),
        (
            context.supplemental_groups_policy.is_some(),
            "securityContext.supplementalGroupsPolicy",
        ),
        (
            context.se_linux_change_policy.is_some(),
            "securityContext.seLinuxChangePolicy",
        ),
    ]
}

/// As [`foreign_of_pod`], of a container.
fn foreign(context: &SecurityContext) -> [(bool, &'static str); 10] {
    [
        (context.app_armor_profile.is_some(), "appArmorProfile"),
        (context.se_linux_options.is_some(), "seLinuxOptions"),
        (context.seccomp_profile.is_some(), "seccompProfile"),
        (context.capabilities.is_some(), "capabilities"),
        (
            context.read_only_root_filesystem.is_some(),
            "readOnlyRootFilesystem",
        ),
        (context.privileged.is_some(), "privileged"),
        (
            context.allow_privilege_escalation.is_some(),
            "allowPrivilegeEscalation",
        ),
        (context.proc_mount.is_some(), "procMount"),
        (context.run_as_user.is_some(), "runAsUser"),
        (context.run_as_group.is_some(), "runAsGroup"),
    ]
}

fn check_linux(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let mut refuse = |path: &Path| {
        let path = path.child("securityContext").child("windowsOptions");
        let detail = "windows options cannot be set for a linux pod";
        errors.forbidden(&path, detail);
    };
    let context = spec.security_context.as_ref();
    if context.is_some_and(|context| context.windows_options.is_some()) {
        refuse(path);
    }
    for (container, path) in all_containers(spec, path) {
        let context = container.security_context;
        if context.is_some_and(|context| context.windows_options.is_some()) {
            refuse(&path);
        }
    }
}

fn check_windows(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let mut refuse = |fields: &[(bool, &str)], path: &Path| {
        for (_, field) in fields.iter().filter(|(given, _)| *given) {
            errors.forbidden(&path.child(field), "cannot be set for a windows pod");
        }
    };
    if let Some(context) = &spec.security_context {
        refuse(&foreign_of_pod(spec, context), path);
    }
    for (container, path) in all_containers(spec, path) {
        if let Some(context) = container.security_context {
            refuse(&foreign(context), &path.child("securityContext"));
        }
    }
}

/// Checks that a pod which names its system asks for nothing that the system has not.
pub(super) fn check_system(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let Some(system) = &spec.os else {
        return;
    };
    let system_path = path.child("os");
    match system.name.as_str() {
        "" => errors.required(&system_path.child("name"), "cannot be empty"),
        "linux" => check_linux(spec, path, errors),
        "windows" => check_windows(spec, path, errors),
        name => errors.not_supported(&system_path, name, &["linux", "windows"]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(spec: Value) -> Vec<String> {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let mut errors = ErrorList::default();
        check_system(&spec, &Path::new("spec"), &mut errors);
        check_host_processes(&spec, &Path::new("spec"), &mut errors);
        errors.told()
    }

    #[test]
    fn a_user_may_be_behind_a_domain() {
        for good in ["user", "NT AUTHORITY\\SYSTEM", "example.com\\a.b", "a b"] {
            assert_eq!(user_faults(good), Vec::<String>::new(), "{good}");
        }
        for (bad, told) in [
            ("", "runAsUserName cannot be an empty string"),
            ("a\nb", "runAsUserName cannot contain control characters"),
            (
                "a\\b\\c",
                "runAsUserName cannot contain more than one backslash",
            ),
            (
                ".bad-\\u",
                "runAsUserName's Domain doesn't match the NetBios nor the DNS format",
            ),
            ("d\\", "runAsUserName's User cannot be empty"),
            (
                ". .",
                "runAsUserName's User cannot contain only periods or spaces",
            ),
            (
                "a@b",
                "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]",
            ),
        ] {
            assert_eq!(user_faults(bad), [told], "{bad}");
        }
    }

    #[test]
    fn systems_are_told_apart() {
        let spec = |system: &str, context: Value| {
            json!({
                "os": {"name": system},
                "containers": [{"name": "a", "securityContext": context}],
                "securityContext": {}
            })
        };
        let options = json!({"windowsOptions": {"runAsUserName": "a"}});
        assert_eq!(
            told(spec("linux", options.clone())),
            [
                "spec.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod"
            ]
        );
        assert!(told(spec("windows", options)).is_empty());
        assert_eq!(
            told(spec("windows", json!({"privileged": true}))),
            [
                "spec.containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod"
            ]
        );
        assert_eq!(
            told(spec("plan9", json!({}))),
            ["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""]
        );
        assert_eq!(
            told(spec("", json!({}))),
            ["spec.os.name: Required value: cannot be empty"]
        );
    }

    #[test]
    fn all_containers_are_processes_of_the_host_or_none() {
        let on_host = json!({"windowsOptions": {"hostProcess": true}});
        let found = told(json!({
            "containers": [{"name": "a", "securityContext": on_host}, {"name": "b"}]
        }));
        assert_eq!(found.len(), 2, "{found:?}");
        let found = told(json!({
            "hostNetwork": true,
            "securityContext": on_host,
            "containers": [{"name": "a"}, {"name": "b"}]
        }));
        assert!(found.is_empty(), "{found:?}");
    }
}
