//! Peers by address.

use serde_json::json;

use super::{Case, app, icmp, tcp, udp};

pub(super) fn cases(address: &dyn Fn(&str) -> String) -> Vec<Case> {
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
        Case {
            name: "a block of addresses with a port",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "ingress": [{
                    "from": [{"ipBlock": {"cidr": only("outside-1")}}], "ports": [{"port": 80}],
                }]}),
            )],
            probes: vec![
                tcp("outside-1", "shop/web", 80, true),
                tcp("outside-1", "shop/web", 81, false),
                tcp("outside-2", "shop/web", 80, false),
            ],
        },
        Case {
            name: "egress to the block of a single pod",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "policyTypes": types, "egress": [
                    {"to": [{"ipBlock": {"cidr": only("bank/web")}}]},
                ]}),
            )],
            probes: vec![
                tcp("shop/web", "bank/web", 80, true),
                tcp("shop/web", "bank/till", 80, false),
                tcp("shop/web", "outside-1", 80, false),
            ],
        },
    ]
}
