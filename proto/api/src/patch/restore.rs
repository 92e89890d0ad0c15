//! Why Go would not make an object of what a strategic merge has made of one: it goes from maps to types without JSON between
//! them, and has words of its own for what does not fit.

use serde_json::Value;

use crate::decode::base64_error;
use crate::schema::{Shape, TypeSchema};

/// What is wrong with a value that is to be of a type. None where it fits, and where the type reads itself, as times and
/// amounts do: those are told in the words of JSON. No value that comes here nests deeper than documents may.
pub fn misfit(schema: &TypeSchema, value: &Value) -> Option<String> {
    let got = match value {
        Value::Null => return None,
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    };
    match (&schema.shape, value) {
        (Shape::Object(fields), Value::Object(object)) => fields
            .iter()
            .find_map(|field| misfit(field.schema, object.get(&field.name)?)),
        (Shape::Object(_), _) => Some(format!("cannot restore struct from: {got}")),
        (Shape::List(item), Value::Array(items)) => {
            items.iter().find_map(|value| misfit(item, value))
        }
        (Shape::Map(item), Value::Object(map)) => {
            map.values().find_map(|value| misfit(item, value))
        }
        (Shape::Map(_), _) => Some(format!("cannot restore map from {got}")),
        (Shape::Bytes, Value::String(text)) => base64_error(text)
            .map(|at| format!("error decoding from json: illegal base64 data at input byte {at}")),
        (Shape::List(_) | Shape::Bytes, _) => Some(format!("cannot restore slice from {got}")),
        (Shape::String, _) => scalar("string", got, got == "string", got == "int64"),
        (Shape::Bool, _) => scalar("bool", got, got == "bool", false),
        (Shape::Double, _) => scalar("float64", got, matches!(got, "float64" | "int64"), false),
        (Shape::Int32, _) => whole("int32", got, value),
        (Shape::Int64, _) => whole("int64", got, value),
        (Shape::Quantity | Shape::Time | Shape::MicroTime | Shape::IntOrString | Shape::Any, _) => {
            None
        }
    }
}

fn whole(wanted: &str, got: &str, value: &Value) -> Option<String> {
    let is_whole = value.as_f64().is_some_and(|float| float.fract() == 0.0);
    scalar(wanted, got, is_whole, got == "float64")
}

/// Whether Go knows a conversion, if only one that it does not do, decides about its words.
fn scalar(wanted: &str, got: &str, fits: bool, converts: bool) -> Option<String> {
    match (fits, converts) {
        (true, _) => None,
        (false, true) => Some(format!("cannot convert {got} to {wanted}")),
        (false, false) => Some(format!("unrecognized type: {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_told_as_go_tells_it() {
        let deployment = TypeSchema::of::<Deployment>();
        let container =
            |container: Value| json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        for (value, why) in [
            (json!({"spec": {"replicas": 2}}), None),
            (json!({"spec": {"replicas": 2.0, "paused": null}}), None),
            (
                json!({"spec": {"replicas": "2"}}),
                Some("unrecognized type: int32"),
            ),
            (
                json!({"spec": {"replicas": 1.5}}),
                Some("cannot convert float64 to int32"),
            ),
            (
                json!({"spec": {"paused": 1}}),
                Some("unrecognized type: bool"),
            ),
            (
                json!({"spec": "x"}),
                Some("cannot restore struct from: string"),
            ),
            (
                container(json!({"image": 5})),
                Some("cannot convert int64 to string"),
            ),
            (
                container(json!({"image": true})),
                Some("unrecognized type: string"),
            ),
            (
                container(json!({"args": "x"})),
                Some("cannot restore slice from string"),
            ),
            // It reads itself.
            (
                container(json!({"livenessProbe": {"httpGet": {"port": []}}})),
                None,
            ),
        ] {
            assert_eq!(misfit(deployment, &value).as_deref(), why, "{value}");
        }
        let map = TypeSchema::of::<ConfigMap>();
        let why = misfit(map, &json!({"data": ["x"]}));
        assert_eq!(why.as_deref(), Some("cannot restore map from slice"));
        let secret = TypeSchema::of::<Secret>();
        let why = misfit(secret, &json!({"data": {"a": "not base64"}}));
        assert_eq!(
            why.as_deref(),
            Some("error decoding from json: illegal base64 data at input byte 3")
        );
    }
}
