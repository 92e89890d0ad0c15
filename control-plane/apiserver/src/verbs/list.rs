//! GET of a collection: all of it, or page by page at one revision; as objects, metadata or a Table.

mod listing;
pub(super) mod options;

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use gantry_api::json::{Members, syntax_error};
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
use crate::media::{Form, Format, Media};
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
    /// How many objects are behind this one, where that is known: so no page counts what another has counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<usize>,
}

/// The options of a list, in the order in which Kubernetes reads them.
pub(super) struct ListOptions {
    pub(super) selection: Selection,
    /// 0 for all.
    pub(super) limit: usize,
    pub(super) page: Option<Continue>,
}

impl ListOptions {
    pub(super) fn read(context: &Context<'_>) -> Result<Self, StatusError> {
        let query = context.query;
        query.number("timeoutSeconds")?;
        let limit = query.number("limit")?.unwrap_or(0);
        let selection = Selection::parse(context)?;
        options::check(query)?;
        let selection = selection.of(context)?;
        let page = query.get("continue").map(parse_token).transpose()?;
        let limit = usize::try_from(limit).unwrap_or(0);
        // Who is content with anything is given everything.
        let any = page.is_none() && query.get("resourceVersion") == Some("0");
        Ok(Self {
            selection,
            limit: if any { 0 } else { limit },
            page,
        })
    }

    /// The last object before those that are asked for.
    pub(super) fn cursor(&self) -> Option<(Arc<str>, Arc<str>)> {
        let page = self.page.as_ref()?;
        Some((page.namespace.as_str().into(), page.name.as_str().into()))
    }
}

/// The snapshot a list is of: the one its page token or `resourceVersion` names, or the newest.
pub(super) fn snapshot(
    context: &Context<'_>,
    options: &ListOptions,
) -> Result<TableSnapshot, StatusError> {
    let page = options.page.as_ref();
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
    let exact = match context.query.get("resourceVersionMatch") {
        None => options.limit > 0 && version > 0,
        Some(how) => how == "Exact",
    };
    if exact {
        return store.snapshot_at(table, Revision(version)).ok_or_else(|| {
            StatusError::gone_expired("The resourceVersion for the provided list is too old.")
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
    let options = ListOptions::read(context)?;
    check_object_policy(context, media)?;
    let snapshot = snapshot(context, &options)?;
    page(context, media, snapshot, options).await
}

/// The objects of a snapshot that are asked for.
pub(super) async fn page(
    context: &Context<'_>,
    media: Media,
    snapshot: TableSnapshot,
    options: ListOptions,
) -> Result<Answer, StatusError> {
    let more = match options.limit {
        0 => None,
        _ => more(context, &snapshot, &options).await,
    };
    let head = list_head(context, media, snapshot.revision(), more.as_ref());
    let namespace = context.namespace().map(str::to_owned);
    let cursor = options.cursor();
    let items = Scan::new(
        snapshot,
        namespace,
        options.selection,
        cursor,
        options.limit,
    );
    Listing::new(context, media, head, items).answer()
}

/// What is behind a page, if anything: an object, be it selected or not, as in Kubernetes.
async fn more(
    context: &Context<'_>,
    snapshot: &TableSnapshot,
    options: &ListOptions,
) -> Option<More> {
    let (selection, limit) = (&options.selection, options.limit);
    let namespace = context.namespace();
    if selection.is_single() && (namespace.is_some() || !context.resource.info().namespaced) {
        return None;
    }
    let (mut found, mut last) = (0, None);
    let mut walk = Walk::new(snapshot, namespace, selection, options.cursor());
    loop {
        let follows = walk.step(|namespace, name| {
            found += 1;
            if found == limit {
                last = Some((namespace.clone(), name.clone()));
            }
        });
        if !follows || found >= limit {
            break;
        }
        tokio::task::yield_now().await;
    }
    let last = last?;
    let behind = Some((&*last.0, &*last.1));
    snapshot.range_after(namespace, behind).next()?;
    let left = match selection.is_everything() {
        true => Some(left(snapshot, namespace, options, &last).await),
        // The count would have to look at everything that was not asked for.
        false => None,
    };
    let token = Continue {
        revision: snapshot.revision().0,
        namespace: last.0.to_string(),
        name: last.1.to_string(),
        left,
    };
    Some(More {
        token: TOKENS.encode(json!(token).to_string()),
        remaining: left,
    })
}

/// How many objects are behind the last of a page. Only the first page of a namespace, which is a part of a table, counts
/// them.
async fn left(
    snapshot: &TableSnapshot,
    namespace: Option<&str>,
    options: &ListOptions,
    last: &(Arc<str>, Arc<str>),
) -> usize {
    let known = match (&options.page, namespace) {
        (Some(page), _) => page.left,
        (None, None) => Some(snapshot.len()),
        (None, Some(_)) => None,
    };
    if let Some(known) = known {
        return known.saturating_sub(options.limit);
    }
    let mut count = 0;
    let mut walk = Walk::new(snapshot, namespace, &options.selection, Some(last.clone()));
    while walk.step(|_, _| count += 1) {
        tokio::task::yield_now().await;
    }
    count
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
    let bytes = TOKENS.decode(token).map_err(|_| {
        // Go names the first byte it cannot use, or the one that is left over.
        let is_odd = |byte: u8| !(byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let odd = token.bytes().position(is_odd);
        let at = odd.unwrap_or(token.len().saturating_sub(1));
        invalid(format!("illegal base64 data at input byte {at}"))
    })?;
    serde_json::from_slice(&bytes).map_err(|_| {
        let unknown = || "server does not recognize this encoded version ".to_owned();
        invalid(syntax_error(&bytes).unwrap_or_else(unknown))
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
