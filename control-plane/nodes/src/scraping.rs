//! Which series of pods autoscalers and the steps of rollouts go by, and which of them each node is to ask its pods for: those of
//! namespaces that it has pods of. A change costs what its namespace wants, and each link what its own namespaces want.

mod feed;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use gantry_informer::{Change, Informers, Key};
use gantry_rpc::node::WantedSeries;
use gantry_usage::sources;
use imbl::OrdMap;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricIdentifier, MetricSpec};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::feed::Feed;
use crate::hub::Hub;
use crate::said::scraped::is_name;

/// Metrics of pods and services that nodes count themselves.
const COUNTED: [&str; 2] = ["connections", "new_connections_per_second"];
/// The annotations of a Deployment that has steps which go by a metric: `NAME<BOUND`, or with another sign.
const STEPS: &str = "gantry.dev/canary";
const STEPS_METRIC: &str = "gantry.dev/canary-metric";
/// The most metrics of a namespace that its pods are asked for.
const METRICS: usize = 64;
/// The most labels by which one of them is told apart.
const LABELS: usize = 8;

/// What is wanted, by namespace; cheap to clone.
pub(crate) type Wanted = OrdMap<String, Arc<[WantedSeries]>>;

/// What is wanted as of now, for the links of all nodes; none before it is known.
#[derive(Default)]
pub(crate) struct Board {
    wanted: watch::Sender<Option<Wanted>>,
}

impl Board {
    /// What the link of one node has to say of it.
    pub(crate) fn feed(&self) -> Feed {
        Feed::new(self.wanted.subscribe())
    }

    /// The names of what is wanted, in whichever namespace: O(what is wanted).
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let wanted = self.wanted.borrow().clone();
        let series = wanted.iter().flat_map(OrdMap::values);
        let series = series.flat_map(|series| series.iter());
        series.map(|series| series.name.clone()).collect()
    }
}

/// Who goes by a metric. Where there are too many, those of autoscalers come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Autoscaler,
    Rollout,
}

/// Metrics that one goes by, each with labels that its selector names.
type Metrics = BTreeMap<String, BTreeSet<String>>;

/// What all go by.
#[derive(Default)]
struct Wishes {
    /// By namespace and name; those that go by no series of pods are left out.
    metrics: BTreeMap<String, BTreeMap<(Who, String), Metrics>>,
    /// Namespaces that have changed.
    changed: BTreeSet<String>,
}

impl Wishes {
    /// What one goes by from now on; whether that is news.
    fn put(&mut self, who: Who, key: &Key, metrics: Metrics) -> bool {
        let own = (who, key.name.to_string());
        let known = self.metrics.get(&*key.namespace);
        let known = known.and_then(|known| known.get(&own));
        if known.map_or(metrics.is_empty(), |known| *known == metrics) {
            return false;
        }
        let namespace = key.namespace.to_string();
        let known = self.metrics.entry(namespace.clone()).or_default();
        match metrics.is_empty() {
            true => drop(known.remove(&own)),
            false => drop(known.insert(own, metrics)),
        }
        if known.is_empty() {
            self.metrics.remove(&namespace);
        }
        self.changed.insert(namespace);
        true
    }

    /// The namespaces that have changed since this was asked last, with the series that are wanted there.
    fn take_changed(&mut self) -> Vec<(String, Vec<WantedSeries>)> {
        let changed = mem::take(&mut self.changed).into_iter();
        changed
            .map(|namespace| {
                let metrics = self.metrics.get(&namespace).into_iter();
                let series = wanted(&namespace, metrics.flat_map(BTreeMap::values));
                (namespace, series)
            })
            .collect()
    }
}

/// The series that are asked for in a namespace.
fn wanted<'a>(namespace: &str, metrics: impl Iterator<Item = &'a Metrics>) -> Vec<WantedSeries> {
    let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (metric, labels) in metrics.flatten() {
        if all.len() < METRICS || all.contains_key(metric.as_str()) {
            let known = all.entry(metric).or_default();
            known.extend(labels.iter().map(String::as_str));
        }
    }
    let series = all.into_iter().flat_map(|(metric, labels)| {
        let labels = labels.into_iter().take(LABELS).map(str::to_owned);
        let labels: Vec<String> = labels.collect();
        sources(metric).into_iter().map(move |name| WantedSeries {
            namespace: namespace.to_owned(),
            name,
            labels: labels.clone(),
        })
    });
    series.collect()
}

/// What an autoscaler goes by that only pods themselves know.
fn metrics_of(autoscaler: &HorizontalPodAutoscaler) -> Metrics {
    let mut all = Metrics::new();
    for metric in autoscaler.spec.metrics.iter().flatten().filter_map(exposed) {
        if !COUNTED.contains(&metric.name.as_str()) && is_name(&metric.name) {
            let labels = all.entry(metric.name.clone()).or_default();
            labels.extend(labels_of(metric));
        }
    }
    all
}

/// What the steps of a rollout go by, while it is under way.
fn metrics_of_steps(deployment: &Deployment) -> Metrics {
    let annotation = |name: &str| deployment.metadata.annotations.as_ref()?.get(name);
    let bound = annotation(STEPS).and_then(|_| annotation(STEPS_METRIC));
    let name = bound.and_then(|bound| bound.split(['<', '>']).next());
    let name = name.map(str::trim).filter(|_| !is_settled(deployment));
    let exposed = name.filter(|name| !COUNTED.contains(name) && is_name(name));
    let metrics = exposed.map(|name| (name.to_owned(), BTreeSet::new()));
    metrics.into_iter().collect()
}

/// Whether all pods are of the template, and available.
fn is_settled(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let counts = [
        status.replicas,
        status.updated_replicas,
        status.available_replicas,
    ];
    status.observed_generation >= deployment.metadata.generation
        && counts.map(Option::unwrap_or_default) == [wanted.unwrap_or(1); 3]
}

/// A metric of pods, or of a pod or of the pods behind a service.
fn exposed(metric: &MetricSpec) -> Option<&MetricIdentifier> {
    if let Some(of) = &metric.pods {
        return Some(&of.metric);
    }
    let of = metric.object.as_ref()?;
    let kind = of.described_object.kind.as_str();
    matches!(kind, "Pod" | "Service").then_some(&of.metric)
}

/// Labels that a selector names and a series can have.
fn labels_of(metric: &MetricIdentifier) -> impl Iterator<Item = String> {
    let selector = metric.selector.as_ref();
    let equal = selector.and_then(|selector| selector.match_labels.as_ref());
    let equal = equal.into_iter().flat_map(BTreeMap::keys);
    let others = selector.and_then(|selector| selector.match_expressions.as_ref());
    let others = others.into_iter().flatten().map(|other| &other.key);
    equal.chain(others).filter(|name| is_name(name)).cloned()
}

/// Keeps what is wanted up to date for the links of `hub`, until told to stop.
pub async fn run(informers: Informers, hub: Arc<Hub>, stop: CancellationToken) {
    let informers = informers.until(&stop);
    let autoscalers = informers.of::<HorizontalPodAutoscaler>();
    let deployments = informers.of::<Deployment>();
    let known = Arc::new(Mutex::new(Wishes::default()));
    let news = Arc::new(Notify::new());
    let (seen, told) = (known.clone(), news.clone());
    autoscalers.subscribe(Box::new(
        move |change: &Change<'_, HorizontalPodAutoscaler>| {
            if let Some(autoscaler) = change.last() {
                let metrics = change.new.map(|new| metrics_of(new)).unwrap_or_default();
                let key = Key::of(&autoscaler.metadata);
                if seen.lock().put(Who::Autoscaler, &key, metrics) {
                    told.notify_one();
                }
            }
        },
    ));
    let (seen, told) = (known.clone(), news.clone());
    deployments.subscribe(Box::new(move |change: &Change<'_, Deployment>| {
        if let Some(deployment) = change.last() {
            let metrics = change.new.map(|new| metrics_of_steps(new));
            let key = Key::of(&deployment.metadata);
            let metrics = metrics.unwrap_or_default();
            if seen.lock().put(Who::Rollout, &key, metrics) {
                told.notify_one();
            }
        }
    }));
    let synced = async { tokio::join!(autoscalers.synced(), deployments.synced()) };
    if stop.run_until_cancelled(synced).await.is_none() {
        return;
    }
    loop {
        let changed = known.lock().take_changed();
        hub.scraping.wanted.send_modify(|wanted| {
            let wanted = wanted.get_or_insert_default();
            for (namespace, series) in changed {
                match series.is_empty() {
                    true => drop(wanted.remove(&namespace)),
                    false => drop(wanted.insert(namespace, series.into())),
                }
            }
        });
        if stop.run_until_cancelled(news.notified()).await.is_none() {
            break;
        }
    }
    // Whoever leads next says it.
    hub.scraping.wanted.send_replace(None);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn autoscaler(metrics: Value) -> HorizontalPodAutoscaler {
        let autoscaler = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "metrics": metrics},
        });
        serde_json::from_value(autoscaler).expect("an autoscaler")
    }

    fn pods(metric: Value) -> Value {
        json!({"type": "Pods", "pods": {"metric": metric, "target": {"type": "AverageValue"}}})
    }

    fn object(kind: &str, name: &str) -> Value {
        json!({"type": "Object", "object": {"metric": {"name": name}, "target": {"type": "Value"},
            "describedObject": {"kind": kind, "name": "web"}}})
    }

    fn shown(metrics: &Metrics) -> Vec<String> {
        let shown = metrics.iter();
        let shown = shown.map(|(name, labels)| {
            let labels = labels.iter().cloned();
            std::iter::once(name.clone())
                .chain(labels)
                .collect::<Vec<_>>()
        });
        shown.map(|words| words.join(" ")).collect()
    }

    #[test]
    fn autoscalers_go_by_what_pods_expose() {
        let selector = json!({"matchLabels": {"path": "/", "not/a.label": "x"},
            "matchExpressions": [{"key": "code", "operator": "NotIn", "values": ["500"]}]});
        let metrics = metrics_of(&autoscaler(json!([
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}},
            pods(json!({"name": "hits_per_second", "selector": selector})),
            pods(json!({"name": "connections"})),
            pods(json!({"name": "not a name"})),
            object("Service", "depth"),
            object("Service", "new_connections_per_second"),
            object("Pod", "level"),
            object("Ingress", "hits"),
            {"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value"}}},
        ])));
        assert_eq!(
            shown(&metrics),
            ["depth", "hits_per_second code path", "level"]
        );
        assert_eq!(shown(&metrics_of(&autoscaler(Value::Null))), [""; 0]);
    }

    #[test]
    fn the_steps_of_a_rollout_go_by_a_metric_while_it_is_under_way() {
        let deployment = |steps: &str, bound: &str, updated: i32| -> Deployment {
            let deployment = json!({
                "metadata": {"name": "web", "generation": 2,
                    "annotations": {steps: "10%,30s", "gantry.dev/canary-metric": bound}},
                "spec": {"replicas": 3, "selector": {}, "template": {}},
                "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": updated, "availableReplicas": 3},
            });
            serde_json::from_value(deployment).expect("a Deployment")
        };
        let of =
            |steps, bound, updated| shown(&metrics_of_steps(&deployment(steps, bound, updated)));
        assert_eq!(
            of(STEPS, "errors_per_second <= 0.5", 1),
            ["errors_per_second"]
        );
        for (steps, bound, updated) in [
            (STEPS, "errors<1", 3),
            ("other", "errors<1", 1),
            (STEPS, "connections<5", 1),
            (STEPS, "no name<5", 1),
            (STEPS, "", 1),
        ] {
            assert_eq!(
                of(steps, bound, updated),
                [""; 0],
                "{steps} {bound} {updated}"
            );
        }
    }

    #[test]
    fn what_several_want_is_asked_for_once() {
        let mut known = Wishes::default();
        let key = |name: &str| Key::new("default", name);
        let metrics = |name: &str, label: &str| {
            Metrics::from([(name.to_owned(), BTreeSet::from([label.to_owned()]))])
        };
        assert!(
            !known.put(Who::Autoscaler, &key("web"), Metrics::new()),
            "it wants nothing"
        );
        assert!(known.put(Who::Autoscaler, &key("web"), metrics("a_per_second", "x")));
        assert!(!known.put(Who::Autoscaler, &key("web"), metrics("a_per_second", "x")));
        assert!(known.put(Who::Autoscaler, &key("api"), metrics("a_per_second", "y")));
        let changed = known.take_changed();
        let [(namespace, series)] = changed.as_slice() else {
            panic!("one namespace: {changed:?}");
        };
        assert_eq!(namespace, "default");
        let names: Vec<&str> = series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(names, ["a_per_second", "a_total", "a"]);
        assert!(series.iter().all(|series| series.labels == ["x", "y"]));
        assert!(known.take_changed().is_empty());
        for name in ["web", "api"] {
            assert!(known.put(Who::Autoscaler, &key(name), Metrics::new()));
        }
        assert_eq!(known.take_changed(), [("default".to_owned(), Vec::new())]);
        assert!(known.metrics.is_empty());
    }

    #[test]
    fn a_namespace_does_not_want_without_end() {
        let labels: BTreeSet<String> = (0..100).map(|number| format!("l{number}")).collect();
        let many = (0..1000).map(|number| (format!("m{number}"), labels.clone()));
        let many: Metrics = many.collect();
        let series = wanted("default", std::iter::once(&many));
        assert_eq!((series.len(), series[0].labels.len()), (METRICS, LABELS));
    }
}
