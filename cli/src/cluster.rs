//! The commands that are the cluster rather than its clients.

mod agent;
mod daemon;
mod down;
mod hosts;
mod join_token;
mod log;
mod memory;
mod place;
mod recover;
mod server;
mod up;

pub(crate) use agent::{AgentCommand, LOCAL_API, METRICS};
pub(crate) use down::Down;
pub(crate) use hosts::{Record, enter};
pub(crate) use join_token::JoinToken;
pub(crate) use place::{DATA_DIR, Place, data_dir, keep_to_ourselves};
pub(crate) use recover::{Recover, RestoreArguments, restore};
pub(crate) use server::ServerCommand;
pub(crate) use up::Up;

use std::path::PathBuf;

use anyhow::{Result, bail};

/// How the agent of a cluster's data directory is set up.
pub(crate) fn agent_config(data_dir: &std::path::Path) -> gantry_agent::AgentConfig {
    gantry_agent::AgentConfig::in_directory(&data_dir.join("agent"))
}

/// The data directories of a cluster's nodes on this machine, with their names where there are several.
pub(crate) fn nodes(data_dir: &std::path::Path) -> Result<Vec<(Option<String>, PathBuf)>> {
    Ok(match Record::load(data_dir)? {
        Some(record) => {
            let names = record.names().into_iter().map(Some);
            names.zip(record.directories(data_dir)).collect()
        }
        None => vec![(None, data_dir.to_owned())],
    })
}

/// This machine's name, as a Kubernetes object may be named.
fn default_node_name() -> String {
    let uname = rustix::system::uname();
    let name: String = uname
        .nodename()
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || letter == '.' {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() {
        "node".to_owned()
    } else {
        name
    }
}

/// Containers, networks and mounts need it.
fn require_root(command: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("'gantry {command}' runs containers through the kernel and needs root: run it with sudo");
}
