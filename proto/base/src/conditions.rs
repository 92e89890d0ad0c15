//! Conditions of a status in the form that all kinds share: what they must say, and how one takes the place of what it was.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::field::{ErrorList, Path};
use crate::names;

const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
const LONGEST_REASON: usize = 1 << 10;
/// The longest message of a condition, in bytes.
pub const LONGEST_MESSAGE: usize = 32 << 10;
const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
const BELOW_ZERO: &str = "must be greater than or equal to zero";
/// Go's zero time, in seconds of Unix time: what is read where nothing is given.
const NO_TIME: i64 = -62_135_596_800;

fn is_reason(text: &str) -> bool {
    let last = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(last)
        && bytes
            .iter()
            .all(|byte| last(byte) || matches!(byte, b',' | b':'))
}

/// Checks the conditions of a status.
pub fn validate(conditions: Option<&[Condition]>, path: &Path, errors: &mut ErrorList) {
    let mut known = HashSet::new();
    for (index, condition) in conditions.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let type_ = condition.type_.as_str();
        if !known.insert(type_) {
            errors.duplicate(&path.child("type"), type_);
        }
        errors.invalid_each(&path.child("type"), type_, names::qualified_name(type_));
        if !STATUSES.contains(&condition.status.as_str()) {
            errors.not_supported(&path.child("status"), &condition.status, &STATUSES);
        }
        if let Some(number) = condition.observed_generation.filter(|number| *number < 0) {
            errors.invalid(&path.child("observedGeneration"), number, BELOW_ZERO);
        }
        if condition.last_transition_time.0.as_second() == NO_TIME {
            errors.required(&path.child("lastTransitionTime"), "");
        }
        let reason = path.child("reason");
        match condition.reason.as_str() {
            "" => errors.required(&reason, ""),
            text => {
                if !is_reason(text) {
                    errors.invalid(&reason, text, REASON);
                }
                if text.len() > LONGEST_REASON {
                    errors.too_long(&reason, LONGEST_REASON);
                }
            }
        }
        if condition.message.len() > LONGEST_MESSAGE {
            errors.too_long(&path.child("message"), LONGEST_MESSAGE);
        }
    }
}

/// The condition of a type.
pub fn find<'a>(conditions: Option<&'a [Condition]>, type_: &str) -> Option<&'a Condition> {
    let mut conditions = conditions.into_iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

/// Puts a condition in the place of the one of its type, or behind the others. The time since when it holds stays while its
/// status does.
pub fn set(conditions: &mut Option<Vec<Condition>>, mut condition: Condition) {
    let all = conditions.get_or_insert_default();
    match all.iter_mut().find(|known| known.type_ == condition.type_) {
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time = known.last_transition_time.clone();
            }
            *known = condition;
        }
        None => all.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn condition(type_: &str, status: &str, reason: &str, second: i64) -> Condition {
        let time = k8s_openapi::jiff::Timestamp::from_second(second).expect("in range");
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            last_transition_time: Time(time),
            message: String::new(),
            observed_generation: None,
        }
    }

    #[test]
    fn everything_wrong_with_a_condition_is_told() {
        let mut wrong = condition("a b", "Maybe", "1", NO_TIME);
        wrong.observed_generation = Some(-1);
        wrong.message = "x".repeat(LONGEST_MESSAGE + 1);
        let good = condition("Good", "Unknown", "ReasonA,ReasonB", 1);
        let nameless = condition("Good", "True", "", 1);
        let all = [good.clone(), wrong, nameless];
        let mut errors = ErrorList::default();
        validate(Some(&all), &Path::new("conditions"), &mut errors);
        let told = errors.told();
        let fields: Vec<&str> = told
            .iter()
            .filter_map(|error| error.split(": ").next())
            .collect();
        assert_eq!(
            fields,
            [
                "conditions[1].type",
                "conditions[1].status",
                "conditions[1].observedGeneration",
                "conditions[1].lastTransitionTime",
                "conditions[1].reason",
                "conditions[1].message",
                "conditions[2].type",
                "conditions[2].reason",
            ]
        );
        let mut errors = ErrorList::default();
        validate(Some(&[good]), &Path::new("conditions"), &mut errors);
        assert!(errors.is_empty(), "{:?}", errors.told());
    }

    #[test]
    fn a_condition_takes_the_place_of_what_it_was() {
        let mut all = None;
        set(&mut all, condition("A", "True", "X", 1));
        set(&mut all, condition("B", "True", "X", 1));
        set(&mut all, condition("A", "True", "Y", 2));
        let told = |all: &Option<Vec<Condition>>| {
            let a = find(all.as_deref(), "A").expect("it is there");
            (a.reason.clone(), a.last_transition_time.0.as_second())
        };
        assert_eq!(told(&all), ("Y".to_owned(), 1));
        set(&mut all, condition("A", "False", "Y", 3));
        assert_eq!(told(&all), ("Y".to_owned(), 3));
        assert_eq!(all.map(|all| all.len()), Some(2));
    }
}
