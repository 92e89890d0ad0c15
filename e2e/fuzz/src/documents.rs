//! Objects and what changes or selects them. The first byte of an input chooses the kind.

use std::sync::LazyLock;

use gantry_api::decode::{FieldValidation, check, decode};
use gantry_api::kind::{ResourceKind, WriteScope, finish};
use gantry_api::patch::{self, PatchType};
use gantry_api::quantity::Quantity;
use gantry_api::selector::{FieldSelector, LabelSelector};
use gantry_api::{kinds, protobuf, time, yaml};
use serde_json::{Value, json};

static KINDS: LazyLock<Vec<Box<dyn ResourceKind>>> = LazyLock::new(kinds::all);

/// What every stored object has.
fn stored(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.insert(
            "uid".to_owned(),
            json!("11111111-2222-4333-8444-555555555555"),
        );
        metadata.insert(
            "creationTimestamp".to_owned(),
            json!("2026-01-01T00:00:00Z"),
        );
    }
    object
}

/// Splits an input into a kind and the rest.
fn choose(bytes: &[u8]) -> Option<(&'static dyn ResourceKind, &[u8])> {
    let (choice, rest) = bytes.split_first()?;
    let kind = &KINDS[usize::from(*choice) % KINDS.len()];
    Some((kind.as_ref(), rest))
}

/// Everything that happens to an object: defaults, checks, an update to itself, fields, a row.
fn accept(kind: &dyn ResourceKind, object: Value) {
    let Ok((created, _)) = kind.draft(stored(object)).and_then(finish) else {
        return;
    };
    drop(kind.selectable_fields(&created));
    drop(kind.row(&created, i64::MAX));
    let part = WriteScope::Part("resize");
    for scope in [WriteScope::Main, WriteScope::Status, part] {
        drop(
            kind.draft_update(created.clone(), &created, scope)
                .and_then(finish),
        );
    }
}

fn body(bytes: &[u8], content_type: &str) {
    let Some((kind, body)) = choose(bytes) else {
        return;
    };
    for validation in [FieldValidation::Strict, FieldValidation::Warn] {
        if let Ok(decoded) = decode(body, content_type, kind, validation) {
            accept(kind, decoded.object);
        }
    }
}

pub(crate) fn json_body(bytes: &[u8]) {
    body(bytes, "application/json");
}

pub(crate) fn yaml_body(bytes: &[u8]) {
    body(bytes, "application/yaml");
}

pub(crate) fn protobuf_body(bytes: &[u8]) {
    let Some((kind, rest)) = choose(bytes) else {
        return;
    };
    // With the envelope, and as if it were inside of a right one.
    let mut enveloped = b"k8s\0\x0a\x00\x12".to_vec();
    let mut length = rest.len();
    while length >= 0x80 {
        enveloped.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    enveloped.push(length.to_le_bytes()[0]);
    enveloped.extend(rest);
    for body in [rest, &enveloped] {
        if let Ok(object) = protobuf::to_json(body, |_| Some(kind.schema()))
            && let Ok(decoded) = decode(
                object.to_string().as_bytes(),
                "application/json",
                kind,
                FieldValidation::Ignore,
            )
        {
            accept(kind, decoded.object);
        }
    }
}

/// An object with lists and maps of every sort.
static ORIGINAL: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "metadata": {"name": "a", "labels": {"app": "a"}, "finalizers": ["a.example/b", "c.example/d"]},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "a"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "template": {
                "metadata": {"labels": {"app": "a"}},
                "spec": {
                    "containers": [
                        {"name": "a", "image": "a:1", "args": ["x"], "env": [{"name": "A", "value": "1"}]},
                        {"name": "b", "image": "b:1", "ports": [{"containerPort": 80}]},
                    ],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                },
            },
        },
    })
});

pub(crate) fn patch(bytes: &[u8]) {
    let Some((choice, rest)) = bytes.split_first() else {
        return;
    };
    let Some(kind) = KINDS.iter().find(|kind| kind.info().kind == "Deployment") else {
        return;
    };
    let patch_type = match choice % 3 {
        0 => PatchType::Json,
        1 => PatchType::Merge,
        _ => PatchType::Strategic,
    };
    if let Ok(patched) = patch::apply(kind.as_ref(), patch_type, &ORIGINAL, rest)
        && let Ok(decoded) = check(patched.object, kind.as_ref(), FieldValidation::Warn)
    {
        accept(kind.as_ref(), decoded.object);
    }
}

pub(crate) fn selector(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(selector) = LabelSelector::parse(&text) {
        let labels = [
            ("a".to_owned(), "b".to_owned()),
            ("c".to_owned(), "7".to_owned()),
        ];
        selector.matches_pairs(&labels);
        drop(selector.to_string());
    }
    if let Ok(selector) = FieldSelector::parse(&text) {
        selector.matches(|field| (field == "metadata.name").then_some("a"));
    }
}

pub(crate) fn scalar(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(quantity) = text.parse::<Quantity>() {
        assert_eq!(quantity.is_whole(), quantity.nanos() % 1_000_000_000 == 0);
        // Rounded away from zero.
        let units = i128::from(quantity.units()).abs();
        assert!(units * 1_000_000_000 >= quantity.nanos().abs());
        assert_eq!(quantity.millis() > 0, quantity.sign() > 0);
        let sum = quantity.plus(quantity);
        let written = sum.to_string();
        assert!(
            written.parse::<Quantity>().is_ok(),
            "{text} became {written}"
        );
    }
    if let Some(nanos) = time::parse(&text) {
        drop((time::seconds(nanos), time::micros(nanos)));
        drop((
            time::age(Some(nanos), i64::MIN),
            time::age(Some(nanos), i64::MAX),
        ));
    }
}

pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(documents) = yaml::documents(bytes) {
        for document in documents {
            drop(document.to_value());
        }
    }
    for object in yaml::objects(bytes).unwrap_or_default().values {
        let written = yaml::to_string(&object);
        assert!(yaml::document(written.as_bytes()).is_ok(), "{written}");
    }
}
