//! What annotations say of Deployments that idle.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::deployment::wanted;
use crate::durations::parse;

/// Of a Deployment: it has no replicas after so long without connections.
pub(crate) const IDLE_AFTER: &str = "gantry.dev/idle-after";
/// Of a Deployment that idles: the replicas that it comes back with.
pub(crate) const IDLE_REPLICAS: &str = "gantry.dev/idle-replicas";

/// Figures come once a second: anything shorter would see little of a pod.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// More of what cannot be read is not told, in characters.
const SHOWN: usize = 64;

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn malformed(name: &str, value: &str, why: &str) -> String {
    let shown: String = value.chars().take(SHOWN).collect();
    format!("metadata.annotations[{name}]: Invalid value: {shown:?}: {why}")
}

/// After how long without connections the Deployment is to have no replicas, if ever; or why the annotation says nothing.
pub(super) fn idle_after(deployment: &Deployment) -> Result<Option<Duration>, String> {
    let Some(value) = annotation(&deployment.metadata, IDLE_AFTER) else {
        return Ok(None);
    };
    match parse(value).filter(|after| (SHORTEST..=LONGEST).contains(after)) {
        Some(after) => Ok(Some(after)),
        None => {
            let why = "must be a duration from 10s to 24h, such as 5m";
            Err(malformed(IDLE_AFTER, value, why))
        }
    }
}

/// What is remembered of a Deployment that was idled: how many replicas it had; or why the annotation says nothing. Nobody has
/// idled one without.
pub(super) fn remembered(deployment: &Deployment) -> Result<Option<i32>, String> {
    let Some(value) = annotation(&deployment.metadata, IDLE_REPLICAS) else {
        return Ok(None);
    };
    match value.parse().ok().filter(|replicas| *replicas > 0) {
        Some(replicas) => Ok(Some(replicas)),
        None => Err(malformed(IDLE_REPLICAS, value, "must be a number above 0")),
    }
}

/// The replicas that a Deployment had before it was idled; none of one that was not, or that somebody scaled to zero by hand.
pub(super) fn idled(deployment: &Deployment) -> Option<i32> {
    let remembered = remembered(deployment).ok().flatten();
    remembered.filter(|_| wanted(deployment) == 0)
}

/// Whether a Deployment has to do with idling: it says so, or has to be cleared of what is left of it.
pub(super) fn concerns(deployment: &Deployment) -> bool {
    let has = |name| annotation(&deployment.metadata, name).is_some();
    has(IDLE_AFTER) || has(IDLE_REPLICAS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(name: &str, value: &str, replicas: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {name: value}},
            "spec": {"replicas": replicas, "selector": {}, "template": {}},
        }))
        .expect("a deployment")
    }

    #[test]
    fn how_long_is_from_ten_seconds_to_a_day() {
        assert_eq!(idle_after(&Deployment::default()), Ok(None));
        for (text, seconds) in [("10s", 10), ("5m", 300), ("1h30m", 5400), ("24h", 86_400)] {
            let after = idle_after(&with(IDLE_AFTER, text, 1));
            assert_eq!(after, Ok(Some(Duration::from_secs(seconds))), "{text}");
        }
        let long = "9".repeat(100_000);
        for text in ["", "5", "9s", "-5m", "25h", "1d", "soon", &long] {
            let why = idle_after(&with(IDLE_AFTER, text, 1)).expect_err(text);
            assert!(why.contains("from 10s to 24h") && why.len() < 300, "{why}");
        }
    }

    #[test]
    fn who_scaled_to_zero_is_told_by_what_is_remembered() {
        assert_eq!(idled(&with(IDLE_REPLICAS, "3", 0)), Some(3));
        assert_eq!(idled(&with(IDLE_REPLICAS, "3", 1)), None);
        assert_eq!(idled(&with(IDLE_AFTER, "5m", 0)), None);
        for text in ["", "0", "-1", "many", "2147483648"] {
            let deployment = with(IDLE_REPLICAS, text, 0);
            assert_eq!(idled(&deployment), None, "{text}");
            assert!(remembered(&deployment).is_err() && concerns(&deployment));
        }
        assert!(!concerns(&Deployment::default()));
    }
}
