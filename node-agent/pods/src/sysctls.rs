//! Which kernel settings pods of this node may ask for: Kubernetes' list of those that cannot harm others, and what
//! the node's configuration adds.

use std::str::FromStr;

use gantry_cri::runtime::{SysctlName, SysctlNamespace};
use k8s_openapi::api::core::v1::PodSpec;

/// Safe to set in every pod, by Kubernetes 1.36.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// A setting, or with a `*` at its end all that begin so, which the node's configuration allows beside the safe ones.
/// There is no value for what belongs to no namespace of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysctlPattern {
    begin: String,
    whole: bool,
}

/// A pattern that cannot be allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SysctlPatternError {
    /// Not of the form of a setting.
    #[error(
        "\"{0}\" is no sysctl: write a name such as net.core.somaxconn, or its beginning and * such as net.core.*"
    )]
    Malformed(String),
    /// The host's own.
    #[error(
        "the sysctls {0} are not known to be namespaced: only kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.* are a pod's own"
    )]
    NotNamespaced(String),
}

impl FromStr for SysctlPattern {
    type Err = SysctlPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || SysctlPatternError::Malformed(text.to_owned());
        let (begin, whole) = match text.strip_suffix('*') {
            Some(begin) => (begin, false),
            None => (text, true),
        };
        let sign =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let mut parts: Vec<&str> = begin.split(['.', '/']).collect();
        // What the star stands for may be a whole part.
        if !whole && parts.last().is_some_and(|last| last.is_empty()) {
            parts.pop();
        }
        let well_formed = text.len() <= 253
            && !parts.is_empty()
            && parts
                .iter()
                .all(|part| !part.is_empty() && part.bytes().all(sign));
        if !well_formed {
            return Err(malformed());
        }
        let begin = SysctlName::normalize(begin);
        match SysctlNamespace::of(&begin) {
            Some(_) => Ok(Self { begin, whole }),
            None => Err(SysctlPatternError::NotNamespaced(text.to_owned())),
        }
    }
}

impl SysctlPattern {
    fn matches(&self, name: &SysctlName) -> bool {
        if self.whole {
            name.as_str() == self.begin
        } else {
            name.as_str().starts_with(&self.begin)
        }
    }

    /// As it is written on a command line.
    pub fn text(&self) -> String {
        format!("{}{}", self.begin, if self.whole { "" } else { "*" })
    }
}

/// Refuses a pod that asks for another setting, or for one that its host's namespaces would take; with the words of a
/// kubelet.
pub(crate) fn check(spec: &PodSpec, allowed: &[SysctlPattern]) -> Result<(), String> {
    let context = spec.security_context.as_ref();
    for sysctl in context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten())
    {
        let written = SysctlName::normalize(&sysctl.name);
        let name = SysctlName::parse(&sysctl.name).filter(|name| {
            SAFE.contains(&name.as_str()) || allowed.iter().any(|pattern| pattern.matches(name))
        });
        let Some(name) = name else {
            return Err(format!("forbidden sysctl: {written:?} not allowlisted"));
        };
        let namespace = name.namespace();
        let of_the_host = match namespace {
            SysctlNamespace::Ipc => spec.host_ipc,
            SysctlNamespace::Net => spec.host_network,
        };
        if of_the_host == Some(true) {
            return Err(format!(
                "forbidden sysctl: {written:?} not allowed with host {namespace} enabled"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ask(spec: Value, names: &[&str], allowed: &[&str]) -> Result<(), String> {
        let mut spec = spec;
        let sysctls: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "value": "1"}))
            .collect();
        spec["containers"] = json!([]);
        spec["securityContext"] = json!({"sysctls": sysctls});
        let allowed: Vec<SysctlPattern> =
            allowed.iter().map(|text| text.parse().unwrap()).collect();
        check(&serde_json::from_value(spec).unwrap(), &allowed)
    }

    #[test]
    fn only_safe_ones_and_what_is_allowed() {
        assert_eq!(ask(json!({}), &SAFE, &[]), Ok(()));
        assert_eq!(ask(json!({}), &["net/ipv4/tcp_syncookies"], &[]), Ok(()));
        assert_eq!(
            ask(json!({}), &["kernel.core_pattern"], &[]),
            Err("forbidden sysctl: \"kernel.core_pattern\" not allowlisted".to_owned())
        );
        for refused in [
            "net.core.somaxconn",
            "kernel/core_pattern",
            "net./../kernel/core_pattern",
            "vm.overcommit_memory",
        ] {
            assert!(
                ask(
                    json!({}),
                    &[SAFE[0], refused],
                    &["net.ipv4.*", "kernel.msg*"]
                )
                .is_err(),
                "{refused}"
            );
        }
        assert_eq!(
            ask(
                json!({}),
                &["net/core/somaxconn", "kernel.msgmax", "kernel.sem"],
                &["net.core.*", "kernel.msg*", "kernel/sem"]
            ),
            Ok(())
        );
        assert!(ask(json!({}), &["net.core.somaxconn2"], &["net.core.somaxconn"]).is_err());
        assert!(ask(json!({}), &["net.core../x"], &["net.*"]).is_err());
    }

    #[test]
    fn the_hosts_own_are_never_set() {
        assert_eq!(
            ask(
                json!({"hostNetwork": true}),
                &["net.ipv4.tcp_syncookies"],
                &["net.*"]
            ),
            Err(
                "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"
                    .to_owned()
            )
        );
        assert_eq!(
            ask(
                json!({"hostIPC": true}),
                &["kernel.shm_rmid_forced"],
                &["kernel.shm*"]
            ),
            Err(
                "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled"
                    .to_owned()
            )
        );
        assert_eq!(
            ask(json!({"hostIPC": true}), &["net.ipv4.tcp_syncookies"], &[]),
            Ok(())
        );
    }

    #[test]
    fn a_pattern_never_reaches_beyond_namespaces() {
        for text in [
            "net.*",
            "net/*",
            "kernel.shm*",
            "kernel.sem",
            "fs.mqueue.*",
            "net.ipv4.conf.eth0/1.forwarding",
        ] {
            assert!(text.parse::<SysctlPattern>().is_ok(), "{text}");
        }
        for text in [
            "*",
            "",
            "kernel.*",
            "kernel.s*",
            "fs.*",
            "net*",
            "net",
            "vm.*",
            "kernel.core_pattern",
        ] {
            assert!(text.parse::<SysctlPattern>().is_err(), "{text}");
        }
        for text in [
            "net.*.x",
            "net..*",
            "net.**",
            "../net.*",
            "net.\u{e4}*",
            "Net.*",
        ] {
            let error = text.parse::<SysctlPattern>().unwrap_err();
            assert_eq!(error, SysctlPatternError::Malformed(text.to_owned()));
        }
        let wrong = "kernel.*".parse::<SysctlPattern>().unwrap_err().to_string();
        assert!(
            wrong.contains("kernel.* are not known to be namespaced"),
            "{wrong}"
        );
    }
}
