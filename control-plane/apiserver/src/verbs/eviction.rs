//! `pods/eviction`: a deletion that a budget of disruptions may refuse, by the rules of Kubernetes.
//!
//! A pod that runs and that one budget selects goes when the budget allows one more disruption. That one is taken from the
//! budget first, by a compare-and-swap of its status in which it is looked at again: so no two evictions take the same one,
//! through whichever servers they come. The pod's deletion and the condition that says why are one write.
//!
//! Costs what [`Budgets`](crate::budgets::Budgets) says, and the writes of the budget and the pod.

mod budget;

use bytes::Bytes;
use gantry_api::field::{ErrorList, Path};
use gantry_api::kind::WriteScope;
use gantry_api::kinds::pod_disruption_budget::{GROUP, PLURAL, VERSION};
use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde::Deserialize;
use serde_json::{Value, json};

use super::delete::{Options, delete_telling};
use super::write::{Write, success, swap};
use super::{body, pod_condition};
use crate::codec;
use crate::context::{ATTEMPTS, Context};
use crate::request::ResourcePath;
use crate::response::Answer;

const MORE_THAN_ONE: &str = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";

pub(crate) async fn evict(context: &Context<'_>) -> Result<Answer, StatusError> {
    let options = context.write_options("CreateOptions")?;
    let kind = match is_beta(context) {
        true => &**body::EVICTION_BETA,
        false => &**body::EVICTION,
    };
    let (eviction, warnings): (Eviction, _) =
        body::typed(context, kind, options.validation).await?;
    let answer = evict_as(context, eviction).await;
    Ok(Answer::of(answer).with_warnings(warnings))
}

/// Whether the body says that it is of the version that was before the first one.
fn is_beta(context: &Context<'_>) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Said {
        api_version: String,
    }
    let said: Said = serde_json::from_slice(&context.body).unwrap_or_default();
    said.api_version == "policy/v1beta1"
}

async fn evict_as(context: &Context<'_>, eviction: Eviction) -> Result<Answer, StatusError> {
    context.admit_below()?;
    if eviction.metadata.name.as_deref() != Some(context.name()) {
        return Err(StatusError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let mut wanted = eviction.delete_options.unwrap_or_default();
    check_reads(context, &wanted)?;
    share_dry_run(&mut wanted, context.query.all("dryRun"))?;
    // Options are looked at where there is something to delete.
    context.current()?;
    let options = Options::of(wanted)?;
    evict_within_budget(context, &options).await?;
    Ok(success(StatusCode::CREATED))
}

/// Refuses to evict what could not be read.
fn check_reads(context: &Context<'_>, options: &DeleteOptions) -> Result<(), StatusError> {
    if options.ignore_store_read_error_with_cluster_breaking_potential != Some(true) {
        return Ok(());
    }
    let path = Path::new("deleteOptions").child("ignoreStoreReadErrorWithClusterBreakingPotential");
    let mut errors = ErrorList::default();
    let detail = "can not be set for pod eviction, try after removing the option";
    errors.invalid(&path, true, detail);
    Err(StatusError::invalid_kind(
        GROUP,
        "Eviction",
        context.name(),
        errors,
    ))
}

/// Gives the deletion the dry run that the request asks for. Both may say it, and then say the same.
fn share_dry_run(options: &mut DeleteOptions, asked: &[String]) -> Result<(), StatusError> {
    let own = options.dry_run.get_or_insert_default();
    if own.is_empty() {
        own.extend_from_slice(asked);
    } else if !asked.is_empty() && own.as_slice() != asked {
        return Err(StatusError::unclassified(format!(
            "Non-matching dry-run options in request and content: [{}] and [{}]",
            asked.join(" "),
            own.join(" ")
        )));
    }
    Ok(())
}

/// The pod as it was when it was judged.
struct Judged {
    pod: Pod,
    /// `metadata.resourceVersion`.
    version: String,
}

impl Judged {
    fn now(context: &Context<'_>) -> Result<Self, StatusError> {
        let entry = context.current()?;
        let object = codec::decode_for_client(context.resource, &entry)?;
        let pod: Pod = serde_json::from_value(object)
            .map_err(|error| StatusError::internal(format!("a stored pod is damaged: {error}")))?;
        Ok(Self {
            pod,
            version: entry.modify_revision.to_string(),
        })
    }

    fn phase(&self) -> &str {
        let status = self.pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        phase.unwrap_or_default()
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
            || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Whether its going disrupts nothing: it has gone, or has not come yet.
    fn counts_for_nothing(&self) -> bool {
        self.has_ended() || self.phase() == "Pending"
    }

    fn is_ready(&self) -> bool {
        let status = self.pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    /// The options by which nothing but what was judged goes.
    fn unchanged(&self, options: &Options) -> Options {
        let mut unchanged = options.clone();
        unchanged.resource_version = Some(self.version.clone());
        unchanged
    }
}

async fn evict_within_budget(context: &Context<'_>, options: &Options) -> Result<(), StatusError> {
    let says_version = options.resource_version.is_some();
    let mut attempts = 1;
    let judged = loop {
        let judged = Judged::now(context)?;
        if !judged.counts_for_nothing() {
            break judged;
        }
        // One that waits may become ready meanwhile, and count.
        if says_version || judged.has_ended() {
            return delete(context, options).await;
        }
        match delete(context, &judged.unchanged(options)).await {
            Err(error) if error.code() == 409 && attempts < ATTEMPTS => attempts += 1,
            done => return done,
        }
    };
    let budgets = context.api.budgets.of(&context.api.store, &judged.pod);
    let name = match budgets.as_slice() {
        [] => return delete(context, options).await,
        [name] => name,
        _ => return Err(StatusError::unclassified(MORE_THAN_ONE)),
    };
    let Some(resource) = context.registry.get(GROUP, VERSION, PLURAL) else {
        return delete(context, options).await;
    };
    let path = ResourcePath {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        namespace: context.path.namespace.clone(),
        resource: PLURAL.to_owned(),
        name: Some(name.to_string()),
        subresource: Some("status".to_owned()),
        watches: false,
    };
    let guarded = Context {
        resource,
        path: &path,
        body: Bytes::new(),
        budget: None,
        ..*context
    };
    if !judged.is_ready() && lets_unready_go(&guarded)? {
        // It must not have become ready since.
        return match delete(context, &judged.unchanged(options)).await {
            Err(error) if error.code() == 409 && !says_version => {
                Err(budget::being_processed(name))
            }
            done => done,
        };
    }
    match spend(&guarded, context.name(), options.dry_run).await {
        // A budget that has gone meanwhile protects nobody.
        Err(error) if error.code() == 404 => {}
        spent => spent?,
    }
    delete(context, options).await
}

/// Whether a budget lets a pod go that is not ready, without counting it.
fn lets_unready_go(guarded: &Context<'_>) -> Result<bool, StatusError> {
    match guarded.current() {
        Ok(entry) => {
            let object = codec::decode_for_client(guarded.resource, &entry)?;
            Ok(budget::lets_unready_go(&typed(object)?))
        }
        Err(error) if error.code() == 404 => Ok(true),
        Err(error) => Err(error),
    }
}

/// Takes one disruption from a budget, for the pod of that name.
async fn spend(guarded: &Context<'_>, pod: &str, dry_run: bool) -> Result<(), StatusError> {
    let namespace = guarded.namespace().unwrap_or_default();
    let _turn = guarded.api.budgets.turn(namespace, guarded.name()).await;
    let now = guarded.api.clock.now();
    let write = Write::update(WriteScope::Status, dry_run);
    let written = swap(guarded, write, None, |current| {
        let mut budget = typed(current.clone())?;
        budget::spend(&mut budget, pod, now)?;
        serde_json::to_value(&budget)
            .map_err(|error| StatusError::internal(format!("writing a budget: {error}")))
    })
    .await;
    match written {
        Err(error) if error.code() == 409 => {
            let why = format!(
                "couldn't update PodDisruptionBudget {:?} due to conflicts",
                guarded.name()
            );
            Err(StatusError::timeout(&why, 10))
        }
        written => written.map(drop),
    }
}

fn typed(object: Value) -> Result<PodDisruptionBudget, StatusError> {
    serde_json::from_value(object)
        .map_err(|error| StatusError::internal(format!("a stored budget is damaged: {error}")))
}

/// Deletes the pod, which says why it goes.
async fn delete(context: &Context<'_>, options: &Options) -> Result<(), StatusError> {
    let now = context.api.clock.stamp();
    let deleted = delete_telling(context, options, |pod| {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "lastProbeTime": null, "lastTransitionTime": null,
            "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        });
        pod_condition::set(pod, condition, &now);
    })
    .await;
    deleted.map(drop)
}

#[cfg(test)]
mod tests;
