//! What nodes say of themselves.

use futures::FutureExt;
use gantry_apiserver::node_keys;
use gantry_rpc::node::NodeStatus;

use super::super::allowance::{Allowance, REGISTRATIONS, STATUSES};
use super::super::*;
use super::{World, hello, used_up};

#[tokio::test]
async fn a_node_says_of_itself_what_it_may() {
    let world = World::new().await;
    let address =
        |address: &str| json!({"addresses": [{"type": "InternalIP", "address": address}]});
    let link = world.open("two");
    let good = json!({"metadata": {"labels": {"zone": "a"}}, "spec": {"podCIDR": "10.0.0.0/8", "podCIDRs": ["10.0.0.0/8"],
        "providerID": "x", "unschedulable": true, "taints": []}, "status": address("192.0.2.7")});
    let blocks = link
        .register(&hello("two", &good))
        .await
        .expect("registered");
    assert_eq!(blocks.len(), 1);
    let node = world.reports.get("core/nodes", "", "two").expect("there");
    assert_eq!(node["metadata"]["labels"]["zone"], "a");
    assert!(node["spec"]["providerID"].is_null() && node["spec"]["unschedulable"].is_null());
    let before = world.state();
    let link = world.open("one");
    for wrong in [
        json!([]),
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}),
        json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}}),
        json!({"status": address("192.0.2.7")}),
        json!({"status": address("::ffff:192.0.2.7")}),
        json!({"status": address("10.244.1.1")}),
    ] {
        let refused = link.register(&hello("one", &wrong)).await;
        // A list is serde's other spelling of a type whose fields are all missing.
        assert!(refused.is_err() || wrong == json!([]), "{wrong}");
    }
    let theirs = NodeStatus {
        status: address("192.0.2.7").to_string().into(),
    };
    world
        .say(&link, agent_message::Message::NodeStatus(theirs))
        .await;
    assert_eq!(world.state(), before);
}

#[tokio::test]
async fn external_addresses_are_an_administrators() {
    let world = World::new().await;
    let link = world.open("two");
    let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
    let own = address("InternalIP", "192.0.2.9");
    let bold = json!({"addresses": [address("ExternalIP", "1.1.1.1"), own, address("ExternalDNS", "example.com")]});
    let stored = || {
        let node = world.reports.get("core/nodes", "", "two").expect("there");
        node["status"]["addresses"].clone()
    };
    link.register(&hello("two", &json!({"status": bold})))
        .await
        .expect("registered without them");
    assert_eq!(stored(), json!([own]));
    // One that an administrator gives stays, whatever the node says.
    let given = address("ExternalIP", "203.0.113.7");
    let read = get(&world.client, &paths::node("two", &[])).await;
    let mut node = read.expect("read").expect("there");
    *node.member(&["status", "addresses"]) = json!([own, given]);
    call(
        &world.client,
        Method::PUT,
        &paths::node("two", &["status"]),
        &node,
    )
    .await
    .expect("written");
    for said in [json!({"addresses": [own]}), bold.clone()] {
        *link.allowances.statuses.lock() = Allowance::new(STATUSES);
        let status = NodeStatus {
            status: said.to_string().into(),
        };
        world
            .say(&link, agent_message::Message::NodeStatus(status))
            .await;
        assert_eq!(stored(), json!([own, given]));
    }
    link.register(&hello("two", &json!({"status": bold})))
        .await
        .expect("registered again");
    assert_eq!(stored(), json!([own, given]));
    // Nobody else may claim it.
    let theirs = json!({"status": {"addresses": [address("InternalIP", "203.0.113.7")]}});
    let refused = world.open("one").register(&hello("one", &theirs)).await;
    refused.expect_err("it is node two's");
}

#[tokio::test]
async fn where_a_node_dials_from_is_not_its_to_say() {
    let world = World::new().await;
    let link = world.open("two");
    let bold = json!({"metadata": {"annotations": {"gantry.io/dials-from": "1.1.1.1", "a": "b"}}});
    link.register(&hello("two", &bold))
        .await
        .expect("registered");
    let node = world.reports.get("core/nodes", "", "two").expect("there");
    let annotations = &node["metadata"]["annotations"];
    assert_eq!(annotations["gantry.io/dials-from"], "192.0.2.9");
    assert_eq!(annotations["a"], "b");
}

#[tokio::test]
async fn labels_do_not_pile_up() {
    let world = World::new().await;
    let link = world.open("two");
    let with = |round: usize| {
        let labels = (0..300).map(|at| (format!("r{round}-{at}"), json!("x")));
        let labels: serde_json::Map<String, Value> = labels.collect();
        hello("two", &json!({"metadata": {"labels": labels}}))
    };
    link.register(&with(0)).await.expect("not too many");
    link.register(&with(0)).await.expect("the same");
    link.register(&with(1)).await.expect_err("too many");
}

#[tokio::test]
async fn who_registers_too_often_waits() {
    let world = World::new().await;
    let link = world.open("two");
    *link.allowances.registrations.lock() = used_up(REGISTRATIONS);
    assert!(link.turn_to_register().now_or_never().is_none());
    *link.allowances.registrations.lock() = Allowance::new(REGISTRATIONS);
    for _ in 0..REGISTRATIONS.burst {
        assert!(link.turn_to_register().now_or_never().is_some());
    }
    assert!(link.turn_to_register().now_or_never().is_none());
}

#[tokio::test]
async fn a_removed_node_cannot_make_its_node_anew() {
    let world = World::new().await;
    let link = world.open("one");
    let path = paths::node("one", &[]);
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    call(&world.client, Method::DELETE, &path, &options)
        .await
        .expect("deleted");
    let refused = link
        .register(&hello("one", &json!({})))
        .await
        .expect_err("removed");
    assert!(
        format!("{refused:#}").contains("the node was removed"),
        "{refused:#}"
    );
    node_keys::adopt(&world.store, "one")
        .await
        .expect("certified anew");
    let blocks = link
        .register(&hello("one", &json!({})))
        .await
        .expect("a new identity");
    assert_eq!(
        blocks[0].to_string(),
        "10.244.0.0/24",
        "its block was given back"
    );
}

#[tokio::test]
async fn pod_addresses_are_given_once() {
    let world = World::new().await;
    // As another leader would, which has seen neither Node: two registrations with one idea of what is free.
    node_keys::adopt(&world.store, "three")
        .await
        .expect("written");
    let taken = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "three"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}});
    let nodes = paths::path(&["api", "v1", "nodes"]);
    let refused = call(&world.client, Method::POST, &nodes, &taken)
        .await
        .expect_err("it is node two's");
    assert!(is_conflict(&refused), "{refused}");
    let link = world.open("three");
    let blocks = link
        .register(&hello("three", &json!({})))
        .await
        .expect("registered");
    assert_eq!(blocks[0].to_string(), "10.244.2.0/24");
}
