//! The truth table of NetworkPolicy: a small world, policies in it, and who must (not) reach whom then.
//!
//! The table is data. It is read by whoever can answer for a part of the way from a policy to a packet: the server's
//! compiler (over its compiled form), the node's rules (over real connections between namespaces), and whole clusters.
//! Addresses are the reader's: `address` says what a pod or outsider has there.

use serde_json::{Value, json};

/// A pod of the world. All pods serve the same [`PORTS`].
#[derive(Clone, Copy, Debug)]
pub struct CasePod {
    /// What probes call it, `namespace/name`.
    pub id: &'static str,
    /// Its label `app`.
    pub app: &'static str,
    /// Which of two nodes it is on.
    pub node: usize,
    /// The number of its port named `http`.
    pub http: u16,
}

/// Namespaces with their label `team`; each also has its name as `kubernetes.io/metadata.name`.
pub const NAMESPACES: [(&str, &str); 3] = [("shop", "red"), ("bank", "blue"), ("lab", "blue")];

/// The pods.
pub const PODS: [CasePod; 6] = [
    CasePod {
        id: "shop/web",
        app: "web",
        node: 0,
        http: 80,
    },
    CasePod {
        id: "shop/api",
        app: "api",
        node: 0,
        http: 8080,
    },
    CasePod {
        id: "shop/db",
        app: "db",
        node: 1,
        http: 8080,
    },
    CasePod {
        id: "bank/web",
        app: "web",
        node: 1,
        http: 80,
    },
    CasePod {
        id: "bank/till",
        app: "till",
        node: 0,
        http: 80,
    },
    CasePod {
        id: "lab/probe",
        app: "probe",
        node: 1,
        http: 80,
    },
];

/// Clients and servers outside the cluster, which serve the same ports.
pub const OUTSIDERS: [&str; 2] = ["outside-1", "outside-2"];

/// What everybody serves over TCP and UDP.
pub const PORTS: [u16; 5] = [80, 81, 8080, 8085, 8090];

/// How a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speaks {
    /// A connection.
    Tcp,
    /// A question and its answer.
    Udp,
    /// An echo; the port is of no matter.
    Icmp,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Who begins: a pod, an outsider, or `node-0` and `node-1` for the nodes themselves.
    pub from: &'static str,
    /// Who is addressed.
    pub to: &'static str,
    /// How.
    pub speaks: Speaks,
    /// To which port.
    pub port: u16,
    /// Whether it must arrive.
    pub allowed: bool,
}

/// Policies, and what holds while they do.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub name: &'static str,
    /// Namespace and spec of each policy.
    pub policies: Vec<(&'static str, Value)>,
    /// What holds.
    pub probes: Vec<Probe>,
}

fn tcp(from: &'static str, to: &'static str, port: u16, allowed: bool) -> Probe {
    Probe {
        from,
        to,
        speaks: Speaks::Tcp,
        port,
        allowed,
    }
}

fn udp(from: &'static str, to: &'static str, port: u16, allowed: bool) -> Probe {
    Probe {
        from,
        to,
        speaks: Speaks::Udp,
        port,
        allowed,
    }
}

fn icmp(from: &'static str, to: &'static str, allowed: bool) -> Probe {
    Probe {
        from,
        to,
        speaks: Speaks::Icmp,
        port: 0,
        allowed,
    }
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// The whole table.
pub fn cases(address: &dyn Fn(&str) -> String) -> Vec<Case> {
    let mut cases = isolation();
    cases.extend(selectors());
    cases.extend(ports());
    cases.extend(egress());
    cases.extend(blocks(address));
    cases
}

fn isolation() -> Vec<Case> {
    vec![
        Case {
            name: "without policies everything passes",
            policies: vec![],
            probes: vec![
                tcp("shop/api", "shop/web", 80, true),
                tcp("bank/till", "shop/db", 81, true),
                udp("bank/web", "shop/web", 80, true),
                tcp("outside-1", "shop/web", 80, true),
                tcp("shop/db", "outside-1", 80, true),
                icmp("lab/probe", "shop/web", true),
            ],
        },
        Case {
            name: "an empty selector and no rules deny all ingress of the namespace, and nothing else",
            policies: vec![("shop", json!({"podSelector": {}}))],
            probes: vec![
                tcp("shop/api", "shop/web", 80, false),
                tcp("shop/db", "shop/web", 80, false),
                tcp("bank/till", "shop/web", 80, false),
                tcp("bank/web", "shop/db", 80, false),
                udp("bank/web", "shop/db", 80, false),
                icmp("shop/api", "shop/web", false),
                icmp("bank/web", "shop/web", false),
                tcp("outside-1", "shop/db", 80, false),
                tcp("shop/web", "bank/till", 80, true),
                tcp("shop/web", "bank/web", 80, true),
                udp("shop/db", "bank/till", 80, true),
                tcp("shop/web", "outside-1", 80, true),
            ],
        },
        Case {
            name: "what runs on a pod's own node reaches it, other nodes are strangers, and a pod reaches itself",
            policies: vec![(
                "shop",
                json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
            )],
            probes: vec![
                tcp("node-0", "shop/web", 80, true),
                tcp("node-1", "shop/db", 80, true),
                tcp("node-1", "shop/web", 80, false),
                tcp("shop/web", "node-0", 80, true),
                tcp("shop/web", "shop/web", 80, true),
            ],
        },
        Case {
            name: "a policy isolates the pods that it selects",
            policies: vec![("shop", json!({"podSelector": app("web")}))],
            probes: vec![
                tcp("shop/api", "shop/web", 80, false),
                tcp("shop/web", "shop/api", 80, true),
                tcp("bank/web", "shop/db", 80, true),
            ],
        },
        Case {
            name: "an empty rule allows everything",
            policies: vec![("shop", json!({"podSelector": {}, "ingress": [{}]}))],
            probes: vec![
                tcp("bank/web", "shop/web", 81, true),
                udp("outside-1", "shop/web", 81, true),
                icmp("bank/till", "shop/db", true),
            ],
        },
        Case {
            name: "policies add up",
            policies: vec![
                ("shop", json!({"podSelector": {}})),
                (
                    "shop",
                    json!({"podSelector": app("web"), "ingress": [{"from": [{"podSelector": app("api")}]}]}),
                ),
                (
                    "shop",
                    json!({"podSelector": app("web"), "ingress": [{"from": [{"podSelector": app("db")}], "ports": [{"port": 81}]}]}),
                ),
            ],
            probes: vec![
                tcp("shop/api", "shop/web", 80, true),
                tcp("shop/api", "shop/web", 81, true),
                tcp("shop/db", "shop/web", 80, false),
                tcp("shop/db", "shop/web", 81, true),
                tcp("shop/web", "shop/db", 81, false),
                tcp("bank/web", "shop/web", 81, false),
            ],
        },
    ]
}

fn selectors() -> Vec<Case> {
    let from = |peers: Value| json!({"podSelector": app("web"), "ingress": [{"from": peers}]});
    vec![
        Case {
            name: "a pod selector alone is about the policy's own namespace",
            policies: vec![("shop", from(json!([{"podSelector": {}}])))],
            probes: vec![
                tcp("shop/api", "shop/web", 80, true),
                tcp("shop/db", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 80, false),
                tcp("bank/till", "shop/web", 80, false),
                tcp("outside-1", "shop/web", 80, false),
            ],
        },
        Case {
            name: "a namespace selector alone is about all pods of those namespaces",
            policies: vec![(
                "shop",
                from(json!([{"namespaceSelector": {"matchLabels": {"team": "blue"}}}])),
            )],
            probes: vec![
                tcp("bank/web", "shop/web", 80, true),
                tcp("bank/till", "shop/web", 80, true),
                tcp("lab/probe", "shop/web", 80, true),
                icmp("lab/probe", "shop/web", true),
                tcp("shop/api", "shop/web", 80, false),
                tcp("outside-1", "shop/web", 80, false),
            ],
        },
        Case {
            name: "both selectors in one peer have to hold",
            policies: vec![(
                "shop",
                from(json!([{
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}},
                    "podSelector": app("till"),
                }])),
            )],
            probes: vec![
                tcp("bank/till", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 80, false),
                tcp("lab/probe", "shop/web", 80, false),
                tcp("shop/api", "shop/web", 80, false),
            ],
        },
        Case {
            name: "of two peers one has to hold",
            policies: vec![(
                "shop",
                from(json!([
                    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}},
                    {"podSelector": app("db")},
                ])),
            )],
            probes: vec![
                tcp("bank/till", "shop/web", 80, true),
                tcp("shop/db", "shop/web", 80, true),
                tcp("shop/api", "shop/web", 80, false),
                tcp("lab/probe", "shop/web", 80, false),
            ],
        },
        Case {
            name: "an empty namespace selector is about all pods, and about nothing but pods",
            policies: vec![("shop", from(json!([{"namespaceSelector": {}}])))],
            probes: vec![
                tcp("lab/probe", "shop/web", 80, true),
                tcp("shop/api", "shop/web", 80, true),
                tcp("outside-1", "shop/web", 80, false),
                tcp("node-1", "shop/web", 80, false),
            ],
        },
        Case {
            name: "selectors have expressions",
            policies: vec![(
                "shop",
                from(
                    json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": [
                        {"key": "app", "operator": "NotIn", "values": ["db", "till"]},
                        {"key": "app", "operator": "Exists"},
                    ]}}]),
                ),
            )],
            probes: vec![
                tcp("shop/api", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 80, true),
                tcp("shop/db", "shop/web", 80, false),
                tcp("bank/till", "shop/web", 80, false),
            ],
        },
    ]
}

fn ports() -> Vec<Case> {
    let to = |ports: Value| json!({"podSelector": {}, "ingress": [{"ports": ports}]});
    vec![
        Case {
            name: "a port is a TCP port unless it says otherwise",
            policies: vec![("shop", to(json!([{"port": 80}])))],
            probes: vec![
                tcp("bank/till", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 80, true),
                tcp("outside-1", "shop/web", 80, true),
                tcp("bank/till", "shop/web", 81, false),
                udp("bank/till", "shop/web", 80, false),
                icmp("bank/till", "shop/web", false),
            ],
        },
        Case {
            name: "UDP ports",
            policies: vec![("shop", to(json!([{"port": 81, "protocol": "UDP"}])))],
            probes: vec![
                udp("bank/till", "shop/web", 81, true),
                udp("bank/web", "shop/db", 81, true),
                udp("bank/web", "shop/db", 80, false),
                tcp("bank/till", "shop/web", 81, false),
            ],
        },
        Case {
            name: "a protocol without a port is all of its ports",
            policies: vec![("shop", to(json!([{"protocol": "UDP"}])))],
            probes: vec![
                udp("bank/till", "shop/web", 8090, true),
                udp("bank/web", "shop/web", 80, true),
                tcp("bank/till", "shop/web", 8090, false),
            ],
        },
        Case {
            name: "a range of ports has both of its ends",
            policies: vec![("shop", to(json!([{"port": 8080, "endPort": 8085}])))],
            probes: vec![
                tcp("bank/till", "shop/web", 8080, true),
                tcp("bank/web", "shop/web", 8085, true),
                tcp("bank/till", "shop/db", 8085, true),
                tcp("bank/till", "shop/web", 8090, false),
                tcp("bank/web", "shop/web", 80, false),
            ],
        },
        Case {
            name: "a named port is each destination's own",
            policies: vec![("shop", to(json!([{"port": "http"}])))],
            probes: vec![
                tcp("bank/till", "shop/web", 80, true),
                tcp("bank/till", "shop/web", 8080, false),
                tcp("bank/till", "shop/api", 8080, true),
                tcp("bank/till", "shop/api", 80, false),
                tcp("bank/web", "shop/db", 8080, true),
                tcp("bank/web", "shop/db", 80, false),
            ],
        },
        Case {
            name: "a port of a name that nobody has",
            policies: vec![("shop", to(json!([{"port": "metrics"}])))],
            probes: vec![
                tcp("bank/till", "shop/web", 80, false),
                tcp("shop/db", "shop/web", 8080, false),
            ],
        },
    ]
}

fn egress() -> Vec<Case> {
    let types = json!(["Egress"]);
    vec![
        Case {
            name: "egress is denied by a policy that names it and has no rules",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "policyTypes": types}),
            )],
            probes: vec![
                tcp("shop/web", "shop/api", 80, false),
                tcp("shop/web", "bank/web", 80, false),
                udp("shop/web", "shop/db", 80, false),
                icmp("shop/web", "shop/db", false),
                tcp("shop/web", "outside-1", 80, false),
                tcp("shop/api", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 80, true),
                tcp("outside-1", "shop/web", 80, true),
            ],
        },
        Case {
            name: "egress to selected pods and ports",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "policyTypes": types, "egress": [
                    {"to": [{"podSelector": app("db")}], "ports": [{"port": 8080}]},
                    {"to": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": app("till")}]},
                ]}),
            )],
            probes: vec![
                tcp("shop/web", "shop/db", 8080, true),
                tcp("shop/web", "shop/db", 80, false),
                udp("shop/web", "shop/db", 8080, false),
                tcp("shop/web", "bank/till", 81, true),
                icmp("shop/web", "bank/till", true),
                tcp("shop/web", "bank/web", 80, false),
                tcp("shop/web", "shop/api", 8080, false),
                tcp("shop/web", "outside-1", 8080, false),
            ],
        },
        Case {
            name: "egress to a named port of whoever has it",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "policyTypes": types, "egress": [{"ports": [{"port": "http"}]}]}),
            )],
            probes: vec![
                tcp("shop/web", "shop/db", 8080, true),
                tcp("shop/web", "shop/db", 80, false),
                tcp("shop/web", "shop/api", 8080, true),
                tcp("shop/web", "bank/till", 80, true),
                tcp("shop/web", "bank/till", 8080, false),
                udp("shop/web", "bank/till", 80, false),
                tcp("shop/web", "outside-1", 80, false),
            ],
        },
        Case {
            name: "rules for egress without policyTypes isolate both directions",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "egress": [{"to": [{"podSelector": {}}]}]}),
            )],
            probes: vec![
                tcp("shop/web", "shop/api", 80, true),
                tcp("shop/web", "shop/db", 80, true),
                tcp("shop/web", "bank/till", 80, false),
                tcp("shop/api", "shop/web", 80, false),
            ],
        },
        Case {
            name: "both the source's egress and the destination's ingress have to allow it",
            policies: vec![
                (
                    "shop",
                    json!({"podSelector": app("web"), "policyTypes": types, "egress": [{"to": [{"namespaceSelector": {}}]}]}),
                ),
                (
                    "bank",
                    json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}], "ports": [{"port": 80}]}]}),
                ),
                ("lab", json!({"podSelector": {}})),
            ],
            probes: vec![
                tcp("shop/web", "bank/till", 80, true),
                tcp("shop/web", "bank/web", 80, true),
                tcp("shop/web", "bank/till", 81, false),
                tcp("shop/web", "bank/web", 81, false),
                tcp("shop/web", "lab/probe", 80, false),
                tcp("shop/web", "outside-1", 80, false),
                tcp("shop/api", "bank/till", 80, true),
            ],
        },
    ]
}

fn blocks(address: &dyn Fn(&str) -> String) -> Vec<Case> {
    let only = |id: &str| {
        let address = address(id);
        let bits = if address.contains(':') { 128 } else { 32 };
        format!("{address}/{bits}")
    };
    let everywhere = if address("shop/web").contains(':') {
        "::/0"
    } else {
        "0.0.0.0/0"
    };
    let types = json!(["Egress"]);
    vec![
        Case {
            name: "a block of addresses is about outsiders and pods alike",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "ingress": [{"from": [
                    {"ipBlock": {"cidr": only("outside-1")}}, {"ipBlock": {"cidr": only("bank/web")}},
                ]}]}),
            )],
            probes: vec![
                tcp("outside-1", "shop/web", 80, true),
                tcp("outside-2", "shop/web", 80, false),
                tcp("bank/web", "shop/web", 80, true),
                tcp("bank/till", "shop/web", 80, false),
                icmp("bank/web", "shop/web", true),
            ],
        },
        Case {
            name: "exceptions are not in the block",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "ingress": [{"from": [
                    {"ipBlock": {"cidr": everywhere, "except": [only("outside-2"), only("bank/till")]}},
                ]}]}),
            )],
            probes: vec![
                tcp("outside-1", "shop/web", 80, true),
                tcp("outside-2", "shop/web", 80, false),
                tcp("bank/till", "shop/web", 80, false),
                tcp("bank/web", "shop/web", 80, true),
                tcp("shop/api", "shop/web", 80, true),
            ],
        },
        Case {
            name: "what a block excepts another peer may allow",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "ingress": [{"from": [
                    {"ipBlock": {"cidr": everywhere, "except": [only("bank/till")]}}, {"namespaceSelector": {}},
                ]}]}),
            )],
            probes: vec![
                tcp("bank/till", "shop/web", 80, true),
                tcp("outside-2", "shop/web", 80, true),
            ],
        },
        Case {
            name: "egress to a block, with an exception and a port",
            policies: vec![(
                "shop",
                json!({"podSelector": {}, "policyTypes": types, "egress": [{
                    "to": [{"ipBlock": {"cidr": everywhere, "except": [only("outside-2")]}}],
                    "ports": [{"port": 80}, {"port": 81, "protocol": "UDP"}],
                }]}),
            )],
            probes: vec![
                tcp("shop/web", "outside-1", 80, true),
                tcp("shop/db", "outside-1", 80, true),
                tcp("shop/web", "outside-1", 81, false),
                udp("shop/web", "outside-1", 81, true),
                tcp("shop/web", "outside-2", 80, false),
                tcp("shop/db", "outside-2", 80, false),
                tcp("shop/web", "bank/till", 80, true),
            ],
        },
    ]
}
