//! What this node says that it uses: read every second, and offered to the link (see [`crate::outgoing`]).

mod opened;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_cri::ServiceName;
use gantry_cri::network::{NodeConnections, NodeTraffic, PodNetwork, Traffic};
use gantry_cri::runtime::{self as cri, Measured, Runtime};
use gantry_network::Holding;
use gantry_rpc::node::{
    Amounts, Connections, ContainerUsage, HeldConnections, NodeUsage, PodUsage, Pressure,
    Pressures, Usage,
};
use tokio::sync::watch;

use self::opened::OpenedByOthers;

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
    use gantry_cri::network::FakePodNetwork;
    use gantry_cri::runtime::FakeRuntime;
    use gantry_network::{FakeHolding, HoldingNews};

    use super::*;

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
