//! A control plane without nodes, for trying clients and recorded cases against it:
//! `cargo run -p gantry-server --example serve -- DATA_DIR PORT`. Prints the kubeconfig's path when it is ready.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use gantry_server::backup::BackupSchedule;
use gantry_server::{Server, ServerConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, port] = arguments.as_slice() else {
        anyhow::bail!("usage: serve DATA_DIR PORT");
    };
    let data_dir = PathBuf::from(data_dir);
    let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse()?);
    let server = Server::start(ServerConfig {
        data_dir: data_dir.clone(),
        listen,
        address: Ipv4Addr::LOCALHOST,
        pod_cidr: "10.244.0.0/16".parse()?,
        service_cidr: "10.96.0.0/12".parse()?,
        cluster_domain: "cluster.local".to_owned(),
        admin_tokens: vec![],
        name: "serve".to_owned(),
        join: None,
        backups: BackupSchedule::default(),
        certificate_life: gantry_server::CERTIFICATE_LIFE,
        node_grace: std::time::Duration::from_secs(10),
        connections: gantry_server::ConnectionLimits::default(),
        client_memory: 64 << 20,
    })
    .await?;
    let kubeconfig = data_dir.join("admin.kubeconfig");
    server.keep_admin_kubeconfig(&kubeconfig, listen)?;
    println!("export KUBECONFIG={}", kubeconfig.display());
    server.run(CancellationToken::new()).await
}
