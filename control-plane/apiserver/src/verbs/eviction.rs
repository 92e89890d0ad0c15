//! `pods/eviction`: a deletion that disruption budgets may refuse. There are none to refuse it yet.

use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::api::policy::v1::Eviction;
use serde::Deserialize;
use serde_json::Value;

use super::delete::{Options, delete_one};
use super::update::success;
use crate::context::{Context, dry_run, meta};
use crate::response::Answer;

pub(crate) async fn evict(context: &Context<'_>) -> Result<Answer, StatusError> {
    let malformed = |error: serde_json::Error| {
        StatusError::bad_request(format!("the body is not an Eviction: {error}"))
    };
    let eviction: Value = serde_json::from_slice(&context.body).map_err(malformed)?;
    Eviction::deserialize(&eviction).map_err(malformed)?;
    let name = meta(&eviction, "name");
    if !name.is_empty() && name != context.name() {
        return Err(StatusError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let wanted = &eviction["deleteOptions"];
    let mut dry_runs: Vec<String> = wanted["dryRun"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect();
    dry_runs.extend(context.query.all("dryRun").iter().cloned());
    let options = Options {
        grace_period: wanted["gracePeriodSeconds"].as_i64(),
        propagation: wanted["propagationPolicy"].as_str().map(str::to_owned),
        uid: wanted["preconditions"]["uid"].as_str().map(str::to_owned),
        resource_version: wanted["preconditions"]["resourceVersion"]
            .as_str()
            .map(str::to_owned),
        dry_run: dry_run(&dry_runs, "DeleteOptions")?,
    };
    delete_one(context, &options).await?;
    Ok(success(StatusCode::CREATED))
}
