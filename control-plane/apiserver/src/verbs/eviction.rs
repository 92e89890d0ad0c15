//! `pods/eviction`: a deletion that disruption budgets may refuse. There are none to refuse it yet.

use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::api::policy::v1::Eviction;
use serde::Deserialize;

use super::body;
use super::delete::{Options, delete_one};
use super::write::success;
use crate::context::Context;
use crate::response::Answer;

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
    let dry_runs = wanted.dry_run.get_or_insert_default();
    dry_runs.extend(context.query.all("dryRun").iter().cloned());
    // Options are looked at where there is something to delete.
    context.current()?;
    let options = Options::of(wanted)?;
    delete_one(context, &options).await?;
    Ok(success(StatusCode::CREATED))
}
