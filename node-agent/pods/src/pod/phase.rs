//! The phase that a pod's containers make: a kubelet's `getPhase`.

use super::record::{Record, Role, Stage};

/// What counts of a container.
enum Life {
    /// `started`: its startup probe is through.
    Running { started: bool },
    /// It ended, and may be about to begin again.
    Stopped { code: i32, again: bool },
    /// It never ran.
    Waiting,
}

impl Life {
    fn of(record: &Record) -> Self {
        match (&record.stage, &record.last) {
            (Stage::Running { started, .. }, _) => Self::Running { started: *started },
            (Stage::Ended(ended), _) | (_, Some(ended)) => Self::Stopped {
                code: ended.exit.code,
                again: record.again(ended),
            },
            _ => Self::Waiting,
        }
    }
}

/// Whether a container of the pod, not one that initialises it, runs or ever ran.
pub(crate) fn has_begun(records: &[Record]) -> bool {
    records
        .iter()
        .any(|record| record.role == Role::Main && !matches!(Life::of(record), Life::Waiting))
}

/// The phase, were there nothing but the containers: one that has not begun makes the pod wait whatever became of the others,
/// an init container that failed for good makes it fail, and a sidecar's end counts for nothing.
pub(crate) fn of_containers(records: &[Record]) -> &'static str {
    let begun = has_begun(records);
    let (mut uninitialised, mut waiting, mut running) = (false, false, false);
    let (mut stopped, mut restarting, mut failed) = (false, false, false);
    for record in records {
        match (record.role, Life::of(record)) {
            (Role::Init, Life::Stopped { code, again: false }) if code != 0 => return "Failed",
            (Role::Init, Life::Stopped { .. }) => {}
            (Role::Init, _) => uninitialised = true,
            (Role::Sidecar, Life::Running { started }) => {
                // One that begins again does not take back what has begun behind it.
                uninitialised |= !started && !begun;
                running = true;
            }
            (Role::Sidecar, Life::Stopped { .. }) => {}
            (Role::Sidecar | Role::Main, Life::Waiting) => waiting = true,
            (Role::Main, Life::Running { .. }) => running = true,
            (Role::Main, Life::Stopped { code, again }) => {
                stopped = true;
                restarting |= again;
                failed |= code != 0;
            }
        }
    }
    match (uninitialised || waiting, running || restarting) {
        (true, _) => "Pending",
        (false, true) => "Running",
        (false, false) if !stopped => "Pending",
        (false, false) if failed => "Failed",
        (false, false) => "Succeeded",
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{ended, idle, record, running, starting};
    use super::super::restart::RestartPolicy::{self, Always, Never, OnFailure};
    use super::super::restart::Restarts;
    use super::*;

    /// A container that ended with this code and is not started yet.
    fn backing_off(role: Role, code: i32) -> Record {
        let mut waiting = record("c", role, idle());
        let Stage::Ended(last) = ended(code) else {
            unreachable!("it ended");
        };
        waiting.last = Some(last);
        waiting
    }

    #[test]
    fn every_branch() {
        use Role::{Init, Main, Sidecar};
        let of = |role, stage| record("c", role, stage);
        let rows: Vec<(&str, RestartPolicy, Vec<Record>, &str)> = vec![
            (
                "nothing has begun",
                Always,
                vec![of(Main, idle())],
                "Pending",
            ),
            (
                "it is being created",
                Always,
                vec![of(Main, starting())],
                "Pending",
            ),
            ("it runs", Always, vec![of(Main, running(true))], "Running"),
            (
                "one of two has not begun",
                Always,
                vec![of(Main, running(true)), of(Main, idle())],
                "Pending",
            ),
            (
                "one of two has failed, the other has not begun",
                Never,
                vec![of(Main, ended(1)), of(Main, idle())],
                "Pending",
            ),
            (
                "one of two has failed, the other runs",
                Never,
                vec![of(Main, ended(1)), of(Main, running(true))],
                "Running",
            ),
            (
                "both are through",
                Never,
                vec![of(Main, ended(0)), of(Main, ended(0))],
                "Succeeded",
            ),
            (
                "one of two has failed",
                Never,
                vec![of(Main, ended(0)), of(Main, ended(1))],
                "Failed",
            ),
            (
                "it will begin again",
                Always,
                vec![of(Main, ended(0))],
                "Running",
            ),
            (
                "it waits to begin again",
                Always,
                vec![backing_off(Main, 1)],
                "Running",
            ),
            (
                "it failed and begins again",
                OnFailure,
                vec![of(Main, ended(1))],
                "Running",
            ),
            (
                "one begins again, one is through",
                OnFailure,
                vec![of(Main, ended(0)), backing_off(Main, 1)],
                "Running",
            ),
            (
                "it is through",
                OnFailure,
                vec![of(Main, ended(0))],
                "Succeeded",
            ),
            (
                "an init container runs",
                Always,
                vec![of(Init, running(true)), of(Main, idle())],
                "Pending",
            ),
            (
                "an init container failed and begins again",
                Always,
                vec![backing_off(Init, 1), of(Main, idle())],
                "Pending",
            ),
            (
                "an init container failed for good",
                Never,
                vec![of(Init, ended(1)), of(Main, idle())],
                "Failed",
            ),
            (
                "the first is through, the second has not begun",
                Never,
                vec![of(Init, ended(0)), of(Init, idle()), of(Main, idle())],
                "Pending",
            ),
            (
                "initialised",
                Never,
                vec![of(Init, ended(0)), of(Main, running(true))],
                "Running",
            ),
            (
                "a sidecar has not started yet",
                Always,
                vec![of(Sidecar, running(false)), of(Main, idle())],
                "Pending",
            ),
            (
                "a sidecar begins again beside what runs",
                Always,
                vec![of(Sidecar, running(false)), of(Main, running(true))],
                "Running",
            ),
            (
                "a sidecar crashes beside what runs",
                Always,
                vec![backing_off(Sidecar, 1), of(Main, running(true))],
                "Running",
            ),
            (
                "a sidecar crashes before anything runs",
                Always,
                vec![backing_off(Sidecar, 1), of(Main, idle())],
                "Pending",
            ),
            (
                "the containers are through, a sidecar still runs",
                Never,
                vec![of(Sidecar, running(true)), of(Main, ended(0))],
                "Running",
            ),
            (
                "a sidecar was killed at the end",
                Never,
                vec![of(Sidecar, ended(137)), of(Main, ended(0))],
                "Succeeded",
            ),
        ];
        for (what, policy, mut records, phase) in rows {
            for record in &mut records {
                record.restarts = Restarts::by(policy);
            }
            assert_eq!(of_containers(&records), phase, "{what}");
        }
    }
}
