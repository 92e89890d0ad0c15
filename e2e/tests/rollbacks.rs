//! Revisions that do not work take themselves back under load: no request fails, and no pod that works goes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, WEB, eventually};
use serde_json::{Value, json};

const REPLICAS: usize = 3;
/// Requests per second of each generator.
const RATE: u32 = 250;
/// How long load goes on after the last rollback, so that a late failure is seen.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// A way not to work.
struct Broken {
    what: &'static str,
    /// What the container of the template becomes.
    container: Value,
    /// The condition's reason is one of these.
    reasons: &'static [&'static str],
    /// What its message tells.
    says: &'static str,
    /// From the change to the template that works.
    within: Duration,
}

fn ways() -> [Broken; 5] {
    [
        Broken {
            what: "an image that is not there",
            container: json!({"image": "gantry.local/none:v1", "imagePullPolicy": "Never"}),
            reasons: &["ErrImageNeverPull"],
            says: "gantry.local/none:v1",
            within: Duration::from_secs(5),
        },
        Broken {
            what: "a container that crashes",
            container: json!({"args": ["crash"]}),
            reasons: &["CrashLoopBackOff", "ContainerFailures"],
            says: "exit code 2",
            within: Duration::from_secs(5),
        },
        Broken {
            what: "a ConfigMap that is missing",
            container: json!({"envFrom": [{"configMapRef": {"name": "missing"}}]}),
            reasons: &["CreateContainerConfigError"],
            says: "missing",
            within: Duration::from_secs(15),
        },
        Broken {
            what: "pods that fit nowhere",
            container: json!({"resources": {"requests": {"cpu": "1000"}}}),
            reasons: &["Unschedulable"],
            says: "Insufficient cpu",
            within: Duration::from_secs(20),
        },
        Broken {
            what: "a probe that fails",
            container: json!({"readinessProbe": {"httpGet": {"port": 9}}}),
            reasons: &["NoProgress"],
            says: "Readiness probe failed",
            within: Duration::from_secs(25),
        },
    ]
}

fn web(fleet: &Fleet) -> Result<Value> {
    let shown = fleet.kubectl("s1", &["get", "deploy", "web", "-o", "json"])?;
    serde_json::from_str(&shown).context("reading the Deployment")
}

/// Reason and message of the condition.
fn rolled_back(deployment: &Value) -> Option<(&str, &str)> {
    let conditions = deployment["status"]["conditions"].as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == "RolledBack" && condition["status"] == "True")?;
    Some((found["reason"].as_str()?, found["message"].as_str()?))
}

fn uids(fleet: &Fleet) -> Result<BTreeSet<String>> {
    let pods = fleet.wait_serving_pods(WEB, REPLICAS)?;
    Ok(pods.into_iter().map(|pod| pod.uid).collect())
}

/// Wants a template that does not work, and waits until the one that does is back.
fn break_and_wait(fleet: &Fleet, broken: &Broken, works: &Value) -> Result<Duration> {
    let mut container = broken.container.clone();
    if let Some(fields) = container.as_object_mut() {
        fields.insert("name".to_owned(), json!("web"));
    }
    let patch = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    let began = Instant::now();
    fleet.kubectl(
        "s1",
        &["patch", "deploy", "web", "--patch", &patch.to_string()],
    )?;
    eventually(broken.what, || {
        let deployment = web(fleet)?;
        let known = rolled_back(&deployment);
        let (reason, message) = known.context("nothing was taken back")?;
        ensure!(
            broken.reasons.contains(&reason),
            "it failed by {reason}: {message}"
        );
        ensure!(
            deployment["spec"]["template"] == *works,
            "the template is not back"
        );
        ensure!(message.contains(broken.says), "it says {message:?}");
        Ok(())
    })?;
    Ok(began.elapsed())
}

#[test]
fn no_request_fails_while_revisions_that_do_not_work_take_themselves_back() -> Result<()> {
    let fleet = Fleet::of_machines(1, 2)?;
    fleet.apply_web(REPLICAS, |_| {})?;
    fleet.kubectl(
        "s1",
        &[
            "annotate",
            "deploy/web",
            "gantry.dev/auto-rollback=true",
            "gantry.dev/rollback-after=15s",
        ],
    )?;
    eventually("what works to be remembered", || {
        let deployment = web(&fleet)?;
        let noted = &deployment["metadata"]["annotations"]["gantry.dev/healthy-template"];
        ensure!(noted.is_string(), "{noted}");
        Ok(())
    })?;
    let works = web(&fleet)?["spec"]["template"].clone();
    let before = uids(&fleet)?;
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
            "outside, a node port, kept connections",
            Load::outside(&fleet, LoadOptions::keep_alive(&node_port, RATE))?,
        ),
    ];

    for broken in ways() {
        let took = break_and_wait(&fleet, &broken, &works).with_context(|| fleet.logs())?;
        println!("{}: back after {:.1} s", broken.what, took.as_secs_f64());
        ensure!(took <= broken.within, "{}: {took:?}", broken.what);
        let status = fleet.kubectl("s1", &["rollout", "status", "deploy/web", "--timeout=30s"]);
        ensure!(status.is_err(), "{}: a success is told", broken.what);
        let explained = fleet.gantry("s1", &["explain", "rollout", "deploy/web"])?;
        ensure!(
            explained.contains(broken.says) && explained.contains("was taken back"),
            "{}: {explained}",
            broken.what
        );
        let after = uids(&fleet)?;
        ensure!(
            after == before,
            "{}: pods that worked are gone",
            broken.what
        );
    }
    let told = fleet.kubectl(
        "s1",
        &[
            "get",
            "events",
            "--field-selector=reason=RolledBack,involvedObject.name=web",
            "-o",
            "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}",
        ],
    )?;
    for broken in ways() {
        ensure!(told.contains(broken.says), "{}: {told}", broken.what);
    }
    let metrics = fleet.kubectl("s1", &["get", "--raw", "/metrics"])?;
    for broken in ways() {
        let counted = |reason: &&str| {
            metrics.contains(&format!(
                "gantry_rollbacks_total{{reason=\"{reason}\"}} 1\n"
            ))
        };
        ensure!(
            broken.reasons.iter().any(counted),
            "{} is not counted",
            broken.what
        );
    }
    // The next way may begin before the status says that the last one is over.
    let is_timed = !metrics.contains("gantry_rollback_duration_seconds_count 0\n");
    ensure!(is_timed, "no rollback was timed");
    loads[0].1.wait(&fleet, AFTERWARDS)?;
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
