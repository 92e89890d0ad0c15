//! POST of a question about users and their rights: answered at once, and never stored.

use gantry_api::field::{ErrorList, aggregate};
use gantry_api::json::Members;
use gantry_api::kinds::reviews::Question;
use gantry_api::selector::{FieldSelector, LabelSelector};
use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::api::authorization::v1::{
    FieldSelectorAttributes, LabelSelectorAttributes, LocalSubjectAccessReview,
    NonResourceAttributes, NonResourceRule, ResourceAttributes, ResourceRule,
    SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus, SubjectRulesReviewStatus,
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};

use crate::authorisation::rbac::is_whole;
use crate::authorisation::{Attributes, Authorizer, Decision, Target, node};
use crate::context::Context;
use crate::identity::Identity;
use crate::response::Answer;
use crate::verbs::body;

/// Who asks?
pub(crate) async fn self_subject_review(context: &Context<'_>) -> Result<Answer, StatusError> {
    let (_, warnings) = read_object(context).await?;
    let user = context.identity;
    let review = json!({
        "metadata": {"creationTimestamp": context.api.clock.stamp()},
        "status": {"userInfo": {
            "username": user.user, "uid": user.uid, "groups": user.groups, "extra": user.extra,
        }},
    });
    Ok(created(context, review).with_warnings(warnings))
}

/// May somebody do something?
pub(crate) async fn subject_access_review(context: &Context<'_>) -> Result<Answer, StatusError> {
    let (mut review, warnings): (SubjectAccessReview, _) = read(context).await?;
    review.status = Some(of_spec(context, &review.spec));
    written(context, &review, warnings)
}

/// May somebody do something in this namespace?
pub(crate) async fn local_subject_access_review(
    context: &Context<'_>,
) -> Result<Answer, StatusError> {
    let (mut review, warnings): (LocalSubjectAccessReview, _) = read(context).await?;
    review.status = Some(of_spec(context, &review.spec));
    written(context, &review, warnings)
}

/// May who asks do something?
pub(crate) async fn self_subject_access_review(
    context: &Context<'_>,
) -> Result<Answer, StatusError> {
    let (mut review, warnings): (SelfSubjectAccessReview, _) = read(context).await?;
    let resource = review.spec.resource_attributes.as_ref();
    let path = review.spec.non_resource_attributes.as_ref();
    review.status = Some(status(context, context.identity, resource, path));
    written(context, &review, warnings)
}

/// What may who asks do in a namespace?
pub(crate) async fn self_subject_rules_review(
    context: &Context<'_>,
) -> Result<Answer, StatusError> {
    let (asked, warnings): (SelfSubjectRulesReview, _) = read(context).await?;
    let namespace = asked.spec.namespace.filter(|name| !name.is_empty());
    let namespace = namespace.ok_or_else(|| StatusError::bad_request("no namespace on request"))?;
    let (rules, wrong) = context
        .api
        .authorisation
        .rbac
        .rules(context.identity, &namespace);
    let is_node = node::node_name(context.identity).is_some();
    let mut told = Vec::new();
    if is_node {
        told.push("node authorizer does not support user rule resolution".to_owned());
    }
    told.extend_from_slice(&wrong);
    let errors = aggregate(&told);
    let review = SelfSubjectRulesReview {
        status: Some(SubjectRulesReviewStatus {
            resource_rules: rules.iter().filter_map(resource_rule).collect(),
            non_resource_rules: rules.iter().filter_map(path_rule).collect(),
            incomplete: is_node || !is_whole(&wrong),
            evaluation_error: (!errors.is_empty()).then_some(errors),
        }),
        ..SelfSubjectRulesReview::default()
    };
    written(context, &review, warnings)
}

fn resource_rule(rule: &PolicyRule) -> Option<ResourceRule> {
    let resources = rule.resources.as_ref()?;
    (!resources.is_empty()).then(|| ResourceRule {
        verbs: rule.verbs.clone(),
        api_groups: rule.api_groups.clone(),
        resources: Some(resources.clone()),
        resource_names: rule.resource_names.clone(),
    })
}

fn path_rule(rule: &PolicyRule) -> Option<NonResourceRule> {
    let urls = rule.non_resource_urls.as_ref()?;
    (!urls.is_empty()).then(|| NonResourceRule {
        verbs: rule.verbs.clone(),
        non_resource_urls: Some(urls.clone()),
    })
}

fn of_spec(context: &Context<'_>, spec: &SubjectAccessReviewSpec) -> SubjectAccessReviewStatus {
    let user = Identity {
        user: spec.user.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    };
    let resource = spec.resource_attributes.as_ref();
    status(
        context,
        &user,
        resource,
        spec.non_resource_attributes.as_ref(),
    )
}

/// What of a selector is understood; the rest counts as if it were not there, which asks for more than it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Understood {
    All,
    Part,
    Nothing,
}

impl Understood {
    fn of(understood: usize, all: usize) -> Self {
        match understood {
            _ if understood == all => Self::All,
            0 => Self::Nothing,
            _ => Self::Part,
        }
    }

    /// What is said of a selector that is not understood.
    fn told(self, selector: &str) -> Option<String> {
        let how = match self {
            Self::All => return None,
            Self::Part => "partially ignored",
            Self::Nothing => "ignored",
        };
        Some(format!(
            "spec.resourceAttributes.{selector} {how} due to parse error"
        ))
    }
}

/// The nodes of which a question asks for the pods, where it selects them by their node.
fn selected_nodes(selector: &FieldSelectorAttributes) -> (Vec<String>, Understood) {
    const NODE: &str = "spec.nodeName";
    let raw = selector.raw_selector.as_deref().unwrap_or_default();
    if !raw.is_empty() {
        return match FieldSelector::parse(raw) {
            Ok(parsed) => {
                let node = parsed.exact(NODE).map(str::to_owned);
                (node.into_iter().collect(), Understood::All)
            }
            Err(_) => (Vec::new(), Understood::Nothing),
        };
    }
    let all = selector.requirements.as_deref().unwrap_or_default();
    let (mut nodes, mut understood) = (Vec::new(), 0);
    for one in all {
        let value = match (one.operator.as_str(), one.values.as_deref()) {
            ("In" | "NotIn", Some([value])) => value,
            _ => continue,
        };
        understood += 1;
        if one.key == NODE && one.operator == "In" {
            nodes.push(value.clone());
        }
    }
    (nodes, Understood::of(understood, all.len()))
}

/// What of a label selector is understood; nobody's rights depend on it.
fn understood_labels(selector: &LabelSelectorAttributes) -> Understood {
    let raw = selector.raw_selector.as_deref().unwrap_or_default();
    if !raw.is_empty() {
        return match LabelSelector::parse(raw) {
            Ok(_) => Understood::All,
            Err(_) => Understood::Nothing,
        };
    }
    let all = selector.requirements.as_deref().unwrap_or_default();
    let known = ["In", "NotIn", "Exists", "DoesNotExist"];
    let understood = all
        .iter()
        .filter(|one| known.contains(&one.operator.as_str()));
    Understood::of(understood.count(), all.len())
}

/// Whether a user may do something; validation has seen to it that it is said what.
fn status(
    context: &Context<'_>,
    user: &Identity,
    resource: Option<&ResourceAttributes>,
    path: Option<&NonResourceAttributes>,
) -> SubjectAccessReviewStatus {
    let text = |field: &Option<String>| field.as_deref().unwrap_or_default().to_owned();
    let empty = ResourceAttributes::default();
    let asked = resource.unwrap_or(&empty);
    let [group, version, name] = [&asked.group, &asked.version, &asked.name].map(text);
    let [of, subresource, namespace] =
        [&asked.resource, &asked.subresource, &asked.namespace].map(text);
    let (verb, at) = match path {
        Some(path) => (text(&path.verb), text(&path.path)),
        None => (text(&asked.verb), String::new()),
    };
    let target = match path {
        Some(_) => Target::Path(&at),
        None => Target::Resource {
            group: &group,
            version: if version.is_empty() { "*" } else { &version },
            resource: &of,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
        },
    };
    let attributes = Attributes {
        user,
        verb: &verb,
        target,
    };
    let authorisation = &context.api.authorisation;
    let (mut nodes, mut wrong) = (Vec::new(), Vec::new());
    if let Some(selector) = &asked.field_selector {
        let (selected, understood) = selected_nodes(selector);
        nodes = selected;
        wrong.extend(understood.told("fieldSelector"));
    }
    if let Some(selector) = &asked.label_selector {
        wrong.extend(understood_labels(selector).told("labelSelector"));
    }
    let mut nodes = nodes.iter();
    let decision = match nodes.any(|name| node::selects_own_pods(&attributes, Some(name.as_str())))
    {
        true => Decision::Allow,
        false => authorisation.authorize(&attributes),
    };
    let reason = match &decision {
        Decision::Allow => authorisation.reason(&attributes),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => reason.clone(),
    };
    SubjectAccessReviewStatus {
        allowed: decision == Decision::Allow,
        denied: matches!(decision, Decision::Deny(_)).then_some(true),
        reason: (!reason.is_empty()).then_some(reason),
        evaluation_error: (!wrong.is_empty()).then(|| wrong.join("; ")),
    }
}

/// The body, in normal form, and what decoding warned of.
async fn read_object(context: &Context<'_>) -> Result<(Value, Vec<String>), StatusError> {
    let options = context.write_options("CreateOptions")?;
    let kind = context.resource.kind.as_ref();
    let decoded = body::object(context, kind, options.validation).await?;
    let mut object = decoded.object;
    if context.namespace().is_none() {
        *object.member(&["metadata", "namespace"]) = Value::Null;
    }
    Ok((object, decoded.warnings))
}

/// A question that can be answered.
async fn read<Q: Question>(context: &Context<'_>) -> Result<(Q, Vec<String>), StatusError> {
    let (object, warnings) = read_object(context).await?;
    let question: Q = serde_json::from_value(object)
        .map_err(|error| StatusError::bad_request(error.to_string()))?;
    let mut errors = ErrorList::default();
    question.check(&mut errors);
    match errors.is_empty() {
        true => Ok((question, warnings)),
        // Kubernetes has no kind any more at this point.
        false => {
            let group = &context.resource.info().group;
            Err(StatusError::invalid_kind(group, "", "", errors))
        }
    }
}

fn written<Q: Question>(
    context: &Context<'_>,
    review: &Q,
    warnings: Vec<String>,
) -> Result<Answer, StatusError> {
    let value = serde_json::to_value(review)
        .map_err(|error| StatusError::internal(format!("encoding a review: {error}")))?;
    Ok(created(context, value).with_warnings(warnings))
}

/// 201 with a review.
fn created(context: &Context<'_>, mut review: Value) -> Answer {
    let info = context.resource.info();
    *review.member(&["kind"]) = json!(info.kind);
    *review.member(&["apiVersion"]) = json!(info.api_version());
    context.resource.kind.schema().complete(&mut review);
    Answer::value_with(StatusCode::CREATED, &review)
}

#[cfg(test)]
mod tests;
