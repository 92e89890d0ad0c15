//! `gantry delete`: by name, selector or manifest; waits until the objects are gone.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use futures::{AsyncBufReadExt, StreamExt};
use gantry_api::json::Members;
use http::Method;
use serde_json::{Value, json};

use crate::client::{ApiError, Call, Cluster, Mapping, Target};
use crate::failures::Failures;
use crate::manifest::{self, Manifest};
use crate::output;

/// Delete objects
#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    /// TYPE NAME... or TYPE/NAME...
    target: Vec<String>,
    /// Delete what these manifests name
    #[arg(long, short = 'f', conflicts_with = "target")]
    filename: Vec<String>,
    /// Descend into directories
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Delete the objects with these labels
    #[arg(long, short = 'l')]
    selector: Option<String>,
    /// Delete every object of the type
    #[arg(long)]
    all: bool,
    /// Seconds a pod is given to end; 0 with --force removes the object at once
    #[arg(long, allow_hyphen_values = true)]
    grace_period: Option<i64>,
    /// Remove the object without waiting for the node
    #[arg(long)]
    force: bool,
    /// What becomes of owned objects: background, foreground or orphan
    #[arg(long, default_value = "background", value_parser = ["background", "foreground", "orphan"])]
    cascade: String,
    /// Do not fail when an object does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Return without waiting until the objects are gone
    #[arg(long)]
    no_wait: bool,
}

/// An object to delete.
struct Victim {
    mapping: Mapping,
    namespace: String,
    name: String,
    /// The manifest that it was read from.
    source: Option<String>,
}

impl Delete {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let mut failures = Failures::default();
        let victims = self.victims(cluster, &mut failures).await?;
        if victims.is_empty() && failures.is_empty() {
            eprintln!("No resources found");
        }
        let options = self.options();
        let mut waiting = Vec::new();
        for victim in &victims {
            let path = victim
                .mapping
                .path(Some(&victim.namespace), Some(&victim.name));
            match cluster
                .call(Call::send(Method::DELETE, &path, &options))
                .await
            {
                Ok(answer) => {
                    let place = match victim.mapping.namespaced {
                        true => format!(" from {} namespace", victim.namespace),
                        false => String::new(),
                    };
                    let how = if self.force {
                        "force deleted"
                    } else {
                        "deleted"
                    };
                    let resource = victim.mapping.display("");
                    output::print(&format!(
                        "{} \"{}\" {how}{place}\n",
                        resource.trim_end_matches('/'),
                        victim.name
                    ))?;
                    if answer["kind"] != "Status" {
                        waiting.push((victim, answer["metadata"]["uid"].clone()));
                    }
                }
                Err(error) if error.code() == Some(404) && self.ignore_not_found => {}
                Err(error) => failures.add(about(error, victim.source.as_deref())),
            }
        }
        if !self.no_wait && !self.force {
            for (victim, uid) in waiting {
                failures.keep(gone(cluster, victim, &uid).await);
            }
        }
        failures.finish()
    }

    fn options(&self) -> Value {
        let mut options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": match self.cascade.as_str() {
                "foreground" => "Foreground",
                "orphan" => "Orphan",
                _ => "Background",
            },
        });
        let grace = if self.force {
            Some(self.grace_period.unwrap_or(0))
        } else {
            self.grace_period
        };
        if let Some(seconds) = grace.filter(|seconds| *seconds >= 0) {
            *options.member(&["gracePeriodSeconds"]) = json!(seconds);
        }
        options
    }

    async fn victims(&self, cluster: &Cluster, failures: &mut Failures) -> Result<Vec<Victim>> {
        let mut victims = Vec::new();
        if !self.filename.is_empty() {
            let manifests = manifest::read_all(&self.filename, self.recursive).await?;
            // Last created, first deleted.
            for manifest in manifests.iter().rev() {
                victims.extend(failures.keep(named(cluster, manifest).await));
            }
            return Ok(victims);
        }
        for target in Target::parse(&self.target)? {
            let mapping = cluster.mapping(&target.resource).await?.clone();
            let mut names = target.names.clone();
            if names.is_empty() {
                if !self.all && self.selector.is_none() {
                    bail!(
                        "resource(s) were provided, but no name was specified: name objects, or use -l or --all"
                    );
                }
                names = self.matching(cluster, &mapping).await?;
            }
            victims.extend(names.into_iter().map(|name| Victim {
                mapping: mapping.clone(),
                namespace: cluster.namespace.clone(),
                name,
                source: None,
            }));
        }
        Ok(victims)
    }

    async fn matching(&self, cluster: &Cluster, mapping: &Mapping) -> Result<Vec<String>> {
        let path = mapping.path(Some(&cluster.namespace), None);
        let selector = self.selector.as_deref().unwrap_or_default();
        let query = [("labelSelector", selector)];
        let list = cluster
            .call(Call {
                query: &query,
                ..Call::get(&path)
            })
            .await?;
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    }
}

/// The object that a manifest names.
async fn named(cluster: &Cluster, manifest: &Manifest) -> Result<Victim> {
    let Some(mapping) = cluster
        .mapping_of(manifest.api_version(), manifest.kind())
        .await?
    else {
        bail!(
            "resource mapping not found for name: \"{}\" namespace: \"{}\" from \"{}\": no matches for kind \"{}\" in version \"{}\"",
            manifest.name(),
            manifest.namespace().unwrap_or_default(),
            manifest.source,
            manifest.kind(),
            manifest.api_version()
        );
    };
    ensure!(
        !manifest.name().is_empty(),
        "error when deleting \"{}\": resource name may not be empty",
        manifest.source
    );
    let namespace = manifest.namespace().unwrap_or(&cluster.namespace);
    Ok(Victim {
        mapping: mapping.clone(),
        namespace: namespace.to_owned(),
        name: manifest.name().to_owned(),
        source: Some(manifest.source.clone()),
    })
}

/// A refusal that names the manifest, as kubectl words it.
fn about(error: ApiError, source: Option<&str>) -> ApiError {
    match (error, source) {
        (
            ApiError::Status {
                code,
                reason,
                message,
            },
            Some(source),
        ) => ApiError::Status {
            code,
            reason,
            message: format!("error when deleting \"{source}\": {message}"),
        },
        (error, _) => error,
    }
}

/// Waits until an object of this uid no longer exists, by watching it.
async fn gone(cluster: &Cluster, victim: &Victim, uid: &Value) -> Result<()> {
    let bar = output::spinner(format!(
        "waiting until {} is gone",
        victim.mapping.display(&victim.name)
    ));
    let deadline = Instant::now() + Duration::from_secs(600);
    let path = victim
        .mapping
        .path(Some(&victim.namespace), Some(&victim.name));
    let collection = victim.mapping.path(Some(&victim.namespace), None);
    loop {
        let Some(object) = cluster.find(&path).await? else {
            break;
        };
        if object["metadata"]["uid"] != *uid {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "timed out waiting for the condition on {}",
            victim.mapping.display(&victim.name)
        );
        let selector = format!("metadata.name={}", victim.name);
        let revision = object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default();
        let query = [
            ("watch", "true"),
            ("fieldSelector", selector.as_str()),
            ("resourceVersion", revision),
            ("timeoutSeconds", "60"),
        ];
        let mut lines = Box::pin(
            cluster
                .stream(Call {
                    query: &query,
                    ..Call::get(&collection)
                })
                .await?
                .lines(),
        );
        while let Some(line) = lines.next().await {
            let event: Value = serde_json::from_str(&line?)?;
            if event["type"] == "DELETED" || event["type"] == "ERROR" {
                break;
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}
