//! The normal form of an object: as Go would write it.

use serde_json::{Map, Value};

use super::{Absent, Field, Shape, TypeSchema};

impl TypeSchema {
    /// Drops what Go leaves out and adds what it always writes, all the way down.
    pub fn complete(&self, value: &mut Value) {
        match (&self.shape, value) {
            (Shape::Object(fields), Value::Object(object)) => {
                for field in fields {
                    complete_field(field, object);
                }
            }
            (Shape::List(item), Value::Array(list)) => {
                list.iter_mut().for_each(|value| item.complete(value))
            }
            (Shape::Map(item), Value::Object(map)) => {
                map.values_mut().for_each(|value| item.complete(value))
            }
            (Shape::Quantity, Value::String(text)) => {
                if let Ok(quantity) = text.parse::<crate::quantity::Quantity>() {
                    *text = quantity.to_string();
                }
            }
            _ => {}
        }
    }
}

fn complete_field(field: &Field, object: &mut Map<String, Value>) {
    match object.get_mut(&field.name) {
        Some(Value::Null) if field.absent != Absent::Null => {
            object.remove(&field.name);
        }
        Some(value) if field.absent == Absent::Null && is_empty(field, value) => {
            *value = Value::Null;
            return;
        }
        Some(value) => {
            field.schema.complete(value);
            if !field.required && field.absent == Absent::Omitted && is_left_out(field, value) {
                object.remove(&field.name);
            }
            return;
        }
        None => {}
    }
    let value = match field.absent {
        Absent::Omitted => return,
        Absent::Null => Value::Null,
        Absent::Zero => field.schema.zero(),
        Absent::Struct => {
            let mut value = Value::Object(Map::new());
            if let (Shape::Object(fields), Value::Object(object)) =
                (&field.schema.shape, &mut value)
            {
                for inner in fields
                    .iter()
                    .filter(|inner| inner.required && inner.absent == Absent::Omitted)
                {
                    if matches!(
                        inner.schema.shape,
                        Shape::String | Shape::Int32 | Shape::Int64 | Shape::Bool
                    ) {
                        object.insert(inner.name.clone(), inner.schema.zero());
                    }
                }
            }
            field.schema.complete(&mut value);
            value
        }
    };
    object.insert(field.name.clone(), value);
}

/// Whether a list or map has nothing in it.
fn is_empty(field: &Field, value: &Value) -> bool {
    match (&field.schema.shape, value) {
        (Shape::List(_), Value::Array(list)) => list.is_empty(),
        (Shape::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

/// Whether Go's omitempty drops the value.
fn is_left_out(field: &Field, value: &Value) -> bool {
    match (&field.schema.shape, value) {
        (Shape::List(_) | Shape::Map(_), value) => is_empty(field, value),
        (Shape::String | Shape::Bytes, Value::String(text)) => !field.pointer && text.is_empty(),
        (Shape::Bool, Value::Bool(set)) => !field.pointer && !set,
        (Shape::Int32 | Shape::Int64 | Shape::Double, Value::Number(number)) => {
            !field.pointer && number.as_f64() == Some(0.0)
        }
        _ => false,
    }
}
