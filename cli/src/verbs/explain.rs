//! `gantry explain`: what a rollout or an autoscaler is doing, what it waits for, and what may be done about it.

mod autoscaler;
mod rollout;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use gantry_api::paths;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::rollout::{Seen, read};
use crate::client::{Call, Change, Cluster, Target};
use crate::output::{self, one_line};

/// Pods whose probes' last answers are looked for.
const ASKED: usize = 3;

/// Say in plain words what something is doing, and what it waits for
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// What a rollout waits for
    Rollout {
        /// TYPE/NAME or TYPE NAME, e.g. deploy/web
        #[arg(required = true)]
        target: Vec<String>,
    },
    /// What an autoscaler goes by, and what limits it
    #[command(visible_aliases = ["horizontalpodautoscaler"])]
    Hpa {
        /// Its name
        name: String,
    },
}

/// What is said of an object, and what may be done next.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    sentences: Vec<String>,
    /// Commands.
    next: Vec<String>,
}

impl Said {
    fn say(&mut self, sentence: impl Into<String>) {
        self.sentences.push(sentence.into());
    }

    /// Proposes a command, once.
    fn propose(&mut self, command: String) {
        if !self.next.contains(&command) {
            self.next.push(command);
        }
    }

    /// For a terminal.
    fn text(&self) -> String {
        let mut text = String::new();
        for sentence in &self.sentences {
            text.push_str(&format!("{sentence}\n"));
        }
        if !self.next.is_empty() {
            text.push_str("\nNext:\n");
        }
        for command in &self.next {
            text.push_str(&format!("  {command}\n"));
        }
        text
    }
}

/// A stranger's text as the end of a sentence.
fn ended(text: &str) -> String {
    let line = one_line(text);
    format!("{}.", line.trim_end_matches('.'))
}

/// `gantry WORDS`, with the namespace where it is not everybody's.
fn command(namespace: Option<&str>, words: &str) -> String {
    match namespace {
        None | Some("" | "default") => format!("gantry {words}"),
        Some(namespace) => format!("gantry -n {namespace} {words}"),
    }
}

impl Explain {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match &self.what {
            What::Rollout { target } => {
                for target in Target::parse(target)? {
                    for name in deployments(cluster, &target).await? {
                        let said = explain_rollout(cluster, name).await?;
                        output::print(&said.text())?;
                    }
                }
            }
            What::Hpa { name } => {
                let mapping = cluster
                    .mapping("horizontalpodautoscalers.v2.autoscaling")
                    .await?;
                let path = mapping.path(Some(&cluster.namespace), Some(name));
                let object = read(cluster.call(Call::get(&path)).await?)?;
                let said = autoscaler::explain(&object);
                output::print(&said.text())?;
            }
        }
        Ok(())
    }
}

/// The names of a target, which are Deployments'.
async fn deployments<'a>(cluster: &Cluster, target: &'a Target) -> Result<&'a [String]> {
    let mapping = cluster.mapping(&target.resource).await?;
    if mapping.kind != "Deployment" {
        bail!(
            "rollouts are kept for deployments; {} has none",
            mapping.qualified()
        );
    }
    if target.names.is_empty() {
        bail!("name a deployment, e.g. 'gantry explain rollout deploy/web'");
    }
    Ok(&target.names)
}

async fn explain_rollout(cluster: &Cluster, name: &str) -> Result<Said> {
    let path = async |word: &str, name: Option<&str>| {
        let mapping = cluster.mapping(word).await?;
        Ok::<_, anyhow::Error>(mapping.path(Some(&cluster.namespace), name))
    };
    let deployment = path("deployments.apps", Some(name)).await?;
    let mut seen = Seen::of(cluster.call(Call::get(&deployment)).await?)?;
    let selector = seen.selector();
    let query = [("labelSelector", selector.as_str())];
    let sets = path("replicasets.apps", None).await?;
    seen.take_sets(Change::All(items(cluster, &sets, &query).await?))?;
    let pods = path("pods", None).await?;
    seen.take_pods(Change::All(items(cluster, &pods, &query).await?))?;
    let now = Timestamp::now();
    let mut answers = BTreeMap::new();
    for uid in rollout::asked(&seen, now).into_iter().take(ASKED) {
        let answer = probes_answer(cluster, &uid).await?;
        answers.extend(answer.map(|answer| (uid, answer)));
    }
    Ok(rollout::explain(&seen, &answers, now))
}

async fn items(cluster: &Cluster, path: &str, query: &[(&str, &str)]) -> Result<Vec<Value>> {
    let call = Call {
        query,
        ..Call::get(path)
    };
    let mut list = cluster.call(call).await?;
    Ok(match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    })
}

/// What a probe of the pod with that uid was answered last, as its events tell.
async fn probes_answer(cluster: &Cluster, uid: &str) -> Result<Option<String>> {
    let path = paths::namespaced(&cluster.namespace, &["events"]);
    let fields = format!("involvedObject.uid={uid},reason=Unhealthy");
    let mut events = items(cluster, &path, &[("fieldSelector", fields.as_str())]).await?;
    let seen = |event: &Value| event["lastTimestamp"].as_str().map(str::to_owned);
    events.sort_by_key(seen);
    let last = events.last().and_then(|event| event["message"].as_str());
    Ok(last.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_come_first_and_commands_once() {
        let mut said = Said::default();
        said.say("One.");
        assert_eq!(said.text(), "One.\n");
        for _ in 0..2 {
            said.propose(command(Some("team"), "get pods"));
        }
        said.propose(command(Some("default"), "top pods"));
        assert_eq!(
            said.text(),
            "One.\n\nNext:\n  gantry -n team get pods\n  gantry top pods\n"
        );
        assert_eq!(ended("no\u{1b}[2J.\n"), "no^[[2J.");
    }
}
