//! Reading what nodes and pods use: `metrics.k8s.io`. Its objects are made of figures that nodes have told, and of the labels of the
//! Node or Pod that they are of: what is not in the store is not told of, whoever has said something about it.

use std::sync::Arc;

use bytes::Bytes;
use gantry_api::json::Members;
use gantry_api::kinds::metrics::{Amounts, GROUP, Measured, node_metrics, pod_metrics};
use gantry_api::status::{Details, StatusError};
use gantry_store::Entry;
use serde_json::{Value, json};

use super::get::check_options;
use super::selection::Selection;
use crate::context::Context;
use crate::encoder::{
    check_object_policy, column_definitions, not_a_single_object, partial, pretty, row,
};
use crate::media::{Form, Format, Media};
use crate::response::Answer;
use crate::usage::{PartUsage, UsageOf, Used};

/// Objects that are made before others have their turn.
const TURN: usize = 64;

/// GET of one.
pub(crate) async fn get(context: &Context<'_>) -> Result<Answer, StatusError> {
    check_options(context)?;
    let name = context.name();
    let namespace = context.namespace().unwrap_or_default();
    let known = stored(context, namespace, name)?;
    let used = used(context, Some(name)).await?;
    let used = used
        .iter()
        .find(|used| used.namespace == namespace && used.name == name);
    match (known, used) {
        (Some(entry), Some(used)) => Ok(Answer::value(&object(context, used, &entry))),
        _ => Err(not_found(context)),
    }
}

/// GET of all, or of those that are selected.
pub(crate) async fn list(context: &Context<'_>) -> Result<Answer, StatusError> {
    let media = Media::of_list(context.headers)?.prettier(context.headers, context.query);
    let form = media.shape.map(|shape| shape.form);
    if form == Some(Form::Metadata) {
        return Err(not_a_single_object(context));
    }
    let selection = Selection::parse(context)?.of(context)?;
    check_object_policy(context, media)?;
    let mut items = Items::new(media.format);
    for (at, used) in used(context, None).await?.iter().enumerate() {
        if let Some(entry) = stored(context, &used.namespace, &used.name)?
            && selection.matches(&used.namespace, &used.name, &entry)
        {
            let mut object = object(context, used, &entry);
            items.push(match media.shape {
                Some(shape) if shape.form == Form::Table => row(context, shape, object),
                Some(shape) => partial(&object, shape),
                // Items of typed lists carry no kind.
                None => {
                    if let Some(object) = object.as_object_mut() {
                        object.remove("kind");
                        object.remove("apiVersion");
                    }
                    object
                }
            });
        }
        if (at + 1) % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(items.answer(head(context, media), media))
}

/// What figures there are of.
async fn used(context: &Context<'_>, name: Option<&str>) -> Result<Vec<Used>, StatusError> {
    let of = match context.resource.info().namespaced {
        false => UsageOf::Nodes(name),
        true => UsageOf::Pods {
            namespace: context.namespace(),
            name,
        },
    };
    let source = context.api.usage.as_ref();
    let source = source.ok_or_else(StatusError::unknown_resource)?;
    let used = source.used(of).await;
    used.map_err(|why| StatusError::service_unavailable(format!("no figures can be had: {why}")))
}

/// The Node or Pod that figures are of.
fn stored(
    context: &Context<'_>,
    namespace: &str,
    name: &str,
) -> Result<Option<Arc<Entry>>, StatusError> {
    let plural = &context.resource.info().plural;
    let measured = context.registry.get("", "v1", plural);
    let measured = measured.ok_or_else(StatusError::unknown_resource)?;
    let namespace = measured.info().namespaced.then_some(namespace);
    Ok(context.api.store.get(&measured.key(namespace, name)))
}

/// The object, by the figures and by what they are of.
fn object(context: &Context<'_>, used: &Used, entry: &Entry) -> Value {
    let namespaced = context.resource.info().namespaced;
    let measured = Measured {
        namespace: namespaced.then_some(used.namespace.as_str()),
        name: &used.name,
        labels: &entry.index.labels,
        unix_nanos: used.unix_nanos,
        window: used.window,
    };
    let amounts = |part: &PartUsage| Amounts {
        cpu_nanocores: part.cpu_nanocores,
        memory_bytes: part.memory_bytes,
    };
    match namespaced {
        true => {
            let parts = used.parts.iter();
            let containers = parts.map(|part| (part.name.as_str(), amounts(part)));
            pod_metrics(&measured, containers)
        }
        false => {
            let nothing = Amounts {
                cpu_nanocores: 0,
                memory_bytes: 0,
            };
            let all = used.parts.first().map_or(nothing, amounts);
            node_metrics(&measured, all)
        }
    }
}

/// 404 in the metrics server's words.
fn not_found(context: &Context<'_>) -> StatusError {
    let kind = context.resource.info().kind.to_lowercase();
    let name = match context.namespace() {
        Some(namespace) => [namespace, "/", context.name()].concat(),
        None => context.name().to_owned(),
    };
    let details = Details {
        name: name.clone(),
        group: GROUP.to_owned(),
        kind: kind.clone(),
        ..Details::default()
    };
    let message = format!("{kind}.{GROUP} \"{name}\" not found");
    StatusError::new(404, "NotFound", message, Some(details))
}

/// A list without its items, and what those are called.
fn head(context: &Context<'_>, media: Media) -> (Value, &'static str) {
    let info = context.resource.info();
    match media.shape {
        Some(shape) if shape.form == Form::Table => (
            json!({
                "kind": "Table",
                "apiVersion": shape.api_version,
                "metadata": {},
                "columnDefinitions": column_definitions(context),
            }),
            "rows",
        ),
        Some(shape) => (
            json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": shape.api_version,
                "metadata": {},
            }),
            "items",
        ),
        None => (
            json!({
                "kind": format!("{}List", info.kind),
                "apiVersion": info.api_version(),
                "metadata": {},
            }),
            "items",
        ),
    }
}

/// Items of a list: written one by one where that can be, since an object takes far more memory than its text.
enum Items {
    Text(String),
    Objects(Vec<Value>),
}

impl Items {
    fn new(format: Format) -> Self {
        match format {
            Format::Yaml => Self::Objects(Vec::new()),
            Format::Json | Format::Protobuf => Self::Text(String::new()),
        }
    }

    fn push(&mut self, item: Value) {
        match self {
            Self::Objects(items) => items.push(item),
            Self::Text(text) => {
                if !text.is_empty() {
                    text.push(',');
                }
                text.push_str(&item.to_string());
            }
        }
    }

    fn answer(self, (mut head, name): (Value, &str), media: Media) -> Answer {
        match self {
            Self::Objects(items) => {
                *head.member(&[name]) = Value::Array(items);
                let text = gantry_api::yaml::to_string(&head);
                Answer::written(Format::Yaml.content_type(), text)
            }
            Self::Text(items) => {
                let mut text = head.to_string();
                // The head is an object that is not empty.
                text.pop();
                let text = [text.as_str(), ",\"", name, "\":[", &items, "]}"].concat();
                let text = Bytes::from(text);
                let text = if media.pretty { pretty(&text) } else { text };
                Answer::written(Format::Json.content_type(), text)
            }
        }
    }
}

#[cfg(test)]
mod tests;
