//! NodeMetrics and PodMetrics of `metrics.k8s.io`: what nodes and pods use, as the Kubernetes project's metrics server tells it.
//! Nobody writes them: they are made when somebody reads them.

use std::borrow::Cow;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as QuantityType;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::json::Members;
use crate::kind::{Column, Draft, ResourceInfo, ResourceKind, StaticInfo, WriteScope};
use crate::quantity::Quantity;
use crate::schema::{TypeSchema, published};
use crate::status::StatusError;
use crate::time;

use super::table::{column, name_column};

/// The group of both.
pub const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
/// What selectors may look at.
const FIELDS: [&str; 2] = ["metadata.name", "metadata.namespace"];

const fn info(kind: &'static str, plural: &'static str, namespaced: bool) -> StaticInfo {
    StaticInfo {
        group: GROUP,
        version: VERSION,
        kind,
        plural,
        // As the metrics server has it.
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    }
}

/// What a container uses, or a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amounts {
    /// CPU, in billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// What all of such an object has.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    /// The namespace of a pod.
    pub namespace: Option<&'a str>,
    /// The name of the pod or node.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a [(String, String)],
    /// When it was measured, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What rates are over.
    pub window: Duration,
}

/// A NodeMetrics.
pub fn node_metrics(measured: &Measured<'_>, amounts: Amounts) -> Value {
    let mut object = object("NodeMetrics", measured);
    *object.member(&["usage"]) = usage(amounts);
    object
}

/// A PodMetrics, of containers by their names.
pub fn pod_metrics<'a>(
    measured: &Measured<'_>,
    containers: impl Iterator<Item = (&'a str, Amounts)>,
) -> Value {
    let containers =
        containers.map(|(name, amounts)| json!({"name": name, "usage": usage(amounts)}));
    let mut object = object("PodMetrics", measured);
    *object.member(&["containers"]) = containers.collect();
    object
}

fn object(kind: &str, measured: &Measured<'_>) -> Value {
    let stamp = time::seconds(measured.unix_nanos);
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(measured.name));
    if let Some(namespace) = measured.namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    metadata.insert("creationTimestamp".to_owned(), json!(stamp));
    if !measured.labels.is_empty() {
        let labels = measured.labels.iter();
        let labels = labels.map(|(name, value)| (name.clone(), json!(value)));
        metadata.insert("labels".to_owned(), Value::Object(labels.collect()));
    }
    json!({
        "kind": kind,
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": metadata,
        "timestamp": stamp,
        "window": go_duration(measured.window),
    })
}

fn usage(amounts: Amounts) -> Value {
    let most = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
    let cpu = Quantity::from_nanos(most(amounts.cpu_nanocores));
    let memory = Quantity::from_bytes(most(amounts.memory_bytes));
    json!({"cpu": cpu.to_string(), "memory": memory.to_string()})
}

/// A duration of a second or more as Go writes it, in thousandths: `1.5s`, `1m0s`.
fn go_duration(duration: Duration) -> String {
    let (minutes, seconds) = (duration.as_secs() / 60, duration.as_secs() % 60);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let fraction = format!(".{:03}", duration.subsec_millis());
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

/// The schema of a NodeMetrics.
struct NodeMetrics;
/// The schema of a PodMetrics.
struct PodMetrics;
/// The schema of one of its containers.
struct ContainerMetrics;

fn schema_name(kind: &str) -> Cow<'static, str> {
    format!("io.k8s.metrics.pkg.apis.metrics.v1beta1.{kind}").into()
}

/// The schema of amounts by the name of what is used.
fn schema_of_usage(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "What is used, by the name of the resource.",
        "type": "object",
        "additionalProperties": generator.subschema_for::<QuantityType>(),
    })
}

/// The schema of a kind of objects, with one field of its own.
fn schema_of(generator: &mut SchemaGenerator, kind: &str, own: (&str, Schema)) -> Schema {
    let (field, own) = own;
    let text = |description: &str| json!({"description": description, "type": "string"});
    let mut properties = json!({
        "apiVersion": text("The version of the schema."),
        "kind": text("The kind of the object."),
        "metadata": generator.subschema_for::<ObjectMeta>(),
        "timestamp": generator.subschema_for::<Time>(),
        "window": text("The time that ends with the timestamp, over which was measured."),
    });
    *properties.member(&[field]) = json!(own);
    json_schema!({
        "description": "What something uses, as it was measured.",
        "type": "object",
        "required": ["timestamp", "window", field],
        "properties": properties,
        "x-kubernetes-group-version-kind": [{"group": GROUP, "version": VERSION, "kind": kind}],
    })
}

impl JsonSchema for NodeMetrics {
    fn schema_name() -> Cow<'static, str> {
        schema_name("NodeMetrics")
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let usage = schema_of_usage(generator);
        schema_of(generator, "NodeMetrics", ("usage", usage))
    }
}

impl JsonSchema for PodMetrics {
    fn schema_name() -> Cow<'static, str> {
        schema_name("PodMetrics")
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let containers = json_schema!({
            "description": "What its containers use.",
            "type": "array",
            "items": generator.subschema_for::<ContainerMetrics>(),
        });
        schema_of(generator, "PodMetrics", ("containers", containers))
    }
}

impl JsonSchema for ContainerMetrics {
    fn schema_name() -> Cow<'static, str> {
        schema_name("ContainerMetrics")
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What a container uses.",
            "type": "object",
            "required": ["name", "usage"],
            "properties": {
                "name": {"description": "Its name in the pod.", "type": "string"},
                "usage": schema_of_usage(generator),
            },
        })
    }
}

/// One of the kinds.
struct MeasuredKind {
    info: ResourceInfo,
    columns: Vec<Column>,
    schema: fn() -> &'static TypeSchema,
    openapi: fn() -> (String, Map<String, Value>),
}

impl MeasuredKind {
    fn boxed<T: JsonSchema>(info: StaticInfo) -> Box<dyn ResourceKind> {
        let formatted = |name: &'static str, format: &'static str| Column {
            format: format.into(),
            ..column(name, "string", "", 0)
        };
        Box::new(Self {
            info: info.into(),
            columns: vec![
                name_column(),
                formatted("cpu", "quantity"),
                formatted("memory", "quantity"),
                formatted("Window", "duration"),
            ],
            schema: TypeSchema::of::<T>,
            openapi: published::definitions::<T>,
        })
    }
}

/// Both kinds.
pub fn all() -> Vec<Box<dyn ResourceKind>> {
    vec![
        MeasuredKind::boxed::<NodeMetrics>(info("NodeMetrics", "nodes", false)),
        MeasuredKind::boxed::<PodMetrics>(info("PodMetrics", "pods", true)),
    ]
}

/// The amounts of an object, or of its containers together.
fn total(object: &Value, resource: &str) -> String {
    let containers = object["containers"].as_array();
    let usages = containers
        .into_iter()
        .flatten()
        .chain(std::iter::once(object));
    let amounts =
        usages.filter_map(|used| used["usage"][resource].as_str()?.parse::<Quantity>().ok());
    let sum = amounts.fold(Quantity::default(), |sum, amount: Quantity| {
        sum.plus(amount)
    });
    sum.to_string()
}

impl ResourceKind for MeasuredKind {
    fn info(&self) -> &ResourceInfo {
        &self.info
    }

    fn schema(&self) -> &'static TypeSchema {
        (self.schema)()
    }

    fn draft(&self, _object: Value) -> Result<Box<dyn Draft>, StatusError> {
        Err(StatusError::method_not_allowed())
    }

    fn draft_update(
        &self,
        _new: Value,
        _old: &Value,
        _scope: WriteScope,
    ) -> Result<Box<dyn Draft>, StatusError> {
        Err(StatusError::method_not_allowed())
    }

    fn selectable_fields(&self, _object: &Value) -> Vec<(String, String)> {
        Vec::new()
    }

    fn knows_field_label(&self, label: &str) -> bool {
        FIELDS.contains(&label)
    }

    fn openapi(&self) -> (String, Map<String, Value>) {
        (self.openapi)()
    }

    fn deprecation(&self) -> Option<&'static str> {
        None
    }

    fn has_field_labels(&self) -> bool {
        false
    }

    fn table(&self) -> (&str, &str) {
        (&self.info.group, &self.info.plural)
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
        &self.columns
    }

    fn row(&self, object: &Value, _now: i64) -> Vec<Value> {
        vec![
            object["metadata"]["name"].clone(),
            json!(total(object, "cpu")),
            json!(total(object, "memory")),
            object["window"].clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn amounts(cpu_nanocores: u64, memory_bytes: u64) -> Amounts {
        Amounts {
            cpu_nanocores,
            memory_bytes,
        }
    }

    #[test]
    fn objects_are_those_of_the_metrics_server() {
        let labels = [("app".to_owned(), "web".to_owned())];
        let measured = Measured {
            namespace: Some("default"),
            name: "web-1",
            labels: &labels,
            unix_nanos: 1_767_323_045 * SECOND,
            window: Duration::from_millis(1004),
        };
        let containers = [
            ("a", amounts(12_345_678, 4096)),
            ("b", amounts(500_000_000, 0)),
        ];
        let pod = pod_metrics(&measured, containers.into_iter());
        let expected = json!({
            "kind": "PodMetrics",
            "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {
                "name": "web-1",
                "namespace": "default",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {"app": "web"},
            },
            "timestamp": "2026-01-02T03:04:05Z",
            "window": "1.004s",
            "containers": [
                {"name": "a", "usage": {"cpu": "12345678n", "memory": "4Ki"}},
                {"name": "b", "usage": {"cpu": "500m", "memory": "0"}},
            ],
        });
        assert_eq!(pod, expected);
        let kinds = all();
        let row = kinds[1].row(&pod, 0);
        assert_eq!(
            row,
            [
                json!("web-1"),
                json!("512345678n"),
                json!("4Ki"),
                json!("1.004s")
            ]
        );
        let node = Measured {
            namespace: None,
            labels: &[],
            ..measured
        };
        let node = node_metrics(&node, amounts(0, 1 << 30));
        assert_eq!(node["usage"], json!({"cpu": "0", "memory": "1Gi"}));
        assert_eq!(kinds[0].row(&node, 0)[1..3], [json!("0"), json!("1Gi")]);
        assert_eq!(kinds[0].columns().len(), kinds[0].row(&node, 0).len());
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (millis, text) in [
            (1000, "1s"),
            (1500, "1.5s"),
            (15_020, "15.02s"),
            (60_000, "1m0s"),
            (61_001, "1m1.001s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn clients_are_told_what_they_are_made_of() {
        let kinds = all();
        let (name, definitions) = kinds[1].openapi();
        assert_eq!(name, "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics");
        let container = "io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics";
        assert!(definitions.contains_key(container), "{definitions:?}");
        let containers = &definitions[&name]["properties"]["containers"];
        assert_eq!(
            containers["items"]["$ref"],
            format!("{}{container}", published::REFERENCE)
        );
        let told = &definitions[&name][published::KINDS][0]["kind"];
        assert_eq!(told, "PodMetrics");
        let usage = kinds[0].schema().child("usage").expect("a field");
        assert_eq!(usage.go, "map[string]resource.Quantity");
    }
}
