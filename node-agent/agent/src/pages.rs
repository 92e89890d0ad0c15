//! The pages that a kubelet has for whoever measures, by Kubernetes' names: `/metrics/resource`, `/metrics/cadvisor`,
//! `/stats/summary`; beside them the node's own `/metrics`, and `/healthz`. Made of the last readings ([`crate::usage`]), whoever
//! asks: over the node's own port, or through the node link.
//!
//! What is not measured is left out: disks, page faults, swap.

mod cadvisor;
mod exposition;
mod resource;
mod summary;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gantry_rpc::node::{Amounts, PodUsage, Usage};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::desired::Desired;
use crate::metrics;
use crate::usage::{Figures, Readings};

/// A client that is slower than this is let go.
const READ_WITHIN: Duration = Duration::from_secs(10);
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// What the pages are made of.
pub(crate) struct Pages {
    node: String,
    figures: Arc<Figures>,
    desired: Arc<Desired>,
}

/// One moment of it.
struct View<'a> {
    node: &'a str,
    /// Without, nothing has been read yet.
    usage: Option<Arc<Usage>>,
    before: Option<Arc<Usage>>,
    /// When it was read, nanoseconds since the epoch.
    unix_nanos: i64,
    /// Pods by uid.
    pods: HashMap<String, Arc<Pod>>,
}

impl Pages {
    pub(crate) fn new(node: &str, figures: Arc<Figures>, desired: Arc<Desired>) -> Self {
        Self {
            node: node.to_owned(),
            figures,
            desired,
        }
    }

    fn view(&self) -> View<'_> {
        let Readings {
            before,
            latest,
            unix_nanos,
        } = self.figures.readings();
        let pods = self.desired.pods().into_iter();
        View {
            node: &self.node,
            usage: latest,
            before,
            unix_nanos,
            pods: pods
                .map(|pod| (pod.metadata.uid.clone().unwrap_or_default(), pod))
                .collect(),
        }
    }

    /// The answer to a request.
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let page = |kind: &'static str, text: String| {
            let mut response = Response::new(Full::from(text));
            let kind = HeaderValue::from_static(kind);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            return response;
        }
        match path.trim_end_matches('/') {
            "/metrics/resource" => page(TEXT, resource::page(&self.view())),
            "/metrics/cadvisor" => page(TEXT, cadvisor::page(&self.view())),
            "/stats/summary" => page(JSON, summary::page(&self.view()).to_string()),
            other => metrics::answer(other),
        }
    }

    /// Answers the requests of one connection.
    pub(crate) async fn serve(
        self: Arc<Self>,
        connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) {
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let answer = self.answer(request.method(), request.uri().path());
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_WITHIN)
            .serve_connection(TokioIo::new(connection), service);
        if let Err(error) = serving.await {
            tracing::debug!(%error, "a reader of the node's pages");
        }
    }
}

impl View<'_> {
    /// What the reading before said of a pod.
    fn pod_before(&self, uid: &str) -> Option<&PodUsage> {
        let before = self.before.as_ref()?;
        before.pods.iter().find(|pod| pod.uid == uid)
    }

    /// What is known of a container that runs.
    fn status(&self, uid: &str, container: &str) -> Option<&ContainerStatus> {
        let status = self.pods.get(uid)?.status.as_ref()?;
        let lists = [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ];
        let mut all = lists.into_iter().flatten().flatten();
        all.find(|status| status.name == container)
    }

    /// When a container was started, nanoseconds since the epoch.
    fn started(&self, uid: &str, container: &str) -> Option<i64> {
        let state = self.status(uid, container)?.state.as_ref()?;
        let started = state.running.as_ref()?.started_at.as_ref()?;
        i64::try_from(started.0.as_nanosecond()).ok()
    }
}

/// What is used, where anything is said of it.
fn amounts(said: Option<Amounts>) -> Amounts {
    said.unwrap_or_default()
}

#[cfg(test)]
mod tests;
