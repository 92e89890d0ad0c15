//! Strategic merge: maps are merged, lists too where their type says by which key, and directives say the rest.
//!
//! | directive | means |
//! | --- | --- |
//! | `$patch: delete` in a list item | the item with the same key goes |
//! | `$patch: replace` in a map | the map becomes what the patch says beside it |
//! | `$patch: replace` in a list item | the list becomes the other items |
//! | `$patch: delete` in a map | the map is emptied |
//! | `$retainKeys: [...]` | other keys of the map go |
//! | `$deleteFromPrimitiveList/NAME` | these values leave the list |
//! | `$setElementOrder/NAME` | the list is put in this order; what it does not name keeps its place before what it preceded |

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::json::{MAX_WORK, measure};
use crate::schema::{Merge, TypeSchema};
use crate::status::StatusError;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Bytes of the lists that were joined so far. A patch can name one item many times, and with it every list in the item.
#[derive(Default)]
struct Work(usize);

impl Work {
    /// Counts a list of the object before it is joined; an error when that is too much.
    fn join(&mut self, list: &[Value]) -> Result<(), StatusError> {
        self.0 += list.iter().map(|item| measure(item).0).sum::<usize>();
        match self.0 > MAX_WORK {
            true => Err(StatusError::bad_request(
                "the patch names the same items of long lists too many times",
            )),
            false => Ok(()),
        }
    }
}

/// Merges a map of the patch into a map of the object.
pub(super) fn merge(
    target: &mut Value,
    patch: &Value,
    schema: Option<&TypeSchema>,
) -> Result<(), StatusError> {
    merge_map(target, patch, schema, &mut Work::default())
}

fn merge_map(
    target: &mut Value,
    patch: &Value,
    schema: Option<&TypeSchema>,
    work: &mut Work,
) -> Result<(), StatusError> {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    match changes.get(PATCH) {
        Some(directive) if directive == "replace" => {
            *target = without_directives(patch).unwrap_or_else(|| Value::Object(Map::new()));
            return Ok(());
        }
        Some(directive) if directive == "delete" => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some(directive) if directive != "merge" => return Err(unknown_directive(directive, patch)),
        _ => {}
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(fields) = target.as_object_mut() else {
        return Ok(());
    };
    retain_keys(fields, changes)?;
    for (name, change) in changes {
        if is_directive(name) {
            continue;
        }
        let order = match changes.get(&format!("{ORDER}{name}")) {
            Some(order) => Some(list_of(order, "setElementOrder list")?),
            None => None,
        };
        merge_field(fields, name, change, order, schema, work)?;
    }
    for (name, order) in changes {
        let Some(list) = name.strip_prefix(ORDER) else {
            continue;
        };
        let order = list_of(order, "setElementOrder list")?;
        if !changes.contains_key(list)
            && let Some(Value::Array(items)) = fields.get_mut(list)
        {
            work.join(items)?;
            let before = items.clone();
            arrange(
                items,
                order,
                &before,
                rule_of(schema, list).and_then(|rule| rule.key),
            );
        }
    }
    for (name, gone) in changes {
        if let Some(list) = name.strip_prefix(DELETE_PRIMITIVES) {
            let gone = list_of(gone, "primitive list")?;
            let gone: HashSet<&Value> = gone.iter().collect();
            if let Some(Value::Array(items)) = fields.get_mut(list) {
                work.join(items)?;
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    Ok(())
}

fn rule_of<'a>(schema: Option<&'a TypeSchema>, field: &str) -> Option<&'a Merge> {
    schema?.field(field).map(|field| &field.merge)
}

/// Merges one field of a map; `order` is what `$setElementOrder/` says of it.
fn merge_field(
    fields: &mut Map<String, Value>,
    name: &str,
    change: &Value,
    order: Option<&[Value]>,
    schema: Option<&TypeSchema>,
    work: &mut Work,
) -> Result<(), StatusError> {
    let child = schema.and_then(|schema| schema.child(name));
    let rule = rule_of(schema, name);
    if let (Some(order), Value::Array(items)) = (order, change) {
        check_order(items, order, rule.and_then(|rule| rule.key))?;
    }
    match (change, fields.get_mut(name)) {
        (Value::Null, _) => {
            fields.remove(name);
        }
        (Value::Object(_), Some(current @ Value::Object(_))) => {
            merge_map(current, change, child, work)?;
        }
        (Value::Array(changes), Some(Value::Array(items))) if order.is_some() || joins(rule) => {
            let key = rule.and_then(|rule| rule.key);
            work.join(items)?;
            let before = items.clone();
            if joins(rule) {
                let schema = child.and_then(|list| list.child(""));
                merge_list(items, changes, key, schema, work)?;
            } else {
                *items = changes.clone();
            }
            arrange(items, order.unwrap_or(changes), &before, key);
        }
        // What was not there, or was something else, becomes what the patch says.
        _ => match without_directives(change) {
            Some(mut value) => {
                if let (Some(order), Value::Array(items)) = (order, &mut value) {
                    arrange(items, order, &[], rule.and_then(|rule| rule.key));
                }
                fields.insert(name.to_owned(), value);
            }
            None => {
                fields.remove(name);
            }
        },
    }
    Ok(())
}

fn joins(rule: Option<&Merge>) -> bool {
    rule.is_some_and(|rule| rule.merge)
}

fn is_directive(name: &str) -> bool {
    name == PATCH
        || name == RETAIN
        || name.starts_with(DELETE_PRIMITIVES)
        || name.starts_with(ORDER)
}

fn list_of<'a>(value: &'a Value, what: &str) -> Result<&'a [Value], StatusError> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| StatusError::bad_request(format!("invalid patch format of {what}")))
}

fn unknown_directive(directive: &Value, patch: &Value) -> StatusError {
    StatusError::unclassified(format!(
        "unknown patch type: {} in map: {}",
        go_text(directive),
        go_text(patch)
    ))
}

/// Drops the fields that `$retainKeys` does not name; it must name all that the patch sets.
fn retain_keys(
    fields: &mut Map<String, Value>,
    changes: &Map<String, Value>,
) -> Result<(), StatusError> {
    let Some(retained) = changes.get(RETAIN) else {
        return Ok(());
    };
    let retained = list_of(retained, "retainKeys")?;
    let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
    let is_retained = |name: &str| retained.contains(name);
    let contradicts = changes
        .iter()
        .any(|(name, change)| !change.is_null() && !is_directive(name) && !is_retained(name));
    if contradicts {
        return Err(StatusError::bad_request(
            "invalid patch format of retainKeys",
        ));
    }
    fields.retain(|name, _| is_retained(name));
    Ok(())
}

/// Merges the items of a patch into a list: by their key, or as a set of scalars when there is none.
fn merge_list(
    items: &mut Vec<Value>,
    changes: &[Value],
    key: Option<&str>,
    schema: Option<&TypeSchema>,
    work: &mut Work,
) -> Result<(), StatusError> {
    let Some(key) = key else {
        let mut known: HashSet<Value> = items.iter().cloned().collect();
        items.extend(
            changes
                .iter()
                .filter(|change| known.insert((*change).clone()))
                .cloned(),
        );
        return Ok(());
    };
    if changes
        .iter()
        .any(|change| directive_of(change) == Some("replace"))
    {
        items.clear();
    }
    // What is deleted keeps its place until the end, so that places stay what they are.
    let mut merged: Vec<Option<Value>> = std::mem::take(items).into_iter().map(Some).collect();
    let mut places: HashMap<Value, Vec<usize>> = HashMap::new();
    for (at, item) in merged.iter().enumerate() {
        if let Some(id) = item.as_ref().and_then(|item| item.get(key)) {
            places.entry(id.clone()).or_default().push(at);
        }
    }
    for change in changes {
        let directive = directive_of(change);
        match (directive, change.get(PATCH)) {
            (Some("replace"), _) => continue,
            (Some("delete" | "merge"), _) | (None, None) => {}
            (_, Some(directive)) => return Err(unknown_directive(directive, change)),
            (Some(_), None) => {}
        }
        let Some(id) = change.get(key) else {
            return Err(StatusError::unclassified(format!(
                "map: {} does not contain declared merge key: {key}",
                go_text(change)
            )));
        };
        if directive == Some("delete") {
            for at in places.remove(id).unwrap_or_default() {
                merged[at] = None;
            }
            continue;
        }
        match places.get(id).and_then(|places| places.first()) {
            Some(&at) => {
                if let Some(item) = &mut merged[at] {
                    merge_map(item, change, schema, work)?;
                }
            }
            None => {
                let added = without_directives(change);
                if added.is_some() {
                    places.entry(id.clone()).or_default().push(merged.len());
                    merged.push(added);
                }
            }
        }
    }
    items.extend(merged.into_iter().flatten());
    Ok(())
}

fn directive_of(change: &Value) -> Option<&str> {
    change.get(PATCH).and_then(Value::as_str)
}

/// Items of the patch must stand in the order that the patch asks for.
fn check_order(items: &[Value], order: &[Value], key: Option<&str>) -> Result<(), StatusError> {
    let mut wanted = order.iter();
    let in_order = items
        .iter()
        .filter(|item| directive_of(item) != Some("delete"))
        .all(|item| wanted.any(|wanted| same(item, wanted, key)));
    if in_order {
        return Ok(());
    }
    let printed = |list: &[Value]| list.iter().map(go_text).collect::<Vec<_>>().join(" ");
    Err(StatusError::unclassified(format!(
        "The order in patch list:\n[{}]\n doesn't match $setElementOrder list:\n[{}]\n",
        printed(items),
        printed(order),
    )))
}

/// What tells an item of a list from the others; nothing when it has no such field.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    match key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn same(item: &Value, wanted: &Value, key: Option<&str>) -> bool {
    let identity = |item| identity(item, key);
    identity(item).is_some() && identity(item) == identity(wanted)
}

/// Where items stand in a list: the first place of each.
struct Places<'a> {
    at: HashMap<&'a Value, usize>,
    key: Option<&'a str>,
}

impl<'a> Places<'a> {
    fn of(list: &'a [Value], key: Option<&'a str>) -> Self {
        let mut at = HashMap::with_capacity(list.len());
        for (place, item) in list.iter().enumerate() {
            if let Some(identity) = identity(item, key) {
                at.entry(identity).or_insert(place);
            }
        }
        Self { at, key }
    }

    fn find(&self, item: &Value) -> Option<usize> {
        self.at.get(identity(item, self.key)?).copied()
    }
}

/// Puts a merged list in order: what `order` names as it says, and before each of those the items that only the
/// object has and that stood before it. Such an item goes behind all that the object did not have.
///
/// `before: [a b c]`, `order: [new c]` and the merged list in any order give `[new a b c]`.
fn arrange(items: &mut Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) {
    let (wanted, stood) = (Places::of(order, key), Places::of(before, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) = std::mem::take(items)
        .into_iter()
        .partition(|item| wanted.find(item).is_some());
    named.sort_by_key(|item| wanted.find(item));
    others.sort_by_key(|item| stood.find(item));
    let mut others = others.into_iter().peekable();
    for item in named {
        let place = stood.find(&item);
        while let Some(other) = others.next_if(|other| place.is_some() && stood.find(other) < place)
        {
            items.push(other);
        }
        items.push(item);
    }
    items.extend(others);
}

/// A value without the directives of a patch, and without the nulls that remove; nothing when a directive deletes it.
fn without_directives(value: &Value) -> Option<Value> {
    match value {
        Value::Object(_) if directive_of(value) == Some("delete") => None,
        Value::Object(fields) => Some(
            fields
                .iter()
                .filter(|(name, value)| !is_directive(name) && !value.is_null())
                .filter_map(|(name, value)| Some((name.clone(), without_directives(value)?)))
                .collect::<Map<_, _>>()
                .into(),
        ),
        Value::Array(items) => Some(items.iter().filter_map(without_directives).collect()),
        other => Some(other.clone()),
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
        Value::Null => "<nil>".to_owned(),
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
    fn an_item_is_not_joined_again_and_again_with_its_long_lists() {
        let variables: Vec<Value> = (0..20_000)
            .map(|at| json!({"name": format!("V{at}"), "value": "x"}))
            .collect();
        let mut object = with_containers(json!([{"name": "a", "env": variables}]));
        let change = json!({"name": "a", "env": [{"name": "V1", "value": "y"}]});
        let mut patch = |times: usize| {
            let patch = with_containers(json!(vec![change.clone(); times]));
            let schema = Some(TypeSchema::of::<Deployment>());
            merge(&mut object, &patch, schema).map_err(|error| error.code())
        };
        assert_eq!(patch(2), Ok(()));
        assert_eq!(patch(1000), Err(400));
    }

    #[test]
    fn long_lists_are_merged_in_linear_time() {
        let containers = |start: usize| -> Vec<Value> {
            (start..start + 50_000)
                .map(|at| json!({"name": format!("c{at}"), "image": "i"}))
                .collect()
        };
        let names =
            |count: usize| -> Vec<String> { (0..count).map(|at| format!("f{at}")).collect() };
        let object = json!({"metadata": {"finalizers": names(50_000)}, "spec": {"template": {"spec": {"containers": containers(0)}}}});
        let patch = json!({
            "metadata": {
                "finalizers": names(60_000),
                "$setElementOrder/finalizers": names(60_000),
                "$deleteFromPrimitiveList/finalizers": names(40_000),
            },
            "spec": {"template": {"spec": {
                "$retainKeys": names(50_000).into_iter().chain(["containers".to_owned()]).collect::<Vec<_>>(),
                "$setElementOrder/containers": containers(25_000),
                "containers": containers(25_000),
            }}},
        });
        let started = crate::stopwatch::Stopwatch::start();
        let merged = patched(object, patch);
        assert!(
            started.elapsed() < std::time::Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
        let count = |at: &str| merged.pointer(at).and_then(Value::as_array).map(Vec::len);
        assert_eq!(count("/spec/template/spec/containers"), Some(75_000));
        assert_eq!(count("/metadata/finalizers"), Some(20_000));
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
