//! `serviceaccounts/token`: POST of a TokenRequest makes a token.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::status::{Details, StatusError};
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest};
use serde_json::json;

use super::claims::ObjectId;
use super::issue::{LIFE, LONGEST, SHORTEST, TokenPod, Wanted};
use crate::admission::{namespace_lifecycle, node_restriction};
use crate::context::Context;
use crate::response::Answer;

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";

/// Answers a TokenRequest. Nothing is stored, so that a dry run does the same, as in Kubernetes.
pub(crate) async fn create(context: &Context<'_>) -> Result<Answer, StatusError> {
    context.write_options("CreateOptions")?;
    let asked: TokenRequest = context.request(KIND).await?;
    namespace_lifecycle::admit_subresource(context)?;
    node_restriction::admit_token(context, &asked)?;
    let (namespace, name) = (context.namespace().unwrap_or_default(), context.name());
    must_match("name", asked.metadata.name.as_deref(), name, name)?;
    must_match(
        "namespace",
        asked.metadata.namespace.as_deref(),
        namespace,
        name,
    )?;
    // The account itself is the one of the path.
    context.current()?;
    let accounts = &context.api.service_accounts;
    let account = accounts
        .known("serviceaccounts", namespace, name)
        .ok_or_else(|| StatusError::not_found(context.resource.info(), name))?;
    let uid = account.metadata.uid;
    must_be_meant(asked.metadata.uid.as_deref(), &uid, name)?;
    let seconds = asked.spec.as_ref().and_then(|spec| spec.expiration_seconds);
    let seconds = seconds.unwrap_or(LIFE);
    check_life(seconds)?;
    let spec = asked.spec.unwrap_or_default();
    let audiences = spec.audiences.filter(|audiences| !audiences.is_empty());
    let mut wanted = Wanted {
        namespace: namespace.to_owned(),
        account: ObjectId {
            name: name.to_owned(),
            uid: uid.clone(),
        },
        audiences: audiences.unwrap_or_else(|| accounts.audiences()),
        seconds,
        ..Wanted::default()
    };
    if let Some(bound) = &spec.bound_object_ref {
        bind(context, &mut wanted, bound)?;
    }
    let mut metadata = serde_json::to_value(&asked.metadata).unwrap_or_default();
    *metadata.member(&["name"]) = json!(name);
    *metadata.member(&["namespace"]) = json!(namespace);
    *metadata.member(&["uid"]) = json!(uid);
    *metadata.member(&["creationTimestamp"]) = json!(context.api.clock.stamp());
    let spec = json!({
        "audiences": wanted.audiences,
        "expirationSeconds": seconds,
        "boundObjectRef": spec.bound_object_ref,
    });
    let issued = accounts.issue(wanted).await?;
    let expires = gantry_api::time::seconds(issued.expires.saturating_mul(super::NANOS));
    Ok(Answer::value_with(
        StatusCode::CREATED,
        &json!({
            "kind": KIND,
            "apiVersion": format!("{GROUP}/v1"),
            "metadata": metadata,
            "spec": spec,
            "status": {"token": issued.token, "expirationTimestamp": expires},
        }),
    ))
}

/// Refuses a name in the body that is another than the path's.
fn must_match(
    field: &str,
    said: Option<&str>,
    expected: &str,
    account: &str,
) -> Result<(), StatusError> {
    let said = said.unwrap_or_default();
    if said.is_empty() || said == expected {
        return Ok(());
    }
    let mut errors = ErrorList::default();
    let why = format!("must match the service account {field} if specified");
    errors.invalid(&Path::new("metadata").child(field), said, &why);
    Err(StatusError::invalid_kind(GROUP, KIND, account, errors))
}

/// Refuses a token for another account than the one that is meant, which may have been deleted and made anew.
fn must_be_meant(meant: Option<&str>, uid: &str, account: &str) -> Result<(), StatusError> {
    let meant = meant.unwrap_or_default();
    if meant.is_empty() || meant == uid {
        return Ok(());
    }
    let message = format!(
        "Operation cannot be fulfilled on {KIND}.{GROUP} \"{account}\": the UID in the token request ({meant}) does not match the UID of the service account ({uid})"
    );
    let details = Details {
        name: account.to_owned(),
        group: GROUP.to_owned(),
        kind: KIND.to_owned(),
        ..Details::default()
    };
    Err(StatusError::new(409, "Conflict", message, Some(details)))
}

fn check_life(seconds: i64) -> Result<(), StatusError> {
    let why = match seconds {
        ..SHORTEST => "may not specify a duration less than 10 minutes",
        SHORTEST..=LONGEST => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let mut errors = ErrorList::default();
    let path = Path::new("spec").child("expirationSeconds");
    errors.invalid(&path, seconds, why);
    Err(StatusError::invalid_kind(GROUP, KIND, "", errors))
}

/// Binds a token to an object, which must be the one that is meant.
fn bind(
    context: &Context<'_>,
    wanted: &mut Wanted,
    bound: &BoundObjectReference,
) -> Result<(), StatusError> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (api_version, kind, name) = (
        text(&bound.api_version),
        text(&bound.kind),
        text(&bound.name),
    );
    let (group, version) = api_version
        .split_once('/')
        .unwrap_or(("", api_version.as_str()));
    let plural = match (group, kind.as_str()) {
        ("", "Pod") => "pods",
        ("", "Node") => "nodes",
        ("", "Secret") => "secrets",
        _ => {
            return Err(StatusError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let resource = context.registry.get("", "v1", plural);
    let resource = resource.ok_or_else(StatusError::unknown_resource)?;
    let info = resource.info();
    let accounts = &context.api.service_accounts;
    let namespace = match info.namespaced {
        true => wanted.namespace.as_str(),
        false => "",
    };
    let not_found = || StatusError::not_found(info, &name);
    let entry = accounts
        .entry(plural, namespace, &name)
        .ok_or_else(not_found)?;
    let pod = match plural {
        "pods" => Some(TokenPod::read(&entry).ok_or_else(not_found)?),
        _ => None,
    };
    if let Some(pod) = &pod
        && pod.spec.service_account_name != wanted.account.name
    {
        return Err(StatusError::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            wanted.account.name
        )));
    }
    let known = accounts
        .known(plural, namespace, &name)
        .ok_or_else(not_found)?;
    let uid = known.metadata.uid;
    let meant = bound.uid.as_deref().unwrap_or_default();
    if !meant.is_empty() && meant != uid {
        return Err(StatusError::precondition(
            info,
            &name,
            &format!(
                "the UID in the bound object reference ({meant}) does not match the UID in record. The object might have been \
                 deleted and then recreated"
            ),
        ));
    }
    let node = pod.as_ref().and_then(|pod| accounts.node_of(pod));
    let object = Some(ObjectId { name, uid });
    match plural {
        "pods" => (wanted.pod, wanted.node) = (object, node),
        "nodes" => wanted.node = object,
        _ => wanted.secret = object,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_bounded_in_kubernetes_words() {
        for allowed in [600, 3600, 3607, 1 << 32] {
            assert_eq!(check_life(allowed), Ok(()));
        }
        let said = |seconds: i64| check_life(seconds).expect_err("refused").to_string();
        assert_eq!(
            said(599),
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a \
             duration less than 10 minutes"
        );
        assert!(said(i64::MIN).ends_with("less than 10 minutes"));
        assert!(said((1 << 32) + 1).ends_with("larger than 2^32 seconds"));
    }
}
