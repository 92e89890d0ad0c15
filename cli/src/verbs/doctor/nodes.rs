//! What Nodes say of themselves, in sentences. Pure.

use serde_json::Value;

use super::finding::Finding;

/// Conditions that are bad when they are true, and what to do.
const PRESSURES: [(&str, &str, &str); 3] = [
    (
        "MemoryPressure",
        "runs short of memory",
        "give the machine more, or move pods away ('kubectl drain')",
    ),
    (
        "DiskPressure",
        "runs short of disk",
        "make room in its data directory; unused images go by themselves",
    ),
    (
        "PIDPressure",
        "runs short of processes",
        "find what starts so many, or raise kernel.pid_max",
    ),
];

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// The findings about a list of Nodes.
pub(super) fn check(nodes: &Value) -> Vec<Finding> {
    let nodes: Vec<&Value> = nodes["items"].as_array().into_iter().flatten().collect();
    if nodes.is_empty() {
        return vec![Finding::warning(
            "nodes",
            "there is none: pods have no place to run",
            "join one with 'gantry agent --join'",
        )];
    }
    let mut findings: Vec<Finding> = nodes.iter().flat_map(|node| of_node(node)).collect();
    if findings.is_empty() {
        let message = match nodes.len() {
            1 => "the only one is well".to_owned(),
            count => format!("all {count} are well and reach each other"),
        };
        findings.push(Finding::ok("nodes", message));
    }
    findings
}

/// What is wrong with a node.
fn of_node(node: &Value) -> Vec<Finding> {
    let name = text(&node["metadata"], "name");
    let address = node["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|address| address["type"] == "InternalIP")
        .map(|address| text(address, "address"));
    let who = match address {
        Some(address) => format!("{name} ({address})"),
        None => name.to_owned(),
    };
    let check = format!("node {name}");
    let conditions = node["status"]["conditions"].as_array();
    let condition = |kind: &str| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.find(|condition| condition["type"] == kind)
    };
    let is = |kind: &str, status: &str| condition(kind).filter(|found| found["status"] == status);
    if is("Ready", "True").is_none() {
        let said = condition("Ready").map_or("", |ready| text(ready, "message"));
        // What it said before that is not known to be true any more.
        return vec![Finding::failed(
            check,
            format!("{who} is not Ready: {said}"),
            "look whether the machine runs, reaches the servers, and what its agent's log says",
        )];
    }
    let mut findings = Vec::new();
    if let Some(found) = is("PeersReachable", "False") {
        let said = text(found, "message").trim_end_matches(" 'gantry doctor' tells more.");
        findings.push(Finding::failed(
            check.clone(),
            format!("pods of {who} do not reach those of other nodes: {said}"),
            "look at the firewalls of both hosts ('nft list ruleset'), and at those between them; run 'gantry doctor' on both",
        ));
    }
    if let Some(found) = is("ClockSynchronized", "False") {
        findings.push(Finding::failed(
            check.clone(),
            format!("of {who}: {}", text(found, "message")),
            "run a time service such as chrony or systemd-timesyncd on the node and on the server",
        ));
    }
    for (kind, what, fix) in PRESSURES {
        if is(kind, "True").is_some() {
            findings.push(Finding::warning(
                check.clone(),
                format!("{who} {what}"),
                fix,
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Outcome;
    use super::*;

    fn node(name: &str, conditions: &[(&str, &str, &str)]) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status, message)| json!({"type": kind, "status": status, "message": message}))
            .collect();
        json!({
            "metadata": {"name": name},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}],
                "conditions": conditions,
            },
        })
    }

    fn found(nodes: &[Value]) -> Vec<Finding> {
        check(&json!({"items": nodes}))
    }

    const READY: (&str, &str, &str) = ("Ready", "True", "");

    #[test]
    fn well_nodes_are_one_line() {
        let well = node("a", &[READY, ("PeersReachable", "True", "all")]);
        for (nodes, words) in [
            (vec![well.clone()], "the only one"),
            (vec![well.clone(), well], "all 2"),
        ] {
            let found = found(&nodes);
            assert_eq!((found.len(), found[0].outcome), (1, Outcome::Ok));
            assert!(found[0].message.contains(words), "{found:?}");
        }
        assert_eq!(found(&[])[0].outcome, Outcome::Warning);
    }

    #[test]
    fn a_node_that_misses_others_names_them_and_the_port() {
        let said = "no answer through VXLAN from b (192.0.2.8): is UDP port 8472 open between the hosts? 'gantry doctor' \
                    tells more.";
        let found = found(&[
            node("a", &[READY, ("PeersReachable", "False", said)]),
            node("b", &[READY]),
        ]);
        assert_eq!((found.len(), found[0].outcome), (1, Outcome::Failed));
        let message = &found[0].message;
        assert!(
            ["a (192.0.2.7)", "b (192.0.2.8)", "8472"]
                .iter()
                .all(|words| message.contains(words)),
            "{message}"
        );
        assert!(!message.contains("tells more"), "{message}");
    }

    #[test]
    fn a_silent_node_is_one_failure_and_pressures_are_warnings() {
        let silent = node(
            "a",
            &[
                ("Ready", "Unknown", "Kubelet stopped posting node status."),
                ("PeersReachable", "Unknown", ""),
            ],
        );
        let short = node(
            "b",
            &[
                READY,
                ("DiskPressure", "True", ""),
                ("MemoryPressure", "False", ""),
                (
                    "ClockSynchronized",
                    "False",
                    "this node's clock is 9 s behind",
                ),
            ],
        );
        let found = found(&[silent, short]);
        let outcomes: Vec<_> = found
            .iter()
            .map(|finding| (finding.check.as_str(), finding.outcome))
            .collect();
        assert_eq!(
            outcomes,
            [
                ("node a", Outcome::Failed),
                ("node b", Outcome::Failed),
                ("node b", Outcome::Warning)
            ]
        );
        assert!(found[1].message.contains("9 s behind"), "{found:?}");
        assert!(found[2].message.contains("disk"), "{found:?}");
    }
}
