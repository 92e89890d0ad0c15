use std::collections::BTreeMap;

use futures::FutureExt;
use gantry_apiserver::{ApiServer, ApiServerConfig, Identity, NODE_LINK, NoNodes, node_keys};
use gantry_informer::EventStyle;
use gantry_rpc::node::{
    ContainerUsage, EventRecord, HeldConnections, Hello, NodeStatus, NodeUsage, PodStatuses,
    PodTerminated, PodUsage, Scraped, ScrapedPod, ScrapedSeries, Usage,
};
use gantry_usage::ScrapedMetric;
use proptest::prelude::*;

use super::allowance::{Allowance, PodWrites, REGISTRATIONS, Rate, STATUSES};
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

fn usage(clock: u64, pods: &[(&str, &str, &str)]) -> agent_message::Message {
    let pods = pods.iter().map(|(namespace, name, uid)| PodUsage {
        namespace: (*namespace).to_owned(),
        name: (*name).to_owned(),
        uid: (*uid).to_owned(),
        read_at: clock,
        containers: vec![ContainerUsage {
            name: "c".to_owned(),
            ..ContainerUsage::default()
        }],
        ..PodUsage::default()
    });
    agent_message::Message::Usage(Usage {
        clock: 1,
        node: Some(NodeUsage {
            read_at: clock,
            ..NodeUsage::default()
        }),
        pods: pods.collect(),
        held: Vec::new(),
    })
}

fn holding(clock: u64, services: &[(&str, u64)]) -> agent_message::Message {
    let held = services.iter().map(|(service, held)| HeldConnections {
        namespace: "default".to_owned(),
        service: (*service).to_owned(),
        held: *held,
    });
    agent_message::Message::Usage(Usage {
        clock,
        node: Some(NodeUsage::default()),
        held: held.collect(),
        ..Usage::default()
    })
}

#[tokio::test]
async fn what_a_node_holds_counts_where_there_is_a_service() {
    let world = World::new().await;
    let (one, two) = (world.open("one"), world.open("two"));
    let held = |name: &str| {
        let service = said::service("default".to_owned(), name.to_owned());
        let service = service.expect("a name");
        world.reports.figures.held(&service, Instant::now())
    };
    world
        .say(&one, holding(1, &[("kubernetes", 3), ("none", 1)]))
        .await;
    world.say(&two, holding(1, &[("kubernetes", 4)])).await;
    assert_eq!((held("kubernetes"), held("none")), (7, 0));
    // What is not well-formed counts for nothing; the rest of the message does.
    let twice = holding(1, &[("kubernetes", 3), ("kubernetes", 3)]);
    world.say(&one, twice).await;
    assert_eq!(held("kubernetes"), 4);
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
async fn figures_count_of_a_nodes_own_pods() {
    let world = World::new().await;
    let link = world.open("one");
    let (mine, theirs) = (world.uid("mine"), world.uid("theirs"));
    let told = || {
        let window = Duration::from_secs(1);
        let pods = world.reports.figures.pods(None, window, Instant::now());
        let names = pods.iter().map(|usage| usage.pod.name.clone());
        names.collect::<Vec<_>>()
    };
    let refused = || METRICS.reports_refused.get();
    let second = 1_000_000_000;
    for at in 1..3 {
        let before = refused();
        let pods = [
            ("default", "mine", mine.as_str()),
            ("default", "mine", mine.as_str()),
            ("default", "theirs", theirs.as_str()),
            ("default", "mine", "another-uid"),
            ("default", "nobody", "1-2"),
            ("de/fault", "mine", mine.as_str()),
        ];
        link.take(usage(at * second, &pods)).await;
        // Twice, of another node, of no namespace. Other tests count too.
        assert!(refused() >= before + 3);
    }
    assert_eq!(told(), ["mine"]);
    let node = world
        .reports
        .figures
        .node("one", Duration::ZERO, Instant::now());
    assert!(node.is_some() && link.known_pods.lock().len() == 1);
    // What it does not name any more is gone.
    link.take(usage(3 * second, &[])).await;
    assert_eq!(told(), [""; 0]);
    assert!(link.known_pods.lock().is_empty());
    // Neither what an older link says counts, nor what is too much.
    let new = world.open("one");
    link.take(usage(4 * second, &[("default", "mine", mine.as_str())]))
        .await;
    *new.allowances.usages.lock() = used_up(STATUSES);
    new.take(usage(5 * second, &[("default", "mine", mine.as_str())]))
        .await;
    assert!(new.known_pods.lock().is_empty());
    let (now, window) = (Instant::now(), Duration::ZERO);
    let figures = &world.reports.figures;
    let node = figures.node("one", window, now).expect("its figures");
    assert_eq!(node.counted.at, 3 * second);
}

#[tokio::test]
async fn answers_count_of_a_nodes_own_pods() {
    let world = World::new().await;
    let link = world.open("one");
    let answer = |name: &str, uid: &str| ScrapedPod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        read_at: 1,
        series: vec![ScrapedSeries {
            name: "a".to_owned(),
            value: 4.0,
            ..ScrapedSeries::default()
        }],
        ..ScrapedPod::default()
    };
    let (mine, theirs) = (world.uid("mine"), world.uid("theirs"));
    let pods = vec![
        answer("mine", &mine),
        answer("mine", &mine),
        answer("theirs", &theirs),
        answer("mine", "another-uid"),
    ];
    let before = METRICS.reports_refused.get();
    let said = Scraped { clock: 1, pods };
    link.take(agent_message::Message::Scraped(said)).await;
    assert!(METRICS.reports_refused.get() >= before + 2);
    let value = |uid: &str| {
        let metric = ScrapedMetric {
            namespace: "default",
            name: "a",
            selects: &|_| true,
            window: Duration::ZERO,
        };
        let figures = &world.reports.figures;
        let value = figures.scraped(uid, &metric, Instant::now());
        value.and_then(Result::ok).map(|value| value.value)
    };
    assert_eq!((value(&mine), value(&theirs)), (Some(4.0), None));
    link.take(agent_message::Message::Scraped(Scraped::default()))
        .await;
    assert_eq!(value(&mine), None);
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

#[tokio::test]
async fn what_waits_to_be_written_is_as_large_as_it_was_said_and_the_nodes_own() {
    let world = World::new().await;
    let link = world.open("one");
    // Unreadable, and long: of a pod that is not the node's it is not even looked at.
    let said = json!({"containerStatuses": vec![json!({}); 10_000]});
    for (name, waits) in [("mine", 1), ("theirs", 1)] {
        link.take(status("default", name, &world.uid(name), &said))
            .await;
        assert_eq!(link.queue.lock().pods.len(), waits, "{name}");
    }
    let bytes: usize = {
        let waiting = link.queue.lock();
        let kept = waiting.pods.values().filter_map(|pod| pod.status.as_ref());
        kept.map(Bytes::len).sum()
    };
    assert_eq!(bytes, said.to_string().len());
    let before = world.pod("mine");
    while !link.write_all().await {}
    assert_eq!(world.pod("mine"), before, "refused, and not tried again");
    let many = PodStatuses {
        statuses: vec![PodStatus::default(); 20_000],
    };
    link.take(agent_message::Message::PodStatuses(many)).await;
    assert!(link.queue.lock().pods.is_empty());
}

#[tokio::test]
async fn a_new_link_does_not_allow_a_node_more() {
    let world = World::new().await;
    let first = world.open("one");
    let now = Instant::now();
    while first.allowances.events.lock().take(now) {}
    drop(first);
    let second = world.open("one");
    assert!(!second.allowances.events.lock().take(now));
    drop(second);
    let later = now + Duration::from_secs(3600);
    let other = NodeName::new("other".to_owned()).expect("a name");
    drop(world.reports.allowances(&other, later));
    assert_eq!(world.reports.allowances.lock().len(), 1, "forgotten");
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
async fn what_is_more_than_allowed_waits_and_the_latest_is_written() {
    let world = World::new().await;
    let link = world.open("one");
    let uid = world.uid("mine");
    let say = async |message: &str| {
        let said = json!({"phase": "Running", "message": message});
        link.take(status("default", "mine", &uid, &said)).await;
    };
    let written = || world.pod("mine").expect("kept")["status"]["message"].clone();
    say("first").await;
    assert!(link.write_all().await);
    assert_eq!(written(), "first");
    // Neither of few writes nor of small ones there may be more than so many.
    for bytes in [true, false] {
        let mut none = PodWrites::new();
        let part = match bytes {
            true => &mut none.bytes,
            false => &mut none.count,
        };
        *part = used_up(part.rate);
        *link.allowances.pods.lock() = none;
        say("second").await;
        assert!(!link.write_all().await, "later");
        assert_ne!(written(), "third");
        say("third").await;
        assert!(!link.write_all().await, "still later");
        assert_eq!(link.queue.lock().pods.len(), 1);
        *link.allowances.pods.lock() = PodWrites::new();
        assert!(link.write_all().await);
        assert_eq!(written(), "third");
        assert!(link.queue.lock().pods.is_empty());
        say("first").await;
        assert!(link.write_all().await);
    }
    // A write takes what everybody who watches has to hold, not what was said.
    let left = || link.allowances.pods.lock().bytes.left;
    *link.allowances.pods.lock() = PodWrites::new();
    let before = left();
    say("fourth").await;
    assert!(link.write_all().await);
    let stored = world.pod("mine").expect("kept").to_string().len();
    assert!(before - left() > i64::try_from(stored).expect("few"));
}

#[tokio::test]
async fn an_older_link_keeps_nothing() {
    let world = World::new().await;
    let old = world.open("one");
    let running = json!({"phase": "Running"});
    old.take(status("default", "mine", &world.uid("mine"), &running))
        .await;
    assert_eq!(old.queue.lock().pods.len(), 1);
    let _new = world.open("one");
    *old.allowances.pods.lock() = PodWrites {
        count: used_up(STATUSES),
        bytes: used_up(STATUSES),
    };
    assert!(old.write_all().await);
    assert!(old.queue.lock().pods.is_empty());
}

#[tokio::test]
async fn conditions_do_not_pile_up() {
    let world = World::new().await;
    let link = world.open("one");
    let uid = world.uid("mine");
    let count = || {
        let pod = world.pod("mine").expect("kept");
        let conditions = pod["status"]["conditions"].as_array().map(Vec::len);
        conditions.unwrap_or_default()
    };
    let mut before = count();
    for round in 0..8 {
        let one =
            |at: usize| json!({"type": format!("example.com/r{round}-{at}"), "status": "True"});
        let said = json!({"conditions": (0..40).map(one).collect::<Vec<_>>()});
        world
            .say(&link, status("default", "mine", &uid, &said))
            .await;
        let now = count();
        assert!(round != 0 || now >= before + 40, "the first are written");
        assert!(now <= 100, "{now} conditions");
        before = now;
    }
}

#[tokio::test]
async fn a_nodes_status_is_written_in_its_turn_and_the_latest_of_it() {
    let world = World::new().await;
    let link = world.open("one");
    let say = async |version: &str| {
        let status = json!({"nodeInfo": {"kernelVersion": version, "architecture": "", "bootID": "",
            "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
            "operatingSystem": "", "osImage": "", "systemUUID": ""}});
        let status = NodeStatus {
            status: status.to_string().into(),
        };
        link.take(agent_message::Message::NodeStatus(status)).await;
    };
    let written = || {
        let node = world.reports.get("core/nodes", "", "one").expect("there");
        node["status"]["nodeInfo"]["kernelVersion"].clone()
    };
    say("first").await;
    assert!(link.write_all().await);
    assert_eq!(written(), "first");
    *link.allowances.statuses.lock() = used_up(STATUSES);
    say("second").await;
    let (uid, running) = (world.uid("mine"), json!({"phase": "Running"}));
    link.take(status("default", "mine", &uid, &running)).await;
    assert!(!link.write_all().await, "later");
    assert_eq!(written(), "first");
    let pod = world.pod("mine").expect("kept");
    assert_eq!(pod["status"]["phase"], "Running", "pods do not wait for it");
    say("third").await;
    *link.allowances.statuses.lock() = Allowance::new(STATUSES);
    assert!(link.write_all().await);
    assert_eq!(written(), "third");
}

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
