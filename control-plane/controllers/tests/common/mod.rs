//! A whole control plane in this process: API server over an ephemeral store, controllers, scheduler, and nodes whose
//! agent is a few lines that say of each pod what an agent would.

mod agent;

use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use gantry_apiserver::{ApiServer, ApiServerConfig, Identity, NoNodes};
use gantry_controllers::{ControllersConfig, Informers};
use gantry_scheduler::SchedulerConfig;
use gantry_store::Store;
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::runtime::wait::{Condition, await_condition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::agent::Agent;
pub(crate) use self::agent::CRASHING;

/// Everything awaited must come within this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A cluster that ends with this value.
pub(crate) struct Cluster {
    pub(crate) client: kube::Client,
    informers: Informers,
    stop: CancellationToken,
    /// Ends the controllers alone.
    leads: CancellationToken,
    _guard: DropGuard,
}

impl Cluster {
    /// API server and controllers; no scheduler and no nodes.
    pub(crate) async fn start() -> Self {
        Self::start_with(ControllersConfig::new("PEM")).await
    }

    /// The same, with controllers that run with this.
    pub(crate) async fn start_with(config: ControllersConfig) -> Self {
        let server = ApiServer::new(
            ApiServerConfig::default(),
            Store::ephemeral(),
            std::sync::Arc::new(NoNodes),
        );
        server.bootstrap(6443).await.expect("bootstrap");
        let identity = Identity::new("kubernetes-admin", &["system:masters"]);
        let client = kube::Client::new(server.local_service(identity), "default");
        let stop = CancellationToken::new();
        let informers = Informers::new(client.clone(), &stop);
        let mut cluster = Self {
            client,
            informers,
            leads: stop.child_token(),
            _guard: stop.clone().drop_guard(),
            stop,
        };
        cluster.lead(config);
        cluster
    }

    /// Other controllers take the place of those that run: they know nothing but what is stored.
    pub(crate) fn lead(&mut self, config: ControllersConfig) {
        self.leads.cancel();
        self.leads = self.stop.child_token();
        let (client, informers) = (self.client.clone(), self.informers.clone());
        let stop = self.leads.clone();
        tokio::spawn(gantry_controllers::run(client, informers, config, stop));
    }

    /// Adds the scheduler.
    pub(crate) fn with_scheduler(self) -> Self {
        let (client, stop) = (self.client.clone(), self.stop.clone());
        tokio::spawn(gantry_scheduler::run(
            client,
            self.informers.clone(),
            SchedulerConfig::default(),
            stop,
        ));
        self
    }

    /// Adds a node and its agent.
    pub(crate) async fn with_node(self, name: &str, cpu: &str) -> Self {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        create(&nodes, node).await;
        let room = json!({"cpu": cpu, "memory": "16Gi", "pods": "110"});
        let status = json!({"status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "m"}],
        }});
        let patched = nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await;
        patched.expect("the node's status");
        let agent = Agent::new(self.client.clone());
        tokio::spawn(agent.run(name.to_owned(), self.stop.clone()));
        self
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A namespace with all that belongs to it.
    pub(crate) async fn namespace(&self, name: &str) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        create(
            &namespaces,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )
        .await;
        let accounts: Api<ServiceAccount> = self.api(name);
        wait(
            &accounts,
            "default",
            "exists",
            |account: Option<&ServiceAccount>| account.is_some(),
        )
        .await;
    }

    /// All objects of a kind, as JSON.
    pub(crate) async fn list<K>(&self, namespace: &str) -> Vec<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let api: Api<K> = self.api(namespace);
        api.list(&ListParams::default())
            .await
            .expect("a list")
            .items
    }
}

/// Creates an object from JSON.
pub(crate) async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + DeserializeOwned + Debug + Serialize,
{
    let object: K = serde_json::from_value(object).expect("an object of the kind");
    api.create(&PostParams::default(), &object)
        .await
        .expect("created")
}

/// Waits until the object is so.
pub(crate) async fn wait<K>(api: &Api<K>, name: &str, what: &str, condition: impl Condition<K>)
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let outcome =
        tokio::time::timeout(DEADLINE, await_condition(api.clone(), name, condition)).await;
    match outcome {
        Ok(done) => drop(done.expect("a watch")),
        Err(_) => {
            let now = api.get_opt(name).await.expect("an answer");
            panic!("{name} is not so that {what}: {now:#?}");
        }
    }
}

/// Waits until the objects that are listed are so.
pub(crate) async fn wait_list<K>(
    api: &Api<K>,
    fields: &str,
    what: &str,
    condition: impl Fn(&[K]) -> bool,
) where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let waiting = async {
        loop {
            let list = api
                .list(&ListParams::default().fields(fields))
                .await
                .expect("a list");
            if condition(&list.items) {
                return;
            }
            let version = list.metadata.resource_version.expect("a revision");
            let parameters = WatchParams::default().fields(fields);
            let mut events = api
                .watch(&parameters, &version)
                .await
                .expect("a watch")
                .boxed();
            events.try_next().await.expect("an event");
        }
    };
    let outcome = tokio::time::timeout(DEADLINE, waiting).await;
    assert!(outcome.is_ok(), "{what}: not so");
}

/// Waits until the object is gone.
pub(crate) async fn gone<K>(api: &Api<K>, name: &str)
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    wait(api, name, "it is gone", |object: Option<&K>| {
        object.is_none()
    })
    .await;
}
