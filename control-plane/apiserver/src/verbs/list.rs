//! GET of a collection: all of it, or page by page at one revision; as objects, metadata or a Table.

mod listing;
pub(super) mod options;

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use gantry_api::status::StatusError;
use gantry_api::yaml;
use gantry_store::{Revision, TableSnapshot};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::listing::Listing;
use super::scan::{Scan, Walk};
use super::selection::Selection;
use crate::context::Context;
use crate::encoder::{check_object_policy, column_definitions, not_a_single_object};
use crate::media::{Form, Format, Media, PLAIN};
use crate::request::parse_version;
use crate::response::Answer;

/// Page tokens. Go's decoder does not mind bits that are left over.
const TOKENS: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// Where the next page starts, and which revision the list is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Continue {
    #[serde(rename = "rv")]
    pub(crate) revision: u64,
    namespace: String,
    name: String,
}

/// The snapshot a list is of: the one its page token or `resourceVersion` names, or the newest.
fn snapshot(context: &Context<'_>, page: Option<&Continue>) -> Result<TableSnapshot, StatusError> {
    let store = &context.api.store;
    let table = &context.resource.table;
    if let Some(page) = page {
        if context
            .query
            .get("resourceVersion")
            .is_some_and(|version| version != "0")
        {
            return Err(StatusError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        return store.snapshot_at(table, Revision(page.revision)).ok_or_else(|| {
            StatusError::gone_expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            )
        });
    }
    let Some(version) = context.query.get("resourceVersion") else {
        return Ok(store.snapshot(table));
    };
    let version = parse_version(version)
        .map_err(|why| StatusError::bad_request(format!("invalid resource version: {why}")))?;
    if version > store.revision().0 {
        return Err(StatusError::too_large_resource_version(
            version,
            store.revision().0,
        ));
    }
    if context.query.get("resourceVersionMatch") == Some("Exact") {
        return store.snapshot_at(table, Revision(version)).ok_or_else(|| {
            StatusError::gone_expired(format!(
                "The resourceVersion for the provided list is too old: {version}"
            ))
        });
    }
    Ok(store.snapshot(table))
}

pub(crate) async fn list(context: &Context<'_>) -> Result<Answer, StatusError> {
    let media = Media::of_list(context.headers)?.prettier(context.headers, context.query);
    if media
        .shape
        .is_some_and(|shape| shape.form == Form::Metadata)
    {
        return Err(not_a_single_object(context));
    }
    let selection = Selection::read(context)?;
    let limit = usize::try_from(context.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    context.query.number("timeoutSeconds")?;
    options::check(context.query)?;
    let page = context.query.get("continue").map(parse_token).transpose()?;
    check_object_policy(context, media)?;
    let snapshot = snapshot(context, page.as_ref())?;
    let cursor = page.map(|page| (Arc::from(page.namespace), Arc::from(page.name)));
    let more = match limit {
        0 => None,
        limit => more(context, &snapshot, &selection, cursor.clone(), limit).await,
    };
    let head = list_head(context, media, snapshot.revision(), more.as_ref());
    let namespace = context.namespace().map(str::to_owned);
    let items = Scan::new(snapshot, namespace, selection, cursor, limit);
    Listing::new(context, media, head, items).answer()
}

/// The objects of a snapshot that are selected, as [`list`] answers with whole ones.
pub(crate) fn selected(
    context: &Context<'_>,
    snapshot: TableSnapshot,
    selection: Selection,
) -> Result<Answer, StatusError> {
    let head = list_prefix(context.resource.info(), snapshot.revision(), None);
    let namespace = context.namespace().map(str::to_owned);
    let items = Scan::new(snapshot, namespace, selection, None, 0);
    Listing::new(context, PLAIN, head, items).answer()
}

/// What is behind the next `limit` objects, if anything.
async fn more(
    context: &Context<'_>,
    snapshot: &TableSnapshot,
    selection: &Selection,
    cursor: Option<(Arc<str>, Arc<str>)>,
    limit: usize,
) -> Option<More> {
    let (mut found, mut last) = (0, None);
    let mut walk = Walk::new(snapshot, context.namespace(), selection, cursor);
    loop {
        let follows = walk.step(|namespace, name| {
            found += 1;
            if found == limit {
                last = Some((namespace.to_string(), name.to_string()));
            }
        });
        // With a selector the count would have to look at everything that was not asked for.
        let enough = found > limit && !selection.is_everything();
        if !follows || enough {
            break;
        }
        tokio::task::yield_now().await;
    }
    let (namespace, name) = last.filter(|_| found > limit)?;
    let token = Continue {
        revision: snapshot.revision().0,
        namespace,
        name,
    };
    Some(More {
        token: TOKENS.encode(json!(token).to_string()),
        remaining: selection.is_everything().then(|| found - limit),
    })
}

/// What a page leaves for the next ones.
pub(crate) struct More {
    token: String,
    remaining: Option<usize>,
}

fn list_metadata(revision: Revision, more: Option<&More>) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(more) = more {
        *metadata.member(&["continue"]) = json!(more.token);
        if let Some(remaining) = more.remaining {
            *metadata.member(&["remainingItemCount"]) = json!(remaining);
        }
    }
    metadata
}

/// Everything of a list before its items.
fn list_prefix(info: &ResourceInfo, revision: Revision, more: Option<&More>) -> String {
    format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{},"items":["#,
        info.kind,
        info.api_version(),
        list_metadata(revision, more)
    )
}

pub(crate) fn parse_token(token: &str) -> Result<Continue, StatusError> {
    let invalid = |why: String| {
        StatusError::bad_request(format!(
            "invalid continue token: continue key is not valid: {why}"
        ))
    };
    let bytes = TOKENS
        .decode(token)
        .map_err(|error| invalid(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|_| {
        // Go names the first byte it cannot use.
        let first = bytes.first().copied().unwrap_or(0);
        let shown = match char::from(first) {
            letter if (' '..='~').contains(&letter) => letter.to_string(),
            letter => format!("\\u{:04x}", u32::from(letter)),
        };
        invalid(format!(
            "invalid character '{shown}' looking for beginning of value"
        ))
    })
}

/// Everything of a list before its items.
fn list_head(
    context: &Context<'_>,
    media: Media,
    revision: Revision,
    more: Option<&More>,
) -> String {
    let info = context.resource.info();
    if (media.format, media.shape) == (Format::Json, None) {
        return list_prefix(info, revision, more);
    }
    let mut head = match media.shape {
        Some(shape) if shape.form == Form::Table => json!({
            "kind": "Table",
            "apiVersion": shape.api_version,
            "columnDefinitions": column_definitions(context),
        }),
        Some(shape) => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": shape.api_version,
        }),
        None => json!({
            "kind": format!("{}List", info.kind),
            "apiVersion": info.api_version(),
        }),
    };
    *head.member(&["metadata"]) = list_metadata(revision, more);
    let items = match media.shape {
        Some(shape) if shape.form == Form::Table => "rows",
        _ => "items",
    };
    match media.format {
        Format::Yaml => format!("{}{items}:", yaml::to_string(&head)),
        _ => {
            let mut text = head.to_string();
            text.pop();
            format!(r#"{text},"{items}":["#)
        }
    }
}
