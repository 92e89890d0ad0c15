//! Peers by their labels and those of their namespaces.

use serde_json::{Value, json};

use super::{Case, app, icmp, tcp};

pub(super) fn cases() -> Vec<Case> {
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
        Case {
            name: "a namespace by its name",
            policies: vec![(
                "shop",
                from(
                    json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "lab"}}}]),
                ),
            )],
            probes: vec![
                tcp("lab/probe", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 80, false),
                tcp("shop/db", "shop/web", 80, false),
            ],
        },
        Case {
            name: "namespaces by expressions",
            policies: vec![(
                "bank",
                json!({"podSelector": app("till"), "ingress": [{"from": [{"namespaceSelector": {"matchExpressions": [
                    {"key": "team", "operator": "NotIn", "values": ["blue"]},
                ]}}]}]}),
            )],
            probes: vec![
                tcp("shop/web", "bank/till", 80, true),
                tcp("shop/db", "bank/till", 80, true),
                tcp("bank/web", "bank/till", 80, false),
                tcp("lab/probe", "bank/till", 80, false),
            ],
        },
        Case {
            name: "a label that no namespace has",
            policies: vec![(
                "shop",
                from(json!([{"namespaceSelector": {"matchLabels": {"team": "green"}}}])),
            )],
            probes: vec![
                tcp("bank/web", "shop/web", 80, false),
                tcp("shop/api", "shop/web", 80, false),
            ],
        },
        Case {
            name: "pods of the same labels in another namespace are others",
            policies: vec![(
                "bank",
                json!({"podSelector": app("till"), "ingress": [{"from": [{"podSelector": app("web")}]}]}),
            )],
            probes: vec![
                tcp("bank/web", "bank/till", 80, true),
                tcp("shop/web", "bank/till", 80, false),
            ],
        },
        Case {
            name: "a label that must not be there",
            policies: vec![(
                "shop",
                from(
                    json!([{"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}]),
                ),
            )],
            probes: vec![
                tcp("shop/api", "shop/web", 80, false),
                tcp("shop/db", "shop/web", 80, false),
            ],
        },
        Case {
            name: "no peers are all peers",
            policies: vec![("shop", from(json!([])))],
            probes: vec![
                tcp("shop/db", "shop/web", 80, true),
                tcp("bank/web", "shop/web", 81, true),
                tcp("outside-1", "shop/web", 80, true),
            ],
        },
    ]
}
