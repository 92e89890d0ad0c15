//! The rules, one function each. They come in the order of their names in Kubernetes: first those of `baseline`, then those
//! of `restricted`, some of which take the place of a weaker one.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ContainerPort, Lifecycle, LifecycleHandler, PodSpec, Probe, SELinuxOptions, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Level, Standard, Version, Violation};

/// Of every release the capabilities that may be added.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Sysctls that may be set, and since which release.
const SYSCTLS: &[(u32, &str)] = &[
    (0, "kernel.shm_rmid_forced"),
    (0, "net.ipv4.ip_local_port_range"),
    (0, "net.ipv4.tcp_syncookies"),
    (0, "net.ipv4.ping_group_range"),
    (0, "net.ipv4.ip_unprivileged_port_start"),
    (27, "net.ipv4.ip_local_reserved_ports"),
    (29, "net.ipv4.tcp_keepalive_time"),
    (29, "net.ipv4.tcp_fin_timeout"),
    (29, "net.ipv4.tcp_keepalive_intvl"),
    (29, "net.ipv4.tcp_keepalive_probes"),
    (32, "net.ipv4.tcp_rmem"),
    (32, "net.ipv4.tcp_wmem"),
];
/// SELinux types that may be set, and since which release.
const SELINUX_TYPES: &[(u32, &str)] = &[
    (0, ""),
    (0, "container_t"),
    (0, "container_init_t"),
    (0, "container_kvm_t"),
    (31, "container_engine_t"),
];
const APPARMOR_ANNOTATIONS: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD_ANNOTATION: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_ANNOTATIONS: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// What the rules ask of a container, of whichever of the three sorts.
struct View<'a> {
    name: &'a str,
    security: Option<&'a SecurityContext>,
    ports: &'a [ContainerPort],
    probes: [Option<&'a Probe>; 3],
    lifecycle: Option<&'a Lifecycle>,
}

/// A pod, and the release whose rules it is held to.
struct Subject<'a> {
    metadata: &'a ObjectMeta,
    spec: &'a PodSpec,
    /// Init containers first, ephemeral ones last.
    containers: Vec<View<'a>>,
    minor: u32,
}

macro_rules! view {
    ($container:expr) => {{
        let container = $container;
        View {
            name: &container.name,
            security: container.security_context.as_ref(),
            ports: container.ports.as_deref().unwrap_or_default(),
            probes: [
                container.liveness_probe.as_ref(),
                container.readiness_probe.as_ref(),
                container.startup_probe.as_ref(),
            ],
            lifecycle: container.lifecycle.as_ref(),
        }
    }};
}

/// Everything that the standard forbids and the pod does.
pub(super) fn run(standard: Standard, metadata: &ObjectMeta, spec: &PodSpec) -> Vec<Violation> {
    let inits = spec.init_containers.iter().flatten().map(|one| view!(one));
    let plain = spec.containers.iter().map(|one| view!(one));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.map(|one| view!(one));
    let subject = Subject {
        metadata,
        spec,
        containers: inits.chain(plain).chain(ephemeral).collect(),
        minor: match standard.version {
            Version::Minor(minor) => minor,
            Version::Latest => u32::MAX,
        },
    };
    let is_restricted = standard.level == Level::Restricted;
    let since = |minor: u32| subject.minor >= minor;
    let baseline = [
        subject.apparmor(),
        subject
            .capabilities()
            .filter(|_| !(is_restricted && since(22))),
        subject.host_namespaces(),
        subject.host_path().filter(|_| !is_restricted),
        subject.host_ports(),
        subject.probe_hosts().filter(|_| since(34)),
        subject.privileged(),
        subject.proc_mount(),
        subject.selinux(),
        subject.seccomp().filter(|_| !(is_restricted && since(19))),
        subject.sysctls(),
        subject.host_process(),
    ];
    let mut found: Vec<Violation> = baseline.into_iter().flatten().collect();
    if is_restricted {
        let restricted = [
            subject.privilege_escalation().filter(|_| since(8)),
            subject.all_capabilities().filter(|_| since(22)),
            subject.volume_types(),
            subject.run_as_non_root(),
            subject.run_as_user().filter(|_| since(23)),
            subject.seccomp_set().filter(|_| since(19)),
        ];
        found.extend(restricted.into_iter().flatten());
    }
    found
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation {
        reason: reason.to_owned(),
        detail,
    })
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items = items
        .into_iter()
        .map(|item| format!("\"{}\"", item.as_ref()));
    items.collect::<Vec<_>>().join(", ")
}

fn plural(count: usize, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

/// `container "a"` or `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    let word = plural(names.len(), "container", "containers");
    format!("{word} {}", quoted(names))
}

/// Who sets something: the pod, containers, or both.
fn setters(pod: bool, names: &[&str]) -> String {
    let mut setters = Vec::new();
    if pod {
        setters.push("pod".to_owned());
    }
    if !names.is_empty() {
        setters.push(containers(names));
    }
    setters.join(" and ")
}

impl Subject<'_> {
    /// The names of the containers that something holds for.
    fn named(&self, holds: impl Fn(&View<'_>) -> bool) -> Vec<&str> {
        let containers = self.containers.iter().filter(|one| holds(one));
        containers.map(|one| one.name).collect()
    }

    /// Whether rules about users are left out: the pod's root is nobody on the node.
    fn has_own_users(&self) -> bool {
        self.minor >= 35 && self.spec.host_users == Some(false)
    }

    fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec.os.as_ref().is_some_and(|os| os.name == "windows")
    }

    fn apparmor(&self) -> Option<Violation> {
        let allowed = |kind: &str| ["RuntimeDefault", "Localhost"].contains(&kind);
        let pod = self.spec.security_context.as_ref();
        let pod = pod.and_then(|security| security.app_armor_profile.as_ref());
        let pod = pod
            .map(|profile| profile.type_.as_str())
            .filter(|kind| !allowed(kind));
        let of = |one: &View<'_>| {
            let profile = one.security?.app_armor_profile.as_ref()?;
            Some(profile.type_.clone()).filter(|kind| !allowed(kind))
        };
        let bad = self.named(|one| of(one).is_some());
        let mut values: BTreeSet<String> = self.containers.iter().filter_map(of).collect();
        values.extend(pod.map(str::to_owned));
        let mut values: Vec<String> = values.into_iter().collect();
        let annotations = self.metadata.annotations.iter().flatten();
        let annotations = annotations.filter(|(key, value)| {
            let fine =
                value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/");
            key.starts_with(APPARMOR_ANNOTATIONS) && !fine
        });
        let annotations: Vec<String> = annotations
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        let mut who = vec![setters(pod.is_some(), &bad)];
        who.retain(|who| !who.is_empty());
        if !annotations.is_empty() {
            who.push(plural(annotations.len(), "annotation", "annotations").to_owned());
        }
        values.extend(annotations);
        if values.is_empty() {
            return None;
        }
        let reason = plural(
            values.len(),
            "forbidden AppArmor profile",
            "forbidden AppArmor profiles",
        );
        let detail = format!(
            "{} must not set AppArmor profile type to {}",
            who.join(" and "),
            quoted(values)
        );
        violation(reason, detail)
    }

    /// The capabilities that containers add beyond some, and who does.
    fn added(&self, allowed: &[&str]) -> (Vec<&str>, BTreeSet<String>) {
        let beyond = |one: &View<'_>| -> Vec<String> {
            let capabilities = one
                .security
                .and_then(|security| security.capabilities.as_ref());
            let added = capabilities.and_then(|capabilities| capabilities.add.as_ref());
            let added = added.into_iter().flatten();
            added
                .filter(|added| !allowed.contains(&added.as_str()))
                .cloned()
                .collect()
        };
        let bad = self.named(|one| !beyond(one).is_empty());
        (bad, self.containers.iter().flat_map(beyond).collect())
    }

    fn capabilities(&self) -> Option<Violation> {
        let (bad, added) = self.added(DEFAULT_CAPABILITIES);
        if bad.is_empty() {
            return None;
        }
        let detail = format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&bad),
            quoted(added)
        );
        violation("non-default capabilities", detail)
    }

    fn host_namespaces(&self) -> Option<Violation> {
        let shared = [
            ("hostNetwork=true", self.spec.host_network),
            ("hostPID=true", self.spec.host_pid),
            ("hostIPC=true", self.spec.host_ipc),
        ];
        let shared = shared
            .into_iter()
            .filter(|(_, shared)| *shared == Some(true));
        let shared: Vec<&str> = shared.map(|(name, _)| name).collect();
        match shared.is_empty() {
            true => None,
            false => violation("host namespaces", shared.join(", ")),
        }
    }

    fn host_path(&self) -> Option<Violation> {
        let volumes = self.spec.volumes.iter().flatten();
        let volumes = volumes.filter(|volume| volume.host_path.is_some());
        let names: Vec<&str> = volumes.map(|volume| volume.name.as_str()).collect();
        if names.is_empty() {
            return None;
        }
        let word = plural(names.len(), "volume", "volumes");
        violation("hostPath volumes", format!("{word} {}", quoted(names)))
    }

    fn host_ports(&self) -> Option<Violation> {
        let ports = |one: &View<'_>| -> Vec<i32> {
            let ports = one.ports.iter().filter_map(|port| port.host_port);
            ports.filter(|port| *port != 0).collect()
        };
        let bad = self.named(|one| !ports(one).is_empty());
        if bad.is_empty() {
            return None;
        }
        // Sorted as texts.
        let all: BTreeSet<String> = self
            .containers
            .iter()
            .flat_map(ports)
            .map(|port| port.to_string())
            .collect();
        let detail = format!(
            "{} {} {} {}",
            containers(&bad),
            plural(bad.len(), "uses", "use"),
            plural(all.len(), "hostPort", "hostPorts"),
            all.into_iter().collect::<Vec<_>>().join(", ")
        );
        violation("hostPort", detail)
    }

    fn probe_hosts(&self) -> Option<Violation> {
        fn of_probe(probe: &Probe) -> [Option<String>; 2] {
            [
                probe.http_get.as_ref().and_then(|get| get.host.clone()),
                probe.tcp_socket.as_ref().and_then(|tcp| tcp.host.clone()),
            ]
        }
        fn of_handler(handler: &LifecycleHandler) -> [Option<String>; 2] {
            [
                handler.http_get.as_ref().and_then(|get| get.host.clone()),
                handler.tcp_socket.as_ref().and_then(|tcp| tcp.host.clone()),
            ]
        }
        let hosts = |one: &View<'_>| -> Vec<String> {
            let probes = one.probes.into_iter().flatten().flat_map(of_probe);
            let handlers = one.lifecycle.into_iter();
            let handlers = handlers
                .flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop])
                .flatten()
                .flat_map(of_handler);
            let hosts = probes.chain(handlers).flatten();
            hosts.filter(|host| !host.is_empty()).collect()
        };
        let bad: BTreeSet<&str> = self
            .named(|one| !hosts(one).is_empty())
            .into_iter()
            .collect();
        if bad.is_empty() {
            return None;
        }
        let bad: Vec<&str> = bad.into_iter().collect();
        let all: BTreeSet<String> = self.containers.iter().flat_map(hosts).collect();
        let detail = format!(
            "{} {} {} {}",
            containers(&bad),
            plural(bad.len(), "uses", "use"),
            plural(
                all.len(),
                "probe or lifecycle host",
                "probe or lifecycle hosts"
            ),
            quoted(all)
        );
        violation("probe or lifecycle host", detail)
    }

    fn privileged(&self) -> Option<Violation> {
        let bad =
            self.named(|one| one.security.and_then(|security| security.privileged) == Some(true));
        if bad.is_empty() {
            return None;
        }
        let detail = format!(
            "{} must not set securityContext.privileged=true",
            containers(&bad)
        );
        violation("privileged", detail)
    }

    fn proc_mount(&self) -> Option<Violation> {
        if self.has_own_users() {
            return None;
        }
        let of = |one: &View<'_>| {
            let set = one.security?.proc_mount.clone();
            set.filter(|set| set != "Default")
        };
        let bad = self.named(|one| of(one).is_some());
        if bad.is_empty() {
            return None;
        }
        let values: BTreeSet<String> = self.containers.iter().filter_map(of).collect();
        let detail = format!(
            "{} must not set securityContext.procMount to {}",
            containers(&bad),
            quoted(values)
        );
        violation("procMount", detail)
    }

    fn selinux(&self) -> Option<Violation> {
        let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
        let mut is_bad = |options: Option<&SELinuxOptions>| {
            let Some(options) = options else {
                return false;
            };
            let kind = options.type_.as_deref().unwrap_or_default();
            let known = SELINUX_TYPES
                .iter()
                .any(|(since, known)| *since <= self.minor && *known == kind);
            let set =
                |field: &Option<String>| field.as_deref().is_some_and(|text| !text.is_empty());
            if !known {
                types.insert(kind.to_owned());
            }
            user |= set(&options.user);
            role |= set(&options.role);
            !known || set(&options.user) || set(&options.role)
        };
        let pod = self.spec.security_context.as_ref();
        let pod = is_bad(pod.and_then(|security| security.se_linux_options.as_ref()));
        let mut bad = Vec::new();
        for one in &self.containers {
            if is_bad(
                one.security
                    .and_then(|security| security.se_linux_options.as_ref()),
            ) {
                bad.push(one.name);
            }
        }
        if !pod && bad.is_empty() {
            return None;
        }
        let mut data = Vec::new();
        if !types.is_empty() {
            data.push(format!(
                "{} {}",
                plural(types.len(), "type", "types"),
                quoted(types)
            ));
        }
        if user {
            data.push("user may not be set".to_owned());
        }
        if role {
            data.push("role may not be set".to_owned());
        }
        let detail = format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters(pod, &bad),
            data.join("; ")
        );
        violation("seLinuxOptions", detail)
    }

    /// The pod's seccomp profile, and that of a container.
    fn seccomp_of_pod(&self) -> Option<&str> {
        let security = self.spec.security_context.as_ref()?;
        Some(security.seccomp_profile.as_ref()?.type_.as_str())
    }

    fn seccomp_of<'a>(one: &View<'a>) -> Option<&'a str> {
        Some(one.security?.seccomp_profile.as_ref()?.type_.as_str())
    }

    /// A profile that is set and not one of those that confine.
    fn bad_seccomp(&self) -> Option<Violation> {
        let is_bad = |kind: &&str| !["Localhost", "RuntimeDefault"].contains(kind);
        let pod = self.seccomp_of_pod().filter(is_bad);
        let bad = self.named(|one| Self::seccomp_of(one).filter(is_bad).is_some());
        if pod.is_none() && bad.is_empty() {
            return None;
        }
        let of_containers = self.containers.iter().filter_map(Self::seccomp_of);
        let values: BTreeSet<&str> = of_containers.filter(is_bad).chain(pod).collect();
        let detail = format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters(pod.is_some(), &bad),
            quoted(values)
        );
        violation("seccompProfile", detail)
    }

    fn seccomp(&self) -> Option<Violation> {
        if self.minor >= 19 {
            return self.bad_seccomp();
        }
        // Before there was a field.
        let is_bad = |value: &str| {
            !["runtime/default", "docker/default"].contains(&value)
                && !value.starts_with("localhost/")
        };
        let keys = std::iter::once(SECCOMP_POD_ANNOTATION.to_owned()).chain(
            self.containers
                .iter()
                .map(|one| format!("{SECCOMP_ANNOTATIONS}{}", one.name)),
        );
        let annotations = self.metadata.annotations.as_ref()?;
        let bad: BTreeSet<String> = keys
            .filter_map(|key| {
                let value = annotations.get(&key).filter(|value| is_bad(value))?;
                Some(format!("{key}={value:?}"))
            })
            .collect();
        if bad.is_empty() {
            return None;
        }
        let word = plural(bad.len(), "annotation", "annotations");
        let bad: Vec<String> = bad.into_iter().collect();
        violation(
            "seccompProfile",
            format!("forbidden {word} {}", bad.join(", ")),
        )
    }

    fn sysctls(&self) -> Option<Violation> {
        let security = self.spec.security_context.as_ref()?;
        let set = security
            .sysctls
            .iter()
            .flatten()
            .map(|sysctl| sysctl.name.as_str());
        let allowed = |name: &str| {
            SYSCTLS
                .iter()
                .any(|(since, known)| *since <= self.minor && *known == name)
        };
        let bad: Vec<&str> = set.filter(|name| !allowed(name)).collect();
        match bad.is_empty() {
            true => None,
            false => violation("forbidden sysctls", bad.join(", ")),
        }
    }

    fn host_process(&self) -> Option<Violation> {
        let pod = self.spec.security_context.as_ref();
        let pod = pod.and_then(|security| security.windows_options.as_ref());
        let pod = pod.and_then(|options| options.host_process) == Some(true);
        let bad = self.named(|one| {
            let options = one
                .security
                .and_then(|security| security.windows_options.as_ref());
            options.and_then(|options| options.host_process) == Some(true)
        });
        if !pod && bad.is_empty() {
            return None;
        }
        let detail = format!(
            "{} must not set securityContext.windowsOptions.hostProcess=true",
            setters(pod, &bad)
        );
        violation("hostProcess", detail)
    }

    fn privilege_escalation(&self) -> Option<Violation> {
        if self.is_windows() {
            return None;
        }
        let bad = self.named(|one| {
            one.security
                .and_then(|security| security.allow_privilege_escalation)
                != Some(false)
        });
        if bad.is_empty() {
            return None;
        }
        let detail = format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            containers(&bad)
        );
        violation("allowPrivilegeEscalation != false", detail)
    }

    fn all_capabilities(&self) -> Option<Violation> {
        if self.is_windows() {
            return None;
        }
        let keeping = self.named(|one| {
            let capabilities = one
                .security
                .and_then(|security| security.capabilities.as_ref());
            let dropped = capabilities.and_then(|capabilities| capabilities.drop.as_ref());
            !dropped
                .into_iter()
                .flatten()
                .any(|dropped| dropped == "ALL")
        });
        let (adding, added) = self.added(&["NET_BIND_SERVICE"]);
        let mut details = Vec::new();
        if !keeping.is_empty() {
            details.push(format!(
                "{} must set securityContext.capabilities.drop=[\"ALL\"]",
                containers(&keeping)
            ));
        }
        if !adding.is_empty() {
            details.push(format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers(&adding),
                quoted(added)
            ));
        }
        match details.is_empty() {
            true => None,
            false => violation("unrestricted capabilities", details.join("; ")),
        }
    }

    fn volume_types(&self) -> Option<Violation> {
        let (mut names, mut types) = (Vec::new(), BTreeSet::new());
        for volume in self.spec.volumes.iter().flatten() {
            let is_allowed = volume.config_map.is_some()
                || volume.csi.is_some()
                || volume.downward_api.is_some()
                || volume.empty_dir.is_some()
                || volume.ephemeral.is_some()
                || volume.persistent_volume_claim.is_some()
                || volume.projected.is_some()
                || volume.secret.is_some();
            if is_allowed {
                continue;
            }
            names.push(volume.name.as_str());
            let kinds = [
                ("hostPath", volume.host_path.is_some()),
                ("gcePersistentDisk", volume.gce_persistent_disk.is_some()),
                (
                    "awsElasticBlockStore",
                    volume.aws_elastic_block_store.is_some(),
                ),
                ("gitRepo", volume.git_repo.is_some()),
                ("nfs", volume.nfs.is_some()),
                ("iscsi", volume.iscsi.is_some()),
                ("glusterfs", volume.glusterfs.is_some()),
                ("rbd", volume.rbd.is_some()),
                ("flexVolume", volume.flex_volume.is_some()),
                ("cinder", volume.cinder.is_some()),
                ("cephfs", volume.cephfs.is_some()),
                ("flocker", volume.flocker.is_some()),
                ("fc", volume.fc.is_some()),
                ("azureFile", volume.azure_file.is_some()),
                ("vsphereVolume", volume.vsphere_volume.is_some()),
                ("quobyte", volume.quobyte.is_some()),
                ("azureDisk", volume.azure_disk.is_some()),
                (
                    "photonPersistentDisk",
                    volume.photon_persistent_disk.is_some(),
                ),
                ("portworxVolume", volume.portworx_volume.is_some()),
                ("scaleIO", volume.scale_io.is_some()),
                ("storageos", volume.storageos.is_some()),
            ];
            let kind = kinds.iter().find(|(_, set)| *set);
            types.insert(kind.map_or("unknown", |(name, _)| *name));
        }
        if names.is_empty() {
            return None;
        }
        let detail = format!(
            "{} {} {} {} {}",
            plural(names.len(), "volume", "volumes"),
            quoted(&names),
            plural(names.len(), "uses", "use"),
            plural(
                types.len(),
                "restricted volume type",
                "restricted volume types"
            ),
            quoted(types)
        );
        violation("restricted volume types", detail)
    }

    fn run_as_non_root(&self) -> Option<Violation> {
        if self.has_own_users() {
            return None;
        }
        let pod = self.spec.security_context.as_ref();
        let pod = pod.and_then(|security| security.run_as_non_root);
        let of = |one: &View<'_>| one.security.and_then(|security| security.run_as_non_root);
        let reason = "runAsNonRoot != true";
        let bad = self.named(|one| of(one) == Some(false));
        if pod == Some(false) || !bad.is_empty() {
            let detail = format!(
                "{} must not set securityContext.runAsNonRoot=false",
                setters(pod == Some(false), &bad)
            );
            return violation(reason, detail);
        }
        let silent = self.named(|one| of(one).is_none() && pod != Some(true));
        if silent.is_empty() {
            return None;
        }
        let detail = format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            containers(&silent)
        );
        violation(reason, detail)
    }

    fn run_as_user(&self) -> Option<Violation> {
        if self.has_own_users() {
            return None;
        }
        let pod = self.spec.security_context.as_ref();
        let pod = pod.and_then(|security| security.run_as_user) == Some(0);
        let bad =
            self.named(|one| one.security.and_then(|security| security.run_as_user) == Some(0));
        if !pod && bad.is_empty() {
            return None;
        }
        violation(
            "runAsUser=0",
            format!("{} must not set runAsUser=0", setters(pod, &bad)),
        )
    }

    fn seccomp_set(&self) -> Option<Violation> {
        if self.is_windows() {
            return None;
        }
        let bad = self.bad_seccomp();
        if bad.is_some() {
            return bad;
        }
        let pod = self.seccomp_of_pod();
        let silent = self.named(|one| Self::seccomp_of(one).is_none() && pod.is_none());
        if silent.is_empty() {
            return None;
        }
        let detail = format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&silent)
        );
        violation("seccompProfile", detail)
    }
}
