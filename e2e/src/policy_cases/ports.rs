//! Ports of ingress: numbers, ranges, names and protocols.

use serde_json::{Value, json};

use super::{Case, app, icmp, tcp, udp};

pub(super) fn cases() -> Vec<Case> {
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
        Case {
            name: "of several ports one has to match",
            policies: vec![("shop", to(json!([{"port": 80}, {"port": 8085}])))],
            probes: vec![
                tcp("bank/till", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 8085, true),
                tcp("bank/web", "shop/web", 8080, false),
            ],
        },
        Case {
            name: "one number for two protocols",
            policies: vec![(
                "shop",
                to(json!([{"port": 80}, {"port": 80, "protocol": "UDP"}])),
            )],
            probes: vec![
                tcp("bank/till", "shop/web", 80, true),
                udp("bank/till", "shop/web", 80, true),
                udp("bank/web", "shop/web", 81, false),
            ],
        },
        Case {
            name: "no ports are all ports",
            policies: vec![("shop", to(json!([])))],
            probes: vec![
                tcp("bank/till", "shop/web", 8090, true),
                udp("bank/web", "shop/db", 81, true),
            ],
        },
        Case {
            name: "a range of UDP ports",
            policies: vec![(
                "shop",
                to(json!([{"port": 80, "endPort": 81, "protocol": "UDP"}])),
            )],
            probes: vec![
                udp("bank/web", "shop/web", 80, true),
                udp("bank/till", "shop/web", 81, true),
                udp("bank/till", "shop/web", 8080, false),
                tcp("bank/till", "shop/web", 80, false),
            ],
        },
        Case {
            name: "each rule has peers and ports of its own",
            policies: vec![(
                "shop",
                json!({"podSelector": app("web"), "ingress": [
                    {"from": [{"podSelector": app("api")}], "ports": [{"port": 80}]},
                    {"from": [{"podSelector": app("db")}], "ports": [{"port": 81}]},
                ]}),
            )],
            probes: vec![
                tcp("shop/api", "shop/web", 80, true),
                tcp("shop/api", "shop/web", 81, false),
                tcp("shop/db", "shop/web", 81, true),
                tcp("shop/db", "shop/web", 80, false),
            ],
        },
    ]
}
