//! A node's own object: its registration, its status, and the addresses that it has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, bail};
use gantry_base::json::Members;
use gantry_base::node_labels::DIALS_FROM;
use gantry_base::paths;
use gantry_rpc::node::Hello;
use http::Method;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::super::addresses::{Address, addresses};
use super::super::restrictions::{Claim, check_labels, is_nodes_own, keep_own_addresses};
use super::super::said::{self, Refused};
use super::{AGAIN, ATTEMPTS, LinkReports};
use crate::requests::{call, code, get, is_conflict};

/// The most labels of a Node that its agent may add to, and the most annotations: those of earlier registrations stay.
const MARKS: usize = 512;

impl LinkReports {
    /// Waits until the node may register once more.
    pub(super) async fn turn_to_register(&self) {
        while !self.may_register() {
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn may_register(&self) -> bool {
        self.allowances.registrations.lock().take(Instant::now())
    }

    /// Creates or refreshes the Node from what its agent says, and returns its pod CIDRs.
    pub(crate) async fn register(&self, hello: &Hello) -> Result<Vec<IpNet>> {
        self.turn_to_register().await;
        let mut reported = said::node(hello)?;
        let node = self.node.as_str();
        check_labels(node, &reported)?;
        if let Some(status) = &mut reported.status {
            self.note(keep_own_addresses(node, status));
        }
        let path = paths::node(node, &[]);
        for _ in 0..ATTEMPTS {
            let existing = get(&self.client, &path).await?;
            self.must_be_current()?;
            self.check_addresses(existing.as_ref(), reported.status.as_ref())?;
            let result = match existing {
                None => {
                    let chosen = self.shared.pod_cidrs.allocate(&self.client).await?;
                    let mut object = json!({
                        "apiVersion": "v1",
                        "kind": "Node",
                        "metadata": {"name": node},
                        "spec": {"podCIDR": chosen.blocks.first(), "podCIDRs": chosen.blocks},
                    });
                    mark(&mut object, &reported, self.dials_from)?;
                    let taints = reported.spec.as_ref();
                    if let Some(taints) = taints.and_then(|spec| spec.taints.as_ref()) {
                        *object.member(&["spec", "taints"]) = json!(taints);
                    }
                    let nodes = paths::path(&["api", "v1", "nodes"]);
                    call(&self.client, Method::POST, &nodes, &object).await
                }
                Some(mut object) => {
                    mark(&mut object, &reported, self.dials_from)?;
                    let chosen = match object["spec"]["podCIDR"].is_null() {
                        true => Some(self.shared.pod_cidrs.allocate(&self.client).await?),
                        false => None,
                    };
                    if let Some(chosen) = &chosen {
                        *object.member(&["spec", "podCIDR"]) = json!(chosen.blocks.first());
                        *object.member(&["spec", "podCIDRs"]) = json!(chosen.blocks);
                    }
                    call(&self.client, Method::PUT, &path, &object).await
                }
            };
            match result {
                Ok(object) => {
                    let status = reported.status.unwrap_or_default();
                    self.write_node_status(&status).await?;
                    let blocks = object["spec"]["podCIDRs"].as_array();
                    let blocks = blocks.into_iter().flatten().filter_map(Value::as_str);
                    return Ok(blocks.filter_map(|block| block.parse().ok()).collect());
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("others keep changing the Node object")
    }

    /// Refuses addresses that are somebody else's. Other nodes are looked at only when the node's addresses change.
    fn check_addresses(
        &self,
        existing: Option<&Value>,
        reported: Option<&core::NodeStatus>,
    ) -> Result<(), Refused> {
        let said = addresses(reported);
        let before = existing.map(|node| {
            let own = listed(node).filter(|address| is_of_node(address));
            let own = own.filter_map(|address| address["address"].as_str());
            own.map(Address::new).collect::<BTreeSet<_>>()
        });
        if before.as_ref() == Some(&said) {
            return Ok(());
        }
        let shared = &self.shared;
        let servers = shared.roster.all();
        let servers: Vec<IpAddr> = servers.iter().map(|server| server.address.ip()).collect();
        let claim = Claim {
            node: self.node.as_str(),
            dials_from: self.dials_from,
            servers: &servers,
            cluster: &shared.facts.ranges(),
        };
        claim.check(&said, |address| {
            let nodes = shared.addresses.holders(address).into_iter();
            nodes.map(|node| shared.holder(&node)).collect()
        })
    }

    /// Replaces the Node's status by what its agent says. Addresses that are not the agent's to tell of stay as they are.
    pub(super) async fn write_node_status(&self, status: &core::NodeStatus) -> Result<()> {
        let node = self.node.as_str();
        let (path, status_path) = (paths::node(node, &[]), paths::node(node, &["status"]));
        let own: Vec<Value> = status
            .addresses
            .iter()
            .flatten()
            .map(|address| json!(address))
            .collect();
        for _ in 0..ATTEMPTS {
            let Some(mut object) = get(&self.client, &path).await? else {
                return Ok(());
            };
            self.must_be_current()?;
            self.check_addresses(Some(&object), Some(status))?;
            let given = listed(&object).filter(|address| !is_of_node(address));
            let all: Vec<Value> = own.iter().chain(given).cloned().collect();
            *object.member(&["status"]) = serde_json::to_value(status)?;
            if !all.is_empty() {
                *object.member(&["status", "addresses"]) = Value::Array(all);
            }
            match call(&self.client, Method::PUT, &status_path, &object).await {
                Ok(_) => return Ok(()),
                Err(error) if code(&error) == Some(404) => return Ok(()),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("others keep changing the Node object")
    }
}

/// The addresses in a Node's JSON, with their types.
fn listed(node: &Value) -> impl Iterator<Item = &Value> {
    node["status"]["addresses"].as_array().into_iter().flatten()
}

fn is_of_node(address: &Value) -> bool {
    address["type"].as_str().is_some_and(is_nodes_own)
}

/// Gives a Node the labels and annotations that its agent reports, and says where it dials from; others stay.
fn mark(object: &mut Value, reported: &core::Node, dials_from: IpAddr) -> Result<(), Refused> {
    let marks = [
        ("labels", &reported.metadata.labels),
        ("annotations", &reported.metadata.annotations),
    ];
    for (field, marks) in marks {
        for (key, value) in marks.iter().flatten() {
            *object.member(&["metadata", field, key]) = json!(value);
        }
        let count = object["metadata"][field]
            .as_object()
            .map_or(0, |all| all.len());
        if count > MARKS && marks.is_some() {
            return Err(Refused::NotItsOwn(format!(
                "the Node would have {count} {field}, of which {MARKS} are allowed"
            )));
        }
    }
    *object.member(&["metadata", "annotations", DIALS_FROM]) = json!(dials_from.to_string());
    Ok(())
}
