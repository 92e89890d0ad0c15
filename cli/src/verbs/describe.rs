//! `gantry describe`: an object in full, what happened to it, and what belongs to it.

use anyhow::Result;
use gantry_api::paths;
use serde_json::Value;

use crate::client::{Call, Cluster, Mapping, Target};
use crate::failures::Failures;
use crate::output;

/// Show objects in detail, with their events
#[derive(Debug, clap::Args)]
pub(crate) struct Describe {
    /// TYPE NAME... or TYPE/NAME..., or only TYPE for all of them
    #[arg(required = true)]
    target: Vec<String>,
    /// Only objects with these labels
    #[arg(long, short = 'l')]
    selector: Option<String>,
}

impl Describe {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let mut texts = Vec::new();
        let mut failures = Failures::default();
        for target in Target::parse(&self.target)? {
            let mapping = cluster.mapping(&target.resource).await?.clone();
            let mut objects = Vec::new();
            for name in &target.names {
                let path = mapping.path(Some(&cluster.namespace), Some(name));
                objects.extend(failures.keep(cluster.call(Call::get(&path)).await));
            }
            if target.names.is_empty() {
                let selector = self.selector.as_deref().unwrap_or_default();
                let path = mapping.path(Some(&cluster.namespace), None);
                let query = [("labelSelector", selector)];
                let list = cluster
                    .call(Call {
                        query: &query,
                        ..Call::get(&path)
                    })
                    .await;
                let list = failures.keep(list).unwrap_or_default();
                objects.extend(list["items"].as_array().into_iter().flatten().cloned());
            }
            for object in objects {
                texts.extend(failures.keep(describe(cluster, &mapping, &object).await));
            }
        }
        if texts.is_empty() && failures.is_empty() {
            eprintln!("No resources found in {} namespace.", cluster.namespace);
        }
        output::print(&output::harmless(&texts.join("\n\n")))?;
        failures.finish()
    }
}

async fn describe(cluster: &Cluster, mapping: &Mapping, object: &Value) -> Result<String> {
    let mut text = Lines::default();
    let metadata = &object["metadata"];
    text.field("Name", plain(&metadata["name"]));
    if mapping.namespaced {
        text.field("Namespace", plain(&metadata["namespace"]));
    }
    text.field("Created", plain(&metadata["creationTimestamp"]));
    if !metadata["deletionTimestamp"].is_null() {
        text.field("Terminating since", plain(&metadata["deletionTimestamp"]));
    }
    text.pairs("Labels", &metadata["labels"]);
    text.pairs("Annotations", &metadata["annotations"]);
    if let Some(owner) = metadata["ownerReferences"]
        .as_array()
        .and_then(|owners| owners.first())
    {
        text.field(
            "Controlled By",
            format!("{}/{}", plain(&owner["kind"]), plain(&owner["name"])),
        );
    }
    for (field, value) in object.as_object().into_iter().flatten() {
        if !["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
            text.value(
                0,
                &title(field),
                value,
                mapping.kind == "Secret" && field == "data",
            );
        }
    }
    text.0.push_str(&events(cluster, mapping, object).await?);
    Ok(text.0)
}

/// The events about an object, oldest first, as a table.
async fn events(cluster: &Cluster, mapping: &Mapping, object: &Value) -> Result<String> {
    let uid = plain(&object["metadata"]["uid"]);
    let namespace = object["metadata"]["namespace"].as_str();
    let path = match namespace {
        Some(namespace) => paths::namespaced(namespace, &["events"]),
        None => "/api/v1/events".to_owned(),
    };
    let selector = format!(
        "involvedObject.name={},involvedObject.kind={}",
        plain(&object["metadata"]["name"]),
        mapping.kind
    );
    let query = [("fieldSelector", selector.as_str())];
    let list = cluster
        .call(Call {
            query: &query,
            ..Call::get(&path)
        })
        .await?;
    let mut events: Vec<&Value> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| {
            // A Node's events carry its name as uid, as kubelets write them.
            let involved = plain(&event["involvedObject"]["uid"]);
            involved == uid || involved.is_empty() || mapping.kind == "Node"
        })
        .collect();
    if events.is_empty() {
        return Ok("Events:  <none>\n".to_owned());
    }
    events.sort_by_key(|event| seen(event).to_owned());
    let mut lines = vec![
        ["  Type", "Reason", "Age", "From", "Message"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let now = jiff::Timestamp::now();
    for event in events {
        let source = match plain(&event["source"]["component"]) {
            component if component.is_empty() => plain(&event["reportingComponent"]),
            component => component,
        };
        let count = event["count"].as_i64().unwrap_or(1);
        let age = age(seen(event), now);
        let age = if count > 1 {
            format!("{age} (x{count})")
        } else {
            age
        };
        lines.push(vec![
            format!("  {}", plain(&event["type"])),
            plain(&event["reason"]),
            age,
            source,
            plain(&event["message"]).replace('\n', " "),
        ]);
    }
    Ok(format!("Events:\n{}", output::align(&lines)))
}

fn seen(event: &Value) -> &str {
    ["lastTimestamp", "eventTime", "firstTimestamp"]
        .iter()
        .find_map(|field| event[field].as_str())
        .or_else(|| event["metadata"]["creationTimestamp"].as_str())
        .unwrap_or_default()
}

/// How long ago, in the largest sensible unit.
fn age(timestamp: &str, now: jiff::Timestamp) -> String {
    let Ok(then) = timestamp.parse::<jiff::Timestamp>() else {
        return "<unknown>".to_owned();
    };
    let seconds = now.duration_since(then).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Text built line by line; nested values are indented by two spaces.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn field(&mut self, name: &str, value: String) {
        self.0
            .push_str(&format!("{:<22}{value}\n", format!("{name}:")));
    }

    fn pairs(&mut self, name: &str, map: &Value) {
        let pairs: Vec<String> = map
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| !key.ends_with("last-applied-configuration"))
            .map(|(key, value)| format!("{key}={}", plain(value)))
            .collect();
        match pairs.split_first() {
            None => self.field(name, "<none>".to_owned()),
            Some((first, rest)) => {
                self.field(name, first.clone());
                for pair in rest {
                    self.0.push_str(&format!("{:<22}{pair}\n", ""));
                }
            }
        }
    }

    fn value(&mut self, depth: usize, name: &str, value: &Value, sizes_only: bool) {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(fields) if fields.is_empty() => {}
            Value::Array(items) if items.is_empty() => {}
            Value::Object(fields) => {
                self.0.push_str(&format!("{indent}{name}:\n"));
                for (field, value) in fields {
                    // Keys of data are the user's own words; secrets show only how long they are.
                    match (sizes_only, value) {
                        (true, Value::String(text)) => {
                            let bytes = text.trim_end_matches('=').len() * 3 / 4;
                            self.0
                                .push_str(&format!("{indent}  {field}: {bytes} bytes\n"));
                        }
                        _ => self.value(depth + 1, &title(field), value, false),
                    }
                }
            }
            Value::Array(items)
                if items
                    .iter()
                    .all(|item| !item.is_object() && !item.is_array()) =>
            {
                let items: Vec<String> = items.iter().map(plain).collect();
                self.0
                    .push_str(&format!("{indent}{name}: {}\n", items.join(", ")));
            }
            Value::Array(items) => {
                self.0.push_str(&format!("{indent}{name}:\n"));
                for item in items {
                    let label = ["name", "type", "port", "ip"]
                        .iter()
                        .find(|key| !item[**key].is_null());
                    match label {
                        Some(key) => {
                            let mut rest = item.clone();
                            if let Some(fields) = rest.as_object_mut() {
                                fields.remove(*key);
                            }
                            let title = plain(&item[*key]);
                            match rest.as_object().is_some_and(|fields| fields.is_empty()) {
                                true => self.0.push_str(&format!("{indent}  {title}\n")),
                                false => self.value(depth + 1, &title, &rest, false),
                            }
                        }
                        None => self.value(depth + 1, "-", item, false),
                    }
                }
            }
            scalar => self
                .0
                .push_str(&format!("{indent}{name}: {}\n", plain(scalar))),
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `restartPolicy` as `Restart Policy`.
fn title(field: &str) -> String {
    let mut words = String::new();
    let mut previous_lower = false;
    for (index, letter) in field.chars().enumerate() {
        if letter.is_uppercase() && previous_lower {
            words.push(' ');
        }
        previous_lower = letter.is_lowercase();
        match index {
            0 => words.extend(letter.to_uppercase()),
            _ => words.push(letter),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_become_titles_and_lists_are_labelled() {
        assert_eq!(title("restartPolicy"), "Restart Policy");
        assert_eq!(title("podIPs"), "Pod IPs");
        let mut lines = Lines::default();
        lines.value(
            0,
            "Spec",
            &json!({"containers": [{"name": "web", "image": "nginx"}], "volumes": []}),
            false,
        );
        assert_eq!(
            lines.0,
            "Spec:\n  Containers:\n    web:\n      Image: nginx\n"
        );
    }

    #[test]
    fn secret_values_are_never_shown() {
        let mut lines = Lines::default();
        lines.value(0, "Data", &json!({"password": "aHVudGVyMg=="}), true);
        assert_eq!(lines.0, "Data:\n  password: 7 bytes\n");
    }

    #[test]
    fn ages_use_one_unit() {
        let now: jiff::Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        assert_eq!(age("2026-01-01T00:09:30Z", now), "30s");
        assert_eq!(age("2026-01-01T00:00:00Z", now), "10m");
        assert_eq!(age("", now), "<unknown>");
    }
}
