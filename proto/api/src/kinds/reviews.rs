//! Questions about users and their rights, which are answered at once and never stored.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview,
    SelfSubjectRulesReview, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    FieldSelectorRequirement, LabelSelectorRequirement, ObjectMeta,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::kind::StaticInfo;
use crate::names;

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// What is particular to one of them.
pub trait Question:
    Serialize + DeserializeOwned + JsonSchema + Clone + k8s_openapi::Metadata<Ty = ObjectMeta> + 'static
{
    /// Names and scope.
    const INFO: StaticInfo;

    /// What cannot be answered.
    fn check(&self, _errors: &mut ErrorList) {}
}

const fn info(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> StaticInfo {
    StaticInfo {
        group,
        version: "v1",
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    }
}

fn spec() -> Path {
    Path::new("spec")
}

/// A question is about a resource or about a path.
fn check_attributes(
    resource: Option<&ResourceAttributes>,
    path: Option<&NonResourceAttributes>,
    errors: &mut ErrorList,
) {
    match (resource, path) {
        (Some(_), Some(path)) => {
            let detail = "cannot be specified in combination with resourceAttributes";
            errors.invalid(&spec().child("nonResourceAttributes"), path, detail);
        }
        (None, None) => {
            let detail =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            let field = spec().child("resourceAttributes");
            errors.invalid(&field, Value::Null, detail);
        }
        _ => {}
    }
}

/// A selector is written as text or as requirements.
fn check_selector(path: &Path, raw: Option<&str>, requirements: usize, errors: &mut ErrorList) {
    let raw = raw.unwrap_or_default();
    match (raw.is_empty(), requirements == 0) {
        (false, false) => {
            let detail = "may not specified at the same time as requirements";
            errors.invalid(&path.child("rawSelector"), raw, detail);
        }
        (true, true) => {
            let detail =
                format!("when {path} is specified, requirements or rawSelector is required");
            errors.required(&path.child("requirements"), &detail);
        }
        _ => {}
    }
}

/// What a requirement says of values, which goes with its operator. One that is not known here may be known to others.
fn check_values(operator: &str, values: &[String], path: &Path, errors: &mut ErrorList) {
    let path = path.child("values");
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.required(&path, detail);
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(&path, detail);
        }
        _ => {}
    }
}

fn check_field(one: &FieldSelectorRequirement, path: &Path, errors: &mut ErrorList) {
    if one.key.is_empty() {
        errors.required(&path.child("key"), "must be specified");
    }
    let values = one.values.as_deref().unwrap_or_default();
    check_values(&one.operator, values, path, errors);
}

fn check_label(one: &LabelSelectorRequirement, path: &Path, errors: &mut ErrorList) {
    let values = one.values.as_deref().unwrap_or_default();
    check_values(&one.operator, values, path, errors);
    let details = names::qualified_name(&one.key);
    errors.invalid_each(&path.child("key"), &one.key, details);
    for (index, value) in values.iter().enumerate() {
        if errors.is_full() {
            return;
        }
        let path = path.child("values").index(index);
        errors.invalid_each(&path, value, names::label_value(value));
    }
}

fn check_selectors(resource: Option<&ResourceAttributes>, errors: &mut ErrorList) {
    let path = spec().child("resourceAttributes");
    let Some(resource) = resource else {
        return;
    };
    if let Some(selector) = &resource.field_selector {
        let path = path.child("fieldSelector");
        let requirements = selector.requirements.as_deref().unwrap_or_default();
        let raw = selector.raw_selector.as_deref();
        check_selector(&path, raw, requirements.len(), errors);
        for (index, one) in requirements.iter().enumerate() {
            if errors.is_full() {
                return;
            }
            check_field(one, &path.child("requirements").index(index), errors);
        }
    }
    if let Some(selector) = &resource.label_selector {
        let path = path.child("labelSelector");
        let requirements = selector.requirements.as_deref().unwrap_or_default();
        let raw = selector.raw_selector.as_deref();
        check_selector(&path, raw, requirements.len(), errors);
        for (index, one) in requirements.iter().enumerate() {
            if errors.is_full() {
                return;
            }
            check_label(one, &path.child("requirements").index(index), errors);
        }
    }
}

fn check_subject(asked: &SubjectAccessReviewSpec, errors: &mut ErrorList) {
    let resource = asked.resource_attributes.as_ref();
    check_attributes(resource, asked.non_resource_attributes.as_ref(), errors);
    let user = asked.user.as_deref().unwrap_or_default();
    if user.is_empty() && asked.groups.as_ref().is_none_or(Vec::is_empty) {
        let detail = "at least one of user or group must be specified";
        errors.invalid(&spec().child("user"), user, detail);
    }
    check_selectors(resource, errors);
}

/// The metadata without what the server and clients note in it, which must be nothing.
fn check_metadata(metadata: &ObjectMeta, namespaced: bool, errors: &mut ErrorList) {
    let mut bare = metadata.clone();
    bare.managed_fields = None;
    if namespaced {
        bare.namespace = None;
    }
    if bare != ObjectMeta::default() {
        let detail = match namespaced {
            true => "must be empty except for namespace",
            false => "must be empty",
        };
        errors.invalid(&Path::new("metadata"), metadata, detail);
    }
}

impl Question for SelfSubjectReview {
    const INFO: StaticInfo = info(
        AUTHENTICATION,
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
    );
}

impl Question for SubjectAccessReview {
    const INFO: StaticInfo = info(
        AUTHORIZATION,
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
    );

    fn check(&self, errors: &mut ErrorList) {
        check_subject(&self.spec, errors);
        check_metadata(&self.metadata, false, errors);
    }
}

impl Question for LocalSubjectAccessReview {
    const INFO: StaticInfo = StaticInfo {
        namespaced: true,
        ..info(
            AUTHORIZATION,
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
        )
    };

    fn check(&self, errors: &mut ErrorList) {
        check_subject(&self.spec, errors);
        check_metadata(&self.metadata, true, errors);
        let own = self.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(resource) = &self.spec.resource_attributes {
            let asked = resource.namespace.as_deref().unwrap_or_default();
            if asked != own {
                let path = spec().child("resourceAttributes").child("namespace");
                errors.invalid(&path, asked, "must match metadata.namespace");
            }
        }
        if let Some(path) = &self.spec.non_resource_attributes {
            let field = spec().child("nonResourceAttributes");
            errors.invalid(&field, path, "disallowed on this kind of request");
        }
    }
}

impl Question for SelfSubjectAccessReview {
    const INFO: StaticInfo = info(
        AUTHORIZATION,
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
    );

    fn check(&self, errors: &mut ErrorList) {
        let resource = self.spec.resource_attributes.as_ref();
        check_attributes(resource, self.spec.non_resource_attributes.as_ref(), errors);
        check_selectors(resource, errors);
        check_metadata(&self.metadata, false, errors);
    }
}

impl Question for SelfSubjectRulesReview {
    const INFO: StaticInfo = info(
        AUTHORIZATION,
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused<Q: Question>(question: Value) -> Vec<String> {
        let question: Q = serde_json::from_value(question).unwrap();
        let mut errors = ErrorList::default();
        question.check(&mut errors);
        let told = errors.0.iter().map(|error| error.path.to_string());
        told.collect()
    }

    #[test]
    fn a_question_is_about_somebody_and_one_thing() {
        let none = Vec::<String>::new();
        let resource = json!({"verb": "get", "resource": "pods", "namespace": "n"});
        let path = json!({"verb": "get", "path": "/x"});
        let good = json!({"spec": {"user": "u", "resourceAttributes": resource}});
        assert_eq!(refused::<SubjectAccessReview>(good.clone()), none);
        let nobody = json!({"spec": {"resourceAttributes": resource}});
        assert_eq!(
            refused::<SubjectAccessReview>(nobody.clone()),
            ["spec.user"]
        );
        assert_eq!(refused::<SelfSubjectAccessReview>(nobody), none);
        let both = json!({"spec": {
            "groups": ["g"], "resourceAttributes": resource, "nonResourceAttributes": path,
        }});
        assert_eq!(
            refused::<SubjectAccessReview>(both),
            ["spec.nonResourceAttributes"]
        );
        assert_eq!(
            refused::<SelfSubjectAccessReview>(json!({"metadata": {"name": "x"}})),
            ["spec.resourceAttributes", "metadata"]
        );
        assert_eq!(
            refused::<LocalSubjectAccessReview>(good),
            ["spec.resourceAttributes.namespace"]
        );
        let here = json!({
            "metadata": {"namespace": "n"},
            "spec": {"user": "u", "nonResourceAttributes": path},
        });
        assert_eq!(
            refused::<LocalSubjectAccessReview>(here),
            ["spec.nonResourceAttributes"]
        );
    }

    #[test]
    fn a_selector_is_text_or_requirements() {
        let with = |selector: Value| {
            let attributes = json!({"resource": "pods", "fieldSelector": selector});
            refused::<SelfSubjectAccessReview>(json!({"spec": {"resourceAttributes": attributes}}))
        };
        let requirement = json!({"key": "spec.nodeName", "operator": "In", "values": ["n"]});
        assert_eq!(with(json!({"rawSelector": "a=b"})), Vec::<String>::new());
        assert_eq!(
            with(json!({})),
            ["spec.resourceAttributes.fieldSelector.requirements"]
        );
        assert_eq!(
            with(json!({"rawSelector": "a=b", "requirements": [requirement]})),
            ["spec.resourceAttributes.fieldSelector.rawSelector"]
        );
    }

    #[test]
    fn requirements_are_checked_one_by_one() {
        let with = |selector: &str, requirement: Value| {
            let attributes = json!({"resource": "pods", selector: {"requirements": [requirement]}});
            refused::<SelfSubjectAccessReview>(json!({"spec": {"resourceAttributes": attributes}}))
        };
        for (selector, requirement, parts) in [
            (
                "fieldSelector",
                json!({"key": "a", "operator": "In", "values": ["b"]}),
                "",
            ),
            (
                "fieldSelector",
                json!({"key": "a", "operator": "Of another release"}),
                "",
            ),
            (
                "fieldSelector",
                json!({"key": "", "operator": "In"}),
                "key,values",
            ),
            (
                "fieldSelector",
                json!({"key": "a", "operator": "Exists", "values": ["b"]}),
                "values",
            ),
            (
                "labelSelector",
                json!({"key": "a", "operator": "Exists"}),
                "",
            ),
            (
                "labelSelector",
                json!({"key": "a b", "operator": "NotIn"}),
                "values,key",
            ),
            (
                "labelSelector",
                json!({"key": "a", "operator": "In", "values": ["b", "c d"]}),
                "values[1]",
            ),
        ] {
            let path = format!("spec.resourceAttributes.{selector}.requirements[0].");
            let parts = parts.split(',').filter(|part| !part.is_empty());
            let expected: Vec<String> = parts.map(|part| format!("{path}{part}")).collect();
            assert_eq!(
                with(selector, requirement.clone()),
                expected,
                "{requirement}"
            );
        }
    }
}
