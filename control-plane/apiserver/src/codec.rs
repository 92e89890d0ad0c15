//! Stored bytes and what clients read.
//!
//! A stored value is the object's JSON with `metadata` first, and without `kind`, `apiVersion` and `resourceVersion`:
//! `{"metadata":{"name":...},"spec":...}`. Readers get the rest spliced in and the bytes copied: an item of a list
//! gains its revision, a single object also its kind. No object is encoded again per reader.

use bytes::{BufMut, Bytes, BytesMut};
use gantry_api::json::Members;
use gantry_api::kind::{ResourceInfo, ResourceKind};
use gantry_api::status::StatusError;
use gantry_store::{Entry, Index, Revision};
use serde_json::{Map, Value, json};

/// How every stored value starts.
const START: &[u8] = br#"{"metadata":{"#;

/// The largest object that clients may store, in bytes: what etcd takes in one request.
const MAX_OBJECT: usize = 3 << 19;

/// Encodes an object that a client wrote; `before` is the size of what it replaces, which may shrink whatever it is.
pub(crate) fn encode_bounded(object: &Value, before: usize) -> Result<Bytes, StatusError> {
    let bytes = encode(object)?;
    match bytes.len() > MAX_OBJECT.max(before) {
        true => Err(StatusError::too_large(MAX_OBJECT)),
        false => Ok(bytes),
    }
}

/// Encodes an object for the store.
pub(crate) fn encode(object: &Value) -> Result<Bytes, StatusError> {
    let failed =
        |error: serde_json::Error| StatusError::internal(format!("encoding an object: {error}"));
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let mut metadata = fields.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("resourceVersion");
    }
    let mut bytes = Vec::with_capacity(1024);
    bytes.extend_from_slice(br#"{"metadata":"#);
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
pub(crate) fn decode(info: &ResourceInfo, value: &[u8]) -> Result<Value, StatusError> {
    let mut object: Value = serde_json::from_slice(value).map_err(|error| {
        StatusError::internal(format!("a stored {} is damaged: {error}", info.kind))
    })?;
    *object.member(&["kind"]) = json!(info.kind);
    *object.member(&["apiVersion"]) = json!(api_version(info));
    Ok(object)
}

/// The object of an entry as a client reads it.
pub(crate) fn decode_for_client(info: &ResourceInfo, entry: &Entry) -> Result<Value, StatusError> {
    let mut object = decode(info, &entry.value)?;
    *object.member(&["metadata", "resourceVersion"]) = json!(entry.modify_revision.to_string());
    Ok(object)
}

/// Writes an item of a list: the bytes with the revision spliced in.
pub(crate) fn write_item(into: &mut BytesMut, value: &[u8], revision: Revision) {
    into.put_slice(START);
    write_rest(into, value, revision);
}

/// Writes a single object: the bytes with kind, apiVersion and revision spliced in.
pub(crate) fn write_object(
    into: &mut BytesMut,
    info: &ResourceInfo,
    value: &[u8],
    revision: Revision,
) {
    write_kind(into, info);
    write_rest(into, value, revision);
}

/// Writes how a single object begins.
fn write_kind(into: &mut BytesMut, info: &ResourceInfo) {
    // Names of kinds and groups need no escaping.
    into.put_slice(
        format!(
            r#"{{"kind":"{}","apiVersion":"{}","metadata":{{"#,
            info.kind,
            api_version(info)
        )
        .as_bytes(),
    );
}

fn write_rest(into: &mut BytesMut, value: &[u8], revision: Revision) {
    write_revision(into, value, revision);
    into.put_slice(value.get(START.len()..).unwrap_or_default());
}

fn write_revision(into: &mut BytesMut, value: &[u8], revision: Revision) {
    into.put_slice(format!(r#""resourceVersion":"{revision}""#).as_bytes());
    if value.get(START.len()) != Some(&b'}') {
        into.put_u8(b',');
    }
}

/// Writes the beginning of an item of a list, and returns the rest of it as it is stored: nothing large is copied for a
/// reader.
pub(crate) fn begin_item(into: &mut BytesMut, value: &Bytes, revision: Revision) -> Bytes {
    into.put_slice(START);
    write_revision(into, value, revision);
    value.slice(START.len().min(value.len())..)
}

/// As [`begin_item`], of a single object.
pub(crate) fn begin_object(
    into: &mut BytesMut,
    info: &ResourceInfo,
    value: &Bytes,
    revision: Revision,
) -> Bytes {
    write_kind(into, info);
    write_revision(into, value, revision);
    value.slice(START.len().min(value.len())..)
}

/// A single object as bytes.
pub(crate) fn object_bytes(info: &ResourceInfo, value: &[u8], revision: Revision) -> Bytes {
    let mut bytes = BytesMut::with_capacity(value.len() + 128);
    write_object(&mut bytes, info, value, revision);
    bytes.freeze()
}

/// `v1` or `apps/v1`.
pub(crate) fn api_version(info: &ResourceInfo) -> String {
    match info.group {
        "" => info.version.to_owned(),
        group => format!("{group}/{}", info.version),
    }
}

/// What selectors look at, of a stored object.
pub(crate) fn index(kind: &dyn ResourceKind, object: &Value) -> Index {
    index_of(object, kind.selectable_fields(object))
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

    const INFO: ResourceInfo = ResourceInfo {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: true,
        has_scale: true,
        has_generation: true,
        create_on_update: false,
    };

    #[test]
    fn what_is_spliced_is_what_was_stored() {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "resourceVersion": "3"}, "spec": {"replicas": 1},
        });
        let stored = encode(&object).expect("encodes");
        assert_eq!(
            &stored[..],
            br#"{"metadata":{"name":"a"},"spec":{"replicas":1}}"#
        );
        let read: Value =
            serde_json::from_slice(&object_bytes(&INFO, &stored, Revision(7))).expect("JSON");
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = json!("7");
        assert_eq!(read, expected);
        let mut item = BytesMut::new();
        write_item(
            &mut item,
            &encode(&json!({"metadata": {}})).expect("encodes"),
            Revision(7),
        );
        assert_eq!(&item[..], br#"{"metadata":{"resourceVersion":"7"}}"#);
    }
}
