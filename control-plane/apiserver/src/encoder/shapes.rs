//! What clients ask for instead of whole objects: Tables, and metadata by itself.

use std::sync::LazyLock;

use gantry_api::field::{ErrorList, Path, aggregate};
use gantry_api::kind::Column;
use gantry_api::kinds::table;
use gantry_api::status::StatusError;
use k8s_openapi::api::autoscaling::v1::{ScaleSpec, ScaleStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::context::Context;
use crate::media::{Form, Media, Shape};

/// The columns of a Scale, which many kinds have.
static SCALE_COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
    let desired = table::field_doc::<ScaleSpec>("replicas");
    let available = table::field_doc::<ScaleStatus>("replicas");
    vec![
        table::name_column(),
        table::column("Desired", "integer", desired, 0),
        table::column("Available", "integer", available, 0),
        table::age_column(),
    ]
});

fn scale_row(scale: &Value, now: i64) -> Vec<Value> {
    let metadata: ObjectMeta =
        serde_json::from_value(scale["metadata"].clone()).unwrap_or_default();
    let replicas = |part: &str| json!(scale[part]["replicas"].as_i64().unwrap_or(0));
    vec![
        table::name_cell(&metadata),
        replicas("spec"),
        replicas("status"),
        table::age_cell(&metadata, now),
    ]
}

/// What is shown of an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// An object of the resource.
    Own,
    /// Its Scale.
    Scale,
    /// Something that has no other shape.
    Other,
}

fn shown(context: &Context<'_>, object: &Value) -> Shown {
    let info = context.resource.info();
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("autoscaling/v1", "Scale") => Shown::Scale,
        (version, kind) if info.kind == kind && info.api_version() == version => Shown::Own,
        _ => Shown::Other,
    }
}

/// A single object in the shape that was asked for; what has no shapes stays what it is.
pub(super) fn shaped(
    context: &Context<'_>,
    shape: Shape,
    object: Value,
) -> Result<Value, StatusError> {
    let shown = shown(context, &object);
    if shown == Shown::Other {
        return Ok(object);
    }
    match shape.form {
        Form::Metadata => Ok(partial(&object, shape)),
        Form::MetadataList => Err(not_a_list(context)),
        Form::Table => {
            check_object_policy(context, context.media)?;
            let now = context.api.clock.now();
            let (columns, cells) = match shown {
                Shown::Scale => (definitions(&SCALE_COLUMNS), scale_row(&object, now)),
                _ => (
                    column_definitions(context),
                    context.resource.kind.row(&object, now),
                ),
            };
            let version = &object["metadata"]["resourceVersion"];
            let metadata = match version {
                Value::Null => json!({}),
                version => json!({"resourceVersion": version}),
            };
            Ok(json!({
                "kind": "Table",
                "apiVersion": shape.api_version,
                "metadata": metadata,
                "columnDefinitions": columns,
                "rows": [row_of(context, shape, cells, object)],
            }))
        }
    }
}

/// 406: what was asked for is metadata of many objects, and there is one.
fn not_a_list(context: &Context<'_>) -> StatusError {
    let info = context.resource.info();
    let message = format!(
        "you requested PartialObjectMetadataList, but the requested object is not a list (*{}.{})",
        info.package(),
        info.kind
    );
    StatusError::new(406, "NotAcceptable", message, None)
}

/// 406: what was asked for is metadata of one object, and there are many.
pub(crate) fn not_a_single_object(context: &Context<'_>) -> StatusError {
    let info = context.resource.info();
    let message = format!(
        "you requested PartialObjectMetadata, but the requested object is a list (*{}.{}List)",
        info.package(),
        info.kind
    );
    StatusError::new(406, "NotAcceptable", message, None)
}

/// Refuses an `includeObject` that is none, before the first row is made.
pub(crate) fn check_object_policy(context: &Context<'_>, media: Media) -> Result<(), StatusError> {
    let known = ["None", "Object", "Metadata"];
    let is_table = media.shape.is_some_and(|shape| shape.form == Form::Table);
    match context.query.get("includeObject") {
        Some(other) if is_table && !known.contains(&other) => {
            let mut errors = ErrorList::default();
            errors.invalid(
                &Path::new("includeObject"),
                other,
                "must be 'Metadata', 'Object', 'None', or empty",
            );
            Err(StatusError::bad_request(format!(
                "Unable to convert to Table as requested: {}",
                aggregate(&errors.told())
            )))
        }
        _ => Ok(()),
    }
}

fn definitions(columns: &[Column]) -> Value {
    columns
        .iter()
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

/// The columns of a kind's Table.
pub(crate) fn column_definitions(context: &Context<'_>) -> Value {
    definitions(context.resource.kind.columns())
}

/// One row of a Table, with as much of the object as `includeObject` asks for.
pub(crate) fn row(context: &Context<'_>, shape: Shape, object: Value) -> Value {
    let cells = context.resource.kind.row(&object, context.api.clock.now());
    row_of(context, shape, cells, object)
}

fn row_of(context: &Context<'_>, shape: Shape, cells: Vec<Value>, object: Value) -> Value {
    let completed = context.resource.kind.completed(&object);
    let object = of_row(context, shape, object);
    match completed {
        None => json!({"cells": cells, "object": object}),
        Some((reason, message)) => {
            let condition = json!({"type": "Completed", "status": "True", "reason": reason, "message": message});
            json!({"cells": cells, "conditions": [condition], "object": object})
        }
    }
}

fn of_row(context: &Context<'_>, shape: Shape, object: Value) -> Value {
    match context.query.get("includeObject") {
        Some("None") => Value::Null,
        Some("Object") => object,
        _ => partial(&object, shape),
    }
}

/// An object's metadata by itself.
pub(crate) fn partial(object: &Value, shape: Shape) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": shape.api_version,
        "metadata": object["metadata"],
    })
}
