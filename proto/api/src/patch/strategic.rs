//! Strategic merge: maps are merged, lists too where their type says by which key, and directives say the rest.
//!
//! | directive | means |
//! | --- | --- |
//! | `$patch: delete` in a list item | the item with the same key goes |
//! | `$patch: replace` in a map | the map becomes what the patch says beside it |
//! | `$patch: replace` as a list item | the list becomes the other items |
//! | `$patch: delete` in a map | the map goes |
//! | `$retainKeys: [...]` | other keys of the map go |
//! | `$deleteFromPrimitiveList/NAME` | these values leave the list |
//! | `$setElementOrder/NAME` | the list is put in this order; what it does not name keeps its place before what it preceded |

use serde_json::{Map, Value};

use crate::schema::{Merge, TypeSchema};
use crate::status::StatusError;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges a map of the patch into a map of the object.
pub(super) fn merge(
    target: &mut Value,
    patch: &Value,
    schema: Option<&TypeSchema>,
) -> Result<(), StatusError> {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match changes.get(PATCH).and_then(Value::as_str) {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => {
            return Err(StatusError::bad_request(format!(
                "unable to apply the patch: {PATCH} is {other:?}; it must be delete, merge or replace"
            )));
        }
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else {
        return Ok(());
    };
    if let Some(retained) = changes.get(RETAIN).and_then(Value::as_array) {
        fields.retain(|name, _| retained.iter().any(|retained| retained == name));
    }
    let before: Map<String, Value> = changes
        .keys()
        .filter_map(|name| name.strip_prefix(ORDER))
        .filter_map(|list| Some((list.to_owned(), fields.get(list)?.clone())))
        .collect();
    for (name, change) in changes {
        if name.starts_with('$') {
            continue;
        }
        let field = schema.and_then(|schema| schema.field(name));
        let child = schema.and_then(|schema| schema.child(name));
        match (change, field.map(|field| &field.merge)) {
            (Value::Null, _) => {
                fields.remove(name);
            }
            (Value::Array(items), Some(rule)) if rule.merge => {
                let current = fields
                    .entry(name.clone())
                    .or_insert_with(|| Value::Array(Vec::new()));
                let item_schema = child.and_then(|schema| schema.child(""));
                merge_list(current, items, rule, item_schema)?;
            }
            (Value::Object(_), _) => {
                let deleted = change
                    .get(PATCH)
                    .is_some_and(|directive| directive == "delete");
                if deleted {
                    fields.remove(name);
                } else {
                    merge(
                        fields.entry(name.clone()).or_insert(Value::Null),
                        change,
                        child,
                    )?;
                }
            }
            _ => {
                fields.insert(name.clone(), without_directives(change));
            }
        }
    }
    for (name, change) in changes {
        if let Some(list) = name.strip_prefix(DELETE_PRIMITIVES) {
            let gone = change.as_array().cloned().unwrap_or_default();
            if let Some(Value::Array(items)) = fields.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    for (name, order) in changes {
        if let Some(list) = name.strip_prefix(ORDER) {
            let rule = schema
                .and_then(|schema| schema.field(list))
                .map(|field| &field.merge);
            let order = order.as_array().cloned().unwrap_or_default();
            check_order(changes.get(list), &order, rule)?;
            if let Some(Value::Array(items)) = fields.get_mut(list) {
                let before = before.get(list).and_then(Value::as_array);
                let before = before.map(Vec::as_slice).unwrap_or_default();
                reorder(items, &order, before, rule.and_then(|rule| rule.key));
            }
        }
    }
    Ok(())
}

/// Merges the items of a patch into a list.
fn merge_list(
    target: &mut Value,
    changes: &[Value],
    rule: &Merge,
    item_schema: Option<&TypeSchema>,
) -> Result<(), StatusError> {
    let replaced = changes.iter().any(|change| {
        change
            .get(PATCH)
            .is_some_and(|directive| directive == "replace")
    });
    if replaced || !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Some(items) = target.as_array_mut() else {
        return Ok(());
    };
    items.retain(|item| {
        !changes.iter().any(|change| {
            change
                .get(PATCH)
                .is_some_and(|directive| directive == "delete")
                && rule.key.is_some_and(|key| same(item, change, Some(key)))
        })
    });
    let before = items.clone();
    for change in changes {
        let directive = change.get(PATCH).and_then(Value::as_str);
        let Some(key) = rule.key else {
            if !items.contains(change) {
                items.push(change.clone());
            }
            continue;
        };
        if directive == Some("replace") {
            continue;
        }
        let id = change.get(key).cloned().unwrap_or(Value::Null);
        if id.is_null() {
            return Err(StatusError::bad_request(format!(
                "unable to apply the patch: map: {change} does not contain declared merge key: {key}"
            )));
        }
        let at = items.iter().position(|item| item.get(key) == Some(&id));
        match (directive, at) {
            (Some("delete"), _) => {}
            (_, Some(at)) => merge(&mut items[at], change, item_schema)?,
            (_, None) => {
                let mut item = Value::Object(Map::new());
                merge(&mut item, change, item_schema)?;
                items.push(item);
            }
        }
    }
    let order: Vec<Value> = changes
        .iter()
        .filter(|change| {
            change
                .get(PATCH)
                .is_none_or(|directive| directive == "merge")
        })
        .cloned()
        .collect();
    reorder(items, &order, &before, rule.key);
    Ok(())
}

/// Items of the patch must stand in the order that the patch asks for.
fn check_order(
    patched: Option<&Value>,
    order: &[Value],
    rule: Option<&Merge>,
) -> Result<(), StatusError> {
    let Some(Value::Array(items)) = patched else {
        return Ok(());
    };
    let key = rule.and_then(|rule| rule.key);
    let kept: Vec<&Value> = items
        .iter()
        .filter(|item| item.get(PATCH).is_none_or(|directive| directive == "merge"))
        .collect();
    let mut positions = kept
        .iter()
        .map(|item| order.iter().position(|wanted| same(item, wanted, key)));
    let mut last = None;
    let in_order = positions.all(|position| {
        let fits = position.is_some() && position >= last;
        last = position;
        fits
    });
    match in_order {
        true => Ok(()),
        false => Err(StatusError::unclassified(format!(
            "The order in patch list:\n[{}]\n doesn't match $setElementOrder list:\n[{}]\n",
            kept.iter()
                .map(|item| go_text(item))
                .collect::<Vec<_>>()
                .join(" "),
            order.iter().map(go_text).collect::<Vec<_>>().join(" "),
        ))),
    }
}

fn same(item: &Value, wanted: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => item.get(key).is_some() && item.get(key) == wanted.get(key),
        None => item == wanted,
    }
}

/// Puts the items that `order` names in its order. Each other item comes before the first named one that it preceded in
/// `before`, the list as it was; where that says nothing, behind.
///
/// For example `[a, b]` with `c` and `a` named becomes `[c, a, b]`, and with `c` alone `[c, a, b]` too.
fn reorder(items: &mut Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) = std::mem::take(items)
        .into_iter()
        .partition(|item| place(order, item).is_some());
    named.sort_by_key(|item| place(order, item));
    others.sort_by_key(|item| place(before, item).unwrap_or(usize::MAX));
    let mut others = others.into_iter().peekable();
    for item in named {
        while let Some(other) = others.next_if(|other| {
            matches!((place(before, other), place(before, &item)), (Some(other), Some(item)) if other < item)
        }) {
            items.push(other);
        }
        items.push(item);
    }
    items.extend(others);
}

/// A value without the directives of a patch.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
            .map(|(name, value)| (name.clone(), without_directives(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_directives).collect(),
        other => other.clone(),
    }
}

/// A value as Go prints maps.
fn go_text(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let pairs: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", go_text(value)))
                .collect();
            format!("map[{}]", pairs.join(" "))
        }
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(go_text).collect::<Vec<_>>().join(" ")
        ),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;

    fn patched(mut object: Value, patch: Value) -> Value {
        merge(&mut object, &patch, Some(TypeSchema::of::<Deployment>())).expect("merges");
        object
    }

    fn with_containers(containers: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": containers}}}})
    }

    #[test]
    fn items_are_joined_by_their_key() {
        let object = with_containers(json!([
            {"name": "a", "image": "a:1", "env": [{"name": "A", "value": "1"}]}, {"name": "b", "image": "b:1"}]));
        let patch = with_containers(
            json!([{"name": "a", "env": [{"name": "A", "value": "9"}, {"name": "C", "value": "3"}]}]),
        );
        assert_eq!(
            patched(object.clone(), patch),
            with_containers(json!([
                {"name": "a", "image": "a:1", "env": [{"name": "A", "value": "9"}, {"name": "C", "value": "3"}]},
                {"name": "b", "image": "b:1"}]))
        );
        let delete = with_containers(json!([{"name": "a", "$patch": "delete"}]));
        assert_eq!(
            patched(object.clone(), delete),
            with_containers(json!([{"name": "b", "image": "b:1"}]))
        );
        let replace =
            with_containers(json!([{"name": "c", "image": "c:1"}, {"$patch": "replace"}]));
        assert_eq!(
            patched(object, replace),
            with_containers(json!([{"name": "c", "image": "c:1"}]))
        );
    }

    #[test]
    fn atomic_lists_are_replaced() {
        let object = with_containers(json!([{"name": "a", "args": ["x", "y"]}]));
        let patch = with_containers(json!([{"name": "a", "args": ["only"]}]));
        assert_eq!(
            patched(object, patch),
            with_containers(json!([{"name": "a", "args": ["only"]}]))
        );
    }

    #[test]
    fn retained_keys_and_replaced_maps() {
        let object = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patched(object, patch),
            json!({"spec": {"strategy": {"type": "Recreate"}}})
        );
        let object = json!({"spec": {"selector": {"matchLabels": {"app": "x", "tier": "y"}}}});
        let patch =
            json!({"spec": {"selector": {"matchLabels": {"app": "z", "$patch": "replace"}}}});
        assert_eq!(
            patched(object, patch),
            json!({"spec": {"selector": {"matchLabels": {"app": "z"}}}})
        );
    }

    #[test]
    fn primitive_lists_grow_shrink_and_are_ordered() {
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let add = json!({"metadata": {"finalizers": ["c"]}});
        let object = patched(object, add);
        assert_eq!(object["metadata"]["finalizers"], json!(["c", "a", "b"]));
        let remove = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
        let object = patched(object, remove);
        let order =
            json!({"metadata": {"$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"]}});
        assert_eq!(
            patched(object, order)["metadata"]["finalizers"],
            json!(["c", "b"])
        );
    }

    #[test]
    fn an_order_that_the_patch_itself_breaks_is_refused() {
        let mut object = with_containers(json!([{"name": "b"}]));
        let patch = json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "new", "image": "n:1"}]}}}});
        let error =
            merge(&mut object, &patch, Some(TypeSchema::of::<Deployment>())).expect_err("refused");
        assert_eq!(
            error.message(),
            "The order in patch list:\n[map[image:n:1 name:new]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n"
        );
    }
}
