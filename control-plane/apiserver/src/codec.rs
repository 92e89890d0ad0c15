//! Stored bytes and what clients read.
//!
//! A stored value is the object's JSON with `metadata` first, and without `kind`, `apiVersion` and `resourceVersion`:
//! `{"metadata":{"name":...},"spec":...}`. Readers get the rest spliced in and the bytes copied: an item of a list
//! gains its revision, a single object also its kind. No object is encoded again per reader.
//!
//! A table holds objects of one kind, its hub, however many versions of them are served: what is read or written in another
//! is converted here. A value that was stored in another version, when that was the table's, begins with `apiVersion`.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use gantry_api::json::Members;
use gantry_api::kind::ResourceInfo;
use gantry_api::status::StatusError;
use gantry_store::{Entry, Index, Revision};
use serde_json::{Map, Value, json};

use crate::registry::Resource;

/// How every stored value starts.
const START: &[u8] = br#"{"metadata":{"#;

/// The largest object that clients may store, in bytes: what etcd takes in one request.
const MAX_OBJECT: usize = 3 << 19;

/// Encodes an object that a client wrote; `before` is the size of what it replaces, which may shrink whatever it is.
pub(crate) fn encode_bounded(
    resource: &Resource,
    object: &Value,
    before: usize,
) -> Result<Bytes, StatusError> {
    let bytes = encode(resource, object)?;
    match bytes.len() > MAX_OBJECT.max(before) {
        true => Err(StatusError::too_large(MAX_OBJECT)),
        false => Ok(bytes),
    }
}

/// Encodes an object of a resource for the store.
pub(crate) fn encode(resource: &Resource, object: &Value) -> Result<Bytes, StatusError> {
    let stored = match resource.is_stored() {
        true => Cow::Borrowed(object),
        false => Cow::Owned(resource.to_stored(object.clone())?),
    };
    write(&stored, resource.mark())
}

/// `mark` is the version that the bytes must name.
fn write(object: &Value, mark: Option<String>) -> Result<Bytes, StatusError> {
    let failed =
        |error: serde_json::Error| StatusError::internal(format!("encoding an object: {error}"));
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut metadata = fields.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("resourceVersion");
    }
    let mut bytes = Vec::with_capacity(1024);
    bytes.push(b'{');
    if let Some(version) = mark {
        bytes.extend_from_slice(br#""apiVersion":"#);
        serde_json::to_writer(&mut bytes, &version).map_err(failed)?;
        bytes.push(b',');
    }
    bytes.extend_from_slice(br#""metadata":"#);
    serde_json::to_writer(&mut bytes, &metadata).map_err(failed)?;
    for (name, value) in fields {
        if !["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            bytes.push(b',');
            serde_json::to_writer(&mut bytes, name).map_err(failed)?;
            bytes.push(b':');
            serde_json::to_writer(&mut bytes, value).map_err(failed)?;
        }
    }
    bytes.push(b'}');
    Ok(bytes.into())
}

/// The object of an entry, as its kind's logic wants it: with kind and apiVersion, without resourceVersion.
pub(crate) fn decode(resource: &Resource, value: &[u8]) -> Result<Value, StatusError> {
    let info = resource.info();
    let mut object: Value = serde_json::from_slice(value).map_err(|error| {
        StatusError::internal(format!("a stored {} is damaged: {error}", info.kind))
    })?;
    if !is_as_served(resource, value) {
        object = resource.convert_stored(object)?;
    }
    *object.member(&["kind"]) = json!(info.kind);
    *object.member(&["apiVersion"]) = json!(info.api_version());
    Ok(object)
}

/// The object of an entry as a client reads it.
pub(crate) fn decode_for_client(resource: &Resource, entry: &Entry) -> Result<Value, StatusError> {
    decode_at(resource, &entry.value, entry.modify_revision)
}

/// As [`decode_for_client`]; at revision 0 an object has none.
pub(crate) fn decode_at(
    resource: &Resource,
    value: &[u8],
    revision: Revision,
) -> Result<Value, StatusError> {
    let mut object = decode(resource, value)?;
    if revision.0 > 0 {
        *object.member(&["metadata", "resourceVersion"]) = json!(revision.to_string());
    }
    Ok(object)
}

/// Whether a value is what clients of the resource read, but for its kind and revision.
fn is_as_served(resource: &Resource, value: &[u8]) -> bool {
    resource.is_stored() && resource.mark().is_none() && value.starts_with(START)
}

/// A value in the version in which the resource serves it.
fn served<'a>(resource: &Resource, value: &'a Bytes) -> Result<Cow<'a, Bytes>, StatusError> {
    match is_as_served(resource, value) {
        true => Ok(Cow::Borrowed(value)),
        false => write(&decode(resource, value)?, None).map(Cow::Owned),
    }
}

/// Writes how a single object begins.
fn write_kind(into: &mut BytesMut, info: &ResourceInfo) {
    // Names of kinds and groups need no escaping.
    into.put_slice(
        format!(
            r#"{{"kind":"{}","apiVersion":"{}","metadata":{{"#,
            info.kind,
            info.api_version()
        )
        .as_bytes(),
    );
}

fn write_revision(into: &mut BytesMut, value: &[u8], revision: Revision) {
    if revision.0 == 0 {
        return;
    }
    into.put_slice(format!(r#""resourceVersion":"{revision}""#).as_bytes());
    if value.get(START.len()) != Some(&b'}') {
        into.put_u8(b',');
    }
}

/// Writes the beginning of an item of a list, and returns the rest of it as it is stored: nothing large is copied for a
/// reader.
pub(crate) fn begin_item(
    into: &mut BytesMut,
    resource: &Resource,
    value: &Bytes,
    revision: Revision,
) -> Result<Bytes, StatusError> {
    let value = served(resource, value)?;
    into.put_slice(START);
    write_revision(into, &value, revision);
    Ok(value.slice(START.len().min(value.len())..))
}

/// As [`begin_item`], of a single object, which names its kind.
pub(crate) fn begin_object(
    into: &mut BytesMut,
    resource: &Resource,
    value: &Bytes,
    revision: Revision,
) -> Result<Bytes, StatusError> {
    let value = served(resource, value)?;
    write_kind(into, resource.info());
    write_revision(into, &value, revision);
    Ok(value.slice(START.len().min(value.len())..))
}

/// A single object as bytes; at revision 0 it has none.
pub(crate) fn object_bytes(
    resource: &Resource,
    value: &Bytes,
    revision: Revision,
) -> Result<Bytes, StatusError> {
    let mut bytes = BytesMut::with_capacity(value.len() + 128);
    let rest = begin_object(&mut bytes, resource, value, revision)?;
    bytes.put_slice(&rest);
    Ok(bytes.freeze())
}

/// What selectors look at, of a stored object.
pub(crate) fn index(resource: &Resource, object: &Value) -> Index {
    index_of(object, resource.selectable_fields(object))
}

/// What selectors look at, of an object whose selectable fields are known.
pub(crate) fn index_of(object: &Value, mut fields: Vec<(String, String)>) -> Index {
    let mut labels: Vec<(String, String)> = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    labels.sort();
    fields.retain(|(name, _)| name != "metadata.name" && name != "metadata.namespace");
    fields.sort();
    Index { labels, fields }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use std::sync::Arc;

    fn deployments() -> Arc<Resource> {
        let registry = Registry::built_in();
        let found = registry.get("apps", "v1", "deployments");
        found.cloned().expect("is served")
    }

    #[test]
    fn what_is_spliced_is_what_was_stored() {
        let resource = deployments();
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "resourceVersion": "3"}, "spec": {"replicas": 1},
        });
        let stored = encode(&resource, &object).expect("encodes");
        assert_eq!(
            &stored[..],
            br#"{"metadata":{"name":"a"},"spec":{"replicas":1}}"#
        );
        let text = object_bytes(&resource, &stored, Revision(7)).expect("reads");
        let read: Value = serde_json::from_slice(&text).expect("JSON");
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = json!("7");
        assert_eq!(read, expected);
        let dry = object_bytes(&resource, &stored, Revision(0)).expect("reads");
        let dry: Value = serde_json::from_slice(&dry).expect("JSON");
        assert_eq!(dry["metadata"], json!({"name": "a"}));
        let mut item = BytesMut::new();
        let empty = encode(&resource, &json!({"metadata": {}})).expect("encodes");
        let rest = begin_item(&mut item, &resource, &empty, Revision(7)).expect("reads");
        item.put_slice(&rest);
        assert_eq!(&item[..], br#"{"metadata":{"resourceVersion":"7"}}"#);
    }
}
