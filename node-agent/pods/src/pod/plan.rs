//! What a pod needs next: a pure function of what its containers are doing.

use super::record::{Record, Role, Stage};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start the container at this index, after its back-off when it ran before.
    Start(usize),
    /// All init containers are through.
    Initialised,
    /// All is over: sidecars that still run are to be stopped, since nothing is left that needs them.
    End { failed: bool },
}

enum After {
    Again,
    Done,
    Failed,
}

fn after(record: &Record) -> Option<After> {
    let Stage::Ended(ended) = &record.stage else {
        return None;
    };
    Some(match (record.role, ended.succeeded()) {
        (Role::Sidecar, _) => After::Again,
        // What it had to do is done, whatever would be done with a container that stays.
        (Role::Init, true) => After::Done,
        _ if record.again(ended) => After::Again,
        (_, true) => After::Done,
        (_, false) => After::Failed,
    })
}

/// The steps that are due. Init containers run one after the other; a sidecar lets the next begin once it has
/// started; the main containers run together; all is over when these are done, or when an init container failed for good.
pub(crate) fn plan(records: &[Record], initialised: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mains_over = records
        .iter()
        .filter(|record| record.role == Role::Main)
        .all(|record| matches!(after(record), Some(After::Done | After::Failed)));
    if mains_over && initialised {
        return over(records);
    }
    let mut through = true;
    for (index, record) in records.iter().enumerate() {
        let waiting = matches!(record.stage, Stage::Waiting { .. });
        match record.role {
            Role::Init if initialised => {}
            Role::Init | Role::Sidecar if !through => {}
            Role::Init => match after(record) {
                Some(After::Done) => {}
                Some(After::Failed) => return vec![Step::End { failed: true }],
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
                if waiting || after(record).is_some() {
                    steps.push(Step::Start(index));
                }
                through &=
                    initialised || matches!(record.stage, Stage::Running { started: true, .. });
            }
            Role::Main if !(through || initialised) => {}
            Role::Main => {
                if waiting || matches!(after(record), Some(After::Again)) {
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

fn over(records: &[Record]) -> Vec<Step> {
    let failed = records
        .iter()
        .filter(|record| record.role == Role::Main)
        .any(|record| matches!(&record.stage, Stage::Ended(ended) if !ended.succeeded()));
    vec![Step::End { failed }]
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{ended, record, running};
    use super::super::restart::{RestartPolicy, Restarts};
    use super::*;

    fn records(all: &[(Role, Stage)], policy: RestartPolicy) -> Vec<Record> {
        let make = |(index, (role, stage)): (usize, &(Role, Stage))| Record {
            restarts: Restarts::by(policy),
            ..record(&format!("c{index}"), *role, stage.clone())
        };
        all.iter().enumerate().map(make).collect()
    }

    #[test]
    fn init_containers_run_in_order() {
        use RestartPolicy::{Always, Never};
        use Role::{Init, Main};
        let idle = Stage::idle;
        let due = |all: &[(Role, Stage)], policy| plan(&records(all, policy), false);
        assert_eq!(
            due(&[(Init, idle()), (Init, idle()), (Main, idle())], Always),
            [Step::Start(0)]
        );
        assert_eq!(
            due(
                &[(Init, running(true)), (Init, idle()), (Main, idle())],
                Always
            ),
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
                plan(&records(&[(Role::Main, ended(code))], policy), true),
                steps,
                "{policy:?} {code}"
            );
        }
        let mixed = [(Role::Main, ended(0)), (Role::Main, running(true))];
        assert_eq!(plan(&records(&mixed, Never), true), []);
    }

    #[test]
    fn each_container_by_its_own_policy() {
        use RestartPolicy::{Always, Never};
        let mut two = records(&[(Role::Main, ended(1)), (Role::Main, ended(1))], Never);
        assert_eq!(plan(&two, true), [Step::End { failed: true }]);
        two[0].changed = true;
        assert_eq!(plan(&two, true), [Step::Start(0)]);
        two[0].changed = false;
        two[1].restarts = Restarts::by(Always);
        assert_eq!(plan(&two, true), [Step::Start(1)]);
        let mut init = records(
            &[(Role::Init, ended(0)), (Role::Main, Stage::idle())],
            Never,
        );
        init[0].restarts = Restarts::by(Always);
        assert_eq!(plan(&init, false), [Step::Initialised, Step::Start(1)]);
    }

    #[test]
    fn sidecars_start_first_and_hold_up_no_end() {
        use Role::{Init, Main, Sidecar};
        let not_yet = running(false);
        let due = |all: &[(Role, Stage)], initialised| {
            plan(&records(all, RestartPolicy::Never), initialised)
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
                    (Sidecar, running(true)),
                    (Init, Stage::idle()),
                    (Main, Stage::idle())
                ],
                false
            ),
            [Step::Start(1)]
        );
        assert_eq!(
            due(&[(Sidecar, ended(1)), (Main, running(true))], true),
            [Step::Start(0)]
        );
        let two = [
            (Sidecar, running(true)),
            (Sidecar, running(true)),
            (Main, ended(0)),
        ];
        assert_eq!(due(&two, true), [Step::End { failed: false }]);
        assert_eq!(
            due(&[(Sidecar, ended(0)), (Main, ended(0))], true),
            [Step::End { failed: false }]
        );
        assert_eq!(
            due(
                &[
                    (Sidecar, running(true)),
                    (Init, ended(1)),
                    (Main, Stage::idle())
                ],
                false
            ),
            [Step::End { failed: true }]
        );
    }
}
