//! PriorityClass: what pods that name it are worth.

use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, StaticInfo};
use crate::meta;

/// See [`PriorityClass`].
pub struct PriorityClassKind;

/// The API group.
pub const GROUP: &str = "scheduling.k8s.io";
/// The resource.
pub const PLURAL: &str = "priorityclasses";
/// What a pod may do to others unless its class says otherwise.
pub const PREEMPTS: &str = "PreemptLowerPriority";

const POLICIES: [&str; 2] = [PREEMPTS, "Never"];
/// What classes of users may give at most; above are those of the system.
const HIGHEST: i32 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";

/// A class that every cluster has.
#[derive(Clone, Copy, Debug)]
pub struct SystemClass {
    /// Its name.
    pub name: &'static str,
    /// The priority it gives.
    pub value: i32,
    /// What it is for.
    pub description: &'static str,
}

/// The classes that every cluster has; no other name begins as theirs.
pub const SYSTEM: [SystemClass; 2] = [
    SystemClass {
        name: "system-node-critical",
        value: 2 * HIGHEST + 1_000,
        description: "Used for system critical pods that must not be moved from their current node.",
    },
    SystemClass {
        name: "system-cluster-critical",
        value: 2 * HIGHEST,
        description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    },
];

/// Why a class is none of the system's, whose name it has.
fn check_system(name: &str, value: i32, is_default: bool) -> Result<(), String> {
    let known = SYSTEM.iter().find(|class| class.name == name);
    match known.map(|class| class.value) {
        None => Err(format!("{name} is not a known system priority class")),
        Some(known) if known != value => {
            Err(format!("value of {name} PriorityClass must be {known}"))
        }
        Some(_) if is_default => Err(format!(
            "globalDefault of {name} PriorityClass must be false"
        )),
        Some(_) => Ok(()),
    }
}

impl Kind for PriorityClassKind {
    type Object = PriorityClass;

    const INFO: StaticInfo = StaticInfo {
        group: GROUP,
        version: "v1",
        kind: "PriorityClass",
        plural: PLURAL,
        singular: "priorityclass",
        short_names: &["pc"],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: true,
        create_on_update: false,
    };

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    fn default(object: &mut PriorityClass) {
        object
            .preemption_policy
            .get_or_insert_with(|| PREEMPTS.to_owned());
    }

    fn validate(object: &PriorityClass, errors: &mut ErrorList) {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let value = object.value.unwrap_or(0);
        if name.starts_with(SYSTEM_PREFIX) {
            let is_default = object.global_default == Some(true);
            if let Err(why) = check_system(name, value, is_default) {
                let detail = format!(
                    "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"
                );
                errors.forbidden(&Path::new("metadata").child("name"), &detail);
            }
        } else if value > HIGHEST {
            let detail = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errors.forbidden(&Path::new("value"), &detail);
        }
        let path = Path::new("preemptionPolicy");
        match object.preemption_policy.as_deref() {
            None => {}
            Some("") => errors.required(&path, ""),
            Some(policy) if POLICIES.contains(&policy) => {}
            Some(policy) => errors.not_supported(&path, policy, &POLICIES),
        }
    }

    fn validate_update(new: &PriorityClass, old: &PriorityClass, errors: &mut ErrorList) {
        if new.value.unwrap_or(0) != old.value.unwrap_or(0) {
            errors.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        let policy = &new.preemption_policy;
        if *policy != old.preemption_policy {
            errors.invalid(&Path::new("preemptionPolicy"), policy, meta::IMMUTABLE);
        }
    }

    fn printer() -> Printer<PriorityClass> {
        let column = |name, kind, field| {
            table::column(name, kind, table::field_doc::<PriorityClass>(field), 0)
        };
        Printer::<PriorityClass>::named()
            .column(column("Value", "integer", "value"), |object| {
                json!(object.value.unwrap_or(0))
            })
            .column(
                column("Global-Default", "boolean", "globalDefault"),
                |object| json!(object.global_default.unwrap_or(false)),
            )
            .age()
            .column(
                column("PreemptionPolicy", "string", "preemptionPolicy"),
                |object| json!(object.preemption_policy.as_deref().unwrap_or_default()),
            )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn class(name: &str, mut more: Value) -> PriorityClass {
        let named = json!({"name": name});
        if let Some(fields) = more.as_object_mut() {
            fields.insert("metadata".to_owned(), named);
        }
        let mut object = serde_json::from_value(more).unwrap();
        PriorityClassKind::default(&mut object);
        object
    }

    fn refused(object: &PriorityClass) -> Vec<String> {
        let mut errors = ErrorList::default();
        PriorityClassKind::validate(object, &mut errors);
        errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect()
    }

    #[test]
    fn names_and_numbers_of_the_system_are_its_own() {
        assert!(refused(&class("a", json!({"value": HIGHEST}))).is_empty());
        assert_eq!(
            refused(&class("a", json!({"value": HIGHEST + 1}))),
            ["value"]
        );
        assert_eq!(
            refused(&class("system-a", json!({"value": 1}))),
            ["metadata.name"]
        );
        for known in SYSTEM {
            assert!(refused(&class(known.name, json!({"value": known.value}))).is_empty());
            assert_eq!(refused(&class(known.name, json!({"value": 1}))).len(), 1);
            let default = json!({"value": known.value, "globalDefault": true});
            assert_eq!(refused(&class(known.name, default)).len(), 1);
        }
        let never = class("a", json!({"value": -5, "preemptionPolicy": "Never"}));
        assert!(refused(&never).is_empty());
        assert_eq!(
            refused(&class("a", json!({"preemptionPolicy": ""}))).len(),
            1
        );
    }

    #[test]
    fn what_it_gives_stays() {
        let (old, new) = (class("a", json!({"value": 5})), class("a", json!({})));
        let mut errors = ErrorList::default();
        PriorityClassKind::validate_update(&new, &old, &mut errors);
        assert_eq!(errors.0.len(), 1);
        let row = PriorityClassKind::printer().row(&old, 0);
        assert_eq!(
            row,
            [
                json!("a"),
                json!(5),
                json!(false),
                json!("<unknown>"),
                json!(PREEMPTS)
            ]
        );
    }
}
