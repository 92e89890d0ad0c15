//! Sidecars and their end, and restarts by each container's own policy and rules.

use super::*;

fn first_init(status: &Value) -> &Value {
    &status["initContainerStatuses"][0]
}

fn is_true(status: &Value, name: &str) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == name && condition["status"] == "True")
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_crashes_changes_nothing_for_the_pod() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/app"]}));
    spec["restartPolicy"] = json!("Never");
    spec["initContainers"] =
        json!([{"name": "s", "image": "app:1", "command": ["/app"], "restartPolicy": "Always"}]);
    bed.apply(&pod(spec));
    bed.phase("Running").await;
    bed.runtime.finish(&bed.id("s", 0), 1);
    let again = |status: &Value| {
        first_init(status)["restartCount"] == 1 && first_init(status)["ready"] == true
    };
    bed.status("the sidecar runs again", again).await;
    bed.runtime.finish(&bed.id("s", 1), 1);
    let status = bed
        .status("the sidecar backs off", |status| {
            first_init(status)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert_eq!(status["phase"], "Running");
    assert!(main(&status)["ready"] == true && is_true(&status, "Initialized"));
    assert!(!is_true(&status, "Ready"));
    let later = |status: &Value| first_init(status)["ready"] == true;
    bed.status("the sidecar runs after its back-off", later)
        .await;
    bed.runtime.finish(&bed.id("c", 0), 0);
    let status = bed.phase("Succeeded").await;
    assert_ne!(first_init(&status)["state"]["terminated"]["exitCode"], 0);
    assert!(is_true(&status, "Initialized"));
}

#[tokio::test(start_paused = true)]
async fn a_rule_restarts_what_the_policy_would_not() {
    let mut bed = Bed::new();
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]);
    let own = json!({"command": ["/app"], "restartPolicy": "Never", "restartPolicyRules": rules});
    let mut spec = one(own);
    spec["restartPolicy"] = json!("Never");
    bed.apply(&pod(spec));
    bed.phase("Running").await;
    bed.runtime.finish(&bed.id("c", 0), 1);
    let again = |status: &Value| main(status)["restartCount"] == 1 && main(status)["ready"] == true;
    bed.status("it runs again", again).await;
    bed.runtime.finish(&bed.id("c", 1), 2);
    let status = bed.phase("Failed").await;
    assert_eq!(main(&status)["state"]["terminated"]["exitCode"], 2);
    assert_eq!(bed.runtime.starts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_pod_waits_for_a_container_that_has_not_begun() {
    let mut bed = Bed::new();
    let containers = json!([
        {"name": "c", "image": "app:1", "command": ["false"]},
        {"name": "d", "image": "none:1"},
    ]);
    let object = pod(json!({"restartPolicy": "Never", "containers": containers}));
    bed.apply(&object);
    let status = bed
        .status("one has failed, one waits", |status| {
            main(status)["state"]["terminated"]["exitCode"] == 1
                && status["containerStatuses"][1]["state"]["waiting"]["reason"] == "ErrImagePull"
        })
        .await;
    assert_eq!(status["phase"], "Pending");
    bed.apply(&deleted(object, 30));
    let status = bed.phase("Failed").await;
    let other = &status["containerStatuses"][1]["state"]["terminated"];
    assert_eq!(other["reason"], "ContainerStatusUnknown");
}

#[tokio::test(start_paused = true)]
async fn what_ends_while_no_agent_runs_has_its_last_words_told() {
    let mut bed = Bed::new();
    let own = json!({"command": ["/app"], "terminationMessagePolicy": "FallbackToLogsOnError"});
    let mut spec = one(own);
    spec["restartPolicy"] = json!("Never");
    bed.apply(&pod(spec));
    bed.phase("Running").await;
    bed.kill_agent().await;
    let logs = bed.directory.path().join("logs/d_p_u/c");
    std::fs::create_dir_all(&logs).unwrap();
    let line = "2026-01-01T00:00:00.000000000Z stdout P DONE\n";
    std::fs::write(logs.join("0.log"), line).unwrap();
    bed.runtime.finish(&bed.id("c", 0), 1);
    bed.start_agent();
    let status = bed.phase("Failed").await;
    assert_eq!(main(&status)["state"]["terminated"]["message"], "DONE");
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_again_in_a_sandbox_that_is_made_again() {
    let mut bed = Bed::new();
    let mut spec = one(json!({"command": ["/app"]}));
    spec["initContainers"] = json!([{"name": "i", "image": "app:1", "command": ["true"]}]);
    bed.apply(&pod(spec));
    bed.phase("Running").await;
    bed.runtime.lose_sandbox(&PodUid("u".to_owned()));
    let again = |status: &Value| main(status)["restartCount"] == 1 && main(status)["ready"] == true;
    let status = bed.status("it runs again", again).await;
    assert_eq!(status["phase"], "Running");
    assert_eq!(first_init(&status)["restartCount"], 1);
    bed.kill_agent().await;
    bed.runtime.lose_sandbox(&PodUid("u".to_owned()));
    bed.start_agent();
    let later = |status: &Value| main(status)["restartCount"] == 2 && main(status)["ready"] == true;
    bed.status("it runs after the machine was gone", later)
        .await;
    let starts = bed.runtime.starts();
    let names: Vec<&str> = starts.iter().map(|spec| spec.id.name.as_str()).collect();
    assert_eq!(names, ["i", "c", "i", "c", "i", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_definition_changed_begins_again_whatever_its_policy() {
    let mut bed = Bed::new();
    bed.images.offer("app:2", ImageConfig::default());
    let with = |image: &str| {
        let mut spec = one(json!({"image": image, "command": ["/app"]}));
        spec["restartPolicy"] = json!("Never");
        pod(spec)
    };
    bed.apply(&with("app:1"));
    bed.phase("Running").await;
    bed.apply(&with("app:2"));
    let again = |status: &Value| main(status)["restartCount"] == 1 && main(status)["ready"] == true;
    let status = bed.status("the new one runs", again).await;
    assert_eq!(
        (&status["phase"], &main(&status)["image"]),
        (&json!("Running"), &json!("app:2"))
    );
}

#[tokio::test(start_paused = true)]
async fn all_containers_begin_anew_when_a_rule_says_so() {
    let mut bed = Bed::new();
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]);
    let object = pod(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "i", "image": "app:1", "command": ["true"]}],
        "containers": [
            {"name": "c", "image": "app:1", "command": ["/app"], "restartPolicy": "Never", "restartPolicyRules": rules},
            {"name": "d", "image": "app:1", "command": ["/app"]},
            {"name": "e", "image": "app:1", "command": ["true"]},
        ],
    }));
    bed.apply(&object);
    bed.phase("Running").await;
    bed.runtime.finish(&bed.id("c", 0), 88);
    let again = |status: &Value| {
        let statuses = status["containerStatuses"].as_array().unwrap();
        statuses.iter().all(|one| one["restartCount"] == 1) && main(status)["ready"] == true
    };
    let status = bed.status("all of them run again", again).await;
    assert_eq!(status["phase"], "Running");
    assert_eq!(first_init(&status)["restartCount"], 1);
    for one in status["containerStatuses"].as_array().unwrap() {
        let last = &one["lastState"]["terminated"];
        assert_eq!(last["reason"], "RestartingAllContainers", "{one}");
    }
    assert!(is_true(&status, "Initialized") && !is_true(&status, "AllContainersRestarting"));
    // What asked for it is over for an agent that comes later.
    bed.kill_agent().await;
    bed.start_agent();
    bed.phase("Running").await;
    bed.runtime.finish(&bed.id("c", 1), 1);
    bed.runtime.finish(&bed.id("d", 1), 0);
    bed.phase("Failed").await;
    let starts = bed.runtime.starts();
    let names: Vec<&str> = starts.iter().map(|spec| spec.id.name.as_str()).collect();
    assert_eq!((names.len(), names[4]), (8, "i"), "{names:?}");
}

/// Two sidecars beside a container, all of which ask for five seconds before they are sent a signal.
fn with_hooks() -> Value {
    let hook = json!({"preStop": {"sleep": {"seconds": 5}}});
    let sidecar = |name: &str| json!({"name": name, "image": "app:1", "command": ["/app"], "restartPolicy": "Always", "lifecycle": hook});
    let mut spec = one(json!({"command": ["/app"], "lifecycle": hook}));
    spec["restartPolicy"] = json!("Never");
    spec["initContainers"] = json!([sidecar("s"), sidecar("t")]);
    pod(spec)
}

fn signalled(bed: &Bed) -> Vec<String> {
    let signals = bed.runtime.signals().into_iter();
    signals
        .map(|(id, signal)| format!("{} {signal}", id.name))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_hooks_of_all_run_at_once_and_sidecars_end_last_first() {
    let mut bed = Bed::new();
    let object = with_hooks();
    bed.apply(&object);
    bed.phase("Running").await;
    let begun = Instant::now();
    bed.apply(&deleted(object, 30));
    bed.until("terminated", |said| matches!(said, Said::Terminated))
        .await;
    assert_eq!(signalled(&bed), ["c 15", "t 15", "s 15"]);
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );

    let mut bed = Bed::new();
    bed.apply(&with_hooks());
    bed.phase("Running").await;
    let begun = Instant::now();
    bed.runtime.finish(&bed.id("c", 0), 0);
    bed.phase("Succeeded").await;
    assert_eq!(signalled(&bed), ["t 15", "s 15"]);
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_waits_for_the_others_no_longer_than_its_time() {
    let mut bed = Bed::new();
    let mut object = with_hooks();
    object["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 60}}});
    bed.apply(&object);
    bed.phase("Running").await;
    let begun = Instant::now();
    bed.apply(&deleted(object, 10));
    bed.until("terminated", |said| matches!(said, Said::Terminated))
        .await;
    let elapsed = begun.elapsed();
    assert!(
        elapsed >= Duration::from_secs(9) && elapsed < Duration::from_secs(19),
        "{elapsed:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_is_not_asked_whether_it_lives() {
    let mut bed = Bed::new();
    bed.runtime.set_exec_code("live", 0);
    let mut object = with_hooks();
    object["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["live"]}, "periodSeconds": 1, "failureThreshold": 1});
    bed.apply(&object);
    bed.phase("Running").await;
    bed.apply(&deleted(object, 30));
    bed.event("Killing").await;
    bed.runtime.set_exec_code("live", 1);
    let unhealthy =
        |said: &Said| matches!(said, Said::Event(event) if event["reason"] == "Unhealthy");
    let next = bed
        .until("terminated", |said| {
            matches!(said, Said::Terminated) || unhealthy(said)
        })
        .await;
    assert!(matches!(next, Said::Terminated), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_be_tried_says_nothing_of_its_container() {
    let mut bed = Bed::new();
    let often = |mut probe: Value| {
        probe["periodSeconds"] = json!(1);
        probe["failureThreshold"] = json!(1);
        probe
    };
    let spec = one(json!({
        "command": ["/app"],
        "livenessProbe": often(json!({"tcpSocket": {"port": "none"}})),
        "readinessProbe": often(json!({"exec": {"command": ["missing"]}})),
    }));
    bed.apply(&pod(spec));
    bed.phase("Running").await;
    for _ in 0..6 {
        let event = bed.event("Unhealthy").await;
        let words = " probe errored and resulted in unknown state: ";
        assert!(event["message"].to_string().contains(words), "{event}");
    }
    assert_eq!(bed.runtime.starts().len(), 1);
    assert!(bed.runtime.signals().is_empty());
}
