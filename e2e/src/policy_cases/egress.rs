//! What isolated pods may begin.

use serde_json::json;

use super::{Case, app, icmp, tcp, udp};

pub(super) fn cases() -> Vec<Case> {
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
        Case {
            name: "an empty egress rule allows everything",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "policyTypes": types, "egress": [{}]}),
            )],
            probes: vec![
                tcp("shop/web", "shop/api", 80, true),
                udp("shop/web", "bank/web", 81, true),
                tcp("shop/web", "outside-1", 80, true),
            ],
        },
        Case {
            name: "egress to all pods of a namespace",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "policyTypes": types, "egress": [
                    {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}}]},
                ]}),
            )],
            probes: vec![
                tcp("shop/web", "bank/till", 80, true),
                tcp("shop/web", "bank/web", 81, true),
                tcp("shop/web", "lab/probe", 80, false),
                tcp("shop/web", "shop/api", 80, false),
            ],
        },
        Case {
            name: "egress to a range of ports",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "policyTypes": types, "egress": [
                    {"ports": [{"port": 8080, "endPort": 8085}]},
                ]}),
            )],
            probes: vec![
                tcp("shop/web", "shop/api", 8080, true),
                tcp("shop/web", "bank/web", 8085, true),
                tcp("shop/web", "outside-1", 8080, true),
                tcp("shop/web", "shop/api", 8090, false),
                tcp("shop/web", "bank/web", 80, false),
            ],
        },
        Case {
            name: "policies of egress add up",
            policies: vec![
                ("shop", json!({"podSelector": {}, "policyTypes": types})),
                (
                    "shop",
                    json!({"podSelector": app("web"), "policyTypes": types, "egress": [{"to": [{"podSelector": app("db")}]}]}),
                ),
            ],
            probes: vec![
                tcp("shop/web", "shop/db", 80, true),
                tcp("shop/web", "shop/api", 80, false),
                tcp("shop/api", "shop/db", 80, false),
                tcp("bank/till", "shop/api", 80, true),
            ],
        },
    ]
}
