//! DELETE of a collection: every object that the selectors match, each as if deleted by itself.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use gantry_api::status::StatusError;

use super::delete::{Options, delete_one};
use super::list::list_prefix;
use super::selection::Selection;
use crate::codec;
use crate::context::Context;
use crate::request::ResourcePath;
use crate::response::Answer;

pub(crate) async fn delete_collection(context: &Context<'_>) -> Result<Answer, StatusError> {
    let info = context.resource.info();
    // Namespaces are too much to lose in one request.
    if info.kind == "Namespace" || (info.namespaced && context.namespace().is_none()) {
        return Err(StatusError::method_not_allowed());
    }
    let options = Options::read(context)?;
    let selection = Selection::read(context)?;
    let snapshot = context.api.store.snapshot(&context.resource.table);
    let mut items = BytesMut::new();
    items.put_slice(list_prefix(info, snapshot.revision(), None).as_bytes());
    let mut first = true;
    let matching: Vec<_> = snapshot
        .range_after(context.namespace(), None)
        .filter(|(key, entry)| selection.matches(&key.0, &key.1, entry))
        .map(|(key, entry)| (key.clone(), Arc::clone(entry)))
        .collect();
    for ((namespace, name), entry) in matching {
        let path = ResourcePath {
            name: Some(name.to_string()),
            namespace: Some(namespace.to_string()).filter(|namespace| !namespace.is_empty()),
            ..context.path.clone()
        };
        let one = Context {
            path: &path,
            body: context.body.clone(),
            budget: None,
            ..*context
        };
        match delete_one(&one, &options).await {
            Ok(_) => {}
            // Somebody else deleted it meanwhile.
            Err(error) if error.code() == 404 => continue,
            Err(error) => return Err(error),
        }
        if !first {
            items.put_u8(b',');
        }
        first = false;
        codec::write_item(&mut items, &entry.value, entry.modify_revision);
    }
    items.put_slice(b"]}");
    Ok(Answer::bytes(items.freeze()))
}
