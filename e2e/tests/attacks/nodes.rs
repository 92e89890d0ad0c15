//! A node, or somebody with its token, against the cluster.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gantry_agent::{NodeIdentity, identity};
use gantry_e2e::{DEADLINE, Fleet, until};
use gantry_rpc::node::node_link_client::NodeLinkClient;
use gantry_rpc::node::{
    AgentMessage, EventRecord, Hello, NodeStatus, PodStatus, PodStatuses, PodTerminated,
    ServerMessage, agent_message, server_message,
};
use gantry_tls::{Credential, KeyRequest};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use kube::config::Kubeconfig;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use agent_message::Message;

/// The credentials in a kubeconfig.
fn identity_in(path: &Path) -> Result<NodeIdentity> {
    let config = serde_json::to_value(Kubeconfig::read_from(path)?)?;
    let text = |pointer: &str| -> Result<String> {
        let encoded = config.pointer(pointer).and_then(Value::as_str);
        let bytes = STANDARD.decode(encoded.with_context(|| format!("{pointer} is missing"))?)?;
        Ok(String::from_utf8(bytes)?)
    };
    Ok(NodeIdentity {
        trusted: text("/clusters/0/cluster/certificate-authority-data")?,
        certificate: text("/users/0/user/client-certificate-data")?,
        key: text("/users/0/user/client-key-data")?,
        kubeconfig: None,
    })
}

/// A program with a node's certificate that says what it likes.
#[derive(Clone)]
struct Node {
    name: String,
    identity: NodeIdentity,
}

/// An open link of one, on which the server has welcomed it.
struct Link {
    up: mpsc::Sender<AgentMessage>,
    down: Streaming<ServerMessage>,
    /// The block of pod addresses that the node was given.
    block: String,
}

impl Node {
    /// The node `node-1`, which every fleet has a certificate of.
    fn first(fleet: &Fleet) -> Result<Self> {
        Ok(Self {
            name: "node-1".to_owned(),
            identity: identity_in(&fleet.node_kubeconfig())?,
        })
    }

    /// One that joins with a token.
    async fn join(fleet: &Fleet, name: &str, token: &str) -> Result<Self> {
        let key = KeyRequest::new(name)?.key;
        let identity = identity::join(fleet.address("s1")?, token, name, &key).await?;
        Ok(Self {
            name: name.to_owned(),
            identity,
        })
    }

    fn tls(&self) -> Result<Arc<ClientConfig>> {
        let own =
            Credential::from_pem(self.identity.certificate.clone(), self.identity.key.clone())?;
        let mut tls = gantry_tls::mutual(&self.identity.trusted, &own)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(tls))
    }

    async fn dial(&self, server: SocketAddr) -> Result<NodeLinkClient<Channel>> {
        let tls = self.tls()?;
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let connected = gantry_tls::connect(server, tls).await;
                connected.map(hyper_util::rt::TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://server");
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(NodeLinkClient::new(channel))
    }

    /// Opens a link to a server; an error is the server's refusal.
    async fn link_to(&self, server: SocketAddr, node: &str, object: &[u8]) -> Result<Link> {
        let (up, messages) = mpsc::channel(64);
        let hello = Hello {
            node_name: node.to_owned(),
            version: "0".to_owned(),
            node: Bytes::copy_from_slice(object),
        };
        up.send(said(Message::Hello(hello))).await?;
        let mut client = self.dial(server).await?;
        let answer = client.link(ReceiverStream::new(messages));
        let answer = tokio::time::timeout(DEADLINE, answer).await??;
        let mut down = answer.into_inner();
        let first = tokio::time::timeout(DEADLINE, down.message()).await??;
        match first.and_then(|first| first.message) {
            Some(server_message::Message::Welcome(welcome)) => Ok(Link {
                up,
                down,
                block: welcome.pod_cidr,
            }),
            other => bail!("instead of a welcome: {other:?}"),
        }
    }

    /// Opens a link as its own agent would, to whichever server leads.
    async fn link(&self, fleet: &Fleet, object: &Value) -> Result<Link> {
        let mut last = None;
        for server in fleet.names() {
            let address = fleet.address(&server)?;
            match self
                .link_to(address, &self.name, object.to_string().as_bytes())
                .await
            {
                Ok(link) => return Ok(link),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no server")?)
    }

    /// A request with the node's certificate.
    async fn request(
        &self,
        server: SocketAddr,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, Value)> {
        let own =
            Credential::from_pem(self.identity.certificate.clone(), self.identity.key.clone())?;
        let tls = gantry_tls::mutual(&self.identity.trusted, &own)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let (status, body) = gantry_tls::request(server, tls, request).await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }
}

impl Link {
    async fn say(&self, message: Message) -> Result<()> {
        Ok(self.up.send(said(message)).await?)
    }

    /// Waits for the link's end, and what the server says about it.
    async fn end(&mut self) -> Result<tonic::Status> {
        let ended = async {
            loop {
                match self.down.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break tonic::Status::ok("closed"),
                    Err(status) => break status,
                }
            }
        };
        tokio::time::timeout(DEADLINE, ended)
            .await
            .context("the link stays open")
    }
}

fn said(message: Message) -> AgentMessage {
    AgentMessage {
        message: Some(message),
    }
}

/// Servers that give nodes up late: these nodes do not say that they live.
pub(crate) fn patient(count: usize) -> Result<Fleet> {
    Fleet::start_with(count, &["--node-monitor-grace-period", "10m"])
}

pub(crate) fn token(fleet: &Fleet, arguments: &[&str]) -> Result<String> {
    let create = ["token", "create", "--for", "nodes"];
    let token = fleet.gantry("s1", &[&create, arguments].concat())?;
    Ok(token.trim().to_owned())
}

fn get(fleet: &Fleet, path: &str) -> Result<Value> {
    let text = fleet.kubectl("s1", &["get", "--raw", path])?;
    Ok(serde_json::from_str(&text)?)
}

/// Creates a pod that is bound to a node, and returns its uid.
fn pod(fleet: &Fleet, name: &str, node: &str) -> Result<String> {
    fleet.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}}),
    )?;
    let pod = get(fleet, &format!("/api/v1/namespaces/default/pods/{name}"))?;
    let uid = pod["metadata"]["uid"].as_str();
    Ok(uid.context("a uid")?.to_owned())
}

fn status(namespace: &str, name: &str, uid: &str, status: impl ToString) -> Message {
    Message::PodStatuses(PodStatuses {
        statuses: vec![PodStatus {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            status: status.to_string().into(),
        }],
    })
}

fn terminated(namespace: &str, name: &str, uid: &str) -> Message {
    Message::PodTerminated(PodTerminated {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    })
}

fn event(event: impl ToString) -> Message {
    Message::Event(EventRecord {
        event: event.to_string().into(),
    })
}

/// Says that a pod of the node is in a phase, and waits until it is seen: everything said before has been dealt with.
async fn settle(fleet: &Fleet, link: &Link, pod: &str, uid: &str, message: &str) -> Result<()> {
    let told = json!({"phase": "Running", "message": message});
    link.say(status("default", pod, uid, told)).await?;
    until("what was said to be written", async || {
        let pod = get(fleet, &format!("/api/v1/namespaces/default/pods/{pod}"))?;
        ensure!(pod["status"]["message"] == message, "{}", pod["status"]);
        Ok(())
    })
    .await
    .with_context(|| fleet.logs())
}

/// A list without what controllers change meanwhile.
fn lasting(mut objects: Value) -> Value {
    for object in objects["items"].as_array_mut().into_iter().flatten() {
        object["metadata"]["resourceVersion"] = Value::Null;
        object["status"]["conditions"] = Value::Null;
        object["spec"]["taints"] = Value::Null;
    }
    objects["metadata"]["resourceVersion"] = Value::Null;
    objects
}

#[tokio::test(flavor = "multi_thread")]
async fn row_09_a_node_speaks_for_itself_and_its_own_pods() -> Result<()> {
    let fleet = patient(1)?;
    let victim = Node::first(&fleet)?;
    let address =
        |address: &str| json!({"addresses": [{"type": "InternalIP", "address": address}]});
    let victims_link = victim
        .link(&fleet, &json!({"status": address("192.0.2.1")}))
        .await?;
    let hostile = Node::join(&fleet, "hostile", &token(&fleet, &[])?).await?;
    let link = hostile
        .link(&fleet, &json!({"status": address("192.0.2.2")}))
        .await?;
    let (theirs, own) = (
        pod(&fleet, "theirs", "node-1")?,
        pod(&fleet, "own", "hostile")?,
    );
    fleet.kubectl(
        "s1",
        &["create", "secret", "generic", "x", "--from-literal=a=b"],
    )?;
    fleet.kubectl("s1", &["create", "namespace", "other"])?;
    let paths = [
        "/api/v1/namespaces/default/secrets",
        "/api/v1/nodes",
        "/api/v1/namespaces",
        "/api/v1/namespaces/default/pods?fieldSelector=metadata.name%3Dtheirs",
    ];
    let state = || -> Result<Vec<Value>> {
        paths
            .iter()
            .map(|path| Ok(lasting(get(&fleet, path)?)))
            .collect()
    };
    let before = state()?;

    let failed = json!({"phase": "Failed"});
    let namespaces = [
        "default",
        "default/secrets/x?",
        "default/secrets/x",
        "../nodes",
        "default%2Fsecrets%2Fx",
        "",
        ".",
        "..",
        "other",
        "\u{e9}",
    ];
    let names = [
        "theirs",
        "own",
        "x",
        "",
        "..",
        "theirs?gracePeriodSeconds=0",
        "theirs/status",
        "node-1",
    ];
    let long = "a".repeat(10_000);
    for namespace in namespaces.into_iter().chain([long.as_str()]) {
        for name in names {
            for uid in [theirs.as_str(), "", "1", long.as_str()] {
                link.say(terminated(namespace, name, uid)).await?;
                link.say(status(namespace, name, uid, &failed)).await?;
                let object = json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid});
                link.say(event(
                    json!({"metadata": {}, "involvedObject": object, "reason": "Lies"}),
                ))
                .await?;
            }
        }
    }
    // Its own pod is not being deleted: it has not ended either.
    link.say(terminated("default", "own", &own)).await?;
    for object in [
        json!({"apiVersion": "v1", "kind": "Node", "name": "node-1"}),
        json!({"apiVersion": "v1", "kind": "Secret", "namespace": "default", "name": "x"}),
        json!({"apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "kubernetes", "uid": "1"}),
    ] {
        link.say(event(
            json!({"metadata": {}, "involvedObject": object, "reason": "Lies"}),
        ))
        .await?;
    }
    // The address of another node, and of the pods of another.
    let lie = |status: Value| {
        Message::NodeStatus(NodeStatus {
            status: status.to_string().into(),
        })
    };
    link.say(lie(address("192.0.2.1"))).await?;
    link.say(status(
        "default",
        "own",
        &own,
        json!({"podIP": "10.244.250.250", "message": "a lie"}),
    ))
    .await?;
    settle(&fleet, &link, "own", &own, "first").await?;
    let lied = get(&fleet, "/api/v1/namespaces/default/pods/own")?;
    ensure!(lied["status"]["podIP"].is_null(), "{}", lied["status"]);
    let after = state()?;
    for (path, (before, after)) in paths.iter().zip(before.iter().zip(&after)) {
        ensure!(
            before == after,
            "{path} was changed: {before}\n{after}\n{}",
            fleet.logs()
        );
    }

    let events = get(&fleet, "/api/v1/events")?;
    ensure!(!events.to_string().contains("Lies"), "{events}");

    // With its certificate it gets nothing of the API but what everybody finds out.
    let server = fleet.address("s1")?;
    let nothing = json!({});
    for (method, path) in [
        (Method::GET, "/api/v1/namespaces/default/secrets/x"),
        (Method::GET, "/api/v1/nodes/node-1"),
        (Method::DELETE, "/api/v1/namespaces/default/pods/theirs"),
        (Method::PUT, "/api/v1/nodes/node-1/status"),
        (Method::POST, "/api/v1/namespaces/default/configmaps"),
        (Method::GET, "/gantry/v1/members"),
        (Method::GET, "/gantry/v1/certificates"),
        (Method::POST, "/gantry/v1/authorities/rotate"),
    ] {
        let (code, said) = hostile
            .request(server, method.clone(), path, &nothing)
            .await?;
        ensure!(
            code == StatusCode::FORBIDDEN,
            "{method} {path}: {code} {said}"
        );
    }
    let request = KeyRequest::new("system:node:node-1")?.request;
    let body = json!({"node": "node-1", "request": request});
    let (code, said) = hostile
        .request(server, Method::POST, "/gantry/v1/certificates", &body)
        .await?;
    ensure!(code == StatusCode::FORBIDDEN, "{code} {said}");
    // Nor a link in another's name.
    let other = hostile.link_to(server, "node-1", b"{}").await;
    let said = format!("{:#}", other.err().context("a link in another's name")?);
    ensure!(said.contains("the certificate is node"), "{said}");
    drop(victims_link);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn row_10_no_message_ends_a_server() -> Result<()> {
    let fleet = patient(1)?;
    let server = fleet.address("s1")?;
    let pid = fleet.server_pid("s1")?;
    let node = Node::first(&fleet)?;
    let deep = "[".repeat(100_000);
    let objects = [
        "",
        "[]",
        "null",
        "0",
        "\"text\"",
        "true",
        "[[]]",
        "{\"metadata\": []}",
        "{\"metadata\": {\"labels\": []}}",
        "{\"spec\": []}",
        "{\"spec\": {\"taints\": {}}}",
        "{\"status\": []}",
        "{\"status\": {\"addresses\": [[]]}}",
        "{\"status\": {\"conditions\": {}}}",
        "{\"involvedObject\": []}",
        "{\"metadata\": {}, \"involvedObject\": {\"namespace\": []}}",
        "{",
        "\u{0}",
        &deep,
    ];
    for object in objects {
        // Refused or registered as far as it makes sense, but answered.
        let opened = node.link_to(server, "node-1", object.as_bytes()).await;
        if let Err(error) = opened {
            let said = format!("{error:#}");
            ensure!(said.contains("registering node"), "{object:.40}: {said}");
        }
    }
    let link = node.link(&fleet, &json!({})).await?;
    let uid = pod(&fleet, "own", "node-1")?;
    for object in objects {
        link.say(status("default", "own", &uid, object)).await?;
        link.say(event(object)).await?;
        let lie = NodeStatus {
            status: object.to_owned().into(),
        };
        link.say(Message::NodeStatus(lie)).await?;
    }
    settle(&fleet, &link, "own", &uid, "still there").await?;

    // The same over the API, from who may write everything.
    let administrator = Node {
        name: "administrator".to_owned(),
        identity: identity_in(&fleet.kubeconfig("s1"))?,
    };
    let wrong = [
        json!([]),
        json!(null),
        json!(1),
        json!("text"),
        json!({"metadata": []}),
        json!({"metadata": {"labels": []}}),
        json!({"spec": []}),
        json!({"status": []}),
    ];
    for path in [
        "/api/v1/namespaces",
        "/api/v1/nodes",
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/services",
        "/api/v1/namespaces/default/events",
        "/apis/apps/v1/namespaces/default/deployments",
        "/api/v1/namespaces/default/pods/missing/eviction",
    ] {
        for body in &wrong {
            let (code, said) = administrator
                .request(server, Method::POST, path, body)
                .await?;
            ensure!(code.is_client_error(), "POST {path} {body}: {code} {said}");
        }
    }
    for path in [
        "/api/v1/namespaces/default",
        "/api/v1/nodes/node-1",
        "/api/v1/nodes/node-1/status",
        "/api/v1/namespaces/default/pods/own",
        "/api/v1/namespaces/default/pods/own/status",
        "/api/v1/namespaces/default/finalize",
    ] {
        for body in &wrong {
            let (code, said) = administrator
                .request(server, Method::PUT, path, body)
                .await?;
            ensure!(code.is_client_error(), "PUT {path} {body}: {code} {said}");
        }
    }
    for body in &wrong[..4] {
        let path = "/api/v1/namespaces/default/pods/missing";
        let (code, said) = administrator
            .request(server, Method::DELETE, path, body)
            .await?;
        ensure!(code.is_client_error(), "DELETE {body}: {code} {said}");
    }
    ensure!(
        fleet.server_pid("s1")? == pid,
        "the server was started anew"
    );
    let log = std::fs::read_to_string(fleet.data_dir("s1.log")).unwrap_or_default();
    ensure!(
        !log.contains("panicked"),
        "something panicked:\n{}",
        fleet.logs()
    );
    settle(&fleet, &link, "own", &uid, "at the end").await
}

#[tokio::test(flavor = "multi_thread")]
async fn row_11_a_name_once_certified_is_its_nodes_until_it_is_removed() -> Result<()> {
    let fleet = patient(1)?;
    let server = fleet.address("s1")?;
    let owner = Node::first(&fleet)?;
    // It has been there once and is silent now.
    drop(owner.link(&fleet, &json!({})).await?);
    let any = token(&fleet, &[])?;
    let refused = Node::join(&fleet, "node-1", &any)
        .await
        .map(|_| ())
        .expect_err("another's name");
    ensure!(
        format!("{refused:#}").contains("--node node-1"),
        "{refused:#}"
    );
    // Neither may a token for another node.
    let bound = token(&fleet, &["--node", "other"])?;
    let refused = Node::join(&fleet, "node-1", &bound)
        .await
        .map(|_| ())
        .expect_err("another's name");
    ensure!(
        format!("{refused:#}").contains("admits the node \"other\" only"),
        "{refused:#}"
    );
    // Whoever asks again with the same key is the same: the first answer may have been lost.
    let key = KeyRequest::new("again")?.key;
    for _ in 0..2 {
        identity::join(server, &any, "again", &key).await?;
    }

    // An administrator's word gives the name to another machine; the one before is out.
    let mut old = owner.link(&fleet, &json!({})).await?;
    let approved = token(&fleet, &["--node", "node-1"])?;
    let new = until("the node to be given up or not Ready", async || {
        Node::join(&fleet, "node-1", &approved).await
    })
    .await?;
    let ended = old.end().await?;
    ensure!(ended.message().contains("join it again"), "{ended}");
    let refused = owner
        .link(&fleet, &json!({}))
        .await
        .map(|_| ())
        .expect_err("an old key");
    ensure!(format!("{refused:#}").contains("401"), "{refused:#}");

    // A removed node is out at once, and its certificate is nothing any more.
    let mut link = new.link(&fleet, &json!({})).await?;
    let first = link.block.clone();
    let begun = Instant::now();
    fleet.kubectl("s1", &["delete", "node", "node-1"])?;
    let ended = link.end().await?;
    ensure!(
        ended.message().contains("removed from the cluster"),
        "{ended}"
    );
    ensure!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    for _ in 0..3 {
        new.link(&fleet, &json!({}))
            .await
            .map(|_| ())
            .expect_err("a removed node");
        let (code, _) = new
            .request(server, Method::GET, "/version", &json!({}))
            .await?;
        ensure!(code == StatusCode::UNAUTHORIZED, "{code}");
        let request = KeyRequest::new("system:node:node-1")?.request;
        let body = json!({"node": "node-1", "request": request});
        let (code, _) = new
            .request(server, Method::POST, "/gantry/v1/certificates", &body)
            .await?;
        ensure!(code == StatusCode::UNAUTHORIZED, "{code}");
    }
    let nodes = get(&fleet, "/api/v1/nodes")?;
    let back = nodes["items"].as_array().context("nodes")?;
    ensure!(
        !back.iter().any(|node| node["metadata"]["name"] == "node-1"),
        "{nodes}"
    );
    // With a token it is a new node.
    let again = Node::join(&fleet, "node-1", &token(&fleet, &[])?).await?;
    let link = again.link(&fleet, &json!({})).await?;
    ensure!(link.block == first, "its block was not given back");

    // Of itself it says what it may.
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    for key in [
        "node-role.kubernetes.io/control-plane",
        "node-restriction.kubernetes.io/x",
        "kubernetes.io/x",
        "a.k8s.io/x",
    ] {
        let refused = again
            .link(&fleet, &label(key))
            .await
            .map(|_| ())
            .expect_err("a label");
        ensure!(format!("{refused:#}").contains(key), "{refused:#}");
    }
    fleet.kubectl("s1", &["taint", "node", "node-1", "kept=x:NoSchedule"])?;
    let bold = json!({"metadata": {"labels": {"zone": "a"}},
        "spec": {"taints": [], "podCIDR": "10.0.0.0/8", "podCIDRs": ["10.0.0.0/8"], "providerID": "p", "unschedulable": false}});
    let link = again.link(&fleet, &bold).await?;
    ensure!(link.block == first, "it chose its block");
    let node = get(&fleet, "/api/v1/nodes/node-1")?;
    ensure!(node["metadata"]["labels"]["zone"] == "a", "{node}");
    let taints = node["spec"]["taints"].to_string();
    ensure!(
        taints.contains("kept") && node["spec"]["providerID"].is_null(),
        "{node}"
    );
    for address in ["10.244.3.3", "10.96.0.1", "224.0.0.1", "0.0.0.0"] {
        let lie = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        let refused = again
            .link(&fleet, &lie)
            .await
            .map(|_| ())
            .expect_err(address);
        ensure!(format!("{refused:#}").contains(address), "{refused:#}");
    }
    let said = fleet.agent_refuses(&[
        "--node-label",
        "node-role.kubernetes.io/x=y",
        "--join",
        "127.0.0.1",
        "--token",
        "t",
    ])?;
    ensure!(said.contains("must begin with an allowed prefix"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn row_25_what_is_older_never_wins_and_blocks_are_given_once() -> Result<()> {
    let mut fleet = patient(3)?;
    let whole = std::env::var("GANTRY_ATTACK").is_ok_and(|asked| asked == "full");
    let (rounds, count) = if whole { (10, 20) } else { (2, 6) };
    let any = token(&fleet, &[])?;
    // Nodes register while leaders change.
    let mut nodes = Vec::new();
    for number in 0..rounds * count {
        nodes.push(Node::join(&fleet, &format!("n{number}"), &any).await?);
    }
    let addresses: Vec<SocketAddr> = fleet
        .names()
        .iter()
        .map(|name| fleet.address(name))
        .collect::<Result<_>>()?;
    for group in nodes.chunks(count) {
        let leader = until("a leader", async || fleet.leader("s1")).await?;
        let registering: Vec<_> = group
            .iter()
            .cloned()
            .map(|node| {
                let addresses = addresses.clone();
                tokio::spawn(async move {
                    let deadline = Instant::now() + DEADLINE;
                    loop {
                        for address in &addresses {
                            let opened = node.link_to(*address, &node.name, b"{}").await;
                            if let Ok(link) = opened {
                                return Ok(link);
                            }
                        }
                        ensure!(Instant::now() < deadline, "{} is not let in", node.name);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                })
            })
            .collect();
        fleet.kill(&leader)?;
        for registering in registering {
            registering.await??;
        }
        fleet.restart(&leader)?;
        until("everybody to be there", async || {
            let members = fleet.members("s1")?;
            ensure!(
                members.iter().all(|member| member["active"] == true),
                "{members:?}"
            );
            Ok(())
        })
        .await?;
    }
    let listed = get(&fleet, "/api/v1/nodes")?;
    let blocks = listed["items"].as_array().context("nodes")?.iter();
    let mut blocks: Vec<String> = blocks
        .map(|node| node["spec"]["podCIDR"].to_string())
        .collect();
    let total = blocks.len();
    blocks.sort();
    blocks.dedup();
    ensure!(total == nodes.len() && blocks.len() == total, "{blocks:?}");

    // The later link of a node has the word, whatever the earlier one says and when.
    let node = &nodes[0];
    let told = |word: &str| {
        let condition = json!({"type": "Ready", "status": "True", "reason": word});
        let status = json!({"conditions": [condition]}).to_string();
        Message::NodeStatus(NodeStatus {
            status: status.into(),
        })
    };
    let old = until("a link", async || node.link(&fleet, &json!({})).await).await?;
    let new = until("another link", async || node.link(&fleet, &json!({})).await).await?;
    for number in 0..50 {
        new.say(told(&format!("new-{number}"))).await?;
        // It may be cut off already.
        old.say(told(&format!("old-{number}"))).await.ok();
    }
    until("the last word", async || {
        let node = get(&fleet, &format!("/api/v1/nodes/{}", node.name))?;
        let reason = &node["status"]["conditions"][0]["reason"];
        ensure!(reason == "new-49", "{reason}");
        Ok(())
    })
    .await
    .with_context(|| fleet.logs())
}
