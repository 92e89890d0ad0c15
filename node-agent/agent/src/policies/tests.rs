use gantry_network::FakePolicyRules;

use super::*;

fn change() -> PolicyChange {
    let rule = rpc::PolicyRule {
        peers: vec!["web".to_owned()],
        blocks: vec!["192.0.2.0/24".to_owned()],
        ports: vec![rpc::PolicyPort {
            protocol: rpc::Protocol::Tcp.into(),
            ports: Some(Ports::Range(rpc::PortRange {
                first: 80,
                last: 81,
            })),
        }],
        ..rpc::PolicyRule::default()
    };
    PolicyChange {
        revision: 7,
        snapshot: true,
        more: false,
        peers: vec![peers(&[[10, 0, 0, 1], [10, 0, 0, 2]], &[])],
        policies: vec![rpc::PolicyRules {
            uid: "policy".to_owned(),
            ingress: vec![rule],
            ..rpc::PolicyRules::default()
        }],
        pods: vec![pod("one")],
    }
}

fn pod(uid: &str) -> rpc::PodIsolation {
    rpc::PodIsolation {
        uid: uid.to_owned(),
        ingress: true,
        policies: vec!["policy".to_owned()],
        ports: vec![rpc::NamedPort {
            name: "http".to_owned(),
            protocol: rpc::Protocol::Tcp.into(),
            number: 8080,
        }],
        ..rpc::PodIsolation::default()
    }
}

fn peers(added: &[[u8; 4]], removed: &[[u8; 4]]) -> rpc::PeerSetChange {
    let peers = |addresses: &[[u8; 4]]| {
        let peer = |address: &[u8; 4]| write_peer(&(IpAddr::from(*address), 0));
        addresses.iter().map(peer).collect()
    };
    rpc::PeerSetChange {
        id: "web".to_owned(),
        added: peers(added),
        removed: peers(removed),
        ..rpc::PeerSetChange::default()
    }
}

fn address(last: u8) -> IpAddr {
    [10, 1, 0, last].into()
}

/// Policies with a kernel in memory.
fn running(policies: &Arc<Policies>) -> (Arc<FakePolicyRules>, tokio::task::JoinHandle<()>) {
    let rules = Arc::new(FakePolicyRules::default());
    let attached = BTreeMap::from([("earlier".to_owned(), vec![address(9)])]);
    let task = tokio::spawn(policies.clone().run(rules.clone(), attached));
    (rules, task)
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_isolated_when_it_is_attached_and_its_policies_are_known() {
    let policies = Arc::new(Policies::default());
    let (rules, _task) = running(&policies);
    let error = policies.isolate("one", vec![address(1)]).await;
    assert!(matches!(error, Err(NotIsolated::Unknown)), "{error:?}");
    policies.apply(change()).unwrap();
    policies.isolate("one", vec![address(1)]).await.unwrap();
    let programmed = rules.programmed();
    let one = &programmed.pods["one"];
    assert_eq!(
        (one.addresses.as_slice(), one.ingress, one.egress),
        (&[address(1)][..], true, false)
    );
    assert_eq!(one.ports, [(Protocol::Tcp, "http".to_owned(), 8080)].into());
    let rule = &programmed.policies["policy"].ingress[0];
    assert_eq!(
        rule.ports,
        Some(vec![PolicyPort::Range(Protocol::Tcp, 80, 81)])
    );
    assert_eq!(programmed.peers["web"].peers.len(), 2);
    policies.isolate("two", vec![address(2)]).await.unwrap();
    assert_eq!(rules.programmed().pods.len(), 1, "no policy is about it");
    policies.forget("one");
    policies.isolate("three", vec![address(1)]).await.unwrap();
    assert!(
        rules.programmed().pods.is_empty(),
        "the address is another pod's now"
    );
}

#[tokio::test(start_paused = true)]
async fn differences_follow_the_snapshot_and_a_new_link_begins_with_another() {
    let policies = Arc::new(Policies::default());
    let (rules, _task) = running(&policies);
    policies.apply(change()).unwrap();
    let more = PolicyChange {
        more: true,
        peers: vec![peers(&[[10, 0, 0, 3]], &[[10, 0, 0, 1]])],
        ..PolicyChange::default()
    };
    let last = PolicyChange {
        pods: vec![pod("earlier")],
        ..PolicyChange::default()
    };
    policies.apply(more.clone()).unwrap();
    policies.isolate("one", vec![address(1)]).await.unwrap();
    assert!(!rules.programmed().pods.contains_key("earlier"));
    assert!(
        rules.programmed().peers["web"]
            .peers
            .contains(&([10, 0, 0, 1].into(), 0)),
        "nothing holds before the last piece"
    );
    policies.apply(last).unwrap();
    policies.isolate("one", vec![address(1)]).await.unwrap();
    let programmed = rules.programmed();
    assert_eq!(programmed.pods["earlier"].addresses, [address(9)]);
    let expected = [[10, 0, 0, 2], [10, 0, 0, 3]].map(|ip| (IpAddr::from(ip), 0));
    assert_eq!(
        programmed.peers["web"].peers,
        expected.into_iter().collect()
    );

    policies.apply(more).unwrap();
    policies.link_opened();
    policies.isolate("one", vec![address(1)]).await.unwrap();
    assert_eq!(
        rules.programmed(),
        programmed,
        "a link that is lost changes nothing"
    );
    let nothing = PolicyChange {
        snapshot: true,
        ..PolicyChange::default()
    };
    policies.apply(nothing).unwrap();
    policies.synced();
    policies.isolate("one", vec![address(1)]).await.unwrap();
    assert_eq!(rules.programmed(), NodePolicies::default());
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_refuses_is_said_and_tried_again() {
    let policies = Arc::new(Policies::default());
    let (rules, _task) = running(&policies);
    policies.apply(change()).unwrap();
    rules.refuse(Some("no room"));
    let failures = METRICS.policy_failures.get();
    let error = policies.isolate("one", vec![address(1)]).await.unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
    assert!(METRICS.policy_failures.get() > failures);
    rules.refuse(None);
    policies.isolate("one", vec![address(1)]).await.unwrap();
    assert!(rules.programmed().pods.contains_key("one"));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_policies_has_none() {
    let policies = Arc::new(Policies::default());
    let (rules, _task) = running(&policies);
    policies.link_opened();
    policies.synced();
    policies.isolate("one", vec![address(1)]).await.unwrap();
    assert_eq!(rules.programmed(), NodePolicies::default());
}

#[test]
fn what_is_kept_for_the_next_start_says_the_same() {
    let policies = Policies::default();
    assert!(policies.news_for_checkpoint().is_none(), "nothing is known");
    policies.apply(change()).unwrap();
    let kept = policies.news_for_checkpoint().unwrap();
    assert_eq!(kept, change());
    assert!(policies.news_for_checkpoint().is_none(), "nothing new");
    let later = Policies::default();
    later.apply(kept).unwrap();
    assert_eq!(later.desired().unwrap().1, policies.desired().unwrap().1);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let policies = Policies::default();
    policies.apply(change()).unwrap();
    let before = policies.desired();
    let broken = |break_it: fn(&mut PolicyChange)| {
        let mut change = change();
        break_it(&mut change);
        policies.apply(change).unwrap_err().to_string()
    };
    let words = broken(|change| change.peers[0].added[0].address = vec![1, 2, 3].into());
    assert!(words.contains("3 bytes"), "{words}");
    let words = broken(|change| change.policies[0].ingress[0].blocks[0] = "x".to_owned());
    assert!(words.contains("\"x\""), "{words}");
    let words = broken(|change| change.policies[0].ingress[0].ports[0].protocol = 99);
    assert!(words.contains("protocol 99"), "{words}");
    assert_eq!(policies.desired(), before);
}

#[tokio::test(start_paused = true)]
async fn after_a_change_that_was_left_out_only_a_snapshot_counts() {
    let policies = Arc::new(Policies::default());
    let (rules, _task) = running(&policies);
    policies.apply(change()).unwrap();
    policies.isolate("one", vec![address(1)]).await.unwrap();
    let broken = PolicyChange {
        peers: vec![rpc::PeerSetChange {
            added: vec![rpc::Peer::default()],
            ..rpc::PeerSetChange::default()
        }],
        pods: vec![pod("two")],
        ..PolicyChange::default()
    };
    policies.apply(broken).unwrap_err();
    let difference = PolicyChange {
        pods: vec![pod("three")],
        ..PolicyChange::default()
    };
    policies.apply(difference).unwrap();
    let error = policies.isolate("two", vec![address(2)]).await.unwrap_err();
    assert!(
        matches!(&error, NotIsolated::Missed(_)) && error.to_string().contains("0 bytes"),
        "nobody knows what isolates it: {error}"
    );
    assert!(rules.programmed().pods.contains_key("one"), "it stays");
    let mut whole = change();
    whole.pods.push(pod("two"));
    policies.apply(whole).unwrap();
    policies.isolate("two", vec![address(2)]).await.unwrap();
    policies.isolate("three", vec![address(3)]).await.unwrap();
    let isolated: Vec<String> = rules.programmed().pods.into_keys().collect();
    assert_eq!(
        isolated,
        ["one", "two"],
        "the difference was to something else"
    );
}

#[test]
fn what_is_collected_is_bounded_and_nothing_of_it_holds() {
    let policies = Policies::default();
    let piece = |snapshot, more| PolicyChange {
        snapshot,
        more,
        peers: vec![peers(&[[10, 0, 0, 1]], &[])],
        ..PolicyChange::default()
    };
    let room = 2 * piece(false, true).encoded_len() + piece(true, true).encoded_len();
    let say = |snapshot, more| policies.apply_within(piece(snapshot, more), room);
    say(true, true).unwrap();
    say(false, true).unwrap();
    say(false, false).unwrap();
    assert!(policies.desired().is_some(), "so many have room");
    let before = policies.desired();
    say(true, true).unwrap();
    say(false, true).unwrap();
    say(false, true).unwrap();
    let words = say(false, true).unwrap_err().to_string();
    assert!(words.contains("bytes"), "{words}");
    assert!(policies.state.lock().pieces.is_empty());
    say(false, false).unwrap();
    assert_eq!(policies.desired(), before, "not the rest alone");
    say(true, false).unwrap();
    assert_ne!(policies.desired(), before);
}
