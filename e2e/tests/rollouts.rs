//! Rollouts under load from everywhere: no request fails, with no preStop hook and no tuning.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, WEB, eventually};

const REPLICAS: usize = 6;
/// Requests per second of each generator.
const RATE: u32 = 150;
/// How long load goes on after the last rollout, so that a late failure is seen.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Rollouts to make: `GANTRY_E2E_ROLLOUTS`, or a few.
fn rollouts() -> usize {
    let asked = std::env::var("GANTRY_E2E_ROLLOUTS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(5)
}

#[test]
fn no_request_fails_while_a_deployment_is_rolled_again_and_again() -> Result<()> {
    let fleet = Fleet::of_machines(1, 3)?;
    let pods = fleet.apply_web(REPLICAS, |template| {
        let hooks = template["spec"]["containers"][0].get("lifecycle");
        assert_eq!(hooks, None, "no hook may help");
    })?;
    let service = fleet.kubectl(
        "s1",
        &["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"],
    )?;
    let node_port = fleet.web_node_port("node-2")?;
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
            "a pod, the Service's address, kept connections",
            Load::in_pod(
                &fleet,
                "by-address",
                "node-2",
                LoadOptions::keep_alive(format!("http://{service}/"), RATE),
            )?,
        ),
        (
            "outside, a node port, new connections",
            Load::outside(&fleet, LoadOptions::new(&node_port, RATE))?,
        ),
        (
            "outside, a node port, kept connections",
            Load::outside(&fleet, LoadOptions::keep_alive(&node_port, RATE))?,
        ),
    ];

    let count = rollouts();
    let mut durations = Vec::new();
    let mut before = pods;
    for round in 0..count {
        let image = ["web=gantry.local/web:v2", "web=gantry.local/web:v1"][round % 2];
        let began = Instant::now();
        fleet.kubectl("s1", &["set", "image", "deploy/web", image])?;
        fleet
            .kubectl("s1", &["rollout", "status", "deploy/web", "--timeout=90s"])
            .with_context(|| fleet.logs())?;
        durations.push(began.elapsed());
        let now = fleet.wait_serving_pods(WEB, REPLICAS)?;
        let stayed = now
            .iter()
            .any(|pod| before.iter().any(|old| old.uid == pod.uid));
        ensure!(!stayed, "rollout {round} left pods in place");
        let spread = Fleet::spread(&now);
        ensure!(spread.len() > 1, "all pods are on one node: {spread:?}");
        before = now;
    }
    // Those of the last rollout are still ending.
    eventually("the last pods to be gone", || {
        let left = fleet.pods(WEB)?.len();
        ensure!(left == REPLICAS, "{left} pods");
        Ok(())
    })?;
    loads[0].1.wait(&fleet, AFTERWARDS)?;

    durations.sort();
    println!(
        "{count} rollouts of {REPLICAS} pods: median {:.1} s, longest {:.1} s",
        durations[durations.len() / 2].as_secs_f64(),
        durations[durations.len() - 1].as_secs_f64(),
    );
    let mut verdicts = Vec::new();
    let mut sent = (0, 0.0);
    for (what, load) in loads {
        let options = load.options.clone();
        let total = load.finish(&fleet)?;
        println!("{}", total.summary(what));
        sent.0 += total.sent;
        sent.1 += total.sent as f64 * 1e3 / total.ms as f64;
        verdicts.push(total.is_clean(&options).context(what));
        verdicts.push(
            ["web v1 from", "web v2 from"]
                .iter()
                .try_for_each(|version| {
                    let answers = total.answered(version);
                    ensure!(answers > 0, "{what}: no answer begins with {version:?}");
                    Ok(())
                }),
        );
        // A connection that is kept outlives its pod's readiness: it is asked to end, and is never cut.
        if options.keep_alive {
            let told = total.told_to_close;
            verdicts.push((told > 0).then_some(()).with_context(|| {
                format!("{what}: no connection was asked to end in {count} rollouts")
            }));
        }
    }
    println!("{} requests in all, {:.0} per second", sent.0, sent.1);
    ensure!(sent.1 >= 500.0, "too little load to prove anything");
    for verdict in verdicts {
        verdict.with_context(|| fleet.logs())?;
    }
    Ok(())
}
