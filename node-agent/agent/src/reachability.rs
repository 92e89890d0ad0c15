//! Whether the other nodes answer on the way that packets of pods take, and what the Node says about it.
//!
//! A blocked UDP port or a switch that drops pods' addresses shows nowhere else: routes are there, nodes are Ready, and
//! packets vanish. So each node asks every other that is Ready, again and again, and its condition `PeersReachable`
//! names those that do not answer.
//!
//! Nothing is tainted for it, on either side: a node alone cannot tell whose fault the silence is, and one broken node
//! would take all those that miss it out of scheduling.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use gantry_cri::words;
use gantry_network::{Overlay, PeerEcho, PeerNode, PeerPath};
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::desired::Desired;
use crate::metrics::METRICS;
use crate::peers::peers;
use crate::pressure::Condition;

/// The condition's type.
pub(crate) const PEERS_REACHABLE: &str = "PeersReachable";
/// Between two questions to the same node. Of fifty nodes each asks ten others a second, which costs it about a
/// thousandth of a core.
const PERIOD: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// Questions without an answer, one after the other, until a node counts as unreachable: longer than a node that has
/// died stays Ready, which is ten seconds unless the servers were told otherwise.
const MISSES: u32 = 4;
/// Nodes that a message names, of each sort.
const NAMED: usize = 5;

/// What the nodes have answered so far.
#[derive(Default)]
struct Answers {
    peers: BTreeMap<String, Heard>,
    /// Why this node could not even ask, in the last round.
    trouble: Option<String>,
}

struct Heard {
    peer: PeerNode,
    pod_cidr: Ipv4Net,
    has_answered: bool,
    /// Since the last answer.
    missed: u32,
}

impl Answers {
    /// These are the nodes to ask. One that has moved is another one.
    fn follow(&mut self, peers: Vec<PeerNode>) {
        let mut known = std::mem::take(&mut self.peers);
        for peer in peers {
            let first = peer.pod_cidrs.iter().find_map(|cidr| match cidr {
                IpNet::V4(cidr) => Some(*cidr),
                IpNet::V6(_) => None,
            });
            let Some(pod_cidr) = first else { continue };
            let heard = known
                .remove(&peer.name)
                .filter(|heard| heard.peer == peer)
                .unwrap_or(Heard {
                    pod_cidr,
                    has_answered: false,
                    missed: 0,
                    peer,
                });
            self.peers.insert(heard.peer.name.clone(), heard);
        }
    }

    fn heard(&mut self, name: &str, answered: bool) {
        if let Some(heard) = self.peers.get_mut(name) {
            heard.has_answered |= answered;
            heard.missed = match answered {
                true => 0,
                false => heard.missed.saturating_add(1),
            };
        }
    }

    fn unreachable(&self) -> Vec<&PeerNode> {
        let silent = self.peers.values().filter(|heard| heard.missed >= MISSES);
        silent.map(|heard| &heard.peer).collect()
    }

    /// Whether any node has answered yet: until then, there is nothing good to say.
    fn are_some(&self) -> bool {
        self.peers.values().any(|heard| heard.has_answered)
    }
}

/// Asks the other nodes and tells what came of it.
pub(crate) struct Reachability<T> {
    own_name: String,
    desired: Arc<Desired>,
    overlay: Arc<dyn Overlay>,
    /// Where the overlay's packets go.
    port: u16,
    echo: Arc<dyn PeerEcho>,
    /// Takes the condition, or that there is none: a node alone has nobody to reach.
    tell: T,
    answers: Answers,
    told: Option<Condition>,
}

impl<T: Fn(Option<Condition>)> Reachability<T> {
    pub(crate) fn new(
        own_name: &str,
        desired: Arc<Desired>,
        overlay: Arc<dyn Overlay>,
        port: u16,
        echo: Arc<dyn PeerEcho>,
        tell: T,
    ) -> Self {
        Self {
            own_name: own_name.to_owned(),
            desired,
            overlay,
            port,
            echo,
            tell,
            answers: Answers::default(),
            told: None,
        }
    }

    /// Runs until it is dropped.
    pub(crate) async fn watch(mut self) {
        let mut rounds = interval(PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            self.round().await;
        }
    }

    /// Asks every node once, spread over the period.
    async fn round(&mut self) {
        self.answers.follow(self.ready_peers());
        let count = u32::try_from(self.answers.peers.len()).unwrap_or(u32::MAX);
        let step = (PERIOD - 2 * ANSWER) / count.max(1);
        let mut questions: FuturesUnordered<_> = (0..)
            .zip(self.answers.peers.values())
            .map(|(number, heard)| {
                let (echo, name, pod_cidr) =
                    (self.echo.clone(), heard.peer.name.clone(), heard.pod_cidr);
                async move {
                    sleep(step * number).await;
                    (name, echo.answers(pod_cidr, ANSWER).await)
                }
            })
            .collect();
        self.answers.trouble = None;
        while let Some((name, answered)) = questions.next().await {
            let answered = answered.unwrap_or_else(|error| {
                self.answers.trouble = Some(words(&error));
                false
            });
            self.answers.heard(&name, answered);
        }
        // Those that are known to be away by now are not missed.
        self.answers.follow(self.ready_peers());
        self.tell().await;
    }

    /// A node that is not Ready is known to be in trouble, and perhaps off.
    fn ready_peers(&self) -> Vec<PeerNode> {
        let mut nodes = self.desired.nodes();
        nodes.retain(|node| is_ready(node));
        peers(&nodes, &self.own_name)
    }

    async fn tell(&mut self) {
        let unreachable = self.answers.unreachable();
        METRICS
            .unreachable_peers
            .set(i64::try_from(unreachable.len()).unwrap_or(i64::MAX));
        let condition = if unreachable.is_empty() {
            self.answers.are_some().then_some(Condition {
                kind: PEERS_REACHABLE,
                holds: true,
                reason: "AllPeersAnswer",
                message: "every other node that is Ready answers on the way of pods' packets"
                    .into(),
            })
        } else if let Some(trouble) = &self.answers.trouble {
            Some(unreached(format!(
                "this node cannot speak for its pods: {trouble}. 'gantry doctor' tells more."
            )))
        } else {
            let routes = match self.overlay.routes().await {
                Ok(routes) => routes,
                Err(error) => {
                    tracing::warn!(
                        error = words(&error),
                        "looking up the ways to nodes that do not answer"
                    );
                    return;
                }
            };
            let path = |peer: &PeerNode| {
                let route = routes
                    .iter()
                    .find(|route| peer.pod_cidrs.contains(&route.pod_cidr));
                route.map(|route| route.path)
            };
            let lost: Vec<_> = unreachable
                .into_iter()
                .map(|peer| (peer, path(peer)))
                .collect();
            Some(unreached(message(&lost, self.port)))
        };
        if condition != self.told {
            (self.tell)(condition.clone());
            self.told = condition;
        }
    }
}

fn unreached(message: String) -> Condition {
    Condition {
        kind: PEERS_REACHABLE,
        holds: false,
        reason: "PeersUnreachable",
        message: message.into(),
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Who does not answer, and what to look at, by the way that leads there.
fn message(lost: &[(&PeerNode, Option<PeerPath>)], port: u16) -> String {
    let by = |path: Option<PeerPath>| {
        let peers: Vec<&PeerNode> = lost
            .iter()
            .filter(|(_, known)| *known == path)
            .map(|(peer, _)| *peer)
            .collect();
        (!peers.is_empty()).then(|| listed(&peers))
    };
    let wrapped = by(Some(PeerPath::Vxlan)).map(|peers| {
        format!("no answer through VXLAN from {peers}: is UDP port {port} open between the hosts?")
    });
    let direct = by(Some(PeerPath::Direct)).map(|peers| {
        format!(
            "no answer over the direct route from {peers}: does a firewall or the network drop packets with pods' \
             addresses? Then let them through, or start the agents with --overlay always."
        )
    });
    let without = by(None).map(|peers| {
        format!("there is no route to the pods of {peers}: see the Events of this node.")
    });
    let parts = wrapped.into_iter().chain(direct).chain(without);
    let parts: Vec<String> = parts.collect();
    format!("{} 'gantry doctor' tells more.", parts.join(" "))
}

fn listed(peers: &[&PeerNode]) -> String {
    let named = peers.iter().take(NAMED);
    let named: Vec<String> = named
        .map(|peer| format!("{} ({})", peer.name, peer.address))
        .collect();
    let named = named.join(", ");
    match peers.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use gantry_network::{FakeEcho, FakeOverlay};
    use gantry_rpc::node::Resource;
    use serde_json::{Value, json};
    use tokio::sync::mpsc;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::desired::tests::change;

    fn cidr(number: u8) -> Ipv4Net {
        format!("10.244.{number}.0/24").parse().unwrap()
    }

    fn node(number: u8, ready: &str) -> Value {
        json!({
            "metadata": {"name": format!("node-{number}")},
            "spec": {"podCIDR": cidr(number), "podCIDRs": [cidr(number)]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
                "conditions": [{"type": "Ready", "status": ready}],
            },
        })
    }

    struct Lab {
        desired: Arc<Desired>,
        echo: Arc<FakeEcho>,
        told: mpsc::UnboundedReceiver<Option<Condition>>,
        watching: tokio::task::JoinHandle<()>,
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            self.watching.abort();
        }
    }

    impl Lab {
        /// On node 1, which leads to these others through VXLAN.
        async fn new(others: &[u8]) -> Self {
            let desired = Arc::new(Desired::default());
            let overlay = Arc::new(FakeOverlay::new(
                "192.0.2.1".parse().unwrap(),
                "10.244.1.0/24".parse().unwrap(),
            ));
            let (echo, (tell, told)) = (Arc::new(FakeEcho::default()), mpsc::unbounded_channel());
            for number in std::iter::once(&1).chain(others) {
                let node = node(*number, "True");
                desired.apply(&change(Resource::Node, &node)).unwrap();
            }
            let known = peers(&desired.nodes(), "node-1");
            overlay.sync(known).await.unwrap();
            let watch = Reachability::new(
                "node-1",
                desired.clone(),
                overlay,
                8472,
                echo.clone(),
                move |condition| tell.send(condition).unwrap(),
            );
            Self {
                desired,
                echo,
                told,
                watching: tokio::spawn(watch.watch()),
            }
        }

        fn put(&self, node: &Value) {
            self.desired.apply(&change(Resource::Node, node)).unwrap();
        }

        /// What is told next; `None` when nothing is for so long.
        async fn next(&mut self, within: Duration) -> Option<Option<Condition>> {
            timeout(within, self.told.recv()).await.ok().flatten()
        }

        async fn says(&mut self) -> Condition {
            self.next(Duration::from_secs(60)).await.flatten().unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_named_and_one_answer_is_enough() {
        let mut lab = Lab::new(&[2, 3]).await;
        let well = lab.says().await;
        assert!(well.holds && well.reason == "AllPeersAnswer", "{well:?}");

        lab.echo.answer(cidr(2), false);
        let silent = Instant::now();
        let lost = lab.says().await;
        assert!(!lost.holds && lost.reason == "PeersUnreachable");
        assert!(
            lost.message.contains("node-2 (192.0.2.2)") && lost.message.contains("UDP port 8472"),
            "{}",
            lost.message
        );
        assert!(!lost.message.contains("node-3"), "{}", lost.message);
        assert!(
            silent.elapsed() > Duration::from_secs(10),
            "a node that has died is given up first: {:?}",
            silent.elapsed()
        );

        let quiet = lab.next(4 * PERIOD).await;
        assert_eq!(quiet, None, "what is known is not told again");
        lab.echo.answer(cidr(2), true);
        let healed = Instant::now();
        assert_eq!(lab.says().await, well);
        assert!(healed.elapsed() <= 2 * PERIOD, "{:?}", healed.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn only_nodes_that_are_ready_are_asked() {
        let mut lab = Lab::new(&[2, 3]).await;
        assert!(lab.says().await.holds);
        lab.echo.answer(cidr(2), false);
        lab.put(&node(2, "Unknown"));
        assert_eq!(lab.next(10 * PERIOD).await, None, "it is known to be away");
        let asked = lab.echo.asked(cidr(2));
        assert_eq!(lab.next(4 * PERIOD).await, None);
        assert_eq!(lab.echo.asked(cidr(2)), asked);
        assert!(lab.echo.asked(cidr(3)) >= 14);

        lab.put(&node(2, "True"));
        assert!(!lab.says().await.holds);
        for number in [2, 3] {
            lab.put(&node(number, "False"));
        }
        let nothing = lab.next(2 * PERIOD).await;
        assert_eq!(nothing, Some(None), "there is nobody left to reach");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_cannot_ask_blames_nobody_else() {
        let mut lab = Lab::new(&[2]).await;
        assert!(lab.says().await.holds);
        lab.echo.refuse(Some("no bridge"));
        let own = lab.says().await;
        assert!(
            !own.holds
                && own.message.contains("this node cannot speak")
                && own.message.contains("no bridge"),
            "{}",
            own.message
        );
        assert!(!own.message.contains("node-2"), "{}", own.message);
        lab.echo.refuse(None);
        assert!(lab.says().await.holds);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_alone_says_nothing() {
        let mut lab = Lab::new(&[]).await;
        assert_eq!(lab.next(20 * PERIOD).await, None);
    }

    #[test]
    fn a_message_tells_what_to_look_at_and_stays_short() {
        let peer = |number: u8| PeerNode {
            name: format!("node-{number}"),
            address: [192, 0, 2, number].into(),
            pod_cidrs: vec![cidr(number).into()],
        };
        let many: Vec<PeerNode> = (1..=9).map(peer).collect();
        let all: Vec<_> = many
            .iter()
            .map(|peer| (peer, Some(PeerPath::Vxlan)))
            .collect();
        let text = message(&all, 4789);
        assert!(
            text.contains("node-5 (192.0.2.5) and 4 more") && text.contains("UDP port 4789"),
            "{text}"
        );
        let text = message(
            &[(&many[0], Some(PeerPath::Direct)), (&many[1], None)],
            8472,
        );
        assert!(
            text.contains("the direct route from node-1 (192.0.2.1)")
                && text.contains("--overlay always")
                && text.contains("no route to the pods of node-2 (192.0.2.2)")
                && !text.contains("UDP"),
            "{text}"
        );
        assert!(text.contains("gantry doctor"), "{text}");
    }
}
