//! Whom a policy isolates, and in which direction.

use serde_json::json;

use super::{Case, app, icmp, tcp, udp};

pub(super) fn cases() -> Vec<Case> {
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
        Case {
            name: "no ingress rules are as none at all",
            policies: vec![(
                "shop",
                json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}),
            )],
            probes: vec![
                tcp("shop/api", "shop/web", 80, false),
                tcp("bank/web", "shop/db", 80, false),
                tcp("shop/web", "bank/web", 80, true),
            ],
        },
        Case {
            name: "a policy is about the pods of its own namespace",
            policies: vec![("bank", json!({"podSelector": {}}))],
            probes: vec![
                tcp("shop/api", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 80, true),
                tcp("shop/web", "bank/web", 80, false),
                tcp("bank/web", "bank/till", 80, false),
                tcp("shop/web", "lab/probe", 80, true),
            ],
        },
        Case {
            name: "a policy that selects nobody isolates nobody",
            policies: vec![("shop", json!({"podSelector": app("cache")}))],
            probes: vec![
                tcp("shop/api", "shop/web", 80, true),
                tcp("bank/web", "shop/db", 80, true),
            ],
        },
        Case {
            name: "the isolated pods may be selected by expressions",
            policies: vec![(
                "shop",
                json!({"podSelector": {"matchExpressions": [
                    {"key": "app", "operator": "In", "values": ["web", "db"]},
                ]}}),
            )],
            probes: vec![
                tcp("shop/api", "shop/web", 80, false),
                tcp("bank/web", "shop/db", 80, false),
                tcp("shop/web", "shop/api", 80, true),
                tcp("bank/web", "shop/api", 80, true),
            ],
        },
    ]
}
