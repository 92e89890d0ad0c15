//! Pods that get more or less while they run.

use super::*;

fn asking(cpu: &str, memory: &str, policy: Value) -> Value {
    let amounts = json!({"cpu": cpu, "memory": memory});
    let resources = json!({"requests": amounts, "limits": amounts});
    pod(one(
        json!({"command": ["/app"], "resources": resources, "resizePolicy": policy}),
    ))
}

fn condition<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == name)
}

fn is_done(status: &Value, memory: &str) -> bool {
    main(status)["resources"]["limits"]["memory"] == memory
        && condition(status, "PodResizeInProgress").is_none()
}

#[tokio::test(start_paused = true)]
async fn a_container_gets_more_without_a_restart() {
    let mut bed = Bed::new();
    bed.apply(&asking("100m", "64Mi", json!([])));
    bed.phase("Running").await;
    bed.apply(&asking("200m", "128Mi", json!([])));
    let status = bed
        .status("it has more", |status| is_done(status, "128Mi"))
        .await;
    assert_eq!(main(&status)["restartCount"], 0);
    assert_eq!(main(&status)["allocatedResources"]["cpu"], "200m");
    let resources = bed.runtime.resources(&bed.id("c", 0)).unwrap();
    assert_eq!(resources.memory_limit, Some(128 << 20));
    assert_eq!(resources.cpu_quota_micros, Some(20_000));
    let sandbox = bed.runtime.sandbox(&PodUid("u".to_owned())).unwrap();
    assert_eq!(sandbox.resources.memory_limit, Some(128 << 20));
    assert_eq!(bed.runtime.starts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_be_resized_is_started_anew() {
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let mut bed = Bed::new();
    bed.apply(&asking("100m", "64Mi", policy.clone()));
    bed.phase("Running").await;
    bed.apply(&asking("100m", "128Mi", policy));
    let event = bed.event("Killing").await;
    assert_eq!(event["message"], "Container c resize requires restart");
    let again = |status: &Value| is_done(status, "128Mi") && main(status)["ready"] == true;
    let status = bed.status("it runs again", again).await;
    assert_eq!(main(&status)["restartCount"], 1);
    let limits: Vec<Option<i64>> = bed
        .runtime
        .starts()
        .iter()
        .map(|spec| spec.resources.memory_limit)
        .collect();
    assert_eq!(limits, [Some(64 << 20), Some(128 << 20)]);
}

#[tokio::test(start_paused = true)]
async fn no_container_is_killed_for_a_limit_below_what_it_uses() {
    let mut bed = Bed::new();
    bed.apply(&asking("100m", "64Mi", json!([])));
    bed.phase("Running").await;
    bed.apply(&asking("100m", "512Ki", json!([])));
    let failed = |status: &Value| {
        condition(status, "PodResizeInProgress").is_some_and(|told| told["reason"] == "Error")
    };
    let status = bed.status("the error is told", failed).await;
    let told = condition(&status, "PodResizeInProgress").unwrap();
    assert_eq!(
        told["message"],
        "cannot decrease memory limits: [attempting to set pod memory limit (524288) below current usage (1048576), attempting to set container \"c\" memory limit (524288) below current usage (1048576)]"
    );
    assert_eq!(main(&status)["resources"]["limits"]["memory"], "64Mi");
    assert_eq!(main(&status)["allocatedResources"]["memory"], "512Ki");
    bed.apply(&asking("100m", "32Mi", json!([])));
    bed.status("it has less", |status| is_done(status, "32Mi"))
        .await;
    let resources = bed.runtime.resources(&bed.id("c", 0)).unwrap();
    assert_eq!(resources.memory_limit, Some(32 << 20));
    assert!(bed.runtime.signals().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_the_node_has_not_is_pending_also_for_a_later_agent() {
    let mut bed = Bed::new();
    bed.kill_agent().await;
    let cpu = ("cpu".to_owned(), Quantity("1".to_owned()));
    bed.allocatable = [cpu].into();
    bed.start_agent();
    bed.apply(&asking("500m", "64Mi", json!([])));
    bed.phase("Running").await;
    bed.apply(&asking("2", "64Mi", json!([])));
    let pending = |status: &Value| {
        condition(status, "PodResizePending").is_some_and(|told| told["reason"] == "Infeasible")
    };
    let message = "Node didn't have enough capacity: cpu, requested: 2000, capacity: 1000";
    for _ in 0..2 {
        let status = bed.status("it is pending", pending).await;
        let told = condition(&status, "PodResizePending").unwrap();
        assert_eq!(told["message"], message);
        assert_eq!(main(&status)["resources"]["limits"]["cpu"], "500m");
        assert_eq!(main(&status)["allocatedResources"]["cpu"], "500m");
        bed.kill_agent().await;
        bed.start_agent();
    }
    bed.apply(&asking("800m", "64Mi", json!([])));
    let done = |status: &Value| {
        main(status)["resources"]["limits"]["cpu"] == "800m"
            && condition(status, "PodResizePending").is_none()
    };
    bed.status("it has what there is", done).await;
    assert_eq!(bed.runtime.starts().len(), 1);
}
