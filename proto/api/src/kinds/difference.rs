//! What two texts differ in: a unified difference with three lines of context, as Kubernetes shows it where something must not
//! change. Lines that both have are found as Python's `difflib` finds them, by the longest run first.

use std::collections::HashMap;
use std::ops::Range;

/// Lines shown before and after a change.
const CONTEXT: usize = 3;
/// Of longer texts it is only told where the first and the last change are: looking for more costs the square of the lines.
const MAX_LINES: usize = 800;
/// From so many lines on, those that are there more often than once in a hundred begin no run, and only make one longer.
const MANY_LINES: usize = 200;
/// A longer difference is cut there, in bytes: the rest helps nobody.
const MAX_BYTES: usize = 64 << 10;

/// Lines of both texts that are the same, or that take each other's place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    same: bool,
    old: Range<usize>,
    new: Range<usize>,
}

impl Step {
    fn first(&self, count: usize) -> Self {
        Self {
            same: self.same,
            old: self.old.start..self.old.end.min(self.old.start + count),
            new: self.new.start..self.new.end.min(self.new.start + count),
        }
    }

    fn last(&self, count: usize) -> Self {
        Self {
            same: self.same,
            old: self.old.start.max(self.old.end.saturating_sub(count))..self.old.end,
            new: self.new.start.max(self.new.end.saturating_sub(count))..self.new.end,
        }
    }
}

/// The longest run of lines that both have within a part of each; of several, the first.
fn longest(
    (old, new): (&[&str], &[&str]),
    places: &HashMap<&str, Vec<usize>>,
    (within_old, within_new): (&Range<usize>, &Range<usize>),
) -> Step {
    let mut best = Step {
        same: true,
        old: within_old.start..within_old.start,
        new: within_new.start..within_new.start,
    };
    // How long the run is that ends at a line of the new text and at the line of the old one before.
    let mut runs: HashMap<usize, usize> = HashMap::new();
    for at_old in within_old.clone() {
        let found = old.get(at_old).and_then(|line| places.get(line));
        let mut next = HashMap::new();
        for &at_new in found.into_iter().flatten() {
            if !within_new.contains(&at_new) {
                continue;
            }
            let before = at_new.checked_sub(1).and_then(|before| runs.get(&before));
            let length = before.copied().unwrap_or(0) + 1;
            next.insert(at_new, length);
            if length > best.old.len() {
                best.old = at_old + 1 - length..at_old + 1;
                best.new = at_new + 1 - length..at_new + 1;
            }
        }
        runs = next;
    }
    let same = |at_old: usize, at_new: usize| old.get(at_old) == new.get(at_new);
    while best.old.start > within_old.start
        && best.new.start > within_new.start
        && same(best.old.start - 1, best.new.start - 1)
    {
        best.old.start -= 1;
        best.new.start -= 1;
    }
    while best.old.end < within_old.end
        && best.new.end < within_new.end
        && same(best.old.end, best.new.end)
    {
        best.old.end += 1;
        best.new.end += 1;
    }
    best
}

/// All runs that both texts have, in their order.
fn runs(old: &[&str], new: &[&str]) -> Vec<Step> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, line) in new.iter().enumerate() {
        places.entry(*line).or_default().push(at);
    }
    if new.len() >= MANY_LINES {
        let most = new.len() / 100 + 1;
        places.retain(|_, at| at.len() <= most);
    }
    let mut found = Vec::new();
    let mut parts = vec![(0..old.len(), 0..new.len())];
    while let Some((within_old, within_new)) = parts.pop() {
        let run = longest((old, new), &places, (&within_old, &within_new));
        if run.old.is_empty() {
            continue;
        }
        parts.push((
            within_old.start..run.old.start,
            within_new.start..run.new.start,
        ));
        parts.push((run.old.end..within_old.end, run.new.end..within_new.end));
        found.push(run);
    }
    found.sort_by_key(|run| run.old.start);
    found
}

/// What the texts have in common at their beginning and at their end.
fn ends(old: &[&str], new: &[&str]) -> Vec<Step> {
    let before = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let left = old.len().min(new.len()) - before;
    let pairs = old.iter().rev().zip(new.iter().rev()).take(left);
    let after = pairs.take_while(|(a, b)| a == b).count();
    vec![
        Step {
            same: true,
            old: 0..before,
            new: 0..before,
        },
        Step {
            same: true,
            old: old.len() - after..old.len(),
            new: new.len() - after..new.len(),
        },
    ]
}

/// How the old text becomes the new one.
fn steps(old: &[&str], new: &[&str]) -> Vec<Step> {
    let mut common = match old.len().max(new.len()) {
        0..=MAX_LINES => runs(old, new),
        _ => ends(old, new),
    };
    common.push(Step {
        same: true,
        old: old.len()..old.len(),
        new: new.len()..new.len(),
    });
    let mut steps: Vec<Step> = Vec::new();
    let (mut at_old, mut at_new) = (0, 0);
    for run in common {
        if at_old < run.old.start || at_new < run.new.start {
            steps.push(Step {
                same: false,
                old: at_old..run.old.start,
                new: at_new..run.new.start,
            });
        }
        (at_old, at_new) = (run.old.end, run.new.end);
        match steps.last_mut() {
            _ if run.old.is_empty() => {}
            Some(last) if last.same => {
                last.old.end = run.old.end;
                last.new.end = run.new.end;
            }
            _ => steps.push(run),
        }
    }
    steps
}

/// The changes with their context; those that are close are one.
fn hunks(mut steps: Vec<Step>) -> Vec<Vec<Step>> {
    if let Some(first) = steps.first_mut()
        && first.same
    {
        *first = first.last(CONTEXT);
    }
    if let Some(last) = steps.last_mut()
        && last.same
    {
        *last = last.first(CONTEXT);
    }
    let (mut hunks, mut hunk) = (Vec::new(), Vec::new());
    for step in steps {
        if step.same && step.old.len() > 2 * CONTEXT {
            hunk.push(step.first(CONTEXT));
            hunks.push(std::mem::take(&mut hunk));
            hunk.push(step.last(CONTEXT));
        } else {
            hunk.push(step);
        }
    }
    hunks.push(hunk);
    hunks.retain(|hunk| hunk.iter().any(|step| !step.same));
    hunks
}

/// Where lines are: the first, and how many.
fn place(lines: Range<usize>) -> String {
    match lines.len() {
        0 => format!("{},0", lines.start),
        1 => format!("{}", lines.start + 1),
        count => format!("{},{count}", lines.start + 1),
    }
}

/// The difference; empty when there is none.
pub(super) fn unified(old: &str, new: &str) -> String {
    let old: Vec<&str> = old.split('\n').collect();
    let new: Vec<&str> = new.split('\n').collect();
    let mut text = String::new();
    let mut tell = |sign: &str, line: &str| {
        if text.len() + line.len() < MAX_BYTES {
            text.push_str(sign);
            text.push_str(line);
            text.push('\n');
        }
    };
    for hunk in hunks(steps(&old, &new)) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else {
            continue;
        };
        let (of_old, of_new) = (
            place(first.old.start..last.old.end),
            place(first.new.start..last.new.end),
        );
        tell("", &format!("@@ -{of_old} +{of_new} @@"));
        for step in &hunk {
            for at in step.old.clone() {
                let sign = if step.same { " " } else { "-" };
                tell(sign, old.get(at).copied().unwrap_or_default());
            }
            for at in step.new.clone().filter(|_| !step.same) {
                tell("+", new.get(at).copied().unwrap_or_default());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a letter each.
    fn between(old: &str, new: &str) -> String {
        let lines = |text: &str| {
            let lines: Vec<String> = text.chars().map(String::from).collect();
            lines.join("\n")
        };
        unified(&lines(old), &lines(new))
    }

    #[test]
    fn a_change_has_three_lines_around_it() {
        assert_eq!(between("abc", "abc"), "");
        assert_eq!(
            between("abcdefghi", "abcdXfghi"),
            "@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+X\n f\n g\n h\n"
        );
        assert_eq!(between("abc", "Xabc"), "@@ -1,3 +1,4 @@\n+X\n a\n b\n c\n");
        assert_eq!(between("a", "b"), "@@ -1 +1 @@\n-a\n+b\n");
    }

    #[test]
    fn changes_that_are_close_are_told_together() {
        assert_eq!(
            between("abcdefgh", "Xbcdefgh"),
            "@@ -1,4 +1,4 @@\n-a\n+X\n b\n c\n d\n"
        );
        assert_eq!(
            between("abcdefgh", "XbcdefgY"),
            "@@ -1,8 +1,8 @@\n-a\n+X\n b\n c\n d\n e\n f\n g\n-h\n+Y\n"
        );
        assert_eq!(
            between("abcdefghi", "XbcdefghY"),
            "@@ -1,4 +1,4 @@\n-a\n+X\n b\n c\n d\n@@ -6,4 +6,4 @@\n f\n g\n h\n-i\n+Y\n"
        );
    }

    #[test]
    fn the_longest_run_is_kept_first() {
        assert_eq!(
            between("abxcd", "abcdab"),
            "@@ -1,5 +1,6 @@\n a\n b\n-x\n c\n d\n+a\n+b\n"
        );
    }

    #[test]
    fn what_many_lines_are_begins_no_run() {
        let text = |odd: &dyn Fn(usize) -> bool| {
            let line = |at: usize| match odd(at) {
                true => format!("odd {at}\n}}\n}}"),
                false => format!("name {at}\n}}"),
            };
            (0..110).map(line).collect::<Vec<String>>().join("\n")
        };
        assert_eq!(
            unified(&text(&|_| false), &text(&|at| [50, 51].contains(&at))),
            "@@ -98,9 +98,11 @@\n }\n name 49\n }\n-name 50\n-}\n-name 51\n+odd 50\n+}\n+}\n+odd 51\n+}\n }\n name 52\n }\n"
        );
    }

    #[test]
    fn long_texts_cost_no_more_than_their_lines() {
        let lines = |last: &str| {
            let mut lines = vec!["same"; 100_000];
            lines.push(last);
            lines.push("}");
            lines.join("\n")
        };
        let told = unified(&lines("a"), &lines("b"));
        assert_eq!(
            told,
            "@@ -99998,5 +99998,5 @@\n same\n same\n same\n-a\n+b\n }\n"
        );
        let replaced = unified(
            &vec!["a"; 100_000].join("\n"),
            &vec!["b"; 100_000].join("\n"),
        );
        assert!(replaced.len() <= MAX_BYTES + 2);
    }
}
