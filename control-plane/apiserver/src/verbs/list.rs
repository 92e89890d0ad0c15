//! GET of a collection: all of it, or page by page at one revision; as objects, metadata or a Table.

use std::sync::Arc;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use bytes::{BufMut, BytesMut};
use gantry_api::field::{ErrorList, Path};
use gantry_api::kind::ResourceInfo;
use gantry_api::status::StatusError;
use gantry_store::{Entry, Revision, TableSnapshot};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::selection::Selection;
use crate::codec;
use crate::context::Context;
use crate::heavy::Turn;
use crate::request::parse_version;
use crate::response::Answer;

/// Page tokens. Go's decoder does not mind bits that are left over.
const TOKENS: GeneralPurpose =
    GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// Where the next page starts, and which revision the list is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Continue {
    #[serde(rename = "rv")]
    revision: u64,
    namespace: String,
    name: String,
}

/// The shape a client asked for instead of whole objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Table,
    Metadata,
}

/// Reads the Accept header; a transformation that is not known is skipped, as long as another type follows.
pub(crate) fn wants_table(headers: &HeaderMap) -> Result<Option<Shape>, StatusError> {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*");
    for choice in accept.split(',') {
        let mut parts = choice.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let parameters: Vec<&str> = parts.collect();
        let parameter = |name: &str| {
            parameters
                .iter()
                .find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='))
        };
        let json = [
            "application/json",
            "*/*",
            "application/*",
            "application/yaml",
        ]
        .contains(&media_type);
        match (parameter("as"), parameter("g"), parameter("v")) {
            (None, ..) if json => return Ok(None),
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) if json => {
                return Ok(Some(Shape::Table));
            }
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1"),
            ) if json => {
                return Ok(Some(Shape::Metadata));
            }
            _ => {}
        }
    }
    Err(StatusError::not_acceptable(&[
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
    ]))
}

fn invalid_options(fill: impl FnOnce(&mut ErrorList, &Path)) -> StatusError {
    let mut errors = ErrorList::default();
    fill(&mut errors, &Path::new("resourceVersionMatch"));
    StatusError::invalid_kind("meta.k8s.io", "ListOptions", "", errors)
}

/// Checks how `resourceVersion`, `resourceVersionMatch` and `continue` are combined.
fn check_options(context: &Context<'_>) -> Result<(), StatusError> {
    let version = context.query.get("resourceVersion");
    let Some(how) = context.query.get("resourceVersionMatch") else {
        return Ok(());
    };
    if context.query.get("continue").is_some() {
        return Err(invalid_options(|errors, path| {
            errors.forbidden(
                path,
                "resourceVersionMatch is forbidden when continue is provided",
            );
        }));
    }
    if version.is_none() {
        return Err(invalid_options(|errors, path| {
            errors.forbidden(
                path,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }));
    }
    if !["Exact", "NotOlderThan"].contains(&how) {
        return Err(invalid_options(|errors, path| {
            errors.not_supported(path, how, &["Exact", "NotOlderThan", ""]);
        }));
    }
    if how == "Exact" && version == Some("0") {
        return Err(invalid_options(|errors, path| {
            errors.forbidden(
                path,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }));
    }
    Ok(())
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
    let info = context.resource.info();
    let selection = Selection::read(context)?;
    let limit = usize::try_from(context.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    context.query.number("timeoutSeconds")?;
    check_options(context)?;
    let page = context.query.get("continue").map(parse_token).transpose()?;
    let shape = wants_table(context.headers)?;
    let snapshot = snapshot(context, page.as_ref())?;
    let cursor = page
        .as_ref()
        .map(|page| (page.namespace.as_str(), page.name.as_str()));
    let mut entries: Vec<Arc<Entry>> = Vec::new();
    let mut next = None;
    let mut last: Option<(Arc<str>, Arc<str>)> = None;
    let mut remaining: usize = 0;
    for (key, entry) in snapshot.range_after(context.namespace(), cursor) {
        if !selection.matches(&key.0, &key.1, entry) {
            continue;
        }
        if limit > 0 && entries.len() == limit {
            if next.is_none() {
                next = last.clone();
            }
            remaining += 1;
            continue;
        }
        entries.push(entry.clone());
        last = Some(key.clone());
    }
    let more = next.map(|(namespace, name)| {
        let token = Continue {
            revision: snapshot.revision().0,
            namespace: namespace.to_string(),
            name: name.to_string(),
        };
        More {
            token: TOKENS.encode(json!(token).to_string()),
            // With a selector the count would have to look at everything that was not asked for.
            remaining: selection.is_everything().then_some(remaining),
        }
    });
    let size: usize = entries.iter().map(|entry| entry.value.len() + 64).sum();
    if let Some(shape) = shape {
        let revision = snapshot.revision();
        // What was checked before is read sooner than it was checked.
        let turn = Turn::wait(size / 4).await;
        return turn.work(|| as_table(context, shape, &entries, revision, more.as_ref()));
    }
    let mut bytes = BytesMut::with_capacity(size + 256);
    bytes.put_slice(list_prefix(info, snapshot.revision(), more.as_ref()).as_bytes());
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            bytes.put_u8(b',');
        }
        codec::write_item(&mut bytes, &entry.value, entry.modify_revision);
    }
    bytes.put_slice(b"]}");
    Ok(Answer::bytes(bytes.freeze()))
}

/// What a page leaves for the next ones.
pub(crate) struct More {
    token: String,
    remaining: Option<usize>,
}

fn list_metadata(revision: Revision, more: Option<&More>) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(more) = more {
        metadata["continue"] = json!(more.token);
        if let Some(remaining) = more.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    metadata
}

/// Everything of a list before its items.
pub(crate) fn list_prefix(info: &ResourceInfo, revision: Revision, more: Option<&More>) -> String {
    format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{},"items":["#,
        info.kind,
        codec::api_version(info),
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

/// A Table or a list of metadata, of one object or many.
pub(crate) fn as_table(
    context: &Context<'_>,
    shape: Shape,
    entries: &[Arc<Entry>],
    revision: Revision,
    more: Option<&More>,
) -> Result<Answer, StatusError> {
    let single = context.path.name.is_some();
    match shape {
        Shape::Table => {
            let mut table = json!({
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": list_metadata(revision, more),
                "columnDefinitions": column_definitions(context),
                "rows": [],
            });
            let rows: Result<Vec<Value>, StatusError> =
                entries.iter().map(|entry| row(context, entry)).collect();
            table["rows"] = Value::Array(rows?);
            Ok(Answer::value(&table))
        }
        Shape::Metadata => {
            let mut items = Vec::with_capacity(entries.len());
            for entry in entries {
                items.push(partial(context, entry)?);
            }
            Ok(Answer::value(&match items.as_slice() {
                [item] if single => item.clone(),
                _ => json!({
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": list_metadata(revision, more),
                    "items": items,
                }),
            }))
        }
    }
}

/// The columns of a kind's Table.
pub(crate) fn column_definitions(context: &Context<'_>) -> Value {
    context
        .resource
        .kind
        .columns()
        .into_iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

/// One row of a Table, with as much of the object as `includeObject` asks for.
pub(crate) fn row(context: &Context<'_>, entry: &Entry) -> Result<Value, StatusError> {
    let info = context.resource.info();
    let object = codec::decode(info, &entry.value)?;
    let cells = context.resource.kind.row(&object, context.api.clock.now());
    let object = match context.query.get("includeObject") {
        Some("None") => Value::Null,
        Some("Object") => codec::decode_for_client(info, entry)?,
        None | Some("Metadata") => partial(context, entry)?,
        Some(other) => {
            let mut errors = ErrorList::default();
            errors.invalid(
                &Path::new("includeObject"),
                other,
                "must be 'Metadata', 'Object', 'None', or empty",
            );
            return Err(StatusError::invalid_kind(
                "meta.k8s.io",
                "TableOptions",
                "",
                errors,
            ));
        }
    };
    Ok(json!({"cells": cells, "object": object}))
}

/// An object's metadata by itself.
pub(crate) fn partial(context: &Context<'_>, entry: &Entry) -> Result<Value, StatusError> {
    let object = codec::decode_for_client(context.resource.info(), entry)?;
    Ok(json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    }))
}
