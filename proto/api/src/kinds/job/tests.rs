use serde_json::Value;

use super::*;

const UID: &str = "6f8a7b5e-0000-4000-8000-000000000001";

fn merged(base: Value, more: Value) -> Value {
    match (base, more) {
        (Value::Object(mut base), Value::Object(more)) => {
            base.extend(more);
            Value::Object(base)
        }
        (base, _) => base,
    }
}

/// A job that somebody sends.
fn sent(more: Value) -> Job {
    let container = json!({"name": "c", "image": "x"});
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
    let spec = merged(json!({"template": template}), more);
    let metadata = json!({"name": "j", "namespace": "n", "uid": UID, "generation": 1});
    let mut job = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
    JobKind::default(&mut job);
    job
}

/// A job as it is created.
fn created(more: Value) -> Job {
    let mut job = sent(more);
    crate::typed::prepare_create::<JobKind>(&mut job);
    job
}

fn refused(more: Value) -> Vec<String> {
    let mut errors = ErrorList::default();
    JobKind::validate(&created(more), &mut errors);
    errors.told()
}

/// What is told of a change of a job that is as it was created, or has the status.
fn changed(old: Value, status: Value, new: Value) -> Vec<String> {
    let mut old = created(old);
    old.status = serde_json::from_value(status).unwrap();
    let mut new = sent(new);
    // What the first creation has made of the labels comes back with the object.
    let (now, before) = (new.spec.as_mut().unwrap(), old.spec.as_ref().unwrap());
    let metadata = now.template.metadata.get_or_insert_default();
    if metadata.labels.is_none() {
        let given = before.template.metadata.as_ref().unwrap();
        metadata.labels.clone_from(&given.labels);
    }
    now.selector.clone_from(&before.selector);
    let mut errors = ErrorList::default();
    update::validate(&new, &old, &mut errors);
    errors.told()
}

fn progressed(spec: Value, before: Value, after: Value) -> Vec<String> {
    let job = |status: Value| {
        let mut job = created(spec.clone());
        job.status = serde_json::from_value(status).unwrap();
        job
    };
    let mut errors = ErrorList::default();
    JobKind::validate_status_update(&job(after), &job(before), &mut errors);
    errors.told()
}

fn conditions(types: &[&str]) -> Value {
    let condition = |name: &&str| json!({"type": name, "status": "True"});
    Value::Array(types.iter().map(condition).collect())
}

#[test]
fn how_often_a_job_runs_follows_from_what_it_says() {
    let numbers = |more: Value| {
        let spec = sent(more).spec.unwrap();
        (spec.parallelism, spec.completions, spec.backoff_limit)
    };
    assert_eq!(numbers(json!({})), (Some(1), Some(1), Some(6)));
    assert_eq!(
        numbers(json!({"parallelism": 3})),
        (Some(3), None, Some(6)),
        "a queue of work"
    );
    let each = json!({"completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    assert_eq!(numbers(each), (Some(1), Some(3), Some(i32::MAX)));
    let rules = json!([{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]);
    let spec = sent(json!({"podFailurePolicy": {"rules": rules}})).spec;
    let spec = serde_json::to_value(spec).unwrap();
    assert_eq!(spec["podReplacementPolicy"], "Failed");
    let pattern = "/podFailurePolicy/rules/0/onPodConditions/0/status";
    assert_eq!(spec.pointer(pattern), Some(&json!("True")));
}

#[test]
fn a_job_selects_its_own_pods() {
    let labels = |job: &Job| {
        let template = &job.spec.as_ref().unwrap().template;
        workload::labels_of(template).cloned().unwrap_or_default()
    };
    let job = created(json!({}));
    let given = json!({
        "batch.kubernetes.io/controller-uid": UID, "batch.kubernetes.io/job-name": "j",
        "controller-uid": UID, "job-name": "j",
    });
    assert_eq!(json!(labels(&job)), given);
    assert_eq!(json!(job.metadata.labels), given);
    let selector = serde_json::to_value(&job.spec.as_ref().unwrap().selector).unwrap();
    assert_eq!(
        selector,
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": UID}})
    );
    assert_eq!(refused(json!({})), [""; 0]);

    let own = json!({"matchLabels": {"a": "b"}});
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod});
    let manual = json!({"manualSelector": true, "selector": own, "template": template});
    let job = created(manual.clone());
    assert_eq!(json!(labels(&job)), json!({"a": "b"}));
    assert_eq!(json!(job.metadata.labels), json!({"a": "b"}));
    assert_eq!(refused(manual), [""; 0]);

    let told = refused(json!({"selector": own}));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].ends_with("`selector` not auto-generated"));
    assert!(told[1].ends_with("`selector` does not match template `labels`"));
    let other = json!({"metadata": {"labels": {"job-name": "k"}}, "spec": pod});
    let told = refused(json!({"template": other}));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("spec.template.metadata.labels[job-name]: Invalid value: {"));
    assert!(told[0].ends_with("}: must be 'j'"));
}

#[test]
fn numbers_modes_and_policies_fit_each_other() {
    let least = "must be greater than or equal to 0";
    assert_eq!(
        refused(json!({
            "completions": -1, "parallelism": -2, "backoffLimit": -3, "activeDeadlineSeconds": -4,
            "ttlSecondsAfterFinished": -5,
        })),
        [
            format!("spec.parallelism: Invalid value: -2: {least}"),
            format!("spec.completions: Invalid value: -1: {least}"),
            format!("spec.activeDeadlineSeconds: Invalid value: -4: {least}"),
            format!("spec.backoffLimit: Invalid value: -3: {least}"),
            format!("spec.ttlSecondsAfterFinished: Invalid value: -5: {least}"),
        ]
    );
    assert_eq!(
        refused(json!({"completionMode": "Foo", "managedBy": "me"})),
        [
            "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            "spec.completionMode: Unsupported value: \"Foo\": supported values: \"NonIndexed\", \"Indexed\"",
        ]
    );
    assert_eq!(
        refused(
            json!({"maxFailedIndexes": 1, "successPolicy": {"rules": [{"succeededCount": 1}]}})
        ),
        [
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
            "spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode",
            "spec.successPolicy: Invalid value: {\"Rules\":[{\"SucceededIndexes\":null,\"SucceededCount\":1}]}: requires indexed completion mode",
        ]
    );
    let indexed = |more: Value| {
        refused(merged(
            json!({"completionMode": "Indexed", "completions": 3}),
            more,
        ))
    };
    assert_eq!(indexed(json!({})), [""; 0]);
    let rules = json!([{"succeededIndexes": "0,2", "succeededCount": 3}]);
    assert_eq!(
        indexed(json!({"successPolicy": {"rules": rules}})),
        [
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)"
        ]
    );
    assert_eq!(
        indexed(json!({"completions": 200_000, "parallelism": 20_000, "backoffLimitPerIndex": 1})),
        [
            "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
            "spec.parallelism: Invalid value: 20000: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index",
        ]
    );
}

#[test]
fn failures_count_by_rules_that_say_one_thing_each() {
    let policy = |rule: Value| refused(json!({"podFailurePolicy": {"rules": [rule]}}));
    let path = "spec.podFailurePolicy.rules[0]";
    let codes = json!({"operator": "In", "values": [3, 0, 3], "containerName": "d"});
    assert_eq!(
        policy(json!({"action": "Foo", "onExitCodes": codes})),
        [
            format!(
                "{path}.action: Unsupported value: \"Foo\": supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""
            ),
            format!(
                "{path}.onExitCodes.containerName: Invalid value: \"d\": must be one of the container or initContainer names in the pod template"
            ),
            format!(
                "{path}.onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator"
            ),
            format!("{path}.onExitCodes.values[2]: Duplicate value: 3"),
            format!("{path}.onExitCodes.values: Invalid value: [3,0,3]: must be ordered"),
        ]
    );
    assert_eq!(
        policy(json!({"action": ""})),
        [
            format!(
                "{path}.action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"
            ),
            format!(
                "{path}: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"
            ),
        ]
    );
    let codes = json!({"operator": "In", "values": [1]});
    assert_eq!(
        policy(json!({"action": "FailIndex", "onExitCodes": codes})),
        [format!(
            "{path}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"
        )]
    );
    let pod = json!({"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "x"}]});
    let rule = json!({"action": "FailJob", "onExitCodes": codes});
    let restarted = json!({"podFailurePolicy": {"rules": [rule]}, "template": {"spec": pod}});
    assert_eq!(
        refused(restarted),
        [
            "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified"
        ]
    );
}

#[test]
fn names_leave_room_for_the_indexes_of_pods() {
    let mut job = created(json!({"completionMode": "Indexed", "completions": 11}));
    job.metadata.name = Some("a".repeat(61));
    let mut errors = ErrorList::default();
    validation::validate(&job, false, &mut errors);
    let told = errors.told();
    let last = told.last().unwrap();
    assert!(
        last.ends_with(&format!(
            "will not able to create pod with invalid DNS label: {}-10",
            "a".repeat(61)
        )),
        "{last}"
    );
}

#[test]
fn a_job_changes_what_it_asks_of_nodes_and_amounts_while_it_waits() {
    let pod = |more: Value, container: Value| {
        let container = merged(json!({"name": "c", "image": "x"}), container);
        let spec = json!({"restartPolicy": "Never", "containers": [container]});
        json!({"spec": merged(spec, more)})
    };
    let waits = |template: Value| json!({"suspend": true, "template": template});
    let plain = || waits(pod(json!({}), json!({})));
    let amounts = json!({"resources": {"requests": {"cpu": "1"}}});
    let more = json!({"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]});
    let other = waits(pod(more, amounts));
    assert_eq!(changed(plain(), json!({}), other.clone()), [""; 0]);
    let image = waits(pod(json!({}), json!({"image": "y"})));
    let told = changed(plain(), json!({}), image);
    assert_eq!(told.len(), 1, "{told:?}");
    let start = "spec.template.spec: Invalid value: {\"Volumes\":null,\"InitContainers\":null,\"Containers\":[{\"Name\":\"c\",\"Image\":\"y\",";
    assert!(told[0].starts_with(start), "{told:?}");
    assert!(told[0].ends_with(",\"SchedulingGroup\":null}: field is immutable"));
    // Nor while its pods run, or have run and it was not said that they are gone.
    let ran = json!({"startTime": "2026-01-01T00:00:00Z", "active": 1});
    let told = changed(plain(), ran, other.clone());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("spec.template: Invalid value: {\"labels\":{"));
    let stopped = json!({
        "startTime": "2026-01-01T00:00:00Z", "conditions": conditions(&["Suspended"])
    });
    assert_eq!(changed(plain(), stopped, other), [""; 0]);
}

#[test]
fn what_a_job_is_made_of_stays() {
    let runs = |more: Value| changed(json!({}), json!({}), more);
    assert_eq!(
        runs(json!({"backoffLimit": 2, "parallelism": 1, "completions": 1})),
        [""; 0]
    );
    assert_eq!(
        runs(json!({"completions": 4})),
        ["spec.completions: Invalid value: 4: field is immutable"]
    );
    assert_eq!(
        runs(json!({"managedBy": "a.b/c"})),
        ["spec.managedBy: Invalid value: \"a.b/c\": field is immutable"]
    );
    let indexed = |more: Value| merged(json!({"completionMode": "Indexed"}), more);
    let (old, both) = (
        indexed(json!({"completions": 3, "parallelism": 3})),
        indexed(json!({"completions": 5, "parallelism": 5})),
    );
    assert_eq!(changed(old.clone(), json!({}), both), [""; 0]);
    let one = indexed(json!({"completions": 5, "parallelism": 3}));
    assert_eq!(
        changed(old, json!({}), one),
        [
            "spec.completions: Invalid value: 5: can only be modified in tandem with spec.parallelism"
        ]
    );
}

#[test]
fn a_job_that_is_over_says_so_once_and_for_all() {
    let (start, end) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z");
    let running = || json!({"startTime": start, "active": 1, "succeeded": 1});
    let done = json!({
        "startTime": start, "completionTime": end, "succeeded": 2,
        "conditions": conditions(&["SuccessCriteriaMet", "Complete"]),
    });
    assert_eq!(progressed(json!({}), running(), done.clone()), [""; 0]);
    let hasty = json!({
        "startTime": start, "active": 1, "succeeded": 2, "conditions": conditions(&["Complete"])
    });
    assert_eq!(
        progressed(json!({}), running(), hasty),
        [
            "status.completionTime: Required value: completionTime is required for Complete jobs",
            "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            "status.active: Invalid value: 1: active>0 is invalid for finished job",
        ]
    );
    assert_eq!(
        progressed(json!({}), done.clone(), running()),
        [
            "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
            "status.succeeded: Invalid value: 1: cannot decrease the succeeded counter",
            "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
        ]
    );
    let failed = json!({"startTime": start, "succeeded": 1, "conditions": conditions(&["Failed"])});
    assert_eq!(
        progressed(json!({}), running(), failed),
        [
            "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition"
        ]
    );
    // What was wrong before holds up nothing else.
    let odd = json!({"startTime": start, "conditions": conditions(&["Failed"])});
    let counted = merged(odd.clone(), json!({"failed": 1}));
    assert_eq!(progressed(json!({}), odd, counted), [""; 0]);
}

#[test]
fn counts_and_indexes_of_a_status_make_sense() {
    let uids = json!({"succeeded": ["a"], "failed": ["a", ""]});
    assert_eq!(
        progressed(
            json!({}),
            json!({}),
            json!({"active": -1, "ready": 1, "uncountedTerminatedPods": uids})
        ),
        [
            "status.active: Invalid value: -1: must be greater than or equal to 0",
            "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
            "status.uncountedTerminatedPods.failed[1]: Invalid value: \"\": must not be empty",
            "status.ready: Invalid value: 1: cannot set more ready pods than active",
        ]
    );
    let spec = json!({"completionMode": "Indexed", "completions": 5, "backoffLimitPerIndex": 1});
    assert_eq!(
        progressed(
            spec,
            json!({}),
            json!({"completedIndexes": "1-3", "failedIndexes": "3,7"})
        ),
        [
            "status.failedIndexes: Invalid value: \"3,7\": error parsing failedIndexes: too large index: \"7\"",
            "status.failedIndexes: Invalid value: \"3,7\": failedIndexes and completedIndexes overlap at index: 3",
        ]
    );
}

#[test]
fn a_row_says_how_far_the_job_is() {
    let row = |status: Value| {
        let mut job = created(json!({"completions": 2}));
        job.status = serde_json::from_value(status).unwrap();
        let cells = JobKind::printer().row(&job, 1_767_225_607_000_000_000);
        cells.get(1..4).map(<[Value]>::to_vec).unwrap_or_default()
    };
    assert_eq!(row(json!({})), [json!("Running"), json!("0/2"), json!("")]);
    let start = "2026-01-01T00:00:00Z";
    let running = json!({"startTime": start, "succeeded": 1});
    assert_eq!(row(running), [json!("Running"), json!("1/2"), json!("7s")]);
    let done = json!({
        "startTime": start, "completionTime": "2026-01-01T00:00:05Z", "succeeded": 2,
        "conditions": conditions(&["Complete"]),
    });
    assert_eq!(row(done), [json!("Complete"), json!("2/2"), json!("5s")]);
    let header = JobKind::printer();
    let names: Vec<&str> = header.header().iter().map(|one| &*one.name).collect();
    assert_eq!(
        names,
        [
            "Name",
            "Status",
            "Completions",
            "Duration",
            "Age",
            "Containers",
            "Images",
            "Selector"
        ]
    );
}

#[test]
fn a_name_and_a_template_that_are_odd_are_told_of() {
    let mut job = created(json!({}));
    job.metadata.name = Some("a.b".to_owned());
    let told = JobKind::warnings(&job, None);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("metadata.name: this is used in Pod names and hostnames"));
    assert_eq!(JobKind::warnings(&job, Some(&job)), [""; 0]);
    assert_eq!(
        JobKind::selectable_fields(&job),
        [("status.successful", "0".to_owned())]
    );
}
