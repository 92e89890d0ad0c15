//! `/metrics/cadvisor`: the main series of cAdvisor, of the node, of pods and of containers.

use gantry_rpc::node::{Amounts, Pressure, Traffic};

use super::exposition::{Label, Page, number, seconds};
use super::{View, amounts};

/// The name of a series, what it is for Prometheus and in words, and what of the figures it tells.
type Series<T> = (
    &'static str,
    &'static str,
    &'static str,
    fn(&T) -> Option<f64>,
);

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

fn waited(pressure: Option<&Pressure>) -> Option<f64> {
    Some(number(pressure?.waiting_microseconds) / 1e6)
}

fn stalled(pressure: Option<&Pressure>) -> Option<f64> {
    Some(number(pressure?.stalled_microseconds) / 1e6)
}

/// Of what processes use.
const PROCESSES: &[Series<Amounts>] = &[
    (
        "container_cpu_usage_seconds_total",
        COUNTER,
        "CPU time that was used, in seconds.",
        |used| Some(seconds(used.cpu_nanoseconds)),
    ),
    (
        "container_cpu_cfs_periods_total",
        COUNTER,
        "Periods of the limit of CPU that have passed.",
        |used| Some(number(used.periods)),
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        COUNTER,
        "Periods of the limit of CPU in which processes were held back.",
        |used| Some(number(used.throttled_periods)),
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        COUNTER,
        "For how long processes were held back by the limit of CPU, in seconds.",
        |used| Some(seconds(used.throttled_nanoseconds)),
    ),
    (
        "container_memory_usage_bytes",
        GAUGE,
        "All memory that is used, that of files included.",
        |used| Some(number(used.memory_bytes)),
    ),
    (
        "container_memory_working_set_bytes",
        GAUGE,
        "Memory that cannot be reclaimed easily.",
        |used| Some(number(used.working_set_bytes)),
    ),
    (
        "container_memory_rss",
        GAUGE,
        "Memory of no file, in bytes.",
        |used| Some(number(used.rss_bytes)),
    ),
    (
        "container_threads",
        GAUGE,
        "Processes and threads.",
        |used| (used.processes > 0).then(|| number(used.processes)),
    ),
    (
        "container_pressure_cpu_waiting_seconds_total",
        COUNTER,
        "For how long some processes waited for a processor, in seconds.",
        |used| waited(used.pressures.as_ref()?.cpu.as_ref()),
    ),
    (
        "container_pressure_cpu_stalled_seconds_total",
        COUNTER,
        "For how long all processes waited for a processor, in seconds.",
        |used| stalled(used.pressures.as_ref()?.cpu.as_ref()),
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        COUNTER,
        "For how long some processes waited for memory, in seconds.",
        |used| waited(used.pressures.as_ref()?.memory.as_ref()),
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        COUNTER,
        "For how long all processes waited for memory, in seconds.",
        |used| stalled(used.pressures.as_ref()?.memory.as_ref()),
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        COUNTER,
        "For how long some processes waited for disks, in seconds.",
        |used| waited(used.pressures.as_ref()?.io.as_ref()),
    ),
    (
        "container_pressure_io_stalled_seconds_total",
        COUNTER,
        "For how long all processes waited for disks, in seconds.",
        |used| stalled(used.pressures.as_ref()?.io.as_ref()),
    ),
];

/// Of what pods send and receive.
const LINKS: &[Series<Traffic>] = &[
    (
        "container_network_receive_bytes_total",
        COUNTER,
        "Bytes that came.",
        |passed| Some(number(passed.received_bytes)),
    ),
    (
        "container_network_receive_packets_total",
        COUNTER,
        "Packets that came.",
        |passed| Some(number(passed.received_packets)),
    ),
    (
        "container_network_receive_errors_total",
        COUNTER,
        "Packets that could not be received.",
        |passed| Some(number(passed.received_errors)),
    ),
    (
        "container_network_receive_packets_dropped_total",
        COUNTER,
        "Packets that were dropped on their way in.",
        |passed| Some(number(passed.received_dropped)),
    ),
    (
        "container_network_transmit_bytes_total",
        COUNTER,
        "Bytes that went.",
        |passed| Some(number(passed.sent_bytes)),
    ),
    (
        "container_network_transmit_packets_total",
        COUNTER,
        "Packets that went.",
        |passed| Some(number(passed.sent_packets)),
    ),
    (
        "container_network_transmit_errors_total",
        COUNTER,
        "Packets that could not be sent.",
        |passed| Some(number(passed.sent_errors)),
    ),
    (
        "container_network_transmit_packets_dropped_total",
        COUNTER,
        "Packets that were dropped on their way out.",
        |passed| Some(number(passed.sent_dropped)),
    ),
];

/// What a series is of.
#[derive(Default)]
struct Group {
    container: String,
    /// Where it is below the node.
    id: String,
    image: String,
    /// The runtime's name of a container.
    name: String,
    namespace: String,
    pod: String,
    amounts: Amounts,
    traffic: Option<Traffic>,
}

impl Group {
    fn labels(&self) -> [Label<'_>; 6] {
        [
            ("container", self.container.as_str()),
            ("id", self.id.as_str()),
            ("image", self.image.as_str()),
            ("name", self.name.as_str()),
            ("namespace", self.namespace.as_str()),
            ("pod", self.pod.as_str()),
        ]
    }
}

/// The node, pods and containers that there are figures of.
fn groups(view: &View<'_>) -> Vec<Group> {
    let Some(usage) = &view.usage else {
        return Vec::new();
    };
    let node = usage.node.unwrap_or_default();
    let mut groups = vec![Group {
        id: "/".to_owned(),
        amounts: amounts(node.amounts),
        traffic: node.traffic,
        ..Group::default()
    }];
    for pod in &usage.pods {
        groups.push(Group {
            id: ["/", pod.uid.as_str()].concat(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            amounts: amounts(pod.amounts),
            traffic: pod.traffic,
            ..Group::default()
        });
        for container in &pod.containers {
            let attempt = container.attempt;
            let name = format!("{}-{attempt}", container.name);
            let status = view.status(&pod.uid, &container.name);
            groups.push(Group {
                container: container.name.clone(),
                id: ["/", pod.uid.as_str(), "/", name.as_str()].concat(),
                image: status
                    .map(|status| status.image.clone())
                    .unwrap_or_default(),
                name: [pod.uid.as_str(), "/", name.as_str()].concat(),
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                amounts: amounts(container.amounts),
                traffic: None,
            });
        }
    }
    groups
}

/// A series of all groups that have figures of its sort, with the labels that it has beside theirs.
fn tell<T>(
    page: &mut Page,
    (name, kind, help, value): &Series<T>,
    groups: &[Group],
    figures: fn(&Group) -> Option<&T>,
    labels: &[Label<'_>],
) {
    page.family(name, kind, help);
    for group in groups {
        if let Some(value) = figures(group).and_then(value) {
            page.sample(name, &[&group.labels()[..], labels].concat(), value);
        }
    }
}

pub(super) fn page(view: &View<'_>) -> String {
    let mut page = Page::at(view.unix_nanos);
    let groups = groups(view);
    for series in PROCESSES {
        tell(
            &mut page,
            series,
            &groups,
            |group| Some(&group.amounts),
            &[],
        );
    }
    let interface = [("interface", "eth0")];
    for series in LINKS {
        tell(
            &mut page,
            series,
            &groups,
            |group| group.traffic.as_ref(),
            &interface,
        );
    }
    page.finish()
}
