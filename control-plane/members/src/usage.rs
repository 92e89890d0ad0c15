//! What nodes and pods use, from whichever server a client has asked: nodes are linked to the leader alone, so that another asks it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use gantry_apiserver::{PartUsage, UsageOf, UsageSource, Used};
use gantry_rpc::raft::raft_client::RaftClient;
use gantry_rpc::raft::{UsedAnswer, UsedObject, UsedPart, UsedRequest};
use gantry_store::Store;
use gantry_usage::{Figures, NodeUsage, PodUsage};

use crate::leader::{PATIENCE, elsewhere};
use crate::peers::{PEER_MESSAGE, Peers};

/// What rates are over, where there are figures of as long: steady enough to be read, and soon there.
const WINDOW: Duration = Duration::from_secs(5);

/// Figures of the nodes that are linked to the server that leads.
pub struct LeaderUsage {
    /// This server's own, for when it leads.
    pub own: Arc<Figures>,
    /// Who leads.
    pub store: Store,
    /// How the leader is reached.
    pub peers: Peers,
}

impl LeaderUsage {
    async fn asked(&self, leader: u64, of: UsageOf<'_>) -> Result<Vec<Used>> {
        let channel = self.peers.connect(leader).await?;
        let mut client = RaftClient::new(channel).max_decoding_message_size(PEER_MESSAGE);
        let answer = client.used(request(of)).await?.into_inner();
        Ok(answer.objects.into_iter().map(used).collect())
    }
}

#[async_trait]
impl UsageSource for LeaderUsage {
    async fn used(&self, of: UsageOf<'_>) -> Result<Vec<Used>, String> {
        let Some(leader) = elsewhere(&self.store) else {
            return Ok(known(&self.own, of, Instant::now()));
        };
        let asked = tokio::time::timeout(PATIENCE, self.asked(leader, of)).await;
        let answer = asked.map_err(|_| "the leading server does not answer".to_owned())?;
        answer.map_err(|error| format!("{error:#}"))
    }
}

/// What this server answers another one.
pub(crate) fn answer(own: &Figures, asked: &UsedRequest) -> UsedAnswer {
    let name = Some(asked.name.as_str()).filter(|name| !name.is_empty());
    let namespace = Some(asked.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let of = match asked.nodes {
        true => UsageOf::Nodes(name),
        false => UsageOf::Pods { namespace, name },
    };
    let objects = known(own, of, Instant::now()).into_iter();
    UsedAnswer {
        objects: objects.map(told).collect(),
    }
}

/// What this server knows itself.
fn known(own: &Figures, of: UsageOf<'_>, now: Instant) -> Vec<Used> {
    match of {
        UsageOf::Nodes(Some(name)) => {
            let node = own.node(name, WINDOW, now);
            node.iter().map(of_node).collect()
        }
        UsageOf::Nodes(None) => own.nodes(WINDOW, now).iter().map(of_node).collect(),
        UsageOf::Pods { namespace, name } => {
            let pods = own.pods(namespace, WINDOW, now);
            let asked = |pod: &&PodUsage| name.is_none_or(|name| pod.pod.name == name);
            pods.iter().filter(asked).map(of_pod).collect()
        }
    }
}

fn of_node(node: &NodeUsage) -> Used {
    Used {
        namespace: String::new(),
        name: node.node.to_string(),
        unix_nanos: node.unix_nanos,
        window: node.window,
        parts: vec![PartUsage {
            name: String::new(),
            cpu_nanocores: node.cpu_nanocores,
            memory_bytes: node.working_set_bytes,
        }],
    }
}

fn of_pod(pod: &PodUsage) -> Used {
    let containers = pod.containers.iter().map(|container| PartUsage {
        name: container.name.to_string(),
        cpu_nanocores: container.cpu_nanocores,
        memory_bytes: container.working_set_bytes,
    });
    Used {
        namespace: pod.pod.namespace.clone(),
        name: pod.pod.name.clone(),
        unix_nanos: pod.unix_nanos,
        window: pod.window,
        parts: containers.collect(),
    }
}

fn request(of: UsageOf<'_>) -> UsedRequest {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    match of {
        UsageOf::Nodes(name) => UsedRequest {
            nodes: true,
            namespace: String::new(),
            name: text(name),
        },
        UsageOf::Pods { namespace, name } => UsedRequest {
            nodes: false,
            namespace: text(namespace),
            name: text(name),
        },
    }
}

fn told(used: Used) -> UsedObject {
    let parts = used.parts.into_iter().map(|part| UsedPart {
        name: part.name,
        cpu_nanocores: part.cpu_nanocores,
        memory_bytes: part.memory_bytes,
    });
    UsedObject {
        namespace: used.namespace,
        name: used.name,
        unix_nanoseconds: used.unix_nanos,
        window_nanoseconds: u64::try_from(used.window.as_nanos()).unwrap_or(u64::MAX),
        parts: parts.collect(),
    }
}

fn used(said: UsedObject) -> Used {
    let parts = said.parts.into_iter().map(|part| PartUsage {
        name: part.name,
        cpu_nanocores: part.cpu_nanocores,
        memory_bytes: part.memory_bytes,
    });
    Used {
        namespace: said.namespace,
        name: said.name,
        unix_nanos: said.unix_nanoseconds,
        window: Duration::from_nanos(said.window_nanoseconds),
        parts: parts.collect(),
    }
}

#[cfg(test)]
mod tests {
    use gantry_usage::{Amounts, ContainerSample, NodeSample, PodName, PodSample, Sample};

    use super::*;

    /// Two seconds of two pods of a node.
    fn figures() -> Figures {
        let figures = Figures::default();
        for second in 1..3 {
            let at = second * 1_000_000_000;
            let amounts = Amounts {
                cpu_nanos: at / 2,
                working_set_bytes: 7,
                ..Amounts::default()
            };
            let pods = [("a", "web"), ("b", "web")].map(|(namespace, name)| PodSample {
                pod: Arc::new(PodName {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    uid: [namespace, name].concat(),
                }),
                at,
                amounts,
                traffic: None,
                connections: None,
                containers: vec![ContainerSample {
                    name: "c".to_owned(),
                    attempt: 0,
                    amounts,
                }],
            });
            let node = NodeSample {
                at,
                amounts,
                ..NodeSample::default()
            };
            let sample = Sample {
                clock: 1,
                node,
                pods: pods.into(),
                ..Sample::default()
            };
            figures.take("one", sample, Instant::now(), 5);
        }
        figures
    }

    #[test]
    fn another_server_is_told_what_this_one_would_say() {
        let figures = figures();
        for (of, count) in [
            (UsageOf::Nodes(None), 1),
            (UsageOf::Nodes(Some("one")), 1),
            (UsageOf::Nodes(Some("two")), 0),
            (
                UsageOf::Pods {
                    namespace: None,
                    name: None,
                },
                2,
            ),
            (
                UsageOf::Pods {
                    namespace: Some("a"),
                    name: Some("web"),
                },
                1,
            ),
            (
                UsageOf::Pods {
                    namespace: Some("a"),
                    name: Some("db"),
                },
                0,
            ),
        ] {
            let here = known(&figures, of, Instant::now());
            assert_eq!(here.len(), count, "{of:?}");
            let answer = answer(&figures, &request(of));
            let there: Vec<Used> = answer.objects.into_iter().map(used).collect();
            assert_eq!(there, here);
            for used in here {
                assert_eq!((used.unix_nanos, used.window), (5, Duration::from_secs(1)));
                assert_eq!(used.parts[0].cpu_nanocores, 500_000_000);
                assert_eq!(used.parts[0].memory_bytes, 7);
            }
        }
    }
}
