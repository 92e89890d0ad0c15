//! `/metrics/resource`: CPU and memory of the node, pods and containers, as metrics servers read it.

use gantry_rpc::node::{ContainerUsage, PodUsage};

use super::exposition::{Page, number, seconds};
use super::{View, amounts};

pub(super) fn page(view: &View<'_>) -> String {
    let mut page = Page::at(view.unix_nanos);
    if let Some(usage) = &view.usage {
        let node = usage.node.unwrap_or_default();
        let node = amounts(node.amounts);
        containers(view, &mut page);
        let name = "node_cpu_usage_seconds_total";
        page.family(
            name,
            "counter",
            "CPU time that the node has used, in seconds.",
        );
        page.sample(name, &[], seconds(node.cpu_nanoseconds));
        let name = "node_memory_working_set_bytes";
        page.family(
            name,
            "gauge",
            "Memory of the node that cannot be reclaimed easily.",
        );
        page.sample(name, &[], number(node.working_set_bytes));
        pods(&usage.pods, &mut page);
    }
    let name = "resource_scrape_error";
    page.family(name, "gauge", "1 where nothing could be read, else 0.");
    page.sample(name, &[], number(view.usage.is_none().into()));
    page.finish()
}

fn containers(view: &View<'_>, page: &mut Page) {
    let usage = view.usage.iter();
    let all: Vec<(&PodUsage, &ContainerUsage)> = usage
        .flat_map(|usage| &usage.pods)
        .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
        .collect();
    let mut family =
        |name: &str,
         kind: &str,
         help: &str,
         value: &dyn Fn(&PodUsage, &ContainerUsage) -> Option<f64>| {
            page.family(name, kind, help);
            for (pod, container) in &all {
                let labels = [
                    ("container", container.name.as_str()),
                    ("namespace", pod.namespace.as_str()),
                    ("pod", pod.name.as_str()),
                ];
                if let Some(value) = value(pod, container) {
                    page.sample(name, &labels, value);
                }
            }
        };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "CPU time that the container has used, in seconds.",
        &|_, container| Some(seconds(amounts(container.amounts).cpu_nanoseconds)),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Memory of the container that cannot be reclaimed easily.",
        &|_, container| Some(number(amounts(container.amounts).working_set_bytes)),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "When the container was started, in seconds since the epoch.",
        &|pod, container| {
            let started = view.started(&pod.uid, &container.name)?;
            Some(seconds(u64::try_from(started).ok()?))
        },
    );
}

fn pods(pods: &[PodUsage], page: &mut Page) {
    let name = "pod_cpu_usage_seconds_total";
    page.family(
        name,
        "counter",
        "CPU time that the pod has used, in seconds.",
    );
    for pod in pods {
        let labels = [
            ("namespace", pod.namespace.as_str()),
            ("pod", pod.name.as_str()),
        ];
        let used = seconds(amounts(pod.amounts).cpu_nanoseconds);
        page.sample(name, &labels, used);
    }
    let name = "pod_memory_working_set_bytes";
    page.family(
        name,
        "gauge",
        "Memory of the pod that cannot be reclaimed easily.",
    );
    for pod in pods {
        let labels = [
            ("namespace", pod.namespace.as_str()),
            ("pod", pod.name.as_str()),
        ];
        let used = number(amounts(pod.amounts).working_set_bytes);
        page.sample(name, &labels, used);
    }
}
