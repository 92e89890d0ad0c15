//! LimitRange: what each container, pod or claim of a namespace may ask for, and what those get that ask for nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::pod_spec;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, StaticInfo};
use crate::names;
use crate::quantity::Quantity;

/// See [`LimitRange`].
pub struct LimitRangeKind;

/// What an item may be about, beside what has a domain in its name.
pub const CONTAINER: &str = "Container";
/// See [`CONTAINER`].
pub const POD: &str = "Pod";
const CLAIM: &str = "PersistentVolumeClaim";

/// The largest amount, in units, whose thousandths can be counted.
pub const MAX_IN_MILLIS: i64 = i64::MAX / 1_000;

type Amounts = BTreeMap<String, ApiQuantity>;

/// Gives a container what it has not, of what it should have at least.
fn complete<'a>(
    amounts: &mut Option<Amounts>,
    more: impl IntoIterator<Item = (&'a String, &'a ApiQuantity)>,
) {
    for (resource, amount) in more {
        let amounts = amounts.get_or_insert_default();
        amounts
            .entry(resource.clone())
            .or_insert_with(|| amount.clone());
    }
}

fn validate_type(name: &str, path: &Path, errors: &mut ErrorList) {
    let details = names::qualified_name(name);
    if details.is_empty() && !name.contains('/') && ![POD, CONTAINER, CLAIM].contains(&name) {
        let detail = "must be a standard limit type or fully qualified";
        errors.invalid(path, name, detail);
    }
    errors.invalid_each(path, name, details);
}

/// The amounts of one resource in an item.
struct Limits {
    min: Option<Quantity>,
    max: Option<Quantity>,
    default: Option<Quantity>,
    request: Option<Quantity>,
    ratio: Option<Quantity>,
}

/// How much of a resource; an amount that is none was refused when the object was decoded.
fn amount(amounts: Option<&Amounts>, resource: &str) -> Option<Quantity> {
    amounts?.get(resource)?.0.parse().ok()
}

impl Limits {
    fn of(item: &LimitRangeItem, resource: &str) -> Self {
        // Pods have no defaults, which has been told.
        let defaults = |amounts| match item.type_ == POD {
            true => None,
            false => amount(amounts, resource),
        };
        Self {
            min: amount(item.min.as_ref(), resource),
            max: amount(item.max.as_ref(), resource),
            default: defaults(item.default.as_ref()),
            request: defaults(item.default_request.as_ref()),
            ratio: amount(item.max_limit_request_ratio.as_ref(), resource),
        }
    }

    /// Checks the amounts against each other.
    fn validate(&self, resource: &str, path: &Path, errors: &mut ErrorList) {
        let at = |field: &str| path.child(field).key(resource);
        // Which amount is greater than which, where it is told, and which of both is shown there.
        let pairs = [
            (
                ("min value", self.min),
                ("max value", self.max),
                "min",
                true,
            ),
            (
                ("min value", self.min),
                ("default request value", self.request),
                "defaultRequest",
                false,
            ),
            (
                ("default request value", self.request),
                ("max value", self.max),
                "defaultRequest",
                true,
            ),
            (
                ("default request value", self.request),
                ("default limit value", self.default),
                "defaultRequest",
                true,
            ),
            (
                ("min value", self.min),
                ("default value", self.default),
                "default",
                true,
            ),
            (
                ("default value", self.default),
                ("max value", self.max),
                "default",
                false,
            ),
        ];
        for ((less, least), (more, most), field, shows_least) in pairs {
            if let (Some(least), Some(most)) = (least, most)
                && least > most
            {
                let detail = format!("{less} {least} is greater than {more} {most}");
                let shown = if shows_least { least } else { most };
                errors.invalid(&at(field), shown.to_string(), &detail);
            }
        }
        if let Some(ratio) = self.ratio {
            self.validate_ratio(ratio, &at("maxLimitRequestRatio"), errors);
        }
        if let (Some(default), Some(request)) = (self.default, self.request)
            && default != request
            && !pod_spec::may_be_overcommitted(resource)
        {
            let detail = format!(
                "default value {default} must equal to defaultRequest value {request} in {resource}"
            );
            errors.invalid(&at("defaultRequest"), request.to_string(), &detail);
        }
    }

    fn validate_ratio(&self, ratio: Quantity, path: &Path, errors: &mut ErrorList) {
        if ratio < Quantity::from_units(1) {
            let detail = format!("ratio {ratio} is less than 1");
            errors.invalid(path, ratio.to_string(), &detail);
        }
        let (Some(min), Some(max)) = (self.min, self.max) else {
            return;
        };
        let fine = [ratio, min, max]
            .iter()
            .all(|amount| amount.units() < MAX_IN_MILLIS);
        let (asked, most) = match fine {
            true => (
                ratio.millis() as f64 / 1_000.0,
                max.millis() as f64 / min.millis() as f64,
            ),
            false => (
                ratio.units() as f64,
                max.units() as f64 / min.units() as f64,
            ),
        };
        if asked > most {
            let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
            errors.invalid(path, ratio.to_string(), &detail);
        }
    }
}

fn validate_item(item: &LimitRangeItem, path: &Path, errors: &mut ErrorList) {
    let of_containers = [POD, CONTAINER].contains(&item.type_.as_str());
    let mut resources = BTreeSet::new();
    let mut check = |amounts: Option<&Amounts>, field: &str, errors: &mut ErrorList| {
        for resource in amounts.into_iter().flatten().map(|(resource, _)| resource) {
            let path = path.child(field).key(resource);
            pod_spec::check_resource_name(resource, of_containers, &path, errors);
            resources.insert(resource.clone());
        }
    };
    check(item.max.as_ref(), "max", errors);
    check(item.min.as_ref(), "min", errors);
    for (amounts, field) in [
        (item.default.as_ref(), "default"),
        (item.default_request.as_ref(), "defaultRequest"),
    ] {
        if item.type_ != POD {
            check(amounts, field, errors);
        } else if amounts.is_some_and(|amounts| !amounts.is_empty()) {
            let detail = "may not be specified when `type` is 'Pod'";
            errors.forbidden(&path.child(field), detail);
        }
    }
    let storage = |amounts: Option<&Amounts>| amount(amounts, "storage").is_some();
    if item.type_ == CLAIM && !storage(item.min.as_ref()) && !storage(item.max.as_ref()) {
        let detail =
            "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&path.child("limits"), detail);
    }
    let ratios = item.max_limit_request_ratio.as_ref();
    check(ratios, "maxLimitRequestRatio", errors);
    for resource in &resources {
        Limits::of(item, resource).validate(resource, path, errors);
    }
}

impl Kind for LimitRangeKind {
    type Object = LimitRange;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Whole;

    fn default(object: &mut LimitRange) {
        let items = object.spec.iter_mut().flat_map(|spec| &mut spec.limits);
        for item in items.filter(|item| item.type_ == CONTAINER) {
            complete(&mut item.default, item.max.iter().flatten());
            complete(&mut item.default_request, item.default.iter().flatten());
            complete(&mut item.default_request, item.min.iter().flatten());
        }
    }

    /// One that has neither a name nor a prefix is called by a unique one: its own identity is as good as another.
    fn prepare_create(object: &mut LimitRange) {
        let metadata = &mut object.metadata;
        if metadata.name.as_deref().unwrap_or_default().is_empty() {
            metadata.name.clone_from(&metadata.uid);
        }
    }

    fn validate(object: &LimitRange, errors: &mut ErrorList) {
        let path = Path::new("spec").child("limits");
        let mut seen = HashSet::new();
        let items = object.spec.iter().flat_map(|spec| &spec.limits);
        for (index, item) in items.enumerate() {
            if errors.is_full() {
                return;
            }
            let path = path.index(index);
            let of = path.child("type");
            validate_type(&item.type_, &of, errors);
            if !seen.insert(&item.type_) {
                errors.duplicate(&of, &item.type_);
            }
            validate_item(item, &path, errors);
        }
    }

    fn printer() -> Printer<LimitRange> {
        table::created_at()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(item: Value) -> Vec<String> {
        let object = json!({"metadata": {"name": "l"}, "spec": {"limits": [item]}});
        let mut object = serde_json::from_value(object).unwrap();
        LimitRangeKind::default(&mut object);
        let mut errors = ErrorList::default();
        LimitRangeKind::validate(&object, &mut errors);
        errors.told()
    }

    #[test]
    fn containers_get_what_follows_from_the_other_amounts() {
        let item = json!({
            "type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"memory": "64Mi"},
            "max": {"cpu": "2", "memory": "1Gi"}, "min": {"cpu": "10m"}
        });
        let mut object: LimitRange =
            serde_json::from_value(json!({"spec": {"limits": [item]}})).unwrap();
        LimitRangeKind::default(&mut object);
        let item = json!(object.spec.unwrap().limits[0]);
        assert_eq!(item["default"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert_eq!(
            item["defaultRequest"],
            json!({"cpu": "500m", "memory": "64Mi"})
        );
    }

    #[test]
    fn one_without_a_name_gets_one() {
        for (name, expected) in [(None, "u"), (Some(""), "u"), (Some("l"), "l")] {
            let mut object = LimitRange::default();
            object.metadata.name = name.map(str::to_owned);
            object.metadata.uid = Some("u".to_owned());
            LimitRangeKind::prepare_create(&mut object);
            assert_eq!(object.metadata.name.as_deref(), Some(expected));
        }
    }

    #[test]
    fn amounts_must_go_together() {
        let fine = json!({"type": "Container", "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "10"}});
        assert_eq!(refused(fine), [""; 0]);
        let turned = json!({"type": "Pod", "max": {"cpu": "1"}, "min": {"cpu": "2"}});
        let expected = "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1";
        assert_eq!(refused(turned), [expected]);
        let ratio = json!({
            "type": "Pod", "max": {"cpu": "1"}, "min": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": "3"}
        });
        let expected = "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000";
        assert_eq!(refused(ratio), [expected]);
        let none = json!({"type": "Pod", "min": {"cpu": "0"}, "max": {"cpu": "0"}, "maxLimitRequestRatio": {"cpu": "3"}});
        assert_eq!(
            refused(none),
            [""; 0],
            "nothing divided by nothing is no number"
        );
    }

    #[test]
    fn types_and_resources_have_known_names() {
        let default = json!({"type": "Pod", "default": {"cpu": "1"}});
        let expected =
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'";
        assert_eq!(refused(default), [expected]);
        assert_eq!(refused(json!({"type": "PersistentVolumeClaim"})).len(), 1);
        assert_eq!(refused(json!({"type": "Volume"})).len(), 1);
        assert_eq!(
            refused(json!({"type": "Pod", "max": {"storage": "1"}})).len(),
            1
        );
        assert_eq!(
            refused(json!({"type": "a.b/C", "max": {"storage": "1"}})),
            [""; 0]
        );
        assert_eq!(
            refused(json!({"type": "a.b/C", "max": {"bogus": "1"}})).len(),
            1
        );
    }
}
