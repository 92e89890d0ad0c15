//! How far a set is: an annotation of it.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use crate::deployment::revision::text;

/// `revision=3 step=2 since=2026-01-01T00:00:00.000Z`, or `done`; the command line reads its step, too.
pub(crate) const MARK: &str = "gantry.dev/canary-step";
const DONE: &str = "done";

/// What the time of a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// It has not begun.
    Waits,
    /// It has begun.
    Runs(Timestamp),
    /// Since then, a metric does not hold.
    Fails(Timestamp),
}

/// At a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// The set's revision when it was so: who comes back under another one begins anew.
    pub(super) revision: i64,
    /// Counted from zero.
    pub(super) step: usize,
    pub(super) clock: Clock,
}

impl At {
    /// The step as people count them: also the place of the next.
    pub(super) fn number(self) -> usize {
        self.step.saturating_add(1)
    }
}

/// How far a set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    At(At),
    /// There is no step to walk, or no more.
    Done,
}

impl Mark {
    /// How far the set of that revision is. Nobody but the controller writes it; where it says nothing, the steps begin anew.
    pub(super) fn of(set: &ObjectMeta, revision: i64) -> Self {
        let first = At {
            revision,
            step: 0,
            clock: Clock::Waits,
        };
        match text(set, MARK) {
            None | Some(DONE) => Self::Done,
            Some(said) => {
                let known = read(said).filter(|at| at.revision == revision);
                Self::At(known.unwrap_or(first))
            }
        }
    }
}

fn read(text: &str) -> Option<At> {
    let mut parts = text.splitn(4, ' ');
    let revision = parts.next()?.strip_prefix("revision=")?.parse().ok()?;
    let number: usize = parts.next()?.strip_prefix("step=")?.parse().ok()?;
    let clock = match parts.next() {
        None => Clock::Waits,
        Some(part) => match part.split_once('=')? {
            ("since", time) => Clock::Runs(time.parse().ok()?),
            ("failing-since", time) => Clock::Fails(time.parse().ok()?),
            _ => return None,
        },
    };
    parts.next().is_none().then_some(())?;
    Some(At {
        revision,
        step: number.checked_sub(1)?,
        clock,
    })
}

impl fmt::Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::At(at) = self else {
            return formatter.write_str(DONE);
        };
        write!(formatter, "revision={} step={}", at.revision, at.number())?;
        match at.clock {
            Clock::Waits => Ok(()),
            Clock::Runs(time) => write!(formatter, " since={time:.3}"),
            Clock::Fails(time) => write!(formatter, " failing-since={time:.3}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(said: Option<&str>) -> Mark {
        let annotations = said.map(|said| [(MARK.to_owned(), said.to_owned())].into());
        let meta = ObjectMeta {
            annotations,
            ..ObjectMeta::default()
        };
        Mark::of(&meta, 3)
    }

    #[test]
    fn what_is_written_is_read() {
        let time = Timestamp::from_millisecond(1_767_225_600_250).expect("in range");
        for clock in [Clock::Waits, Clock::Runs(time), Clock::Fails(time)] {
            let mark = Mark::At(At {
                revision: 3,
                step: 1,
                clock,
            });
            assert_eq!(of(Some(&mark.to_string())), mark);
        }
        assert_eq!(of(Some(&Mark::Done.to_string())), Mark::Done);
        assert_eq!(
            of(Some("revision=3 step=2 since=2026-01-01T00:00:00.250Z")).to_string(),
            "revision=3 step=2 since=2026-01-01T00:00:00.250Z"
        );
    }

    #[test]
    fn without_a_mark_there_is_nothing_to_walk_and_one_that_says_nothing_begins_anew() {
        assert_eq!(of(None), Mark::Done);
        let first = "revision=3 step=1";
        for said in [
            "",
            "revision=2 step=2",
            "revision=3",
            "revision=3 step=0",
            "revision=3 step=-1",
            "revision=3 step=2 since=now",
            "revision=3 step=2 until=2026-01-01T00:00:00Z",
            "revision=3 step=2 since=2026-01-01T00:00:00Z more",
            "step=2 revision=3",
            "Done",
        ] {
            assert_eq!(of(Some(said)).to_string(), first, "{said:?}");
        }
    }
}
