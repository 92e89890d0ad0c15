//! From plans to nft's words: the table's skeleton, and the difference between two plans. Pure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Write};

use ipnet::Ipv4Net;

use super::plan::{Frontend, Key, Plan, Scope, Shape, Value};

/// Marks the first packet of a connection whose source address has to be replaced on the way out. One bit, which
/// others are not known to use (kube-proxy takes 0x4000 and 0x8000).
const MASQUERADE_MARK: u32 = 0x2000;
/// Elements per command: nft's parser slows down on very long lines.
const ELEMENTS_PER_COMMAND: usize = 512;
/// Fixed, so that every node and every restart sends a client to the same endpoint.
const AFFINITY_SEED: u32 = 0x6761_6e74;

/// What the table's fixed part depends on.
#[derive(Clone, Debug)]
pub(super) struct Skeleton {
    pub(super) table: String,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) service_cidr: Ipv4Net,
}

/// What the kernel holds.
#[derive(Clone, Debug)]
pub(super) struct Programmed {
    plan: Plan,
    /// Chains that exist. Those no longer in use stay: they are two rules each, and the next rollout wants them back.
    shapes: BTreeSet<Shape>,
}

/// The script that makes the table anew.
pub(super) fn from_scratch(skeleton: &Skeleton, plan: &Plan) -> (String, Programmed) {
    let mut script = skeleton.to_string();
    let nothing = Programmed {
        plan: Plan::default(),
        shapes: BTreeSet::new(),
    };
    let (changes, programmed) = difference(skeleton, &nothing, plan);
    script.push_str(&changes);
    (script, programmed)
}

/// The script that turns what is programmed into `plan`, and what is programmed then. Empty when nothing changed.
pub(super) fn difference(
    skeleton: &Skeleton,
    now: &Programmed,
    plan: &Plan,
) -> (String, Programmed) {
    let mut script = String::new();
    let mut shapes = now.shapes.clone();
    for shape in plan.shapes() {
        if shapes.insert(shape) {
            let _infallible = write!(script, "{}", Balancer { skeleton, shape });
        }
    }
    let (gone, new) = changed(now.plan.elements(), plan.elements());
    commands(&mut script, skeleton, "delete", &gone);
    commands(&mut script, skeleton, "add", &new);
    (
        script,
        Programmed {
            plan: plan.clone(),
            shapes,
        },
    )
}

type Elements = Vec<(Key, Value)>;

/// Elements to delete and to add, by walking both sorted lists once. A changed value is both.
fn changed(old: &[(Key, Value)], new: &[(Key, Value)]) -> (Elements, Elements) {
    let (mut gone, mut added) = (Vec::new(), Vec::new());
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return (gone, added),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        match order {
            Ordering::Less => gone.extend(old.next()),
            Ordering::Greater => added.extend(new.next()),
            Ordering::Equal => {
                if let (Some(before), Some(after)) = (old.next(), new.next())
                    && before.1 != after.1
                {
                    gone.push(*before);
                    added.push(*after);
                }
            }
        }
    }
}

fn commands(script: &mut String, skeleton: &Skeleton, verb: &str, elements: &[(Key, Value)]) {
    let mut by_object: BTreeMap<String, Vec<(Key, Value)>> = BTreeMap::new();
    for &(key, value) in elements {
        by_object.entry(object(key)).or_default().push((key, value));
    }
    for (object, elements) in by_object {
        for some in elements.chunks(ELEMENTS_PER_COMMAND) {
            let _infallible = write!(script, "{verb} element ip {} {object} {{ ", skeleton.table);
            for (index, &(key, value)) in some.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                let _infallible = write!(script, "{comma}{}", KeyWords(key));
                if verb == "add" {
                    let _infallible = write!(script, "{}", ValueWords(value));
                }
            }
            script.push_str(" }\n");
        }
    }
}

/// The map or set that holds an element.
fn object(key: Key) -> String {
    match key {
        Key::Verdict(Scope::Anywhere, Frontend::Address(..)) => "service_address".to_owned(),
        Key::Verdict(Scope::Anywhere, Frontend::NodePort(..)) => "service_port".to_owned(),
        Key::Verdict(Scope::Outside, Frontend::Address(..)) => "outside_address".to_owned(),
        Key::Verdict(Scope::Outside, Frontend::NodePort(..)) => "outside_port".to_owned(),
        Key::Backend(shape, ..) => shape.to_string(),
        Key::Refused(Frontend::Address(..)) => "refused_address".to_owned(),
        Key::Refused(Frontend::NodePort(..)) => "refused_port".to_owned(),
        Key::Hairpin(_) => "hairpin".to_owned(),
    }
}

/// A shape's name is that of its chain and of its map.
impl Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.node_port { "port" } else { "address" };
        let outside = if self.scope == Scope::Outside {
            "outside_"
        } else {
            ""
        };
        let sticky = if self.sticky { "sticky_" } else { "" };
        write!(
            f,
            "{}_{kind}_{outside}{sticky}{}",
            self.protocol.word(),
            self.endpoints
        )
    }
}

struct KeyWords(Key);

impl Display for KeyWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Key::Verdict(_, frontend) | Key::Refused(frontend) => match frontend {
                Frontend::Address(protocol, ip, port) => {
                    write!(f, "{ip} . {} . {port}", protocol.word())
                }
                Frontend::NodePort(protocol, port) => write!(f, "{} . {port}", protocol.word()),
            },
            // The protocol is that of the map.
            Key::Backend(shape, frontend, index) => {
                match frontend {
                    Frontend::Address(_, ip, port) => write!(f, "{ip} . {port}")?,
                    Frontend::NodePort(_, port) => write!(f, "{port}")?,
                }
                if shape.endpoints > 1 {
                    write!(f, " . {index}")
                } else {
                    Ok(())
                }
            }
            Key::Hairpin(ip) => write!(f, "{ip} . {ip}"),
        }
    }
}

struct ValueWords(Value);

impl Display for ValueWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Balance(shape) => write!(f, " : goto {shape}"),
            Value::Drop => f.write_str(" : drop"),
            Value::To(ip, port) => write!(f, " : {ip} . {port}"),
            Value::Member => Ok(()),
        }
    }
}

/// The commands that make a shape's map and chain.
struct Balancer<'a> {
    skeleton: &'a Skeleton,
    shape: Shape,
}

impl Display for Balancer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            skeleton: Skeleton {
                table, pod_cidr, ..
            },
            shape,
        } = self;
        let protocol = shape.protocol.word();
        let frontend = if shape.node_port {
            format!("{protocol} dport")
        } else {
            format!("ip daddr . {protocol} dport")
        };
        let endpoints = shape.endpoints;
        // The map's type is the same whichever way the number is found.
        let (typed, chosen) = match (endpoints, shape.sticky) {
            (1, _) => (String::new(), String::new()),
            (_, false) => {
                let random = format!(" . numgen random mod {endpoints}");
                (random.clone(), random)
            }
            (_, true) => (
                format!(" . numgen random mod {endpoints}"),
                format!(" . jhash ip saddr mod {endpoints} seed {AFFINITY_SEED:#x}"),
            ),
        };
        writeln!(
            f,
            "add map ip {table} {shape} {{ typeof {frontend}{typed} : ip daddr . {protocol} dport; }}"
        )?;
        writeln!(f, "add chain ip {table} {shape}")?;
        if shape.scope == Scope::Anywhere {
            writeln!(
                f,
                "add rule ip {table} {shape} ip saddr != {pod_cidr} meta mark set meta mark | {MASQUERADE_MARK:#x}"
            )?;
        }
        writeln!(
            f,
            "add rule ip {table} {shape} meta l4proto {protocol} dnat ip to {frontend}{chosen} map @{shape}"
        )
    }
}

/// The script that makes the table with nothing in it.
///
/// An address of the service range that the node itself holds (the DNS service's) is none of our business. All other
/// addresses of that range lead to a service or are refused: they never leave the node.
impl Display for Skeleton {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            table,
            pod_cidr,
            service_cidr,
        } = self;
        let not_marked = !MASQUERADE_MARK;
        let mark = MASQUERADE_MARK;
        writeln!(
            f,
            r"add table ip {table}
delete table ip {table}
table ip {table} {{
  map service_address {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map service_port {{ type inet_proto . inet_service : verdict; }}
  map outside_address {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map outside_port {{ type inet_proto . inet_service : verdict; }}
  set refused_address {{ type ipv4_addr . inet_proto . inet_service; }}
  set refused_port {{ type inet_proto . inet_service; }}
  set hairpin {{ type ipv4_addr . ipv4_addr; }}
  chain outside {{
    ip daddr . meta l4proto . th dport vmap @outside_address
    fib daddr type local meta l4proto . th dport vmap @outside_port
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service_address
    fib daddr type local meta l4proto . th dport vmap @service_port
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr {service_cidr} fib daddr type local return
    ip saddr != {pod_cidr} jump outside
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr {service_cidr} fib daddr type local return
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {mark:#x} == {mark:#x} meta mark set meta mark & {not_marked:#x} masquerade fully-random
    ct status dnat ip saddr . ip daddr @hairpin masquerade
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmp port-unreachable
  }}
  chain without_endpoints {{
    ip daddr {service_cidr} fib daddr type local return
    ip daddr . meta l4proto . th dport @refused_address goto refuse
    fib daddr type local meta l4proto . th dport @refused_port goto refuse
    ip daddr {service_cidr} goto refuse
  }}
  chain filter_input {{
    type filter hook input priority filter; policy accept;
    ct state new jump without_endpoints
  }}
  chain filter_forward {{
    type filter hook forward priority filter; policy accept;
    ct state new jump without_endpoints
  }}
  chain filter_output {{
    type filter hook output priority filter; policy accept;
    ct state new jump without_endpoints
  }}
}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::tests::service;
    use super::*;
    use crate::{Protocol, ServicePort};

    fn skeleton() -> Skeleton {
        Skeleton {
            table: "gt-services".into(),
            pod_cidr: "10.244.1.0/24".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
        }
    }

    /// Does what nft does with the scripts: maps of elements, in which nothing may be added twice with another value,
    /// removed when absent, or refer to a chain that does not exist.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Kernel {
        elements: BTreeMap<String, BTreeMap<String, String>>,
        chains: BTreeSet<String>,
    }

    impl Kernel {
        fn apply(&mut self, script: &str) {
            for line in script.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["add", "chain", "ip", "gt-services", chain] => {
                        assert!(self.chains.insert(chain.to_owned()), "chain {chain} twice");
                    }
                    [
                        verb @ ("add" | "delete"),
                        "element",
                        "ip",
                        "gt-services",
                        object,
                        ..,
                    ] => {
                        let map = self.elements.entry(object.to_owned()).or_default();
                        let (_, list) = line.split_once("{ ").unwrap();
                        for element in list.trim_end_matches(" }").split(", ") {
                            let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
                            if let Some(chain) = value.strip_prefix("goto ") {
                                assert!(self.chains.contains(chain), "no chain {chain}");
                            }
                            let before = match verb {
                                "add" => map.insert(key.to_owned(), value.to_owned()),
                                _ => Some(
                                    map.remove(key).expect("only what is there can be deleted"),
                                ),
                            };
                            assert_eq!(before.is_some(), verb == "delete", "{line}");
                        }
                    }
                    _ => {}
                }
            }
            self.elements.retain(|_, map| !map.is_empty());
        }
    }

    fn scratch(services: &[ServicePort]) -> (Kernel, Programmed) {
        let (script, programmed) = from_scratch(&skeleton(), &Plan::new(services));
        let mut kernel = Kernel::default();
        kernel.apply(&script);
        (kernel, programmed)
    }

    #[test]
    fn one_changed_endpoint_is_a_few_elements_however_many_services_there_are() {
        let mut services: Vec<_> = (0..1000u16)
            .map(|i| service(&format!("s{i}"), i, &[i, i + 1000, i + 2000]))
            .collect();
        let (_, programmed) = scratch(&services);
        services[500].endpoints[1].port = 9090;
        let (script, next) = difference(&skeleton(), &programmed, &Plan::new(&services));
        assert_eq!(
            script,
            "delete element ip gt-services tcp_address_3 { 10.96.1.244 . 80 . 1 }\n\
             add element ip gt-services tcp_address_3 { 10.96.1.244 . 80 . 1 : 10.244.5.220 . 9090 }\n"
        );
        assert_eq!(difference(&skeleton(), &next, &Plan::new(&services)).0, "");
    }

    #[test]
    fn one_endpoint_more_moves_the_service_to_another_chain() {
        let mut web = service("web", 1, &[1]);
        let (_, programmed) = scratch(std::slice::from_ref(&web));
        web.endpoints = service("web", 1, &[1, 2]).endpoints;
        let (script, _) = difference(&skeleton(), &programmed, &Plan::new(&[web]));
        assert_eq!(
            script,
            "add map ip gt-services tcp_address_2 { typeof ip daddr . tcp dport . numgen random mod 2 : ip daddr . tcp dport; }\n\
             add chain ip gt-services tcp_address_2\n\
             add rule ip gt-services tcp_address_2 ip saddr != 10.244.1.0/24 meta mark set meta mark | 0x2000\n\
             add rule ip gt-services tcp_address_2 meta l4proto tcp dnat ip to ip daddr . tcp dport . numgen random mod 2 map @tcp_address_2\n\
             delete element ip gt-services service_address { 10.96.0.1 . tcp . 80 }\n\
             delete element ip gt-services tcp_address_1 { 10.96.0.1 . 80 }\n\
             add element ip gt-services hairpin { 10.244.0.2 . 10.244.0.2 }\n\
             add element ip gt-services service_address { 10.96.0.1 . tcp . 80 : goto tcp_address_2 }\n\
             add element ip gt-services tcp_address_2 { 10.96.0.1 . 80 . 0 : 10.244.0.1 . 8080, 10.96.0.1 . 80 . 1 : 10.244.0.2 . 8080 }\n"
        );
    }

    fn services() -> impl Strategy<Value = Vec<ServicePort>> {
        let one = (
            0u16..6,
            proptest::collection::vec((0u16..8, any::<bool>()), 0..4),
            any::<[bool; 4]>(),
            0u16..3,
        );
        proptest::collection::vec(one, 0..8).prop_map(|many| {
            many.into_iter()
                .enumerate()
                .map(
                    |(index, (address, endpoints, [sticky, external, internal, udp], port))| {
                        let numbers: Vec<u16> =
                            endpoints.iter().map(|&(number, _)| number).collect();
                        let mut service = service(&format!("s{index}"), address, &numbers);
                        for (endpoint, (_, local)) in service.endpoints.iter_mut().zip(endpoints) {
                            endpoint.local = local;
                        }
                        service.client_ip_affinity = sticky.then_some(60);
                        (service.external_local, service.internal_local) = (external, internal);
                        if udp {
                            service.protocol = Protocol::Udp;
                        }
                        service.node_port = (port > 0).then_some(30000 + port);
                        service
                    },
                )
                .collect()
        })
    }

    proptest! {
        /// The invariant of incremental programming: it never matters which way the kernel got where it is.
        #[test]
        fn differences_lead_to_the_same_elements_as_a_fresh_start(
            steps in proptest::collection::vec(services(), 1..5)
        ) {
            let (mut kernel, mut programmed) = scratch(&[]);
            for step in &steps {
                let (script, next) = difference(&skeleton(), &programmed, &Plan::new(step));
                kernel.apply(&script);
                programmed = next;
                prop_assert_eq!(&kernel.elements, &scratch(step).0.elements);
            }
        }
    }
}
