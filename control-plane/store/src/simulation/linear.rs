//! Whether the operations on one key can have happened one after another, each between its call and its answer.
//!
//! The search of Wing and Gong with Lowe's memory: try every operation that may come next, remember which sets of done
//! operations led to which value. Values are unique per write, so that a read tells which write it saw.

use std::collections::HashSet;

/// Which write; `None` is an absent key.
pub(super) type Value = Option<u64>;

/// One operation of one client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    /// When it was called. Calls and answers of a run are numbered in their order.
    pub(super) called: u64,
    /// When it was answered; `None` when its outcome is unknown: it may have happened at any time since, or never.
    pub(super) answered: Option<u64>,
    pub(super) action: Action,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Read(Value),
    Write(Value),
    /// Replaces the first by the second.
    Swap(Value, Value),
}

impl Action {
    fn apply(self, value: Value) -> Option<Value> {
        match self {
            Action::Read(seen) => (seen == value).then_some(value),
            Action::Write(new) => Some(new),
            Action::Swap(old, new) => (old == value).then_some(new),
        }
    }

    fn writes(self) -> Option<Value> {
        match self {
            Action::Read(_) => None,
            Action::Write(new) | Action::Swap(_, new) => Some(new),
        }
    }

    fn observes(self) -> Option<Value> {
        match self {
            Action::Read(seen) | Action::Swap(seen, _) => Some(seen),
            Action::Write(_) => None,
        }
    }
}

/// How many operations one key may have.
pub(super) const MOST: usize = 128;
/// A search beyond it is given up as a fault of the test.
const STEPS: usize = 4_000_000;

/// Whether a linearization from an absent key exists.
pub(super) fn check(history: &[Operation]) -> Result<(), String> {
    let mut operations = history.to_vec();
    // A write of unknown outcome that nobody saw changes nothing for the others, wherever it would be put.
    let seen: HashSet<Value> = history
        .iter()
        .filter_map(|operation| operation.action.observes())
        .collect();
    operations.retain(|operation| {
        operation.answered.is_some()
            || operation
                .action
                .writes()
                .is_some_and(|value| value.is_none() || seen.contains(&value))
    });
    operations.sort_by_key(|operation| operation.called);
    if operations.len() > MOST {
        return Err(format!(
            "{} operations on one key are too many to check",
            operations.len()
        ));
    }
    let required = mask(&operations, |operation| operation.answered.is_some());
    let mut visited = HashSet::new();
    let mut stack: Vec<(u128, Value)> = vec![(0, None)];
    let mut steps = 0;
    let mut furthest = (0, 0_u128);
    while let Some((done, value)) = stack.pop() {
        if done & required == required {
            return Ok(());
        }
        if !visited.insert((done, value)) {
            continue;
        }
        steps += 1;
        if steps > STEPS {
            return Err("the search for a linearization takes too long".to_owned());
        }
        furthest = furthest.max(((done & required).count_ones(), done));
        // Nothing may come before what was answered before it was called.
        let open = |at: &usize| done & (1 << at) == 0;
        let deadline = (0..operations.len())
            .filter(open)
            .filter_map(|at| operations[at].answered)
            .min()
            .unwrap_or(u64::MAX);
        let next = (0..operations.len())
            .rev()
            .filter(open)
            .filter(|at| operations[*at].called < deadline);
        for at in next {
            if let Some(value) = operations[at].action.apply(value) {
                stack.push((done | 1 << at, value));
            }
        }
    }
    let stuck: Vec<&Operation> = (0..operations.len())
        .filter(|at| furthest.1 & (1 << at) == 0)
        .map(|at| &operations[at])
        .take(6)
        .collect();
    Err(format!("not linearizable: stuck before {stuck:?}"))
}

fn mask(operations: &[Operation], wanted: impl Fn(&Operation) -> bool) -> u128 {
    let positions = operations.iter().enumerate();
    positions
        .filter(|(_, operation)| wanted(operation))
        .fold(0, |mask, (at, _)| mask | 1 << at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(called: u64, answered: u64, action: Action) -> Operation {
        Operation {
            called,
            answered: Some(answered),
            action,
        }
    }

    fn unknown(called: u64, action: Action) -> Operation {
        Operation {
            called,
            answered: None,
            action,
        }
    }

    #[test]
    fn a_stale_read_is_seen() {
        let history = [
            operation(1, 2, Action::Write(Some(1))),
            operation(3, 4, Action::Write(Some(2))),
            operation(5, 6, Action::Read(Some(1))),
        ];
        assert!(check(&history).is_err());
        assert!(check(&history[..2]).is_ok());
    }

    #[test]
    fn concurrent_operations_may_have_either_order() {
        let history = [
            operation(1, 6, Action::Write(Some(1))),
            operation(2, 5, Action::Write(Some(2))),
            operation(7, 8, Action::Read(Some(1))),
        ];
        assert!(check(&history).is_ok());
        let both = [
            history[0],
            history[1],
            history[2],
            operation(9, 10, Action::Read(Some(2))),
        ];
        assert!(check(&both).is_err());
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_not_twice() {
        let write = unknown(1, Action::Write(Some(1)));
        let read = |at, value| operation(at, at + 1, Action::Read(value));
        assert!(check(&[write, read(2, None), read(4, Some(1))]).is_ok());
        assert!(check(&[write, read(2, None), read(4, None)]).is_ok());
        assert!(check(&[write, read(2, Some(1)), read(4, None)]).is_err());
    }

    #[test]
    fn a_lost_update_is_seen() {
        let history = [
            operation(1, 2, Action::Write(Some(1))),
            operation(3, 6, Action::Swap(Some(1), Some(2))),
            operation(4, 7, Action::Swap(Some(1), Some(3))),
        ];
        assert!(check(&history).is_err());
        let one = [
            history[0],
            history[1],
            unknown(4, Action::Swap(Some(1), Some(3))),
        ];
        assert!(check(&one).is_ok());
    }

    #[test]
    fn a_write_that_vanished_is_seen() {
        let history = [
            operation(1, 2, Action::Write(Some(1))),
            operation(3, 4, Action::Read(None)),
        ];
        assert!(check(&history).is_err());
    }
}
