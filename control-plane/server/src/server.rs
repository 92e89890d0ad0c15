//! [`Server`]: one member of the control plane.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use gantry_tls::{Credential, Kubeconfig};
use tokio_util::sync::CancellationToken;

use crate::config::ServerConfig;
use crate::start::{Running, assemble, identify, listen, open};

/// A running member.
pub struct Server {
    running: Running,
}

impl Server {
    /// Opens the store, listens, and creates what every cluster has. Returns when requests are answered.
    pub async fn start(config: ServerConfig) -> Result<Self> {
        config.check()?;
        // The port first: a second cluster on it must not touch anything.
        let listening = listen(&config).await?;
        let address = listening.address;
        let identified = identify(&config, address).await?;
        let member = open(&config, address, identified).await?;
        let assembled = assemble(&config, address, &member)?;
        let running = Running::begin(listening, member, assembled);
        running.settle(&config, address).await?;
        running.take_part(&config);
        Ok(Self { running })
    }

    /// Writes the administrator's kubeconfig into a file that only root can read, and keeps it current.
    pub fn keep_admin_kubeconfig(&self, path: &Path, server: SocketAddr) -> Result<()> {
        let certificates = &self.running.member.certificates;
        certificates.keep_kubeconfig(path, &format!("https://{server}"))
    }

    /// The certificates of the authorities, PEM.
    pub fn trusted(&self) -> String {
        self.running.member.certificates.trusted().borrow().clone()
    }

    /// A node's certificate: its name, and membership in `system:nodes`.
    pub async fn node_credential(&self, node: &str) -> Result<Credential> {
        self.running.member.certificates.node_credential(node).await
    }

    /// A node's kubeconfig, in a file that only root can read; the node keeps it current.
    pub async fn write_node_kubeconfig(
        &self,
        path: &Path,
        node: &str,
        server: SocketAddr,
    ) -> Result<()> {
        let credential = self.node_credential(node).await?;
        let (server, user) = (format!("https://{server}"), format!("system:node:{node}"));
        let kubeconfig = Kubeconfig {
            server: &server,
            others: &[],
            trusted: &self.trusted(),
            user: &user,
            credential: &credential,
        };
        Ok(gantry_tls::write(path, &kubeconfig.render(), 0o600)?)
    }

    /// Runs until told to stop, or until the store fails.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let Running { member, tasks, .. } = self.running;
        let mut leadership = member.store.leadership();
        let failed = async { while leadership.changed().await.is_ok() {} };
        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = failed => Err(anyhow::anyhow!("the store stopped")),
        };
        tasks.end().await;
        member.store.shutdown().await;
        result
    }
}
