//! Strategic merge: maps are merged, lists too where their type says by which key, and directives say the rest.
//!
//! | directive | means |
//! | --- | --- |
//! | `$patch: delete` in a list item | all items with the same key go, before anything is joined |
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
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList";
const ORDER: &str = "$setElementOrder";

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
        // The rest is taken as it is, nulls included.
        Some(directive) if directive == "replace" => {
            let others = changes.iter().filter(|(name, _)| *name != PATCH);
            let others = others.map(|(name, value)| (name.clone(), value.clone()));
            *target = Value::Object(others.collect());
            return Ok(());
        }
        Some(directive) if directive == "delete" => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some(directive) => return Err(unknown_directive(directive, patch)),
        None => {}
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
        let order = match changes.get(&format!("{ORDER}/{name}")) {
            Some(order) => Some(list_of(order, "setElementOrder list")?),
            None => None,
        };
        merge_field(fields, name, change, order, schema, work)?;
    }
    for (name, order) in changes {
        let Some(list) = named(name, ORDER, "setElementOrder list")? else {
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
        let Some(list) = named(name, DELETE_PRIMITIVES, "primitive list")? else {
            continue;
        };
        match (gone, fields.get_mut(list)) {
            (Value::Null, _) => {
                fields.remove(list);
            }
            (Value::Array(gone), Some(Value::Array(items))) => {
                let gone: HashSet<&Value> = gone.iter().collect();
                work.join(items)?;
                items.retain(|item| !gone.contains(item));
            }
            // Nothing of a list to take away.
            _ => {}
        }
    }
    Ok(())
}

/// The list that a directive is about; none when the field is no such directive.
fn named<'a>(field: &'a str, directive: &str, what: &str) -> Result<Option<&'a str>, StatusError> {
    match field.strip_prefix(directive) {
        None => Ok(None),
        Some(rest) => match rest.strip_prefix('/') {
            Some(list) => Ok(Some(list)),
            None => Err(bad_format(what)),
        },
    }
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
            if rule.is_some_and(|rule| rule.replace) {
                *current = change.clone();
            } else {
                merge_map(current, change, child, work)?;
            }
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
        // A list that is replaced is taken as it is.
        (Value::Array(_), Some(current @ Value::Array(_))) => *current = change.clone(),
        // What was not there, or was something else, becomes what the patch says.
        _ => match without_directives(change, Nulls::Drop) {
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

fn bad_format(what: &str) -> StatusError {
    StatusError::bad_request(format!("invalid patch format of {what}"))
}

fn list_of<'a>(value: &'a Value, what: &str) -> Result<&'a [Value], StatusError> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| bad_format(what))
}

fn no_key(item: &Value, key: &str) -> StatusError {
    StatusError::unclassified(format!(
        "map: {} does not contain declared merge key: {key}",
        go_text(item)
    ))
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

/// Items of one list must be of one type.
fn check_types(items: &[Value], changes: &[Value]) -> Result<(), StatusError> {
    let type_of = |value: &Value| match value {
        Value::Number(number) if number.is_f64() => "float64",
        other => super::go_kind(other),
    };
    let mut all = items.iter().chain(changes);
    let Some(first) = all.next().map(type_of) else {
        return Ok(());
    };
    // Lists of lists: why is not told.
    if first == "array" {
        return Err(StatusError::unprocessable());
    }
    match all.all(|item| type_of(item) == first) {
        true => Ok(()),
        false => Err(StatusError::unclassified(format!(
            "list element types are not identical: [{} {}]",
            go_list(items),
            go_list(changes),
        ))),
    }
}

/// Merges the items of a patch into a list: by their key, or as a set of scalars when there is none.
fn merge_list(
    items: &mut Vec<Value>,
    changes: &[Value],
    key: Option<&str>,
    schema: Option<&TypeSchema>,
    work: &mut Work,
) -> Result<(), StatusError> {
    check_types(items, changes)?;
    let is_map = items.iter().chain(changes).any(Value::is_object);
    let Some(key) = key.filter(|_| is_map) else {
        let mut known: HashSet<Value> = HashSet::new();
        items.retain(|item| known.insert(item.clone()));
        let new = changes.iter().filter(|item| known.insert((*item).clone()));
        items.extend(new.cloned());
        return Ok(());
    };
    let changes = take_away(items, changes, key)?;
    let mut places: HashMap<Value, usize> = HashMap::new();
    for (at, item) in items.iter().enumerate() {
        if let Some(id) = item.get(key) {
            places.entry(id.clone()).or_insert(at);
        }
    }
    for change in changes {
        let Some(id) = change.get(key) else {
            return Err(no_key(change, key));
        };
        match places.get(id).and_then(|at| items.get_mut(*at)) {
            Some(item) => merge_map(item, change, schema, work)?,
            None => {
                if let Some(added) = without_directives(change, Nulls::Keep) {
                    places.insert(id.clone(), items.len());
                    items.push(added);
                }
            }
        }
    }
    Ok(())
}

/// Does what the items with directives say, before any other: a list may have several items of one key, which a patch
/// deletes and then sets anew. What is left are the changes.
fn take_away<'a>(
    items: &mut Vec<Value>,
    changes: &'a [Value],
    key: &str,
) -> Result<Vec<&'a Value>, StatusError> {
    let (mut left, mut gone, mut is_replaced) = (Vec::new(), HashSet::new(), false);
    for change in changes {
        match change.get(PATCH) {
            None => left.push(change),
            Some(directive) if directive == "delete" => {
                gone.insert(change.get(key).ok_or_else(|| no_key(change, key))?);
            }
            Some(directive) if directive == "replace" => is_replaced = true,
            Some(directive) if directive == "merge" => {
                return Err(StatusError::unclassified(
                    "merging lists cannot yet be specified in the patch".to_owned(),
                ));
            }
            Some(directive) => return Err(unknown_directive(directive, change)),
        }
    }
    match is_replaced {
        true => items.clear(),
        false => items.retain(|item| !item.get(key).is_some_and(|id| gone.contains(id))),
    }
    Ok(left)
}

/// Items of the patch must stand in the order that the patch asks for; those with directives are no items.
fn check_order(items: &[Value], order: &[Value], key: Option<&str>) -> Result<(), StatusError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in items.iter().filter(|item| item.get(PATCH).is_none()) {
        if let Some(key) = key
            && item.get(key).is_none()
        {
            return Err(no_key(item, key));
        }
        if !wanted.any(|wanted| same(item, wanted, key)) {
            return Err(StatusError::unclassified(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_list(items),
                go_list(order),
            )));
        }
    }
    Ok(())
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

/// What becomes of the nulls in a value that is new.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    /// They would remove what is not there.
    Drop,
    /// They are decoded as what null is.
    Keep,
}

/// A value without the directives of a patch; nothing when it is a directive itself.
fn without_directives(value: &Value, nulls: Nulls) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.contains_key(PATCH) => None,
        Value::Object(fields) => Some(
            fields
                .iter()
                .filter(|(name, value)| {
                    !is_directive(name) && (nulls == Nulls::Keep || !value.is_null())
                })
                .filter_map(|(name, value)| Some((name.clone(), without_directives(value, nulls)?)))
                .collect::<Map<_, _>>()
                .into(),
        ),
        Value::Array(items) => {
            let kept = items
                .iter()
                .filter_map(|item| without_directives(item, nulls));
            Some(kept.collect())
        }
        other => Some(other.clone()),
    }
}

/// A list as Go prints it.
fn go_list(items: &[Value]) -> String {
    let items: Vec<String> = items.iter().map(go_text).collect();
    format!("[{}]", items.join(" "))
}

/// A value as Go prints maps.
pub(super) fn go_text(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let pairs: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", go_text(value)))
                .collect();
            format!("map[{}]", pairs.join(" "))
        }
        Value::Array(items) => go_list(items),
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
