//! What nodes suffer under load: one dies, one loses the servers, one is away for a while.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, Pod, TOOLS, WEB, eventually};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

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
