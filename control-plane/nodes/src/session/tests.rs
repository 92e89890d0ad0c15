use gantry_apiserver::{ApiServerConfig, NoNodes, node_keys};
use gantry_rpc::node::Wake;
use gantry_rpc::node::node_link_client::NodeLinkClient;
use gantry_rpc::node::stream_frame::Frame;
use gantry_store::{Index, Operation, Transaction};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::*;
use crate::requests::call;

/// What has to come comes long before.
const DEADLINE: Duration = Duration::from_secs(30);

/// A server with the node `one`, called without a network.
struct World {
    store: Store,
    hub: Arc<Hub>,
    client: kube::Client,
    router: axum::Router,
}

impl World {
    async fn new() -> Self {
        let (store, hub) = (Store::ephemeral(), Arc::new(Hub::default()));
        let api = ApiServer::new(ApiServerConfig::default(), store.clone(), Arc::new(NoNodes));
        api.bootstrap(6443)
            .await
            .expect("the cluster's own objects");
        let identity = Identity::of_system(NODE_LINK);
        let client = kube::Client::new(api.local_service(identity), "default");
        let facts = ClusterFacts {
            pod_cidr: "10.244.0.0/16".parse().expect("a range"),
            service_cidr: "10.96.0.0/12".parse().expect("a range"),
            dns_service_ip: "10.96.0.10".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
        };
        node_keys::adopt(&store, "one").await.expect("written");
        let roster = Roster::new(store.clone());
        let service = LinkService::new(
            api,
            store.clone(),
            roster,
            hub.clone(),
            facts,
            Arc::default(),
        );
        let service = service.expect("blocks of addresses");
        Self {
            store,
            hub,
            client,
            router: service.router(),
        }
    }

    fn call<T>(messages: mpsc::Receiver<T>) -> Request<ReceiverStream<T>> {
        Self::of_one(ReceiverStream::new(messages))
    }

    /// A request of the node `one`.
    fn of_one<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        let key = serde_json::from_value(json!("a")).expect("a key");
        request.extensions_mut().insert(Peer {
            address: IpAddr::from([192, 0, 2, 9]),
            identity: Some(Identity::new("system:node:one", &["system:nodes"])),
            key: Some(key),
        });
        request
    }

    async fn link(&self) -> (mpsc::Sender<AgentMessage>, Streaming<ServerMessage>) {
        let (up, messages) = mpsc::channel(4);
        let hello = Hello {
            node_name: "one".to_owned(),
            node: "{}".into(),
            ..Hello::default()
        };
        let hello = agent_message::Message::Hello(hello);
        let hello = AgentMessage {
            message: Some(hello),
        };
        up.send(hello).await.expect("room");
        let mut client = NodeLinkClient::new(self.router.clone());
        let answer = client.link(Self::call(messages)).await.expect("a link");
        (up, answer.into_inner())
    }

    /// So many messages more for every node.
    async fn services(&self, count: usize) {
        let operations = (0..count).map(|number| Operation::Put {
            key: Key {
                table: Table("core/services".into()),
                namespace: "default".into(),
                name: format!("s{number}").as_str().into(),
            },
            value: "{}".into(),
            index: Index::default(),
        });
        let transaction = Transaction {
            guards: Vec::new(),
            operations: operations.collect(),
        };
        self.store.propose(transaction).await.expect("written");
    }

    async fn remove_node(&self) {
        let path = gantry_base::paths::node("one", &[]);
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        call(&self.client, http::Method::DELETE, &path, &options)
            .await
            .expect("deleted");
        self.hub.keys_changed("one");
    }
}

/// Reads to the end: how many messages there were, and why there are no more.
async fn rest(mut down: Streaming<ServerMessage>) -> (usize, Option<Status>) {
    let reading = async {
        let mut count = 0;
        loop {
            match down.message().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => return (count, None),
                Err(status) => return (count, Some(status)),
            }
        }
    };
    let read = tokio::time::timeout(DEADLINE, reading).await;
    read.expect("the link ends")
}

#[tokio::test]
async fn a_node_that_stops_talking_is_told_nothing_more() {
    let world = World::new().await;
    let (up, down) = world.link().await;
    drop(up);
    let (_, why) = rest(down).await;
    assert_eq!(why.map(|why| why.code()), Some(Code::Cancelled));
    assert!(world.hub.silence().is_empty(), "it is not linked");
}

#[tokio::test]
async fn what_a_node_says_is_wanted_is_told_at_once() {
    let world = World::new().await;
    let mut wakes = world.hub.wakes();
    let (up, _down) = world.link().await;
    for service in ["no/name", "web"] {
        let wake = agent_message::Message::Wake(Wake {
            namespace: "default".to_owned(),
            service: service.to_owned(),
        });
        let wake = AgentMessage {
            message: Some(wake),
        };
        up.send(wake).await.expect("room");
    }
    let wanted = tokio::time::timeout(DEADLINE, wakes.recv()).await;
    let wanted = wanted.expect("told").expect("the hub is there");
    assert_eq!((&*wanted.node, &*wanted.service.name), ("one", "web"));
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_however_much_it_has_left_unread() {
    let world = World::new().await;
    world.services(3 * QUEUE).await;
    let (_up, down) = world.link().await;
    world.remove_node().await;
    let (count, why) = rest(down).await;
    let why = why.expect("a reason");
    assert_eq!(why.code(), Code::PermissionDenied, "{why}");
    assert!(count < 3 * QUEUE, "{count} messages were sent to it");
}

#[tokio::test]
async fn links_that_do_not_introduce_themselves_are_few() {
    let world = World::new().await;
    let (held, mut refused) = (world.router.clone(), None);
    let mut silent = Vec::new();
    for _ in 0..2 {
        let (up, messages) = mpsc::channel::<AgentMessage>(1);
        let mut client = NodeLinkClient::new(held.clone());
        let call = tokio::spawn(async move { client.link(World::call(messages)).await.map(drop) });
        silent.push((up, call));
    }
    while refused.is_none() {
        tokio::task::yield_now().await;
        let (up, messages) = mpsc::channel::<AgentMessage>(1);
        // It ends at once, so that it holds no place where it is not refused.
        drop(up);
        let mut client = NodeLinkClient::new(held.clone());
        let answer = client.link(World::call(messages)).await.map(drop);
        let status = answer.expect_err("no Hello");
        refused = Some(status).filter(|status| status.code() == Code::ResourceExhausted);
    }
    for (up, call) in silent {
        drop(up);
        let answer = call.await.expect("no panic");
        assert_eq!(
            answer.expect_err("no Hello").code(),
            Code::InvalidArgument,
            "it waited for a Hello"
        );
    }
    let (_up, _down) = world.link().await;
}

#[tokio::test]
async fn a_frame_is_small() {
    let world = World::new().await;
    let (up, frames) = mpsc::channel(1);
    let frame = StreamFrame {
        stream_id: "s".to_owned(),
        frame: Some(Frame::Stdout(vec![0; STREAM_MESSAGE].into())),
    };
    up.send(frame).await.expect("room");
    let mut client = NodeLinkClient::new(world.router.clone());
    let refused = client.attach(World::call(frames)).await.map(drop);
    assert_eq!(
        refused.expect_err("too large").code(),
        Code::OutOfRange,
        "it is not read"
    );
}

#[tokio::test]
async fn a_node_has_tokens_of_its_own_pods() {
    let world = World::new().await;
    let (_up, _down) = world.link().await;
    for (pod, node) in [("mine", "one"), ("theirs", "two")] {
        let object = json!({
            "metadata": {"uid": pod},
            "spec": {
                "nodeName": node, "serviceAccountName": "default",
                "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
            },
        });
        let put = Operation::Put {
            key: Key {
                table: Table("core/pods".into()),
                namespace: "default".into(),
                name: pod.into(),
            },
            value: object.to_string().into(),
            index: Index::default(),
        };
        let transaction = Transaction {
            guards: Vec::new(),
            operations: vec![put],
        };
        world.store.propose(transaction).await.expect("written");
    }
    let ask = async |pod: &str, audience: &str| {
        let mut client = NodeLinkClient::new(world.router.clone());
        let asked = PodTokenRequest {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            pod_uid: pod.to_owned(),
            audience: audience.to_owned(),
            expiration_seconds: 3600,
        };
        let answer = client.pod_token(World::of_one(asked)).await;
        answer.map(Response::into_inner)
    };
    let answer = ask("mine", "").await.expect("its own");
    assert_eq!(
        (answer.valid_seconds, answer.token.split('.').count()),
        (3600, 3)
    );
    let refused = |answer: Result<PodTokenAnswer, Status>| answer.expect_err("refused").code();
    assert_eq!(refused(ask("theirs", "").await), Code::NotFound);
    assert_eq!(refused(ask("mine", "vault").await), Code::PermissionDenied);
    world.remove_node().await;
    assert_eq!(refused(ask("mine", "").await), Code::PermissionDenied);
}

/// The names of the series that the node is told to ask its pods for next.
async fn wanted(down: &mut Streaming<ServerMessage>) -> Vec<String> {
    let told = tokio::time::timeout(DEADLINE, async {
        loop {
            let message = down.message().await.expect("the link is up");
            let message = message.and_then(|message| message.message);
            if let Some(server_message::Message::ScrapeWanted(wanted)) = message {
                return wanted;
            }
        }
    });
    let series = told.await.expect("in time").series.into_iter();
    series.map(|series| series.name).collect()
}

#[tokio::test]
async fn a_node_is_told_what_to_ask_its_pods_for() {
    let world = World::new().await;
    let (_up, mut down) = world.link().await;
    let stop = CancellationToken::new();
    let _ends = stop.clone().drop_guard();
    let informers = gantry_informer::Informers::new(world.client.clone(), &stop);
    tokio::spawn(scraping::run(informers, world.hub.clone(), stop.clone()));
    // Whatever it was told by another leader is not wanted.
    assert_eq!(wanted(&mut down).await, [""; 0]);
    let autoscaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 3,
            "metrics": [{"type": "Pods", "pods": {
                "metric": {"name": "hits_per_second"}, "target": {"type": "AverageValue", "averageValue": "5"}}}],
        },
    });
    let autoscaler = serde_json::from_value(autoscaler).expect("an autoscaler");
    let autoscalers: kube::Api<HorizontalPodAutoscaler> =
        kube::Api::default_namespaced(world.client.clone());
    let created = autoscalers
        .create(&PostParams::default(), &autoscaler)
        .await;
    created.expect("created");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"nodeName": "one", "containers": [{"name": "c", "image": "i"}]}});
    let path = gantry_base::paths::namespaced("default", &["pods"]);
    let created = call(&world.client, http::Method::POST, &path, &pod).await;
    created.expect("created");
    let names = ["hits_per_second", "hits_total", "hits"];
    assert_eq!(wanted(&mut down).await, names);
    let deleted = autoscalers.delete("web", &DeleteParams::default()).await;
    drop(deleted.expect("deleted"));
    assert_eq!(wanted(&mut down).await, [""; 0]);
}
