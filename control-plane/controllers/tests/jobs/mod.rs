//! What comes of jobs: their pods, what is counted, and what is left when they are over or gone.

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::common::{Cluster, create, gone, wait, wait_list};

fn job(name: &str, spec: &Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"schedulerName": "none", "restartPolicy": "Never",
            "containers": [{"name": "c", "image": "busybox:1"}]}}},
    });
    for (field, value) in spec.as_object().expect("fields of a spec") {
        job["spec"][field] = value.clone();
    }
    job
}

/// Waits until the job has so many pods that are not over, and returns them.
async fn pods(cluster: &Cluster, count: usize) -> Vec<Pod> {
    let api: Api<Pod> = cluster.api("ns");
    let fields = "status.phase=Pending";
    wait_list(&api, fields, "there are as many pods", |pods: &[Pod]| {
        pods.len() == count
    })
    .await;
    let mut pods: Vec<Pod> = cluster.list("ns").await;
    pods.retain(|pod| phase(pod) == "Pending");
    pods
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

async fn end(cluster: &Cluster, pod: &Pod, phase: &str) {
    let api: Api<Pod> = cluster.api("ns");
    let name = pod.metadata.name.as_deref().expect("a name");
    let patch = Patch::Strategic(json!({"status": {"phase": phase}}));
    let patched = api
        .patch_status(name, &PatchParams::default(), &patch)
        .await;
    patched.expect("the pod's status");
}

fn status(job: Option<&Job>) -> Value {
    let status = job.and_then(|job| job.status.clone());
    serde_json::to_value(status.unwrap_or_default()).expect("as JSON")
}

/// The conditions of a status with their reasons, in their order.
fn conditions(job: Option<&Job>) -> Vec<(String, String)> {
    let status = job.and_then(|job| job.status.clone()).unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default().into_iter();
    conditions
        .map(|known| (known.type_, known.reason.unwrap_or_default()))
        .collect()
}

/// Waits until the job is over in that way, and returns its status.
async fn over(cluster: &Cluster, name: &str, expected: [&str; 2], reason: &str) -> Value {
    let api: Api<Job> = cluster.api("ns");
    let expected: Vec<_> = expected
        .iter()
        .map(|type_| ((*type_).to_owned(), reason.to_owned()))
        .collect();
    wait(&api, name, "it is over", move |job: Option<&Job>| {
        conditions(job) == expected
    })
    .await;
    let mut status = status(api.get_opt(name).await.expect("an answer").as_ref());
    for time in ["startTime", "conditions", "completionTime"] {
        let known = status
            .as_object_mut()
            .and_then(|status| status.remove(time));
        assert!(known.is_some() || time == "completionTime", "{time}");
    }
    status
}

/// Waits until a job's events say so, in whatever order.
async fn told(cluster: &Cluster, name: &str, expected: &[&str]) {
    let api: Api<Event> = cluster.api("ns");
    let fields = format!("involvedObject.kind=Job,involvedObject.name={name}");
    wait_list(&api, &fields, "events tell of it", |events: &[Event]| {
        let of = |event: &Event| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("{} {}", text(&event.type_), text(&event.reason))
        };
        let mut told: Vec<_> = events.iter().map(of).collect();
        told.sort();
        told == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_with_its_pod() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let jobs: Api<Job> = cluster.api("ns");
    create(&jobs, job("j", &json!({}))).await;
    let pod = pods(&cluster, 1).await.remove(0);
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("j-"));
    assert_eq!(
        pod.metadata.finalizers,
        Some(vec!["batch.kubernetes.io/job-tracking".to_owned()])
    );
    wait(&jobs, "j", "it tells of its pod", |job: Option<&Job>| {
        let mut status = status(job);
        let started = status
            .as_object_mut()
            .and_then(|status| status.remove("startTime"));
        started.is_some()
            && status
                == json!({"active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}})
    })
    .await;
    end(&cluster, &pod, "Succeeded").await;
    let status = over(
        &cluster,
        "j",
        ["SuccessCriteriaMet", "Complete"],
        "CompletionsReached",
    )
    .await;
    assert_eq!(
        status,
        json!({"succeeded": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}})
    );
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].metadata.finalizers, None);
    told(
        &cluster,
        "j",
        &["Normal Completed", "Normal SuccessfulCreate"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fails_with_its_pod() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let jobs: Api<Job> = cluster.api("ns");
    create(&jobs, job("j", &json!({"backoffLimit": 0}))).await;
    let pod = pods(&cluster, 1).await.remove(0);
    end(&cluster, &pod, "Failed").await;
    let status = over(
        &cluster,
        "j",
        ["FailureTarget", "Failed"],
        "BackoffLimitExceeded",
    )
    .await;
    assert_eq!(
        status,
        json!({"failed": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}})
    );
    told(
        &cluster,
        "j",
        &["Normal SuccessfulCreate", "Warning BackoffLimitExceeded"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_job_succeeds_by_its_policy() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let jobs: Api<Job> = cluster.api("ns");
    let spec = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "1"}]}});
    create(&jobs, job("j", &spec)).await;
    let mut pods = pods(&cluster, 2).await;
    pods.sort_by(|one, other| {
        one.metadata
            .generate_name
            .cmp(&other.metadata.generate_name)
    });
    let index = "batch.kubernetes.io/job-completion-index";
    for (at, pod) in pods.iter().enumerate() {
        let metadata = &pod.metadata;
        let start = format!("j-{at}-");
        assert_eq!(metadata.generate_name.as_deref(), Some(start.as_str()));
        let annotations = metadata.annotations.clone().unwrap_or_default();
        assert_eq!(annotations.get(index), Some(&at.to_string()));
        let labels = metadata.labels.clone().unwrap_or_default();
        assert_eq!(labels.get(index), Some(&at.to_string()));
        let spec = serde_json::to_value(&pod.spec).expect("as JSON");
        assert_eq!(spec["hostname"], format!("j-{at}"));
        assert_eq!(
            spec["containers"][0]["env"][0]["valueFrom"]["fieldRef"],
            json!({
                "apiVersion": "v1",
                "fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']",
            })
        );
    }
    end(&cluster, &pods[1], "Succeeded").await;
    let status = over(
        &cluster,
        "j",
        ["SuccessCriteriaMet", "Complete"],
        "SuccessPolicy",
    )
    .await;
    assert_eq!(
        status,
        json!({"succeeded": 1, "completedIndexes": "1", "ready": 0, "terminating": 0,
        "uncountedTerminatedPods": {}})
    );
    // The other, which nobody ran, is gone.
    let left: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(left.len(), 1);
    let expected = [
        "Normal Completed",
        "Normal SuccessfulCreate",
        "Normal SuccessfulCreate",
        "Normal SuccessfulDelete",
    ];
    told(&cluster, "j", &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_and_goes_on() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let jobs: Api<Job> = cluster.api("ns");
    create(&jobs, job("j", &json!({"suspend": true}))).await;
    let is = |reason: &'static str, active: Value| {
        move |job: Option<&Job>| {
            conditions(job) == [("Suspended".to_owned(), reason.to_owned())]
                && status(job)["active"] == active
        }
    };
    wait(&jobs, "j", "it waits", is("JobSuspended", Value::Null)).await;
    assert_eq!(
        status(jobs.get_opt("j").await.expect("an answer").as_ref())["startTime"],
        Value::Null
    );
    let suspend = |suspends: bool| Patch::Merge(json!({"spec": {"suspend": suspends}}));
    let patched = jobs
        .patch("j", &PatchParams::default(), &suspend(false))
        .await;
    patched.expect("the job");
    wait(&jobs, "j", "it runs", is("JobResumed", json!(1))).await;
    let patched = jobs
        .patch("j", &PatchParams::default(), &suspend(true))
        .await;
    patched.expect("the job");
    wait(
        &jobs,
        "j",
        "it waits again",
        is("JobSuspended", Value::Null),
    )
    .await;
    pods(&cluster, 0).await;
    assert_eq!(
        status(jobs.get_opt("j").await.expect("an answer").as_ref())["failed"],
        Value::Null
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_goes_leaves_no_pod_held() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let jobs: Api<Job> = cluster.api("ns");
    create(
        &jobs,
        job("j", &json!({"parallelism": 2, "completions": 2})),
    )
    .await;
    pods(&cluster, 2).await;
    let deleted = jobs.delete("j", &DeleteParams::background()).await;
    deleted.expect("the job's deletion");
    pods(&cluster, 0).await;
    gone(&jobs, "j").await;
    // Those that are to outlive their job are theirs who adopt them.
    create(&jobs, job("k", &json!({}))).await;
    pods(&cluster, 1).await;
    let deleted = jobs.delete("k", &DeleteParams::orphan()).await;
    deleted.expect("the job's deletion");
    gone(&jobs, "k").await;
    let api: Api<Pod> = cluster.api("ns");
    wait_list(&api, "", "the pod is free", |pods: &[Pod]| {
        let free = |pod: &Pod| {
            pod.metadata.finalizers.is_none() && pod.metadata.owner_references.is_none()
        };
        pods.len() == 1 && free(&pods[0])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_when_it_says_so_and_what_others_run_stays_as_it_is() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let jobs: Api<Job> = cluster.api("ns");
    create(&jobs, job("theirs", &json!({"managedBy": "example.com/x"}))).await;
    create(&jobs, job("j", &json!({"ttlSecondsAfterFinished": 0}))).await;
    let pod = pods(&cluster, 1).await.remove(0);
    end(&cluster, &pod, "Succeeded").await;
    gone(&jobs, "j").await;
    let left: Vec<Pod> = cluster.list("ns").await;
    assert!(left.is_empty());
    let theirs = jobs.get("theirs").await.expect("the other job");
    assert_eq!(status(Some(&theirs)), json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_adopts_what_it_selects() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let api: Api<Pod> = cluster.api("ns");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "x"}},
        "spec": {"schedulerName": "none", "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let pod = create(&api, pod).await;
    let mut adopting = job(
        "j",
        &json!({"manualSelector": true, "selector": {"matchLabels": {"app": "x"}}}),
    );
    adopting["spec"]["template"]["metadata"] = json!({"labels": {"app": "x"}});
    let jobs: Api<Job> = cluster.api("ns");
    create(&jobs, adopting).await;
    wait(&api, "p", "it is the job's", |pod: Option<&Pod>| {
        let metadata = pod.map(|pod| &pod.metadata);
        metadata.is_some_and(|metadata| {
            metadata.finalizers.is_some() && metadata.owner_references.is_some()
        })
    })
    .await;
    end(&cluster, &pod, "Succeeded").await;
    let status = over(
        &cluster,
        "j",
        ["SuccessCriteriaMet", "Complete"],
        "CompletionsReached",
    )
    .await;
    assert_eq!(status["succeeded"], 1);
    let pods: Vec<Pod> = cluster.list("ns").await;
    assert_eq!(pods.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_makes_jobs_and_knows_of_them() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let crons: Api<CronJob> = cluster.api("ns");
    let mut template = job("", &json!({}));
    template["metadata"] = json!({"labels": {"made": "by-cron"}});
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c"},
        "spec": {"schedule": "@every 1s", "jobTemplate": {"metadata": template["metadata"], "spec": template["spec"]}}});
    create(&crons, cron).await;
    wait(
        &crons,
        "c",
        "it knows of a job",
        |cron: Option<&CronJob>| {
            let status = cron
                .and_then(|cron| cron.status.clone())
                .unwrap_or_default();
            status.active.is_some_and(|active| !active.is_empty())
                && status.last_schedule_time.is_some()
        },
    )
    .await;
    let made: Vec<Job> = cluster.list("ns").await;
    let metadata = &made[0].metadata;
    let name = metadata.name.clone().unwrap_or_default();
    let minutes = name
        .strip_prefix("c-")
        .and_then(|minutes| minutes.parse::<i64>().ok());
    assert!(minutes.is_some(), "{name}");
    assert_eq!(
        metadata
            .owner_references
            .as_ref()
            .map(|owners| owners[0].kind.as_str()),
        Some("CronJob")
    );
    assert_eq!(
        metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("made"))
            .map(String::as_str),
        Some("by-cron")
    );
    let api: Api<Pod> = cluster.api("ns");
    let is_its = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get("job-name")) == Some(&name)
    };
    let has_one = |pods: &[Pod]| pods.iter().any(is_its);
    wait_list(&api, "", "the job has a pod", has_one).await;
    for pod in cluster
        .list::<Pod>("ns")
        .await
        .iter()
        .filter(|pod| is_its(pod))
    {
        end(&cluster, pod, "Succeeded").await;
    }
    wait(
        &crons,
        "c",
        "the job is over",
        move |cron: Option<&CronJob>| {
            let status = cron
                .and_then(|cron| cron.status.clone())
                .unwrap_or_default();
            let mut active = status.active.iter().flatten();
            active.all(|known| known.name.as_ref() != Some(&name))
                && status.last_successful_time.is_some()
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_a_pod_asks_for_nothing_but_a_job_of_that_name() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let api: Api<Pod> = cluster.api("ns");
    // More than work at once: each would wait for a year, and every job with them.
    for at in 0..40 {
        create(
            &api,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
                "name": format!("p{at}"),
                "finalizers": ["batch.kubernetes.io/job-tracking"],
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "controller": true,
                    "name": "?watch=1&timeoutSeconds=31536000", "uid": "x"}],
            }, "spec": {"schedulerName": "none", "containers": [{"name": "c", "image": "x:1"}]}}),
        )
        .await;
    }
    // Their owner is nobody: they are given free, and collected.
    wait_list(&api, "", "none is left", |pods: &[Pod]| pods.is_empty()).await;
    let jobs: Api<Job> = cluster.api("ns");
    create(&jobs, job("j", &json!({}))).await;
    pods(&cluster, 1).await;
}
