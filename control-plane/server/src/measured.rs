//! The figures that autoscalers go by: what the nodes that are linked to this server say of their pods.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use gantry_controllers::figures::{
    Arrival, ContainerUsage, Figures, FiguresError, Metric, NoFigures, PodUsage, PodValue, Wake,
};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

/// Rates are over so long: one second alone says more of the moment than of the load.
const WINDOW: Duration = Duration::from_secs(3);

/// What pods use; metrics of other kinds are nobody's yet.
pub(crate) struct Measured(pub(crate) Arc<gantry_usage::Figures>);

impl Figures for Measured {
    fn usage(&self, pod_uid: &str) -> Result<Option<Arc<PodUsage>>, FiguresError> {
        let used = self.0.pod(pod_uid, WINDOW, Instant::now());
        Ok(used.map(|used| Arc::new(usage(used))))
    }

    fn of_pods<'a>(
        &'a self,
        metric: Metric<'a>,
        pods: &'a [Arc<Pod>],
    ) -> BoxFuture<'a, Result<Vec<PodValue>, FiguresError>> {
        NoFigures.of_pods(metric, pods)
    }

    fn of_object<'a>(
        &'a self,
        metric: Metric<'a>,
        object: &'a CrossVersionObjectReference,
    ) -> BoxFuture<'a, Result<i64, FiguresError>> {
        NoFigures.of_object(metric, object)
    }

    fn external<'a>(&'a self, metric: Metric<'a>) -> BoxFuture<'a, Result<Vec<i64>, FiguresError>> {
        NoFigures.external(metric)
    }

    fn subscribe(&self, stop: &CancellationToken, wake: Wake) {
        let (figures, stop) = (self.0.clone(), stop.clone());
        let mut news = figures.subscribe();
        let told = move |pod: &gantry_usage::PodName| {
            wake(Arrival::Pod {
                namespace: &pod.namespace,
                name: &pod.name,
            });
        };
        tokio::spawn(async move {
            loop {
                match stop.run_until_cancelled(news.recv()).await {
                    Some(Ok(news)) => news.pods.iter().for_each(|pod| told(pod)),
                    // Of which pods the news were that were missed, nobody knows.
                    Some(Err(RecvError::Lagged(_))) => {
                        let all = figures.pods(None, WINDOW, Instant::now());
                        all.iter().for_each(|used| told(&used.pod));
                    }
                    Some(Err(RecvError::Closed)) | None => return,
                }
            }
        });
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

    use gantry_usage::{Amounts, ContainerSample, NodeSample, PodName, PodSample, Sample};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

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
            pods: vec![PodSample {
                pod: Arc::new(name),
                at: at * SECOND,
                amounts,
                traffic: None,
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
        let known = Arc::new(gantry_usage::Figures::default());
        let measured = Measured(known.clone());
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
}
