//! What is used of the quotas of a namespace, from the objects that are there. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use gantry_api::quota::{Amounts, Counted, Item, counts_until, parsed, printed};
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaStatus};

/// What has to be listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Pods,
    Services,
    Claims,
    /// Objects of a kind, as [`Counted::qualified`] has it, of which each counts as one.
    Objects(String),
}

impl Part {
    fn kind(&self) -> Counted<'_> {
        match self {
            Self::Pods => Counted::PODS,
            Self::Services => Counted::SERVICES,
            Self::Claims => Counted::CLAIMS,
            Self::Objects(name) => Counted::of_qualified(name),
        }
    }
}

fn limits(quota: &ResourceQuota) -> impl Iterator<Item = &str> {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    hard.into_iter().flatten().map(|(name, _)| name.as_str())
}

/// Whether a quota is about objects of a kind.
pub(super) fn is_about(quota: &ResourceQuota, kind: Counted<'_>) -> bool {
    limits(quota).any(|name| kind.has(name))
}

/// Whether an object counts for less of a quota than before.
pub(super) fn gives_back(quota: &ResourceQuota, old: &Item<'_>, new: &Item<'_>, now: i64) -> bool {
    if !is_about(quota, new.kind()) || !old.is_in_scopes(quota) {
        return false;
    }
    if !new.is_in_scopes(quota) {
        return true;
    }
    let (before, after) = (old.usage(now), new.usage(now));
    limits(quota).any(|name| {
        let had = before.get(name).copied().unwrap_or_default();
        had > after.get(name).copied().unwrap_or_default()
    })
}

/// A quota, and what has been counted of it.
struct Ledger {
    quota: ResourceQuota,
    used: Amounts,
}

/// A count of the quotas of a namespace, as it goes on.
pub(super) struct Count {
    ledgers: Vec<Ledger>,
    /// In nanoseconds since the epoch.
    now: i64,
    /// When a pod ends to count that is there now.
    until: Option<i64>,
}

impl Count {
    pub(super) fn of(quotas: Vec<ResourceQuota>, now: i64) -> Self {
        let ledgers = quotas.into_iter().map(|quota| Ledger {
            quota,
            used: Amounts::new(),
        });
        Self {
            ledgers: ledgers.collect(),
            now,
            until: None,
        }
    }

    /// What has to be listed for them.
    pub(super) fn parts(&self) -> BTreeSet<Part> {
        let mut parts = BTreeSet::new();
        for name in self.ledgers.iter().flat_map(|ledger| limits(&ledger.quota)) {
            let richer = [Part::Pods, Part::Services, Part::Claims];
            let of = richer.into_iter().find(|part| part.kind().has(name));
            let other = || Counted::named(name).map(|kind| Part::Objects(kind.to_owned()));
            parts.extend(of.or_else(other));
        }
        parts
    }

    /// Begins with the objects of a part: as long as there are none, nothing is used.
    pub(super) fn begin(&mut self, part: &Part) {
        let kind = part.kind();
        for Ledger { quota, used } in &mut self.ledgers {
            let names = limits(quota).filter(|name| kind.has(name));
            used.extend(names.map(|name| (name.to_owned(), Default::default())));
        }
    }

    pub(super) fn add(&mut self, item: &Item<'_>) {
        if let Item::Pod(pod) = item
            && let Some(end) = counts_until(pod).filter(|end| *end >= self.now)
        {
            self.until = Some(self.until.map_or(end, |until| until.min(end)));
        }
        self.add_times(item, 1);
    }

    /// Adds so many objects of a kind of which each counts as one.
    pub(super) fn add_objects(&mut self, kind: Counted<'_>, number: usize) {
        self.add_times(&Item::Other(kind), number);
    }

    fn add_times(&mut self, item: &Item<'_>, number: usize) {
        let usage = item.usage(self.now);
        for Ledger { quota, used } in &mut self.ledgers {
            if !item.is_in_scopes(quota) {
                continue;
            }
            for (name, amount) in &usage {
                if let Some(all) = used.get_mut(name) {
                    *all = all.plus(amount.times(number));
                }
            }
        }
    }

    /// After how long a pod that is to go counts no more, whatever becomes of it.
    pub(super) fn until(&self) -> Option<Duration> {
        let left = self.until?.saturating_sub(self.now);
        Some(Duration::from_nanos(u64::try_from(left).unwrap_or(0)))
    }

    /// The quotas whose status is not as it was, with their new one. What was not counted stays as it was told last.
    pub(super) fn changed(self) -> Vec<ResourceQuota> {
        let each = self.ledgers.into_iter();
        let changed = each.filter_map(|Ledger { mut quota, used }| {
            let wanted = quota.spec.as_ref().and_then(|spec| spec.hard.clone());
            let status = quota.status.take().unwrap_or_default();
            let before = parsed(status.used.as_ref());
            let limits = parsed(wanted.as_ref());
            let mut all = before.clone();
            all.retain(|name, _| limits.contains_key(name));
            all.extend(used);
            if all == before && limits == parsed(status.hard.as_ref()) {
                return None;
            }
            quota.status = Some(ResourceQuotaStatus {
                hard: wanted,
                used: Some(printed(&all)),
            });
            Some(quota)
        });
        changed.collect()
    }
}

#[cfg(test)]
mod tests {
    use gantry_api::quota::{Change, Charge, charge};
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// 2026-01-02T03:04:05Z
    const NOW: i64 = 1_767_323_045_000_000_000;

    fn quota(hard: Value, scopes: &[&str]) -> ResourceQuota {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard, "scopes": scopes}});
        serde_json::from_value(quota).expect("a quota")
    }

    fn pod(cpu: i64, ends: bool, phase: &str) -> Pod {
        let deadline = if ends { json!(60) } else { Value::Null };
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"activeDeadlineSeconds": deadline, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": format!("{cpu}m")}}}]},
            "status": {"phase": phase},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    /// The quota once all these pods have been counted.
    fn counted(quota: &ResourceQuota, pods: &[Pod]) -> Option<ResourceQuota> {
        let mut count = Count::of(vec![quota.clone()], NOW);
        for part in count.parts() {
            count.begin(&part);
        }
        for pod in pods {
            count.add(&Item::Pod(pod));
        }
        count.changed().pop()
    }

    fn used(quota: &ResourceQuota) -> Value {
        json!(quota.status.as_ref().and_then(|status| status.used.clone()))
    }

    #[test]
    fn what_is_limited_is_listed_and_nothing_else() {
        let hard = json!({
            "count/deployments.apps": "1", "configmaps": "1", "count/pods": "1",
            "requests.storage": "1", "example.com/unknown": "1", "count/events": "1"
        });
        let count = Count::of(vec![quota(hard, &[])], NOW);
        let objects = |name: &str| Part::Objects(name.to_owned());
        let expected = [
            Part::Pods,
            Part::Claims,
            objects("configmaps"),
            objects("deployments.apps"),
        ];
        assert_eq!(count.parts(), BTreeSet::from(expected));
    }

    #[test]
    fn a_new_quota_is_told_of_and_one_that_is_right_is_left_alone() {
        let new = quota(
            json!({"pods": "5", "requests.cpu": "1", "secrets": "3"}),
            &[],
        );
        let pods = [
            pod(100, false, "Running"),
            pod(200, true, "Pending"),
            pod(400, false, "Succeeded"),
        ];
        let first = counted(&new, &pods).expect("it is written");
        let expected = json!({"pods": "2", "requests.cpu": "300m", "secrets": "0"});
        assert_eq!(used(&first), expected);
        let status = first.status.clone().expect("a status");
        assert_eq!(status.hard, new.spec.and_then(|spec| spec.hard));
        assert_eq!(counted(&first, &pods), None);
        let after = counted(&first, &pods[..1]).expect("it is written");
        assert_eq!(used(&after)["pods"], "1");
    }

    #[test]
    fn what_could_not_be_counted_stays_as_it_was_and_what_is_no_limit_any_more_goes() {
        let mut quota = quota(json!({"count/a.example.com": "2", "pods": "1"}), &[]);
        quota.status = serde_json::from_value(json!({
            "hard": {"pods": "1", "secrets": "1"}, "used": {"count/a.example.com": "1", "secrets": "1"}
        }))
        .expect("a status");
        let mut count = Count::of(vec![quota], NOW);
        count.begin(&Part::Pods);
        let changed = count.changed().pop().expect("it is written");
        let expected = json!({"count/a.example.com": "1", "pods": "0"});
        assert_eq!(used(&changed), expected);
    }

    #[test]
    fn objects_are_counted_by_their_number_and_are_in_no_scope() {
        let hard = json!({"secrets": "5", "count/secrets": "9"});
        let part = Part::Objects("secrets".to_owned());
        let mut count = Count::of(
            vec![quota(hard.clone(), &[]), quota(hard, &["BestEffort"])],
            NOW,
        );
        count.begin(&part);
        count.add_objects(part.kind(), 7);
        let all: Vec<Value> = count.changed().iter().map(used).collect();
        let expected = |number: &str| json!({"secrets": number, "count/secrets": number});
        assert_eq!(all, [expected("7"), expected("0")]);
    }

    #[test]
    fn a_pod_that_is_to_go_is_looked_at_when_it_counts_no_more() {
        let mut leaving = pod(100, false, "Running");
        leaving.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-02T03:04:10Z")).ok();
        leaving.metadata.deletion_grace_period_seconds = Some(30);
        let mut count = Count::of(vec![quota(json!({"pods": "1"}), &[])], NOW);
        count.begin(&Part::Pods);
        count.add(&Item::Pod(&leaving));
        assert_eq!(count.until(), Some(Duration::from_secs(35)));
    }

    #[test]
    fn what_counts_for_less_gives_back() {
        let quota = quota(json!({"requests.cpu": "1"}), &["Terminating"]);
        let ending = pod(200, true, "Running");
        for (after, expected) in [
            (pod(200, true, "Running"), false),
            (pod(300, true, "Running"), false),
            (pod(100, true, "Running"), true),
            (pod(200, true, "Failed"), true),
            (pod(200, false, "Running"), true),
        ] {
            let (old, new) = (Item::Pod(&ending), Item::Pod(&after));
            assert_eq!(gives_back(&quota, &old, &new, NOW), expected);
            let outside = pod(900, false, "Running");
            assert!(!gives_back(&quota, &Item::Pod(&outside), &new, NOW));
        }
    }

    proptest! {
        /// What is charged object by object is what is counted of all of them.
        #[test]
        fn counting_agrees_with_charging(
            pods in proptest::collection::vec((0i64..3_000, any::<bool>()), 0..20),
            scoped in any::<bool>(),
        ) {
            let scopes: &[&str] = if scoped { &["NotTerminating"] } else { &[] };
            let new = quota(json!({"pods": "100", "cpu": "100"}), scopes);
            let mut quota = counted(&new, &[]).expect("it is written");
            let pods: Vec<Pod> = pods.iter().map(|(cpu, ends)| pod(*cpu, *ends, "Pending")).collect();
            for pod in &pods {
                let change = Change { new: Item::Pod(pod), old: None, now: NOW };
                let charges = charge(&[&quota], &change).expect("there is room");
                if let Some(Charge::Used(used)) = charges.into_iter().next() {
                    quota.status.get_or_insert_default().used = Some(printed(&used));
                }
            }
            prop_assert_eq!(counted(&quota, &pods), None);
            // From any state whatever, one count is enough.
            let mended = counted(&new, &pods).expect("it is written");
            prop_assert_eq!(used(&mended), used(&quota));
        }
    }
}
