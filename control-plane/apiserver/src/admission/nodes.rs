//! Nodes: nothing is scheduled to one before it has said that it is ready; its pods' addresses are its own; and what a node
//! may do ends with its Node.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use gantry_store::{Guard, Index, Key, Operation, Store, Table, Transaction};
use k8s_openapi::api::core::v1::{Node, NodeSpec, Taint};
use serde_json::{Value, json};

use super::plugin::{Attributes, Plugin};
use crate::context::{Context, meta};
use crate::identity::NODE_LINK;
use crate::node_keys;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const NO_SCHEDULE: &str = "NoSchedule";

/// The row that makes a block of pod addresses unique.
fn block_key(block: &str) -> Key {
    Key {
        table: Table("-/podcidrs".into()),
        namespace: "".into(),
        name: block.into(),
    }
}

fn blocks(node: &Value) -> impl Iterator<Item = &str> {
    let blocks = node["spec"]["podCIDRs"].as_array();
    blocks.into_iter().flatten().filter_map(Value::as_str)
}

fn holder(store: &Store, block: &str) -> Option<String> {
    let entry = store.get(&block_key(block))?;
    serde_json::from_slice(&entry.value).ok()
}

/// Takes the blocks of pod addresses that a Node has gained and returns those it has lost. The nodes' side of the server is
/// refused what another node has; anybody else may write what they like, as in Kubernetes.
fn allocate(
    context: &Context<'_>,
    node: &Value,
    current: Option<&Value>,
    transaction: &mut Transaction,
) -> Result<(), StatusError> {
    let (store, name) = (&context.api.store, meta(node, "name"));
    let by_link = context.identity.user == NODE_LINK;
    if by_link && current.is_none() {
        // The Node may have been removed, and with it the right to come back, after the node was let in.
        if !node_keys::is_taken(store, name) {
            return Err(StatusError::forbidden(
                context.resource.info(),
                name,
                "the node was removed: join it again with a new token",
            ));
        }
        transaction.guards.push(Guard::Exists(node_keys::key(name)));
    }
    let before: Vec<&str> = current
        .map(|node| blocks(node).collect())
        .unwrap_or_default();
    for block in blocks(node).filter(|block| !before.contains(block)) {
        match holder(store, block) {
            None => {
                transaction.guards.push(Guard::Absent(block_key(block)));
                transaction.operations.push(Operation::Put {
                    key: block_key(block),
                    value: json!(name).to_string().into(),
                    index: Index::default(),
                });
            }
            Some(holder) if by_link && holder != name => {
                return Err(StatusError::conflict(
                    context.resource.info(),
                    name,
                    &format!("the pod addresses {block} are those of node \"{holder}\""),
                ));
            }
            Some(_) => {}
        }
    }
    let lost = before.into_iter();
    let lost = lost.filter(|block| !blocks(node).any(|kept| kept == *block));
    give_back(store, name, lost, transaction);
    Ok(())
}

fn give_back<'a>(
    store: &Store,
    name: &str,
    blocks: impl Iterator<Item = &'a str>,
    transaction: &mut Transaction,
) {
    let own = blocks.filter(|block| holder(store, block).as_deref() == Some(name));
    transaction
        .operations
        .extend(own.map(|block| Operation::Delete {
            key: block_key(block),
            last: None,
        }));
}

/// With a Node go its pod addresses, and every certificate that it was given.
fn release(context: &Context<'_>, node: &Value, transaction: &mut Transaction) {
    let (store, name) = (&context.api.store, meta(node, "name"));
    give_back(store, name, blocks(node), transaction);
    let gone = node_keys::rows(name).into_iter();
    let gone = gone.map(|key| Operation::Delete { key, last: None });
    transaction.operations.extend(gone);
}

/// Taints a new node; the node controller takes the taint off when the node is ready.
fn taint(spec: &mut NodeSpec) {
    let taints = spec.taints.get_or_insert_default();
    let is_tainted = |taint: &Taint| taint.key == NOT_READY && taint.effect == NO_SCHEDULE;
    if !taints.iter().any(is_tainted) {
        taints.push(Taint {
            key: NOT_READY.to_owned(),
            effect: NO_SCHEDULE.to_owned(),
            ..Taint::default()
        });
    }
}

/// TaintNodesByCondition: nothing is scheduled to a node before it has said that it is ready.
pub(super) struct TaintNodes;

#[async_trait]
impl Plugin for TaintNodes {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("", "Node")
    }

    async fn admit(&self, _: &Attributes<'_>, draft: &mut dyn Draft) -> Result<(), StatusError> {
        if let Some(node) = draft.typed_mut::<Node>() {
            taint(node.spec.get_or_insert_default());
        }
        Ok(())
    }
}

/// Blocks of pod addresses: each is one node's.
pub(super) struct PodCidrs;

impl Plugin for PodCidrs {
    fn name(&self) -> &'static str {
        "PodCIDRs"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "Node")
    }

    fn reserve(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
        current: Option<&Value>,
        transaction: &mut Transaction,
    ) -> Result<bool, StatusError> {
        if attributes.subresource().is_empty() {
            allocate(attributes.context, object, current, transaction)?;
        }
        Ok(false)
    }

    fn release(&self, attributes: &Attributes<'_>, object: &Value, transaction: &mut Transaction) {
        release(attributes.context, object, transaction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_tainted_once_beside_its_own_taints() {
        let mut spec = NodeSpec::default();
        taint(&mut spec);
        taint(&mut spec);
        let taints = spec.taints.clone().unwrap_or_default();
        assert_eq!(taints.len(), 1);
        assert_eq!(
            (&*taints[0].key, &*taints[0].effect),
            (NOT_READY, NO_SCHEDULE)
        );
        let mut own = NodeSpec {
            taints: Some(vec![Taint {
                key: "a".to_owned(),
                effect: "NoExecute".to_owned(),
                ..Taint::default()
            }]),
            ..NodeSpec::default()
        };
        taint(&mut own);
        assert_eq!(own.taints.map(|taints| taints.len()), Some(2));
    }
}
