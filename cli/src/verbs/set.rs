//! `gantry set image`.

use anyhow::{Result, bail};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster, Mapping, Target};
use crate::failures::Failures;
use crate::output;

/// Change a part of objects
#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Set the images of containers
    Image {
        /// TYPE/NAME or TYPE NAME, then CONTAINER=IMAGE...; `*` stands for every container
        #[arg(required = true, num_args = 2..)]
        arguments: Vec<String>,
    },
}

impl Set {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let What::Image { arguments } = &self.what;
        let (images, target): (Vec<_>, Vec<_>) = arguments
            .iter()
            .cloned()
            .partition(|word| word.contains('='));
        let images: Vec<(&str, &str)> = images
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .collect();
        if images.is_empty() {
            bail!("at least one CONTAINER=IMAGE pair is needed, e.g. web=nginx:1.29");
        }
        let mut failures = Failures::default();
        for target in Target::parse(&target)? {
            let mapping = cluster.mapping(&target.resource).await?;
            for name in &target.names {
                failures.keep(set_images(cluster, mapping, name, &images).await);
            }
        }
        failures.finish()
    }
}

async fn set_images(
    cluster: &Cluster,
    mapping: &Mapping,
    name: &str,
    images: &[(&str, &str)],
) -> Result<()> {
    let path = mapping.path(Some(&cluster.namespace), Some(name));
    let object = cluster.call(Call::get(&path)).await?;
    let pointer = match mapping.kind.as_str() {
        "Pod" => "/spec",
        _ => "/spec/template/spec",
    };
    let patch = patch(&object, pointer, images)?;
    let call = Call {
        content_type: "application/strategic-merge-patch+json",
        ..Call::send(Method::PATCH, &path, &patch)
    };
    let changed = cluster.call(call).await?;
    if changed["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
        output::report(mapping, name, "image updated")?;
    }
    Ok(())
}

/// A strategic merge patch that sets images by container name.
fn patch(object: &Value, pointer: &str, images: &[(&str, &str)]) -> Result<Value> {
    let mut changed = json!({});
    for (wanted, image) in images {
        let mut found = false;
        for list in ["containers", "initContainers"] {
            let containers = object
                .pointer(&format!("{pointer}/{list}"))
                .and_then(Value::as_array);
            for name in containers
                .into_iter()
                .flatten()
                .filter_map(|container| container["name"].as_str())
            {
                if *wanted != "*" && *wanted != name {
                    continue;
                }
                found = true;
                if !changed[list].is_array() {
                    changed[list] = json!([]);
                }
                if let Some(elements) = changed[list].as_array_mut() {
                    elements.push(json!({"name": name, "image": image}));
                }
            }
        }
        if !found {
            bail!("unable to find container named \"{wanted}\"");
        }
    }
    let mut patch = changed;
    for field in pointer.trim_start_matches('/').split('/').rev() {
        patch = json!({field: patch});
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_set_by_name_and_unknown_names_are_refused() {
        let object = json!({"spec": {"template": {"spec": {"containers": [{"name": "web"}, {"name": "side"}]}}}});
        let patch_of = |images: &[(&str, &str)]| patch(&object, "/spec/template/spec", images);
        assert_eq!(
            patch_of(&[("side", "s:2")]).expect("known"),
            json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s:2"}]}}}})
        );
        assert_eq!(
            patch_of(&[("*", "x")]).expect("all")["spec"]["template"]["spec"]["containers"]
                .as_array()
                .map(Vec::len),
            Some(2)
        );
        let error = patch_of(&[("nope", "x")]).expect_err("unknown").to_string();
        assert_eq!(error, "unable to find container named \"nope\"");
    }
}
