//! The cluster that a case runs against.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use gantry_apiserver::{ApiServer, ApiServerConfig, Identity, NoNodes};
use gantry_authority::pki::{Authority, Subject, server_config};
use gantry_controllers::{ControllersConfig, Informers, TokenIssuer, TokenSecret};
use gantry_scheduler::SchedulerConfig;
use gantry_store::Store;
use gantry_tls::TlsError;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::case::Case;
use super::client::{Client, Credentials};

/// What clusters share: certificates, and what nodes are like.
pub(crate) struct Setting {
    ca_pem: String,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
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

const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

fn administrator(authority: &Authority) -> Result<rustls::ClientConfig, TlsError> {
    let subject = Subject::client("kubernetes-admin", &["system:masters"]);
    let mut config =
        gantry_tls::mutual(authority.certificate(), &authority.issue(&subject, LIFE)?)?;
    config.alpn_protocols.clear();
    Ok(config)
}

fn nobody(authority: &Authority) -> Result<rustls::ClientConfig, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(gantry_tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::unusable("TLS", error))?;
    Ok(builder
        .with_root_certificates(gantry_tls::roots(authority.certificate())?)
        .with_no_client_auth())
}

/// The tokens that are kept in Secrets, as the recorded cluster had them.
struct SecretTokens(ApiServer);

impl TokenIssuer for SecretTokens {
    fn issue(&self, secret: &TokenSecret<'_>) -> Option<String> {
        let (namespace, account) = (secret.namespace, secret.account);
        self.0
            .secret_token(namespace, secret.name, account, secret.account_uid)
    }

    fn key(&self) -> Option<String> {
        self.0.token_key()
    }

    fn is_current(&self, token: &str) -> bool {
        self.0.is_current_token(token)
    }
}

/// A client of controllers that are slower to find volumes than any case is to end: where a case is about what the API server
/// answers, and names no controllers, volumes were looked at before the recorded ones had found them.
fn finding_no_volumes(server: &ApiServer, identity: Identity) -> kube::Client {
    let server = server.local_service(identity);
    let blind = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let server = server.clone();
        async move {
            let path = request.uri().path();
            if path.contains("/persistentvolumes/") && path.ends_with("/status") {
                let mut gone = http::Response::new(axum::body::Body::empty());
                *gone.status_mut() = http::StatusCode::NOT_FOUND;
                return Ok(gone);
            }
            server.oneshot(request).await
        }
    });
    kube::Client::new(blind, "default")
}

impl Setting {
    pub(crate) fn new() -> Self {
        let authority = Authority::create(LIFE).expect("an authority");
        let subject = Subject {
            names: vec!["localhost".to_owned()],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            ..Subject::client("apiserver", &[])
        };
        let credential = authority.issue(&subject, LIFE).expect("a certificate");
        let tls = server_config(&credential, authority.certificate()).expect("the server's TLS");
        let list: serde_json::Value =
            serde_json::from_str(include_str!("fixtures/nodes.json")).expect("the fixture is JSON");
        Self {
            ca_pem: authority.certificate().to_owned(),
            tls: watch::Sender::new(tls),
            credentials: Arc::new(Credentials {
                admin: Arc::new(administrator(&authority).expect("a certificate")),
                nobody: Arc::new(nobody(&authority).expect("a certificate")),
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
            // As it was where the cases were recorded; nobody dials it.
            advertise: "192.0.2.10:16443".to_owned(),
            ..ApiServerConfig::default()
        };
        let server = ApiServer::new(config, store.clone(), Arc::new(NoNodes));
        server
            .bootstrap(address.port())
            .await
            .expect("the cluster's own objects");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn({
            let (server, tls, stop) = (server.clone(), self.tls.subscribe(), stop.clone());
            async move { server.serve(listener, tls, None, stop).await }
        });
        let client = |identity| kube::Client::new(server.local_service(identity), "default");
        let controllers = || {
            let identity = Identity::of_system("system:kube-controller-manager");
            match case.needs("controllers") {
                true => client(identity),
                false => finding_no_volumes(&server, identity),
            }
        };
        let informers = Informers::new(controllers(), &stop);
        tasks.spawn(gantry_controllers::run(
            controllers(),
            informers.clone(),
            ControllersConfig {
                tokens: Some(Arc::new(SecretTokens(server.clone()))),
                ..ControllersConfig::new(self.ca_pem.clone())
            },
            stop.clone(),
        ));
        if case.needs("nodes") {
            self.add_nodes(controllers()).await;
        }
        if case.needs("scheduler") {
            tasks.spawn(gantry_scheduler::run(
                client(Identity::new(
                    "system:kube-scheduler",
                    &["system:authenticated"],
                )),
                informers,
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
