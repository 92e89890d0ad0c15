//! What probes do to containers that begin.

use serde_json::json;
use tokio::time::{Duration, Instant};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_container_that_listens_a_moment_late_is_ready_a_moment_later() {
    let mut bed = Bed::new();
    bed.runtime.set_exec_code("ready", 1);
    let probe = json!({"exec": {"command": ["ready"]}, "periodSeconds": 30, "failureThreshold": 1});
    let container = json!({"command": ["/app"], "readinessProbe": probe});
    bed.apply(&pod(one(container)));
    bed.phase("Running").await;
    bed.event("Unhealthy").await;
    let began = Instant::now();
    bed.runtime.set_exec_code("ready", 0);
    bed.status("ready", |status| main(status)["ready"] == true)
        .await;
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(1),
        "{took:?} of a period of 30 s"
    );
}
