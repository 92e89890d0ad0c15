//! What one changed EndpointSlice costs a node, from the bytes that were received to the acknowledgement, against a
//! real kernel (needs root).

use std::sync::Arc;

use criterion::Criterion;
use gantry_agent::desired::Desired;
use gantry_agent::proxier::Proxier;
use gantry_agent::reports::Reports;
use gantry_cri::dns::FakeDns;
use gantry_network::{HostListeners, NftServiceRules, NodeNetwork};
use gantry_rpc::node::{ObjectChange, Resource};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// Endpoints of each service.
const ENDPOINTS: usize = 10;

fn change(revision: u64, resource: Resource, object: &Value) -> ObjectChange {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    ObjectChange {
        resource: resource.into(),
        deleted: false,
        revision,
        namespace: text("namespace"),
        name: text("name"),
        object: object.to_string().into(),
    }
}

fn service(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("s{number}"), "namespace": "shop"},
        "spec": {
            "clusterIP": format!("10.97.{}.{}", number >> 8, number & 255),
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]
        }
    })
}

fn slice(number: usize, first: usize) -> Value {
    let endpoints: Vec<Value> = (first..first + ENDPOINTS)
        .map(|n| {
            json!({
                "addresses": [format!("10.{}.{}.{}", 200 + n, number >> 8, number & 255)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("n{n}"),
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("s{number}-{n}")}
            })
        })
        .collect();
    json!({
        "metadata": {
            "name": format!("s{number}-x"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": format!("s{number}")}
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints
    })
}

fn one_changed_slice(criterion: &mut Criterion, count: usize) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own (is this root?)");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let node = NodeNetwork {
        prefix: "gt".into(),
        pod_cidr: "10.244.1.0/24".parse().expect("CIDR"),
        cluster_pod_cidr: "10.244.0.0/16".parse().expect("CIDR"),
        service_cidr: "10.96.0.0/12".parse().expect("CIDR"),
        data_dir: "/nonexistent".into(),
        overlay: None,
        ipv6: None,
    };
    let desired = Arc::new(Desired::default());
    let mut program = Proxier::new(
        "n1",
        "cluster.local",
        desired.clone(),
        Arc::new(Reports::new("n1")),
        Arc::new(NftServiceRules::new(&node).expect("nft")),
        Arc::new(FakeDns::default()),
        Arc::new(HostListeners),
    );
    desired.link_opened();
    let receive = |revision, resource, object: &Value| {
        desired
            .apply(&change(revision, resource, object))
            .expect("an object");
    };
    for number in 0..count {
        receive(1, Resource::Service, &service(number));
        receive(1, Resource::EndpointSlice, &slice(number, 0));
    }
    desired.synced(1);
    runtime.block_on(program.sync()).expect("the first sync");
    let mut revision = 1;
    let changes = [0, 1].map(|first| slice(count / 2, first));
    criterion.bench_function(
        &format!("services/one slice changed, of {count} services"),
        |bencher| {
            bencher.iter(|| {
                revision += 1;
                let next = &changes[usize::from(revision % 2 == 0)];
                receive(revision, Resource::EndpointSlice, next);
                runtime.block_on(program.sync()).expect("sync");
            });
        },
    );
}

fn criterion() -> Criterion {
    Criterion::default().configure_from_args().without_plots()
}

fn main() {
    for count in [1_000, 10_000] {
        // A network of its own is a thread's.
        std::thread::scope(|scope| {
            scope.spawn(|| one_changed_slice(&mut criterion(), count));
        });
    }
    criterion().final_summary();
}
