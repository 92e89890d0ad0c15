//! What a pass does when `spec.replicas` has changed, or a deployment is paused: sets keep their templates, and are sized.

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::plan::Pass;
use super::revision::{DESIRED_REPLICAS, by_age, count};
use super::sizing::{allowed, available, is_rolling, share, size, total, wanted};

impl Pass<'_> {
    /// Whether `spec.replicas` changed since the sets were last sized.
    pub(super) fn was_resized(&self) -> bool {
        let wanted = wanted(self.deployment);
        self.all()
            .iter()
            .filter(|set| size(set) > 0)
            .filter_map(|set| count(&set.metadata, DESIRED_REPLICAS))
            .any(|desired| desired != wanted)
    }

    /// Follows a change of `spec.replicas`: the only active set takes it all, several share it in proportion.
    pub(super) fn scale_all(&mut self) {
        let wanted = wanted(self.deployment);
        let active: Vec<usize> = (0..self.old.len())
            .filter(|at| size(&self.old[*at]) > 0)
            .collect();
        let new_active = self.new.as_ref().is_some_and(|new| size(new) > 0);
        match (active.as_slice(), new_active) {
            ([], _) => {
                if let Some(new) = self.new.take() {
                    self.new = Some(self.scaled(new, wanted));
                } else if let Some(latest) = self.old.len().checked_sub(1) {
                    self.scale_old(latest, wanted);
                }
                return;
            }
            ([only], false) => return self.scale_old(*only, wanted),
            _ => {}
        }
        if self.is_saturated() {
            for at in active {
                self.scale_old(at, 0);
            }
        } else if is_rolling(self.deployment) {
            self.scale_in_proportion();
        }
    }

    /// Whether the current set alone already does what is wanted.
    fn is_saturated(&self) -> bool {
        let wanted = wanted(self.deployment);
        self.new.as_ref().is_some_and(|new| {
            size(new) == wanted
                && count(&new.metadata, DESIRED_REPLICAS) == Some(wanted)
                && available(new) == wanted
        })
    }

    fn scale_in_proportion(&mut self) {
        let wanted = wanted(self.deployment);
        let mut sets: Vec<ReplicaSet> = self
            .all()
            .into_iter()
            .filter(|set| size(set) > 0)
            .cloned()
            .collect();
        let allowed = if wanted > 0 {
            allowed(self.deployment)
        } else {
            0
        };
        let to_add = allowed.saturating_sub(total(&sets));
        // The largest first; among equals the newest when growing, the oldest when shrinking.
        sets.sort_by(|left, right| {
            let age = by_age(left, right);
            let age = if to_add > 0 { age.reverse() } else { age };
            size(right).cmp(&size(left)).then(age)
        });
        let mut added = 0;
        let mut sizes = Vec::with_capacity(sets.len());
        for set in &sets {
            let part = share(self.deployment, set, to_add, added);
            added = part.saturating_add(added);
            sizes.push(size(set).saturating_add(part));
        }
        if let Some(first) = sizes.first_mut() {
            // What rounding left over.
            *first = first.saturating_add(to_add).saturating_sub(added).max(0);
        }
        if let Some(ceiling) = self.walk.ceiling {
            self.hold_back(&sets, &mut sizes, ceiling);
        }
        for (set, to) in sets.into_iter().zip(sizes) {
            let name = set.metadata.name.clone();
            let set = self.scaled(set, to);
            if let Some(at) = self.old.iter().position(|old| old.metadata.name == name) {
                self.old[at] = set;
            } else {
                self.new = Some(set);
            }
        }
    }

    /// A step's share is of the new size: what the current set would have above goes to the largest of the others.
    fn hold_back(&self, sets: &[ReplicaSet], sizes: &mut [i32], ceiling: i32) {
        let name = self.new.as_ref().and_then(|new| new.metadata.name.as_ref());
        let is_new = |set: &ReplicaSet| set.metadata.name.as_ref() == name;
        let mut above = 0;
        for (set, to) in sets.iter().zip(&mut *sizes) {
            if is_new(set) {
                above = to.saturating_sub(ceiling).max(0);
                *to = to.saturating_sub(above);
            }
        }
        let mut others = sets.iter().zip(sizes).filter(|(set, _)| !is_new(set));
        if let Some((_, to)) = others.next() {
            *to = to.saturating_add(above);
        }
    }
}
