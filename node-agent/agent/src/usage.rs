//! What this node says that it uses: read every second, and offered to the link, which takes the latest when there is room
//! for it. None waits in a queue, so that a slow link carries no old figures.

mod opened;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use gantry_cri::ServiceName;
use gantry_cri::network::{NodeConnections, NodeTraffic, PodNetwork, Traffic};
use gantry_cri::runtime::{self as cri, Measured, Runtime};
use gantry_network::Holding;
use gantry_rpc::node::{
    AgentMessage, Amounts, Connections, ContainerUsage, HeldConnections, NodeUsage, PodUsage,
    Pressure, Pressures, Usage, agent_message,
};
use tokio::sync::{mpsc, watch};

use self::opened::OpenedByOthers;
use crate::reports::Reports;

/// From the end of one reading to the beginning of the next: so every two are a second apart at least, and each pair of them
/// makes a rate.
const PERIOD: Duration = Duration::from_secs(1);

/// The last two readings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readings {
    pub(crate) before: Option<Arc<Usage>>,
    pub(crate) latest: Option<Arc<Usage>>,
    /// When the latest was taken, nanoseconds since the epoch.
    pub(crate) unix_nanos: i64,
}

/// What was read last, for whoever wants to say it.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    readings: watch::Sender<Readings>,
}

impl Figures {
    /// The readings, as they come.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Readings> {
        self.readings.subscribe()
    }

    /// The last two.
    pub(crate) fn readings(&self) -> Readings {
        self.readings.borrow().clone()
    }

    /// Takes what was read this moment.
    pub(crate) fn read(&self, usage: Usage) {
        let now = jiff::Timestamp::now().as_nanosecond();
        self.readings.send_modify(|readings| {
            readings.before = readings.latest.replace(Arc::new(usage));
            readings.unix_nanos = i64::try_from(now).unwrap_or(i64::MAX);
        });
    }
}

/// Where figures are read.
pub(crate) struct Sources {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) network: Arc<dyn PodNetwork>,
    /// Those that are no work of the pods.
    pub(crate) connections: Arc<NodeConnections>,
    /// None where connections do not wait.
    pub(crate) holding: Option<Arc<dyn Holding>>,
}

/// Reads what the node and its pods use, again and again. Runs until it is dropped.
pub(crate) async fn follow(read: Sources, figures: Arc<Figures>) {
    let (begun, clock) = (Instant::now(), rand::random::<u64>());
    let mut opened = OpenedByOthers::default();
    let mut failing = false;
    loop {
        let (measured, traffic) = tokio::join!(read.runtime.measure(), read.network.traffic());
        let traffic = traffic.unwrap_or_else(|error| {
            tracing::debug!(
                error = gantry_cri::words(&error),
                "reading the traffic of pods"
            );
            NodeTraffic::default()
        });
        // What the kernel has counted as accepted was counted there before.
        let connections = opened.take(&traffic.connections, &read.connections, Instant::now());
        match measured {
            Ok(measured) => {
                failing = false;
                let held = read.holding.as_ref().map(|holding| holding.held());
                let mut usage = told(&measured, &traffic, &connections, (begun, clock));
                usage.held = held.into_iter().flatten().map(waiting).collect();
                figures.read(usage);
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(error = gantry_cri::words(&error), "reading what pods use");
                }
                failing = true;
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// What is sent on a link: `hello`, what is said as it comes, and between it the latest figures. At first the last two readings,
/// so that a server which knows nothing has rates at once. Services that are wanted go before all of it, since somebody waits.
/// It ends with `said`.
pub(crate) fn outgoing(
    hello: AgentMessage,
    reports: Arc<Reports>,
    said: mpsc::Receiver<AgentMessage>,
    mut readings: watch::Receiver<Readings>,
) -> impl Stream<Item = AgentMessage> + Send + 'static {
    readings.mark_changed();
    let unsaid = Unsaid {
        said,
        readings,
        is_new: true,
    };
    let rest = futures::stream::unfold((reports, unsaid), async |(reports, mut unsaid)| {
        let message = tokio::select! {
            biased;
            wanted = reports.next_wanted() => Some(wanted),
            message = unsaid.next() => message,
        };
        Some((message?, (reports, unsaid)))
    });
    futures::stream::iter([hello]).chain(rest)
}

/// What a link is still to carry.
struct Unsaid {
    said: mpsc::Receiver<AgentMessage>,
    readings: watch::Receiver<Readings>,
    /// No figures have been sent on the link.
    is_new: bool,
}

impl Unsaid {
    /// The next message, whichever it is; nothing is lost when nobody waits for it any more.
    async fn next(&mut self) -> Option<AgentMessage> {
        loop {
            tokio::select! {
                message = self.said.recv() => return message,
                Ok(()) = self.readings.changed() => {
                    let known = self.readings.borrow_and_update().clone();
                    let usage = match known.before {
                        Some(before) if self.is_new => {
                            // The latest follows.
                            self.readings.mark_changed();
                            Some(before)
                        }
                        _ => known.latest,
                    };
                    self.is_new = false;
                    if let Some(usage) = usage {
                        let message = agent_message::Message::Usage(Usage::clone(&usage));
                        return Some(AgentMessage { message: Some(message) });
                    }
                }
            }
        }
    }
}

/// The figures as they are sent, with times since a beginning by the clock of that name.
fn told(
    measured: &Measured,
    traffic: &NodeTraffic,
    connections: &BTreeMap<String, Connections>,
    (begun, clock): (Instant, u64),
) -> Usage {
    let since = |at: Instant| {
        let passed = at.saturating_duration_since(begun).as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX)
    };
    Usage {
        clock,
        node: Some(NodeUsage {
            read_at: since(measured.read_at),
            amounts: Some(amounts(&measured.machine)),
            available_bytes: measured.memory_available,
            traffic: traffic.node.as_ref().map(passed),
        }),
        pods: measured
            .pods
            .iter()
            .map(|pod| PodUsage {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.pod.0.clone(),
                read_at: since(pod.read_at),
                amounts: Some(amounts(&pod.usage)),
                traffic: traffic.pods.get(&pod.pod.0).map(passed),
                connections: connections.get(&pod.pod.0).copied(),
                containers: pod
                    .containers
                    .iter()
                    .map(|container| ContainerUsage {
                        name: container.name.clone(),
                        attempt: container.attempt,
                        amounts: Some(amounts(&container.usage)),
                    })
                    .collect(),
            })
            .collect(),
        held: Vec::new(),
    }
}

fn waiting((service, held): (ServiceName, u64)) -> HeldConnections {
    HeldConnections {
        namespace: service.namespace,
        service: service.name,
        held,
    }
}

fn amounts(usage: &cri::Usage) -> Amounts {
    let pressure = |one: cri::Pressure| {
        Some(Pressure {
            waiting_microseconds: one.waiting_micros,
            stalled_microseconds: one.stalled_micros,
        })
    };
    Amounts {
        cpu_nanoseconds: usage.cpu_nanos,
        working_set_bytes: usage.memory_working_set,
        memory_bytes: usage.memory,
        rss_bytes: usage.memory_rss,
        periods: usage.throttling.periods,
        throttled_periods: usage.throttling.throttled_periods,
        throttled_nanoseconds: usage.throttling.throttled_nanos,
        processes: usage.processes.unwrap_or_default(),
        pressures: usage.pressures.map(|pressures| Pressures {
            cpu: pressure(pressures.cpu),
            memory: pressure(pressures.memory),
            io: pressure(pressures.io),
        }),
    }
}

fn passed(traffic: &Traffic) -> gantry_rpc::node::Traffic {
    gantry_rpc::node::Traffic {
        received_bytes: traffic.received_bytes,
        received_packets: traffic.received_packets,
        received_errors: traffic.received_errors,
        received_dropped: traffic.received_dropped,
        sent_bytes: traffic.sent_bytes,
        sent_packets: traffic.sent_packets,
        sent_errors: traffic.sent_errors,
        sent_dropped: traffic.sent_dropped,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use gantry_cri::network::FakePodNetwork;
    use gantry_cri::runtime::FakeRuntime;
    use gantry_network::{FakeHolding, HoldingNews};
    use gantry_rpc::node::{Heartbeat, Wake};

    use super::*;

    fn beat(sequence: u64) -> AgentMessage {
        AgentMessage {
            message: Some(agent_message::Message::Heartbeat(Heartbeat { sequence })),
        }
    }

    /// Which figures a message has; none of another one.
    fn clock_of(message: AgentMessage) -> Option<u64> {
        match message.message {
            Some(agent_message::Message::Usage(usage)) => Some(usage.clock),
            _ => None,
        }
    }

    fn usage(clock: u64) -> Usage {
        Usage {
            clock,
            ..Usage::default()
        }
    }

    fn reports() -> Arc<Reports> {
        Arc::new(Reports::new("n1"))
    }

    #[tokio::test]
    async fn a_service_that_is_wanted_waits_behind_nothing_and_is_said_once() {
        let (figures, reports) = (Figures::default(), reports());
        figures.read(usage(1));
        let (up, said) = mpsc::channel(4);
        for sequence in 1..4 {
            up.send(beat(sequence)).await.expect("room");
        }
        let web = ServiceName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        let mut sent = pin!(outgoing(
            beat(0),
            reports.clone(),
            said,
            figures.subscribe()
        ));
        assert_eq!(sent.next().await, Some(beat(0)));
        for _ in 0..3 {
            reports.service_wanted(&web);
        }
        let wake = Wake {
            namespace: "shop".to_owned(),
            service: "web".to_owned(),
        };
        let wake = AgentMessage {
            message: Some(agent_message::Message::Wake(wake)),
        };
        assert_eq!(sent.next().await, Some(wake.clone()));
        assert_ne!(sent.next().await, Some(wake.clone()));
        reports.service_wanted(&web);
        assert_eq!(sent.next().await, Some(wake), "it is wanted still");
        reports.service_wanted(&web);
        reports.link_opened();
        drop(up);
        let mut left = Vec::new();
        while let Some(message) = sent.next().await {
            left.push(message);
        }
        assert_eq!(left.len(), 3, "a wish is not kept for another link");
    }

    #[tokio::test]
    async fn a_link_begins_with_two_readings_and_carries_the_latest_after_that() {
        let figures = Figures::default();
        for clock in 1..4 {
            figures.read(usage(clock));
        }
        let (up, said) = mpsc::channel(4);
        let mut sent = pin!(outgoing(beat(0), reports(), said, figures.subscribe()));
        assert_eq!(
            sent.next().await,
            Some(beat(0)),
            "the first word is not theirs"
        );
        for clock in [2, 3] {
            let message = sent.next().await.expect("there is more");
            assert_eq!(clock_of(message), Some(clock));
        }
        // Nobody takes them for a while.
        for clock in 4..9 {
            figures.read(usage(clock));
        }
        let message = sent.next().await.expect("there is more");
        assert_eq!(clock_of(message), Some(8), "what is old is not sent");
        up.send(beat(1)).await.expect("room");
        assert_eq!(sent.next().await, Some(beat(1)));
        drop(up);
        assert_eq!(sent.next().await, None, "the link is over");
    }

    #[tokio::test]
    async fn nothing_is_said_before_anything_is_read() {
        let figures = Figures::default();
        let (up, said) = mpsc::channel(4);
        let mut sent = pin!(outgoing(beat(0), reports(), said, figures.subscribe()));
        assert_eq!(sent.next().await, Some(beat(0)));
        up.send(beat(1)).await.expect("room");
        assert_eq!(sent.next().await, Some(beat(1)));
        figures.read(usage(1));
        let message = sent.next().await.expect("there is more");
        assert_eq!(clock_of(message), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn readings_come_every_second() {
        let network = FakePodNetwork::new("10.244.0.0/24".parse().expect("a range"));
        let figures = Arc::new(Figures::default());
        let mut readings = figures.subscribe();
        let web = ServiceName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        let holding = Arc::new(FakeHolding::default());
        holding.happen(web, 3, HoldingNews::default());
        let read = Sources {
            runtime: Arc::new(FakeRuntime::new()),
            network: Arc::new(network),
            connections: Arc::default(),
            holding: Some(holding),
        };
        let following = tokio::spawn(follow(read, figures.clone()));
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            readings.changed().await.expect("a reading");
        }
        assert!(began.elapsed() >= 2 * PERIOD && began.elapsed() < 3 * PERIOD);
        let latest = readings.borrow().latest.clone().expect("a reading");
        let node = latest.node.as_ref().expect("the node's");
        assert!(node.available_bytes > 0 && node.amounts.is_some());
        let held = &latest.held[0];
        assert_eq!(
            (&*held.namespace, &*held.service, held.held),
            ("shop", "web", 3)
        );
        following.abort();
    }
}
