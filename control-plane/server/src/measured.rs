//! What this server measures while it leads, as autoscalers go by it: what the nodes that are linked to it say of their pods, and
//! what is told from outside.

mod external;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use gantry_apiserver::{CustomMetrics, MetricOf, NoMetric, ObjectMetric};
use gantry_base::selector::LabelSelector;
use gantry_controllers::figures::{
    Arrival, ContainerUsage, Figures, FiguresError, Metric, PodUsage, PodValue, Wake,
};
use gantry_external::External;
use gantry_nodes::Hub;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::custom_metrics::{Cluster, ConnectionMetrics, ScrapedMetrics, Sources};

/// Rates are over so long: one second alone says more of the moment than of the load.
pub(crate) const WINDOW: Duration = Duration::from_secs(3);

/// What is measured. Clones are the same.
#[derive(Clone)]
pub(crate) struct Measured {
    /// What nodes and pods use.
    pub(crate) figures: Arc<gantry_usage::Figures>,
    /// The pods, and what is in front of them.
    pub(crate) cluster: Arc<Cluster>,
    /// Metrics of objects.
    pub(crate) custom: Arc<dyn CustomMetrics>,
    /// Metrics from outside of the cluster.
    pub(crate) external: External,
}

impl Measured {
    /// Nothing yet. The nodes whose links are in `hub` are told what is wanted of their pods.
    pub(crate) fn new(cluster: Arc<Cluster>, hub: Arc<Hub>, external: External) -> Self {
        let figures = Arc::new(gantry_usage::Figures::default());
        let connections = ConnectionMetrics {
            figures: figures.clone(),
            cluster: cluster.clone(),
        };
        let scraped = ScrapedMetrics {
            figures: figures.clone(),
            cluster: cluster.clone(),
            hub,
        };
        Self {
            figures,
            cluster,
            custom: Arc::new(Sources(vec![Arc::new(connections), Arc::new(scraped)])),
            external,
        }
    }
}

/// What an autoscaler asks for, of objects of its namespace.
fn asked<'a>(
    metric: Metric<'a>,
    resource: &'a str,
    objects: &'a [String],
    selector: &'a LabelSelector,
) -> MetricOf<'a> {
    MetricOf {
        namespace: metric.namespace,
        resource,
        objects,
        metric: metric.name,
        selector,
    }
}

fn selector(metric: &Metric<'_>) -> LabelSelector {
    match metric.selector {
        None => LabelSelector::default(),
        selector => LabelSelector::from_api(selector),
    }
}

/// In the words of who would be asked elsewhere.
fn refused(of: &MetricOf<'_>, none: NoMetric) -> FiguresError {
    FiguresError(match none {
        NoMetric::Unknown => of.unknown(),
        NoMetric::Unavailable(why) => why,
    })
}

/// The resource that a reference is to, as the project's clients guess it from the kind.
fn resource(object: &CrossVersionObjectReference) -> String {
    let kind = object.kind.to_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    };
    let version = object.api_version.as_deref().unwrap_or_default();
    match version.split_once('/') {
        Some((group, _)) => format!("{plural}.{group}"),
        None => plural,
    }
}

impl Figures for Measured {
    fn usage(&self, pod_uid: &str) -> Result<Option<Arc<PodUsage>>, FiguresError> {
        let used = self.figures.pod(pod_uid, WINDOW, Instant::now());
        Ok(used.map(|used| Arc::new(usage(used))))
    }

    fn of_pods<'a>(
        &'a self,
        metric: Metric<'a>,
        pods: &'a [Arc<Pod>],
    ) -> BoxFuture<'a, Result<Vec<PodValue>, FiguresError>> {
        Box::pin(async move {
            let names = pods.iter().filter_map(|pod| pod.metadata.name.clone());
            let (names, selector) = (names.collect::<Vec<_>>(), selector(&metric));
            let of = asked(metric, "pods", &names, &selector);
            let values = self.custom.values(of).await;
            let values = values.map_err(|none| refused(&of, none))?;
            Ok(values.into_iter().map(pod_value).collect())
        })
    }

    fn of_object<'a>(
        &'a self,
        metric: Metric<'a>,
        object: &'a CrossVersionObjectReference,
    ) -> BoxFuture<'a, Result<i64, FiguresError>> {
        Box::pin(async move {
            let (resource, names) = (resource(object), [object.name.clone()]);
            let selector = selector(&metric);
            let of = asked(metric, &resource, &names, &selector);
            let values = self.custom.values(of).await;
            let values = values.map_err(|none| refused(&of, none))?;
            let value = values.first().map(|value| value.millis);
            value.ok_or_else(|| FiguresError(of.missing(&object.name)))
        })
    }

    fn external<'a>(&'a self, metric: Metric<'a>) -> BoxFuture<'a, Result<Vec<i64>, FiguresError>> {
        Box::pin(external::values(&self.external, metric))
    }

    fn subscribe(&self, stop: &CancellationToken, wake: Wake) {
        let wake = Arc::new(wake);
        let of_pods = follow_pods(self.figures.clone(), self.figures.subscribe(), wake.clone());
        let of_sources = follow_sources(self.external.subscribe(), wake);
        let stop = stop.clone();
        tokio::spawn(async move {
            let both = async { tokio::join!(of_pods, of_sources) };
            stop.run_until_cancelled(both).await;
        });
    }
}

/// Tells of the pods of which there are new figures.
async fn follow_pods(
    figures: Arc<gantry_usage::Figures>,
    mut news: broadcast::Receiver<gantry_usage::News>,
    wake: Arc<Wake>,
) {
    let told = |pod: &gantry_usage::PodName| {
        wake(Arrival::Pod {
            namespace: &pod.namespace,
            name: &pod.name,
        });
    };
    loop {
        match news.recv().await {
            Ok(news) => {
                news.pods.iter().for_each(|pod| told(pod));
                // A Service is measured by what is held to it, too.
                let held = news.held.iter();
                let held: BTreeSet<&str> = held.map(|service| &*service.namespace).collect();
                for namespace in held {
                    wake(Arrival::Namespace(namespace));
                }
            }
            // Of which pods the news were that were missed, nobody knows.
            Err(RecvError::Lagged(_)) => {
                let all = figures.pods(None, WINDOW, Instant::now());
                all.iter().for_each(|used| told(&used.pod));
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Tells of the namespaces of which external metrics have changed.
async fn follow_sources(mut news: broadcast::Receiver<Arc<str>>, wake: Arc<Wake>) {
    loop {
        match news.recv().await {
            Ok(namespace) => wake(Arrival::Namespace(&namespace)),
            // Whoever was missed is looked at every now and then anyway.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

fn pod_value(value: ObjectMetric) -> PodValue {
    PodValue {
        pod: value.object,
        millis: value.millis,
        at: Timestamp::from_nanosecond(value.unix_nanos.into()).unwrap_or_default(),
        window: value.window.unwrap_or_default(),
    }
}

fn usage(used: gantry_usage::PodUsage) -> PodUsage {
    let containers = used.containers.iter().map(|one| ContainerUsage {
        name: one.name.to_string(),
        cpu_nanocores: one.cpu_nanocores,
        working_set_bytes: one.working_set_bytes,
    });
    PodUsage {
        at: Timestamp::from_nanosecond(used.unix_nanos.into()).unwrap_or_default(),
        window: used.window,
        containers: containers.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use gantry_external::Registered;
    use gantry_usage::{Amounts, ContainerSample, NodeSample, PodName, PodSample, Sample};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Where no external metrics are registered.
    struct Nothing;

    impl gantry_external::Sources for Nothing {
        fn find(&self, _namespace: &str, metric: &str) -> Result<Registered, String> {
            Err(format!("{metric} is not registered"))
        }
    }

    /// What is measured of a cluster that has these pods, behind a service.
    fn measured(pods: &[&str]) -> Measured {
        let cluster = Arc::new(Cluster::of_pods(pods));
        Measured::new(cluster, Arc::default(), External::new(Arc::new(Nothing)))
    }

    fn sample(at: u64) -> Sample {
        let amounts = Amounts {
            cpu_nanos: at * SECOND / 2,
            working_set_bytes: 4096,
            ..Amounts::default()
        };
        let name = PodName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
        };
        Sample {
            clock: 1,
            node: NodeSample {
                at: at * SECOND,
                ..NodeSample::default()
            },
            held: [].into(),
            pods: vec![PodSample {
                pod: Arc::new(name),
                at: at * SECOND,
                amounts,
                traffic: None,
                connections: None,
                containers: vec![ContainerSample {
                    name: "c".to_owned(),
                    attempt: 0,
                    amounts,
                }],
            }],
        }
    }

    #[tokio::test]
    async fn what_a_node_says_wakes_autoscalers_that_find_it() {
        let measured = measured(&[]);
        let known = measured.figures.clone();
        let stop = CancellationToken::new();
        let _guard = stop.clone().drop_guard();
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let seen = Mutex::new(HashSet::new());
        measured.subscribe(
            &stop,
            Box::new(move |arrival| {
                if let Arrival::Pod { namespace, name } = arrival
                    && let Ok(mut seen) = seen.lock()
                    && seen.insert(format!("{namespace}/{name}"))
                {
                    told.send(format!("{namespace}/{name}")).ok();
                }
            }),
        );
        assert_eq!(measured.usage("u"), Ok(None));
        for at in 1..3 {
            known.take("node", sample(at), Instant::now(), 7);
        }
        assert_eq!(hears.recv().await.as_deref(), Some("default/web"));
        let used = measured.usage("u").expect("figures").expect("of the pod");
        assert_eq!(used.containers[0].cpu_nanocores, SECOND / 2);
        assert_eq!(used.window, Duration::from_secs(1));
        assert_eq!(used.at.as_nanosecond(), 7);
    }

    #[tokio::test]
    async fn metrics_that_cannot_be_had_are_told_of_as_elsewhere() {
        let measured = measured(&[]);
        let metric = |name| Metric {
            namespace: "default",
            name,
            selector: None,
        };
        let object = |api_version: Option<&str>, kind: &str| CrossVersionObjectReference {
            api_version: api_version.map(str::to_owned),
            kind: kind.to_owned(),
            name: "front".to_owned(),
        };
        let refused = measured.of_pods(metric("hits"), &[]).await;
        let words = "the server could not find the metric hits for pods";
        assert_eq!(refused, Err(FiguresError(words.to_owned())));
        for (api_version, kind, resource) in [
            (None, "Service", "services"),
            (Some("v1"), "Service", "services"),
            (
                Some("networking.k8s.io/v1"),
                "Ingress",
                "ingresses.networking.k8s.io",
            ),
            (
                Some("networking.k8s.io/v1"),
                "NetworkPolicy",
                "networkpolicies.networking.k8s.io",
            ),
        ] {
            let object = object(api_version, kind);
            let refused = measured.of_object(metric("hits"), &object).await;
            let words = format!("the server could not find the metric hits for {resource}");
            assert_eq!(refused, Err(FiguresError(words)));
        }
    }

    #[tokio::test]
    async fn autoscalers_are_told_the_connections_of_pods_and_services() {
        let measured = measured(&["web"]);
        let figures = measured.figures.clone();
        let metric = Metric {
            namespace: "default",
            name: "connections",
            selector: None,
        };
        let service = |name: &str| CrossVersionObjectReference {
            api_version: Some("v1".to_owned()),
            kind: "Service".to_owned(),
            name: name.to_owned(),
        };
        let front = service("front");
        let missing = "the server could not find the metric connections for services front";
        let missing = Err(FiguresError(missing.to_owned()));
        assert_eq!(measured.of_object(metric, &front).await, missing);
        let mut said = sample(1);
        for pod in &mut said.pods {
            let mut name = PodName::clone(&pod.pod);
            name.uid = "web".to_owned();
            pod.pod = Arc::new(name);
            pod.connections = Some(gantry_usage::Connections { open: 7, opened: 9 });
        }
        figures.take("node", said, Instant::now(), 7);
        assert_eq!(measured.of_object(metric, &front).await, Ok(7000));
        assert!(measured.of_object(metric, &service("back")).await.is_err());
        let web = serde_json::json!({"metadata": {"namespace": "default", "name": "web"}});
        let web: Pod = serde_json::from_value(web).expect("a pod");
        let values = measured.of_pods(metric, &[Arc::new(web)]).await;
        let values = values.expect("figures");
        assert_eq!((values[0].pod.as_str(), values[0].millis), ("web", 7000));
    }

    #[tokio::test]
    async fn what_is_not_registered_is_told_to_autoscalers() {
        let metric = Metric {
            namespace: "default",
            name: "depth",
            selector: None,
        };
        let refused = measured(&[]).external(metric).await;
        let words = "depth is not registered".to_owned();
        assert_eq!(refused, Err(FiguresError(words)));
    }
}
