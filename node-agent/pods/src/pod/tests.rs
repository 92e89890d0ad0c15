//! A worker with a runtime, images and a network in memory, and a clock that jumps.

mod probes;
mod pulls;
mod resizes;
mod restarts;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::dns::FakeDns;
use gantry_cri::image::{FakeImages, ImageConfig};
use gantry_cri::network::{FakePodNetwork, PodNetwork as _};
use gantry_cri::runtime::{ContainerId, ContainerState, FakeRuntime, PodUid, Runtime};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Eviction, Node, PodUpdate, PodWorkers};
use crate::pull_records::PullRecords;
use crate::pull_verification::PullVerification;
use crate::tokens::Tokens;
use crate::tokens::fake::FakeIssuer;
use crate::traits::fake::{
    FakeDrain, FakeIsolation, FakeObjects, FakeReports, Resource, Said, change,
};

/// A node of fakes, on which an agent can be started again.
pub(super) struct Bed {
    directory: tempfile::TempDir,
    runtime: FakeRuntime,
    images: Arc<FakeImages>,
    network: Arc<FakePodNetwork>,
    dns: Arc<FakeDns>,
    pub(super) objects: Arc<FakeObjects>,
    isolation: Arc<FakeIsolation>,
    reports: Arc<FakeReports>,
    drain: Arc<FakeDrain>,
    news: mpsc::UnboundedSender<PodUpdate>,
    stop: CancellationToken,
    agent: tokio::task::JoinHandle<()>,
    pub(super) tokens: Arc<Tokens>,
    said: Vec<Said>,
    /// What the node of the next agent has.
    allocatable: BTreeMap<String, Quantity>,
}

impl Bed {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let images = Arc::new(FakeImages::new(&directory.path().join("rootfs")));
        images.offer("app:1", ImageConfig::default());
        let runtime = FakeRuntime::new();
        runtime.add_command("/app");
        let network = Arc::new(FakePodNetwork::new("10.1.0.0/24".parse().unwrap()));
        let (news, _) = mpsc::unbounded_channel();
        let mut bed = Self {
            directory,
            runtime,
            images,
            network,
            dns: Arc::default(),
            objects: Arc::default(),
            isolation: Arc::default(),
            reports: Arc::default(),
            drain: Arc::default(),
            news,
            stop: CancellationToken::new(),
            agent: tokio::spawn(async {}),
            tokens: Arc::new(Tokens::new(
                Arc::new(FakeIssuer::default()),
                Duration::from_secs(3600),
            )),
            said: Vec::new(),
            allocatable: BTreeMap::new(),
        };
        bed.start_agent();
        bed
    }

    pub(super) fn node(&self) -> Arc<Node> {
        Arc::new(Node {
            runtime: Arc::new(self.runtime.clone()),
            images: self.images.clone(),
            pulls: Arc::new(self.pulls()),
            network: self.network.clone(),
            connections: Arc::default(),
            dns: self.dns.clone(),
            objects: self.objects.clone(),
            isolation: self.isolation.clone(),
            reports: self.reports.clone(),
            drain: self.drain.clone(),
            tokens: self.tokens.clone(),
            addresses: vec![[192, 0, 2, 1].into()],
            pods_dir: self.directory.path().join("pods"),
            logs_dir: self.directory.path().join("logs"),
            seccomp_dir: self.directory.path().join("seccomp"),
            allocatable: self.allocatable.clone(),
            allocations: Arc::default(),
            memory: 1 << 30,
            pids_limit: None,
            memory_policy: crate::limits::MemoryPolicy::default(),
            sysctls: Vec::new(),
            cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
            cluster_domain: "cluster.local".to_owned(),
        })
    }

    fn pulls(&self) -> PullRecords {
        let directory = self.directory.path().join("image-pulls");
        PullRecords::open(&directory, PullVerification::default()).unwrap()
    }

    /// An agent with nothing in memory but what an earlier one left on the node.
    fn start_agent(&mut self) {
        let (news, receiver) = mpsc::unbounded_channel();
        self.news = news;
        self.stop = CancellationToken::new();
        self.agent = tokio::spawn(PodWorkers::new(self.node()).run(receiver, self.stop.clone()));
    }

    async fn kill_agent(&mut self) {
        self.agent.abort();
        (&mut self.agent).await.ok();
    }

    fn apply(&self, pod: &Value) {
        self.objects.apply(&change(Resource::Pod, pod)).unwrap();
        self.news
            .send(PodUpdate::Pod(self.objects.pod("d", "p").unwrap()))
            .unwrap();
    }

    /// Waits until something said satisfies `wanted`; the clock jumps when nothing else is going on.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Said) -> bool) -> Said {
        let limit = Instant::now() + Duration::from_secs(3600);
        loop {
            if let Some(at) = self.said.iter().position(&wanted) {
                let found = self.said.remove(at);
                let earlier = self.said.drain(..at).collect::<Vec<_>>();
                // Statuses and events are said beside each other: neither tells how far the other has come.
                let kind = std::mem::discriminant(&found);
                let others = earlier.into_iter();
                let others = others.filter(|said| std::mem::discriminant(said) != kind);
                self.said.splice(..0, others);
                return found;
            }
            let next = tokio::time::timeout_at(limit, self.reports.next()).await;
            self.said
                .extend(next.unwrap_or_else(|_| panic!("never: {what}")));
        }
    }

    async fn status(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let is_wanted = |said: &Said| matches!(said, Said::Status(status) if wanted(status));
        match self.until(what, is_wanted).await {
            Said::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    async fn event(&mut self, reason: &str) -> Value {
        let of_reason =
            |said: &Said| matches!(said, Said::Event(event) if event["reason"] == reason);
        match self.until(reason, of_reason).await {
            Said::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }

    async fn phase(&mut self, phase: &str) -> Value {
        self.status(phase, |status| status["phase"] == phase).await
    }

    async fn waiting(&mut self, reason: &str) -> Value {
        let status = self
            .status(reason, |status| {
                main(status)["state"]["waiting"]["reason"] == reason
            })
            .await;
        main(&status).clone()
    }

    fn id(&self, name: &str, attempt: u32) -> ContainerId {
        ContainerId {
            pod: PodUid("u".to_owned()),
            name: name.to_owned(),
            attempt,
        }
    }
}

fn main(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec})
}

fn one(container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("c");
    if container["image"].is_null() {
        container["image"] = json!("app:1");
    }
    json!({"containers": [container]})
}

fn deleted(mut pod: Value, grace: i64) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    pod
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_removed_without_a_trace() {
    let mut bed = Bed::new();
    let object = pod(one(json!({"command": ["/app"]})));
    bed.apply(&object);
    let status = bed.phase("Running").await;
    let ready = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .all(|condition| condition["status"] == "True");
    assert!(ready && main(&status)["ready"] == true, "{status}");
    assert_eq!(
        (&status["podIP"], &status["hostIP"]),
        (&json!("10.1.0.2"), &json!("192.0.2.1"))
    );
    bed.apply(&deleted(object, 30));
    bed.until("terminated", |said| matches!(said, Said::Terminated))
        .await;
    assert_eq!(bed.runtime.signals(), [(bed.id("c", 0), 15)]);
    assert!(bed.runtime.sandboxes().await.unwrap().is_empty());
    assert!(!bed.directory.path().join("pods/u").exists());
    assert_eq!(
        std::fs::read_dir(bed.directory.path().join("rootfs"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn no_container_starts_before_its_pod_is_isolated() {
    let mut bed = Bed::new();
    bed.isolation.refuse(Some("no room"));
    let object = pod(one(json!({"command": ["/app"]})));
    bed.apply(&object);
    let event = bed.event("FailedCreatePodSandBox").await;
    assert!(event["message"].to_string().contains("no room"), "{event}");
    assert!(bed.runtime.starts().is_empty());
    bed.isolation.refuse(None);
    bed.phase("Running").await;
    let addresses: Vec<IpAddr> = vec!["10.1.0.2".parse().unwrap()];
    assert_eq!(bed.isolation.isolated()["u"], addresses);
    bed.apply(&deleted(object, 0));
    bed.until("terminated", |said| matches!(said, Said::Terminated))
        .await;
    assert!(bed.isolation.isolated().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off() {
    let mut bed = Bed::new();
    bed.apply(&pod(one(json!({"command": ["false"]}))));
    let container = bed.waiting("CrashLoopBackOff").await;
    let words = &container["state"]["waiting"]["message"];
    assert_eq!(
        words,
        "back-off 10s restarting failed container=c pod=p_d(u)"
    );
    assert_eq!(
        (
            &container["restartCount"],
            &container["lastState"]["terminated"]["exitCode"]
        ),
        (&json!(1), &json!(1))
    );
    let begun = Instant::now();
    bed.status("20 s", |status| {
        main(status)["state"]["waiting"]["message"]
            .to_string()
            .contains("back-off 20s")
    })
    .await;
    assert!(
        begun.elapsed() >= Duration::from_secs(9) && begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    let attempts: Vec<u32> = bed
        .runtime
        .starts()
        .iter()
        .map(|spec| spec.id.attempt)
        .collect();
    assert_eq!(attempts, [0, 1, 2], "no attempt is begun twice");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_done_is_done() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["true"]}));
    spec["restartPolicy"] = json!("Never");
    bed.apply(&pod(spec));
    let status = bed.phase("Succeeded").await;
    assert_eq!(main(&status)["state"]["terminated"]["reason"], "Completed");
    assert_eq!(bed.runtime.starts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn init_containers_come_first_and_a_failed_one_fails_the_pod() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/app"]}));
    spec["initContainers"] = json!([{"name": "i", "image": "app:1", "command": ["true"]}]);
    bed.apply(&pod(spec.clone()));
    bed.phase("Running").await;
    let names: Vec<String> = bed
        .runtime
        .starts()
        .iter()
        .map(|spec| spec.id.name.clone())
        .collect();
    assert_eq!(names, ["i", "c"]);

    let mut failing = Bed::new();
    spec["initContainers"][0]["command"] = json!(["false"]);
    spec["restartPolicy"] = json!("Never");
    failing.apply(&pod(spec));
    failing.phase("Failed").await;
    assert_eq!(failing.runtime.starts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_does_not_exist() {
    let mut bed = Bed::new();
    bed.apply(&pod(one(json!({"image": "none:1"}))));
    let container = bed.waiting("ErrImagePull").await;
    assert!(
        container["state"]["waiting"]["message"]
            .to_string()
            .contains("manifest unknown"),
        "{container}"
    );
    let container = bed.waiting("ImagePullBackOff").await;
    let words = container["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        words.starts_with("Back-off pulling image \"none:1\": ErrImagePull: "),
        "{words}"
    );
    bed.images.offer(
        "none:1",
        ImageConfig {
            cmd: vec!["/app".to_owned()],
            ..ImageConfig::default()
        },
    );
    bed.phase("Running").await;
}

#[tokio::test(start_paused = true)]
async fn volumes_of_an_image_are_mounted_where_the_container_mounts_nothing() {
    let mut bed = Bed::new();
    let volumes = [
        "/data",
        "work/",
        "/data/",
        "/cache",
        "/data/./own/..",
        "/other/../cache/",
        "../up",
    ];
    let volumes = volumes.map(str::to_owned);
    bed.images.offer(
        "volumes:1",
        ImageConfig {
            cmd: vec!["/app".to_owned()],
            volumes: volumes.into(),
            ..ImageConfig::default()
        },
    );
    let mut spec = one(
        json!({"image": "volumes:1", "securityContext": {"readOnlyRootFilesystem": true},
        "volumeMounts": [{"name": "v", "mountPath": "/cache/"}, {"name": "v", "mountPath": "/data/own/part"}]}),
    );
    spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    bed.apply(&pod(spec));
    bed.phase("Running").await;
    let started = bed.runtime.starts();
    let mounts = started[0].mounts.iter();
    let mounts = mounts.filter(|mount| !mount.target.starts_with("/etc"));
    let targets: Vec<_> = mounts.clone().map(|mount| mount.target.clone()).collect();
    let expected = ["/data", "/work", "/up", "/cache", "/data/own/part"];
    assert_eq!(targets, expected.map(std::path::PathBuf::from));
    assert!(
        mounts
            .clone()
            .all(|mount| !mount.read_only && mount.source.is_dir())
    );
    let own = &bed.directory.path().join("rootfs/u-c-0");
    let of_the_image: Vec<bool> = mounts.map(|mount| mount.source.starts_with(own)).collect();
    assert_eq!(of_the_image, [true, true, true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn bad_names_policies_and_commands() {
    let cases = [
        (json!({"image": "Not A Name"}), "InvalidImageName"),
        (
            json!({"image": "none:1", "imagePullPolicy": "Never"}),
            "ErrImageNeverPull",
        ),
        (
            json!({"command": ["/app"], "envFrom": [{"configMapRef": {"name": "no"}}]}),
            "CreateContainerConfigError",
        ),
        (
            json!({"command": ["/app"], "securityContext": {"runAsNonRoot": true}}),
            "CreateContainerConfigError",
        ),
    ];
    for (container, reason) in cases {
        let mut bed = Bed::new();
        bed.apply(&pod(one(container)));
        bed.waiting(reason).await;
        assert!(bed.runtime.starts().is_empty());
    }
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/no/such"]}));
    spec["restartPolicy"] = json!("Never");
    bed.apply(&pod(spec));
    let status = bed.phase("Failed").await;
    let ended = &main(&status)["state"]["terminated"];
    assert_eq!(
        (&ended["reason"], &ended["exitCode"]),
        (&json!("StartError"), &json!(128))
    );
    assert!(
        ended["message"]
            .as_str()
            .unwrap()
            .contains("no such file or directory"),
        "{ended}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_volume_is_waited_for() {
    let mut bed = Bed::new();
    let mut spec =
        one(json!({"command": ["/app"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    bed.apply(&pod(spec));
    let event = bed.event("FailedMount").await;
    assert_eq!(
        event["message"],
        "MountVolume.SetUp failed for volume \"v\" : configmap \"settings\" not found"
    );
    let map = json!({"metadata": {"name": "settings", "namespace": "d"}, "data": {"k": "1"}});
    bed.objects
        .apply(&change(Resource::ConfigMap, &map))
        .unwrap();
    bed.news
        .send(PodUpdate::References("d".to_owned()))
        .unwrap();
    bed.phase("Running").await;
    let mount = bed.runtime.starts()[0]
        .mounts
        .iter()
        .find(|mount| mount.target.ends_with("v"))
        .cloned()
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(mount.source.join("k")).unwrap(),
        "1"
    );
}

#[tokio::test(start_paused = true)]
async fn probes_decide_about_readiness_and_restarts() {
    let mut bed = Bed::new();
    bed.runtime.set_exec_code("live", 0);
    bed.runtime.set_exec_code("ready", 1);
    let exec = |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 2});
    bed.apply(&pod(one(json!({"command": ["/app"], "livenessProbe": exec("live"), "readinessProbe": exec("ready")}))));
    let status = bed.phase("Running").await;
    assert_eq!(main(&status)["ready"], false);
    assert!(
        bed.event("Unhealthy").await["message"]
            .as_str()
            .unwrap()
            .starts_with("Readiness probe failed: ")
    );
    bed.runtime.set_exec_code("ready", 0);
    bed.status("ready", |status| main(status)["ready"] == true)
        .await;
    bed.runtime.set_exec_code("live", 1);
    let event = bed.event("Killing").await;
    assert_eq!(
        event["message"],
        "Container c failed liveness probe, will be restarted"
    );
    bed.status("restarted", |status| main(status)["restartCount"] == 1)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_later_agent_takes_over_what_runs() {
    let mut bed = Bed::new();
    bed.apply(&pod(one(json!({"command": ["/app"]}))));
    let before = bed.phase("Running").await;
    bed.kill_agent().await;
    bed.start_agent();
    let after = bed.phase("Running").await;
    assert_eq!(
        main(&before)["state"],
        main(&after)["state"],
        "the same start time"
    );
    assert_eq!(
        (bed.runtime.starts().len(), &main(&after)["restartCount"]),
        (1, &json!(0))
    );

    // What ends while no agent runs counts as one end, and the next attempt as the next.
    bed.kill_agent().await;
    bed.runtime.finish(&bed.id("c", 0), 3);
    bed.start_agent();
    let status = bed
        .status("restarted", |status| main(status)["restartCount"] == 1)
        .await;
    assert_eq!(main(&status)["lastState"]["terminated"]["exitCode"], 3);
    let attempts: Vec<u32> = bed
        .runtime
        .starts()
        .iter()
        .map(|spec| spec.id.attempt)
        .collect();
    assert_eq!(attempts, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_again() {
    let mut bed = Bed::new();
    bed.apply(&pod(one(json!({"command": ["/app"]}))));
    bed.phase("Running").await;
    bed.runtime.lose_sandbox(&PodUid("u".to_owned()));
    let status = bed
        .status("restarted", |status| main(status)["restartCount"] == 1)
        .await;
    assert_eq!(
        main(&status)["lastState"]["terminated"]["reason"],
        "ContainerStatusUnknown"
    );
    let state = bed.runtime.sandboxes().await.unwrap()[0].containers[0]
        .state
        .clone();
    assert!(matches!(state, ContainerState::Running { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_stopped_only_when_no_rule_of_any_node_leads_to_it() {
    let mut bed = Bed::new();
    let object = pod(one(json!({"command": ["/app"]})));
    bed.apply(&object);
    bed.phase("Running").await;
    let address = "10.1.0.2".parse().unwrap();
    bed.drain.offer(address);
    bed.apply(&deleted(object, 30));
    bed.event("Killing").await;
    tokio::task::yield_now().await;
    assert!(
        bed.runtime.signals().is_empty(),
        "connections are still sent to it"
    );
    bed.drain.withdraw(address);
    let begun = Instant::now();
    bed.until("terminated", |said| matches!(said, Said::Terminated))
        .await;
    assert_eq!(bed.runtime.signals().len(), 1);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_pod() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/app"]}));
    // Already over when the worker first looks: the journal's clock is the wall's.
    spec["activeDeadlineSeconds"] = json!(0);
    bed.apply(&pod(spec));
    let status = bed.phase("Failed").await;
    assert_eq!(status["reason"], "DeadlineExceeded");
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_fails_and_gives_its_disk_back_before_it_is_deleted() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/app"]}));
    spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let object = pod(spec);
    bed.apply(&object);
    bed.phase("Running").await;
    let place = |path: &str| bed.directory.path().join(path);
    let (volumes, logs) = (place("pods/u/volumes"), place("logs/d_p_u"));
    std::fs::create_dir_all(logs.join("c")).unwrap();
    assert!(volumes.exists());
    let eviction = |message: &str| Eviction {
        message: message.to_owned(),
        grace: Duration::ZERO,
        reclaimed: CancellationToken::new(),
    };
    let (first, second) = (eviction("too much"), eviction("again"));
    for eviction in [&first, &second] {
        let news = PodUpdate::Evict("u".to_owned(), eviction.clone());
        bed.news.send(news).unwrap();
        tokio::time::timeout(Duration::from_secs(60), eviction.reclaimed.cancelled())
            .await
            .expect("its room is given back");
    }
    assert!(!volumes.exists() && !logs.exists());
    let rootfs = std::fs::read_dir(bed.directory.path().join("rootfs"));
    assert_eq!(rootfs.unwrap().count(), 0);
    let status = bed.phase("Failed").await;
    assert_eq!(
        (&status["reason"], &status["message"]),
        (&json!("Evicted"), &json!("too much"))
    );
    let conditions = status["conditions"].as_array().unwrap();
    let disruption = conditions
        .iter()
        .find(|condition| condition["type"] == "DisruptionTarget");
    assert_eq!(disruption.unwrap()["reason"], "TerminationByKubelet");
    let unknown = eviction("who");
    let news = PodUpdate::Evict("nobody".to_owned(), unknown.clone());
    bed.news.send(news).unwrap();
    unknown.reclaimed.cancelled().await;
    bed.apply(&deleted(object, 30));
    bed.until("terminated", |said| matches!(said, Said::Terminated))
        .await;
    assert!(!bed.directory.path().join("pods/u").exists());
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_does_not_know_is_removed() {
    let mut bed = Bed::new();
    bed.apply(&pod(one(json!({"command": ["/app"]}))));
    bed.phase("Running").await;
    let clients = bed.dns.clients();
    let searches = clients.values().next().unwrap();
    assert_eq!(
        searches[..3],
        ["d.svc.cluster.local", "svc.cluster.local", "cluster.local"]
    );
    bed.kill_agent().await;
    bed.objects = Arc::default();
    bed.objects.synced();
    PodWorkers::new(bed.node()).take_over().await;
    assert!(bed.dns.clients().is_empty());
    assert!(bed.runtime.sandboxes().await.unwrap().is_empty());
    assert!(!bed.directory.path().join("pods/u").exists());
    assert!(bed.network.attached().await.unwrap().is_empty());
    assert_eq!(
        std::fs::read_dir(bed.directory.path().join("rootfs"))
            .unwrap()
            .count(),
        0,
        "its root file systems are unmounted"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_directory_cannot_be_made_is_tried_again() {
    let mut bed = Bed::new();
    // A file where the directory of pods should be.
    let pods = bed.directory.path().join("pods");
    std::fs::write(&pods, "").unwrap();
    bed.apply(&pod(one(json!({"command": ["/app"]}))));
    bed.event("FailedSync").await;
    assert!(bed.runtime.starts().is_empty());
    std::fs::remove_file(&pods).unwrap();
    bed.phase("Running").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_for_settings_of_its_host_fails_before_it_has_anything() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/app"]}));
    spec["securityContext"] = json!({"sysctls": [{"name": "kernel.core_pattern", "value": "|/x"}]});
    bed.apply(&pod(spec));
    let status = bed.phase("Failed").await;
    assert_eq!(status["reason"], "SysctlForbidden");
    let words = "Pod was rejected: forbidden sysctl: \"kernel.core_pattern\" not allowlisted";
    assert_eq!(status["message"], words);
    assert!(bed.runtime.starts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn isolation_that_cannot_be_given_is_said_and_nothing_runs() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/app"]}));
    spec["runtimeClassName"] = json!("gvisor");
    bed.apply(&pod(spec));
    let event = bed.event("FailedCreatePodSandBox").await;
    let message = event["message"].as_str().unwrap();
    assert!(
        message.contains("spec.runtimeClassName: no runtime"),
        "{message}"
    );
    assert!(bed.runtime.starts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_refused_leaves_no_root_mounted() {
    let mut bed = Bed::new();
    let container = json!({"command": ["/app"], "securityContext": {"runAsNonRoot": true}});
    bed.apply(&pod(one(container)));
    bed.waiting("CreateContainerConfigError").await;
    let mounted = std::fs::read_dir(bed.directory.path().join("rootfs")).unwrap();
    assert_eq!(mounted.count(), 0);
}
