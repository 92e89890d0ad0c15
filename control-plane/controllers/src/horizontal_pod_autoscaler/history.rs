//! What is remembered of an autoscaler between evaluations: what was recommended, what was done, and what has been told.
//!
//! However often it is evaluated, that is bounded: of the recommendations only those are kept which a window can still be about.

use std::collections::VecDeque;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// The longest that rules may look back for recommendations.
const LONGEST_WINDOW: SignedDuration = SignedDuration::from_secs(3600);
/// The longest period of a policy.
const LONGEST_PERIOD: SignedDuration = SignedDuration::from_secs(1800);
/// The most entries of each list. Beyond it the two closest become one that restrains at least as much.
const MOST: usize = 512;
/// A warning is not repeated within this time.
const TOLD_AGAIN: SignedDuration = SignedDuration::from_secs(15);
/// Different warnings that are remembered.
const WARNINGS: usize = 8;

/// A number of replicas, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    replicas: i32,
    /// Of several that became one, the first.
    first: Timestamp,
    /// Of several that became one, the last.
    at: Timestamp,
}

impl Entry {
    fn new(replicas: i32, at: Timestamp) -> Self {
        Self {
            replicas,
            first: at,
            at,
        }
    }
}

/// The memory; see the module's documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Kept {
    /// The replicas that the target had when it was last looked at.
    found: Option<i32>,
    /// Recommendations of which no later one is as high, oldest first.
    high: VecDeque<Entry>,
    /// Recommendations of which no later one is as low, oldest first.
    low: VecDeque<Entry>,
    /// Replicas that were added.
    added: VecDeque<Entry>,
    /// Replicas that were taken away.
    removed: VecDeque<Entry>,
    told: VecDeque<(&'static str, String, Timestamp)>,
}

fn forget_before(entries: &mut VecDeque<Entry>, now: Timestamp, span: SignedDuration) {
    entries.retain(|entry| now.duration_since(entry.at) <= span);
}

/// Makes one of two that follow each other, where there are too many: of those that are over soonest.
fn bound(entries: &mut VecDeque<Entry>, join: impl Fn(i32, i32) -> i32) {
    while entries.len() > MOST {
        let pairs = entries.iter().zip(entries.iter().skip(1)).enumerate();
        let closest = pairs.min_by_key(|(_, (older, newer))| newer.at.duration_since(older.first));
        let Some(index) = closest.map(|(index, _)| index) else {
            return;
        };
        let older = entries.remove(index);
        if let (Some(older), Some(newer)) = (older, entries.get_mut(index)) {
            newer.replicas = join(older.replicas, newer.replicas);
            newer.first = older.first;
            newer.at = newer.at.max(older.at);
        }
    }
}

fn seconds(count: i32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(count))
}

impl Kept {
    /// What an autoscaler finds when it is first looked at is what it is held to at first; and so is what it finds of a target
    /// that had no replicas before, whoever has brought it back.
    pub(super) fn found(&mut self, replicas: i32, now: Timestamp) {
        let is_back = self.found == Some(0) && replicas > 0;
        if self.found.is_none() || is_back {
            self.recommend(replicas, now);
        }
        self.found = Some(replicas);
    }

    /// Takes in a recommendation, as it was before anything limited it.
    pub(super) fn recommend(&mut self, replicas: i32, now: Timestamp) {
        let entry = Entry::new(replicas, now);
        self.high.retain(|known| known.replicas > replicas);
        self.low.retain(|known| known.replicas < replicas);
        for entries in [&mut self.high, &mut self.low] {
            entries.push_back(entry);
            forget_before(entries, now, LONGEST_WINDOW);
        }
        bound(&mut self.high, i32::max);
        bound(&mut self.low, i32::min);
    }

    /// The highest of this recommendation and those of the window before it, its first instant included.
    pub(super) fn highest_since(&self, replicas: i32, window: i32, now: Timestamp) -> i32 {
        let recent = self.high.iter();
        let recent = recent.filter(|entry| now.duration_since(entry.at) <= seconds(window));
        recent.fold(replicas, |highest, entry| highest.max(entry.replicas))
    }

    /// As [`Kept::highest_since`], without the first instant.
    pub(super) fn highest_within(&self, replicas: i32, window: i32, now: Timestamp) -> i32 {
        let recent = self.high.iter();
        let recent = recent.filter(|entry| now.duration_since(entry.at) < seconds(window));
        recent.fold(replicas, |highest, entry| highest.max(entry.replicas))
    }

    /// The lowest of this recommendation and those of the window before it, its first instant not included.
    pub(super) fn lowest_within(&self, replicas: i32, window: i32, now: Timestamp) -> i32 {
        let recent = self.low.iter();
        let recent = recent.filter(|entry| now.duration_since(entry.at) < seconds(window));
        recent.fold(replicas, |lowest, entry| lowest.min(entry.replicas))
    }

    /// Takes in that the target was scaled.
    pub(super) fn scaled(&mut self, before: i32, after: i32, now: Timestamp) {
        let (entries, replicas) = match after > before {
            true => (&mut self.added, after.saturating_sub(before)),
            false => (&mut self.removed, before.saturating_sub(after)),
        };
        entries.push_back(Entry::new(replicas, now));
        forget_before(entries, now, LONGEST_PERIOD);
        bound(entries, i32::saturating_add);
    }

    /// How many replicas there were when the period began.
    pub(super) fn at_start(&self, current: i32, period: i32, now: Timestamp) -> i64 {
        let sum = |entries: &VecDeque<Entry>| {
            let recent = entries.iter();
            let recent = recent.filter(|entry| now.duration_since(entry.at) < seconds(period));
            recent.map(|entry| i64::from(entry.replicas)).sum::<i64>()
        };
        i64::from(current) - sum(&self.added) + sum(&self.removed)
    }

    /// Whether a warning is to be told now: it is new, or was told some time ago.
    pub(super) fn tells(&mut self, reason: &'static str, message: &str, now: Timestamp) -> bool {
        let same = self
            .told
            .iter_mut()
            .find(|(known, words, _)| *known == reason && words == message);
        match same {
            Some((_, _, at)) if now.duration_since(*at) < TOLD_AGAIN => return false,
            Some((_, _, at)) => *at = now,
            None => {
                self.told.push_back((reason, message.to_owned(), now));
                if self.told.len() > WARNINGS {
                    self.told.pop_front();
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("a time")
    }

    proptest! {
        #[test]
        fn windows_see_what_a_whole_list_would_show(
            steps in proptest::collection::vec((0i64..40, 0i32..20), 1..80), window in 0i32..400,
        ) {
            let (mut kept, mut all, mut now) = (Kept::default(), Vec::new(), 0);
            for (pause, replicas) in steps {
                now += pause;
                let time = at(now);
                let within = |(_, then): &&(i32, i64)| now - then < i64::from(window);
                let recent = || all.iter().filter(within).map(|(replicas, _)| *replicas);
                let highest = recent().fold(replicas, i32::max);
                let lowest = recent().fold(replicas, i32::min);
                prop_assert_eq!(kept.highest_within(replicas, window, time), highest);
                prop_assert_eq!(kept.lowest_within(replicas, window, time), lowest);
                kept.recommend(replicas, time);
                all.push((replicas, now));
            }
        }
    }

    #[test]
    fn the_first_instant_of_a_window_counts_where_nothing_is_said_of_windows() {
        let mut kept = Kept::default();
        kept.found(7, at(0));
        kept.found(9, at(1));
        assert_eq!(kept.highest_since(1, 300, at(300)), 7);
        assert_eq!(kept.highest_within(1, 300, at(300)), 1);
        assert_eq!(kept.highest_since(1, 300, at(301)), 1);
    }

    #[test]
    fn what_is_kept_is_bounded_and_restrains_no_less() {
        let mut kept = Kept::default();
        for second in 0..3000 {
            kept.recommend(10_000 - i32::try_from(second).expect("small"), at(second));
            kept.scaled(1, 2, at(second));
        }
        assert!(kept.high.len() <= MOST && kept.low.len() <= MOST && kept.added.len() <= MOST);
        assert_eq!(kept.highest_within(1, 3600, at(3000)), 10_000);
        let lately = kept.at_start(3000, 15, at(3000));
        assert!((2976..=2986).contains(&lately), "{lately}");
        let long_ago = kept.at_start(3000, 1800, at(3000));
        assert!((1180..=1201).contains(&long_ago), "{long_ago}");
        for second in 0..20_000 {
            kept.recommend(1, at(10_000 + second));
        }
        assert_eq!((kept.high.len(), kept.low.len()), (1, 1));
    }

    #[test]
    fn a_warning_is_told_now_and_then() {
        let mut kept = Kept::default();
        assert!(kept.tells("Failed", "why", at(0)));
        assert!(!kept.tells("Failed", "why", at(14)));
        assert!(kept.tells("Failed", "another", at(14)));
        assert!(kept.tells("Failed", "why", at(15)));
        for number in 0..100 {
            kept.tells("Failed", &number.to_string(), at(16));
        }
        assert_eq!(kept.told.len(), WARNINGS);
    }
}
