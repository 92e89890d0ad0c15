//! A service on an address of the node beside a process that listens there, in a real kernel (needs root).
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use gantry_agent::desired::Desired;
use gantry_agent::proxier::Proxier;
use gantry_agent::reports::Reports;
use gantry_cri::dns::FakeDns;
use gantry_network::{HostListeners, NftServiceRules, NodeNetwork};
use gantry_rpc::node::{ObjectChange, Resource, agent_message};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(30);
/// An address of the node, and one at which the service's endpoint answers.
const NODE: &str = "192.0.2.1";
const ENDPOINT: &str = "192.0.2.9";

/// Runs a test on a thread with a network of its own, which the kernel removes with the thread.
fn on_own_network(test: impl AsyncFnOnce() + Send) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes a network namespace and nftables rules: run it as root (sudo make test)"
    );
    std::thread::scope(|scope| {
        let machine = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            for address in [NODE, ENDPOINT] {
                ip(&format!("addr add {address}/32 dev lo"));
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test());
        });
        if let Err(panic) = machine.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// Answers every connection with a name, until it is ended.
async fn serve(name: &'static str, address: &str) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(name.as_bytes()).await.ok();
        }
    })
}

async fn end(process: JoinHandle<()>) {
    process.abort();
    assert!(process.await.unwrap_err().is_cancelled());
}

/// Who answers on a port of the node.
async fn who(port: u16) -> String {
    let asked = async {
        let mut answer = String::new();
        let mut stream = TcpStream::connect((NODE, port)).await?;
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    tokio::time::timeout(DEADLINE, asked)
        .await
        .unwrap()
        .unwrap()
}

fn change(resource: Resource, name: &str, object: &Value) -> ObjectChange {
    ObjectChange {
        resource: resource.into(),
        deleted: false,
        revision: 5,
        namespace: "shop".into(),
        name: name.into(),
        object: object.to_string().into(),
    }
}

fn receive(desired: &Desired) {
    let metadata = |name: &str| json!({"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}});
    let service = json!({
        "metadata": metadata("web"),
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.9",
            "ports": [{"name": "ssh", "port": 22}, {"name": "http", "port": 80}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": NODE}]}},
    });
    let slice = json!({
        "metadata": metadata("web-x"), "addressType": "IPv4",
        "ports": [{"name": "ssh", "port": 8080}, {"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [ENDPOINT], "conditions": {"ready": true}}],
    });
    desired.link_opened();
    for change in [
        change(Resource::Service, "web", &service),
        change(Resource::EndpointSlice, "web-x", &slice),
    ] {
        desired.apply(&change).unwrap();
    }
    desired.synced(9);
}

/// The reasons of the events that were reported.
fn reasons(reports: &Reports) -> Vec<String> {
    let messages = reports.next().now_or_never().unwrap_or_default();
    let events = messages
        .into_iter()
        .filter_map(|message| match message.message {
            Some(agent_message::Message::Event(record)) => Some(record.event),
            _ => None,
        });
    let events = events.map(|event| serde_json::from_slice::<Value>(&event).unwrap());
    events
        .map(|event| event["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_service_does_not_take_the_port_of_a_process() {
    on_own_network(async || {
        let node = NodeNetwork {
            prefix: "gt".into(),
            pod_cidr: "10.244.1.0/24".parse().unwrap(),
            cluster_pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            data_dir: "/nonexistent".into(),
            overlay: None,
            ipv6: None,
        };
        let (desired, reports) = (Arc::new(Desired::default()), Arc::new(Reports::new("n1")));
        let mut program = Proxier::new(
            "n1",
            "cluster.local",
            desired.clone(),
            reports.clone(),
            Arc::new(NftServiceRules::new(&node).unwrap()),
            Arc::new(FakeDns::default()),
            Arc::new(HostListeners),
        );
        let process = serve("process", "0.0.0.0:22").await;
        let _endpoint = serve("service", &format!("{ENDPOINT}:8080")).await;
        receive(&desired);
        program.sync().await.unwrap();
        assert_eq!(
            (who(22).await, who(80).await),
            ("process".into(), "service".into())
        );
        assert_eq!(reasons(&reports), ["PortInUse"]);

        assert!(!program.look_around().await, "nothing is different");
        end(process).await;
        assert!(program.look_around().await);
        program.sync().await.unwrap();
        assert_eq!(who(22).await, "service");
        assert_eq!(reasons(&reports), ["PortServed"]);

        let _process = serve("process", "0.0.0.0:22").await;
        assert_eq!(who(22).await, "service", "until it is looked again");
        assert!(program.look_around().await);
        program.sync().await.unwrap();
        assert_eq!(who(22).await, "process");
        assert_eq!(reasons(&reports), ["PortInUse"]);
    });
}
