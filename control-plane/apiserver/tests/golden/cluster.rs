//! The cluster that a case runs against.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use gantry_apiserver::pki::Pki;
use gantry_apiserver::{ApiServer, ApiServerConfig, Identity, NoNodes};
use gantry_controllers::ControllersConfig;
use gantry_scheduler::SchedulerConfig;
use gantry_store::Store;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::case::Case;
use super::client::{Client, Credentials};

/// What clusters share: certificates, and what nodes are like.
pub(crate) struct Setting {
    ca_pem: String,
    tls: Arc<rustls::ServerConfig>,
    credentials: Arc<Credentials>,
    nodes: Vec<Node>,
}

/// A control plane on a loopback port.
pub(crate) struct Cluster {
    address: std::net::SocketAddr,
    credentials: Arc<Credentials>,
    store: Store,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn client_config(
    pki: &Pki,
    user: Option<(&str, &[&str])>,
) -> Result<rustls::ClientConfig, Box<dyn std::error::Error>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((user, groups)) = user else {
        return Ok(builder.with_no_client_auth());
    };
    let credential = pki.issue_client(user, groups)?;
    let chain = CertificateDer::pem_slice_iter(credential.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes())?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

impl Setting {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory for certificates");
        let pki = Pki::load_or_create(directory.path()).expect("an authority");
        let tls = pki
            .server_config(
                &["localhost".to_owned()],
                &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
            )
            .expect("the server's certificate");
        let admin = client_config(&pki, Some(("kubernetes-admin", &["system:masters"])));
        let list: serde_json::Value =
            serde_json::from_str(include_str!("fixtures/nodes.json")).expect("the fixture is JSON");
        Self {
            ca_pem: pki.ca_pem().to_owned(),
            tls,
            credentials: Arc::new(Credentials {
                admin: Arc::new(admin.expect("the administrator's certificate")),
                nobody: Arc::new(client_config(&pki, None).expect("the authority's certificate")),
            }),
            nodes: serde_json::from_value(list["items"].clone()).expect("the fixture holds nodes"),
        }
    }

    /// Starts a cluster with the parts that a case needs. Controllers always run, as they did in the recording.
    pub(crate) async fn cluster(&self, case: &Case) -> Cluster {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a loopback port");
        let address = listener.local_addr().expect("the listener's address");
        let store = Store::ephemeral();
        let config = ApiServerConfig {
            advertise: address.to_string(),
            ..ApiServerConfig::default()
        };
        let server = ApiServer::new(config, store.clone(), Arc::new(NoNodes));
        server
            .bootstrap(address.port())
            .await
            .expect("the cluster's own objects");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn({
            let (server, tls, stop) = (server.clone(), self.tls.clone(), stop.clone());
            async move { server.serve(listener, tls, None, stop).await }
        });
        let client_of = |user: &str| {
            let service = server.local_service(Identity::new(user, &["system:authenticated"]));
            kube::Client::new(service, "default")
        };
        tasks.spawn(gantry_controllers::run(
            client_of("system:kube-controller-manager"),
            ControllersConfig::new(self.ca_pem.clone()),
            stop.clone(),
        ));
        if case.needs("nodes") {
            self.add_nodes(client_of("system:node-link")).await;
        }
        if case.needs("scheduler") {
            tasks.spawn(gantry_scheduler::run(
                client_of("system:kube-scheduler"),
                SchedulerConfig::default(),
                stop.clone(),
            ));
        }
        Cluster {
            address,
            credentials: self.credentials.clone(),
            store,
            tasks,
            stop,
        }
    }

    async fn add_nodes(&self, client: kube::Client) {
        let nodes: Api<Node> = Api::all(client);
        for node in &self.nodes {
            nodes
                .create(&PostParams::default(), node)
                .await
                .expect("a node is created");
            let name = node.metadata.name.as_deref().expect("a node has a name");
            // A patch, since controllers write to the node at the same time.
            let status = Patch::Merge(json!({"status": node.status}));
            nodes
                .patch_status(name, &PatchParams::default(), &status)
                .await
                .expect("a node's status is written");
        }
    }
}

impl Cluster {
    /// A client of its own connections.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address, self.credentials.clone())
    }

    /// Ends everything that was started.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.store.shutdown().await;
    }
}
