//! `gantry rollout status|history|undo|pause|resume|restart` for Deployments.

use std::time::Duration;

use anyhow::{Result, bail};
use futures::{AsyncBufReadExt, StreamExt};
use gantry_api::yaml;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster, Mapping, Target};
use crate::failures::Failures;
use crate::{duration, output};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Follow, list, undo, pause, resume or restart rollouts
#[derive(Debug, clap::Args)]
pub(crate) struct Rollout {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Wait until a rollout is complete
    Status {
        /// TYPE/NAME or TYPE NAME
        #[arg(required = true)]
        target: Vec<String>,
        /// Give up after this long, e.g. 90s; 0 waits for ever
        #[arg(long, default_value = "0", value_parser = duration::parse)]
        timeout: Duration,
        /// Print the state once
        #[arg(long)]
        no_watch: bool,
    },
    /// List revisions
    History {
        /// TYPE/NAME or TYPE NAME
        #[arg(required = true)]
        target: Vec<String>,
        /// Show the pod template of this revision
        #[arg(long)]
        revision: Option<i64>,
    },
    /// Go back to an earlier revision
    Undo {
        /// TYPE/NAME or TYPE NAME
        #[arg(required = true)]
        target: Vec<String>,
        /// The revision to go back to; 0 for the one before
        #[arg(long, default_value_t = 0)]
        to_revision: i64,
    },
    /// Stop acting on changes of the template
    Pause {
        /// TYPE/NAME or TYPE NAME
        #[arg(required = true)]
        target: Vec<String>,
    },
    /// Act on changes of the template again
    Resume {
        /// TYPE/NAME or TYPE NAME
        #[arg(required = true)]
        target: Vec<String>,
    },
    /// Replace every pod by a new one, gradually
    Restart {
        /// TYPE/NAME or TYPE NAME
        #[arg(required = true)]
        target: Vec<String>,
    },
}

impl Rollout {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let mut failures = Failures::default();
        match &self.action {
            Action::Status {
                target,
                timeout,
                no_watch,
            } => {
                for deployment in deployments(cluster, target).await? {
                    failures.keep(deployment.status(cluster, *timeout, *no_watch).await);
                }
            }
            Action::History { target, revision } => {
                for deployment in deployments(cluster, target).await? {
                    failures.keep(deployment.history(cluster, *revision).await);
                }
            }
            Action::Undo {
                target,
                to_revision,
            } => {
                for deployment in deployments(cluster, target).await? {
                    failures.keep(deployment.undo(cluster, *to_revision).await);
                }
            }
            Action::Pause { target } => {
                for deployment in deployments(cluster, target).await? {
                    failures.keep(deployment.set_paused(cluster, true).await);
                }
            }
            Action::Resume { target } => {
                for deployment in deployments(cluster, target).await? {
                    failures.keep(deployment.set_paused(cluster, false).await);
                }
            }
            Action::Restart { target } => {
                for deployment in deployments(cluster, target).await? {
                    failures.keep(deployment.restart(cluster).await);
                }
            }
        }
        failures.finish()
    }
}

/// A Deployment by name.
struct Deployment {
    mapping: Mapping,
    name: String,
    path: String,
}

async fn deployments(cluster: &Cluster, words: &[String]) -> Result<Vec<Deployment>> {
    let mut found = Vec::new();
    for target in Target::parse(words)? {
        let mapping = cluster.mapping(&target.resource).await?;
        if mapping.kind != "Deployment" {
            bail!(
                "rollouts are kept for deployments; {} has none",
                mapping.qualified()
            );
        }
        if target.names.is_empty() {
            bail!("name a deployment, e.g. 'gantry rollout status deploy/web'");
        }
        for name in target.names {
            found.push(Deployment {
                mapping: mapping.clone(),
                path: mapping.path(Some(&cluster.namespace), Some(&name)),
                name,
            });
        }
    }
    Ok(found)
}

/// How far a rollout is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Done(String),
    Waiting(String),
    Failed(String),
}

/// The state of a rollout as its Deployment shows it.
fn progress(deployment: &Value) -> Progress {
    let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
    let number = |pointer: &str| {
        deployment
            .pointer(pointer)
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    if number("/metadata/generation") > number("/status/observedGeneration") {
        return Progress::Waiting(
            "Waiting for deployment spec update to be observed...".to_owned(),
        );
    }
    let exceeded = deployment["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| {
            condition["type"] == "Progressing" && condition["reason"] == "ProgressDeadlineExceeded"
        });
    if exceeded {
        return Progress::Failed(format!(
            "deployment \"{name}\" exceeded its progress deadline"
        ));
    }
    let wanted = deployment
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(1);
    let updated = number("/status/updatedReplicas");
    let total = number("/status/replicas");
    let available = number("/status/availableReplicas");
    let waiting = |what: String| {
        Progress::Waiting(format!(
            "Waiting for deployment \"{name}\" rollout to finish: {what}..."
        ))
    };
    if updated < wanted {
        return waiting(format!(
            "{updated} out of {wanted} new replicas have been updated"
        ));
    }
    if total > updated {
        return waiting(format!(
            "{} old replicas are pending termination",
            total - updated
        ));
    }
    if available < updated {
        return waiting(format!(
            "{available} of {updated} updated replicas are available"
        ));
    }
    Progress::Done(format!("deployment \"{name}\" successfully rolled out"))
}

impl Deployment {
    async fn status(&self, cluster: &Cluster, timeout: Duration, once: bool) -> Result<()> {
        let waiting = self.follow(cluster, once);
        if timeout.is_zero() {
            return waiting.await;
        }
        match tokio::time::timeout(timeout, waiting).await {
            Ok(result) => result,
            Err(_) => bail!("timed out waiting for the condition"),
        }
    }

    async fn follow(&self, cluster: &Cluster, once: bool) -> Result<()> {
        let collection = self.mapping.path(Some(&cluster.namespace), None);
        let selector = format!("metadata.name={}", self.name);
        let mut shown = String::new();
        loop {
            let deployment = cluster.call(Call::get(&self.path)).await?;
            if self.show(&deployment, &mut shown)? || once {
                return Ok(());
            }
            let revision = deployment["metadata"]["resourceVersion"]
                .as_str()
                .unwrap_or_default();
            let query = [
                ("watch", "true"),
                ("fieldSelector", selector.as_str()),
                ("resourceVersion", revision),
                ("timeoutSeconds", "300"),
            ];
            let stream = cluster
                .stream(Call {
                    query: &query,
                    ..Call::get(&collection)
                })
                .await?;
            let mut lines = Box::pin(stream.lines());
            while let Some(line) = lines.next().await {
                let event: Value = serde_json::from_str(&line?)?;
                match event["type"].as_str() {
                    Some("DELETED") => bail!("object has been deleted"),
                    Some("ERROR") => break,
                    _ if self.show(&event["object"], &mut shown)? => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// Prints the state when it changed; true when the rollout is complete.
    fn show(&self, deployment: &Value, shown: &mut String) -> Result<bool> {
        if deployment["spec"]["paused"] == true {
            bail!(
                "{} is paused: resume it with 'gantry rollout resume deploy/{}'",
                self.mapping.display(&self.name),
                self.name
            );
        }
        let (line, done) = match progress(deployment) {
            Progress::Done(line) => (line, true),
            Progress::Waiting(line) => (line, false),
            Progress::Failed(line) => bail!("{line}"),
        };
        if *shown != line {
            output::print(&format!("{line}\n"))?;
            *shown = line;
        }
        Ok(done)
    }

    /// The ReplicaSets of this Deployment by revision, oldest first.
    async fn revisions(&self, cluster: &Cluster, deployment: &Value) -> Result<Vec<(i64, Value)>> {
        let sets = cluster.mapping("replicasets.apps").await?;
        let list = cluster
            .call(Call::get(&sets.path(Some(&cluster.namespace), None)))
            .await?;
        let mut revisions: Vec<(i64, Value)> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|set| {
                set["metadata"]["ownerReferences"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|owner| owner["uid"] == deployment["metadata"]["uid"])
            })
            .filter_map(|set| {
                Some((
                    set["metadata"]["annotations"][REVISION]
                        .as_str()?
                        .parse()
                        .ok()?,
                    set.clone(),
                ))
            })
            .collect();
        revisions.sort_by_key(|(revision, _)| *revision);
        Ok(revisions)
    }

    async fn history(&self, cluster: &Cluster, revision: Option<i64>) -> Result<()> {
        let deployment = cluster.call(Call::get(&self.path)).await?;
        let revisions = self.revisions(cluster, &deployment).await?;
        if let Some(wanted) = revision {
            let Some((_, set)) = revisions.iter().find(|(revision, _)| *revision == wanted) else {
                bail!(
                    "unable to find the specified revision {wanted} of {}",
                    self.mapping.display(&self.name)
                );
            };
            let template = yaml::to_string(&set["spec"]["template"]);
            return output::print(&format!(
                "{} with revision #{wanted}\n{template}",
                self.mapping.display(&self.name)
            ));
        }
        let mut lines = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
        for (revision, set) in revisions {
            let cause = set["metadata"]["annotations"][CHANGE_CAUSE]
                .as_str()
                .unwrap_or("<none>");
            lines.push(vec![revision.to_string(), cause.to_owned()]);
        }
        output::print(&format!(
            "{}\n{}",
            self.mapping.display(&self.name),
            output::align(&lines)
        ))
    }

    async fn undo(&self, cluster: &Cluster, to_revision: i64) -> Result<()> {
        let deployment = cluster.call(Call::get(&self.path)).await?;
        if deployment["spec"]["paused"] == true {
            bail!(
                "{} is paused: resume it first with 'gantry rollout resume deploy/{}'",
                self.mapping.display(&self.name),
                self.name
            );
        }
        let revisions = self.revisions(cluster, &deployment).await?;
        let target = match to_revision {
            0 => revisions.iter().rev().nth(1),
            wanted => revisions.iter().find(|(revision, _)| *revision == wanted),
        };
        let Some((_, set)) = target else {
            match to_revision {
                0 => bail!("no rollout history found for deployment \"{}\"", self.name),
                wanted => bail!("unable to find specified revision {wanted} in history"),
            }
        };
        let mut template = set["spec"]["template"].clone();
        if let Some(labels) = template
            .pointer_mut("/metadata/labels")
            .and_then(Value::as_object_mut)
        {
            labels.remove(POD_TEMPLATE_HASH);
        }
        // Only against the template that was looked at: somebody else's rollout in between is not undone blindly.
        let patch = json!([
            {"op": "test", "path": "/spec/template", "value": deployment["spec"]["template"]},
            {"op": "replace", "path": "/spec/template", "value": template},
        ]);
        let call = Call {
            content_type: "application/json-patch+json",
            ..Call::send(Method::PATCH, &self.path, &patch)
        };
        cluster.call(call).await?;
        output::report(&self.mapping, &self.name, "rolled back")
    }

    async fn set_paused(&self, cluster: &Cluster, paused: bool) -> Result<()> {
        let deployment = cluster.call(Call::get(&self.path)).await?;
        let now = deployment["spec"]["paused"] == true;
        if now == paused {
            let state = if paused { "paused" } else { "running" };
            bail!("deployments.apps \"{}\" is already {state}", self.name);
        }
        self.merge(
            cluster,
            &json!({"spec": {"paused": paused.then_some(true)}}),
        )
        .await?;
        output::report(
            &self.mapping,
            &self.name,
            if paused { "paused" } else { "resumed" },
        )
    }

    async fn restart(&self, cluster: &Cluster) -> Result<()> {
        let deployment = cluster.call(Call::get(&self.path)).await?;
        if deployment["spec"]["paused"] == true {
            bail!("can't restart paused deployment (run rollout resume first)");
        }
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
        self.merge(
            cluster,
            &json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}),
        )
        .await?;
        output::report(&self.mapping, &self.name, "restarted")
    }

    async fn merge(&self, cluster: &Cluster, patch: &Value) -> Result<()> {
        let call = Call {
            content_type: "application/merge-patch+json",
            ..Call::send(Method::PATCH, &self.path, patch)
        };
        cluster.call(call).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_told_step_by_step() {
        let state = |updated: i64, total: i64, available: i64| {
            progress(&json!({
                "metadata": {"name": "web", "generation": 2},
                "spec": {"replicas": 3},
                "status": {"observedGeneration": 2, "updatedReplicas": updated, "replicas": total, "availableReplicas": available},
            }))
        };
        let waiting = |what: &str| {
            Progress::Waiting(format!(
                "Waiting for deployment \"web\" rollout to finish: {what}..."
            ))
        };
        assert_eq!(
            state(1, 4, 3),
            waiting("1 out of 3 new replicas have been updated")
        );
        assert_eq!(
            state(3, 4, 3),
            waiting("1 old replicas are pending termination")
        );
        assert_eq!(
            state(3, 3, 2),
            waiting("2 of 3 updated replicas are available")
        );
        assert_eq!(
            state(3, 3, 3),
            Progress::Done("deployment \"web\" successfully rolled out".to_owned())
        );
        let unseen = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}});
        assert!(
            matches!(progress(&unseen), Progress::Waiting(line) if line.contains("to be observed"))
        );
    }
}
