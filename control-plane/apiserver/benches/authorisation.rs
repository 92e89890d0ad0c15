//! One decision, in a cluster of 10,000 bindings of as many users in a thousand namespaces.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use gantry_apiserver::{
    ApiServer, ApiServerConfig, Attributes, Decision, Identity, NoNodes, Target,
};
use gantry_store::{Index, Key, Operation, Store, Table, Transaction};
use serde_json::json;
use tokio::runtime::Runtime;

const BINDINGS: usize = 10_000;
const NAMESPACES: usize = 1_000;

fn namespace(number: usize) -> String {
    format!("team-{}", number % NAMESPACES)
}

fn user(number: usize) -> Identity {
    let groups = ["developers", "everybody", "system:authenticated"];
    Identity::new(&format!("user-{number}"), &groups)
}

/// A binding of the role `edit`, as it is stored.
fn binding(number: usize) -> Operation {
    let group = "rbac.authorization.k8s.io";
    let object = json!({
        "metadata": {"name": format!("b-{number}"), "namespace": namespace(number)},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": format!("user-{number}")}],
    });
    Operation::Put {
        key: Key {
            table: Table(format!("{group}/rolebindings").into()),
            namespace: namespace(number).into(),
            name: format!("b-{number}").into(),
        },
        value: object.to_string().into(),
        index: Index::default(),
    }
}

async fn cluster() -> (Store, ApiServer) {
    let store = Store::ephemeral();
    let config = ApiServerConfig::default();
    let server = ApiServer::new(config, store.clone(), Arc::new(NoNodes));
    server.bootstrap(6443).await.expect("bootstrapped");
    for first in (0..BINDINGS).step_by(100) {
        let transaction = Transaction {
            guards: Vec::new(),
            operations: (first..first + 100).map(binding).collect(),
        };
        store.propose(transaction).await.expect("written");
    }
    (store, server)
}

fn asks<'a>(user: &'a Identity, resource: &'a str, namespace: &'a str) -> Attributes<'a> {
    Attributes {
        user,
        verb: "list",
        target: Target::Resource {
            group: "",
            version: "v1",
            resource,
            subresource: "",
            namespace,
            name: "",
        },
    }
}

fn decisions(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime starts");
    let (store, server) = runtime.block_on(cluster());
    let authorizer = server.authorizer();
    let (who, space) = (user(7_777), namespace(7_777));
    let allowed = asks(&who, "pods", &space);
    let refused = asks(&who, "nodes", &space);
    assert_eq!(authorizer.authorize(&allowed), Decision::Allow);
    assert_ne!(authorizer.authorize(&refused), Decision::Allow);
    let mut group = criterion.benchmark_group("authorisation at 10,000 bindings");
    group.bench_function("allowed", |bencher| {
        bencher.iter(|| authorizer.authorize(black_box(&allowed)));
    });
    group.bench_function("refused", |bencher| {
        bencher.iter(|| authorizer.authorize(black_box(&refused)));
    });
    group.bench_function("a binding, and the decision after it", |bencher| {
        bencher.iter(|| {
            let transaction = Transaction {
                guards: Vec::new(),
                operations: vec![binding(7_777)],
            };
            let written = runtime.block_on(store.propose(transaction));
            written.expect("written");
            authorizer.authorize(black_box(&allowed))
        });
    });
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
