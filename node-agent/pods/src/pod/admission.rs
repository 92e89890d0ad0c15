//! What a pod may ask of this node. A field that asks for isolation is honoured or the pod is refused: it is never
//! ignored.
//!
//! What a kubelet refuses for good ends the pod ([`admit`]); what another node, or this one with newer software, could
//! run waits with an Event ([`check_supported`]).

use std::path::Path;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, PodSpec, SELinuxOptions};

use super::record::containers;
use super::restart::ACTIONS;
use crate::sysctls::{self, SysctlPattern};

/// The reason and message of a pod's end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Refuses for good what this node must not run; with a kubelet's reasons and words.
pub(crate) fn admit(spec: &PodSpec, allowed: &[SysctlPattern]) -> Result<(), Rejection> {
    let refuse = |reason, message: &str| {
        Err(Rejection {
            reason,
            message: message.to_owned(),
        })
    };
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return refuse("PodOSNotSupported", message);
    }
    if let Err(message) = sysctls::check(spec, allowed) {
        return refuse("SysctlForbidden", &message);
    }
    let shared = spec.security_context.as_ref();
    let asks = |profile: Option<&AppArmorProfile>| {
        profile.is_some_and(|profile| profile.type_ != "Unconfined")
    };
    let wanted = |container: &Container| {
        let own = container.security_context.as_ref();
        let own = own.and_then(|own| own.app_armor_profile.as_ref());
        asks(own.or_else(|| shared.and_then(|shared| shared.app_armor_profile.as_ref())))
    };
    if containers(spec).any(|(_, container)| wanted(container)) {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        return refuse(
            "AppArmor",
            if enabled.is_ok_and(|enabled| enabled.trim() == "Y") {
                "Cannot enforce AppArmor: this node does not apply profiles; set appArmorProfile.type to Unconfined to run without"
            } else {
                "Cannot enforce AppArmor: AppArmor is not enabled on the host"
            },
        );
    }
    Ok(())
}

fn labelled(options: Option<&SELinuxOptions>) -> bool {
    options.is_some_and(|options| *options != SELinuxOptions::default())
}

/// Whether this kernel labels processes by SELinux. Where none does, labels mean nothing to anybody, as in Kubernetes.
pub(crate) fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Refuses what this node cannot give yet; names the field and what to do. `has_selinux` is whether the kernel labels
/// processes, which this node would leave out.
pub(crate) fn check_supported(spec: &PodSpec, has_selinux: bool) -> Result<(), String> {
    let own_users = spec.host_users == Some(false);
    let hosts = [spec.host_network, spec.host_pid, spec.host_ipc];
    if own_users && hosts.contains(&Some(true)) {
        return Err("spec.hostUsers: a pod with users of its own can share no other namespace with the host; leave hostNetwork, hostPID and hostIPC out".to_owned());
    }
    if let Some(class) = spec
        .runtime_class_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        return Err(format!(
            "spec.runtimeClassName: no runtime for {class:?} is configured on this node, which has one runtime only; leave the field out to use it"
        ));
    }
    let shared = spec.security_context.as_ref();
    let selinux = "securityContext.seLinuxOptions: this node does not label processes; leave the field out to run without";
    let windows = "securityContext.windowsOptions: this node runs Linux; leave the field out";
    if let Some(shared) = shared {
        if has_selinux && labelled(shared.se_linux_options.as_ref()) {
            return Err(format!("spec.{selinux}"));
        }
        if shared.windows_options.is_some() {
            return Err(format!("spec.{windows}"));
        }
    }
    for (_, container) in containers(spec) {
        let selinux = has_selinux.then_some(selinux);
        check_container(container, own_users, selinux, windows)
            .map_err(|message| format!("container {}: {message}", container.name))?;
    }
    Ok(())
}

fn check_container(
    container: &Container,
    own_users: bool,
    selinux: Option<&str>,
    windows: &str,
) -> Result<(), String> {
    for mount in container.volume_mounts.iter().flatten() {
        if mount.recursive_read_only.as_deref() == Some("Enabled") {
            return Err(format!(
                "volumeMounts[{}].recursiveReadOnly: recursive read-only mounts are not supported by this node; use IfPossible or Disabled",
                mount.name
            ));
        }
        let propagation = mount.mount_propagation.as_deref();
        if own_users && propagation.is_some_and(|propagation| propagation != "None") {
            return Err(format!(
                "volumeMounts[{}].mountPropagation: mounts of the host do not reach a pod with users of its own (hostUsers: false); use None",
                mount.name
            ));
        }
    }
    let mut rules = container.restart_policy_rules.iter().flatten();
    if let Some(rule) = rules.find(|rule| !ACTIONS.contains(&rule.action.as_str())) {
        return Err(format!(
            "restartPolicyRules: this node does not know the action {:?}; use {}",
            rule.action,
            ACTIONS.join(" or ")
        ));
    }
    let Some(own) = &container.security_context else {
        return Ok(());
    };
    if own
        .proc_mount
        .as_deref()
        .is_some_and(|kind| kind != "Default" && !own_users)
    {
        return Err("securityContext.procMount: others than Default need users of the pod's own; set hostUsers to false".to_owned());
    }
    if let Some(selinux) = selinux.filter(|_| labelled(own.se_linux_options.as_ref())) {
        return Err(selinux.to_owned());
    }
    if own.windows_options.is_some() {
        return Err(windows.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(mut spec: Value, container: Value) -> PodSpec {
        let mut own = container;
        own["name"] = json!("main");
        spec["containers"] = json!([own]);
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn labels_mean_nothing_where_nobody_labels() {
        let labelled = || json!({"securityContext": {"seLinuxOptions": {"level": "s0:c1"}}});
        let pod = spec(labelled(), labelled());
        assert_eq!(check_supported(&pod, false), Ok(()));
        assert!(check_supported(&pod, true).is_err());
    }

    #[test]
    fn what_a_kubelet_refuses_ends_the_pod() {
        let reason = |pod: Value, container: Value| {
            admit(&spec(pod, container), &[])
                .err()
                .map(|rejection| rejection.reason)
        };
        let core = json!({"securityContext": {"sysctls": [{"name": "kernel.core_pattern", "value": "|/x"}]}});
        assert_eq!(reason(core, json!({})), Some("SysctlForbidden"));
        assert_eq!(
            reason(json!({"os": {"name": "windows"}}), json!({})),
            Some("PodOSNotSupported")
        );
        assert_eq!(reason(json!({"os": {"name": "linux"}}), json!({})), None);
        for kind in ["RuntimeDefault", "Localhost"] {
            let profile = json!({"securityContext": {"appArmorProfile": {"type": kind, "localhostProfile": "p"}}});
            assert_eq!(
                reason(profile.clone(), json!({})),
                Some("AppArmor"),
                "{kind}"
            );
            assert_eq!(reason(json!({}), profile), Some("AppArmor"), "{kind}");
        }
        let (confined, free) = (
            json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
        );
        assert_eq!(
            reason(confined, free.clone()),
            None,
            "the container's own counts"
        );
        assert_eq!(reason(free, json!({})), None);
    }

    #[test]
    fn what_this_node_cannot_give_is_refused_by_name() {
        let refused = |pod: Value, container: Value, field: &str| {
            let error = check_supported(&spec(pod, container), true).unwrap_err();
            assert!(error.contains(field), "{error}");
        };
        let context = |field: Value| json!({"securityContext": field});
        let hosts = json!({"hostUsers": false, "hostPID": true});
        refused(hosts, json!({}), "spec.hostUsers");
        let shared = json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "HostToContainer"}]});
        refused(json!({"hostUsers": false}), shared, "mountPropagation");
        refused(
            json!({"runtimeClassName": "gvisor"}),
            json!({}),
            "\"gvisor\"",
        );
        let label = json!({"seLinuxOptions": {"level": "s0:c1"}});
        refused(
            context(label.clone()),
            json!({}),
            "spec.securityContext.seLinuxOptions",
        );
        refused(
            json!({}),
            context(label),
            "container main: securityContext.seLinuxOptions",
        );
        let windows = json!({"windowsOptions": {"runAsUserName": "x"}});
        refused(context(windows.clone()), json!({}), "windowsOptions");
        refused(json!({}), context(windows), "windowsOptions");
        refused(
            json!({}),
            context(json!({"procMount": "Unmasked"})),
            "procMount",
        );
        let mount = |mode: &str| json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": mode}]});
        refused(json!({}), mount("Enabled"), "recursiveReadOnly");
        let rule = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [1]}}]);
        let ruled =
            |action: &str| json!({"restartPolicy": "Never", "restartPolicyRules": rule(action)});
        refused(json!({}), ruled("Reboot"), "restartPolicyRules");
        for action in ["Restart", "RestartAllContainers"] {
            check_supported(&spec(json!({}), ruled(action)), true).unwrap();
        }
        let sidecar = json!({"initContainers": [{"name": "first", "securityContext": {"procMount": "Unmasked"}}]});
        refused(sidecar, json!({}), "container first");

        for (pod, container) in [
            (json!({"hostUsers": true}), mount("IfPossible")),
            (
                json!({"hostUsers": false}),
                context(json!({"procMount": "Unmasked"})),
            ),
            (
                json!({}),
                context(json!({"procMount": "Default", "seLinuxOptions": {}})),
            ),
            (
                context(json!({"seLinuxOptions": {}, "fsGroup": 1})),
                json!({}),
            ),
        ] {
            check_supported(&spec(pod, container), true).unwrap();
        }
    }
}
