use std::any::Any;

use axum::body::Body;
use gantry_api::kind::{Column, Draft, WriteScope};
use gantry_api::schema::TypeSchema;
use gantry_store::Revision;
use http::{Method, StatusCode, header};
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Map;
use tower::ServiceExt;

use super::*;
use crate::Identity;
use crate::codec;
use crate::testing;

/// ConfigMaps in another version, in which `data` is called `words`.
struct Words {
    maps: Box<dyn ResourceKind>,
    info: ResourceInfo,
    stored: bool,
}

impl Words {
    fn kind(stored: bool) -> Arc<dyn ResourceKind> {
        let mut kinds = gantry_api::kinds::all().into_iter();
        let maps = kinds.find(|kind| kind.info().kind == "ConfigMap");
        let maps = maps.expect("is a kind");
        let info = ResourceInfo {
            version: "v2".to_owned().into(),
            ..maps.info().clone()
        };
        Arc::new(Self { maps, info, stored })
    }
}

fn rename(mut object: Value, from: &str, to: &str, version: &str) -> Value {
    if let Some(object) = object.as_object_mut() {
        if let Some(words) = object.remove(from) {
            object.insert(to.to_owned(), words);
        }
        object.insert("apiVersion".to_owned(), json!(version));
    }
    object
}

/// A ConfigMap that will be written in the other version.
struct WordsDraft(Box<dyn Draft>);

impl Draft for WordsDraft {
    fn object(&self) -> &dyn Any {
        self.0.object()
    }

    fn object_mut(&mut self) -> &mut dyn Any {
        self.0.object_mut()
    }

    fn old(&self) -> Option<&dyn Any> {
        self.0.old()
    }

    fn metadata(&self) -> &ObjectMeta {
        self.0.metadata()
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        self.0.metadata_mut()
    }

    fn old_metadata(&self) -> Option<&ObjectMeta> {
        self.0.old_metadata()
    }

    fn default(&mut self) {
        self.0.default();
    }

    fn prepare(&mut self) {
        self.0.prepare();
    }

    fn validate(&self) -> Result<Vec<String>, StatusError> {
        self.0.validate()
    }

    fn value(&self) -> Result<Value, StatusError> {
        Ok(rename(self.0.value()?, "data", "words", "v2"))
    }

    fn selectable_fields(&self) -> Vec<(String, String)> {
        panic!("the hub is asked");
    }
}

impl ResourceKind for Words {
    fn info(&self) -> &ResourceInfo {
        &self.info
    }

    fn schema(&self) -> &'static TypeSchema {
        self.maps.schema()
    }

    fn draft(&self, object: Value) -> Result<Box<dyn Draft>, StatusError> {
        let map = self.maps.draft(self.convert_to_hub(object)?)?;
        Ok(Box::new(WordsDraft(map)))
    }

    fn draft_update(
        &self,
        _: Value,
        _: &Value,
        _: WriteScope,
    ) -> Result<Box<dyn Draft>, StatusError> {
        Err(StatusError::method_not_allowed())
    }

    fn selectable_fields(&self, _object: &Value) -> Vec<(String, String)> {
        panic!("the hub is asked");
    }

    fn knows_field_label(&self, label: &str) -> bool {
        self.maps.knows_field_label(label)
    }

    fn openapi(&self) -> (String, Map<String, Value>) {
        self.maps.openapi()
    }

    fn deprecation(&self) -> Option<&'static str> {
        None
    }

    fn has_field_labels(&self) -> bool {
        false
    }

    fn table(&self) -> (&str, &str) {
        ("", "configmaps")
    }

    fn is_storage_version(&self) -> bool {
        self.stored
    }

    fn convert_to_hub(&self, object: Value) -> Result<Value, StatusError> {
        Ok(rename(object, "words", "data", "v1"))
    }

    fn convert_from_hub(&self, object: Value) -> Result<Value, StatusError> {
        Ok(rename(object, "data", "words", "v2"))
    }

    fn hub_field_label<'a>(&self, label: &'a str) -> &'a str {
        label
    }

    fn columns(&self) -> &[Column] {
        self.maps.columns()
    }

    fn row(&self, _object: &Value, _now: i64) -> Vec<Value> {
        Vec::new()
    }
}

fn find(registry: &Registry, version: &str) -> Arc<Resource> {
    let found = registry.get("", version, "configmaps");
    found.cloned().expect("is served")
}

#[test]
fn all_versions_are_read_from_one_table() {
    let registry = Registry::built_in().with(&Words::kind(false));
    let (v1, v2) = (find(&registry, "v1"), find(&registry, "v2"));
    assert_eq!(v1.table, v2.table);
    let object = json!({
        "apiVersion": "v2", "kind": "ConfigMap",
        "metadata": {"name": "a", "labels": {"l": "m"}}, "words": {"k": "v"},
    });
    let stored = codec::encode(&v2, &object).expect("encodes");
    let expected = br#"{"metadata":{"labels":{"l":"m"},"name":"a"},"data":{"k":"v"}}"#;
    assert_eq!(&stored[..], expected);
    assert_eq!(codec::decode(&v2, &stored), Ok(object.clone()));
    let first = codec::decode(&v1, &stored).expect("decodes");
    assert_eq!(
        (&first["apiVersion"], &first["data"]["k"]),
        (&json!("v1"), &json!("v"))
    );
    let bytes = codec::object_bytes(&v2, &stored, Revision(5)).expect("reads");
    let read: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(read["words"], json!({"k": "v"}));
    assert_eq!(read["metadata"]["resourceVersion"], "5");
    assert_eq!(
        codec::index(&v2, &object).labels,
        [("l".to_owned(), "m".to_owned())]
    );
}

#[test]
fn bytes_of_every_version_are_read_whichever_is_stored() {
    let former = Registry::built_in();
    let registry = former.without("", "v1", "configmaps");
    assert!(registry.get("", "v1", "configmaps").is_none());
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let before = codec::encode(&find(&former, "v1"), &object).expect("encodes");
    // The hub is a version that is served and stored no longer.
    let hub = Hub(Words::kind(false));
    let registry = Registry::of(
        vec![
            Entry {
                kind: Arc::new(hub),
                source: Source::Stored,
            },
            Entry {
                kind: Words::kind(true),
                source: Source::Stored,
            },
        ],
        Vec::new(),
        |_| Vec::new(),
    );
    let (v1, v2) = (find(&registry, "v1"), find(&registry, "v2"));
    let after = codec::encode(&v1, &object).expect("encodes");
    assert_eq!(
        &after[..],
        br#"{"apiVersion":"v2","metadata":{"name":"a"},"words":{"k":"v"}}"#
    );
    for bytes in [&before, &after] {
        assert_eq!(codec::decode(&v1, bytes), Ok(object.clone()));
        let read = codec::decode(&v2, bytes).expect("decodes");
        assert_eq!(
            (&read["apiVersion"], &read["words"]["k"]),
            (&json!("v2"), &json!("v"))
        );
        let text = codec::object_bytes(&v1, bytes, Revision(3)).expect("reads");
        let text: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(text["data"], json!({"k": "v"}));
    }
    let unknown = br#"{"apiVersion":"v9","metadata":{"name":"a"}}"#;
    assert_eq!(
        codec::decode(&v1, unknown)
            .expect_err("of no version")
            .code(),
        500
    );
}

/// The first version, in which nothing is stored any more.
struct Hub(Arc<dyn ResourceKind>);

impl ResourceKind for Hub {
    fn info(&self) -> &ResourceInfo {
        static INFO: std::sync::OnceLock<ResourceInfo> = std::sync::OnceLock::new();
        INFO.get_or_init(|| ResourceInfo {
            version: "v1".into(),
            ..self.0.info().clone()
        })
    }

    fn schema(&self) -> &'static TypeSchema {
        self.0.schema()
    }

    fn draft(&self, _: Value) -> Result<Box<dyn Draft>, StatusError> {
        Err(StatusError::method_not_allowed())
    }

    fn draft_update(
        &self,
        _: Value,
        _: &Value,
        _: WriteScope,
    ) -> Result<Box<dyn Draft>, StatusError> {
        Err(StatusError::method_not_allowed())
    }

    fn selectable_fields(&self, _object: &Value) -> Vec<(String, String)> {
        Vec::new()
    }

    fn knows_field_label(&self, label: &str) -> bool {
        self.0.knows_field_label(label)
    }

    fn openapi(&self) -> (String, Map<String, Value>) {
        self.0.openapi()
    }

    fn deprecation(&self) -> Option<&'static str> {
        None
    }

    fn has_field_labels(&self) -> bool {
        false
    }

    fn table(&self) -> (&str, &str) {
        self.0.table()
    }

    fn is_storage_version(&self) -> bool {
        false
    }

    fn convert_to_hub(&self, object: Value) -> Result<Value, StatusError> {
        Ok(object)
    }

    fn convert_from_hub(&self, object: Value) -> Result<Value, StatusError> {
        Ok(object)
    }

    fn hub_field_label<'a>(&self, label: &'a str) -> &'a str {
        label
    }

    fn columns(&self) -> &[Column] {
        &[]
    }

    fn row(&self, _object: &Value, _now: i64) -> Vec<Value> {
        Vec::new()
    }
}

#[tokio::test]
async fn a_kind_comes_and_goes_and_a_request_under_way_keeps_its_own() {
    let server = testing::server().await;
    let administrator = Identity::new("kubernetes-admin", &["system:masters"]);
    let send = async |method: Method, uri: &str, body: Value| {
        let request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()));
        let service = server.local_service(administrator.clone());
        let Ok(response) = service.oneshot(request.expect("a request")).await;
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body");
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        (status, body)
    };
    let maps = "/api/v2/namespaces/default/configmaps";
    let (status, _) = send(Method::GET, maps, json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    server.serve_kind(&Words::kind(false));
    let object = json!({"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let (status, created) = send(Method::POST, maps, object).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_eq!(created["apiVersion"], "v2");
    let watch = http::Request::get(format!("{maps}?watch=1&timeoutSeconds=1")).body(Body::empty());
    let service = server.local_service(administrator.clone());
    let Ok(watch) = service.oneshot(watch.expect("a request")).await;
    server.withdraw_kind("", "v2", "configmaps");
    let (status, _) = send(Method::GET, maps, json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // Its events are read after the kind has gone.
    let lines = watch
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let lines = String::from_utf8(lines.to_vec()).expect("text");
    let first = lines.lines().find(|line| line.contains(r#""name":"a""#));
    assert!(
        first.expect("a line").contains(r#""apiVersion":"v2""#),
        "{lines}"
    );
    let first = "/api/v1/namespaces/default/configmaps/a";
    let (status, kept) = send(Method::GET, first, json!({})).await;
    assert_eq!(
        (status, &kept["apiVersion"]),
        (StatusCode::OK, &json!("v1"))
    );
}
