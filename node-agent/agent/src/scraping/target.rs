//! Which pods are asked, and where: by the annotations that Prometheus' usual configuration goes by. Pure.

use std::net::{IpAddr, SocketAddr};

use http::uri::PathAndQuery;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

const SCRAPE: &str = "prometheus.io/scrape";
const PATH: &str = "prometheus.io/path";
const PORT: &str = "prometheus.io/port";
const SCHEME: &str = "prometheus.io/scheme";

const DEFAULT_PATH: &str = "/metrics";
/// The longest path.
const PATH_BYTES: usize = 2048;
/// Of what is wrong more is not told.
const TOLD: usize = 64;

/// Where a pod is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// An address of the pod itself.
    pub(crate) address: SocketAddr,
    pub(crate) path: PathAndQuery,
    /// Over TLS, whoever answers.
    pub(crate) is_secure: bool,
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_secure { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.address, self.path)
    }
}

/// Whether a pod wants to be asked, and can be: it runs, and stays.
pub(crate) fn is_scraped(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    annotation(pod, SCRAPE) == Some("true")
        && pod.metadata.deletion_timestamp.is_none()
        && status.and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Where to ask the pod that has this address, or what is wrong with its annotations.
pub(crate) fn target(pod: &Pod, address: IpAddr) -> Result<Target, String> {
    let scheme = annotation(pod, SCHEME).unwrap_or("http");
    let is_secure = match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => false,
        _ if scheme.eq_ignore_ascii_case("https") => true,
        _ => return Err(wrong(SCHEME, scheme, "must be http or https")),
    };
    let port = match annotation(pod, PORT) {
        Some(text) => {
            let port = text.parse().ok().filter(|port| *port != 0);
            port.ok_or_else(|| wrong(PORT, text, "must be a port, 1 to 65535"))?
        }
        None => pod.spec.as_ref().and_then(first_port).ok_or_else(|| {
            format!("metadata.annotations[{PORT}]: must name the port, since no container declares one of TCP")
        })?,
    };
    let path = annotation(pod, PATH).unwrap_or(DEFAULT_PATH);
    let absolute = match path.starts_with('/') {
        true => path.to_owned(),
        false => ["/", path].concat(),
    };
    let is_short = absolute.len() <= PATH_BYTES;
    let parsed = absolute.parse().ok().filter(|_| is_short);
    let path = parsed.ok_or_else(|| {
        let why = format!("must be a path of a URL of at most {PATH_BYTES} bytes");
        wrong(PATH, path, &why)
    })?;
    Ok(Target {
        address: SocketAddr::new(address, port),
        path,
        is_secure,
    })
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

fn wrong(annotation: &str, value: &str, why: &str) -> String {
    let told: String = value.chars().take(TOLD).collect();
    format!("metadata.annotations[{annotation}]: {told:?}: {why}")
}

/// The first port of TCP that a container declares.
fn first_port(spec: &PodSpec) -> Option<u16> {
    let ports = spec
        .containers
        .iter()
        .flat_map(|of| of.ports.iter().flatten());
    let of_tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let mut numbers = of_tcp.filter_map(|port| u16::try_from(port.container_port).ok());
    numbers.find(|number| *number != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod that runs and has these annotations, on top of the one that asks for scraping.
    pub(crate) fn pod(annotations: Value) -> Pod {
        let mut all = json!({SCRAPE: "true"});
        let own = annotations.as_object().cloned().unwrap_or_default();
        all.as_object_mut().expect("an object").extend(own);
        let pod = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "annotations": all},
            "spec": {"containers": [
                {"name": "sidecar", "ports": [{"containerPort": 53, "protocol": "UDP"}]},
                {"name": "app", "ports": [{"containerPort": 8080}, {"containerPort": 9090}]},
            ]},
            "status": {"phase": "Running"},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn shown(annotations: Value) -> Result<String, String> {
        let target = target(&pod(annotations), "10.244.0.5".parse().expect("an address"));
        target.map(|target| target.to_string())
    }

    #[test]
    fn annotations_say_where() {
        for (annotations, expected) in [
            (json!({}), "http://10.244.0.5:8080/metrics"),
            (json!({PORT: "9102"}), "http://10.244.0.5:9102/metrics"),
            (
                json!({PATH: "stats/prometheus?a=b", SCHEME: "HTTPS"}),
                "https://10.244.0.5:8080/stats/prometheus?a=b",
            ),
        ] {
            assert_eq!(shown(annotations).as_deref(), Ok(expected));
        }
        let v6 = target(&pod(json!({})), "fd00::5".parse().expect("an address"));
        assert_eq!(
            v6.map(|of| of.to_string()).as_deref(),
            Ok("http://[fd00::5]:8080/metrics")
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (annotation, value) in [
            (PORT, ""),
            (PORT, "0"),
            (PORT, "65536"),
            (PORT, "http"),
            (PORT, "80@evil.example"),
            (SCHEME, "file"),
            (SCHEME, ""),
            (PATH, "/a b"),
            (PATH, "/a\r\nHost: b"),
            (PATH, "\u{0}"),
        ] {
            let why = shown(json!({annotation: value})).expect_err(value);
            assert!(
                why.starts_with(&format!("metadata.annotations[{annotation}]")),
                "{why}"
            );
            assert!(!why.contains('\n'), "{why}");
        }
        let long = "x".repeat(100_000);
        for annotation in [PORT, SCHEME, PATH] {
            assert!(shown(json!({annotation: long})).expect_err("long").len() < 200);
        }
        let mut silent = pod(json!({}));
        silent.spec.as_mut().expect("a spec").containers.clear();
        let why = target(&silent, "10.244.0.5".parse().expect("an address"));
        assert!(why.expect_err("no port").contains(PORT));
    }

    #[test]
    fn who_does_not_ask_for_it_is_left_alone() {
        assert!(is_scraped(&pod(json!({}))));
        for annotations in [
            json!({SCRAPE: "false"}),
            json!({SCRAPE: "True"}),
            json!({SCRAPE: ""}),
        ] {
            assert!(!is_scraped(&pod(annotations)));
        }
        let mut ended = pod(json!({}));
        ended.status.as_mut().expect("a status").phase = Some("Succeeded".to_owned());
        assert!(!is_scraped(&ended));
    }
}
