//! What waits to be written, and how much a node may have written.

use gantry_rpc::node::{NodeStatus, PodStatuses};

use super::super::allowance::{Allowance, PodWrites, STATUSES};
use super::super::*;
use super::{World, status, used_up};

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
