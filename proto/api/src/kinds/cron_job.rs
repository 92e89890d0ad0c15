//! CronJob: jobs at the times of a schedule.

pub mod schedule;

use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, JobSpec};
use serde_json::json;

use super::table::{self, Printer};
use super::{job, workload};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::names;
use crate::parts;

/// See [`CronJob`].
pub struct CronJobKind;

/// The names of time zones, a line each: those of the tz database of 2025, links included.
const TIME_ZONES: &str = include_str!("cron_job/time_zones.txt");

/// A job is named after what made it and its time, which takes 11 characters of 63.
const MAX_NAME: usize = 52;

/// The warning about a zone in the schedule itself, which is not written there any more.
const ZONE_IN_SCHEDULE: &str = "CRON_TZ or TZ used in spec.spec.schedule is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";

/// Whether there is a time zone of the name.
fn is_time_zone(name: &str) -> bool {
    name == "UTC" || TIME_ZONES.lines().any(|known| known == name)
}

fn validate_schedule(
    spec: &CronJobSpec,
    old: Option<&CronJobSpec>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let text = spec.schedule.as_str();
    if text.is_empty() {
        errors.required(path, "");
        return;
    }
    if let Err(error) = schedule::parse(text) {
        errors.invalid(path, text, &error);
    }
    let had_zone = old.is_some_and(|old| old.schedule.contains("TZ"));
    match (had_zone, text.contains("TZ")) {
        (true, true) if spec.time_zone.is_some() => {
            let detail = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
            errors.invalid(path, text, detail);
        }
        (false, true) => {
            let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.invalid(path, text, detail);
        }
        _ => {}
    }
}

/// Whether a name could be that of a time zone.
fn is_zone_shaped(name: &str) -> bool {
    name.split('/').all(|part| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
        ![".", ".."].contains(&part)
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(allowed)
    })
}

fn validate_time_zone(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.invalid(path, name, "timeZone must be nil or non-empty string");
        return;
    }
    let unknown = format!("unknown time zone {name}");
    if !is_zone_shaped(name) {
        errors.invalid(path, name, &unknown);
        return;
    }
    if name.eq_ignore_ascii_case("Local") {
        let detail =
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(path, name, detail);
    }
    if name != "Local" && !is_time_zone(name) {
        errors.invalid(path, name, &unknown);
    }
}

fn validate_spec(
    spec: &CronJobSpec,
    old: Option<&CronJobSpec>,
    path: &Path,
    errors: &mut ErrorList,
) {
    const POLICIES: [&str; 3] = ["Allow", "Forbid", "Replace"];
    validate_schedule(spec, old, &path.child("schedule"), errors);
    if let Some(seconds) = spec
        .starting_deadline_seconds
        .filter(|seconds| *seconds < 0)
    {
        let path = path.child("startingDeadlineSeconds");
        errors.invalid(&path, seconds, names::NOT_NEGATIVE);
    }
    let is_new = old.is_none_or(|old| old.time_zone != spec.time_zone);
    if let Some(name) = spec.time_zone.as_ref().filter(|_| is_new) {
        validate_time_zone(name, &path.child("timeZone"), errors);
    }
    let policy_path = path.child("concurrencyPolicy");
    match spec.concurrency_policy.as_deref().unwrap_or_default() {
        "" => errors.required(&policy_path, ""),
        policy if POLICIES.contains(&policy) => {}
        policy => errors.not_supported(&policy_path, policy, &POLICIES),
    }
    let empty = JobSpec::default();
    let template = spec.job_template.spec.as_ref().unwrap_or(&empty);
    let template_path = path.child("jobTemplate").child("spec");
    job::validate_template(template, &template_path, errors);
    for (number, name) in [
        (
            spec.successful_jobs_history_limit,
            "successfulJobsHistoryLimit",
        ),
        (spec.failed_jobs_history_limit, "failedJobsHistoryLimit"),
    ] {
        workload::validate_not_negative(number, &path.child(name), errors);
    }
}

impl Kind for CronJobKind {
    type Object = CronJob;

    const INFO: StaticInfo = StaticInfo {
        group: "batch",
        version: "v1",
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const PARTS: Parts<CronJob> = parts!(CronJob: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut CronJob) {
        let spec = &mut object.spec;
        let policy = &mut spec.concurrency_policy;
        if policy.as_deref().unwrap_or_default().is_empty() {
            *policy = Some("Allow".to_owned());
        }
        spec.suspend.get_or_insert(false);
        spec.successful_jobs_history_limit.get_or_insert(3);
        spec.failed_jobs_history_limit.get_or_insert(1);
        let template = spec.job_template.spec.get_or_insert_default();
        job::default_policy(template);
        workload::default_template(&mut template.template);
    }

    fn validate(object: &CronJob, errors: &mut ErrorList) {
        validate_spec(&object.spec, None, &Path::new("spec"), errors);
        let name = object.metadata.name.as_deref().unwrap_or_default();
        if name.len() > MAX_NAME {
            let path = Path::new("metadata").child("name");
            errors.invalid(&path, name, &names::max_length(MAX_NAME));
        }
    }

    fn validate_update(new: &CronJob, old: &CronJob, errors: &mut ErrorList) {
        validate_spec(&new.spec, Some(&old.spec), &Path::new("spec"), errors);
    }

    fn warnings(new: &CronJob, old: Option<&CronJob>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_none() {
            let used_in = "Pod names and hostnames";
            warnings.extend(workload::name_warning(&new.metadata, used_in));
        }
        let same = old.is_some_and(|old| old.metadata.generation == new.metadata.generation);
        if let Some(spec) = new.spec.job_template.spec.as_ref().filter(|_| !same) {
            let path = Path::new("spec").child("jobTemplate").child("spec");
            warnings.extend(job::spec_warnings(spec, &path));
        }
        if new.spec.schedule.contains("TZ") {
            warnings.push(ZONE_IN_SCHEDULE.to_owned());
        }
        warnings
    }

    fn printer() -> Printer<CronJob> {
        let doc = |field: &str| table::field_doc::<CronJobSpec>(field);
        let status = |field: &str| table::field_doc::<CronJobStatus>(field);
        let selector = table::field_doc::<JobSpec>("selector");
        let columns = [
            table::column("Schedule", "string", doc("schedule"), 0),
            table::column("Timezone", "string", doc("timeZone"), 0),
            table::column("Suspend", "boolean", doc("suspend"), 0),
            table::column("Active", "integer", status("active"), 0),
            table::column("Last Schedule", "string", status("lastScheduleTime"), 0),
        ];
        Printer::<CronJob>::named()
            .columns(columns, |object, now| {
                let (spec, status) = (&object.spec, object.status.as_ref());
                let last = status.and_then(|status| status.last_schedule_time.as_ref());
                let active = status.and_then(|status| status.active.as_ref());
                let last = match last {
                    None => "<none>".to_owned(),
                    last => table::since(last, now),
                };
                let suspend = match spec.suspend {
                    None => "<unset>",
                    Some(true) => "True",
                    Some(false) => "False",
                };
                [
                    json!(spec.schedule),
                    json!(spec.time_zone.as_deref().unwrap_or("<none>")),
                    json!(suspend),
                    json!(active.map_or(0, Vec::len)),
                    json!(last),
                ]
            })
            .age()
            .columns(workload::template_columns(1), |object, _| {
                let spec = object.spec.job_template.spec.as_ref();
                workload::template_cells(spec.map(|spec| &spec.template))
            })
            .column(table::column("Selector", "string", selector, 1), |object| {
                let spec = object.spec.job_template.spec.as_ref();
                let selector = spec.and_then(|spec| spec.selector.as_ref());
                json!(workload::selector_or_none(selector))
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn cron_job(more: Value) -> CronJob {
        let container = json!({"name": "c", "image": "x"});
        let template = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
        let mut spec =
            json!({"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let metadata = json!({"name": "c", "namespace": "n", "generation": 1});
        let object = json!({"metadata": metadata, "spec": spec});
        let mut object = serde_json::from_value(object).unwrap();
        CronJobKind::default(&mut object);
        object
    }

    fn refused(more: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        CronJobKind::validate(&cron_job(more), &mut errors);
        errors.told()
    }

    #[test]
    fn what_is_left_out_is_run_and_kept_a_while() {
        let spec = serde_json::to_value(cron_job(json!({})).spec).unwrap();
        assert_eq!(spec["concurrencyPolicy"], "Allow");
        assert_eq!(spec["suspend"], json!(false));
        assert_eq!(spec["successfulJobsHistoryLimit"], json!(3));
        assert_eq!(spec["failedJobsHistoryLimit"], json!(1));
        // What a job leaves out is filled in when it is made.
        assert_eq!(
            spec.pointer("/jobTemplate/spec/backoffLimit"),
            None,
            "{spec}"
        );
        assert_eq!(refused(json!({})), [""; 0]);
    }

    #[test]
    fn a_time_zone_is_one_that_is_known() {
        let zone = |name: &str| refused(json!({"timeZone": name}));
        for known in ["UTC", "Etc/UTC", "Europe/Berlin", "US/Eastern", "GMT+0"] {
            assert_eq!(zone(known), [""; 0], "{known}");
        }
        let unknown = |name: &str| {
            format!("spec.timeZone: Invalid value: {name:?}: unknown time zone {name}")
        };
        for name in [
            "Mars/Base",
            "europe/berlin",
            "../etc",
            "a//b",
            "/UTC",
            "a b",
        ] {
            assert_eq!(zone(name), [unknown(name)]);
        }
        let explicit = |name: &str| {
            format!(
                "spec.timeZone: Invalid value: {name:?}: timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
            )
        };
        assert_eq!(zone("Local"), [explicit("Local")]);
        assert_eq!(zone("local"), [explicit("local"), unknown("local")]);
        assert_eq!(
            zone(""),
            ["spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"]
        );
        // One that was good once stays.
        let old = cron_job(json!({"timeZone": "Mars/Base"}));
        let mut errors = ErrorList::default();
        CronJobKind::validate_update(&old, &old, &mut errors);
        assert_eq!(errors.told(), [""; 0]);
    }

    #[test]
    fn a_schedule_has_no_zone_of_its_own_unless_it_had_one() {
        let berlin = "TZ=Europe/Berlin 0 0 * * *";
        assert_eq!(
            refused(json!({"schedule": berlin})),
            [format!(
                "spec.schedule: Invalid value: {berlin:?}: cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            )]
        );
        let old = cron_job(json!({"schedule": berlin}));
        let new = cron_job(json!({"schedule": berlin, "timeZone": "UTC"}));
        let mut errors = ErrorList::default();
        CronJobKind::validate_update(&new, &old, &mut errors);
        assert_eq!(
            errors.told(),
            [format!(
                "spec.schedule: Invalid value: {berlin:?}: cannot use both timeZone field and TZ or CRON_TZ in schedule"
            )]
        );
        assert_eq!(CronJobKind::warnings(&old, Some(&old)), [ZONE_IN_SCHEDULE]);
    }

    #[test]
    fn names_leave_room_for_jobs_and_templates_select_nothing() {
        let mut long = cron_job(json!({}));
        long.metadata.name = Some("a".repeat(53));
        let mut errors = ErrorList::default();
        CronJobKind::validate(&long, &mut errors);
        assert_eq!(errors.told().len(), 1);
        assert!(errors.told()[0].ends_with(": must be no more than 52 characters"));
        let pod = json!({"containers": [{"name": "c", "image": "x"}]});
        let own = json!({
            "selector": {"matchLabels": {"a": "b"}}, "manualSelector": true,
            "template": {"spec": pod},
        });
        assert_eq!(
            refused(json!({
                "schedule": "", "concurrencyPolicy": "Foo", "failedJobsHistoryLimit": -1,
                "jobTemplate": {"spec": own},
            })),
            [
                "spec.schedule: Required value",
                "spec.concurrencyPolicy: Unsupported value: \"Foo\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
                "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
                "spec.jobTemplate.spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: `selector` will be auto-generated",
                "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
                "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }

    #[test]
    fn a_row_says_when_it_ran() {
        let mut object = cron_job(json!({"timeZone": "UTC"}));
        let row = |object: &CronJob| {
            let cells = CronJobKind::printer().row(object, 1_767_225_607_000_000_000);
            cells.get(1..6).map(<[Value]>::to_vec).unwrap_or_default()
        };
        assert_eq!(
            row(&object),
            [
                json!("* * * * *"),
                json!("UTC"),
                json!("False"),
                json!(0),
                json!("<none>")
            ]
        );
        let status = json!({"active": [{"name": "j"}], "lastScheduleTime": "2026-01-01T00:00:00Z"});
        object.status = serde_json::from_value(status).unwrap();
        let row = row(&object);
        assert_eq!(row.get(3..), Some(&[json!(1), json!("7s")][..]));
    }
}
