//! How often an autoscaler is evaluated at most: the annotation `gantry.dev/sync-period`.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::durations::parse;

pub(super) const SYNC_PERIOD: &str = "gantry.dev/sync-period";

/// Where nothing is said.
pub(super) const DEFAULT: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);
/// More of what cannot be read is not told.
const TOLD: usize = 64;

/// The period, or why the annotation is none and the default counts.
pub(super) fn sync_period(metadata: &ObjectMeta) -> Result<Duration, String> {
    let annotations = metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|annotations| annotations.get(SYNC_PERIOD)) else {
        return Ok(DEFAULT);
    };
    let period = parse(text).filter(|period| (SHORTEST..=LONGEST).contains(period));
    period.ok_or_else(|| {
        let told: String = text.chars().take(TOLD).collect();
        format!(
            "metadata.annotations[{SYNC_PERIOD}]: {told:?} is no duration from 100ms to 1h, such as 1s or 500ms: 1s is used"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Duration, String> {
        let annotations = [(SYNC_PERIOD.to_owned(), text.to_owned())];
        sync_period(&ObjectMeta {
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        })
    }

    #[test]
    fn periods_are_read_as_go_writes_them() {
        assert_eq!(sync_period(&ObjectMeta::default()), Ok(DEFAULT));
        for (text, millis) in [
            ("1s", 1000),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("1h", 3_600_000),
        ] {
            assert_eq!(of(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "", "1", "s", "-1s", "99ms", "2h", "1d", "1s1", ".s", "1..5s", "1e9s", "☃", "1 s",
        ] {
            let why = of(text).expect_err(text);
            assert!(why.contains(SYNC_PERIOD), "{why}");
        }
        assert!(of(&"9".repeat(100_000)).expect_err("too long").len() < 300);
    }
}
