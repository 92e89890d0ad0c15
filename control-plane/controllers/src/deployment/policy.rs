//! What annotations say of automatic rollback: those of a Deployment, and where it has none those of its Namespace.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::SignedDuration;

use super::revision::text;

/// `true`: a revision that fails takes itself back. `false` speaks against the namespace's `true`.
pub(crate) const AUTO_ROLLBACK: &str = "gantry.dev/auto-rollback";
/// How many failures of containers (`5`), how long without progress (`90s`), or both (`5,90s`) are too much.
pub(crate) const ROLLBACK_AFTER: &str = "gantry.dev/rollback-after";
/// For how long after its success a revision is still taken back when it fails (`2m`).
pub(crate) const KEEP_WARM: &str = "gantry.dev/keep-warm";

/// All of them.
pub(crate) const ANNOTATIONS: [&str; 3] = [AUTO_ROLLBACK, ROLLBACK_AFTER, KEEP_WARM];

/// So many failures of containers are too much where nothing else is said.
pub(crate) const FAILURES: u32 = 3;
const WARM: Duration = Duration::from_secs(60);
/// No annotation may ask for longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const NO_BUDGET: &str =
    "must be a number of container failures, a duration such as 90s, or both, such as 5,90s";
const NO_DURATION: &str = "must be a duration such as 90s, of at most 24h";
/// How much of a value is repeated in the words about it, in characters.
const SHOWN: usize = 64;

/// What holds for a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Whether a revision that fails takes itself back.
    pub(crate) is_on: bool,
    /// So many failures of containers are too much; without a number, [`FAILURES`] are, or one that fails over and over.
    pub(crate) failures: Option<u32>,
    /// So long without progress is too much, beside the Deployment's own deadline.
    pub(crate) stall: Option<Duration>,
    /// For how long after its success a revision is still taken back.
    pub(crate) keep_warm: Duration,
    /// Annotations that say nothing, and why; they count as not there.
    pub(crate) faults: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            is_on: false,
            failures: None,
            stall: None,
            keep_warm: WARM,
            faults: Vec::new(),
        }
    }
}

impl Policy {
    /// The policy of a Deployment in a Namespace.
    pub(crate) fn of(deployment: &ObjectMeta, namespace: Option<&ObjectMeta>) -> Self {
        let mut policy = Self::default();
        for name in ANNOTATIONS {
            let own = text(deployment, name).map(|value| ("", value));
            let inherited = namespace.and_then(|meta| text(meta, name));
            let inherited = inherited.map(|value| ("the namespace's ", value));
            for (whose, value) in own.into_iter().chain(inherited) {
                match policy.take(name, value) {
                    Ok(()) => break,
                    Err(why) => policy.faults.push(fault(whose, name, value, why)),
                }
            }
        }
        policy
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            AUTO_ROLLBACK => {
                self.is_on = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err("must be \"true\" or \"false\""),
                };
            }
            ROLLBACK_AFTER => (self.failures, self.stall) = budget(value).ok_or(NO_BUDGET)?,
            KEEP_WARM => self.keep_warm = duration(value).ok_or(NO_DURATION)?,
            _ => {}
        }
        Ok(())
    }
}

/// What is told of an annotation that says nothing.
pub(crate) fn fault(whose: &str, name: &str, value: &str, why: &str) -> String {
    let shown: String = value.chars().take(SHOWN).collect();
    format!("{whose}metadata.annotations[{name}]: Invalid value: {shown:?}: {why}")
}

fn budget(value: &str) -> Option<(Option<u32>, Option<Duration>)> {
    let (mut failures, mut stall) = (None, None);
    for part in value.splitn(3, ',').map(str::trim) {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            let number: u32 = part.parse().ok()?;
            if number == 0 || failures.replace(number).is_some() {
                return None;
            }
        } else {
            let time = duration(part).filter(|time| !time.is_zero())?;
            if stall.replace(time).is_some() {
                return None;
            }
        }
    }
    Some((failures, stall))
}

/// A duration of at most a day, with its unit.
pub(crate) fn duration(value: &str) -> Option<Duration> {
    // A number alone would be a number of anything.
    let begins = value
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_digit());
    let time: SignedDuration = Some(value).filter(|_| begins)?.parse().ok()?;
    let time = Duration::try_from(time).ok()?;
    (time <= LONGEST).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(annotations: &[(&str, &str)]) -> ObjectMeta {
        let annotations = annotations.iter();
        ObjectMeta {
            annotations: Some(
                annotations
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_deployments_own_word_counts_before_its_namespaces() {
        let namespace = meta(&[(AUTO_ROLLBACK, "true"), (KEEP_WARM, "5m")]);
        let inherited = Policy::of(&meta(&[]), Some(&namespace));
        assert!(inherited.is_on);
        assert_eq!(inherited.keep_warm, Duration::from_secs(300));
        let own = meta(&[(AUTO_ROLLBACK, "false"), (KEEP_WARM, "0s")]);
        let own = Policy::of(&own, Some(&namespace));
        assert!(!own.is_on);
        assert_eq!(own.keep_warm, Duration::ZERO);
        assert_eq!(Policy::of(&meta(&[]), None), Policy::default());
    }

    #[test]
    fn a_budget_is_a_number_a_time_or_both() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (value, expected) in [
            ("5", (Some(5), None)),
            ("90s", (None, seconds(90))),
            ("1m30s", (None, seconds(90))),
            ("5,90s", (Some(5), seconds(90))),
            ("2m, 1", (Some(1), seconds(120))),
        ] {
            assert_eq!(budget(value), Some(expected), "{value}");
        }
        for wrong in [
            "",
            "0",
            "0s",
            "-1",
            "-5s",
            "5,6",
            "5s,6s",
            "5,5s,5",
            "many",
            "25h",
            "5,",
            "4294967296",
            "P1Y",
        ] {
            assert_eq!(budget(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_malformed_is_told_of_and_counts_as_not_there() {
        let namespace = meta(&[(KEEP_WARM, "2m"), (AUTO_ROLLBACK, "on")]);
        let long = "x".repeat(10_000);
        let own = meta(&[
            (AUTO_ROLLBACK, "yes"),
            (KEEP_WARM, "60"),
            (ROLLBACK_AFTER, long.as_str()),
        ]);
        let policy = Policy::of(&own, Some(&namespace));
        assert!(!policy.is_on);
        assert_eq!(policy.keep_warm, Duration::from_secs(120));
        assert_eq!(policy.faults.len(), 4, "{:?}", policy.faults);
        assert_eq!(
            policy.faults[0],
            "metadata.annotations[gantry.dev/auto-rollback]: Invalid value: \"yes\": must be \"true\" or \"false\""
        );
        assert!(policy.faults[1].starts_with("the namespace's metadata.annotations"));
        assert!(policy.faults.iter().all(|fault| fault.len() < 300));
    }
}
