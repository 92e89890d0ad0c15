//! `/metrics/cadvisor`: the main series of cAdvisor, of the node, of pods and of containers.

use gantry_rpc::node::{Amounts, Pressure, Traffic};

use super::exposition::{Label, Page, number, seconds};
use super::{View, amounts};

/// A series of groups of processes.
struct Series {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Amounts) -> Option<f64>,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    value: fn(&Amounts) -> Option<f64>,
) -> Series {
    Series {
        name,
        kind: "counter",
        help,
        value,
    }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    value: fn(&Amounts) -> Option<f64>,
) -> Series {
    Series {
        name,
        kind: "gauge",
        help,
        value,
    }
}

fn waited(pressure: Option<&Pressure>) -> Option<f64> {
    Some(number(pressure?.waiting_microseconds) / 1e6)
}

fn stalled(pressure: Option<&Pressure>) -> Option<f64> {
    Some(number(pressure?.stalled_microseconds) / 1e6)
}

const SERIES: &[Series] = &[
    counter(
        "container_cpu_usage_seconds_total",
        "CPU time that was used, in seconds.",
        |used| Some(seconds(used.cpu_nanoseconds)),
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Periods of the limit of CPU that have passed.",
        |used| Some(number(used.periods)),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods of the limit of CPU in which processes were held back.",
        |used| Some(number(used.throttled_periods)),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "For how long processes were held back by the limit of CPU, in seconds.",
        |used| Some(seconds(used.throttled_nanoseconds)),
    ),
    gauge(
        "container_memory_usage_bytes",
        "All memory that is used, that of files included.",
        |used| Some(number(used.memory_bytes)),
    ),
    gauge(
        "container_memory_working_set_bytes",
        "Memory that cannot be reclaimed easily.",
        |used| Some(number(used.working_set_bytes)),
    ),
    gauge(
        "container_memory_rss",
        "Memory of no file, in bytes.",
        |used| Some(number(used.rss_bytes)),
    ),
    gauge("container_threads", "Processes and threads.", |used| {
        (used.processes > 0).then(|| number(used.processes))
    }),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "For how long some processes waited for a processor, in seconds.",
        |used| waited(used.pressures.as_ref()?.cpu.as_ref()),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "For how long all processes waited for a processor, in seconds.",
        |used| stalled(used.pressures.as_ref()?.cpu.as_ref()),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "For how long some processes waited for memory, in seconds.",
        |used| waited(used.pressures.as_ref()?.memory.as_ref()),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "For how long all processes waited for memory, in seconds.",
        |used| stalled(used.pressures.as_ref()?.memory.as_ref()),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "For how long some processes waited for disks, in seconds.",
        |used| waited(used.pressures.as_ref()?.io.as_ref()),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "For how long all processes waited for disks, in seconds.",
        |used| stalled(used.pressures.as_ref()?.io.as_ref()),
    ),
];

/// A name, what it is, and what of the traffic.
type OfLinks = (&'static str, &'static str, fn(&Traffic) -> u64);

const LINKS: &[OfLinks] = &[
    (
        "container_network_receive_bytes_total",
        "Bytes that came.",
        |passed| passed.received_bytes,
    ),
    (
        "container_network_receive_packets_total",
        "Packets that came.",
        |passed| passed.received_packets,
    ),
    (
        "container_network_receive_errors_total",
        "Packets that could not be received.",
        |passed| passed.received_errors,
    ),
    (
        "container_network_receive_packets_dropped_total",
        "Packets that were dropped on their way in.",
        |passed| passed.received_dropped,
    ),
    (
        "container_network_transmit_bytes_total",
        "Bytes that went.",
        |passed| passed.sent_bytes,
    ),
    (
        "container_network_transmit_packets_total",
        "Packets that went.",
        |passed| passed.sent_packets,
    ),
    (
        "container_network_transmit_errors_total",
        "Packets that could not be sent.",
        |passed| passed.sent_errors,
    ),
    (
        "container_network_transmit_packets_dropped_total",
        "Packets that were dropped on their way out.",
        |passed| passed.sent_dropped,
    ),
];

/// What a series is of.
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
        container: String::new(),
        id: "/".to_owned(),
        image: String::new(),
        name: String::new(),
        namespace: String::new(),
        pod: String::new(),
        amounts: amounts(node.amounts),
        traffic: node.traffic,
    }];
    for pod in &usage.pods {
        groups.push(Group {
            container: String::new(),
            id: ["/", pod.uid.as_str()].concat(),
            image: String::new(),
            name: String::new(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            amounts: amounts(pod.amounts),
            traffic: pod.traffic,
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

pub(super) fn page(view: &View<'_>) -> String {
    let mut page = Page::at(view.unix_nanos);
    let groups = groups(view);
    for series in SERIES {
        page.family(series.name, series.kind, series.help);
        for group in &groups {
            if let Some(value) = (series.value)(&group.amounts) {
                page.sample(series.name, &group.labels(), value);
            }
        }
    }
    for (name, help, count) in LINKS {
        page.family(name, "counter", help);
        for group in &groups {
            if let Some(passed) = &group.traffic {
                let interface = [("interface", "eth0")];
                let labels = [&group.labels()[..], &interface].concat();
                page.sample(name, &labels, number(count(passed)));
            }
        }
    }
    page.finish()
}
