//! The arithmetic of rollouts: how many pods there may be and must be, and each replica set's share.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::revision::{MAX_REPLICAS, count};

/// `spec.replicas`.
pub(crate) fn wanted(deployment: &Deployment) -> i32 {
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    replicas.unwrap_or(1)
}

/// Whether pods are replaced step by step, and not all at once.
pub(crate) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
        .and_then(|strategy| strategy.type_.as_deref());
    strategy != Some("Recreate")
}

/// A number, or a percentage of `total`, rounded up or down.
pub(crate) fn scaled(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let digits = text.trim_end_matches('%');
            let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // More than any number of pods, for a share that no number can say.
            let percent: i64 = match all_digits {
                true => digits.parse().unwrap_or(i64::MAX),
                false => 0,
            };
            let hundredfold = percent.saturating_mul(i64::from(total));
            let share = if up {
                hundredfold.div_euclid(100) + i64::from(hundredfold.rem_euclid(100) > 0)
            } else {
                hundredfold.div_euclid(100)
            };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// (maxSurge, maxUnavailable) as numbers. Both zero would stop every rollout: then one may be unavailable.
fn limits(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
        .and_then(|strategy| strategy.rolling_update.as_ref());
    let wanted = wanted(deployment);
    let surge = scaled(
        rolling.and_then(|limits| limits.max_surge.as_ref()),
        wanted,
        true,
    );
    let unavailable = scaled(
        rolling.and_then(|limits| limits.max_unavailable.as_ref()),
        wanted,
        false,
    );
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// How many pods there may be: those that are wanted and those above.
pub(crate) fn allowed(deployment: &Deployment) -> i32 {
    wanted(deployment).saturating_add(max_surge(deployment))
}

/// How many pods there may be above the wanted number.
pub(crate) fn max_surge(deployment: &Deployment) -> i32 {
    limits(deployment).0
}

/// How many of the wanted pods may be unavailable.
pub(crate) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = wanted(deployment);
    if wanted == 0 {
        0
    } else {
        limits(deployment).1.min(wanted)
    }
}

/// `spec.replicas` of a replica set.
pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(0)
}

/// Changes `spec.replicas` of a replica set.
pub(crate) fn resize(set: &mut ReplicaSet, to: i32) {
    set.spec.get_or_insert_default().replicas = Some(to);
}

/// How many of a set's pods are available.
pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

/// Numbers of pods together, as many as a number can say.
pub(crate) fn sum(numbers: impl IntoIterator<Item = i32>) -> i32 {
    numbers.into_iter().fold(0, i32::saturating_add)
}

/// The size of all these sets together.
pub(crate) fn total<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i32 {
    sum(sets.into_iter().map(size))
}

/// How large the set of the current template may become now, `others` being the size of the older sets.
pub(crate) fn new_size(deployment: &Deployment, current: i32, others: i32) -> i32 {
    let wanted = wanted(deployment);
    if !is_rolling(deployment) {
        return wanted;
    }
    let room = allowed(deployment).saturating_sub(current.saturating_add(others));
    if room <= 0 {
        return current;
    }
    current.saturating_add(room.min(wanted.saturating_sub(current)))
}

/// The part of a change of size that is this set's, in proportion to what it has.
pub(crate) fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set);
    let allowed = to_add.saturating_sub(added);
    if to_add > 0 {
        fraction.min(allowed)
    } else {
        fraction.max(allowed)
    }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let size = size(set);
    if wanted(deployment) == 0 {
        return -size;
    }
    let noted = count(&set.metadata, MAX_REPLICAS).filter(|max| *max != 0);
    let before = noted.unwrap_or_else(|| {
        let status = deployment.status.as_ref();
        status.and_then(|status| status.replicas).unwrap_or(0)
    });
    if before == 0 {
        return 0;
    }
    let after = allowed(deployment);
    let grown = f64::from(size) * f64::from(after) / f64::from(before);
    // Both fit an i32, and so does their ratio times one of them, within the API's limits on replicas.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounded, and a share of i32 counts"
    )]
    let rounded = grown.round() as i32;
    rounded.saturating_sub(size)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};

    use super::*;

    fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
        let limit = |text: &str| {
            Some(
                text.parse()
                    .map_or_else(|_| IntOrString::String(text.to_owned()), IntOrString::Int),
            )
        };
        Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: limit(surge),
                        max_unavailable: limit(unavailable),
                    }),
                }),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        }
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        for (replicas, surge, unavailable, expected) in [
            (4, "25%", "25%", (1, 1)),
            (3, "25%", "25%", (1, 0)),
            (10, "25%", "25%", (3, 2)),
            (1, "0", "25%", (0, 1)),
            (5, "0", "0", (0, 1)),
            (5, "2", "100%", (2, 5)),
            (0, "25%", "25%", (0, 0)),
        ] {
            let deployment = deployment(replicas, surge, unavailable);
            let got = (max_surge(&deployment), max_unavailable(&deployment));
            assert_eq!(got, expected, "{replicas} {surge} {unavailable}");
        }
    }

    #[test]
    fn no_limit_is_too_large_to_roll_with() {
        for surge in [
            "99999999999999%",
            "999999999999999999999999999999%",
            "2147483647",
            "9223372036854775807%",
        ] {
            for replicas in [1, 4, i32::MAX] {
                let deployment = deployment(replicas, surge, "100%");
                assert_eq!(new_size(&deployment, 0, 0), replicas, "{surge}");
                assert!(
                    new_size(&deployment, 0, 4) >= replicas.min(i32::MAX - 4),
                    "{surge}"
                );
                assert_eq!(
                    new_size(&deployment, replicas, i32::MAX),
                    replicas,
                    "{surge}"
                );
                assert!(allowed(&deployment) >= replicas, "{surge}");
            }
        }
        let sets = [i32::MAX, i32::MAX].map(|size| {
            let mut set = ReplicaSet::default();
            resize(&mut set, size);
            set
        });
        assert_eq!(total(&sets), i32::MAX);
    }

    #[test]
    fn the_new_set_grows_into_the_room_there_is() {
        for (current, others, expected) in [(0, 4, 1), (1, 4, 1), (0, 0, 4), (2, 1, 4), (4, 1, 4)] {
            let deployment = deployment(4, "1", "1");
            assert_eq!(
                new_size(&deployment, current, others),
                expected,
                "{current} {others}"
            );
        }
    }
}
