//! Deletes Events an hour after they were last seen, as Kubernetes does.

use std::time::Duration;

use anyhow::Result;
use gantry_base::paths;
use gantry_informer::chain;
use gantry_store::{Store, Table};
use http::Method;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::requests::call;

/// Kubernetes' `--event-ttl`.
const LIFE: Duration = Duration::from_secs(60 * 60);
/// How often all Events are looked at. O(Events) each time, some milliseconds for ten thousand of them.
const LOOK: Duration = Duration::from_secs(5 * 60);
/// Events that are looked at before others have their turn.
const TURN: usize = 256;

/// On the leader: deletes what has expired, until told to stop.
pub async fn run(client: kube::Client, store: Store, stop: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            swept = sweep(&client, &store, Timestamp::now()) => swept,
        };
        if let Err(error) = swept {
            tracing::info!(
                error = chain(&*error),
                "deleting old Events; it is tried again"
            );
        }
    }
}

/// Deletes one after the other: a million of them is no flood of writes.
async fn sweep(client: &kube::Client, store: &Store, now: Timestamp) -> Result<()> {
    let events = store.snapshot(&Table("core/events".into()));
    for (at, ((namespace, name), entry)) in events.iter().enumerate() {
        if (at + 1) % TURN == 0 {
            tokio::task::yield_now().await;
        }
        if !is_over(&entry.value, now) {
            continue;
        }
        let path = paths::namespaced(namespace, &["events", name]);
        // One that was seen again meanwhile stays.
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"resourceVersion": entry.modify_revision.0.to_string()},
        });
        match call(client, Method::DELETE, &path, &options).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether an Event was last seen so long ago. One without any time stays: nobody can say.
fn is_over(event: &[u8], now: Timestamp) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct EventTimes {
        #[serde(default)]
        metadata: Metadata,
        last_timestamp: Option<Timestamp>,
        event_time: Option<Timestamp>,
        series: Option<Series>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        creation_timestamp: Option<Timestamp>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Series {
        last_observed_time: Option<Timestamp>,
    }
    let Ok(times) = serde_json::from_slice::<EventTimes>(event) else {
        return false;
    };
    let series = times.series.and_then(|series| series.last_observed_time);
    let seen = [times.last_timestamp, times.event_time, series];
    let seen = seen.into_iter().flatten().max();
    let seen = seen.or(times.metadata.creation_timestamp);
    seen.is_some_and(|seen| now.duration_since(seen).unsigned_abs() > LIFE && seen < now)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gantry_apiserver::{ApiServer, ApiServerConfig, Identity, NODE_LINK, NoNodes};

    use super::*;

    #[tokio::test]
    async fn events_are_kept_for_an_hour() {
        let store = Store::ephemeral();
        let api = ApiServer::new(ApiServerConfig::default(), store.clone(), Arc::new(NoNodes));
        api.bootstrap(6443)
            .await
            .expect("the cluster's own objects");
        let identity = Identity::of_system(NODE_LINK);
        let client = kube::Client::new(api.local_service(identity), "default");
        let now: Timestamp = "2026-01-02T12:00:00Z".parse().expect("a time");
        for (name, seen) in [
            ("old", json!("2026-01-02T10:59:59Z")),
            ("young", json!("2026-01-02T11:00:01Z")),
            ("later", json!("2026-01-03T11:00:00Z")),
        ] {
            let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name},
                "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "p"},
                "reason": "Told", "type": "Normal", "lastTimestamp": seen});
            let path = paths::namespaced("default", &["events"]);
            call(&client, Method::POST, &path, &event)
                .await
                .expect("created");
        }
        sweep(&client, &store, now).await.expect("swept");
        let left = store.snapshot(&Table("core/events".into()));
        let left: Vec<&str> = left.iter().map(|((_, name), _)| &**name).collect();
        assert_eq!(left, ["later", "young"]);
    }

    #[test]
    fn an_event_without_a_last_time_has_others() {
        let now: Timestamp = "2026-01-02T12:00:00Z".parse().expect("a time");
        let is_over = |event: serde_json::Value| is_over(event.to_string().as_bytes(), now);
        let old = "2026-01-02T10:00:00.000000Z";
        assert!(is_over(json!({"eventTime": old})));
        assert!(is_over(
            json!({"metadata": {"creationTimestamp": old}, "lastTimestamp": null})
        ));
        let series = json!({"count": 2, "lastObservedTime": "2026-01-02T11:59:00.000000Z"});
        assert!(!is_over(json!({"eventTime": old, "series": series})));
        assert!(!is_over(json!({})));
    }
}
