//! What a pod needs next: a pure function of what its containers are doing.

use super::record::{Record, Role, Stage};

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn of(written: Option<&str>) -> Self {
        match written {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start the container at this index, after its back-off when it ran before.
    Start(usize),
    /// Stop a sidecar: nothing is left that needs it.
    StopSidecar(usize),
    /// All init containers are through.
    Initialised,
    /// All is over.
    End { failed: bool },
}

enum After {
    Again,
    Done,
    Failed,
}

fn after(record: &Record, policy: RestartPolicy) -> Option<After> {
    let Stage::Ended(ended) = &record.stage else {
        return None;
    };
    Some(match (record.role, policy, ended.succeeded()) {
        (Role::Sidecar, ..) | (Role::Main, RestartPolicy::Always, _) => After::Again,
        (_, _, true) => After::Done,
        (_, RestartPolicy::Never, false) => After::Failed,
        (_, _, false) => After::Again,
    })
}

/// The steps that are due. Init containers run one after the other; a sidecar lets the next begin once it has
/// started; the main containers run together; sidecars are stopped, last first, when all of those are done.
pub(crate) fn plan(records: &[Record], policy: RestartPolicy, initialised: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mains_over = records
        .iter()
        .filter(|record| record.role == Role::Main)
        .all(|record| matches!(after(record, policy), Some(After::Done | After::Failed)));
    if mains_over && initialised {
        return over(records);
    }
    let mut through = true;
    for (index, record) in records.iter().enumerate() {
        let waiting = matches!(record.stage, Stage::Waiting { .. });
        match record.role {
            Role::Init if initialised => {}
            Role::Init | Role::Sidecar if !through => {}
            Role::Init => match after(record, policy) {
                Some(After::Done) => {}
                Some(After::Failed) => return fail(records),
                Some(After::Again) => {
                    steps.push(Step::Start(index));
                    through = false;
                }
                None => {
                    if waiting {
                        steps.push(Step::Start(index));
                    }
                    through = false;
                }
            },
            Role::Sidecar => {
                if waiting || after(record, policy).is_some() {
                    steps.push(Step::Start(index));
                }
                through &=
                    initialised || matches!(record.stage, Stage::Running { started: true, .. });
            }
            Role::Main if !(through || initialised) => {}
            Role::Main => {
                if waiting || matches!(after(record, policy), Some(After::Again)) {
                    steps.push(Step::Start(index));
                }
            }
        }
    }
    if through && !initialised {
        steps.insert(0, Step::Initialised);
    }
    steps
}

/// An init container failed for good: whatever sidecars run are stopped, then the pod has failed.
fn fail(records: &[Record]) -> Vec<Step> {
    match last_running_sidecar(records) {
        Some(index) => vec![Step::StopSidecar(index)],
        None => vec![Step::End { failed: true }],
    }
}

fn over(records: &[Record]) -> Vec<Step> {
    if let Some(index) = last_running_sidecar(records) {
        return vec![Step::StopSidecar(index)];
    }
    let failed = records
        .iter()
        .filter(|record| record.role == Role::Main)
        .any(|record| matches!(&record.stage, Stage::Ended(ended) if !ended.succeeded()));
    vec![Step::End { failed }]
}

fn last_running_sidecar(records: &[Record]) -> Option<usize> {
    records.iter().rposition(|record| {
        record.role == Role::Sidecar
            && matches!(record.stage, Stage::Running { .. } | Stage::Starting { .. })
    })
}

#[cfg(test)]
mod tests {
    use gantry_runtime::ContainerExit;

    use super::super::record::Ended;
    use super::*;

    fn ended(code: i32) -> Stage {
        let exit = ContainerExit {
            code,
            signal: None,
            oom_killed: false,
            started_at: 0,
            finished_at: 1,
            message: String::new(),
        };
        Stage::Ended(Ended::new(0, exit))
    }

    fn running() -> Stage {
        Stage::Running {
            since: 0,
            started: true,
            ready: true,
        }
    }

    fn records(all: &[(Role, Stage)]) -> Vec<Record> {
        let record = |(index, (role, stage)): (usize, &(Role, Stage))| Record {
            name: format!("c{index}"),
            role: *role,
            stage: stage.clone(),
            attempt: None,
            last: None,
            image: String::new(),
            image_id: String::new(),
        };
        all.iter().enumerate().map(record).collect()
    }

    #[test]
    fn init_containers_run_in_order() {
        use RestartPolicy::{Always, Never};
        use Role::{Init, Main};
        let idle = Stage::idle;
        let due = |all: &[(Role, Stage)], policy| plan(&records(all), policy, false);
        assert_eq!(
            due(&[(Init, idle()), (Init, idle()), (Main, idle())], Always),
            [Step::Start(0)]
        );
        assert_eq!(
            due(&[(Init, running()), (Init, idle()), (Main, idle())], Always),
            []
        );
        assert_eq!(
            due(&[(Init, ended(0)), (Init, idle()), (Main, idle())], Always),
            [Step::Start(1)]
        );
        assert_eq!(
            due(&[(Init, ended(1)), (Main, idle())], Always),
            [Step::Start(0)]
        );
        assert_eq!(
            due(&[(Init, ended(1)), (Main, idle())], Never),
            [Step::End { failed: true }]
        );
        assert_eq!(
            due(&[(Init, ended(0)), (Main, idle())], Never),
            [Step::Initialised, Step::Start(1)]
        );
    }

    #[test]
    fn restart_policies() {
        use RestartPolicy::{Always, Never, OnFailure};
        let rows = [
            (Always, 0, vec![Step::Start(0)]),
            (Always, 1, vec![Step::Start(0)]),
            (OnFailure, 0, vec![Step::End { failed: false }]),
            (OnFailure, 1, vec![Step::Start(0)]),
            (Never, 0, vec![Step::End { failed: false }]),
            (Never, 1, vec![Step::End { failed: true }]),
        ];
        for (policy, code, steps) in rows {
            assert_eq!(
                plan(&records(&[(Role::Main, ended(code))]), policy, true),
                steps,
                "{policy:?} {code}"
            );
        }
        let mixed = records(&[(Role::Main, ended(0)), (Role::Main, running())]);
        assert_eq!(plan(&mixed, Never, true), []);
    }

    #[test]
    fn sidecars_start_first_and_stop_last() {
        use Role::{Init, Main, Sidecar};
        let not_yet = Stage::Running {
            since: 0,
            started: false,
            ready: false,
        };
        let due = |all: &[(Role, Stage)], initialised| {
            plan(&records(all), RestartPolicy::Never, initialised)
        };
        assert_eq!(
            due(
                &[
                    (Sidecar, not_yet),
                    (Init, Stage::idle()),
                    (Main, Stage::idle())
                ],
                false
            ),
            []
        );
        assert_eq!(
            due(
                &[
                    (Sidecar, running()),
                    (Init, Stage::idle()),
                    (Main, Stage::idle())
                ],
                false
            ),
            [Step::Start(1)]
        );
        assert_eq!(
            due(&[(Sidecar, ended(1)), (Main, running())], true),
            [Step::Start(0)]
        );
        let two = [(Sidecar, running()), (Sidecar, running()), (Main, ended(0))];
        assert_eq!(due(&two, true), [Step::StopSidecar(1)]);
        assert_eq!(
            due(&[(Sidecar, ended(0)), (Main, ended(0))], true),
            [Step::End { failed: false }]
        );
        assert_eq!(
            due(
                &[
                    (Sidecar, running()),
                    (Init, ended(1)),
                    (Main, Stage::idle())
                ],
                false
            ),
            [Step::StopSidecar(0)]
        );
    }
}
