//! JSON that is not yet known to have a shape: how deep it may be, what is wrong with it, and how it is changed.
//!
//! `value["field"] = ...` panics where `value` is a list, a number or text: that of a stranger ends the task that reads it.
//! [`Members`] has no such case. `e2e/tests/untrusted_json.rs` keeps the indexing out of the sources.

mod syntax;

use serde_json::{Map, Value};

pub use syntax::syntax_error;

/// How deeply values may nest, in whatever they are written: as deep as the JSON reader goes. So every object may be walked
/// by a function that calls itself.
pub const MAX_DEPTH: usize = 127;

/// Members of objects, by name.
pub trait Members {
    /// The member at a path, `null` where there was none. Whatever is on the way there and is no object becomes one: who
    /// cares about what it was has looked before.
    fn member(&mut self, path: &[&str]) -> &mut Value;
}

impl Members for Value {
    fn member(&mut self, path: &[&str]) -> &mut Value {
        let mut at = self;
        for name in path {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at = match at {
                Value::Object(members) => members.entry(*name).or_insert(Value::Null),
                other => other,
            };
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_is_made_wherever_it_is_to_be() {
        let mut object = json!({"metadata": {"name": "a"}});
        *object.member(&["metadata", "labels", "x"]) = json!("y");
        *object.member(&["metadata", "name"]) = json!("b");
        assert_eq!(
            object,
            json!({"metadata": {"name": "b", "labels": {"x": "y"}}})
        );
        assert_eq!(object.member(&["spec"]), &Value::Null);
    }

    #[test]
    fn what_is_no_object_becomes_one_instead_of_a_panic() {
        for wrong in [json!([]), json!("text"), json!(1), json!(true), Value::Null] {
            let mut value = wrong.clone();
            *value.member(&["metadata", "name"]) = json!("a");
            assert_eq!(value, json!({"metadata": {"name": "a"}}), "{wrong}");
            let mut inner = json!({ "metadata": wrong });
            *inner.member(&["metadata", "name"]) = json!("a");
            assert_eq!(inner, json!({"metadata": {"name": "a"}}));
        }
    }
}
