//! `gantry logs`.

use anyhow::{Result, bail};
use futures::{AsyncReadExt, StreamExt};
use gantry_api::paths;
use serde_json::Value;

use crate::client::{Call, Cluster};
use crate::output;

/// Print the logs of a container
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// POD, or TYPE/NAME for the first pod of a workload
    pod: Option<String>,
    /// Which container; needed when the pod has several
    #[arg(long, short)]
    container: Option<String>,
    /// Keep printing as the container writes
    #[arg(long, short)]
    follow: bool,
    /// The container's previous attempt
    #[arg(long, short)]
    previous: bool,
    /// Only the last lines
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    tail: i64,
    /// Only the last seconds
    #[arg(long)]
    since: Option<String>,
    /// A time before each line
    #[arg(long)]
    timestamps: bool,
    /// Every pod with these labels
    #[arg(long, short = 'l')]
    selector: Option<String>,
}

impl Logs {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let pods = match (&self.pod, &self.selector) {
            (Some(pod), None) => vec![pod_of(cluster, pod).await?],
            (None, Some(selector)) => pods_matching(cluster, selector).await?,
            _ => bail!("name a pod or give a selector with -l"),
        };
        let streams = pods.iter().map(|pod| self.print(cluster, pod));
        let results: Vec<Result<()>> = futures::stream::iter(streams).buffered(16).collect().await;
        results.into_iter().collect()
    }

    async fn print(&self, cluster: &Cluster, pod: &str) -> Result<()> {
        let mut query: Vec<(&str, String)> = Vec::new();
        if let Some(container) = &self.container {
            query.push(("container", container.clone()));
        }
        for (name, set) in [
            ("follow", self.follow),
            ("previous", self.previous),
            ("timestamps", self.timestamps),
        ] {
            if set {
                query.push((name, "true".to_owned()));
            }
        }
        if self.tail >= 0 {
            query.push(("tailLines", self.tail.to_string()));
        }
        if let Some(since) = &self.since {
            query.push(("sinceSeconds", seconds(since)?.to_string()));
        }
        let query: Vec<(&str, &str)> = query
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let path = paths::namespaced(&cluster.namespace, &["pods", pod, "log"]);
        let call = Call {
            query: &query,
            accept: "*/*",
            ..Call::get(&path)
        };
        let mut stream = Box::pin(cluster.stream(call).await?);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            output::print(&String::from_utf8_lossy(&buffer[..count]))?;
        }
    }
}

/// `5s`, `2m`, `1h` or plain seconds.
fn seconds(text: &str) -> Result<u64> {
    let (digits, unit) = match text.char_indices().last() {
        Some((last, 's')) => (&text[..last], 1),
        Some((last, 'm')) => (&text[..last], 60),
        Some((last, 'h')) => (&text[..last], 3600),
        _ => (text, 1),
    };
    match digits.parse::<u64>() {
        Ok(number) => Ok(number * unit),
        Err(_) => bail!("--since: \"{text}\" is not a duration: write 30s, 5m or 2h"),
    }
}

/// The names of the pods a label selector matches.
pub(crate) async fn pods_matching(cluster: &Cluster, selector: &str) -> Result<Vec<String>> {
    let path = paths::namespaced(&cluster.namespace, &["pods"]);
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
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}

/// A pod's name from `web-1`, `pod/web-1` or `deploy/web`.
pub(crate) async fn pod_of(cluster: &Cluster, word: &str) -> Result<String> {
    let Some((resource, name)) = word.split_once('/') else {
        return Ok(word.to_owned());
    };
    let mapping = cluster.mapping(resource).await?;
    if mapping.kind == "Pod" {
        return Ok(name.to_owned());
    }
    let object = cluster
        .call(Call::get(
            &mapping.path(Some(&cluster.namespace), Some(name)),
        ))
        .await?;
    let labels = match &object["spec"]["selector"]["matchLabels"] {
        Value::Null => &object["spec"]["selector"],
        labels => labels,
    };
    let Some(labels) = labels.as_object().filter(|labels| !labels.is_empty()) else {
        bail!("{} selects no pods", mapping.display(name));
    };
    let selector: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    match pods_matching(cluster, &selector.join(","))
        .await?
        .into_iter()
        .next()
    {
        Some(pod) => Ok(pod),
        None => bail!("{} has no pods yet", mapping.display(name)),
    }
}
