//! What the API says of pods, and what is done inside them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Fleet;
use crate::{eventually, run};

/// What tests ask of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    /// Its name in the default namespace.
    pub name: String,
    /// Never another pod's.
    pub uid: String,
    /// The node it is bound to, if any.
    pub node: String,
    /// Its address, once it has one.
    pub ip: String,
    /// Its IPv6 address, in a dual-stack cluster.
    pub ip6: Option<String>,
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// Whether it was asked to end.
    pub ending: bool,
    /// When its first container was started, and how often before: the same as long as nobody touches it.
    pub started: (String, u64),
}

impl Pod {
    fn from_json(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let status = &pod["status"];
        let container = &status["containerStatuses"][0];
        let conditions = status["conditions"].as_array();
        Self {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            node: text(&pod["spec"]["nodeName"]),
            ip: text(&status["podIP"]),
            ip6: status["podIPs"][1]["ip"].as_str().map(str::to_owned),
            phase: text(&status["phase"]),
            ready: conditions.is_some_and(|conditions| {
                let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
                conditions.iter().any(is_ready)
            }),
            ending: !pod["metadata"]["deletionTimestamp"].is_null(),
            started: (
                text(&container["state"]["running"]["startedAt"]),
                container["restartCount"].as_u64().unwrap_or_default(),
            ),
        }
    }

    /// Whether it takes requests, and is meant to.
    pub fn serves(&self) -> bool {
        self.ready && !self.ending
    }
}

impl Fleet {
    /// The pods with a label, as the first server lists them.
    pub fn pods(&self, selector: &str) -> Result<Vec<Pod>> {
        let listed = self.kubectl("s1", &["get", "pods", "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&listed)?;
        let items = list["items"].as_array().context("a list has items")?;
        Ok(items.iter().map(Pod::from_json).collect())
    }

    /// One pod.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let text = self.kubectl("s1", &["get", "pod", name, "-o", "json"])?;
        Ok(Pod::from_json(&serde_json::from_str(&text)?))
    }

    /// Waits until exactly so many pods with a label serve; returns them.
    pub fn wait_serving_pods(&self, selector: &str, count: usize) -> Result<Vec<Pod>> {
        let pods = eventually("pods to serve", || {
            let mut pods = self.pods(selector)?;
            pods.retain(Pod::serves);
            ensure!(pods.len() == count, "{} serve: {pods:?}", pods.len());
            Ok(pods)
        });
        pods.with_context(|| self.logs())
    }

    /// How many pods each node has.
    pub fn spread(pods: &[Pod]) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for pod in pods {
            *spread.entry(pod.node.clone()).or_default() += 1;
        }
        spread
    }

    /// Makes objects from JSON through the first server.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.apply_all(std::slice::from_ref(object))
    }

    /// As [`Fleet::apply`], several at once.
    pub fn apply_all(&self, objects: &[Value]) -> Result<()> {
        let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
        let mut kubectl = self.command(Path::new("kubectl"));
        kubectl
            .arg("--kubeconfig")
            .arg(self.kubeconfig("s1"))
            .args(["apply", "-f", "-"]);
        fed(&mut kubectl, documents.join("\n").as_bytes()).map(drop)
    }

    /// Runs a command in a pod, through the first server.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", pod, "--"];
        arguments.extend(command);
        self.kubectl("s1", &arguments)
    }
}

/// Runs a command with this as its input.
fn fed(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut file = tempfile::tempfile().context("making a file for the input")?;
    std::io::Write::write_all(&mut file, input)?;
    std::io::Seek::rewind(&mut file)?;
    run(command.stdin(Stdio::from(file)))
}
