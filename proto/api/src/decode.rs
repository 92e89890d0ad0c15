//! From a request's body to an object in the normal form that Go's types would give it.
//!
//! One walker over [`TypeSchema`] reads streams (JSON, YAML) and parsed values alike: it finds unknown and duplicate
//! fields in document order, drops the former, and tells wrong types in Go's words.

mod count;
mod walker;

pub use count::{Excess, count_collections};
pub use gantry_base::json::MAX_DEPTH;
pub use walker::MAX_STRUCTS;

use crate::json::Members;
use crate::json::syntax_error;
use base64::Engine;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed};
use serde_json::Value;

use crate::kind::{ResourceInfo, ResourceKind};
use crate::schema::{self, TypeSchema};
use crate::status::StatusError;
use crate::yaml;
use walker::{Findings, Walker};

/// What happens to unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a warning.
    Warn,
    /// Refused.
    Strict,
}

/// An object in normal form.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The object, with `kind` and `apiVersion`.
    pub object: Value,
    /// For the client.
    pub warnings: Vec<String>,
}

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
/// Media types that are understood, as a refusal lists them.
const ACCEPTED: &[&str] = &[JSON, YAML, "application/vnd.kubernetes.protobuf"];

/// Without its parameters.
fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Decodes a body in JSON or YAML as an object of a kind.
pub fn decode(
    body: &[u8],
    content_type: &str,
    kind: &dyn ResourceKind,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let mut findings = Findings::default();
    let walker = Walker::root(kind.schema(), &mut findings);
    let (value, got) = match media_type(content_type) {
        JSON | "" => {
            let mut deserializer = serde_json::Deserializer::from_slice(body);
            let value = walker
                .deserialize(&mut deserializer)
                .and_then(|value| deserializer.end().map(|()| value))
                .map_err(|error| {
                    unrecognised(kind, &versionless(&go_syntax(body, &error)), body)
                })?;
            (value, json_kind(body))
        }
        YAML => {
            let wrong = |why: &dyn std::fmt::Display| unrecognised(kind, &why.to_string(), body);
            let document = yaml::document(body).map_err(|error| wrong(&error))?;
            let value = walker
                .deserialize(document.root())
                .map_err(|error| wrong(&error))?;
            if let Some(error) = document.strict_error() {
                findings.strict.insert(0, error);
            }
            (value, document.json_kind())
        }
        _ => return Err(StatusError::unsupported_media_type(ACCEPTED)),
    };
    // As for Go, null changes nothing of what is empty.
    let value = match value {
        Value::Null if findings.error.is_none() => Value::Object(serde_json::Map::new()),
        other => other,
    };
    if !value.is_object() {
        // What has the wrong type was dropped while walking.
        let text = format!(
            "json: cannot unmarshal {got} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        );
        return Err(unrecognised(kind, &versionless(&text), body));
    }
    finish(value, findings, kind, validation)
}

/// Brings an object that is parsed already (the result of a patch) into normal form.
pub fn check(
    object: Value,
    kind: &dyn ResourceKind,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let mut findings = Findings::default();
    let value = Walker::root(kind.schema(), &mut findings)
        .deserialize(object)
        .map_err(|error| StatusError::bad_request(error.to_string()))?;
    finish(value, findings, kind, validation)
}

/// JSON that no schema is known of, and the fields in it that are there twice: the last counts.
pub(crate) fn untyped(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut findings = Findings::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Walker::untyped(&mut findings).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, findings.strict))
}

/// What is read of the body of a request that is no object: its options.
pub trait Request: JsonSchema + DeserializeOwned + Default {}

impl<T: JsonSchema + DeserializeOwned + Default> Request for T {}

/// Reads a body that is no object of a kind, in JSON or YAML.
fn request<T: Request>(body: &[u8], content_type: &str, kind: &str) -> Result<T, StatusError> {
    let wrong = |why: String| StatusError::bad_request(format!("the body is not a {kind}: {why}"));
    let mut findings = Findings::default();
    let walker = Walker::root(TypeSchema::of::<T>(), &mut findings);
    let value = match media_type(content_type) {
        JSON | "" => {
            let mut deserializer = serde_json::Deserializer::from_slice(body);
            walker
                .deserialize(&mut deserializer)
                .and_then(|value| deserializer.end().map(|()| value))
                .map_err(|error| wrong(error.to_string()))?
        }
        YAML => {
            let document = yaml::document(body).map_err(|error| wrong(error.to_string()))?;
            walker
                .deserialize(document.root())
                .map_err(|error| wrong(error.to_string()))?
        }
        _ => return Err(StatusError::unsupported_media_type(ACCEPTED)),
    };
    match findings.error {
        Some(error) => Err(StatusError::bad_request(format!(
            "{kind} in version \"v1\" cannot be handled as a {kind}: {error}"
        ))),
        // As for Go, null changes nothing.
        None if value.is_null() => Ok(T::default()),
        None => serde_json::from_value(value).map_err(|error| wrong(error.to_string())),
    }
}

/// Reads options of a request from its body, in JSON or YAML; `kind` is theirs, and what says it is something else is refused.
/// What has the wrong type is told in Go's words, and unknown fields are dropped.
pub fn options_request<T: Request>(
    body: &[u8],
    content_type: &str,
    kind: &str,
) -> Result<T, StatusError> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Said {
        api_version: String,
        kind: String,
    }
    // What cannot be read so is told in the words of the options' own type.
    let said = match media_type(content_type) {
        YAML => yaml::document(body)
            .ok()
            .and_then(|document| Said::deserialize(document.root()).ok()),
        _ => serde_json::from_slice::<Said>(body).ok(),
    };
    let said = said.unwrap_or_default();
    if !said.kind.is_empty() && said.kind != kind {
        return Err(StatusError::bad_request(format!(
            "no kind {:?} is registered for version {:?} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\"",
            said.kind, said.api_version
        )));
    }
    let prefix = format!("{kind} in version \"v1\" cannot be handled as a {kind}: ");
    request(body, content_type, kind).map_err(|error| match error.message().strip_prefix(&prefix) {
        Some(why) => StatusError::bad_request(why),
        None => error,
    })
}

fn finish(
    mut value: Value,
    findings: Findings,
    kind: &dyn ResourceKind,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let info = kind.info();
    let api_version = info.api_version();
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (found_version, found_kind) = (text("apiVersion"), text("kind"));
    check_kind(info, &found_version, &found_kind)?;
    let refused = |why: &str| {
        StatusError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            info.kind, info.version, info.kind
        ))
    };
    if let Some(error) = findings.error {
        return Err(refused(&error));
    }
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => findings.strict,
        FieldValidation::Strict if findings.strict.is_empty() => Vec::new(),
        FieldValidation::Strict => {
            let why = format!("strict decoding error: {}", findings.strict.join(", "));
            return Err(refused(&why));
        }
    };
    *value.member(&["apiVersion"]) = Value::from(api_version);
    *value.member(&["kind"]) = Value::from(&*info.kind);
    kind.schema().complete(&mut value);
    Ok(Decoded {
        object: value,
        warnings,
    })
}

/// Refuses what says that it is something else. What it does not say it is.
fn check_kind(info: &ResourceInfo, version: &str, kind: &str) -> Result<(), StatusError> {
    let expected = info.api_version();
    let or = |said: &str, own: &str| match said {
        "" => own.to_owned(),
        said => said.to_owned(),
    };
    let (version, kind) = (or(version, &expected), or(kind, &info.kind));
    if version == expected && kind == info.kind {
        return Ok(());
    }
    let (group, short) = version.split_once('/').unwrap_or(("", version.as_str()));
    let why = match schema::is_kind(group, short, &kind) {
        // Kubernetes reads it, and then finds that it came by the path of another version.
        true if kind == info.kind => {
            return Err(StatusError::bad_request(format!(
                "the API version in the data ({version}) does not match the expected API version ({expected})"
            )));
        }
        true => format!(
            "converting ({short}.{kind}) to ({}.{}): unknown conversion",
            info.package(),
            info.kind
        ),
        false => format!(
            "no kind \"{kind}\" is registered for version \"{version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        ),
    };
    Err(StatusError::bad_request(format!(
        "{kind} in version \"{short}\" cannot be handled as a {}: {why}",
        info.kind
    )))
}

/// What is no JSON was read no further than to where its kind should be.
fn versionless(why: &str) -> String {
    format!("couldn't get version/kind; json parse error: {why}")
}

/// Bytes of a body that a refusal shows.
const SHOWN: usize = 30;

fn unrecognised(kind: &dyn ResourceKind, why: &str, body: &[u8]) -> StatusError {
    // Kubernetes shows how the body starts: as text when that looks like JSON, else in hexadecimal.
    let start = body.get(..SHOWN).unwrap_or(body);
    let mut shown = match start.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(start).into_owned(),
        Some(_) => start.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if body.len() > SHOWN {
        shown.push_str(" ...");
    }
    StatusError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({shown})",
        kind.info().kind
    ))
}

/// A JSON syntax error in Go's words; what Go would have read is told in serde's.
fn go_syntax(body: &[u8], error: &serde_json::Error) -> String {
    syntax_error(body).unwrap_or_else(|| error.to_string())
}

/// What Go calls the value that a JSON text is, by how it starts.
fn json_kind(text: &[u8]) -> &'static str {
    match text.trim_ascii_start().first() {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "bool",
        Some(b'n') => "null",
        _ => "number",
    }
}

/// Where base64 stops being valid, as Go counts.
pub(crate) fn base64_error(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    match base64::engine::general_purpose::STANDARD.decode(bytes) {
        Ok(_) => None,
        Err(_) => Some(
            bytes
                .iter()
                .position(|byte| !(byte.is_ascii_alphanumeric() || b"+/=".contains(byte)))
                .unwrap_or(bytes.len()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::config_map::ConfigMapKind;
    use crate::kinds::deployment::DeploymentKind;
    use crate::kinds::lease::LeaseKind;
    use crate::kinds::pod::PodKind;
    use crate::kinds::secret::SecretKind;
    use crate::kinds::service::ServiceKind;
    use crate::typed::Typed;

    fn refusal(kind: &dyn ResourceKind, body: &str, content_type: &str) -> String {
        decode(body.as_bytes(), content_type, kind, FieldValidation::Strict)
            .expect_err(body)
            .message()
            .to_owned()
    }

    #[test]
    fn wrong_types_are_told_in_gos_words() {
        let deployment = Typed::<DeploymentKind>::default();
        let pod = Typed::<PodKind>::default();
        let json = "application/json";
        assert_eq!(
            refusal(&deployment, r#"{"spec":{"replicas":"three"}}"#, json),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        assert_eq!(
            refusal(&pod, r#"{"spec":{"containers":"hello"}}"#, json),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container"
        );
        assert_eq!(
            refusal(
                &Typed::<ConfigMapKind>::default(),
                r#"{"data":{"a":5}}"#,
                json
            ),
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
        );
        assert_eq!(
            refusal(
                &Typed::<SecretKind>::default(),
                r#"{"data":{"a":"not base64"}}"#,
                json
            ),
            "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 3"
        );
    }

    #[test]
    fn what_no_schema_knows_is_counted_too() {
        let map = Typed::<ConfigMapKind>::default();
        let managed = |items: &str| {
            format!(r#"{{"metadata":{{"managedFields":[{{"fieldsV1":{{"a":[{items}]}}}}]}}}}"#)
        };
        let decoded = |body: &str, content_type: &str| {
            decode(body.as_bytes(), content_type, &map, FieldValidation::Strict)
        };
        for item in [r#"{"":0}"#, "[0]"] {
            let many = managed(&vec![item; MAX_STRUCTS].join(","));
            for content_type in ["application/json", "application/yaml"] {
                let error = decoded(&many, content_type).expect_err(item);
                assert!(error.message().contains("Too many"), "{error:?}");
                let few = managed(&vec![item; 100].join(","));
                assert!(decoded(&few, content_type).is_ok());
            }
        }
        // Nothing is made of what cannot be the name of a kind.
        for field in ["kind", "apiVersion"] {
            let body = format!(r#"{{"{field}":[{}]}}"#, vec!["{}"; MAX_STRUCTS].join(","));
            assert_eq!(
                refusal(&map, &body, "application/json"),
                format!(
                    "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal array into Go struct field ConfigMap.{field} of type string"
                )
            );
        }
    }

    #[test]
    fn unknown_fields_keep_the_documents_order() {
        let pod = Typed::<PodKind>::default();
        let body = r#"{"metadata":{"bogusMeta":1},"spec":{"bogus":1,"containers":[{"name":"c","imagPullPolicy":"Always"}]}}"#;
        assert_eq!(
            refusal(&pod, body, "application/json"),
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"metadata.bogusMeta\", unknown field \"spec.bogus\", unknown field \"spec.containers[0].imagPullPolicy\""
        );
        let warned = decode(
            body.as_bytes(),
            "application/json",
            &pod,
            FieldValidation::Warn,
        )
        .expect("decodes");
        assert_eq!(warned.warnings.len(), 3);
        assert_eq!(warned.object["spec"]["bogus"], json!(null));
    }

    #[test]
    fn null_is_what_go_makes_of_it() {
        let json = "application/json";
        let decoded = |kind: &dyn ResourceKind, body: &str, content_type: &str| {
            let strict = FieldValidation::Strict;
            let decoded = decode(body.as_bytes(), content_type, kind, strict).expect(body);
            assert!(decoded.warnings.is_empty());
            decoded.object
        };
        let map = Typed::<ConfigMapKind>::default();
        let object = decoded(
            &map,
            r#"{"metadata":{"labels":{"a":null},"finalizers":[null],"ownerReferences":[null]},"data":{"a":null},
                "binaryData":{"b":null},"immutable":null}"#,
            json,
        );
        assert_eq!(object["data"], json!({"a": ""}));
        assert_eq!(object["binaryData"], json!({"b": ""}));
        assert_eq!(object["metadata"]["labels"], json!({"a": ""}));
        assert_eq!(object["metadata"]["finalizers"], json!([""]));
        assert_eq!(object["metadata"]["ownerReferences"], json!([{}]));
        assert_eq!(object.get("immutable"), None);
        let pod = Typed::<PodKind>::default();
        let object = decoded(
            &pod,
            r#"{"spec":{"containers":[null,{"name":"c","args":[null],"ports":[{"containerPort":null}],
                "resources":{"limits":{"cpu":null}},"securityContext":null}],
                "volumes":[{"name":"v","emptyDir":{"sizeLimit":null}}],"tolerations":null,"nodeSelector":null}}"#,
            json,
        );
        let containers = &object["spec"]["containers"];
        assert_eq!(containers[0]["resources"], json!({}));
        assert_eq!(containers[1]["args"], json!([""]));
        assert_eq!(containers[1]["resources"], json!({"limits": {"cpu": "0"}}));
        assert_eq!(containers[1].get("securityContext"), None);
        assert_eq!(object["spec"]["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(object["spec"].get("tolerations"), None);
        let object = decoded(&map, "data:\n  a: ~\n  b:\n", "application/yaml");
        assert_eq!(object["data"], json!({"a": "", "b": ""}));
        // As an empty object.
        assert_eq!(decoded(&map, "null", json)["kind"], "ConfigMap");
        // What null becomes is counted.
        let many = format!(
            r#"{{"spec":{{"containers":[{}null]}}}}"#,
            "null,".repeat(MAX_STRUCTS)
        );
        assert!(refusal(&pod, &many, json).contains("Too many"));
    }

    #[test]
    fn times_are_read_as_go_reads_them() {
        let json = "application/json";
        let lease = Typed::<LeaseKind>::default();
        let decoded = |kind: &dyn ResourceKind, body: &str| {
            decode(body.as_bytes(), json, kind, FieldValidation::Strict)
                .expect(body)
                .object
        };
        let spec = |time: &str| {
            let body = format!(r#"{{"spec":{{"acquireTime":"{time}"}}}}"#);
            decoded(&lease, &body)["spec"].clone()
        };
        assert_eq!(spec("0001-01-01T00:00:00.000000Z"), json!({}));
        for time in [
            "0001-01-01T00:00:00.000001Z",
            "1600-01-01T00:00:00.000000Z",
            "9000-12-31T23:59:59.999999Z",
        ] {
            assert_eq!(spec(time), json!({"acquireTime": time}));
        }
        let wrong = refusal(&lease, r#"{"spec":{"acquireTime":5}}"#, json);
        assert!(
            wrong.ends_with("json: cannot unmarshal number into Go value of type string"),
            "{wrong}"
        );
        // Conditions of Go clients that never said when.
        let service = Typed::<ServiceKind>::default();
        for never in ["null", r#""0001-01-01T00:00:00Z""#] {
            let body = format!(
                r#"{{"status":{{"conditions":[{{"type":"A","status":"True","reason":"R","message":"","lastTransitionTime":{never}}}]}}}}"#
            );
            let object = decoded(&service, &body);
            let time = &object["status"]["conditions"][0]["lastTransitionTime"];
            assert_eq!(time, "0001-01-01T00:00:00Z");
            let typed: k8s_openapi::api::core::v1::Service =
                serde_json::from_value(object).expect("typed objects hold it");
            assert!(typed.status.is_some());
        }
        let deployment = Typed::<DeploymentKind>::default();
        let object = decoded(
            &deployment,
            r#"{"status":{"conditions":[{"type":"A","status":"True","lastUpdateTime":null}]}}"#,
        );
        assert_eq!(
            object["status"]["conditions"][0]["lastUpdateTime"],
            json!(null)
        );
    }

    #[test]
    fn amounts_are_read_as_go_reads_them() {
        let pod = Typed::<PodKind>::default();
        let with = |amount: &str| {
            format!(
                r#"{{"spec":{{"containers":[{{"name":"c","resources":{{"limits":{{"cpu":{amount}}}}}}}]}}}}"#
            )
        };
        let body = with(r#"" 1500m ""#);
        let decoded = decode(
            body.as_bytes(),
            "application/json",
            &pod,
            FieldValidation::Strict,
        );
        let object = decoded.expect("decodes").object;
        let limits = &object["spec"]["containers"][0]["resources"]["limits"];
        assert_eq!(limits, &json!({"cpu": "1500m"}));
        for (amount, why) in [
            (r#""1KB""#, "quantities must match the regular expression"),
            (r#""1mm""#, "unable to parse quantity's suffix"),
            ("true", "quantities must match the regular expression"),
        ] {
            let told = refusal(&pod, &with(amount), "application/json");
            assert!(
                told.contains(&format!("cannot be handled as a Pod: {why}")),
                "{told}"
            );
        }
    }

    #[test]
    fn duplicates_kinds_and_yaml() {
        let map = Typed::<ConfigMapKind>::default();
        let duplicate = refusal(
            &map,
            r#"{"data":{"a":"1"},"data":{"b":"2"}}"#,
            "application/json",
        );
        assert!(
            duplicate.ends_with("strict decoding error: duplicate field \"data\""),
            "{duplicate}"
        );
        let wrong = refusal(
            &map,
            r#"{"apiVersion":"v1","kind":"Secret"}"#,
            "application/json",
        );
        assert_eq!(
            wrong,
            "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion"
        );
        let yaml = decode(
            b"data:\n  a: |\n    two\n",
            "application/yaml",
            &map,
            FieldValidation::Strict,
        )
        .expect("decodes");
        assert_eq!(yaml.object["data"]["a"], "two\n");
        assert_eq!(
            refusal(
                &map,
                "bogus: 1\ndata:\n  a: b\n  a: c\n",
                "application/yaml"
            ),
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal errors:\n  line 4: key \"a\" already set in map, unknown field \"bogus\""
        );
        assert!(
            refusal(&map, "{\"kind\":", "application/json")
                .contains("unexpected end of JSON input ({\"kind\":)")
        );
        assert!(refusal(&map, "hello", "text/plain").contains("accepted media types include"));
    }

    #[test]
    fn what_says_it_is_something_else_is_told_what_it_is() {
        let map = Typed::<ConfigMapKind>::default();
        let deployment = Typed::<DeploymentKind>::default();
        let told = |kind: &dyn ResourceKind, version: &str, name: &str| {
            let body = serde_json::json!({"apiVersion": version, "kind": name}).to_string();
            refusal(kind, &body, "application/json")
        };
        for (version, name, why) in [
            (
                "apps/v1",
                "Deployment",
                "Deployment in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Deployment) to (core.ConfigMap): unknown conversion",
            ),
            (
                "v1",
                "Made",
                "Made in version \"v1\" cannot be handled as a ConfigMap: no kind \"Made\" is registered for version \"v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            ),
            (
                "apps/v1",
                "",
                "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"apps/v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            ),
        ] {
            assert_eq!(told(&map, version, name), why);
        }
        assert_eq!(
            told(&deployment, "autoscaling/v2", "HorizontalPodAutoscaler"),
            "HorizontalPodAutoscaler in version \"v2\" cannot be handled as a Deployment: converting (v2.HorizontalPodAutoscaler) to (apps.Deployment): unknown conversion"
        );
        let older = Typed::<crate::kinds::event::EventKind>::default();
        assert_eq!(
            told(&older, "events.k8s.io/v1", "Event"),
            "the API version in the data (events.k8s.io/v1) does not match the expected API version (v1)"
        );
    }

    #[test]
    fn what_is_no_object_of_a_kind_is_read_in_the_same_formats() {
        use k8s_openapi::api::core::v1::Binding;
        let node = |body: &str, content_type: &str| {
            let binding = request::<Binding>(body.as_bytes(), content_type, "Binding");
            let node = binding.map(|binding| binding.target.name.unwrap_or_default());
            node.map_err(|error| error.code())
        };
        let json = r#"{"target":{"name":"node-1"}}"#;
        for (body, content_type, expected) in [
            (json, "application/json; charset=utf-8", Ok("node-1")),
            (json, "", Ok("node-1")),
            (
                "target:\n  name: node-1\n",
                "application/yaml",
                Ok("node-1"),
            ),
            ("", "application/yaml", Ok("")),
            ("", "application/json", Err(400)),
            ("target: [", "application/yaml", Err(400)),
            ("target: n", "application/yaml", Err(400)),
            (json, "text/plain", Err(415)),
        ] {
            let expected = expected.map(str::to_owned);
            assert_eq!(node(body, content_type), expected, "{body} {content_type}");
        }
    }
}
