//! Controllers and scheduler against the real API server: what a user does, and what comes of it.

mod autoscaling;
mod canaries;
mod common;
mod daemon_sets;
mod disruptions;
mod examples;
mod idling;
mod jobs;
mod quotas;
mod rollbacks;
mod rolling_on_change;
mod services;
mod stateful_sets;
mod volumes;
mod workloads;

use std::collections::BTreeSet;

use common::{Cluster, create, gone, wait, wait_list};
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_nowhere_says_why_and_runs_once_there_is_room() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "1")
        .await;
    cluster.namespace("ns").await;
    let pods: Api<Pod> = cluster.api("ns");
    create(
        &pods,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "image": "x:1", "resources": {"requests": {"cpu": "2"}}}]}}),
    )
    .await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes \
                   are available: 1 Preemption is not helpful for scheduling.";
    wait(&pods, "p", "it says why", move |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|conditions| {
            conditions.iter().any(|condition| {
                condition.type_ == "PodScheduled"
                    && condition.reason.as_deref() == Some("Unschedulable")
                    && condition.message.as_deref() == Some(message)
            })
        })
    })
    .await;
    let _larger = cluster.with_node("node-2", "4").await;
    wait(
        &pods,
        "p",
        "it is on the larger node",
        |pod: Option<&Pod>| {
            let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
            node == Some("node-2")
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_higher_priority_takes_the_place_of_another() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "8")
        .await;
    cluster.namespace("ns").await;
    let classes: Api<PriorityClass> = Api::all(cluster.client.clone());
    create(
        &classes,
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1000}),
    )
    .await;
    let pods: Api<Pod> = cluster.api("ns");
    let asking = |name: &str, class: Option<&str>| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "priorityClassName": class,
            "containers": [{"name": "c", "image": "x:1", "resources": {"requests": {"cpu": "6"}}}]}})
    };
    let is_placed = |pod: Option<&Pod>| {
        let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
        node == Some("node-1")
    };
    create(&pods, asking("low", None)).await;
    wait(&pods, "low", "it is placed", is_placed).await;
    create(&pods, asking("high", Some("high"))).await;
    wait(&pods, "high", "it has the place", is_placed).await;
    assert!(pods.get_opt("low").await.expect("an answer").is_none());
    let high = pods.get("high").await.expect("it is there");
    let nominated = high.status.and_then(|status| status.nominated_node_name);
    assert_eq!(nominated, None, "it is there, and expected no more");
    let message = format!(
        "Preempted by pod {} on node node-1",
        high.metadata.uid.expect("a uid")
    );
    let events: Api<Event> = cluster.api("ns");
    let told = |events: &[Event]| {
        events.iter().any(|event| {
            event.involved_object.name.as_deref() == Some("low")
                && event.reason.as_deref() == Some("Preempted")
                && event.message.as_deref() == Some(&*message)
        })
    };
    wait_list(&events, "", "its event says who came", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_those_that_it_needs_near() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "8")
        .await;
    cluster.namespace("ns").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let zone = Patch::Merge(json!({"metadata": {"labels": {"zone": "z1"}}}));
    nodes
        .patch("node-1", &PatchParams::default(), &zone)
        .await
        .expect("labelled");
    let pods: Api<Pod> = cluster.api("ns");
    let spec = json!({"containers": [{"name": "c", "image": "nginx:1"}], "affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}}]}}});
    create(
        &pods,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}),
    )
    .await;
    wait(
        &pods,
        "web",
        "it says what it waits for",
        |pod: Option<&Pod>| {
            let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
            let mut messages = conditions
                .into_iter()
                .flatten()
                .filter_map(|condition| condition.message.as_deref());
            messages.any(|message| {
                message.starts_with(
                    "0/1 nodes are available: 1 node(s) didn't match pod affinity rules.",
                )
            })
        },
    )
    .await;
    create(
        &pods,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db", "labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}),
    )
    .await;
    wait(&pods, "web", "it is near", |pod: Option<&Pod>| {
        let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
        node == Some("node-1")
    })
    .await;
}

/// Waits until the pod's status says so of its scheduling.
async fn waits_for(pods: &Api<Pod>, name: &str, message: &'static str) {
    wait(pods, name, message, move |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|condition| {
            condition.type_ == "PodScheduled" && condition.message.as_deref() == Some(message)
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_its_claim_and_runs_where_the_volume_is() {
    let cluster = Cluster::start()
        .await
        .with_scheduler()
        .with_node("node-1", "8")
        .await
        .with_node("node-2", "8")
        .await;
    cluster.namespace("ns").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let disk = Patch::Merge(json!({"metadata": {"labels": {"disk": "fast"}}}));
    let labelled = nodes.patch("node-2", &PatchParams::default(), &disk).await;
    labelled.expect("labelled");
    let pods: Api<Pod> = cluster.api("ns");
    create(
        &pods,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "x:1"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}),
    )
    .await;
    let missing = "0/2 nodes are available: persistentvolumeclaim \"data\" not found. not found";
    waits_for(&pods, "p", missing).await;
    let claims: Api<PersistentVolumeClaim> = cluster.api("ns");
    create(
        &claims,
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}}}),
    )
    .await;
    let unbound =
        "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found";
    waits_for(&pods, "p", unbound).await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    create(
        &volumes,
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "disk", "operator": "In", "values": ["fast"]}]}]}}}}),
    )
    .await;
    wait(
        &pods,
        "p",
        "it is where the volume is",
        |pod: Option<&Pod>| {
            let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
            node == Some("node-2")
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_go_with_their_owner_or_stay_as_asked() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let maps: Api<ConfigMap> = cluster.api("ns");
    let child = |name: &str, owner: &str, uid: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid}]}})
    };
    let ghost = "11111111-2222-3333-4444-555555555555";
    let of_version = |name: &str, version: &str, kind: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [
            {"apiVersion": version, "kind": kind, "name": "ghost", "uid": ghost}]}})
    };
    // Nobody knows what an owner is whose version is not served; another that is served will do.
    for (name, version, kind) in [
        ("of-old", "v0", "ConfigMap"),
        ("of-other", "example.org/v1", "ConfigMap"),
        ("of-earlier", "autoscaling/v1", "HorizontalPodAutoscaler"),
    ] {
        create(&maps, of_version(name, version, kind)).await;
    }
    create(&maps, child("of-ghost", "ghost", ghost)).await;
    gone(&maps, "of-ghost").await;
    gone(&maps, "of-earlier").await;
    for name in ["of-old", "of-other"] {
        assert!(maps.get_opt(name).await.expect("an answer").is_some());
    }
    for (owner, parameters, stays) in [
        ("background", DeleteParams::background(), false),
        ("orphaning", DeleteParams::orphan(), true),
    ] {
        let made = create(
            &maps,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": owner}}),
        )
        .await;
        let name = format!("of-{owner}");
        create(
            &maps,
            child(&name, owner, made.metadata.uid.as_deref().expect("a uid")),
        )
        .await;
        maps.delete(owner, &parameters).await.expect("deleted");
        gone(&maps, owner).await;
        if stays {
            let orphan = maps.get(&name).await.expect("it stays");
            assert_eq!(orphan.metadata.owner_references.unwrap_or_default(), []);
        } else {
            gone(&maps, &name).await;
        }
    }
}

/// Config maps of which each is owned by the next, and the last by the first; all block their owners.
async fn circle(maps: &Api<ConfigMap>, names: &[String]) {
    let mut uids = Vec::new();
    for name in names {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        uids.push(create(maps, map).await.metadata.uid);
    }
    for (at, name) in names.iter().enumerate() {
        let next = (at + 1) % names.len();
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": names[next], "uid": uids[next],
            "blockOwnerDeletion": true});
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        maps.patch(name, &PatchParams::default(), &patch)
            .await
            .expect("owned");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_wait_for_each_other_go_and_so_does_their_namespace() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let maps: Api<ConfigMap> = cluster.api("ns");
    for length in 1..4 {
        let names = |prefix: &str| -> Vec<String> {
            (0..length)
                .map(|at| format!("{prefix}-{length}-{at}"))
                .collect()
        };
        // One of them is deleted, or all are at once.
        let (one, all) = (names("one"), names("all"));
        circle(&maps, &one).await;
        circle(&maps, &all).await;
        for name in one.iter().take(1).chain(&all) {
            match maps.delete(name, &DeleteParams::foreground()).await {
                // It went with those before it.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other.expect("deleted")),
            }
        }
        for name in one.iter().chain(&all) {
            gone(&maps, name).await;
        }
    }
    circle(&maps, &["left".to_owned(), "right".to_owned()]).await;
    maps.delete("left", &DeleteParams::foreground())
        .await
        .expect("deleted");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces
        .delete("ns", &DeleteParams::default())
        .await
        .expect("deleted");
    gone(&namespaces, "ns").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_in_another_namespace_is_none_and_is_told_of() {
    let cluster = Cluster::start().await;
    cluster.namespace("here").await;
    cluster.namespace("there").await;
    let there: Api<ConfigMap> = cluster.api("there");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}});
    let uid = create(&there, map).await.metadata.uid.expect("a uid");
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": true});
    let here: Api<ConfigMap> = cluster.api("here");
    create(
        &here,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "strayed", "ownerReferences": [owner]}}),
    )
    .await;
    gone(&here, "strayed").await;
    let events: Api<Event> = cluster.api("here");
    let message = format!(
        "ownerRef [v1/ConfigMap, namespace: here, name: owner, uid: {uid}] does not exist in namespace \"here\""
    );
    let told = move |events: &[Event]| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some("OwnerRefInvalidNamespace")
                && event.message.as_deref() == Some(message.as_str())
        })
    };
    let about = "involvedObject.name=strayed";
    wait_list(&events, about, "it is told of", told).await;
    // One without a namespace stays, and holds up nobody.
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    create(
        &nodes,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "ownerReferences": [owner]}}),
    )
    .await;
    let events: Api<Event> = cluster.api("default");
    let told = |events: &[Event]| {
        let mut reasons = events.iter().map(|event| event.reason.as_deref());
        reasons.any(|reason| reason == Some("OwnerRefInvalidNamespace"))
    };
    let about = "involvedObject.kind=Node,involvedObject.name=n";
    wait_list(&events, about, "it is told of", told).await;
    there
        .delete("owner", &DeleteParams::foreground())
        .await
        .expect("deleted");
    gone(&there, "owner").await;
    assert!(nodes.get_opt("n").await.expect("an answer").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_with_its_contents_and_says_what_holds_it() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let maps: Api<ConfigMap> = cluster.api("ns");
    let held = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hold", "finalizers": ["a.example/x"]}});
    create(&maps, held).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces
        .delete("ns", &DeleteParams::default())
        .await
        .expect("deleted");
    wait(&namespaces, "ns", "it says what holds it", |namespace: Option<&Namespace>| {
        let conditions = namespace.and_then(|namespace| namespace.status.as_ref()?.conditions.clone());
        let messages: Vec<_> = conditions
            .into_iter()
            .flatten()
            .filter(|condition| condition.status == "True")
            .filter_map(|condition| condition.message)
            .collect();
        messages
            == [
                "Some resources are remaining: configmaps. has 1 resource instances",
                "Some content in the namespace has finalizers remaining: a.example/x in 1 resource instances",
            ]
    })
    .await;
    let accounts: Vec<ServiceAccount> = cluster.list("ns").await;
    assert_eq!(accounts.len(), 0);
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("hold", &PatchParams::default(), &patch)
        .await
        .expect("let go");
    gone(&namespaces, "ns").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_namespace_has_comes_back() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let accounts: Api<ServiceAccount> = cluster.api("ns");
    let first = accounts
        .get("default")
        .await
        .expect("it is there")
        .metadata
        .uid;
    accounts
        .delete("default", &DeleteParams::default())
        .await
        .expect("deleted");
    wait(
        &accounts,
        "default",
        "it is another",
        move |account: Option<&ServiceAccount>| {
            account.is_some_and(|account| account.metadata.uid != first)
        },
    )
    .await;
    let maps: Api<ConfigMap> = cluster.api("ns");
    let good = |map: Option<&ConfigMap>| {
        let data = map.and_then(|map| map.data.as_ref());
        data.is_some_and(|data| data.get("ca.crt").map(String::as_str) == Some("PEM"))
    };
    wait(&maps, "kube-root-ca.crt", "it is published", good).await;
    let patch = Patch::Merge(json!({"data": {"ca.crt": "spoiled"}}));
    maps.patch("kube-root-ca.crt", &PatchParams::default(), &patch)
        .await
        .expect("spoiled");
    wait(&maps, "kube-root-ca.crt", "it is mended", good).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_conditions_become_taints() {
    let cluster = Cluster::start().await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    create(
        &nodes,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}),
    )
    .await;
    let report = |ready: &str| {
        let condition = json!({"type": "Ready", "status": ready, "reason": "r", "message": "m"});
        Patch::Strategic(json!({"status": {"conditions": [condition]}}))
    };
    let effects = |node: &Node| {
        let taints = node
            .spec
            .clone()
            .unwrap_or_default()
            .taints
            .unwrap_or_default();
        taints
            .into_iter()
            .map(|taint| (taint.key, taint.effect))
            .collect::<BTreeSet<_>>()
    };
    nodes
        .patch_status("n", &PatchParams::default(), &report("False"))
        .await
        .expect("reported");
    let expected: BTreeSet<_> = ["NoSchedule", "NoExecute"]
        .map(|effect| ("node.kubernetes.io/not-ready".to_owned(), effect.to_owned()))
        .into();
    wait(&nodes, "n", "it is tainted", move |node: Option<&Node>| {
        node.is_some_and(|node| effects(node) == expected)
    })
    .await;
    nodes
        .patch_status("n", &PatchParams::default(), &report("True"))
        .await
        .expect("reported");
    wait(
        &nodes,
        "n",
        "the taints are gone",
        move |node: Option<&Node>| node.is_some_and(|node| effects(node).is_empty()),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_roles_gather_the_rules_of_those_they_select() {
    let cluster = Cluster::start().await;
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    let selector = json!({"matchLabels": {"sum": "yes"}});
    let sum = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "sum"}, "aggregationRule": {"clusterRoleSelectors": [selector]},
    });
    create(&roles, sum).await;
    let part = |verb: &str| {
        let rule = json!({"apiGroups": ["x.example"], "resources": ["y"], "verbs": [verb]});
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "part", "labels": {"sum": "yes"}}, "rules": [rule],
        })
    };
    let verbs = |role: Option<&ClusterRole>| -> Vec<String> {
        let rules = role.and_then(|role| role.rules.clone());
        let rules = rules.unwrap_or_default().into_iter();
        rules.flat_map(|rule| rule.verbs).collect()
    };
    create(&roles, part("get")).await;
    let gets = move |role: Option<&ClusterRole>| verbs(role) == ["get"];
    wait(&roles, "sum", "it has the other's rule", gets).await;
    let patch = Patch::Merge(part("list"));
    roles
        .patch("part", &PatchParams::default(), &patch)
        .await
        .expect("changed");
    let lists = move |role: Option<&ClusterRole>| verbs(role) == ["list"];
    wait(&roles, "sum", "it follows", lists).await;
    roles
        .delete("part", &DeleteParams::default())
        .await
        .expect("deleted");
    let none = move |role: Option<&ClusterRole>| verbs(role).is_empty();
    wait(&roles, "sum", "it has lost the rule", none).await;
}
