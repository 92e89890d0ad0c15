//! A server's identity, in its data directory.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use gantry_authority::keys;
use gantry_members::ServerRecord;
use serde::{Deserialize, Serialize};

const FILE: &str = "member.json";
/// The first server of a cluster.
const FIRST: u64 = 1;

/// An id for a further server.
pub(crate) fn draw_id() -> u64 {
    u64::from(rand::random::<u32>()) + FIRST + 1
}

/// Who a server is, and whom it knew last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemberIdentity {
    /// Its member id.
    pub(crate) id: u64,
    /// Its name.
    pub(crate) name: String,
    /// Whether it founded the cluster.
    pub(crate) founder: bool,
    /// The servers it knew when it joined: where it finds the others before it has caught up.
    pub(crate) servers: Vec<ServerRecord>,
    /// Whether it was made a cluster of its own and has not forgotten the others yet.
    #[serde(default)]
    pub(crate) alone: bool,
    /// Whether its store has been made: from then on, one without data has lost it.
    #[serde(default)]
    pub(crate) begun: bool,
}

impl MemberIdentity {
    /// The identity in a data directory; `None` before the first start.
    pub(crate) fn load(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!(
                    "{} is damaged: take this server out with 'gantry member remove', and add it anew with an empty data directory",
                    path.display()
                )
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Refuses a data directory that has lost its identity: a member's store or keys are there, and a new one beside them
    /// would be that member once more, without what it has promised. Where a server `joins`, keys and certificates alone
    /// may be what an attempt before has left.
    pub(crate) fn check_vacant(data_dir: &Path, joins: bool) -> Result<()> {
        let store = data_dir.join("store");
        let has_store = fs::read_dir(&store).is_ok_and(|mut items| items.next().is_some());
        let own = [
            keys::path(data_dir),
            data_dir.join("pki").join("server.key"),
        ];
        let left = own.into_iter().filter(|file| !joins && file.exists());
        let Some(left) = has_store.then_some(store).into_iter().chain(left).next() else {
            return Ok(());
        };
        bail!(
            "{} is missing beside {}: without it this directory would be taken for a new server's. Put the file back; or else, \
             while the other servers run, take this one out with 'gantry member remove' and add it anew with an empty data \
             directory; if it was the only one, empty the data directory and restore a backup with 'gantry recover --backup'",
            data_dir.join(FILE).display(),
            left.display()
        )
    }

    /// The first server of a new cluster.
    pub(crate) fn founding(name: &str) -> Self {
        Self {
            id: FIRST,
            name: name.to_owned(),
            founder: true,
            servers: Vec::new(),
            alone: false,
            begun: false,
        }
    }

    /// The first server of a cluster that comes from a backup. Its id is new: no other server of that cluster had it.
    pub(crate) fn restored(name: &str) -> Self {
        Self {
            id: draw_id(),
            name: name.to_owned(),
            founder: false,
            servers: Vec::new(),
            alone: true,
            begun: true,
        }
    }

    /// Writes it whole or not at all.
    pub(crate) fn save(&self, data_dir: &Path) -> Result<()> {
        let path = data_dir.join(FILE);
        let writing = || format!("writing {}", path.display());
        gantry_durable::create_directories(data_dir).with_context(writing)?;
        let json = serde_json::to_vec(self).with_context(writing)?;
        gantry_durable::replace(&path, &json, 0o600).with_context(writing)
    }

    /// The members that vote at the start of the store: the founder alone; others are told.
    pub(crate) fn voters(&self) -> Vec<u64> {
        if self.founder {
            vec![self.id]
        } else {
            Vec::new()
        }
    }

    /// Where the others were.
    pub(crate) fn known_addresses(&self) -> impl Iterator<Item = (u64, SocketAddr)> {
        self.servers
            .iter()
            .map(|server| (server.id, server.address))
    }
}
