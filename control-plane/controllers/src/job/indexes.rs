//! Sets of completion indexes, and the text in which a job's status keeps them: `1,3-5,7`.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;

/// The annotation, and the label, that tell a pod's index.
pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The index of a pod, if it has one.
pub(crate) fn index_of(pod: &Pod) -> Option<i32> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let index = annotations.get(INDEX)?.parse().ok()?;
    Some(index).filter(|index| *index >= 0)
}

/// Indexes as intervals of a first and a last one: in growing order, and never two that touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Those of a text that are below `completions`. What is no interval is left out: a status that somebody spoilt
    /// stops no job.
    pub(crate) fn parse(text: &str, completions: i32) -> Self {
        let intervals = text.split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: i32 = first.parse().ok()?;
            let last: i32 = last.parse().ok()?;
            let last = last.min(completions.saturating_sub(1));
            (0 <= first && first <= last).then_some((first, last))
        });
        Self::of(intervals.collect())
    }

    fn of(mut intervals: Vec<(i32, i32)>) -> Self {
        intervals.sort_unstable();
        let mut joined: Vec<(i32, i32)> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// These, and those of `more`.
    pub(crate) fn with(&self, more: impl IntoIterator<Item = i32>) -> Self {
        let more = more.into_iter().map(|index| (index, index));
        Self::of(self.0.iter().copied().chain(more).collect())
    }

    /// Those that are in either.
    pub(crate) fn union(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).copied().collect())
    }

    pub(crate) fn has(&self, index: i32) -> bool {
        let after = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(after).is_some_and(|(first, _)| *first <= index)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub(crate) fn total(&self) -> i32 {
        let sizes = self
            .0
            .iter()
            .map(|(first, last)| (last - first).saturating_add(1));
        sizes.fold(0, i32::saturating_add)
    }

    /// How many of `others` are among them.
    pub(crate) fn shared(&self, others: &Self) -> i32 {
        let both = self.total().saturating_add(others.total());
        both.saturating_sub(self.union(others).total())
    }

    /// The first `count` of those below `completions` that are not among them.
    pub(crate) fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut found = Vec::new();
        let mut next = 0;
        let ends = [(completions, completions)];
        for (first, last) in self.0.iter().chain(&ends) {
            found.extend((next..(*first).min(completions)).take(count - found.len()));
            next = last.saturating_add(1);
        }
        found
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            if at > 0 {
                formatter.write_str(",")?;
            }
            match last - first {
                0 => write!(formatter, "{first}")?,
                1 => write!(formatter, "{first},{last}")?,
                _ => write!(formatter, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_read_and_written_as_kubernetes_does() {
        for (text, completions, written) in [
            ("", 5, ""),
            ("0", 5, "0"),
            ("1,3-5,7", 8, "1,3-5,7"),
            ("0-1", 5, "0,1"),
            ("0,1,2", 5, "0-2"),
            ("1,3-5,7", 5, "1,3,4"),
            ("x,2,-1,4-3,3-", 5, "2"),
        ] {
            assert_eq!(
                Indexes::parse(text, completions).to_string(),
                written,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn they_are_a_set(
            one in prop::collection::btree_set(0..30i32, 0..20),
            other in prop::collection::btree_set(0..30i32, 0..20),
            completions in 0..35i32,
            count in 0..10usize,
        ) {
            let (left, right) = (
                Indexes::default().with(one.iter().copied()),
                Indexes::default().with(other.iter().copied()),
            );
            let both: BTreeSet<i32> = &one | &other;
            let union = left.union(&right);
            prop_assert_eq!(&union, &left.with(other.iter().copied()));
            prop_assert_eq!(union.total() as usize, both.len());
            prop_assert_eq!(left.shared(&right) as usize, (&one & &other).len());
            prop_assert!((0..35).all(|index| union.has(index) == both.contains(&index)));
            prop_assert_eq!(Indexes::parse(&union.to_string(), 30), union.clone());
            let missing = (0..completions).filter(|index| !both.contains(index)).take(count);
            prop_assert_eq!(union.missing(count, completions), missing.collect::<Vec<_>>());
        }
    }
}
