//! What nodes suffer: under load, one dies, one loses the servers, one is away for a while; between two, a port is
//! blocked; a clock is wrong.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, Machine, Pod, TOOLS, WEB, eventually, gantry};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const REPLICAS: usize = 6;
/// Requests per second of each generator.
const RATE: u32 = 100;
/// From a node's death until no request fails: ten seconds of silence, and what follows from it.
const CLEAN_WITHIN: Duration = Duration::from_secs(15);
/// Reports without a failure, one a second, after which traffic is clean: a request fails within five seconds.
const CLEAN_REPORTS: usize = 7;
/// How long pods may stay on a node that is not heard of.
const TOLERATION: u32 = 2;
/// How long load goes on around a change, so that what fails late is seen.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Of the overlay.
const VXLAN_PORT: u16 = 8472;

/// Three nodes with the example application, some of it on each, whose pods leave a silent node after so many seconds.
fn with_web(toleration: u32) -> Result<(Fleet, Vec<Pod>)> {
    let fleet = Fleet::of_machines(1, 3)?;
    let tolerated = |trouble: &str| {
        json!({
            "key": format!("node.kubernetes.io/{trouble}"),
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": toleration,
        })
    };
    let pods = fleet.apply_web(REPLICAS, |template| {
        template["spec"]["tolerations"] = json!([tolerated("not-ready"), tolerated("unreachable")]);
    })?;
    Ok((fleet, pods))
}

/// Waits until enough pods serve without a node.
fn replaced_elsewhere(fleet: &Fleet, lost: &str) -> Result<()> {
    eventually("the pods to be replaced", || {
        let pods = fleet.pods(WEB)?;
        let elsewhere = pods.iter().filter(|pod| pod.serves() && pod.node != lost);
        let elsewhere = elsewhere.count();
        ensure!(elsewhere == REPLICAS, "{elsewhere} serve: {pods:?}");
        Ok(())
    })
    .with_context(|| fleet.logs())
}

/// Waits until a node has nothing but the pods that the API says it has, and no pod is on its way out.
fn agrees_with_the_api(fleet: &Fleet, node: &str) -> Result<()> {
    eventually("the node to agree with the API", || {
        let mut pods = fleet.pods("app")?;
        ensure!(!pods.iter().any(|pod| pod.ending), "{pods:?}");
        pods.retain(|pod| pod.node == node && pod.phase != "Succeeded");
        let wanted = pods.into_iter().map(|pod| pod.uid).collect();
        let held = fleet.pods_held(node)?;
        ensure!(held == wanted, "{node} has {held:?} instead of {wanted:?}");
        Ok(())
    })
    .with_context(|| fleet.logs())
}

#[test]
fn a_node_that_dies_costs_some_requests_for_some_seconds() -> Result<()> {
    let (mut fleet, _) = with_web(TOLERATION)?;
    let lost = "node-3";
    let loads = [
        (
            "a pod, the Service's name, new connections",
            Load::in_pod(
                &fleet,
                "by-name",
                "node-1",
                LoadOptions::new("http://web/", RATE),
            )?,
        ),
        (
            "a pod, the Service's name, kept connections",
            Load::in_pod(
                &fleet,
                "kept",
                "node-2",
                LoadOptions::keep_alive("http://web/", RATE),
            )?,
        ),
        (
            "outside, a node port, new connections",
            Load::outside(
                &fleet,
                LoadOptions::new(fleet.web_node_port("node-1")?, RATE),
            )?,
        ),
    ];
    let killed = Timestamp::now();
    fleet.kill_node(lost)?;
    replaced_elsewhere(&fleet, lost)?;
    let replaced = Timestamp::now().duration_since(killed);
    println!(
        "{:.1} s from the node's death until its pods were replaced",
        replaced.as_secs_f64()
    );
    for (_, load) in &loads {
        load.wait_clean(&fleet, CLEAN_REPORTS)?;
    }

    // Back again, while load goes on: nothing of what it ran is wanted any more.
    fleet.restart_node(lost)?;
    fleet.wait_ready(lost)?;
    agrees_with_the_api(&fleet, lost)?;
    loads[0].1.wait(&fleet, AFTERWARDS)?;

    for (what, load) in loads {
        let total = load.finish(&fleet)?;
        println!("{}", total.summary(what));
        let (Some(first), Some(last)) = (total.first_failure()?, total.last_failure()?) else {
            println!("{what}: clean all the time");
            continue;
        };
        // What failed began within a second that is counted whole.
        let second = Duration::from_secs(1);
        ensure!(
            first + second >= killed,
            "{what}: requests failed before the node's death: {:?}",
            total.messages
        );
        let clean = (last + second).duration_since(killed).as_secs_f64();
        println!("{what}: {} failed, clean after {clean:.1} s", total.failed);
        ensure!(
            clean <= CLEAN_WITHIN.as_secs_f64(),
            "{what}: clean only after {clean:.1} s: {:?}\n{}",
            total.failed_by_second,
            fleet.logs()
        );
    }
    Ok(())
}

#[test]
fn a_node_without_the_servers_serves_on() -> Result<()> {
    // Longer than the test: nothing is evicted.
    let (fleet, pods) = with_web(300)?;
    let alone = "node-3";
    let its_pod = pods
        .iter()
        .find(|pod| pod.node == alone)
        .context("it has one")?;
    let its_pod = format!("http://{}:8080/", its_pod.ip);
    let loads = [
        (
            "a pod of another node to one of its pods, new connections",
            Load::in_pod(&fleet, "to-pod", "node-1", LoadOptions::new(&its_pod, RATE))?,
        ),
        (
            "a pod of another node to one of its pods, kept connections",
            Load::in_pod(
                &fleet,
                "to-pod-kept",
                "node-2",
                LoadOptions::keep_alive(&its_pod, RATE),
            )?,
        ),
        (
            "a pod of another node, the Service's name, kept connections",
            Load::in_pod(
                &fleet,
                "by-name",
                "node-1",
                LoadOptions::keep_alive("http://web/", RATE),
            )?,
        ),
        (
            "a pod of its own, the Service's name, new connections",
            Load::in_pod(
                &fleet,
                "its-own",
                alone,
                LoadOptions::new("http://web/", RATE),
            )?,
        ),
        (
            "outside, its node port, new connections",
            Load::outside(&fleet, LoadOptions::new(fleet.web_node_port(alone)?, RATE))?,
        ),
    ];
    let before = fleet.pods("app")?;
    fleet.part_from_servers(alone)?;
    eventually("the node to be missed", || {
        let ready = fleet.ready(alone)?;
        ensure!(ready == "Unknown", "Ready is {ready:?}");
        Ok(())
    })
    .with_context(|| fleet.logs())?;
    // Its endpoints are withdrawn by now, or about to be: nobody may notice.
    loads[0].1.wait(&fleet, AFTERWARDS)?;
    let others = fleet.pods(WEB)?;
    ensure!(
        others.iter().all(|pod| pod.serves() != (pod.node == alone)),
        "those that cannot be heard of are to be unready, and no others: {others:?}"
    );
    fleet.heal()?;
    fleet.wait_ready(alone)?;
    fleet.wait_serving_pods(WEB, REPLICAS)?;
    loads[0].1.wait(&fleet, AFTERWARDS)?;

    let after = fleet.pods("app")?;
    ensure!(
        before.len() == after.len()
            && before
                .iter()
                .zip(&after)
                .all(|(old, new)| is_untouched(old, new)),
        "something was touched:\n{before:#?}\n{after:#?}"
    );
    let mut verdicts = Vec::new();
    for (what, load) in loads {
        let options = load.options.clone();
        let total = load.finish(&fleet)?;
        println!("{}", total.summary(what));
        verdicts.push(total.is_clean(&options).context(what));
    }
    for verdict in verdicts {
        verdict.with_context(|| fleet.logs())?;
    }
    Ok(())
}

/// The same pod, and the same run of its container.
fn is_untouched(old: &Pod, new: &Pod) -> bool {
    (&old.uid, &old.node, &old.ip, &old.started) == (&new.uid, &new.node, &new.ip, &new.started)
}

#[test]
fn a_node_that_comes_back_keeps_what_is_wanted_and_stops_the_rest() -> Result<()> {
    let (fleet, pods) = with_web(TOLERATION)?;
    let away = "node-3";
    fleet.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "loyal", "labels": {"app": "loyal"}},
        "spec": {
            "nodeName": away,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
            "containers": [{"name": "web", "image": TOOLS, "command": ["/web"]}],
        },
    }))?;
    let loyal = fleet.wait_serving_pods("app=loyal", 1)?.remove(0);
    let held = fleet.pods_held(away)?;
    fleet.unplug(away)?;
    replaced_elsewhere(&fleet, away)?;
    ensure!(
        fleet.pods_held(away)? == held,
        "a node that hears from nobody lets its pods be"
    );

    fleet.plug(away)?;
    fleet.wait_ready(away)?;
    agrees_with_the_api(&fleet, away)?;
    let now = fleet.wait_serving_pods("app=loyal", 1)?.remove(0);
    ensure!(is_untouched(&loyal, &now), "{loyal:?}\n{now:?}");
    // The others' places were taken meanwhile.
    let left = fleet.pods(WEB)?;
    let old = |pod: &&Pod| {
        pods.iter()
            .any(|old| old.uid == pod.uid && old.node == away)
    };
    ensure!(!left.iter().any(|pod| old(&pod)), "{left:?}");
    ensure!(left.len() == REPLICAS, "{left:?}");
    Ok(())
}

/// The findings of a doctor's report with an outcome.
fn with_outcome<'a>(report: &'a Value, outcome: &str) -> Vec<&'a Value> {
    let parts = [&report["machine"], &report["cluster"]];
    let findings = parts.into_iter().filter_map(Value::as_array).flatten();
    findings
        .filter(|finding| finding["outcome"] == outcome)
        .collect()
}

/// Waits until a condition of a node is as it should be; answers its message.
fn condition_becomes(fleet: &Fleet, node: &str, kind: &str, status: &str) -> Result<String> {
    eventually("the node's condition", || {
        let now = fleet.condition(node, kind, "status")?;
        ensure!(now == status, "{kind} of {node} is {now:?}");
        fleet.condition(node, kind, "message")
    })
    .with_context(|| fleet.logs())
}

#[test]
fn a_port_blocked_between_two_nodes_is_named_and_nothing_is_tainted() -> Result<()> {
    const KIND: &str = "PeersReachable";
    let fleet = Fleet::of_chosen_machines(&[Machine::default()], 3, &["--overlay", "always"])?;
    let [one, other, third] = ["node-1", "node-2", "node-3"];
    for node in [one, other, third] {
        condition_becomes(&fleet, node, KIND, "True")?;
    }
    let (content, report) = fleet.doctor(one)?;
    ensure!(
        content && with_outcome(&report, "failed").is_empty(),
        "{report:#}"
    );

    // One way is enough: a question or its answer is lost.
    fleet.block_udp(one, other, VXLAN_PORT)?;
    for (node, missed) in [(one, other), (other, one)] {
        let message = condition_becomes(&fleet, node, KIND, "False")?;
        let address = fleet.node_address(missed)?;
        ensure!(
            message.contains(&format!("{missed} ({address})"))
                && message.contains(&format!("UDP port {VXLAN_PORT}"))
                && !message.contains(third),
            "{message}"
        );
    }
    let metrics = eventually("the number of unreachable nodes", || {
        let url = "http://127.0.0.1:10249/metrics";
        let output = fleet
            .node_command(one, Path::new("curl"))
            .args(["--fail", "--silent", "--max-time", "5", url])
            .output()?;
        ensure!(output.status.success(), "curl: {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    })?;
    ensure!(
        metrics.contains("gantry_overlay_unreachable_peers 1"),
        "{metrics}"
    );
    let events = eventually("the Events", || {
        let selector = "reason=PeersUnreachable,type=Warning";
        let events = fleet.kubectl("s1", &["get", "events", "-A", "--field-selector", selector])?;
        ensure!(events.contains(one) && events.contains(other), "{events}");
        Ok(events)
    })?;
    ensure!(!events.contains("node/node-3"), "{events}");
    ensure!(
        fleet.condition(third, KIND, "status")? == "True",
        "{third} reaches everybody"
    );
    for node in [one, other, third] {
        let taints = "jsonpath={.spec.taints}";
        let taints = fleet.kubectl("s1", &["get", "node", node, "-o", taints])?;
        ensure!(
            taints.is_empty() && fleet.ready(node)? == "True",
            "{taints}"
        );
    }
    let (content, report) = fleet.doctor(third)?;
    let failed = with_outcome(&report, "failed");
    let about = |node: &str| {
        failed.iter().any(|finding| {
            let message = finding["message"].as_str().unwrap_or_default();
            finding["check"] == format!("node {node}")
                && [one, other, &VXLAN_PORT.to_string()]
                    .iter()
                    .all(|words| message.contains(words))
        })
    };
    ensure!(
        !content && failed.len() == 2 && about(one) && about(other),
        "{report:#}"
    );

    fleet.heal()?;
    for node in [one, other] {
        condition_becomes(&fleet, node, KIND, "True")?;
    }
    Ok(())
}

#[test]
fn a_clock_that_is_off_is_named_by_the_node_the_doctor_and_whoever_is_refused_for_it() -> Result<()>
{
    const KIND: &str = "ClockSynchronized";
    let server = Machine {
        settable_clock: true,
        ..Machine::default()
    };
    let fleet = Fleet::of_chosen_machines(&[server], 1, &[])?;
    let node = "node-1";
    condition_becomes(&fleet, node, KIND, "True")?;
    fleet.set_clock("s1", "+90s")?;
    let message = condition_becomes(&fleet, node, KIND, "False")?;
    let address = fleet.address("s1")?.to_string();
    // A second more or less: it was cut off.
    ensure!(
        ["89 s behind", "90 s behind", "91 s behind"]
            .iter()
            .any(|words| message.contains(words))
            && message.contains(&address)
            && message.contains("chrony"),
        "{message}"
    );
    ensure!(
        fleet.ready(node)? == "True",
        "silence is not told by clocks"
    );
    let (content, report) = fleet.doctor(node)?;
    let failed = with_outcome(&report, "failed");
    let checks: Vec<&Value> = failed.iter().map(|finding| &finding["check"]).collect();
    ensure!(
        !content && checks == ["server s1", "node node-1"],
        "{report:#}"
    );
    fleet.set_clock("s1", "+0s")?;
    condition_becomes(&fleet, node, KIND, "True")?;

    // So far off that certificates are refused.
    let token = fleet.gantry("s1", &["token", "create", "--for", "nodes"])?;
    let directory = tempfile::tempdir()?;
    // The server's own copy is replaced in time.
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::copy(fleet.kubeconfig("s1"), &kubeconfig)?;
    let refused = |offset: &str, arguments: &[&str]| -> Result<String> {
        let mut command = fleet.command(&gantry()?);
        command.args(arguments).env("KUBECONFIG", &kubeconfig);
        fleet.shift_clock(&mut command, offset)?;
        let output = command.output()?;
        ensure!(!output.status.success(), "{arguments:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let nowhere = directory.path().join("node").display().to_string();
    let join = [
        "agent",
        "--address",
        "127.0.0.1",
        "--data-dir",
        &nowhere,
        "--join",
        &address,
        "--token",
        token.trim(),
    ];
    for (offset, validity) in [("-40d", "is valid only from"), ("+800d", "was valid until")] {
        for arguments in [&["get", "nodes"][..], &join[..]] {
            let said = refused(offset, arguments)?;
            ensure!(
                said.contains(validity) && said.contains("this machine's clock says"),
                "{arguments:?} at {offset}: {said}"
            );
        }
    }

    // The other way around: the server says no.
    fleet.set_clock("s1", "+400d")?;
    eventually("the server to refuse an old certificate", || {
        let said = refused("+400d", &["get", "nodes"])?;
        ensure!(
            said.contains("the server says that this machine's certificate (valid from")
                && said.contains("this machine's clock says"),
            "{said}"
        );
        Ok(())
    })
    .with_context(|| fleet.logs())
}
