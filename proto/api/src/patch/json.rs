//! JSON patches (RFC 6902) as Kubernetes' library applies them: less strict than the standard in that `replace` adds a
//! missing member, which `test` and `copy` take for `null`, and positions in lists are any whole numbers, below zero from the
//! end; stricter in that the object as a whole cannot be the target.
//!
//! Few operations can ask for much: copies double an object, moves nest it, and what is put at the front of a long list
//! moves all of it. So copied bytes, depth and the work of all operations are bounded before each is done.

use json_patch::PatchOperation;
use json_patch::jsonptr::Pointer;
use serde_json::{Value, json};

use super::{go_kind, parse, undecodable};
use crate::decode::MAX_DEPTH;
use crate::json::Members;
use crate::status::StatusError;

/// The most operations that a patch may have.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that all `copy` of a patch may copy: as many as a body may have.
const MAX_COPIED: usize = 3 << 20;
/// Bytes that all operations may look at and move, which no patch made to change an object comes near.
pub(super) const MAX_WORK: usize = 64 << 20;
/// What a value counts beside its text.
const VALUE: usize = 8;
/// What an object or a list counts beside what is in it: copies of small ones may not take many times the bytes that all
/// copies may.
const COLLECTION: usize = 128;
/// What an item of a list takes when it is moved.
const ITEM: usize = size_of::<Value>();

/// Fields of operations that are texts.
const TEXTS: [&str; 3] = ["op", "path", "from"];
/// Unknown fields beyond these are not told.
const MAX_UNKNOWN: usize = 100;

/// Applies the operations one after another, and returns which fields the patch has twice or should not have.
pub(super) fn apply(object: &mut Value, patch: &[u8]) -> Result<Vec<String>, StatusError> {
    let (document, mut findings) =
        parse(patch, Value::is_array, "[]handlers.jsonPatchOp").map_err(undecodable)?;
    let Value::Array(operations) = document else {
        return Ok(Vec::new());
    };
    findings.extend(unknown_fields(&operations).map_err(undecodable)?);
    if operations.len() > MAX_OPERATIONS {
        return Err(StatusError::new(
            413,
            "RequestEntityTooLarge",
            format!(
                "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                operations.len()
            ),
            None,
        ));
    }
    let mut bounds = Bounds::default();
    for mut operation in operations {
        if operation["path"] == "" {
            return Err(StatusError::unprocessable());
        }
        resolve(object, &mut operation);
        match operation["op"].as_str() {
            Some("replace") if is_missing_member(object, &operation["path"]) => {
                *operation.member(&["op"]) = Value::from("add");
            }
            Some("test")
                if operation.get("value").is_some_and(Value::is_null)
                    && is_missing_member(object, &operation["path"]) =>
            {
                bounds
                    .work(operation["path"].as_str().map_or(0, str::len))
                    .ok_or_else(StatusError::unprocessable)?;
                continue;
            }
            Some("copy") if is_missing_member(object, &operation["from"]) => {
                let path = operation["path"].clone();
                operation = json!({"op": "add", "path": path, "value": null});
            }
            _ => {}
        }
        let operation: PatchOperation =
            serde_json::from_value(operation).map_err(|_| StatusError::unprocessable())?;
        bounds
            .admit(object, &operation)
            .ok_or_else(StatusError::unprocessable)?;
        json_patch::patch_unsafe(object, std::slice::from_ref(&operation))
            .map_err(|_| StatusError::unprocessable())?;
    }
    let findings = findings.into_iter();
    Ok(findings
        .map(|found| format!("json patch {found}"))
        .collect())
}

/// The fields that operations do not have; an error for what is none, as Go reads it.
fn unknown_fields(operations: &[Value]) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        let fields = match operation {
            Value::Object(fields) => fields,
            Value::Null => continue,
            other => {
                return Err(format!(
                    "json: cannot unmarshal {} into Go value of type handlers.jsonPatchOp",
                    go_kind(other)
                ));
            }
        };
        for (name, value) in fields {
            let is_text = matches!(value, Value::String(_) | Value::Null);
            if TEXTS.contains(&name.as_str()) && !is_text {
                return Err(format!(
                    "json: cannot unmarshal {} into Go struct field jsonPatchOp.{name} of type string",
                    go_kind(value)
                ));
            }
            let known = name == "value" || TEXTS.contains(&name.as_str());
            if !known && unknown.len() < MAX_UNKNOWN {
                unknown.push(format!("unknown field {:?}", format!("[{at}].{name}")));
            }
        }
    }
    Ok(unknown)
}

/// Writes the positions in an operation's paths as the standard has them.
fn resolve(object: &Value, operation: &mut Value) {
    let op = operation["op"].as_str().unwrap_or_default();
    let adds = matches!(op, "add" | "copy");
    // What is moved leaves its list first: where that ends is not known yet.
    let moves = op == "move";
    for field in ["path", "from"] {
        let is_target = field == "path";
        if moves && is_target {
            continue;
        }
        let path = operation[field].as_str();
        let resolved = path.and_then(|path| positioned(object, path, adds && is_target));
        if let Some(path) = resolved {
            *operation.member(&[field]) = Value::from(path);
        }
    }
}

/// A path with its positions from the start of each list; none where they are already. `adds`: the last one may be behind
/// all items.
fn positioned(object: &Value, path: &str, adds: bool) -> Option<String> {
    let is_odd = |token: &str| {
        let starts = token.starts_with(['-', '+', '0']);
        token.len() > 1 && starts && token.parse::<i64>().is_ok()
    };
    let tokens = path.strip_prefix('/')?.split('/');
    if !tokens.clone().any(is_odd) {
        return None;
    }
    let (mut at, mut resolved) = (Some(object), String::with_capacity(path.len()));
    let mut tokens = tokens.peekable();
    while let Some(token) = tokens.next() {
        resolved.push('/');
        let room = usize::from(adds && tokens.peek().is_none());
        let position = match at {
            Some(Value::Array(list)) => position(token, list.len() + room),
            _ => None,
        };
        match position {
            Some(position) => resolved.push_str(&position.to_string()),
            None => resolved.push_str(token),
        }
        at = match (at, position) {
            (Some(Value::Array(list)), Some(position)) => list.get(position),
            (Some(Value::Object(fields)), _) => {
                fields.get(&token.replace("~1", "/").replace("~0", "~"))
            }
            _ => None,
        };
    }
    Some(resolved)
}

/// A position in a list of some length; none where it is none.
fn position(token: &str, length: usize) -> Option<usize> {
    let number = token.parse::<i64>().ok()?;
    match usize::try_from(number) {
        Ok(position) => Some(position),
        Err(_) => length.checked_sub(usize::try_from(number.unsigned_abs()).ok()?),
    }
}

/// Whether a path leads to a map without that member. Lists have no missing members, only positions out of range.
fn is_missing_member(object: &Value, path: &Value) -> bool {
    let Some(path) = path.as_str() else {
        return false;
    };
    let parent = path
        .rsplit_once('/')
        .and_then(|(parent, _)| object.pointer(parent));
    object.pointer(path).is_none() && parent.is_some_and(Value::is_object)
}

/// What the operations so far have taken.
#[derive(Default)]
struct Bounds {
    copied: usize,
    work: usize,
}

impl Bounds {
    /// Counts an operation before it is done; nothing when that is too much.
    fn admit(&mut self, object: &Value, operation: &PatchOperation) -> Option<()> {
        self.work(operation.path().as_str().len())?;
        let source = |from: &Pointer| object.pointer(from.as_str());
        match operation {
            PatchOperation::Add(add) => {
                self.place(&add.path, &add.value)?;
            }
            PatchOperation::Replace(replace) => {
                self.place(&replace.path, &replace.value)?;
            }
            PatchOperation::Test(test) => {
                self.place(&test.path, &test.value)?;
            }
            PatchOperation::Move(moved) => {
                self.shift(object, &moved.from)?;
                if let Some(source) = source(&moved.from) {
                    self.place(&moved.path, source)?;
                }
            }
            PatchOperation::Copy(copy) => {
                if let Some(source) = source(&copy.from) {
                    self.copied += self.place(&copy.path, source)?;
                    (self.copied <= MAX_COPIED).then_some(())?;
                }
            }
            PatchOperation::Remove(_) => {}
        }
        self.shift(object, operation.path())
    }

    fn work(&mut self, bytes: usize) -> Option<()> {
        self.work += bytes;
        (self.work <= MAX_WORK).then_some(())
    }

    /// A value at a path: how large it is.
    fn place(&mut self, path: &Pointer, value: &Value) -> Option<usize> {
        let (size, depth) = measure(value);
        self.work(size)?;
        // The object itself is the first of those around it.
        (path.count() + depth <= MAX_DEPTH).then_some(size)
    }

    /// The items of the list that a path leads into are moved up or down.
    fn shift(&mut self, object: &Value, path: &Pointer) -> Option<()> {
        let list = path
            .parent()
            .and_then(|parent| object.pointer(parent.as_str()))
            .and_then(Value::as_array);
        self.work(list.map_or(0, Vec::len) * ITEM)
    }
}

/// About the bytes of a value, and how many collections nest in it. No value that comes here nests deeply itself.
pub(super) fn measure(value: &Value) -> (usize, usize) {
    let inner = |(size, depth): (usize, usize), value: &Value| {
        let (more, below) = measure(value);
        (size + more, depth.max(below + 1))
    };
    match value {
        Value::String(text) => (VALUE + text.len(), 0),
        Value::Array(items) => items.iter().fold((COLLECTION, 1), inner),
        Value::Object(fields) => fields.iter().fold((COLLECTION, 1), |sum, (name, value)| {
            let (size, depth) = inner(sum, value);
            (size + name.len(), depth)
        }),
        _ => (VALUE, 0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stopwatch::Stopwatch;

    fn patched(mut object: Value, operations: &[Value]) -> Result<Value, StatusError> {
        let patch = json!(operations).to_string();
        apply(&mut object, patch.as_bytes()).map(|_| object)
    }

    #[test]
    fn positions_are_any_whole_numbers() {
        let object = json!({"l": ["a", "b", "c"], "m": {"-1": "x", "01": "y"}, "n": [{"v": 1}]});
        let add = |path: &str| json!({"op": "add", "path": path, "value": "z"});
        for (path, expected) in [
            ("/l/-1", json!(["a", "b", "c", "z"])),
            ("/l/-4", json!(["z", "a", "b", "c"])),
            ("/l/+1", json!(["a", "z", "b", "c"])),
            ("/l/01", json!(["a", "z", "b", "c"])),
            ("/l/-", json!(["a", "b", "c", "z"])),
        ] {
            let added = patched(object.clone(), &[add(path)]).expect(path);
            assert_eq!(added["l"], expected, "{path}");
        }
        for (operation, place, expected) in [
            (
                json!({"op": "remove", "path": "/l/-1"}),
                "/l",
                json!(["a", "b"]),
            ),
            (
                json!({"op": "replace", "path": "/l/-3", "value": "z"}),
                "/l",
                json!(["z", "b", "c"]),
            ),
            (
                json!({"op": "replace", "path": "/n/-1/v", "value": 2}),
                "/n",
                json!([{"v": 2}]),
            ),
            (
                json!({"op": "copy", "from": "/l/-1", "path": "/l/0"}),
                "/l",
                json!(["c", "a", "b", "c"]),
            ),
            // Keys of maps are what they are.
            (
                json!({"op": "remove", "path": "/m/-1"}),
                "/m",
                json!({"01": "y"}),
            ),
            (
                json!({"op": "remove", "path": "/m/01"}),
                "/m",
                json!({"-1": "x"}),
            ),
        ] {
            let changed = patched(object.clone(), std::slice::from_ref(&operation));
            let changed = changed.expect("done");
            assert_eq!(changed.pointer(place), Some(&expected), "{operation}");
        }
        for path in ["/l/-5", "/l/9", "/l/x", "/l/-x"] {
            let error = patched(object.clone(), &[add(path)]).expect_err(path);
            assert_eq!(error.code(), 422, "{path}");
        }
        let remove = json!({"op": "remove", "path": "/l/-4"});
        assert!(patched(object, &[remove]).is_err());
    }

    #[test]
    fn what_is_no_operation_is_told_in_gos_words() {
        for (patch, why) in [
            (
                "[1]",
                "json: cannot unmarshal number into Go value of type handlers.jsonPatchOp",
            ),
            (
                r#"[{"op":5}]"#,
                "json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string",
            ),
            (
                r#"[{"op":"add","path":["a"]}]"#,
                "json: cannot unmarshal array into Go struct field jsonPatchOp.path of type string",
            ),
        ] {
            let error = apply(&mut json!({}), patch.as_bytes()).expect_err(patch);
            let expected = format!("error decoding patch: {why}");
            assert_eq!((error.code(), error.message()), (400, expected.as_str()));
        }
        let error = apply(&mut json!({}), b"[null]").expect_err("no operation");
        assert_eq!(error.code(), 422);
    }

    #[test]
    fn a_missing_member_is_null() {
        let object = json!({"a": {"n": null, "v": 1}, "l": [1, null], "s": "x"});
        let test = |path: &str| json!({"op": "test", "path": path, "value": null});
        for path in ["/a/nope", "/nope", "/a/n", "/a/", "/l/1", "/~1~0"] {
            let same = patched(object.clone(), &[test(path)]);
            assert_eq!(same.expect(path), object, "{path}");
        }
        for path in [
            "/a/v", "/l", "/l/0", "/l/2", "/l/-", "/l/x", "/nope/x", "/a/n/x", "/a/v/x", "/s/x",
            "", "a", "a/b",
        ] {
            let error = patched(object.clone(), &[test(path)]).expect_err(path);
            assert_eq!(error.code(), 422, "{path}");
        }
        // Another value is not that of a member which is not there, and none at all is no test.
        for refused in [
            json!({"op": "test", "path": "/a/nope", "value": false}),
            json!({"op": "test", "path": "/a/nope"}),
        ] {
            let error = patched(object.clone(), std::slice::from_ref(&refused));
            assert_eq!(error.expect_err("refused").code(), 422, "{refused}");
        }
        // What follows a test that succeeds is done.
        let add = json!({"op": "add", "path": "/a/nope", "value": 2});
        let added = patched(object.clone(), &[test("/a/nope"), add.clone()]);
        assert_eq!(added.expect("done")["a"]["nope"], 2);
        assert!(patched(object.clone(), &[add, test("/a/nope")]).is_err());

        let copy = |from: &str, path: &str| json!({"op": "copy", "from": from, "path": path});
        let copied = patched(object.clone(), &[copy("/nope", "/a/v")]);
        assert_eq!(copied.expect("null")["a"], json!({"n": null, "v": null}));
        for (from, path) in [
            ("/l/2", "/a/v"),
            ("/nope/x", "/a/v"),
            ("/nope", "/nope/x"),
            ("/nope", ""),
        ] {
            let error = patched(object.clone(), &[copy(from, path)]).expect_err(from);
            assert_eq!(error.code(), 422, "{from} {path}");
        }
        let moved = json!({"op": "move", "from": "/nope", "path": "/a/v"});
        assert!(patched(object, &[moved]).is_err());
    }

    #[test]
    fn copies_are_counted_in_bytes_and_depth() {
        // Each copy goes to the innermost place of all before: 2, 4, 8, ... 2^15 below each other.
        let doubling: Vec<Value> = (0..15)
            .map(|at| {
                let innermost = "/b".repeat((1 << at) - 1);
                json!({"op": "copy", "from": "/a", "path": format!("/a{innermost}/b")})
            })
            .collect();
        let object = json!({"a": {}});
        assert_eq!(
            patched(object.clone(), &doubling)
                .expect_err("too deep")
                .code(),
            422
        );
        let nested = patched(object, &doubling[..6]).expect("64 deep");
        assert_eq!(measure(&nested).1, 1 + 64);

        let large = json!({"a": "x".repeat(200_000)});
        let copies: Vec<Value> = (0..20)
            .map(|at| json!({"op": "copy", "from": "/a", "path": format!("/b{at}")}))
            .collect();
        assert!(patched(large.clone(), &copies[..10]).is_ok());
        assert_eq!(patched(large, &copies).expect_err("too much").code(), 422);
        let doubled: Vec<Value> = (0..40)
            .map(|at| json!({"op": "copy", "from": "/l", "path": format!("/l/{at}")}))
            .collect();
        assert!(patched(json!({"l": ["x".repeat(1000)]}), &doubled).is_err());
        let small = json!({"a": vec![json!({"": 0}); 10_000]});
        let copies: Vec<Value> = (0..5)
            .map(|at| json!({"op": "copy", "from": "/a", "path": format!("/b{at}")}))
            .collect();
        assert!(patched(small.clone(), &copies[..2]).is_ok());
        assert_eq!(patched(small, &copies).expect_err("too many").code(), 422);
    }

    #[test]
    fn moves_nest_no_deeper_than_a_document_may() {
        let mut operations: Vec<Value> = (0..2000)
            .map(|at| json!({"op": "add", "path": format!("/m{at}"), "value": {}}))
            .collect();
        operations.extend((1..2000).map(
            |at| json!({"op": "move", "from": format!("/m{}", at - 1), "path": format!("/m{at}/x")}),
        ));
        assert_eq!(
            patched(json!({}), &operations)
                .expect_err("too deep")
                .code(),
            422
        );
        let deep = "/x".repeat(MAX_DEPTH + 1);
        assert!(patched(json!({}), &[json!({"op": "add", "path": deep, "value": 1})]).is_err());
    }

    #[test]
    fn work_is_bounded_however_it_is_made() {
        let list = json!({"l": vec![0; 500_000], "o": {}});
        let bodies: [Value; 5] = [
            json!({"op": "add", "path": "/l/0", "value": 1}),
            json!({"op": "move", "from": "/l/0", "path": "/l/499999"}),
            json!({"op": "move", "from": "/l", "path": "/l"}),
            json!({"op": "copy", "from": "/l/0", "path": "/l/0"}),
            json!({"op": "remove", "path": "/l/0"}),
        ];
        for operation in bodies {
            let started = Stopwatch::start();
            let error = patched(list.clone(), &vec![operation.clone(); 10_000]);
            assert_eq!(error.expect_err("too much").code(), 422, "{operation}");
            assert!(started.elapsed() < Duration::from_secs(5), "{operation}");
        }
    }

    #[test]
    fn too_many_operations_are_refused_in_kubernetes_words() {
        let many = vec![json!({"op": "test", "path": "/a", "value": 1}); 10_001];
        let error = patched(json!({"a": 1}), &many).expect_err("too many");
        assert_eq!(
            (error.code(), error.message()),
            (
                413,
                "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
            )
        );
    }
}
