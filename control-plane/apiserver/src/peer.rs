//! Who is at the other end of a connection, as far as the connection itself tells.

use std::net::IpAddr;

use gantry_api::status::StatusError;
use gantry_store::{Key, Store, Table};
use rustls::pki_types::CertificateDer;

use crate::identity::Identity;
use crate::node_keys::{self, KeyId, NODES_GROUP};

/// What a server's certificate says beside its name.
const SERVERS_GROUP: &str = "gantry:members";
/// Before a server's id, in its name.
const SERVER: &str = "gantry:server:";

/// The other end of a connection. Requests carry it in their extensions, beside the [`Identity`] they are answered for.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: IpAddr,
    /// Who the client's certificate says it is.
    pub identity: Option<Identity>,
    /// The key of that certificate.
    pub key: Option<KeyId>,
}

impl Peer {
    /// Of a connection whose handshake is over, with the certificates that the client showed.
    pub(crate) fn of(address: IpAddr, shown: Option<&[CertificateDer<'_>]>) -> Self {
        let certificate = shown.and_then(|chain| chain.first());
        Self {
            address,
            identity: certificate.and_then(|shown| Identity::from_certificate(shown)),
            key: certificate.and_then(|shown| KeyId::of_certificate(shown)),
        }
    }

    /// The node that the certificate is of, whether it counts or not.
    pub fn node(&self) -> Option<&str> {
        let identity = self.identity.as_ref()?;
        let name = identity.user.strip_prefix("system:node:")?;
        identity.is_in(NODES_GROUP).then_some(name)
    }

    /// The server that the certificate is of, whether it counts or not.
    fn server(&self) -> Option<u64> {
        let identity = self.identity.as_ref()?;
        let id = identity.user.strip_prefix(SERVER)?.parse().ok()?;
        identity.is_in(SERVERS_GROUP).then_some(id)
    }

    /// Where it is noted that a server was removed, for good: no other server ever gets its id.
    pub fn former_server(id: u64) -> Key {
        Key {
            table: Table("-/formerservers".into()),
            namespace: "".into(),
            name: format!("{id:016x}").as_str().into(),
        }
    }

    /// Refuses a node's or a server's certificate that does not count any more. Asked for each request: connections last.
    pub fn check(&self, store: &Store) -> Result<(), StatusError> {
        let former = self
            .server()
            .filter(|id| store.get(&Self::former_server(*id)).is_some());
        if let Some(id) = former {
            let message = format!(
                "server {id} was removed from the cluster, and its certificate with it: add it anew with an empty data directory"
            );
            return Err(StatusError::new(401, "Unauthorized", message, None));
        }
        let is_node = self
            .identity
            .as_ref()
            .is_some_and(|identity| identity.is_in(NODES_GROUP));
        if !is_node {
            return Ok(());
        }
        let (node, key) = (self.node().unwrap_or_default(), self.key.as_ref());
        if key.is_some_and(|key| node_keys::counts(store, node, key)) {
            return Ok(());
        }
        let message = format!(
            "the certificate of node \"{node}\" does not count any more: the node was removed or replaced; join it again with a new token"
        );
        Err(StatusError::new(401, "Unauthorized", message, None))
    }
}

#[cfg(test)]
mod tests {
    use gantry_store::{Index, Operation, Transaction};

    use super::*;

    #[tokio::test]
    async fn a_removed_server_is_nobody() {
        let store = Store::ephemeral();
        let check = |user: &str, group: &str| {
            let peer = Peer {
                address: IpAddr::from([192, 0, 2, 9]),
                identity: Some(Identity::new(user, &[group])),
                key: None,
            };
            peer.check(&store).is_ok()
        };
        assert!(check("gantry:server:7", SERVERS_GROUP));
        let removed = Transaction {
            guards: Vec::new(),
            operations: vec![Operation::Put {
                key: Peer::former_server(7),
                value: "{}".into(),
                index: Index::default(),
            }],
        };
        store.propose(removed).await.expect("written");
        assert!(!check("gantry:server:7", SERVERS_GROUP));
        assert!(check("gantry:server:8", SERVERS_GROUP));
        assert!(check("gantry:server:7", "people"), "an ordinary user");
    }
}
