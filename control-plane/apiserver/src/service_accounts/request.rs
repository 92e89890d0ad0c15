//! `serviceaccounts/token`: POST of a TokenRequest makes a token.

use gantry_api::field::{ErrorList, Path};
use gantry_api::json::Members;
use gantry_api::status::{Details, StatusError};
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest};
use serde_json::json;

use super::claims::ObjectId;
use super::issue::{LIFE, LONGEST, LONGEST_GRANTED, SHORTEST, TokenPod, Wanted};
use crate::admission::node_restriction;
use crate::context::Context;
use crate::response::Answer;
use crate::verbs::body;

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";
/// Kubernetes has no rule for audiences. Each is a name or a URL, and all of them go with every request that shows the token.
const MOST_AUDIENCES: usize = 64;
const LONGEST_AUDIENCE: usize = 1024;
/// Bytes of all of them as JSON: what else a token says has room beside them ([`super::jwt::LONGEST`]).
const LONGEST_AUDIENCES: usize = 8 << 10;

/// Answers a TokenRequest. Nothing is stored, so that a dry run does the same, as in Kubernetes.
pub(crate) async fn create(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("CreateOptions")?;
    let (asked, warnings): (TokenRequest, _) =
        body::typed(context, &**body::TOKEN_REQUEST, options.validation).await?;
    let answer = issued(context, asked).await;
    Ok(Answer::of(answer).with_warnings(warnings))
}

async fn issued(context: &Context<'_>, asked: TokenRequest) -> Result<Answer, StatusError> {
    context.admit_below()?;
    node_restriction::admit_token(context, &asked)?;
    let (namespace, name) = (context.namespace().unwrap_or_default(), context.name());
    must_be_named(asked.metadata.name.as_deref(), name)?;
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
    let spec = asked.spec.unwrap_or_default();
    check_spec(seconds, spec.audiences.as_deref().unwrap_or_default())?;
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
    let mut warnings = Vec::new();
    if seconds > LONGEST_GRANTED {
        wanted.seconds = LONGEST_GRANTED;
        warnings.push(format!(
            "requested expiration of {seconds} seconds shortened to {LONGEST_GRANTED} seconds"
        ));
    }
    let mut metadata = serde_json::to_value(&asked.metadata).unwrap_or_default();
    *metadata.member(&["name"]) = json!(name);
    *metadata.member(&["namespace"]) = json!(namespace);
    *metadata.member(&["uid"]) = json!(uid);
    *metadata.member(&["creationTimestamp"]) = json!(context.api.clock.stamp());
    let spec = json!({
        "audiences": wanted.audiences,
        "expirationSeconds": wanted.seconds,
        "boundObjectRef": spec.bound_object_ref,
    });
    let issued = accounts.issue(wanted).await?;
    let expires = gantry_api::time::seconds(issued.expires.saturating_mul(super::NANOS));
    let answer = Answer::value_with(
        StatusCode::CREATED,
        &json!({
            "kind": KIND,
            "apiVersion": format!("{GROUP}/v1"),
            "metadata": metadata,
            "spec": spec,
            "status": {"token": issued.token, "expirationTimestamp": expires},
        }),
    );
    Ok(answer.with_warnings(warnings))
}

/// Refuses a name in the body that is another than the path's.
fn must_be_named(said: Option<&str>, account: &str) -> Result<(), StatusError> {
    let said = said.unwrap_or_default();
    if said.is_empty() || said == account {
        return Ok(());
    }
    let mut errors = ErrorList::default();
    let path = Path::new("metadata").child("name");
    let why = "must match the service account name if specified";
    errors.invalid(&path, said, why);
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

/// What may be asked for, whatever the token is about.
fn check_spec(seconds: i64, audiences: &[String]) -> Result<(), StatusError> {
    let mut errors = ErrorList::default();
    let path = Path::new("spec");
    let too_long_or_short = match seconds {
        ..SHORTEST => Some("may not specify a duration less than 10 minutes"),
        SHORTEST..=LONGEST => None,
        _ => Some("may not specify a duration larger than 2^32 seconds"),
    };
    if let Some(why) = too_long_or_short {
        errors.invalid(&path.child("expirationSeconds"), seconds, why);
    }
    check_audiences(audiences, &path.child("audiences"), &mut errors);
    match errors.is_empty() {
        true => Ok(()),
        false => Err(StatusError::invalid_kind(GROUP, KIND, "", errors)),
    }
}

fn check_audiences(audiences: &[String], path: &Path, errors: &mut ErrorList) {
    if audiences.len() > MOST_AUDIENCES {
        errors.too_many(path, audiences.len(), MOST_AUDIENCES);
        return;
    }
    let mut is_any_too_long = false;
    for (index, audience) in audiences.iter().enumerate() {
        if audience.len() > LONGEST_AUDIENCE {
            errors.too_long(&path.index(index), LONGEST_AUDIENCE);
            is_any_too_long = true;
        }
    }
    let bytes = json!(audiences).to_string().len();
    if !is_any_too_long && bytes > LONGEST_AUDIENCES {
        errors.too_long(path, LONGEST_AUDIENCES);
    }
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
            assert_eq!(check_spec(allowed, &[]), Ok(()));
        }
        let said = |seconds: i64| {
            let refused = check_spec(seconds, &[]).expect_err("refused");
            refused.to_string()
        };
        assert_eq!(
            said(599),
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a \
             duration less than 10 minutes"
        );
        assert!(said(i64::MIN).ends_with("less than 10 minutes"));
        assert!(said((1 << 32) + 1).ends_with("larger than 2^32 seconds"));
    }

    #[test]
    fn audiences_are_bounded_in_number_and_bytes() {
        let audience = |bytes: usize| "x".repeat(bytes);
        let some = vec![audience(100); MOST_AUDIENCES];
        assert_eq!(check_spec(600, &some), Ok(()));
        assert_eq!(check_spec(600, &[audience(LONGEST_AUDIENCE)]), Ok(()));
        let said = |audiences: &[String]| {
            let refused = check_spec(600, audiences).expect_err("refused");
            let text = refused.to_string();
            let (_, why) = text.split_once(" is invalid: ").expect("why");
            why.to_owned()
        };
        assert_eq!(
            said(&vec![String::new(); MOST_AUDIENCES + 1]),
            "spec.audiences: Too many: 65: must have at most 64 items"
        );
        assert_eq!(
            said(&[String::new(), audience(LONGEST_AUDIENCE + 1)]),
            "spec.audiences[1]: Too long: may not be more than 1024 bytes"
        );
        let together = "spec.audiences: Too long: may not be more than 8192 bytes";
        assert_eq!(said(&vec![audience(200); MOST_AUDIENCES]), together);
        // What JSON writes with more bytes counts as much.
        assert_eq!(said(&vec!["\u{1}".repeat(1000); 2]), together);
    }
}
