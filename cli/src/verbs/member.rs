//! `gantry member`: the servers of the control plane.

use anyhow::Result;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster, percent_encode};
use crate::output;

const PATH: &str = "/gantry/v1/members";

/// List, remove and promote the servers of the control plane
#[derive(Debug, clap::Args)]
pub(crate) struct Member {
    #[command(subcommand)]
    command: MemberCommand,
}

#[derive(Debug, clap::Subcommand)]
enum MemberCommand {
    /// List the servers
    List,
    /// Take a server out of the cluster; its data directory must not be used again
    Remove {
        /// The server's name or id
        name: String,
    },
    /// Let a server vote that only follows; this happens by itself once it has caught up
    Promote {
        /// The server's name or id
        name: String,
    },
    /// Make another server the leader
    #[command(visible_alias = "transfer-leader")]
    TransferLeadership {
        /// The server's name or id
        name: String,
    },
}

impl Member {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let (method, name, suffix, done) = match &self.command {
            MemberCommand::List => return list(cluster).await,
            MemberCommand::Remove { name } => (Method::DELETE, name, "", "removed"),
            MemberCommand::Promote { name } => (Method::POST, name, "/promote", "votes now"),
            MemberCommand::TransferLeadership { name } => {
                (Method::POST, name, "/lead", "leads now")
            }
        };
        let path = format!("{PATH}/{}{suffix}", percent_encode(name));
        cluster.call(Call::send(method, &path, &json!({}))).await?;
        output::print(&format!("server {name} {done}\n"))
    }
}

async fn list(cluster: &Cluster) -> Result<()> {
    let members = cluster.call(Call::get(PATH)).await?;
    let head = [
        "NAME", "ID", "ADDRESS", "VERSION", "ROLE", "LEADER", "BEHIND",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let mut differing = Vec::new();
    for member in members.as_array().into_iter().flatten() {
        let text = |field: &str| match &member[field] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let full = member["shortOfRoom"] == true;
        if member["differs"] == true {
            differing.push(member["name"].as_str().unwrap_or_default().to_owned());
        }
        let behind = match (member["active"].as_bool(), member["lag"].as_u64()) {
            (Some(false), _) => "not heard of".to_owned(),
            (_, Some(lag)) if full => format!("{lag} entries, disk nearly full"),
            (_, None) if full => "disk nearly full".to_owned(),
            (_, Some(lag)) => format!("{lag} entries"),
            _ => String::new(),
        };
        let leads = if member["leader"] == true { "yes" } else { "" };
        lines.push(vec![
            text("name"),
            text("id"),
            text("address"),
            text("version"),
            text("role"),
            leads.to_owned(),
            behind,
        ]);
    }
    let mut text = output::align(&lines);
    if !differing.is_empty() {
        text += &format!(
            "the state of {} differs from the leader's, and no majority tells which is right: see \"A server's state differs\" in \
             docs/operations.md\n",
            differing.join(", ")
        );
    }
    output::print(&text)
}
