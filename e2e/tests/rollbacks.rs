//! Revisions that do not work take themselves back under load: no request fails, and no pod that works goes.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, WEB, eventually, follow};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::Api;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

const REPLICAS: usize = 3;
/// Requests per second of each generator.
const RATE: u32 = 250;
/// How long load goes on after the last rollback, so that a late failure is seen.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// What is seen of a revision that takes itself back.
#[derive(Clone, Copy, Debug, Default)]
struct Course {
    /// A pod is seen not to come up.
    sign: Option<Instant>,
    /// It is not given up yet; what was before may be so for a moment longer.
    is_tried: bool,
    /// The revision is given up.
    given_up: Option<Instant>,
    /// All pods that are wanted are of the one before, and serve.
    restored: Option<Instant>,
}

/// Whether a container has ended, or cannot begin.
fn is_failing(container: &ContainerStatus) -> bool {
    let states = [&container.state, &container.last_state];
    let mut states = states.into_iter().flatten();
    states.any(|state| {
        let ended = state.terminated.as_ref();
        let waits = state.waiting.as_ref();
        let reason = waits.and_then(|waits| waits.reason.as_deref());
        ended.is_some_and(|ended| ended.exit_code != 0)
            || reason
                .is_some_and(|reason| !matches!(reason, "ContainerCreating" | "PodInitializing"))
    })
}

/// Whether a pod shows that it does not come up. One that only fails its probe looks like one that is still starting.
fn is_bad(pod: &Pod) -> bool {
    let going = pod.metadata.deletion_timestamp.is_some();
    let Some(status) = pod.status.as_ref().filter(|_| !going) else {
        return false;
    };
    let mut conditions = status.conditions.iter().flatten();
    let fits_nowhere = conditions.any(|one| one.type_ == "PodScheduled" && one.status == "False");
    let mut containers = status.container_statuses.iter().flatten();
    fits_nowhere || containers.any(is_failing)
}

/// Whether all pods that are wanted are of the current template, and serve.
fn is_whole(status: &DeploymentStatus, generation: Option<i64>) -> bool {
    let all = i32::try_from(REPLICAS).ok();
    status.observed_generation == generation
        && status.replicas == all
        && status.updated_replicas == all
        && status.available_replicas == all
}

impl Course {
    fn see(&mut self, deployment: &Deployment) {
        let status = deployment.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.iter().flatten();
        let is_given_up = conditions.any(|one| one.type_ == "RolledBack" && one.status == "True");
        self.is_tried |= !is_given_up;
        if self.is_tried && is_given_up {
            self.given_up.get_or_insert_with(Instant::now);
        }
        if self.given_up.is_some() && is_whole(&status, deployment.metadata.generation) {
            self.restored.get_or_insert_with(Instant::now);
        }
    }

    /// Seconds until all was as before: since the first sign where a pod gave one, and since the revision was given up.
    fn seconds(&self) -> Option<(Option<f64>, f64)> {
        let restored = self.restored?;
        let since = |at: Instant| (restored - at).as_secs_f64();
        Some((self.sign.map(since), since(self.given_up?)))
    }
}

/// Notes what it sees until it is told to stop.
async fn watch(fleet: &Fleet, course: &Mutex<Course>, done: &Notify) -> Result<()> {
    let client = fleet.client("s1").await?;
    let (pods, deployments): (Api<Pod>, Api<Deployment>) = (
        Api::default_namespaced(client.clone()),
        Api::default_namespaced(client),
    );
    let signs = follow(pods, WEB, |pod| {
        if is_bad(pod) {
            course.lock().sign.get_or_insert_with(Instant::now);
        }
    });
    let changes = follow(deployments, WEB, |deployment| course.lock().see(deployment));
    tokio::select! {
        () = signs => {}
        () = changes => {}
        () = done.notified() => {}
    }
    Ok(())
}

/// A way not to work.
struct Broken {
    what: &'static str,
    /// Whether the first sign of a pod is the fault itself.
    is_crash: bool,
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
            is_crash: false,
            container: json!({"image": "gantry.local/none:v1", "imagePullPolicy": "Never"}),
            reasons: &["ErrImageNeverPull"],
            says: "gantry.local/none:v1",
            within: Duration::from_secs(5),
        },
        Broken {
            what: "a container that crashes",
            is_crash: true,
            container: json!({"args": ["crash"]}),
            reasons: &["CrashLoopBackOff", "ContainerFailures"],
            says: "exit code 2",
            within: Duration::from_secs(5),
        },
        Broken {
            what: "a ConfigMap that is missing",
            is_crash: false,
            container: json!({"envFrom": [{"configMapRef": {"name": "missing"}}]}),
            reasons: &["CreateContainerConfigError"],
            says: "missing",
            within: Duration::from_secs(15),
        },
        Broken {
            what: "pods that fit nowhere",
            is_crash: false,
            container: json!({"resources": {"requests": {"cpu": "1000"}}}),
            reasons: &["Unschedulable"],
            says: "Insufficient cpu",
            within: Duration::from_secs(20),
        },
        Broken {
            what: "a probe that fails",
            is_crash: false,
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

/// Wants a template that does not work, and waits until the one that does is back; how long that took. What happens meanwhile
/// is noted.
fn break_and_wait(
    fleet: &Fleet,
    broken: &Broken,
    works: &Value,
    course: &Mutex<Course>,
) -> Result<Duration> {
    *course.lock() = Course::default();
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
    let took = began.elapsed();
    eventually("all pods to serve again", || {
        let deployment = web(fleet)?;
        let course = *course.lock();
        let restored = course.restored;
        restored.with_context(|| format!("{course:?}: {}", deployment["status"]))
    })?;
    Ok(took)
}

/// From the first sign of a pod that crashes, and from the end of the time that a revision has to be ready.
const RESTORED_WITHIN: f64 = 2.0;

/// Holds what was seen to the budgets, which count in full where nothing else runs (`make reaction`).
fn judge(broken: &Broken, took: Duration, course: Course) -> Result<()> {
    let (since_sign, since_given_up) = course.seconds().context("it was seen to be back")?;
    let sign = since_sign.map_or_else(
        || "no pod gave a sign".to_owned(),
        |seconds| format!("{seconds:.2} s after the first sign"),
    );
    println!(
        "{}: back {:.1} s after the change; all pods serve {sign}, {since_given_up:.2} s after it was given up",
        broken.what,
        took.as_secs_f64()
    );
    ensure!(took <= broken.within, "{}: {took:?}", broken.what);
    let is_full = std::env::var("GANTRY_REACTION").is_ok_and(|extent| extent == "full");
    let budget = RESTORED_WITHIN * if is_full { 1.0 } else { 5.0 };
    let measured = match broken.is_crash {
        true => since_sign.context("a pod that crashes gives a sign")?,
        false => since_given_up,
    };
    ensure!(measured <= budget, "{}: {measured} s", broken.what);
    Ok(())
}

/// Tries all ways not to work, one after the other; the pods that work stay.
fn try_all(
    fleet: &Fleet,
    works: &Value,
    before: &BTreeSet<String>,
    course: &Mutex<Course>,
) -> Result<()> {
    for broken in ways() {
        let took = break_and_wait(fleet, &broken, works, course)?;
        judge(&broken, took, *course.lock())?;
        let status = fleet.kubectl("s1", &["rollout", "status", "deploy/web", "--timeout=30s"]);
        ensure!(status.is_err(), "{}: a success is told", broken.what);
        let explained = fleet.gantry("s1", &["explain", "rollout", "deploy/web"])?;
        ensure!(
            explained.contains(broken.says) && explained.contains("was taken back"),
            "{}: {explained}",
            broken.what
        );
        let after = uids(fleet)?;
        ensure!(
            after == *before,
            "{}: pods that worked are gone",
            broken.what
        );
    }
    Ok(())
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

    let (course, done) = (Mutex::new(Course::default()), Notify::new());
    thread::scope(|scope| {
        let watching = scope.spawn(|| fleet.block_on(|| watch(&fleet, &course, &done)));
        let tried = try_all(&fleet, &works, &before, &course);
        done.notify_one();
        let watched = watching.join();
        tried?;
        watched.unwrap_or_else(|_| bail!("the watcher panicked"))
    })
    .with_context(|| fleet.logs())?;
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
