//! The cluster, as far as its API tells: whether it answers, its servers and their clocks, its nodes and certificates.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::header::DATE;
use ipnet::Ipv4Net;
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use serde_json::Value;

use super::finding::Finding;
use super::{certificates, nodes};
use crate::client::{Call, Cluster, Credentials};

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// An answer that takes longer is worth a warning.
const SLOW: Duration = Duration::from_secs(1);
/// How far a server's clock may be from this machine's; as far as nodes say it of theirs.
const SKEW: SignedDuration = SignedDuration::from_secs(5);
/// The resolution of times in answers.
const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// What the cluster tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) findings: Vec<Finding>,
    /// The addresses of services.
    pub(super) services: Option<Ipv4Net>,
    /// The addresses of each node's pods.
    pub(super) pods: Vec<Ipv4Net>,
}

/// Everything about the cluster, as far as it answers.
pub(super) async fn check(credentials: &Credentials) -> Told {
    let mut told = Told::default();
    let findings = &mut told.findings;
    let cluster = match Cluster::connect(credentials).await {
        Ok(cluster) => cluster,
        Err(error) => {
            findings.push(Finding::skipped("API", format!("not asked: {error:#}")));
            return told;
        }
    };
    if let Some(own) = cluster.certificate {
        findings.push(certificates::own(own, Timestamp::now()));
    }
    match api(&cluster).await {
        Ok(finding) => findings.push(finding),
        Err(finding) => {
            findings.push(finding);
            return told;
        }
    }
    findings.extend(servers(credentials, &cluster).await);
    match cluster.call(Call::get("/api/v1/nodes")).await {
        Ok(found) => {
            findings.extend(nodes::check(&found));
            told.pods = pod_cidrs(&found);
        }
        Err(error) => findings.push(unasked("nodes", &error)),
    }
    match cluster.call(Call::get("/gantry/v1/certificates")).await {
        Ok(found) => findings.extend(certificates::check(&found, Timestamp::now())),
        Err(error) => findings.push(unasked("certificates", &error)),
    }
    let ranges = cluster
        .call(Call::get(
            "/apis/networking.k8s.io/v1/servicecidrs/kubernetes",
        ))
        .await;
    told.services = ranges.ok().as_ref().and_then(service_cidr);
    told
}

fn pod_cidrs(nodes: &Value) -> Vec<Ipv4Net> {
    let nodes = nodes["items"].as_array().into_iter().flatten();
    let ranges = nodes.filter_map(|node| node["spec"]["podCIDR"].as_str()?.parse().ok());
    ranges.collect()
}

/// What this user may not see, or this cluster does not have.
fn unasked(check: &str, error: &crate::client::ApiError) -> Finding {
    Finding::warning(
        check,
        format!("not seen: {error}"),
        "ask a server of Gantry with an administrator's kubeconfig",
    )
}

fn service_cidr(found: &Value) -> Option<Ipv4Net> {
    let ranges = found["spec"]["cidrs"].as_array()?;
    let mut ranges = ranges
        .iter()
        .filter_map(|range| range.as_str()?.parse().ok());
    ranges.next()
}

async fn api(cluster: &Cluster) -> Result<Finding, Finding> {
    let began = Instant::now();
    let asked = tokio::time::timeout(ANSWER, cluster.call(Call::get("/version"))).await;
    let took = began.elapsed();
    let fix =
        "look whether a server runs ('gantry server', 'gantry up') and can be reached from here";
    match asked {
        Ok(Ok(version)) => {
            let version = version["gitVersion"].as_str().unwrap_or("unknown");
            let message = format!("{version}, answers in {} ms", took.as_millis());
            Ok(match took < SLOW {
                true => Finding::ok("API", message),
                false => Finding::warning(
                    "API",
                    message,
                    "look at the load of the server and of the network",
                ),
            })
        }
        Ok(Err(error)) => Err(Finding::failed("API", error.to_string(), fix)),
        Err(_) => {
            let message = format!("no answer within {} s", ANSWER.as_secs());
            Err(Finding::failed("API", message, fix))
        }
    }
}

/// Each server by itself, as the members are listed; otherwise the one that answers.
async fn servers(credentials: &Credentials, cluster: &Cluster) -> Vec<Finding> {
    let members = match cluster.call(Call::get("/gantry/v1/members")).await {
        Ok(members) => members,
        Err(error) => return vec![unasked("servers", &error)],
    };
    let mut findings = Vec::new();
    for member in members.as_array().into_iter().flatten() {
        let name = member["name"].as_str().unwrap_or_default();
        let address = member["address"].as_str().unwrap_or_default();
        let check = format!("server {name}");
        let seen = async {
            let seen = tokio::time::timeout(ANSWER, look(credentials, address)).await;
            seen.with_context(|| format!("no answer within {} s", ANSWER.as_secs()))?
        };
        findings.push(match seen.await {
            Ok(seen) => judge(check, address, seen),
            Err(error) => Finding::failed(
                check,
                format!("{address} does not answer /readyz: {error:#}"),
                "look whether it runs and can be reached from here; 'gantry member list' says how the others see it",
            ),
        });
    }
    findings
}

/// How a server answered.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// By this machine's clock, half way between question and answer.
    asked: Timestamp,
    round_trip: Duration,
    /// By the server's clock.
    date: Option<Timestamp>,
}

async fn look(credentials: &Credentials, address: &str) -> Result<Seen> {
    let mut config = credentials.load().await?;
    config.cluster_url = format!("https://{address}").parse()?;
    let client = kube::Client::try_from(config)?;
    let ask = || http::Request::get("/readyz").body(Body::empty());
    // The first answer takes the time of a connection.
    client.send(ask()?).await.map_err(explained)?;
    let (began, started) = (Timestamp::now(), Instant::now());
    let answer = client.send(ask()?).await.map_err(explained)?;
    let round_trip = started.elapsed();
    ensure!(answer.status().is_success(), "it says {}", answer.status());
    let date = answer.headers().get(DATE);
    let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
    Ok(Seen {
        asked: began + round_trip / 2,
        round_trip,
        date: date.map(|date| date.timestamp()),
    })
}

fn explained(error: kube::Error) -> crate::client::ApiError {
    error.into()
}

fn judge(check: String, address: &str, seen: Seen) -> Finding {
    let took = seen.round_trip.as_millis();
    let Some(date) = seen.date else {
        return Finding::ok(check, format!("{address} is ready, answers in {took} ms"));
    };
    // Times are cut to seconds: half a second later is as likely.
    let ahead = date.duration_since(seen.asked) + SECOND / 2;
    let uncertain = SignedDuration::try_from(seen.round_trip / 2).unwrap_or(SignedDuration::MAX);
    if ahead.abs().saturating_sub(uncertain).saturating_sub(SECOND) > SKEW {
        let direction = if ahead.is_positive() {
            "ahead of"
        } else {
            "behind"
        };
        return Finding::failed(
            check,
            format!(
                "the clock of {address} is {} s {direction} this machine's",
                ahead.abs().as_secs()
            ),
            "run a time service such as chrony or systemd-timesyncd on both",
        );
    }
    Finding::ok(
        check,
        format!("{address} is ready, answers in {took} ms, and its clock agrees"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Outcome;
    use super::*;

    #[test]
    fn a_clock_counts_as_wrong_only_beyond_doubt() {
        let asked: Timestamp = "2026-01-01T00:00:10Z".parse().expect("a time");
        let judged = |date: Option<&str>, round_trip| {
            let date = date.map(|date| date.parse().expect("a time"));
            let round_trip = Duration::from_secs(round_trip);
            judge(
                "server s1".to_owned(),
                "192.0.2.1:6443",
                Seen {
                    asked,
                    round_trip,
                    date,
                },
            )
        };
        for (date, round_trip, outcome) in [
            (None, 0, Outcome::Ok),
            (Some("2026-01-01T00:00:10Z"), 0, Outcome::Ok),
            (Some("2026-01-01T00:00:15Z"), 0, Outcome::Ok),
            (Some("2026-01-01T00:00:17Z"), 0, Outcome::Failed),
            (Some("2026-01-01T00:00:04Z"), 0, Outcome::Ok),
            (Some("2026-01-01T00:00:02Z"), 0, Outcome::Failed),
            (Some("2026-01-01T00:00:17Z"), 4, Outcome::Ok),
        ] {
            assert_eq!(judged(date, round_trip).outcome, outcome, "{date:?}");
        }
        let behind = judged(Some("2025-12-31T23:59:00Z"), 0).message;
        assert!(
            behind.contains("192.0.2.1:6443") && behind.contains("69 s behind"),
            "{behind}"
        );
    }

    #[test]
    fn the_first_range_of_services_is_the_clusters() {
        let found = json!({"spec": {"cidrs": ["10.40.0.0/16", "fd00::/112"]}});
        assert_eq!(
            service_cidr(&found),
            Some("10.40.0.0/16".parse().expect("a range"))
        );
        assert_eq!(service_cidr(&json!({})), None);
        let nodes = json!({"items": [{"spec": {"podCIDR": "10.40.3.0/24"}}, {"spec": {}}]});
        assert_eq!(
            pod_cidrs(&nodes),
            ["10.40.3.0/24".parse().expect("a range")]
        );
    }
}
