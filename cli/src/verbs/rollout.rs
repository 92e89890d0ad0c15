//! `gantry rollout status|history|undo|pause|resume|promote|restart` for Deployments, and `gantry rollout policy` for a namespace.

mod picture;
mod policy;
mod progress;
mod seen;
mod status;
mod trouble;

use std::time::Duration;

use anyhow::{Result, bail};
use gantry_api::yaml;
use http::Method;
use serde_json::{Map, Value, json};

use self::policy::Policy;
#[cfg(test)]
pub(super) use self::seen::tests as testing;
pub(super) use self::seen::{Revision, Seen, images, read};
pub(super) use self::trouble::{Sort, Trouble, condition, trouble};
use crate::client::{Call, Cluster, Mapping, Target};
use crate::failures::Failures;
use crate::{duration, output};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const POD_TEMPLATE_HASH: &str = "pod-template-hash";
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
/// How far a ReplicaSet is on the steps of its rollout: `revision=3 step=2 ...`, or `done`.
const CANARY_STEP: &str = "gantry.dev/canary-step";
/// The step that is to be over now, or all of them.
const CANARY_CONTINUE: &str = "gantry.dev/canary-continue";
/// Where a JSON patch has that one.
const CONTINUE_PATH: &str = "/metadata/annotations/gantry.dev~1canary-continue";
/// Annotations that are a Deployment's own: not those of a revision of it.
const NOT_OF_A_REVISION: [&str; 11] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
    "gantry.dev/healthy-template",
    "gantry.dev/warm-template",
    "gantry.dev/failed-template",
    CANARY_STEP,
    CANARY_CONTINUE,
];

/// Follow, list, undo, pause, resume, promote or restart rollouts
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
        /// Fail when another revision than this one is the current one; 0 for whichever is
        #[arg(long)]
        revision: Option<i64>,
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
    /// Go on with a rollout that waits at a step
    Promote {
        /// TYPE/NAME or TYPE NAME
        #[arg(required = true)]
        target: Vec<String>,
        /// Go past all steps
        #[arg(long)]
        full: bool,
    },
    /// Show or set when revisions take themselves back, for the Deployments of a namespace that do not say
    Policy(Policy),
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
                revision,
            } => {
                for deployment in deployments(cluster, target).await? {
                    let ended = deployment.status(cluster, *timeout, *no_watch, *revision);
                    failures.keep(ended.await);
                }
            }
            Action::Policy(policy) => policy.run(cluster).await?,
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
            Action::Promote { target, full } => {
                for deployment in deployments(cluster, target).await? {
                    failures.keep(deployment.promote(cluster, *full).await);
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

impl Deployment {
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
        let template = without_hash(&set["spec"]["template"]);
        if template == without_hash(&deployment["spec"]["template"]) {
            let skipped = format!(
                "skipped rollback (current template already matches revision {to_revision})"
            );
            return output::report(&self.mapping, &self.name, &skipped);
        }
        let annotations = restored(
            &deployment["metadata"]["annotations"],
            &set["metadata"]["annotations"],
        );
        // Only against what was looked at: somebody else's rollout in between is not undone blindly.
        let patch = json!([
            {"op": "test", "path": "/spec/template", "value": deployment["spec"]["template"]},
            {"op": "replace", "path": "/spec/template", "value": template},
            {"op": "add", "path": "/metadata/annotations", "value": annotations},
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
            let state = if paused {
                "is already paused"
            } else {
                "is not paused"
            };
            bail!("deployments.apps \"{}\" {state}", self.name);
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

    async fn promote(&self, cluster: &Cluster, full: bool) -> Result<()> {
        let deployment = cluster.call(Call::get(&self.path)).await?;
        if deployment["spec"]["paused"] == true {
            bail!(
                "{} is paused: resume it first with 'gantry rollout resume deploy/{}'",
                self.mapping.display(&self.name),
                self.name
            );
        }
        let revisions = self.revisions(cluster, &deployment).await?;
        let Some(step) = revisions.last().and_then(|(_, set)| step_of(set)) else {
            bail!(
                "{} is at no step of a canary rollout",
                self.mapping.display(&self.name)
            );
        };
        let step = if full { "all" } else { step };
        // Only of the template that was looked at: the next one has steps of its own.
        let patch = json!([
            {"op": "test", "path": "/spec/template", "value": deployment["spec"]["template"]},
            {"op": "add", "path": CONTINUE_PATH, "value": step},
        ]);
        let call = Call {
            content_type: "application/json-patch+json",
            ..Call::send(Method::PATCH, &self.path, &patch)
        };
        cluster.call(call).await?;
        output::report(&self.mapping, &self.name, "promoted")
    }

    async fn restart(&self, cluster: &Cluster) -> Result<()> {
        let deployment = cluster.call(Call::get(&self.path)).await?;
        if deployment["spec"]["paused"] == true {
            bail!(
                "deployments.apps \"{}\" can't restart paused deployment (run rollout resume first)",
                self.name
            );
        }
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        if deployment["spec"]["template"]["metadata"]["annotations"][RESTARTED_AT] == now.as_str() {
            bail!(
                "deployments.apps \"{}\" was restarted within the past second: wait before restarting it again",
                self.name
            );
        }
        let annotations = json!({RESTARTED_AT: now});
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

/// The step that a ReplicaSet is at, if its rollout has any that are not over.
fn step_of(set: &Value) -> Option<&str> {
    let mut parts = set["metadata"]["annotations"][CANARY_STEP]
        .as_str()?
        .split(' ');
    parts.find_map(|part| part.strip_prefix("step="))
}

/// A pod template without the label that names its ReplicaSet.
fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    let labels = template.pointer_mut("/metadata/labels");
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.remove(POD_TEMPLATE_HASH);
    }
    template
}

/// The annotations of a Deployment that goes back to a revision: its own, and the user's as that revision had them.
fn restored(own: &Value, revisions: &Value) -> Value {
    let is_own = |name: &str| NOT_OF_A_REVISION.contains(&name);
    let of = |annotations: &Value, own: bool| -> Map<String, Value> {
        let all = annotations.as_object().into_iter().flatten();
        all.filter(|(name, _)| is_own(name) == own)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let mut annotations = of(own, true);
    annotations.extend(of(revisions, false));
    Value::Object(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_back_gets_the_annotations_of_then() {
        let own = json!({REVISION: "5", "kubernetes.io/change-cause": "now", "only": "now", "gantry.dev/failed-template": "x"});
        let revisions = json!({REVISION: "2", "kubernetes.io/change-cause": "then", "deployment.kubernetes.io/max-replicas": "3"});
        assert_eq!(
            restored(&own, &revisions),
            json!({REVISION: "5", "kubernetes.io/change-cause": "then", "gantry.dev/failed-template": "x"})
        );
        assert_eq!(restored(&Value::Null, &Value::Null), json!({}));
    }

    #[test]
    fn the_step_is_what_a_set_is_marked_with() {
        let set = |mark: &str| json!({"metadata": {"annotations": {CANARY_STEP: mark}}});
        for (mark, step) in [
            ("revision=3 step=2", Some("2")),
            (
                "revision=3 step=2 since=2026-01-01T00:00:00.000Z",
                Some("2"),
            ),
            ("done", None),
            ("", None),
        ] {
            assert_eq!(step_of(&set(mark)), step, "{mark}");
        }
        assert_eq!(step_of(&json!({"metadata": {}})), None);
    }

    #[test]
    fn the_hash_is_no_part_of_a_template() {
        let template =
            json!({"metadata": {"labels": {"app": "x", POD_TEMPLATE_HASH: "abc"}}, "spec": {}});
        let bare = json!({"metadata": {"labels": {"app": "x"}}, "spec": {}});
        assert_eq!(without_hash(&template), bare);
        assert_eq!(without_hash(&bare), bare);
        assert_eq!(without_hash(&json!({})), json!({}));
    }
}
