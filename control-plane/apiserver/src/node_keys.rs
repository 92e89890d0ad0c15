//! Which keys a node may show. A name that was ever certified has a row here; a certificate counts for as long as its key is
//! in it, whatever its own dates say.
//!
//! - The row comes with the first certificate of a name, and with it the name is taken: another key gets in only by an
//!   administrator or by a key that is in it. What an administrator has made and nobody has shown yet reserves nothing.
//! - It goes with the Node, in the transaction that removes that: from then on no certificate of the node counts, and the
//!   name is free. A name whose machine never came is free again when that is no more expected ([`free`]).

use gantry_store::{
    Guard, Index, Key, Operation, ProposeError, Revision, Store, Table, Transaction,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a node's certificate says beside its name.
pub const NODES_GROUP: &str = "system:nodes";
const TABLE: &str = "-/nodekeys";
/// The ledger of issued certificates, by user.
pub const LEDGER: &str = "-/certificates";
/// Keys of one node at once: the newest, and those that it may still be using since an answer was lost.
const KEPT: usize = 8;

/// How a key is recognised: the SHA-256 of its public half, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyId(String);

impl KeyId {
    /// The key of a certificate, DER.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let key = &certificate.public_key().subject_public_key.data;
        let mut text = String::new();
        for byte in Sha256::digest(key) {
            text.push_str(&format!("{byte:02x}"));
        }
        Some(Self(text))
    }
}

/// Whose word it is that a node has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Voucher {
    /// An administrator's, or a server's for the node that it runs beside: the key joins those that there are.
    Administrator,
    /// The node's own, which has shown this key.
    Node(KeyId),
    /// That of a token which admits nodes that are new.
    Token,
    /// That of a token which an administrator made for this node: the key replaces those that there are.
    TokenForNode,
}

/// Why a node does not get a certificate.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Somebody has it.
    #[error(
        "the node \"{0}\" has a certificate already: if that machine is to be this one, make a token for it with 'gantry token create \
         --for nodes --node {0}', or remove it first with 'gantry delete node {0}'; else choose another name with --node-name"
    )]
    Taken(String),
    /// The key that asks is not, or no longer, one of the node's.
    #[error(
        "the node \"{0}\" was removed from the cluster, and its certificate with it: join it again with a new token"
    )]
    Revoked(String),
    /// It could not be written down.
    #[error("noting which keys the node has: {0}")]
    Store(#[from] ProposeError),
}

/// A row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// The newest first. Empty for a node that was certified before there were rows: any key will do until it shows one.
    keys: Vec<KeyId>,
    /// An administrator has made the keys, and no node has shown one: a machine that joins by a token is the node then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unused: bool,
}

/// Where a node's row is.
pub(crate) fn key(node: &str) -> Key {
    Key {
        table: table(),
        namespace: "".into(),
        name: node.into(),
    }
}

/// The rows that go with a node: its keys, and what the ledger has of it.
pub(crate) fn rows(node: &str) -> [Key; 2] {
    let issued = Key {
        table: Table(LEDGER.into()),
        namespace: format!("system:node:{node}").as_str().into(),
        name: "".into(),
    };
    [key(node), issued]
}

/// The table of all rows, for those who watch it.
pub fn table() -> Table {
    Table(TABLE.into())
}

fn read(store: &Store, node: &str) -> Option<(Row, Revision)> {
    let entry = store.get(&key(node))?;
    // Only this module writes the table; a row that cannot be read lets nobody in.
    let row = serde_json::from_slice(&entry.value).ok()?;
    Some((row, entry.modify_revision))
}

/// Whether a certificate of this node with this key counts.
pub fn counts(store: &Store, node: &str, key: &KeyId) -> bool {
    read(store, node).is_some_and(|(row, _)| row.keys.is_empty() || row.keys.contains(key))
}

/// Whether the name was certified and not removed since.
pub fn is_taken(store: &Store, node: &str) -> bool {
    store.get(&key(node)).is_some()
}

/// The keys after one was added by somebody's word; an error when that does not suffice.
fn added(node: &str, row: Option<&Row>, new: &KeyId, by: &Voucher) -> Result<Row, KeyError> {
    let known = row.map(|row| row.keys.as_slice()).unwrap_or_default();
    let alone = || Row {
        keys: vec![new.clone()],
        unused: false,
    };
    match (by, row) {
        (Voucher::TokenForNode, _) => return Ok(alone()),
        (Voucher::Token, Some(row)) if row.unused => return Ok(alone()),
        (Voucher::Token, Some(row)) if !row.keys.contains(new) => {
            return Err(KeyError::Taken(node.to_owned()));
        }
        (Voucher::Node(shown), Some(row)) if !row.keys.is_empty() && !row.keys.contains(shown) => {
            return Err(KeyError::Revoked(node.to_owned()));
        }
        (Voucher::Node(_), None) => return Err(KeyError::Revoked(node.to_owned())),
        _ => {}
    }
    let mut keys = vec![new.clone()];
    let shown = match by {
        Voucher::Node(shown) => Some(shown.clone()),
        _ => None,
    };
    // The one that was shown stays whatever is cut: the node has no other until it reads the answer.
    let others = known
        .iter()
        .filter(|known| **known != *new && Some(*known) != shown.as_ref());
    let room = KEPT - 1 - usize::from(shown.is_some());
    keys.extend(others.take(room).cloned());
    keys.extend(shown.filter(|shown| shown != new));
    let unused = match row {
        Some(row) => row.unused,
        None => *by == Voucher::Administrator,
    };
    Ok(Row { keys, unused })
}

async fn write(
    store: &Store,
    node: &str,
    row: &Row,
    instead_of: Option<Revision>,
) -> Result<bool, ProposeError> {
    let key = key(node);
    let guard = match instead_of {
        Some(revision) => Guard::ModifiedAt(key.clone(), revision),
        None => Guard::Absent(key.clone()),
    };
    let put = Operation::Put {
        key,
        // Strings in a list: there is nothing that could not be written.
        value: serde_json::to_vec(row).unwrap_or_default().into(),
        index: Index::default(),
    };
    let transaction = Transaction {
        guards: vec![guard],
        operations: vec![put],
    };
    match store.propose(transaction).await {
        Ok(_) => Ok(true),
        Err(ProposeError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Adds a key to those of a node, if the word for it suffices. On any server.
pub async fn add(store: &Store, node: &str, new: &KeyId, by: &Voucher) -> Result<(), KeyError> {
    loop {
        store.read_barrier().await?;
        let found = read(store, node);
        let row = added(node, found.as_ref().map(|(row, _)| row), new, by)?;
        if found.as_ref().is_some_and(|(known, _)| *known == row) {
            return Ok(());
        }
        if write(store, node, &row, found.map(|(_, revision)| revision)).await? {
            return Ok(());
        }
    }
}

/// A node has shown a key: those before it are not needed any more.
pub async fn shown(store: &Store, node: &str, key: &KeyId) -> Result<(), KeyError> {
    let Some((mut row, revision)) = read(store, node) else {
        return Err(KeyError::Revoked(node.to_owned()));
    };
    let was_unused = std::mem::take(&mut row.unused);
    match row.keys.iter().position(|known| known == key) {
        Some(at) if at + 1 == row.keys.len() && !was_unused => return Ok(()),
        Some(at) => row.keys.truncate(at + 1),
        None if row.keys.is_empty() => row.keys.push(key.clone()),
        None => return Err(KeyError::Revoked(node.to_owned())),
    }
    // Whoever was faster has changed the row for a reason: the next time will do.
    write(store, node, &row, Some(revision)).await?;
    Ok(())
}

/// Gives a node that was certified by an earlier version its row: any key counts until it shows one.
pub async fn adopt(store: &Store, node: &str) -> Result<(), ProposeError> {
    write(store, node, &Row::default(), None).await.map(drop)
}

/// The names that some machine has got by a token or as its own, with the revisions of their rows. What only an administrator
/// has made is not among them: it reserves nothing, and may be needed any time. O(rows).
pub fn held(store: &Store) -> Vec<(String, Revision)> {
    let rows = store.snapshot(&table());
    let held = rows.iter().filter_map(|((_, name), entry)| {
        let row: Row = serde_json::from_slice(&entry.value).ok()?;
        (!row.unused).then(|| (name.to_string(), entry.modify_revision))
    });
    held.collect()
}

/// Whether somebody still expects the machine of a name: there is a Node, or a certificate is in the ledger.
pub fn is_expected(store: &Store, node: &str) -> bool {
    let [_, issued] = rows(node);
    store.get(&node_object(node)).is_some() || store.get(&issued).is_some()
}

/// Gives up a name whose machine is not expected any more, if its row is still the one of this revision.
pub async fn free(store: &Store, node: &str, row: Revision) -> Result<(), ProposeError> {
    let [key, issued] = rows(node);
    let transaction = Transaction {
        guards: vec![
            Guard::ModifiedAt(key.clone(), row),
            Guard::Absent(issued),
            Guard::Absent(node_object(node)),
        ],
        operations: vec![Operation::Delete { key, last: None }],
    };
    match store.propose(transaction).await {
        Ok(_) | Err(ProposeError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn node_object(node: &str) -> Key {
    Key {
        table: Table("core/nodes".into()),
        namespace: "".into(),
        name: node.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> KeyId {
        KeyId(text.to_owned())
    }

    #[tokio::test]
    async fn a_name_is_taken_by_its_first_key() {
        let store = Store::ephemeral();
        let (one, two) = (id("1"), id("2"));
        assert!(!counts(&store, "a", &one), "nobody has certified it");
        add(&store, "a", &one, &Voucher::Token).await.expect("new");
        assert!(counts(&store, "a", &one) && is_taken(&store, "a"));
        // The same request again, since the answer was lost.
        add(&store, "a", &one, &Voucher::Token)
            .await
            .expect("its own");
        let refused = add(&store, "a", &two, &Voucher::Token).await;
        assert!(matches!(refused, Err(KeyError::Taken(_))));
        assert!(!counts(&store, "a", &two));
        let refused = add(&store, "a", &two, &Voucher::Node(two.clone())).await;
        assert!(matches!(refused, Err(KeyError::Revoked(_))));
        add(&store, "a", &two, &Voucher::TokenForNode)
            .await
            .expect("an administrator's word");
        assert!(counts(&store, "a", &two) && !counts(&store, "a", &one));
    }

    #[tokio::test]
    async fn what_nobody_has_shown_reserves_no_name() {
        let store = Store::ephemeral();
        let (one, two, three) = (id("1"), id("2"), id("3"));
        for key in [&one, &two] {
            add(&store, "a", key, &Voucher::Administrator)
                .await
                .expect("an administrator's word");
        }
        assert!(counts(&store, "a", &one) && counts(&store, "a", &two));
        add(&store, "a", &three, &Voucher::Token)
            .await
            .expect("not there yet");
        assert!(counts(&store, "a", &three) && !counts(&store, "a", &one));
        add(&store, "a", &one, &Voucher::Token)
            .await
            .expect_err("it is there");
        add(&store, "b", &one, &Voucher::Administrator)
            .await
            .expect("an administrator's word");
        shown(&store, "b", &one).await.expect("its key");
        add(&store, "b", &two, &Voucher::Token)
            .await
            .expect_err("it is there");
    }

    #[tokio::test]
    async fn a_name_whose_machine_never_came_is_free_again() {
        let store = Store::ephemeral();
        let one = id("1");
        for (name, by) in [("a", Voucher::Token), ("made", Voucher::Administrator)] {
            add(&store, name, &one, &by).await.expect("new");
        }
        let held = held(&store);
        let [(name, row)] = held.as_slice() else {
            panic!("{held:?}");
        };
        assert!(name == "a" && !is_expected(&store, "a"));
        let put = |key: Key| Transaction {
            guards: Vec::new(),
            operations: vec![Operation::Put {
                key,
                value: "{}".into(),
                index: Index::default(),
            }],
        };
        let [_, issued] = rows("a");
        let (deleted, node) = (issued.clone(), node_object("a"));
        for needed in [issued, node] {
            store.propose(put(needed.clone())).await.expect("written");
            assert!(is_expected(&store, "a"));
            free(&store, "a", *row).await.expect("no error");
            assert!(is_taken(&store, "a"), "{needed:?}");
            let delete = Operation::Delete {
                key: needed,
                last: None,
            };
            let transaction = Transaction {
                guards: Vec::new(),
                operations: vec![delete],
            };
            store.propose(transaction).await.expect("deleted");
        }
        assert!(store.get(&deleted).is_none());
        free(&store, "a", *row).await.expect("nobody needs it");
        assert!(!is_taken(&store, "a") && is_taken(&store, "made"));
    }

    #[tokio::test]
    async fn a_renewed_key_replaces_the_old_one_when_it_is_shown() {
        let store = Store::ephemeral();
        let keys: Vec<KeyId> = (0..40).map(|number| id(&number.to_string())).collect();
        add(&store, "a", &keys[0], &Voucher::Token)
            .await
            .expect("new");
        for key in &keys[1..] {
            // Each answer is lost: the node goes on with its first.
            let by = Voucher::Node(keys[0].clone());
            add(&store, "a", key, &by).await.expect("its own word");
        }
        assert!(counts(&store, "a", &keys[0]) && counts(&store, "a", &keys[39]));
        assert!(!counts(&store, "a", &keys[1]), "they do not pile up");
        shown(&store, "a", &keys[0]).await.expect("known");
        assert!(counts(&store, "a", &keys[39]), "it may be on its way");
        shown(&store, "a", &keys[39]).await.expect("known");
        assert!(!counts(&store, "a", &keys[0]));
        assert!(shown(&store, "a", &keys[0]).await.is_err());
    }

    #[tokio::test]
    async fn a_node_of_an_earlier_version_is_known_by_the_first_key_it_shows() {
        let store = Store::ephemeral();
        let (one, two) = (id("1"), id("2"));
        adopt(&store, "a").await.expect("written");
        assert!(counts(&store, "a", &one) && counts(&store, "a", &two));
        assert!(add(&store, "a", &two, &Voucher::Token).await.is_err());
        shown(&store, "a", &one).await.expect("any");
        assert!(counts(&store, "a", &one) && !counts(&store, "a", &two));
        adopt(&store, "a").await.expect("no error");
        assert!(!counts(&store, "a", &two), "a row stays as it is");
    }
}
