//! From a pod to its neighbours: addresses that are not its own, and a network that somebody took apart.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Pod, TOOLS, eventually};
use serde_json::json;

/// What a command says when it succeeds.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Nobody listens here: what comes is counted by the kernel of the pod.
const PORT: &str = "9999";
/// Far less than the minute between looks at everything.
const SOON: Duration = Duration::from_secs(30);

/// A pod that serves, with capabilities besides those that containers have by default.
fn pod(name: &str, node: &str, capabilities: &[&str]) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "peer", "role": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "web",
                "image": TOOLS,
                "command": ["/web"],
                "securityContext": {"capabilities": {"add": capabilities}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
            }],
        },
    })
}

fn named<'a>(pods: &'a [Pod], name: &str) -> Result<&'a Pod> {
    let found = pods.iter().find(|pod| pod.name == name);
    found.with_context(|| format!("the pod {name}"))
}

/// Datagrams that have come to a pod, whether somebody listened or not.
fn datagrams(fleet: &Fleet, pod: &Pod) -> Result<u64> {
    let mut cat = fleet.in_pod(&pod.node, &pod.uid, "cat")?;
    let counters = said(cat.arg("/proc/net/snmp"))?;
    let numbers = counters.lines().rfind(|line| line.starts_with("Udp: "));
    let numbers = numbers.context("UDP's counters")?.split(' ').skip(1);
    numbers
        .take(2)
        .map(|number| Ok(number.parse::<u64>()?))
        .sum()
}

/// Sends datagrams from inside a pod, which may refuse to: what counts is what arrives.
fn send(fleet: &Fleet, from: &Pod, to: &Pod) {
    // It asks for a file and asks again, since nobody answers.
    let ask = [
        "busybox", "timeout", "2", "busybox", "tftp", "-g", "-r", "attack", &to.ip, PORT,
    ];
    fleet.exec(&from.name, &ask).ok();
}

#[test]
fn row_05_a_pod_passes_no_policy_in_anothers_name() -> Result<()> {
    let fleet = Fleet::of_machines(1, 2)?;
    let nodes = fleet.node_names();
    let [near, far] = &nodes[..] else {
        anyhow::bail!("two nodes: {nodes:?}");
    };
    for (name, node, capabilities) in [
        ("web", near, &[][..]),
        ("client", near, &[]),
        ("ordinary", near, &[]),
        ("neighbour", near, &["NET_ADMIN"]),
        ("stranger", far, &["NET_ADMIN"]),
    ] {
        fleet.apply(&pod(name, node, capabilities))?;
    }
    fleet.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "only-client"},
        "spec": {
            "podSelector": {"matchLabels": {"role": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}],
        },
    }))?;
    let pods = fleet.wait_serving_pods("app=peer", 5)?;
    let (web, client) = (named(&pods, "web")?, named(&pods, "client")?);
    eventually("the policy to hold", || {
        let before = datagrams(&fleet, web)?;
        send(&fleet, named(&pods, "ordinary")?, web);
        ensure!(datagrams(&fleet, web)? == before, "not isolated yet");
        Ok(())
    })
    .with_context(|| fleet.logs())?;
    let arrives = |from: &Pod| {
        let before = datagrams(&fleet, web)?;
        send(&fleet, from, web);
        Ok::<bool, anyhow::Error>(datagrams(&fleet, web)? > before)
    };
    ensure!(arrives(client)?, "what is allowed does not arrive");
    // CAP_NET_RAW, which every container has: who has the client's and the gateway's address is asked and told.
    let gateway = fleet.exec(
        "ordinary",
        &[
            "busybox",
            "sh",
            "-c",
            "busybox ip route | busybox awk '/^default/ {print $3}'",
        ],
    )?;
    let ordinary = named(&pods, "ordinary")?;
    for address in [client.ip.as_str(), gateway.trim()] {
        let line = format!(
            "for way in -U -A; do busybox arping $way -c 3 -I eth0 -s {address} {}; busybox arping $way -c 3 -I eth0 -s {address} {address}; done; true",
            gateway.trim()
        );
        fleet.exec(&ordinary.name, &["busybox", "sh", "-c", &line])?;
        ensure!(
            arrives(client)?,
            "after {address} was claimed, the client is cut off"
        );
    }
    // CAP_NET_ADMIN: the client's address, and its hardware address as well.
    for attacker in [named(&pods, "neighbour")?, named(&pods, "stranger")?] {
        let take = format!(
            "busybox ip addr add {ip}/32 dev eth0; busybox ip route replace default via $(busybox ip route | busybox awk '/^default/ {{print $3}}') dev eth0 src {ip}; busybox ip addr",
            ip = client.ip
        );
        let told = fleet.exec(&attacker.name, &["busybox", "sh", "-c", &take])?;
        ensure!(told.contains(&client.ip), "{told}");
        ensure!(
            !arrives(attacker)?,
            "{} speaks as the client",
            attacker.name
        );
        let mac = "set -- $(echo $IP | busybox tr . ' '); busybox ip link set eth0 address $(busybox printf '02:67:%02x:%02x:%02x:%02x' $1 $2 $3 $4)";
        let line = format!("IP={}; {mac}", client.ip);
        fleet.exec(&attacker.name, &["busybox", "sh", "-c", &line])?;
        ensure!(
            !arrives(attacker)?,
            "{} is taken for the client",
            attacker.name
        );
    }
    ensure!(arrives(client)?, "the client is cut off");
    Ok(())
}

/// The one bridge of a node's machine.
fn bridge(fleet: &Fleet, node: &str) -> Result<String> {
    let links = said(
        fleet
            .node_command(node, Path::new("ip"))
            .args(["-o", "link", "show", "type", "bridge"]),
    )?;
    let name = links.split(": ").nth(1).context("a bridge")?;
    Ok(name.to_owned())
}

#[test]
fn row_26_a_bridge_that_was_removed_is_back_within_seconds_or_the_node_is_not_ready() -> Result<()>
{
    let fleet = Fleet::of_machines(1, 2)?;
    let nodes = fleet.node_names();
    let [near, far] = &nodes[..] else {
        anyhow::bail!("two nodes: {nodes:?}");
    };
    for (name, node) in [("one", near), ("two", near), ("other", far)] {
        fleet.apply(&pod(name, node, &[]))?;
    }
    let before = fleet.wait_serving_pods("app=peer", 3)?;
    let reached = || {
        for from in &before {
            for to in &before {
                let url = format!("http://{}:8080/", to.ip);
                let line = ["busybox", "timeout", "2", "/web", "get", &url];
                fleet
                    .exec(&from.name, &line)
                    .with_context(|| format!("{} to {}", from.name, to.name))?;
            }
        }
        Ok(())
    };
    let bridge = bridge(&fleet, near)?;
    let overlay = bridge.replace("-br", "-vx");
    let harm = |line: &str| {
        let mut shell = fleet.node_command(near, Path::new("sh"));
        said(shell.args(["-c", line])).map(drop)
    };
    eventually("pods to reach each other", reached).with_context(|| fleet.logs())?;
    for line in [
        format!("ip link del {bridge}"),
        format!("ip link set {bridge} down"),
        format!("ip addr flush dev {bridge}"),
        format!(
            "for port in $(ls /sys/class/net/{bridge}/brif); do ip link set $port nomaster; done"
        ),
        format!("for port in $(ls /sys/class/net/{bridge}/brif); do ip link del $port; done"),
        format!("ip link del {overlay}; ip route flush proto 71"),
        "echo 0 > /proc/sys/net/ipv4/ip_forward".to_owned(),
    ] {
        harm(&line)?;
        let harmed = Instant::now();
        eventually("pods to reach each other again", reached)
            .with_context(|| format!("{line}\n{}", fleet.logs()))?;
        ensure!(
            harmed.elapsed() < SOON,
            "{line}: after {:?}",
            harmed.elapsed()
        );
    }
    // What is not ours is not removed, and said. The agent may be quicker with a bridge of its own.
    harm(&format!(
        "until ip link del {bridge}; ip link add {bridge} type veth peer name odd; do :; done"
    ))?;
    eventually("the node to be not Ready", || {
        let message = fleet.condition(near, "Ready", "message")?;
        let status = fleet.condition(near, "Ready", "status")?;
        ensure!(
            status == "False" && message.contains(&bridge),
            "{status} {message}"
        );
        Ok(())
    })
    .with_context(|| fleet.logs())?;
    harm(&format!("ip link del {bridge}"))?;
    fleet.wait_ready(near)?;
    eventually("pods to reach each other again", reached).with_context(|| fleet.logs())?;
    let after = fleet.wait_serving_pods("app=peer", 3)?;
    let lives = |pods: &[Pod]| -> Vec<_> {
        let mut lives: Vec<_> = pods
            .iter()
            .map(|pod| (pod.uid.clone(), pod.started.clone()))
            .collect();
        lives.sort();
        lives
    };
    ensure!(lives(&before) == lives(&after), "pods were started again");
    Ok(())
}
