//! Which pod holds which address and which ports of the host, kept as one small file per pod.
//!
//! A lease is written before anything is made for its pod and removed after everything of it is gone, so a crash in
//! between leaves a lease too many (reconciled at the next start), never an address in use twice.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{HostPort, NetworkError};

/// What a pod holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) ip: Ipv4Addr,
    /// None of a pod that was attached while the node had only IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ip6: Option<Ipv6Addr>,
    pub(crate) host_ports: Vec<HostPort>,
    /// Everything of the pod was made. Until then a crash leaves something half-done.
    pub(crate) ready: bool,
}

/// The lease files of one node.
#[derive(Clone, Debug)]
pub(crate) struct LeaseFiles {
    dir: PathBuf,
}

impl LeaseFiles {
    /// Opens (and makes) the directory.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, NetworkError> {
        fs::create_dir_all(&dir).map_err(|source| NetworkError::Io {
            doing: format!("creating {}", dir.display()),
            source,
        })?;
        Ok(Self { dir })
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }

    /// All leases. A file that cannot be understood is removed with a warning: it names no address that could be
    /// kept free, and the pod is set up anew when its worker asks.
    pub(crate) fn load(&self) -> Result<BTreeMap<String, Lease>, NetworkError> {
        let mut leases = BTreeMap::new();
        let entries = fs::read_dir(&self.dir).map_err(|e| doing("reading", &self.dir, e))?;
        for entry in entries {
            let path = entry.map_err(|e| doing("reading", &self.dir, e))?.path();
            let uid = path
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| n.strip_suffix(".json"));
            let content = fs::read(&path).map_err(|e| doing("reading", &path, e))?;
            match (uid, serde_json::from_slice(&content)) {
                (Some(uid), Ok(lease)) => {
                    leases.insert(uid.to_owned(), lease);
                }
                _ => {
                    tracing::warn!(file = %path.display(), "not an address lease; removed");
                    fs::remove_file(&path).map_err(|e| doing("removing", &path, e))?;
                }
            }
        }
        Ok(leases)
    }

    /// Writes a pod's lease so that it is there as a whole or not at all.
    pub(crate) fn write(&self, uid: &str, lease: &Lease) -> Result<(), NetworkError> {
        let path = self.path(uid);
        let content = serde_json::to_vec(lease).map_err(|e| doing("writing", &path, e.into()))?;
        // Not more than whole: pods get their network anew when the machine starts.
        gantry_durable::replace_whole(&path, &content, 0o600)
            .map_err(|e| doing("writing", &path, e))
    }

    /// Removes a pod's lease; absent is fine.
    pub(crate) fn remove(&self, uid: &str) -> Result<(), NetworkError> {
        let path = self.path(uid);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(doing("removing", &path, e)),
            _ => Ok(()),
        }
    }
}

fn doing(what: &str, path: &Path, source: io::Error) -> NetworkError {
    NetworkError::Io {
        doing: format!("{what} {}", path.display()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    #[test]
    fn a_lease_survives_and_a_broken_file_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = LeaseFiles::open(dir.path().join("leases")).unwrap();
        let lease = Lease {
            ip: Ipv4Addr::new(10, 0, 0, 2),
            ip6: None,
            host_ports: vec![HostPort {
                host_ip: None,
                host_port: 80,
                container_port: 8080,
                protocol: Protocol::Tcp,
            }],
            ready: true,
        };
        files.write("a", &lease).unwrap();
        fs::write(dir.path().join("leases/b.json"), b"{\"ip\":").unwrap();
        fs::write(dir.path().join("leases/c.draft"), b"{}").unwrap();
        let again = LeaseFiles::open(dir.path().join("leases")).unwrap();
        assert_eq!(
            again.load().unwrap(),
            BTreeMap::from([("a".to_owned(), lease)])
        );
        assert_eq!(fs::read_dir(dir.path().join("leases")).unwrap().count(), 1);
        again.remove("a").unwrap();
        again.remove("a").unwrap();
        assert!(again.load().unwrap().is_empty());
    }
}
