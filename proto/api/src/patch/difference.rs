//! The patch of a client-side apply, three ways: what was applied last, what is wanted now, and what lives in the cluster.
//!
//! What is wanted is set, what was applied and is wanted no more goes, and what others have set stays. Kinds whose types are
//! known get a strategic merge patch, in which lists are told apart item by item; others a merge patch, in which lists are
//! replaced.
//!
//! A strategic merge patch names an item by one field alone. Two ports 8301, of TCP and of UDP, have the same name there, and
//! a patch that changes one would lose the other without a word; so would one about a name that a list has twice. Where a
//! list has such items, the patch is a merge patch with the whole list, made of the live one, and holds for its revision only.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::{Map, Value, json};

use super::PatchType;
use crate::schema::{Merge, TypeSchema};

/// What takes a live object to what is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// An object; an empty one changes nothing.
    pub patch: Value,
    /// How the patch is written: merge or strategic.
    pub patch_type: PatchType,
    /// The patch is right only for the live object that it was made from, and must name its revision.
    pub needs_revision: bool,
}

impl Difference {
    /// Whether everything is as it is wanted.
    pub fn is_empty(&self) -> bool {
        self.patch.as_object().is_none_or(Map::is_empty)
    }
}

/// Compares what was applied `last` (null when nobody knows) and what is `wanted` with what is `live`.
pub fn three_way(
    last: &Value,
    wanted: &Value,
    live: &Value,
    schema: Option<&TypeSchema>,
) -> Difference {
    let empty = Map::new();
    let wanted = wanted.as_object().unwrap_or(&empty);
    let live = live.as_object().unwrap_or(&empty);
    let made = |lists: Lists| {
        let mut comparison = Comparison {
            lists,
            is_ambiguous: false,
        };
        let mut patch = comparison.map(last, wanted, live, schema, false);
        keep_identity(&mut patch);
        (Value::Object(patch), comparison.is_ambiguous)
    };
    let (patch, is_ambiguous) = made(Lists::ByItem);
    let (patch, patch_type) = match (schema, is_ambiguous) {
        (Some(_), true) => (made(Lists::Whole).0, PatchType::Merge),
        (Some(_), false) => (patch, PatchType::Strategic),
        (None, _) => (patch, PatchType::Merge),
    };
    Difference {
        patch,
        patch_type,
        needs_revision: is_ambiguous,
    }
}

/// What names an object, and what the server says of it, is never taken from it, though only the last manifest had it, or
/// this one says null, as programs write times that are not set.
fn keep_identity(patch: &mut Map<String, Value>) {
    const OBJECT: [&str; 2] = ["apiVersion", "kind"];
    const METADATA: [&str; 6] = [
        "creationTimestamp",
        "generation",
        "name",
        "namespace",
        "resourceVersion",
        "uid",
    ];
    patch.retain(|name, value| !value.is_null() || !OBJECT.contains(&name.as_str()));
    if let Some(Value::Object(metadata)) = patch.get_mut("metadata") {
        metadata.retain(|name, value| !value.is_null() || !METADATA.contains(&name.as_str()));
        if metadata.is_empty() {
            patch.remove("metadata");
        }
    }
}

/// How lists that are merged are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// What changes of them, in the words of strategic merge.
    ByItem,
    /// As they are to be.
    Whole,
}

struct Comparison {
    lists: Lists,
    /// A list has items that one field does not tell apart.
    is_ambiguous: bool,
}

/// One list of each side.
struct Sides<'a> {
    last: &'a [Value],
    wanted: &'a [Value],
    live: &'a [Value],
}

impl Comparison {
    /// `retains` says that the map is to have no fields but those that are wanted.
    fn map(
        &mut self,
        last: &Value,
        wanted: &Map<String, Value>,
        live: &Map<String, Value>,
        schema: Option<&TypeSchema>,
        retains: bool,
    ) -> Map<String, Value> {
        let mut patch = Map::new();
        for (name, value) in wanted {
            let before = last.get(name).unwrap_or(&Value::Null);
            let now = live.get(name).unwrap_or(&Value::Null);
            self.field(&mut patch, name, [before, value, now], schema);
        }
        let is_there = |name: &&String| live.get(*name).is_some_and(|value| !value.is_null());
        let gone = last.as_object().into_iter();
        let gone = gone.flat_map(|fields| fields.keys());
        for name in gone.filter(is_there) {
            if !wanted.contains_key(name) {
                patch.insert(name.clone(), Value::Null);
            }
        }
        if retains && !patch.is_empty() {
            match self.lists {
                Lists::ByItem => {
                    let names = wanted.keys().cloned().map(Value::from).collect();
                    patch.insert("$retainKeys".to_owned(), Value::Array(names));
                }
                Lists::Whole => {
                    let others = live.keys().filter(|name| !wanted.contains_key(*name));
                    patch.extend(others.map(|name| (name.clone(), Value::Null)));
                }
            }
        }
        patch
    }

    fn field(
        &mut self,
        patch: &mut Map<String, Value>,
        name: &str,
        [last, wanted, live]: [&Value; 3],
        schema: Option<&TypeSchema>,
    ) {
        let child = schema.and_then(|schema| schema.child(name));
        let rule = schema.and_then(|schema| schema.field(name));
        let rule = rule.map(|field| &field.merge);
        match (wanted, live, rule) {
            (Value::Object(wanted), Value::Object(live), _) => {
                let retains = rule.is_some_and(|rule| rule.retain_keys);
                let changes = self.map(last, wanted, live, child, retains);
                if !changes.is_empty() {
                    patch.insert(name.to_owned(), Value::Object(changes));
                }
            }
            (Value::Array(wanted), Value::Array(live), Some(rule)) if rule.merge => {
                let last = last.as_array().map(Vec::as_slice).unwrap_or_default();
                let sides = Sides { last, wanted, live };
                let item = child.and_then(|list| list.child(""));
                self.list(patch, name, &sides, rule, item);
            }
            _ if wanted != live => {
                patch.insert(name.to_owned(), wanted.clone());
            }
            _ => {}
        }
    }

    fn list(
        &mut self,
        patch: &mut Map<String, Value>,
        name: &str,
        sides: &Sides<'_>,
        rule: &Merge,
        item: Option<&TypeSchema>,
    ) {
        if self.lists == Lists::Whole {
            let list = match rule.key {
                Some(key) => self.whole(sides, key, rule, item),
                None => sides.scalars(),
            };
            if list != sides.live {
                patch.insert(name.to_owned(), Value::Array(list));
            }
            return;
        }
        let (changes, gone) = match rule.key {
            None => sides.changed_scalars(),
            Some(key) if sides.are_named_by(key) => {
                let changes = self.items(sides, key, rule, item);
                (changes, Vec::new())
            }
            Some(_) => {
                self.is_ambiguous = true;
                return;
            }
        };
        if changes.is_empty() && gone.is_empty() && sides.is_in_order(rule.key) {
            return;
        }
        if !changes.is_empty() {
            patch.insert(name.to_owned(), Value::Array(changes));
        }
        if !gone.is_empty() {
            patch.insert(
                format!("$deleteFromPrimitiveList/{name}"),
                Value::Array(gone),
            );
        }
        if !sides.wanted.is_empty() {
            let named = |item: &Value| match rule.key {
                Some(key) => json!({ key: item[key] }),
                None => item.clone(),
            };
            let order = sides.wanted.iter().map(named).collect();
            patch.insert(format!("$setElementOrder/{name}"), Value::Array(order));
        }
    }

    /// Items that differ, and directives for those that go.
    fn items(
        &mut self,
        sides: &Sides<'_>,
        key: &str,
        rule: &Merge,
        schema: Option<&TypeSchema>,
    ) -> Vec<Value> {
        let last = by_key(sides.last, key);
        let live = by_key(sides.live, key);
        let mut changes = Vec::new();
        for item in sides.wanted {
            let id = &item[key];
            let now = live.get(id).copied().and_then(Value::as_object);
            let (Some(wanted), Some(now)) = (item.as_object(), now) else {
                changes.push(item.clone());
                continue;
            };
            let before = last.get(id).copied().unwrap_or(&Value::Null);
            let mut change = self.map(before, wanted, now, schema, rule.retain_keys);
            if !change.is_empty() {
                change.insert(key.to_owned(), id.clone());
                changes.push(Value::Object(change));
            }
        }
        let wanted = by_key(sides.wanted, key);
        let gone = sides.last.iter().map(|item| &item[key]);
        let gone = gone.filter(|id| !wanted.contains_key(id) && live.contains_key(id));
        changes.extend(gone.map(|id| json!({"$patch": "delete", key: id})));
        changes
    }

    /// The list as it is to be: what is wanted, each item over the live one that it is about, and what only others have put
    /// there, before what it stood before.
    fn whole(
        &mut self,
        sides: &Sides<'_>,
        key: &str,
        rule: &Merge,
        schema: Option<&TypeSchema>,
    ) -> Vec<Value> {
        let only = [key];
        let keys: &[&str] = match rule.map_keys.is_empty() {
            true => &only,
            false => &rule.map_keys,
        };
        let ours = sides.wanted.iter().chain(sides.last);
        let ours: HashSet<Vec<Value>> = ours.map(|item| identity(item, keys)).collect();
        let others = sides.live.iter().enumerate();
        let mut others = others
            .filter(|(_, item)| !ours.contains(&identity(item, keys)))
            .peekable();
        let mut last = by_identity(sides.last, keys);
        let mut live = by_identity(sides.live, keys);
        let mut list = Vec::new();
        for item in sides.wanted {
            let id = identity(item, keys);
            let before = last.get_mut(&id).and_then(VecDeque::pop_front);
            let before = before.map_or(&Value::Null, |(_, before)| before);
            let Some((place, now)) = live.get_mut(&id).and_then(VecDeque::pop_front) else {
                list.push(item.clone());
                continue;
            };
            while let Some((_, other)) = others.next_if(|(at, _)| *at < place) {
                list.push(other.clone());
            }
            list.push(match (item, now) {
                (Value::Object(wanted), Value::Object(fields)) => {
                    let change = self.map(before, wanted, fields, schema, rule.retain_keys);
                    let mut merged = now.clone();
                    json_patch::merge(&mut merged, &Value::Object(change));
                    merged
                }
                _ => item.clone(),
            });
        }
        list.extend(others.map(|(_, other)| other.clone()));
        list
    }
}

impl<'a> Sides<'a> {
    /// Whether the field tells all items apart.
    fn are_named_by(&self, key: &str) -> bool {
        [self.last, self.wanted, self.live].iter().all(|list| {
            let mut known = HashSet::new();
            list.iter().all(|item| match item.get(key) {
                None | Some(Value::Null) => false,
                Some(id) => known.insert(id),
            })
        })
    }

    /// Scalars that a set is to get, and those that are to leave it.
    fn changed_scalars(&self) -> (Vec<Value>, Vec<Value>) {
        let wanted: HashSet<&Value> = self.wanted.iter().collect();
        let live: HashSet<&Value> = self.live.iter().collect();
        let new = self.wanted.iter().filter(|item| !live.contains(item));
        let is_gone = |item: &&Value| !wanted.contains(item) && live.contains(item);
        (
            new.cloned().collect(),
            self.last.iter().filter(is_gone).cloned().collect(),
        )
    }

    /// A set as it is to be.
    fn scalars(&self) -> Vec<Value> {
        let ours: HashSet<&Value> = self.wanted.iter().chain(self.last).collect();
        let others = self.live.iter().filter(|item| !ours.contains(item));
        self.wanted.iter().chain(others).cloned().collect()
    }

    /// Whether what is wanted stands in that order already.
    fn is_in_order(&self, key: Option<&str>) -> bool {
        let id = |item: &'a Value| match key {
            Some(key) => &item[key],
            None => item,
        };
        let places: HashMap<&Value, usize> = self.live.iter().map(id).zip(0..).collect();
        let places = self.wanted.iter().map(|item| places.get(id(item)));
        places.is_sorted()
    }
}

fn by_key<'a>(list: &'a [Value], key: &str) -> HashMap<&'a Value, &'a Value> {
    list.iter().map(|item| (&item[key], item)).collect()
}

/// What tells an item from all others: a value for each key. That of `protocol` is TCP where none is written, the only
/// default that a key has.
fn identity(item: &Value, keys: &[&str]) -> Vec<Value> {
    let part = |key: &&str| match (item.get(*key), *key) {
        (None | Some(Value::Null), "protocol") => Value::from("TCP"),
        (value, _) => value.cloned().unwrap_or(Value::Null),
    };
    keys.iter().map(part).collect()
}

/// Items by what tells them apart, with their places.
type ByIdentity<'a> = HashMap<Vec<Value>, VecDeque<(usize, &'a Value)>>;

fn by_identity<'a>(list: &'a [Value], keys: &[&str]) -> ByIdentity<'a> {
    let mut items = ByIdentity::new();
    for (place, item) in list.iter().enumerate() {
        let same = items.entry(identity(item, keys)).or_default();
        same.push_back((place, item));
    }
    items
}

#[cfg(test)]
mod tests;
