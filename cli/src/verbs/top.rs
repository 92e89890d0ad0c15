//! `gantry top`: what nodes and pods use, once or live.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use gantry_api::paths;
use gantry_api::quantity::Quantity;
use serde_json::Value;

use crate::client::{Call, Cluster};
use crate::output::{align, harmless, print};

const GROUP: [&str; 3] = ["apis", "metrics.k8s.io", "v1beta1"];
/// Figures are new as often.
const AGAIN: Duration = Duration::from_secs(1);
/// Puts a terminal's cursor at the top, and clears what is below.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Show what nodes and pods use
#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show what nodes use
    #[command(visible_aliases = ["node", "no"])]
    Nodes(Shown),
    /// Show what pods use
    #[command(visible_aliases = ["pod", "po"])]
    Pods {
        #[command(flatten)]
        shown: Shown,
        /// Pods of every namespace
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// What each container uses
        #[arg(long)]
        containers: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Shown {
    /// Only this one
    name: Option<String>,
    /// Only those with these labels
    #[arg(long, short = 'l')]
    selector: Option<String>,
    /// Only those in whose name this is
    #[arg(long)]
    filter: Option<String>,
    /// Those first that use most of it
    #[arg(long)]
    sort_by: Option<SortBy>,
    /// Keep showing what is used, every second
    #[arg(long, short)]
    watch: bool,
    /// No header line
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SortBy {
    Cpu,
    Memory,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    /// Where there are several: the namespace, the pod; and the name.
    names: Vec<String>,
    /// Billionths of a core.
    cpu: i128,
    /// Bytes.
    memory: i128,
}

impl Top {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let shown = match &self.what {
            What::Nodes(shown) | What::Pods { shown, .. } => shown,
        };
        let is_terminal = std::io::stdout().is_terminal();
        loop {
            let table = match &self.what {
                What::Nodes(shown) => nodes(cluster, shown).await?,
                What::Pods {
                    shown,
                    all_namespaces,
                    containers,
                } => pods(cluster, shown, *all_namespaces, *containers).await?,
            };
            if !shown.watch {
                return print(&table);
            }
            match is_terminal {
                true => print(&[CLEAR, table.as_str()].concat())?,
                false => print(&[table.as_str(), "\n"].concat())?,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// The objects of a list, or the one that is named.
async fn objects(cluster: &Cluster, shown: &Shown, scope: &[&str]) -> Result<Vec<Value>> {
    let mut segments = [&GROUP[..], scope].concat();
    segments.extend(shown.name.as_deref());
    let path = paths::path(&segments);
    let query: Vec<(&str, &str)> = shown
        .selector
        .as_deref()
        .map(|selector| ("labelSelector", selector))
        .into_iter()
        .collect();
    let call = Call {
        query: &query,
        ..Call::get(&path)
    };
    let mut answer = cluster.call(call).await?;
    let items = answer.get_mut("items").map(Value::take);
    let objects = match (&shown.name, items) {
        (None, Some(Value::Array(items))) => items,
        (None, _) => Vec::new(),
        (Some(_), _) => vec![answer],
    };
    let named = |object: &Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        shown.filter.as_ref().is_none_or(|part| name.contains(part))
    };
    Ok(objects.into_iter().filter(named).collect())
}

async fn nodes(cluster: &Cluster, shown: &Shown) -> Result<String> {
    let used = objects(cluster, shown, &["nodes"]).await?;
    let all = cluster.call(Call::get("/api/v1/nodes")).await?;
    let rows = used
        .iter()
        .map(|object| row(Vec::new(), object, &object["usage"]));
    let rows = sorted(rows.collect(), shown.sort_by);
    match rows.is_empty() {
        true => Ok("No resources found\n".to_owned()),
        false => Ok(table_of_nodes(&rows, &sizes(&all), !shown.no_headers)),
    }
}

async fn pods(
    cluster: &Cluster,
    shown: &Shown,
    all_namespaces: bool,
    containers: bool,
) -> Result<String> {
    let namespace = cluster.namespace.as_str();
    let used = match all_namespaces {
        true => objects(cluster, shown, &["pods"]).await?,
        false => objects(cluster, shown, &["namespaces", namespace, "pods"]).await?,
    };
    let rows = used
        .iter()
        .flat_map(|pod| rows_of_pod(pod, all_namespaces, containers));
    let rows = sorted(rows.collect(), shown.sort_by);
    Ok(match (rows.is_empty(), all_namespaces) {
        (true, true) => "No resources found\n".to_owned(),
        (true, false) => format!("No resources found in {namespace} namespace.\n"),
        (false, _) => table_of_pods(&rows, all_namespaces, containers, !shown.no_headers),
    })
}

fn text(value: &Value) -> String {
    harmless(value.as_str().unwrap_or_default())
}

fn amount(value: &Value) -> Quantity {
    let amount = value.as_str().and_then(|text| text.parse().ok());
    amount.unwrap_or_default()
}

/// The line of an object, behind the names that stand before its own.
fn row(mut names: Vec<String>, object: &Value, usage: &Value) -> Row {
    let name = match &object["metadata"]["name"] {
        Value::Null => &object["name"],
        name => name,
    };
    names.push(text(name));
    Row {
        names,
        cpu: amount(&usage["cpu"]).nanos(),
        memory: amount(&usage["memory"]).units().into(),
    }
}

/// The line of a pod, or those of its containers.
fn rows_of_pod(pod: &Value, with_namespace: bool, by_container: bool) -> Vec<Row> {
    let namespace = with_namespace.then(|| text(&pod["metadata"]["namespace"]));
    let before: Vec<String> = namespace.into_iter().collect();
    let containers = pod["containers"].as_array().into_iter().flatten();
    if by_container {
        let pod = text(&pod["metadata"]["name"]);
        let before = [before, vec![pod]].concat();
        return containers
            .map(|container| row(before.clone(), container, &container["usage"]))
            .collect();
    }
    let mut whole = row(before, pod, &Value::Null);
    for container in containers {
        let part = row(Vec::new(), container, &container["usage"]);
        whole.cpu = whole.cpu.saturating_add(part.cpu);
        whole.memory = whole.memory.saturating_add(part.memory);
    }
    vec![whole]
}

/// Those first that use most, else by names.
fn sorted(mut rows: Vec<Row>, by: Option<SortBy>) -> Vec<Row> {
    rows.sort_by(|one, other| {
        let most = match by {
            Some(SortBy::Cpu) => other.cpu.cmp(&one.cpu),
            Some(SortBy::Memory) => other.memory.cmp(&one.memory),
            None => std::cmp::Ordering::Equal,
        };
        most.then_with(|| one.names.cmp(&other.names))
    });
    rows
}

/// CPU and memory that pods may have of each node: billionths of a core, bytes.
fn sizes(nodes: &Value) -> BTreeMap<String, (i128, i128)> {
    let nodes = nodes["items"].as_array().into_iter().flatten();
    nodes
        .map(|node| {
            let allocatable = &node["status"]["allocatable"];
            let cpu = amount(&allocatable["cpu"]).nanos();
            let memory = amount(&allocatable["memory"]).units().into();
            (text(&node["metadata"]["name"]), (cpu, memory))
        })
        .collect()
}

/// Thousandths of a core, rounded up.
fn cpu(nanos: i128) -> String {
    format!("{}m", nanos.saturating_add(999_999).div_euclid(1_000_000))
}

fn memory(bytes: i128) -> String {
    format!("{}Mi", bytes >> 20)
}

fn percent(used: i128, of: i128) -> String {
    match of {
        ..=0 => "<unknown>".to_owned(),
        of => format!("{}%", used.saturating_mul(100) / of),
    }
}

fn table_of_nodes(
    rows: &[Row],
    sizes: &BTreeMap<String, (i128, i128)>,
    with_header: bool,
) -> String {
    let header = ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"];
    let header = with_header.then(|| header.map(str::to_owned).to_vec());
    let lines = rows.iter().map(|row| {
        let name = row.names.concat();
        let (all_cpu, all_memory) = sizes.get(&name).copied().unwrap_or_default();
        vec![
            name,
            cpu(row.cpu),
            percent(row.cpu, all_cpu),
            memory(row.memory),
            percent(row.memory, all_memory),
        ]
    });
    align(&header.into_iter().chain(lines).collect::<Vec<_>>())
}

fn table_of_pods(
    rows: &[Row],
    with_namespace: bool,
    by_container: bool,
    with_header: bool,
) -> String {
    let namespace = with_namespace.then_some("NAMESPACE");
    let pod = by_container.then_some("POD");
    let rest = ["NAME", "CPU(cores)", "MEMORY(bytes)"];
    let header = namespace.into_iter().chain(pod).chain(rest);
    let header = with_header.then(|| header.map(str::to_owned).collect::<Vec<String>>());
    let lines = rows.iter().map(|row| {
        let amounts = [cpu(row.cpu), memory(row.memory)];
        [&row.names[..], &amounts].concat()
    });
    align(&header.into_iter().chain(lines).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, name: &str, containers: &[(&str, &str, &str)]) -> Value {
        let containers = containers.iter().map(
            |(name, cpu, memory)| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}}),
        );
        json!({
            "metadata": {"namespace": namespace, "name": name},
            "containers": containers.collect::<Vec<_>>(),
        })
    }

    fn two() -> [Value; 2] {
        [
            pod(
                "b",
                "web",
                &[("c", "1", "64Mi"), ("side", "1500001n", "1Mi")],
            ),
            pod("a", "db", &[("c", "250m", "131072Ki")]),
        ]
    }

    #[test]
    fn pods_are_shown_as_kubectl_shows_them() {
        let rows = |by_container: bool, by| {
            let pods = two();
            let rows = pods.iter();
            let rows = rows.flat_map(|pod| rows_of_pod(pod, true, by_container));
            sorted(rows.collect(), by)
        };
        assert_eq!(
            table_of_pods(&rows(false, None), true, false, true),
            "NAMESPACE   NAME   CPU(cores)   MEMORY(bytes)\n\
             a           db     250m         128Mi\n\
             b           web    1002m        65Mi\n"
        );
        assert_eq!(
            table_of_pods(&rows(true, Some(SortBy::Cpu)), true, true, false),
            "b   web   c      1000m   64Mi\n\
             a   db    c      250m    128Mi\n\
             b   web   side   2m      1Mi\n"
        );
        let first = |by| rows(false, Some(by))[0].names.clone();
        assert_eq!(first(SortBy::Memory), ["a", "db"]);
        assert_eq!(first(SortBy::Cpu), ["b", "web"]);
    }

    #[test]
    fn nodes_are_shown_with_what_they_have() {
        let node = |name: &str, cpu: &str| {
            let usage = json!({"cpu": cpu, "memory": "512Mi"});
            let object = json!({"metadata": {"name": name}, "usage": usage});
            row(Vec::new(), &object, &object["usage"])
        };
        let all = json!({"items": [{
            "metadata": {"name": "one"},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}},
        }]});
        let rows = [node("one", "500m"), node("two\u{1b}[2J", "x")];
        assert_eq!(
            table_of_nodes(&rows, &sizes(&all), true),
            "NAME       CPU(cores)   CPU(%)      MEMORY(bytes)   MEMORY(%)\n\
             one        500m         25%         512Mi           50%\n\
             two^[[2J   0m           <unknown>   512Mi           <unknown>\n"
        );
    }
}
