use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::elements::Frontend;
use super::super::table::{Difference, Table};
use super::super::tests::{changes, name, service};
use super::*;
use crate::holding::Reception;
use crate::{Held, NodeNetwork, Protocol, ServiceChanges, ServiceName, ServicePort};

fn skeletons() -> Vec<Skeleton> {
    let node = NodeNetwork {
        prefix: "gt".into(),
        pod_cidr: "10.244.1.0/24".parse().unwrap(),
        cluster_pod_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        overlay: None,
        data_dir: "/nonexistent".into(),
        ipv6: Some(crate::Ipv6Network {
            pod_cidr: "fd10:244:0:1::/64".parse().unwrap(),
            cluster_pod_cidr: "fd10:244::/48".parse().unwrap(),
            service_cidr: Some("fd10:96::/112".parse().unwrap()),
        }),
    };
    Skeleton::of(&node, "gt-services", Some(7))
}

#[test]
fn packets_of_no_connection_to_the_service_range_do_not_pass() {
    for (skeleton, family, range) in skeletons()
        .iter()
        .zip(["ip", "ip6"])
        .zip(["10.96.0.0/12", "fd10:96::/112"])
        .map(|((skeleton, family), range)| (skeleton.to_string(), family, range))
    {
        let (_, forward) = skeleton.split_once("chain filter_forward {").unwrap();
        let rules: Vec<&str> = forward.lines().skip(2).map(str::trim).take(2).collect();
        let dropped = format!("{family} daddr {range} ct state invalid,untracked counter drop");
        assert_eq!(
            rules,
            [dropped.as_str(), "ct state new jump without_endpoints"]
        );
    }
}

/// Does what nft does with the scripts: objects that hold elements or rules, in which nothing may be added twice,
/// removed when absent, or refer to what does not exist; and nothing goes that is referred to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Kernel {
    elements: BTreeMap<String, BTreeMap<String, String>>,
    rules: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    fn apply(&mut self, script: &str) {
        for line in script.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["add", "map" | "set", family, _, object, ..] => {
                    let object = format!("{family} {object}");
                    let before = self.elements.insert(object, BTreeMap::new());
                    assert_eq!(before, None, "{line}");
                }
                ["add", "chain", family, _, chain] => {
                    let before = self.rules.insert(format!("{family} {chain}"), Vec::new());
                    assert_eq!(before, None, "{line}");
                }
                ["add", "rule", family, _, chain, ..] => {
                    let (_, rule) = line.split_once(chain).unwrap();
                    self.refers(family, rule);
                    let chain = self.rules.get_mut(&format!("{family} {chain}"));
                    chain.unwrap().push(rule.to_owned());
                }
                ["flush", "chain", family, _, chain] => {
                    self.rules
                        .get_mut(&format!("{family} {chain}"))
                        .unwrap()
                        .clear();
                }
                ["delete", "chain", family, _, chain] => {
                    let rules = self.rules.remove(&format!("{family} {chain}"));
                    assert_eq!(rules, Some(vec![]), "{line}");
                    self.nothing_refers(family, &format!(" {chain}"));
                }
                ["delete", "map" | "set", family, _, object] => {
                    let held = self.elements.remove(&format!("{family} {object}"));
                    assert_eq!(held, Some(BTreeMap::new()), "{line}");
                    self.nothing_refers(family, &format!("@{object}"));
                }
                [verb @ ("add" | "delete"), "element", family, _, object, ..] => {
                    let (_, list) = line.split_once("{ ").unwrap();
                    for element in list.trim_end_matches(" }").split(", ") {
                        let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
                        self.refers(family, value);
                        let object = format!("{family} {object}");
                        // What the skeleton makes is there from the start.
                        let map = self.elements.entry(object).or_default();
                        let before = match verb {
                            "add" => map.insert(key.to_owned(), value.to_owned()),
                            _ => map.remove(key),
                        };
                        assert_eq!(before.is_some(), verb == "delete", "{line}");
                    }
                }
                _ => {}
            }
        }
    }

    fn refers(&self, family: &str, words: &str) {
        let words: Vec<&str> = words.split_whitespace().collect();
        for pair in words.windows(2) {
            if let ["goto" | "jump", chain] = pair {
                assert!(
                    self.rules.contains_key(&format!("{family} {chain}")),
                    "{chain}"
                );
            }
        }
        for object in words.iter().filter_map(|word| word.strip_prefix('@')) {
            assert!(
                self.elements.contains_key(&format!("{family} {object}")),
                "{object}"
            );
        }
    }

    fn nothing_refers(&self, family: &str, to: &str) {
        let own = |object: &String| object.starts_with(&format!("{family} "));
        let values = self.elements.iter().filter(|(object, _)| own(object));
        let values = values.flat_map(|(_, map)| map.values());
        let rules = self.rules.iter().filter(|(chain, _)| own(chain));
        for words in values.chain(rules.flat_map(|(_, rules)| rules)) {
            assert!(
                !format!("{words} ").contains(&format!("{to} ")),
                "{to} is in use: {words}"
            );
        }
    }

    /// Without the objects that the skeleton makes when they are empty, as they are not seen to be made.
    fn visible(&self) -> Self {
        let fixed = [
            "service_", "outside_", "refused_", "held_", "ignored_", "guarded", "allowed",
            "hairpin",
        ];
        let mut visible = self.clone();
        visible.elements.retain(|object, map| {
            let (_, name) = object.split_once(' ').unwrap();
            !map.is_empty() || !fixed.iter().any(|fixed| name.starts_with(fixed))
        });
        visible
    }
}

fn fresh(table: &Table) -> Kernel {
    let mut kernel = Kernel::default();
    kernel.apply(&difference(&skeletons(), &table.whole()));
    kernel
}

#[test]
fn one_changed_endpoint_is_a_few_elements_however_many_services_there_are() {
    let mut table = Table::default();
    let many = (0..1000u16).map(|i| (format!("s{i}"), service(i, &[i, i + 1000, i + 2000])));
    table.change(ServiceChanges {
        complete: true,
        services: many.map(|(n, port)| (name(&n), vec![port])).collect(),
    });
    let mut one = service(500, &[500, 1500, 2500]);
    one.endpoints[1].port = 9090;
    let change = changes([("s500", Some(one))]);
    assert_eq!(
        difference(&skeletons(), &table.change(change.clone())),
        "delete element ip gt-services tcp_address_3 { 10.96.1.244 . 80 . 1 }\n\
         add element ip gt-services tcp_address_3 { 10.96.1.244 . 80 . 1 : 10.244.5.220 . 9090 }\n"
    );
    assert_eq!(difference(&skeletons(), &table.change(change)), "");
}

#[test]
fn one_endpoint_more_moves_the_service_to_another_chain() {
    let mut table = Table::default();
    table.change(changes([("web", Some(service(1, &[1])))]));
    let next = table.change(changes([("web", Some(service(1, &[1, 2])))]));
    assert_eq!(
        difference(&skeletons(), &next),
        "add map ip gt-services tcp_address_2 { typeof ip daddr . tcp dport . numgen random mod 2 : ip daddr . tcp dport; }\n\
         add chain ip gt-services tcp_address_2\n\
         add rule ip gt-services tcp_address_2 ip saddr != 10.244.1.0/24 meta mark set meta mark | 0x2000\n\
         add rule ip gt-services tcp_address_2 meta l4proto 6 dnat ip to ip daddr . tcp dport . numgen random mod 2 map @tcp_address_2\n\
         delete element ip gt-services service_address { 10.96.0.1 . 6 . 80 }\n\
         delete element ip gt-services tcp_address_1 { 10.96.0.1 . 80 }\n\
         add element ip gt-services hairpin { 10.244.0.2 . 10.244.0.2 }\n\
         add element ip gt-services service_address { 10.96.0.1 . 6 . 80 : goto tcp_address_2 }\n\
         add element ip gt-services tcp_address_2 { 10.96.0.1 . 80 . 0 : 10.244.0.1 . 8080, 10.96.0.1 . 80 . 1 : 10.244.0.2 . 8080 }\n\
         flush chain ip gt-services tcp_address_1\n\
         delete chain ip gt-services tcp_address_1\n\
         delete map ip gt-services tcp_address_1\n"
    );
}

#[test]
fn what_sleeps_is_held_and_served_in_the_transaction_that_brings_endpoints() {
    let mut table = Table::default();
    let mut web = service(1, &[]);
    web.node_port = Some(30080);
    web.held = Some(Held {
        ignored: vec![
            "10.0.0.0/8".parse().unwrap(),
            "fd00::/8".parse().unwrap(),
            "192.168.1.5/32".parse().unwrap(),
        ],
    });
    let asleep = table.change(changes([("web", Some(web.clone()))]));
    assert_eq!(
        difference(&skeletons(), &asleep),
        "add element ip gt-services held_address { 10.96.0.1 . 6 . 80 }\n\
         add element ip gt-services held_port { 6 . 30080 }\n\
         add element ip gt-services ignored_address { 10.96.0.1 . 6 . 80 . 10.0.0.0/8, 10.96.0.1 . 6 . 80 . 192.168.1.5/32 }\n\
         add element ip gt-services ignored_port { 6 . 30080 . 10.0.0.0/8, 6 . 30080 . 192.168.1.5/32 }\n"
    );
    let owner = std::sync::Arc::new(name("web"));
    let receptions = |difference: &Difference| -> Vec<Reception> {
        difference.receptions.values().cloned().collect()
    };
    assert_eq!(
        receptions(&asleep),
        vec![Reception::Held(owner); 2],
        "the address and the port"
    );
    web.endpoints = service(1, &[1]).endpoints;
    let awake = table.change(changes([("web", Some(web.clone()))]));
    assert_eq!(receptions(&awake), vec![Reception::Served; 2]);
    let script = difference(&skeletons(), &awake);
    for gone in [
        "held_address",
        "held_port",
        "ignored_address",
        "ignored_port",
    ] {
        assert!(
            script.contains(&format!("delete element ip gt-services {gone} ")),
            "{script}"
        );
    }
    // More endpoints are no news to who holds nothing.
    web.endpoints = service(1, &[1, 2]).endpoints;
    let more = table.change(changes([("web", Some(web.clone()))]));
    assert_eq!(receptions(&more), []);
    web.endpoints.clear();
    assert_eq!(
        table.change(changes([("web", Some(web))])).receptions.len(),
        2
    );
    let gone = table.change(changes([("web", None)]));
    assert_eq!(receptions(&gone), vec![Reception::Refused; 2]);
}

#[test]
fn only_tcp_waits_and_nobody_where_all_are_ignored() {
    let refused = |port: ServicePort| {
        let script = difference(
            &skeletons(),
            &Table::default().change(changes([("web", Some(port))])),
        );
        script.contains("refused_address") && !script.contains("held")
    };
    let mut web = service(1, &[]);
    assert!(refused(web.clone()));
    web.held = Some(Held::default());
    assert!(!refused(web.clone()));
    web.protocol = Protocol::Udp;
    assert!(refused(web.clone()));
    web.protocol = Protocol::Tcp;
    web.held = Some(Held {
        ignored: vec!["0.0.0.0/0".parse().unwrap()],
    });
    assert!(refused(web));
}

#[test]
fn the_first_of_two_services_at_a_frontend_is_the_one_that_is_woken() {
    let shared = Frontend::Address(Protocol::Tcp, [192, 0, 2, 9].into(), 80);
    let asleep = |address| {
        let mut port = service(address, &[]);
        port.external_ips = vec![[192, 0, 2, 9].into()];
        port.held = Some(Held::default());
        Some(port)
    };
    let mut table = Table::default();
    table.change(changes([("b", asleep(2))]));
    let difference = table.change(changes([("a", asleep(1))]));
    let of = |service: &str| Some(Reception::Held(std::sync::Arc::new(name(service))));
    assert_eq!(difference.receptions.get(&shared).cloned(), of("a"));
    let difference = table.change(changes([("a", None)]));
    assert_eq!(difference.receptions.get(&shared).cloned(), of("b"));
}

#[test]
fn the_number_of_rules_does_not_depend_on_the_number_of_services() {
    let rules = |count: u16| {
        let mut table = Table::default();
        let many = (0..count).map(|i| {
            let mut sticky = service(i, &[i, i + 10_000, i + 20_000]);
            sticky.client_ip_affinity = (i % 2 == 0).then_some(10_800);
            (name(&format!("s{i}")), vec![sticky])
        });
        table.change(ServiceChanges {
            complete: true,
            services: many.collect(),
        });
        from_scratch(&skeletons(), &table.whole())
            .matches("add rule")
            .count()
    };
    assert_eq!(rules(10), rules(2000));
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let one = (
        0u16..6,
        proptest::collection::vec((0u16..8, any::<bool>()), 0..4),
        any::<[bool; 8]>(),
        0u16..3,
        proptest::collection::vec(0u8..4, 0..3),
    );
    let one = one.prop_map(|(address, endpoints, flags, node_port, ranges)| {
        let [sticky, external, internal, udp, v6, balancer, short, held] = flags;
        let numbers: Vec<u16> = endpoints.iter().map(|&(number, _)| number).collect();
        let mut port = if v6 {
            super::super::tests::service6(address, &numbers)
        } else {
            service(address, &numbers)
        };
        for (endpoint, (_, local)) in port.endpoints.iter_mut().zip(endpoints) {
            endpoint.local = local;
        }
        let local = port.endpoints.iter().filter(|endpoint| endpoint.local);
        port.local_endpoints = local.copied().collect();
        port.client_ip_affinity = sticky.then_some(if short { 60 } else { 10_800 });
        (port.external_local, port.internal_local) = (external, internal);
        if udp {
            port.protocol = Protocol::Udp;
        }
        if balancer {
            let shared = ["192.0.2.1", "2001:db8::1"][usize::from(v6)];
            port.load_balancer_ips = vec![shared.parse().unwrap()];
            let ranges = ranges.iter().map(|&n| match v6 {
                true => format!("2001:db8:{n}::/{}", 40 + 8 * (n % 2)),
                false => format!("198.51.{n}.0/{}", 20 + 4 * (n % 2)),
            });
            port.source_ranges = ranges.map(|range| range.parse().unwrap()).collect();
        }
        port.held = held.then(|| Held {
            ignored: port.source_ranges.clone(),
        });
        port.node_port = (node_port > 0).then_some(30000 + node_port);
        port
    });
    proptest::collection::vec(one, 0..3)
}

fn step() -> impl Strategy<Value = ServiceChanges> {
    let services = proptest::collection::btree_map(0u8..5, ports(), 0..4);
    (any::<bool>(), any::<bool>(), services).prop_map(|(one, two, services)| ServiceChanges {
        complete: one && two,
        services: services
            .into_iter()
            .map(|(number, ports)| (name(&format!("s{number}")), ports))
            .collect(),
    })
}

/// What the services ask for together after these steps.
fn final_state(steps: &[ServiceChanges]) -> BTreeMap<ServiceName, Vec<ServicePort>> {
    let mut services = BTreeMap::new();
    for step in steps {
        if step.complete {
            services.clear();
        }
        services.extend(step.services.clone());
    }
    services
}

/// The elements, as if an endpoint's slot were nothing but its number among the frontend's endpoints.
fn without_slots(kernel: &Kernel) -> BTreeSet<(String, String)> {
    let mut all = BTreeSet::new();
    for (object, elements) in &kernel.elements {
        for (key, value) in elements {
            let (prefix, rest) = object.split_once("_slot_").unwrap_or((object, ""));
            let sticky = object.contains("_sticky_") || value.contains("_sticky_");
            match (rest.is_empty(), sticky) {
                // Which endpoints are in some slot.
                (false, _) => all.insert((format!("{prefix} {key}"), value.clone())),
                (true, true) => false,
                (true, false) => all.insert((format!("{object} {key}"), value.clone())),
            };
        }
    }
    all
}

proptest! {
    /// The invariant of incremental programming: it never matters which way the kernel got where it is.
    #[test]
    fn differences_lead_to_the_same_tables_as_a_fresh_start(
        steps in proptest::collection::vec(step(), 1..6)
    ) {
        let (mut kernel, mut table) = (Kernel::default(), Table::default());
        for (number, step) in steps.iter().enumerate() {
            kernel.apply(&difference(&skeletons(), &table.change(step.clone())));
            prop_assert_eq!(kernel.visible(), fresh(&table).visible());
            let mut another = Table::default();
            another.change(ServiceChanges {
                complete: true,
                services: final_state(&steps[..=number]),
            });
            prop_assert_eq!(without_slots(&kernel), without_slots(&fresh(&another)));
        }
        let nothing = ServiceChanges { complete: true, ..ServiceChanges::default() };
        kernel.apply(&difference(&skeletons(), &table.change(nothing)));
        prop_assert_eq!(kernel.visible(), Kernel::default());
    }
}
