//! A cluster again from what is left of one: a server whose majority is gone for good, or a backup.

use std::fs;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gantry_authority::keys::Keyring;
use gantry_members::{Roster, ServerRecord};
use gantry_store::backup::BackupSummary;
use gantry_store::{MemberRole, NoPeers, Revision, Store, StoreConfig, recovery};
use tokio::net::TcpStream;

use crate::membership::MemberIdentity;

/// A server that runs answers within this.
const ANSWER: Duration = Duration::from_secs(2);

/// What a recovery made of a data directory.
#[derive(Debug)]
pub struct Recovered {
    /// The server that is the whole cluster now.
    pub server: String,
    /// The last revision it knows for certain.
    pub revision: Revision,
    /// The servers that are not part of it any more.
    pub left_behind: Vec<String>,
}

/// Makes the server of a data directory a cluster of its own. It must not run; nor must the others, unless `force` says
/// that whatever answers at their addresses is not them.
pub async fn recover(data_dir: &Path, force: bool) -> Result<Recovered> {
    let mut identity = MemberIdentity::load(data_dir)?.with_context(|| {
        format!(
            "{} holds no server: name the data directory of the one that is left with --data-dir, or a backup with --backup",
            data_dir.display()
        )
    })?;
    let config = store_config(data_dir, &identity)?;
    let others = voters_beside(&config, identity.id).await?;
    if others.is_empty() {
        bail!(
            "server \"{}\" is the only one that votes: it needs no recovery, start it",
            identity.name
        );
    }
    if !force {
        refuse_if_any_answers(&others).await?;
    }
    let recovered = tokio::task::spawn_blocking(move || recovery::become_sole_voter(&config))
        .await
        .context("recovering broke off")??;
    identity.alone = true;
    identity.servers.clear();
    identity.save(data_dir)?;
    Ok(Recovered {
        server: identity.name,
        revision: recovered.revision,
        left_behind: others.into_iter().map(|other| other.name).collect(),
    })
}

/// What a restore takes.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The backup.
    pub backup: PathBuf,
    /// A copy of the keyring of the cluster that the backup is of; the one in the data directory when not given.
    pub keys: Option<PathBuf>,
    /// The server's name.
    pub name: String,
}

/// Makes an empty data directory the first server of the cluster that a backup holds.
pub async fn restore(data_dir: &Path, from: Restore) -> Result<BackupSummary> {
    if let Some(identity) = MemberIdentity::load(data_dir)? {
        bail!(
            "{} already holds the server \"{}\" of a cluster: name an empty directory with --data-dir, or remove this one first",
            data_dir.display(),
            identity.name
        );
    }
    if let Some(path) = &from.keys {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Keyring::install(data_dir, &bytes)
            .with_context(|| format!("the keys in {}", path.display()))?;
    }
    let identity = MemberIdentity::restored(&from.name);
    let config = StoreConfig {
        // Not before it is restored.
        begun: false,
        ..store_config(data_dir, &identity)?
    };
    let directory = config.data_dir.clone();
    let attempt = async {
        let (path, target) = (from.backup.clone(), config.clone());
        let summary = tokio::task::spawn_blocking(move || -> Result<BackupSummary> {
            let file =
                fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            gantry_store::backup::restore(BufReader::new(file), &target)
                .with_context(|| format!("restoring {}", path.display()))
        });
        let summary = summary.await.context("restoring broke off")??;
        // Now rather than at the first start: whether the keys are those of the backup.
        let store = Store::open(config, Arc::new(NoPeers)).await;
        store.context("opening what was restored")?.shutdown().await;
        Ok(summary)
    };
    let summary = match attempt.await {
        Ok(summary) => summary,
        Err(error) => {
            undo(&directory)?;
            return Err(error);
        }
    };
    identity.save(data_dir)?;
    Ok(summary)
}

/// At the first start of a server that was made a cluster of its own: takes the others off the list.
pub(crate) async fn forget_others(
    data_dir: &Path,
    mut identity: MemberIdentity,
    roster: &Roster,
) -> Result<()> {
    if !identity.alone {
        return Ok(());
    }
    for server in roster.all() {
        if server.id != identity.id {
            roster.remove(server.id).await?;
        }
    }
    identity.alone = false;
    identity.save(data_dir)
}

/// Nothing of a restore that failed may be taken for a server.
fn undo(store: &Path) -> Result<()> {
    match fs::remove_dir_all(store) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("clearing {}: remove it by hand", store.display()))
        }
        _ => Ok(()),
    }
}

fn store_config(data_dir: &Path, identity: &MemberIdentity) -> Result<StoreConfig> {
    Ok(StoreConfig {
        data_dir: data_dir.join("store"),
        member_id: identity.id,
        voters: identity.voters(),
        begun: identity.begun,
        transformer: Some(Arc::new(Keyring::load(data_dir)?)),
        ..StoreConfig::default()
    })
}

/// The other voters, as this member knows them. Those that nobody knows an address of are named by their id.
async fn voters_beside(config: &StoreConfig, own: u64) -> Result<Vec<ServerRecord>> {
    let store = Store::open(config.clone(), Arc::new(NoPeers))
        .await
        .context("opening the store of this server")?;
    let roster = Roster::new(store.clone());
    let members = store.members().await;
    let others = members
        .iter()
        .filter(|member| member.id != own && member.role != MemberRole::Learner);
    let known = others.map(|member| {
        let known = roster.get(member.id);
        known.unwrap_or_else(|| ServerRecord::nowhere(member.id))
    });
    let known = known.collect();
    store.shutdown().await;
    Ok(known)
}

async fn refuse_if_any_answers(others: &[ServerRecord]) -> Result<()> {
    let asked = others.iter().map(|server| async move {
        let attempt = TcpStream::connect(server.address);
        let answers = matches!(tokio::time::timeout(ANSWER, attempt).await, Ok(Ok(_)));
        answers.then(|| described(server.name.as_str(), server.address))
    });
    let answering: Vec<String> = futures::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .collect();
    if answering.is_empty() {
        return Ok(());
    }
    bail!(
        "{} still answers: where a majority of the servers can run, start this one and it needs no recovery; otherwise stop \
         the others first, for they must not go on as if this one still followed them (--force when something else answers there)",
        answering.join(", ")
    )
}

fn described(name: &str, address: SocketAddr) -> String {
    format!("server \"{name}\" at {address}")
}
