//! `gantry logs`.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{AsyncReadExt, StreamExt};
use gantry_api::paths;
use serde_json::Value;

use super::container;
use crate::client::{Call, Cluster};
use crate::duration;

/// Pods that are followed at once.
const FOLLOWED: usize = 16;
/// A longer line of one of several pods may have another pod's lines in it.
const LINE: usize = 1 << 20;

/// Print the logs of a container
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// POD, or TYPE/NAME for the first pod of a workload
    pod: Option<String>,
    /// Which container; the first when not given
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
    /// Only what was written within this time, e.g. 30s, 5m or 2h
    #[arg(long, value_parser = duration::parse)]
    since: Option<Duration>,
    /// Only what was written since then, e.g. 2026-01-31T12:00:00Z
    #[arg(long, conflicts_with = "since")]
    since_time: Option<String>,
    /// Stop after so many bytes
    #[arg(long)]
    limit_bytes: Option<u64>,
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
        let several = pods.len() > 1;
        let streams = pods.iter().map(|pod| self.print(cluster, pod, several));
        // What is there already is printed pod by pod.
        let at_once = if self.follow { FOLLOWED } else { 1 };
        let streams = futures::stream::iter(streams).buffered(at_once);
        let results: Vec<Result<()>> = streams.collect().await;
        results.into_iter().collect()
    }

    async fn print(&self, cluster: &Cluster, pod: &str, several: bool) -> Result<()> {
        let mut query: Vec<(&str, String)> = Vec::new();
        let place = (cluster.namespace.as_str(), pod);
        let container = container::meant(cluster, place, self.container.as_deref()).await;
        query.extend(container.map(|name| ("container", name)));
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
        // Zero is no limit.
        if let Some(since) = self.since.filter(|since| !since.is_zero()) {
            query.push(("sinceSeconds", since.as_secs().to_string()));
        }
        if let Some(time) = &self.since_time {
            query.push(("sinceTime", time.clone()));
        }
        if let Some(limit) = self.limit_bytes.filter(|limit| *limit > 0) {
            query.push(("limitBytes", limit.to_string()));
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
        let mut begun = Vec::new();
        loop {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return print(&begun).map(drop);
            }
            let goes_on = match several {
                false => print(&buffer[..count])?,
                true => {
                    begun.extend_from_slice(&buffer[..count]);
                    print(&whole_lines(&mut begun))?
                }
            };
            if !goes_on {
                return Ok(());
            }
        }
    }
}

/// Takes what ends with a line, and a line that is too long to wait for its end.
fn whole_lines(begun: &mut Vec<u8>) -> Vec<u8> {
    let end = match begun.iter().rposition(|byte| *byte == b'\n') {
        Some(newline) => newline + 1,
        None if begun.len() > LINE => begun.len(),
        None => 0,
    };
    let rest = begun.split_off(end);
    std::mem::replace(begun, rest)
}

/// Prints what a container wrote, which need not be text; whether anybody still reads it.
fn print(bytes: &[u8]) -> Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("writing to standard output"),
    }
}

/// The names of the pods a label selector matches.
async fn pods_matching(cluster: &Cluster, selector: &str) -> Result<Vec<String>> {
    let pods = matching(cluster, selector).await?;
    Ok(pods.iter().filter_map(name_of).collect())
}

fn name_of(pod: &Value) -> Option<String> {
    pod["metadata"]["name"].as_str().map(str::to_owned)
}

async fn matching(cluster: &Cluster, selector: &str) -> Result<Vec<Value>> {
    let path = paths::namespaced(&cluster.namespace, &["pods"]);
    let query = [("labelSelector", selector)];
    let list = cluster
        .call(Call {
            query: &query,
            ..Call::get(&path)
        })
        .await?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// How little a pod of several is the one that somebody wants to look into: one that runs and is ready is the most wanted, by
/// kubectl's order.
fn remoteness(pod: &Value) -> (bool, u8, bool, bool) {
    let phase = match pod["status"]["phase"].as_str() {
        Some("Running") => 0,
        Some("Unknown") => 1,
        _ => 2,
    };
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
    (
        pod["spec"]["nodeName"].is_null(),
        phase,
        !ready.any(|condition| condition["status"] == "True"),
        !pod["metadata"]["deletionTimestamp"].is_null(),
    )
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
    let pods = matching(cluster, &selector.join(",")).await?;
    match pods
        .iter()
        .min_by_key(|pod| remoteness(pod))
        .and_then(name_of)
    {
        Some(pod) => Ok(pod),
        None => bail!("{} has no pods yet", mapping.display(name)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_several_pods_the_one_that_is_ready_is_looked_into() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let pods = [
            json!({"metadata": {"name": "pending"}, "status": {"phase": "Pending"}}),
            json!({"metadata": {"name": "failed"}, "spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}),
            json!({
                "metadata": {"name": "leaving", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": ready},
            }),
            json!({"metadata": {"name": "starts"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}),
            json!({
                "metadata": {"name": "ready"}, "spec": {"nodeName": "n"},
                "status": {"phase": "Running", "conditions": ready},
            }),
        ];
        let mut sorted: Vec<&Value> = pods.iter().collect();
        sorted.sort_by_key(|pod| remoteness(pod));
        let names: Vec<String> = sorted.into_iter().filter_map(name_of).collect();
        assert_eq!(names, ["ready", "leaving", "starts", "failed", "pending"]);
    }

    #[test]
    fn lines_of_several_pods_stay_whole() {
        let mut begun = b"one\ntw".to_vec();
        assert_eq!(whole_lines(&mut begun), b"one\n");
        assert_eq!(whole_lines(&mut begun), b"");
        begun.extend(b"o\n");
        assert_eq!(whole_lines(&mut begun), b"two\n");
        begun.resize(LINE + 1, b'x');
        assert_eq!(whole_lines(&mut begun).len(), LINE + 1);
        assert!(begun.is_empty());
    }
}
