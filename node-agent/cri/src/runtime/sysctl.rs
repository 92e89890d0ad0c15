//! Names of kernel settings: which ones belong to the namespaces of a pod.

use std::fmt;
use std::path::PathBuf;

/// Kubernetes' limit.
const LONGEST_NAME: usize = 253;

/// What a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysctlNamespace {
    /// Shared memory, semaphores and message queues.
    Ipc,
    /// Everything about the network.
    Net,
}

impl SysctlNamespace {
    /// That of a setting spelled with dots, or of all settings that begin so.
    pub fn of(name: &str) -> Option<Self> {
        let ipc = name == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."]
                .iter()
                .any(|prefix| name.starts_with(prefix));
        if ipc {
            Some(Self::Ipc)
        } else {
            name.starts_with("net.").then_some(Self::Net)
        }
    }
}

impl fmt::Display for SysctlNamespace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ipc => "ipc",
            Self::Net => "net",
        })
    }
}

/// The name of a setting that belongs to a namespace, spelled with dots: there is no value for any other setting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysctlName(String);

impl SysctlName {
    /// Reads a name in either of the spellings `net.ipv4.x` and `net/ipv4/x`. In each, the other sign stands for itself
    /// within a part: `net.ipv4.conf.eth0/1.forwarding`. `None` for what belongs to no namespace of a pod.
    pub fn parse(name: &str) -> Option<Self> {
        let part = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let ends = [part.bytes().next(), part.bytes().last()];
            ends.iter().all(|byte| byte.is_some_and(plain))
                && part
                    .bytes()
                    .all(|byte| plain(byte) || b"-_".contains(&byte))
        };
        if name.len() > LONGEST_NAME || !name.split(['.', '/']).all(part) {
            return None;
        }
        let name = Self(Self::normalize(name));
        SysctlNamespace::of(&name.0).map(|_| name)
    }

    /// Any name with dots between its parts, as Kubernetes compares names and patterns.
    pub fn normalize(name: &str) -> String {
        match name.find(['.', '/']) {
            Some(first) if name.as_bytes()[first] == b'/' => name
                .chars()
                .map(|sign| match sign {
                    '.' => '/',
                    '/' => '.',
                    other => other,
                })
                .collect(),
            _ => name.to_owned(),
        }
    }

    /// The namespace it belongs to.
    pub fn namespace(&self) -> SysctlNamespace {
        // Only names that belong to one are made.
        SysctlNamespace::of(&self.0).unwrap_or(SysctlNamespace::Net)
    }

    /// With dots.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its file, below a directory of settings; every part is a plain name.
    pub fn path(&self) -> PathBuf {
        self.0
            .split('.')
            .map(|part| part.replace('/', "."))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Option<String> {
        SysctlName::parse(name).map(|name| name.path().display().to_string())
    }

    #[test]
    fn only_settings_of_namespaces_have_a_name() {
        use SysctlNamespace::{Ipc, Net};
        let of = |name| SysctlName::parse(name).map(|name| name.namespace());
        for (name, namespace) in [
            ("kernel.shm_rmid_forced", Ipc),
            ("kernel/shmmax", Ipc),
            ("kernel.sem", Ipc),
            ("fs.mqueue.msg_max", Ipc),
            ("net.core.somaxconn", Net),
            ("net/ipv4/conf/eth0.1/forwarding", Net),
        ] {
            assert_eq!(of(name), Some(namespace), "{name}");
        }
        for name in [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "kernel.semaphore",
            "kernel.hostname",
            "kernel",
            "net",
            "fs.mqueue",
            "fs.mqueues.x",
            "vm.swappiness",
            "net..core",
            "net.",
            ".net.core",
            "net./../kernel/core_pattern",
            "net/../kernel/core_pattern",
            "net.ipv4.../core_pattern",
            "kernel/shm/../core_pattern",
            "kernel.shm*",
            "Net.core.somaxconn",
            "net.core.somaxconn\0",
            "net.core.somaxconn\n",
            "",
            &"net.a".repeat(60),
        ] {
            assert_eq!(of(name), None, "{name:?}");
        }
    }

    #[test]
    fn either_spelling_leads_to_the_same_file() {
        assert_eq!(
            path("net.ipv4.tcp_syncookies").unwrap(),
            "net/ipv4/tcp_syncookies"
        );
        assert_eq!(
            path("net/ipv4/tcp_syncookies").unwrap(),
            "net/ipv4/tcp_syncookies"
        );
        let device = "net/ipv4/conf/eth0.1/forwarding";
        assert_eq!(path(device).unwrap(), device);
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), device);
    }
}
