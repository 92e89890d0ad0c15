//! A cluster with IPv6 beside IPv4: pods have an address of each, and services answer at both.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Pod, TOOLS, eventually, gantry};
use serde_json::{Value, json};

const NODES: usize = 3;
const RANGES: [&str; 4] = [
    "--pod-cidr",
    "10.244.0.0/16,fd10:244::/48",
    "--service-cidr",
    "10.96.0.0/12,fd10:96::/112",
];
/// Requests after which every one of three endpoints has answered: the chance that one has not is one in a million.
const ENOUGH: usize = 40;

fn object(fleet: &Fleet, kind: &str, name: &str) -> Result<Value> {
    let text = fleet.kubectl("s1", &["get", kind, name, "-o", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

/// A pod on a node, which is told its addresses.
fn pod_at(node: &str) -> Value {
    let ips = json!({"fieldRef": {"fieldPath": "status.podIPs"}});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("at-{node}"), "labels": {"app": "web"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "web",
                "image": TOOLS,
                "command": ["/web"],
                "env": [{"name": "POD_IPS", "valueFrom": ips}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
            }],
        },
    })
}

fn fetched(fleet: &Fleet, by: &Pod, url: &str) -> Result<String> {
    let said = fleet.exec(&by.name, &["/web", "get", url]);
    said.with_context(|| format!("from {} on {}", by.name, by.node))
}

#[test]
fn pods_and_services_have_an_address_of_each_family() -> Result<()> {
    let fleet = Fleet::of_machines_with(1, NODES, &RANGES)?;
    let mut blocks = BTreeSet::new();
    for node in fleet.node_names() {
        let listed = object(&fleet, "node", &node)?["spec"]["podCIDRs"].clone();
        let listed: Vec<String> = serde_json::from_value(listed)?;
        ensure!(
            matches!(listed.as_slice(), [v4, v6] if v4.starts_with("10.244.") && v6.starts_with("fd10:244:")),
            "{node} has {listed:?}"
        );
        blocks.extend(listed);
        fleet.apply(&pod_at(&node))?;
    }
    ensure!(blocks.len() == 2 * NODES, "{blocks:?}");
    fleet.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    }))?;
    let pods = fleet.wait_serving_pods("app=web", NODES)?;
    let service = object(&fleet, "service", "web")?;
    let cluster_ips: Vec<String> = serde_json::from_value(service["spec"]["clusterIPs"].clone())?;
    ensure!(
        cluster_ips.len() == 2 && cluster_ips[1].starts_with("fd10:96::"),
        "{cluster_ips:?}"
    );

    for pod in &pods {
        let own = pod.ip6.as_ref().context("an IPv6 address")?;
        let told = fleet.exec(&pod.name, &["sh", "-c", "echo $POD_IPS"])?;
        ensure!(told.trim() == format!("{},{own}", pod.ip), "{told}");
        let hosts = fleet.exec(&pod.name, &["cat", "/etc/hosts"])?;
        ensure!(hosts.contains(&pod.ip) && hosts.contains(own), "{hosts}");
        for peer in &pods {
            let address = peer.ip6.as_ref().context("an IPv6 address")?;
            let seen = fetched(&fleet, pod, &format!("http://[{address}]:8080/client"))?;
            ensure!(seen.trim() == own, "{own} was seen as {seen}");
        }
        eventually("the Service's name to have both addresses", || {
            let found = fleet.exec(&pod.name, &["nslookup", "web.default.svc.cluster.local"])?;
            let both = cluster_ips.iter().all(|ip| found.contains(ip.as_str()));
            ensure!(both, "{} finds {found}", pod.name);
            Ok(())
        })
        .with_context(|| fleet.logs())?;
        for url in [
            format!("http://{}/", cluster_ips[0]),
            format!("http://[{}]/", cluster_ips[1]),
        ] {
            let asking = format!(
                "n=0; while [ $n -lt {ENOUGH} ]; do /web get {url} || exit 1; n=$((n + 1)); done"
            );
            let said = fleet.exec(&pod.name, &["sh", "-c", &asking]);
            let said = said.with_context(|| fleet.logs())?;
            let answered: BTreeSet<&str> = said.lines().collect();
            ensure!(answered.len() == NODES, "{url}: {answered:?}");
        }
    }
    Ok(())
}

/// Starts the first server, which must refuse to; what it says.
fn refuses_to_start(fleet: &Fleet, arguments: &[&str]) -> Result<String> {
    let output = fleet
        .command(&gantry()?)
        .args(["server", "--name", "s1", "--address", "127.0.0.1"])
        .arg("--listen")
        .arg(fleet.address("s1")?.to_string())
        .arg("--data-dir")
        .arg(fleet.data_dir("s1"))
        .args(arguments)
        .output()?;
    ensure!(!output.status.success(), "it has started");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_cluster_of_before_may_get_ipv6_and_keeps_the_ranges_that_it_has() -> Result<()> {
    let mut fleet = Fleet::start(1)?;
    fleet.terminate("s1")?;
    fleet.restart_with("s1", &RANGES)?;
    let range = object(&fleet, "servicecidr", "kubernetes")?;
    let expected = json!(["10.96.0.0/12", "fd10:96::/112"]);
    ensure!(range["spec"]["cidrs"] == expected, "{range}");
    fleet.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"ipFamilies": ["IPv6"], "ports": [{"port": 80}]},
    }))?;
    fleet.terminate("s1")?;
    for arguments in [
        ["--pod-cidr", "10.244.0.0/16"].as_slice(),
        &["--service-cidr", "10.112.0.0/16"],
    ] {
        let said = refuses_to_start(&fleet, arguments)?;
        ensure!(said.contains("--service-cidr of the others"), "{said}");
    }
    fleet.restart_with("s1", &RANGES)
}

#[test]
fn ranges_that_do_not_fit_together_are_refused() -> Result<()> {
    let fleet = Fleet::start(1)?;
    for (arguments, said) in [
        (
            ["--pod-cidr", "10.244.0.0/16,fd10:244::/48"],
            "give --service-cidr one",
        ),
        (["--service-cidr", "10.244.0.0/20"], "overlap"),
        (
            ["--pod-cidr", "fd10:244::/48"],
            "one of IPv4 and then one of IPv6",
        ),
    ] {
        let refused = fleet.refuses(&arguments)?;
        ensure!(refused.contains(said), "{arguments:?}: {refused}");
    }
    Ok(())
}
