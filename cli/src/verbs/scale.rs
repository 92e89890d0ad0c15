//! `gantry scale`.

use anyhow::{Result, bail, ensure};
use gantry_api::json::Members;
use http::Method;
use serde_json::json;

use crate::client::{Call, Cluster, Mapping, Target};
use crate::failures::Failures;
use crate::output;

/// Set the number of replicas
#[derive(Debug, clap::Args)]
pub(crate) struct Scale {
    /// TYPE NAME... or TYPE/NAME...
    #[arg(required = true)]
    target: Vec<String>,
    /// How many
    #[arg(long, allow_hyphen_values = true)]
    replicas: i64,
    /// Only when there are this many now
    #[arg(long)]
    current_replicas: Option<i64>,
}

impl Scale {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let mut failures = Failures::default();
        for target in Target::parse(&self.target)? {
            let mapping = cluster.mapping(&target.resource).await?;
            if target.names.is_empty() {
                bail!(
                    "name what to scale, e.g. 'gantry scale {}/NAME --replicas={}'",
                    target.resource,
                    self.replicas
                );
            }
            for name in &target.names {
                failures.keep(self.scale(cluster, mapping, name).await);
            }
        }
        failures.finish()
    }

    async fn scale(&self, cluster: &Cluster, mapping: &Mapping, name: &str) -> Result<()> {
        let object = mapping.path(Some(&cluster.namespace), Some(name));
        let path = format!("{object}/scale");
        let mut patch = json!({"spec": {"replicas": self.replicas}});
        if let Some(expected) = self.current_replicas {
            let scale = cluster.call(Call::get(&path)).await?;
            ensure!(
                scale["spec"]["replicas"].as_i64() == Some(expected),
                "expected {expected} replicas of {}, found {}",
                mapping.display(name),
                scale["spec"]["replicas"]
            );
            *patch.member(&["metadata"]) =
                json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
        }
        let call = Call {
            content_type: "application/merge-patch+json",
            ..Call::send(Method::PATCH, &path, &patch)
        };
        cluster.call(call).await?;
        output::report(mapping, name, "scaled")
    }
}
