//! Who is at the other end of a connection, as far as the connection itself tells.

use std::net::IpAddr;

use gantry_api::status::StatusError;
use gantry_store::Store;
use rustls::pki_types::CertificateDer;

use crate::identity::Identity;
use crate::node_keys::{self, KeyId, NODES_GROUP};

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

    /// Refuses a node's certificate that does not count any more. Asked for each request: connections last.
    pub(crate) fn check(&self, store: &Store) -> Result<(), StatusError> {
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
