//! Keeps what the server said, so that pods continue when the agent starts and no server answers.
//!
//! Everything but Secrets goes into the data directory; Secrets only into the run directory, which is a tmpfs: they
//! never touch a disk. Policies have a file of their own, which is written before that of the pods they isolate. Files are replaced as a whole, by
//! `gantry-durable`; a damaged one counts as missing.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use gantry_rpc::node::{ObjectChange, PolicyChange, Resource, Welcome};
use prost::Message as _;

use crate::desired::Desired;
use crate::policies::Policies;

/// Where the files and the cluster's facts are.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    objects: PathBuf,
    secrets: PathBuf,
    policies: PathBuf,
    welcome: PathBuf,
}

impl Checkpoint {
    pub(crate) fn new(data_dir: &Path, run_dir: &Path) -> Self {
        Self {
            objects: data_dir.join("objects.checkpoint"),
            secrets: run_dir.join("secrets.checkpoint"),
            policies: data_dir.join("policies.checkpoint"),
            welcome: data_dir.join("cluster.checkpoint"),
        }
    }

    /// Fills the desired state and the policies with what was known.
    pub(crate) fn load(&self, desired: &Desired, policies: &Policies) {
        self.load_policies(policies);
        for path in [&self.secrets, &self.objects] {
            let Ok(content) = std::fs::read(path) else {
                continue;
            };
            let mut rest = Bytes::from(content);
            while !rest.is_empty() {
                let change = match ObjectChange::decode_length_delimited(&mut rest) {
                    Ok(change) => change,
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "the checkpoint is damaged; going on without the rest");
                        break;
                    }
                };
                if let Err(error) = desired.apply(&change) {
                    tracing::warn!(%error, "an object of the checkpoint");
                }
            }
        }
    }

    /// Damaged policies are unknown, not none.
    fn load_policies(&self, policies: &Policies) {
        let Ok(content) = std::fs::read(&self.policies) else {
            return;
        };
        let applied = PolicyChange::decode(Bytes::from(content))
            .map_err(|error| error.to_string())
            .and_then(|change| policies.apply(change).map_err(|error| error.to_string()));
        if let Err(error) = applied {
            tracing::warn!(path = %self.policies.display(), error, "the checkpoint of the policies is damaged; waiting for a server");
        }
    }

    pub(crate) fn save(&self, desired: &Desired, policies: &Policies) -> io::Result<()> {
        if let Some(change) = policies.news_for_checkpoint() {
            replace(&self.policies, &change.encode_to_vec())?;
        }
        let (mut objects, mut secrets) = (BytesMut::new(), BytesMut::new());
        for change in desired.snapshot() {
            let into = if change.resource() == Resource::Secret {
                &mut secrets
            } else {
                &mut objects
            };
            change
                .encode_length_delimited(into)
                .map_err(io::Error::other)?;
        }
        replace(&self.secrets, &secrets)?;
        replace(&self.objects, &objects)
    }

    pub(crate) fn welcome(&self) -> Option<Welcome> {
        let content = Bytes::from(std::fs::read(&self.welcome).ok()?);
        // No bytes at all are a message too, of a cluster without addresses.
        let known = Welcome::decode(content).ok();
        let known = known.filter(|welcome| !welcome.pod_cidr.is_empty());
        if known.is_none() {
            tracing::warn!(path = %self.welcome.display(), "the checkpoint of the cluster's facts is damaged; waiting for a server");
        }
        known
    }

    pub(crate) fn save_welcome(&self, welcome: &Welcome) -> io::Result<()> {
        replace(&self.welcome, &welcome.encode_to_vec())
    }
}

/// Readable by root alone.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    gantry_durable::replace(path, content, 0o600)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::desired::tests::change;

    #[test]
    fn secrets_are_kept_apart_and_all_comes_back() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let checkpoint = Checkpoint::new(data.path(), run.path());
        let (desired, policies) = (Desired::default(), Policies::default());
        let meta = |name: &str| json!({"name": name, "namespace": "d"});
        let pod = json!({"metadata": meta("p"), "spec": {"containers": []}});
        let secret = json!({"metadata": meta("s"), "data": {"k": "c2VjcmV0"}});
        desired.apply(&change(Resource::Pod, &pod)).unwrap();
        desired.apply(&change(Resource::Secret, &secret)).unwrap();
        checkpoint.save(&desired, &policies).unwrap();
        let on_disk = std::fs::read(data.path().join("objects.checkpoint")).unwrap();
        assert!(
            !String::from_utf8_lossy(&on_disk).contains("c2VjcmV0"),
            "a secret on the disk"
        );
        let later = Desired::default();
        checkpoint.load(&later, &policies);
        assert!(later.pod("d", "p").is_some() && later.secret("d", "s").is_some());
        assert!(!later.is_synced());
        std::fs::write(
            data.path().join("objects.checkpoint"),
            &on_disk[..on_disk.len() / 2],
        )
        .unwrap();
        let damaged = Desired::default();
        checkpoint.load(&damaged, &policies);
        assert!(damaged.pod("d", "p").is_none() && damaged.secret("d", "s").is_some());
    }

    #[test]
    fn facts_come_back_unless_they_are_damaged() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let checkpoint = Checkpoint::new(data.path(), run.path());
        let welcome = Welcome {
            pod_cidr: "10.244.0.0/24".to_owned(),
            ..Welcome::default()
        };
        assert_eq!(checkpoint.welcome(), None);
        checkpoint.save_welcome(&welcome).unwrap();
        assert_eq!(checkpoint.welcome(), Some(welcome));
        for damaged in ["", "garbage"] {
            std::fs::write(data.path().join("cluster.checkpoint"), damaged).unwrap();
            assert_eq!(checkpoint.welcome(), None);
        }
    }

    #[test]
    fn policies_come_back_unless_they_are_damaged() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let checkpoint = Checkpoint::new(data.path(), run.path());
        let pod = gantry_rpc::node::PodIsolation {
            uid: "u".to_owned(),
            ingress: true,
            ..Default::default()
        };
        let change = PolicyChange {
            snapshot: true,
            pods: vec![pod],
            ..PolicyChange::default()
        };
        let known = Policies::default();
        known.apply(change.clone()).unwrap();
        checkpoint.save(&Desired::default(), &known).unwrap();
        let later = Policies::default();
        checkpoint.load(&Desired::default(), &later);
        assert_eq!(later.news_for_checkpoint(), Some(change));
        std::fs::write(data.path().join("policies.checkpoint"), [0xff, 0xff]).unwrap();
        let damaged = Policies::default();
        checkpoint.load(&Desired::default(), &damaged);
        assert_eq!(damaged.news_for_checkpoint(), None);
    }
}
