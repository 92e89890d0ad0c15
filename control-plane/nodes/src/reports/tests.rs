mod figures;
mod registration;
mod writing;

use std::collections::BTreeMap;

use gantry_apiserver::{ApiServer, ApiServerConfig, Identity, NODE_LINK, NoNodes, node_keys};
use gantry_informer::EventStyle;
use gantry_rpc::node::{EventRecord, Hello, PodStatuses, PodTerminated};
use proptest::prelude::*;

use super::allowance::{Allowance, Rate};
use super::*;

#[test]
fn conditions_of_others_are_kept() {
    let current = json!({"qosClass": "Burstable", "conditions": [
        {"type": "PodResizePending", "status": "True"}, {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]});
    let reported = json!({"phase": "Running", "nominatedNodeName": "x", "conditions": [{"type": "Ready", "status": "True"}]});
    assert_eq!(
        merge_status(&current, &reported),
        json!({"phase": "Running", "qosClass": "Burstable", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]})
    );
}

/// A cluster of two nodes, one pod on each and one that is being deleted, and a Secret.
struct World {
    store: Store,
    reports: Arc<Reports>,
    client: kube::Client,
}

const PODS: [(&str, &str); 3] = [("mine", "one"), ("theirs", "two"), ("ending", "one")];

impl World {
    async fn new() -> Self {
        let store = Store::ephemeral();
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
        let reports = Arc::new(Reports::new(
            store.clone(),
            Roster::new(store.clone()),
            facts.clone(),
            PodCidrs::new(facts.pod_cidr).expect("blocks"),
            Recorder::start(
                client.clone(),
                "gantry-server",
                EventStyle::Counted,
                gantry_informer::Clock::system(),
                &CancellationToken::new(),
            ),
            Arc::default(),
        ));
        let world = Self {
            store,
            reports,
            client,
        };
        for node in ["one", "two"] {
            node_keys::adopt(&world.store, node).await.expect("written");
            let link = world.open(node);
            link.register(&hello(node, &json!({})))
                .await
                .expect("registered");
        }
        for (name, node) in PODS {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
            let path = paths::namespaced("default", &["pods"]);
            call(&world.client, Method::POST, &path, &pod)
                .await
                .expect("created");
        }
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
        let path = paths::namespaced("default", &["secrets"]);
        call(&world.client, Method::POST, &path, &secret)
            .await
            .expect("created");
        let path = paths::namespaced("default", &["pods", "ending"]);
        let grace = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 30});
        call(&world.client, Method::DELETE, &path, &grace)
            .await
            .expect("deleted");
        world
    }

    fn open(&self, node: &str) -> LinkReports {
        let node = NodeName::new(node.to_owned()).expect("a name");
        self.reports
            .open(node, IpAddr::from([192, 0, 2, 9]), self.client.clone())
    }

    fn pod(&self, name: &str) -> Option<Value> {
        self.reports.get("core/pods", "default", name)
    }

    fn uid(&self, name: &str) -> String {
        let pod = self.pod(name).unwrap_or_default();
        pod["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Everything that is stored and that nodes' reports could reach.
    fn state(&self) -> BTreeMap<String, Value> {
        let tables = [
            "core/pods",
            "core/secrets",
            "core/nodes",
            "core/namespaces",
            "core/events",
            "core/services",
        ];
        let mut state = BTreeMap::new();
        for table in tables {
            for ((namespace, name), entry) in self.store.snapshot(&Table(table.into())).iter() {
                let value = serde_json::from_slice(&entry.value).expect("JSON");
                state.insert(format!("{table} {namespace} {name}"), value);
            }
        }
        state
    }

    async fn say(&self, link: &LinkReports, message: agent_message::Message) {
        link.take(message).await;
        while !link.write_all().await {}
    }
}

fn hello(node: &str, object: &Value) -> Hello {
    Hello {
        node_name: node.to_owned(),
        node: object.to_string().into(),
        ..Hello::default()
    }
}

fn status(namespace: &str, name: &str, uid: &str, status: &Value) -> agent_message::Message {
    agent_message::Message::PodStatuses(PodStatuses {
        statuses: vec![PodStatus {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            status: status.to_string().into(),
        }],
    })
}

fn terminated(namespace: &str, name: &str, uid: &str) -> agent_message::Message {
    agent_message::Message::PodTerminated(PodTerminated {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    })
}

fn event(object: &Value) -> agent_message::Message {
    let event = json!({"metadata": {}, "involvedObject": object, "reason": "Told", "message": "m"});
    agent_message::Message::Event(EventRecord {
        event: event.to_string().into(),
    })
}

/// Of an hour from now: nothing is regained.
fn used_up(rate: Rate) -> Allowance {
    Allowance {
        rate,
        left: 0,
        since: Instant::now() + Duration::from_secs(3600),
    }
}

#[tokio::test]
async fn a_node_says_so_often_that_a_service_is_wanted_and_no_more() {
    let world = World::new().await;
    let link = world.open("one");
    let wake = |service: &str| Wake {
        namespace: "default".to_owned(),
        service: service.to_owned(),
    };
    let wanted = link.wanted(wake("web")).expect("wanted");
    assert_eq!((&*wanted.namespace, &*wanted.name), ("default", "web"));
    for wrong in ["", "a/b", "..", "web?x="] {
        assert_eq!(link.wanted(wake(wrong)), None);
    }
    let many = (0..10_000).filter(|_| link.wanted(wake("web")).is_some());
    assert!(many.count() < 1000);
    let again = world.open("one");
    let many = (0..10_000).filter(|_| again.wanted(wake("web")).is_some());
    assert!(
        many.count() < 500,
        "another link has no allowance of its own"
    );
    let other = world.open("two");
    assert!(other.wanted(wake("web")).is_some());
}

fn about_pod(namespace: &str, name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid})
}

#[tokio::test]
async fn a_node_speaks_for_its_own_pods() {
    let world = World::new().await;
    let link = world.open("one");
    let running = json!({"phase": "Running"});
    world
        .say(
            &link,
            status("default", "mine", &world.uid("mine"), &running),
        )
        .await;
    assert_eq!(
        world.pod("mine").expect("kept")["status"]["phase"],
        "Running"
    );
    // One that is not being deleted stays, whatever is said of its end.
    world
        .say(&link, terminated("default", "mine", &world.uid("mine")))
        .await;
    assert!(world.pod("mine").is_some());
    world
        .say(&link, terminated("default", "ending", &world.uid("ending")))
        .await;
    assert!(world.pod("ending").is_none());
}

#[tokio::test]
async fn what_an_older_link_says_does_not_count() {
    let world = World::new().await;
    let old = world.open("one");
    let uid = world.uid("mine");
    old.take(status("default", "mine", &uid, &json!({"phase": "Failed"})))
        .await;
    let new = world.open("one");
    world
        .say(
            &new,
            status("default", "mine", &uid, &json!({"phase": "Running"})),
        )
        .await;
    old.write_all().await;
    assert_eq!(
        world.pod("mine").expect("kept")["status"]["phase"],
        "Running"
    );
    old.register(&hello(
        "one",
        &json!({"metadata": {"labels": {"a": "old"}}}),
    ))
    .await
    .expect_err("an older link");
    drop(old);
    assert_eq!(world.reports.links.lock().len(), 1, "the new one's is kept");
    drop(new);
    assert!(
        world.reports.links.lock().is_empty(),
        "nothing of it remains"
    );
}

/// Names as an attacker would choose them.
fn crafted() -> impl Strategy<Value = String> {
    let chosen = [
        "",
        ".",
        "..",
        "default",
        "kube-system",
        "mine",
        "theirs",
        "x",
        "one",
        "two",
        "default/secrets/x?",
        "default/secrets/x",
        "../../nodes/two",
        "default%2Fsecrets%2Fx",
        "theirs?gracePeriodSeconds=0",
        "theirs#",
        "a b",
        "\u{0}",
    ];
    prop_oneof![
        proptest::sample::select(chosen.to_vec()).prop_map(str::to_owned),
        ".{0,12}",
        Just("a".repeat(5000)),
    ]
}

#[test]
fn no_message_with_a_wrong_owner_changes_anything() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let world = runtime.block_on(World::new());
    let before = world.state();
    let uids: Vec<String> = PODS.iter().map(|(name, _)| world.uid(name)).collect();
    let strategy = (crafted(), crafted(), crafted(), 0..8_usize, 0..6_usize);
    let config = ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let check = |(namespace, name, uid, which, kind): (String, String, String, usize, usize)| {
        // Often a pod that exists, with one part of its identity wrong.
        let (namespace, name, uid) = match which {
            0 => ("default".to_owned(), "theirs".to_owned(), uids[1].clone()),
            1 => (namespace, "theirs".to_owned(), uids[1].clone()),
            2 => ("default".to_owned(), "theirs".to_owned(), uids[0].clone()),
            3 => ("default".to_owned(), "mine".to_owned(), uids[1].clone()),
            4 => ("default".to_owned(), name, uids[2].clone()),
            5 => ("default".to_owned(), "mine".to_owned(), uid),
            _ => (namespace, name, uid),
        };
        let own = PODS.iter().zip(&uids).any(|((pod, node), known)| {
            *node == "one" && namespace == "default" && name == *pod && uid == *known
        });
        prop_assume!(!own);
        let phase = json!({"phase": "Failed"});
        let message = match kind {
            0 => status(&namespace, &name, &uid, &phase),
            1 => terminated(&namespace, &name, &uid),
            2 => event(&about_pod(&namespace, &name, &uid)),
            3 if name != "one" => event(&json!({"apiVersion": "v1", "kind": "Node", "name": name})),
            4 => event(
                &json!({"apiVersion": "v1", "kind": name, "namespace": namespace, "name": "x"}),
            ),
            _ => event(
                &json!({"apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name, "uid": uid}),
            ),
        };
        let link = world.open("one");
        runtime.block_on(world.say(&link, message));
        prop_assert_eq!(world.state(), before.clone());
        Ok(())
    };
    runner.run(&strategy, check).expect("nothing changes");
}
