//! Figures that a test says.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Arrival, Figures, FiguresError, Metric, PodUsage, PodValue, Wake};

#[derive(Default)]
struct Said {
    usage: HashMap<String, Arc<PodUsage>>,
    of_pods: HashMap<String, Vec<PodValue>>,
    of_objects: HashMap<String, i64>,
    external: HashMap<String, Vec<i64>>,
}

/// The figures; see the module's documentation. What was not said is not served.
#[derive(Default)]
pub struct FakeFigures {
    said: Mutex<Said>,
    wakes: Mutex<Vec<(CancellationToken, Wake)>>,
}

impl FakeFigures {
    /// What a pod has used, by its uid.
    pub fn say_usage(&self, pod_uid: &str, usage: PodUsage) {
        let mut said = self.said.lock();
        said.usage.insert(pod_uid.to_owned(), Arc::new(usage));
    }

    /// A pod of which nothing is known any more.
    pub fn forget(&self, pod_uid: &str) {
        self.said.lock().usage.remove(pod_uid);
    }

    /// A metric of pods, by its name.
    pub fn say_of_pods(&self, metric: &str, values: Vec<PodValue>) {
        self.said.lock().of_pods.insert(metric.to_owned(), values);
    }

    /// A metric of whatever object, by its name.
    pub fn say_of_objects(&self, metric: &str, millis: i64) {
        let mut said = self.said.lock();
        said.of_objects.insert(metric.to_owned(), millis);
    }

    /// The series of an external metric, by its name.
    pub fn say_external(&self, metric: &str, millis: Vec<i64>) {
        self.said.lock().external.insert(metric.to_owned(), millis);
    }

    /// Wakes whoever has subscribed.
    pub fn arrive(&self, arrival: Arrival<'_>) {
        for (stop, wake) in self.wakes.lock().iter() {
            if !stop.is_cancelled() {
                wake(arrival);
            }
        }
    }
}

fn answer<T: Send + 'static>(
    found: Option<T>,
    metric: Metric<'_>,
    of: &str,
) -> BoxFuture<'static, Result<T, FiguresError>> {
    let why = || {
        FiguresError(format!(
            "the server could not find the metric {} for {of}",
            metric.name
        ))
    };
    Box::pin(std::future::ready(found.ok_or_else(why)))
}

impl Figures for FakeFigures {
    fn usage(&self, pod_uid: &str) -> Result<Option<Arc<PodUsage>>, FiguresError> {
        Ok(self.said.lock().usage.get(pod_uid).cloned())
    }

    fn of_pods<'a>(
        &'a self,
        metric: Metric<'a>,
        _pods: &'a [Arc<Pod>],
    ) -> BoxFuture<'a, Result<Vec<PodValue>, FiguresError>> {
        let found = self.said.lock().of_pods.get(metric.name).cloned();
        answer(found, metric, "pods")
    }

    fn of_object<'a>(
        &'a self,
        metric: Metric<'a>,
        object: &'a CrossVersionObjectReference,
    ) -> BoxFuture<'a, Result<i64, FiguresError>> {
        let found = self.said.lock().of_objects.get(metric.name).copied();
        answer(found, metric, &object.name)
    }

    fn external<'a>(&'a self, metric: Metric<'a>) -> BoxFuture<'a, Result<Vec<i64>, FiguresError>> {
        let found = self.said.lock().external.get(metric.name).cloned();
        answer(found, metric, "anything")
    }

    fn subscribe(&self, stop: &CancellationToken, wake: Wake) {
        self.wakes.lock().push((stop.clone(), wake));
    }
}
