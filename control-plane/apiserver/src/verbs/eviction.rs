//! `pods/eviction`: a deletion that disruption budgets may refuse. There are none to refuse it yet.

use gantry_api::status::StatusError;
use http::StatusCode;
use k8s_openapi::api::policy::v1::Eviction;

use super::delete::{Options, delete_one};
use super::write::success;
use crate::admission::namespace_lifecycle;
use crate::context::Context;
use crate::response::Answer;

pub(crate) async fn evict(context: &Context<'_>) -> Result<Answer, StatusError> {
    let eviction: Eviction = context.request("Eviction").await?;
    namespace_lifecycle::admit_subresource(context)?;
    let name = eviction.metadata.name.unwrap_or_default();
    if name != context.name() {
        return Err(StatusError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let mut wanted = eviction.delete_options.unwrap_or_default();
    let dry_runs = wanted.dry_run.get_or_insert_default();
    dry_runs.extend(context.query.all("dryRun").iter().cloned());
    let options = Options::of(wanted)?;
    delete_one(context, &options).await?;
    Ok(success(StatusCode::CREATED))
}
