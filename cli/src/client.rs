//! The CLI's view of a cluster: where it is, which resources it serves, and plain REST requests to it.

mod channels;
mod error;
mod kubeconfig;
mod mapping;
mod process;
mod watch;

pub(crate) use channels::{CLOSE, Channels, Incoming, Outgoing, PIECE};
pub(crate) use error::{ApiError, explain};
pub(crate) use kubeconfig::Credentials;
pub(crate) use mapping::{Mapping, Target};
pub(crate) use process::{Input, Process, Said, Wanted};
pub(crate) use watch::{Change, watch};

use anyhow::{Context, Result, bail};
use futures::AsyncBufRead;
use gantry_tls::Lifetime;
use http::{Method, Request, header};
use serde_json::Value;
use tokio::sync::OnceCell;

/// A connection to a cluster and the namespace commands act in.
pub(crate) struct Cluster {
    pub(crate) client: kube::Client,
    pub(crate) namespace: String,
    /// The certificate of the cluster's authority, DER.
    pub(crate) authority: Option<Vec<u8>>,
    /// How long the client's own certificate lasts, when the kubeconfig has one in it.
    pub(crate) certificate: Option<Lifetime>,
    mappings: OnceCell<Vec<Mapping>>,
}

/// One request; unset parts have REST's defaults.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) query: &'a [(&'a str, &'a str)],
    pub(crate) accept: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) body: Vec<u8>,
}

impl<'a> Call<'a> {
    pub(crate) fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            query: &[],
            accept: "application/json",
            content_type: "application/json",
            body: Vec::new(),
        }
    }

    pub(crate) fn send(method: Method, path: &'a str, body: &Value) -> Self {
        Self {
            method,
            body: body.to_string().into_bytes(),
            ..Self::get(path)
        }
    }

    fn request(&self) -> Result<Request<Vec<u8>>> {
        let query: Vec<String> = self
            .query
            .iter()
            .map(|(name, value)| format!("{name}={}", percent_encode(value)))
            .collect();
        let uri = match query.is_empty() {
            true => self.path.to_owned(),
            false => format!("{}?{}", self.path, query.join("&")),
        };
        Request::builder()
            .method(self.method.clone())
            .uri(&uri)
            .header(header::ACCEPT, self.accept)
            .header(header::CONTENT_TYPE, self.content_type)
            .header(header::USER_AGENT, "gantry")
            .body(self.body.clone())
            .with_context(|| format!("building the request for {uri}"))
    }
}

impl Cluster {
    /// Reads the kubeconfig, and looks for a server that answers where it names several.
    pub(crate) async fn connect(credentials: &Credentials) -> Result<Self> {
        let config = credentials.find().await?;
        let namespace = credentials
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let authority = config.root_cert.iter().flatten().next().cloned();
        let certificate = kubeconfig::certificate(&config);
        let client =
            kube::Client::try_from(config).context("setting up TLS from the kubeconfig")?;
        Ok(Self {
            client,
            namespace,
            authority,
            certificate,
            mappings: OnceCell::new(),
        })
    }

    /// Whether a server takes requests.
    pub(crate) async fn answers(&self) -> bool {
        self.call(Call::get("/api/v1/namespaces/kube-system"))
            .await
            .is_ok()
    }

    /// Sends a request and parses the JSON answer.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Value, ApiError> {
        let request = call.request().map_err(ApiError::from)?;
        let answer = self.client.request::<Value>(request).await;
        answer.map_err(|error| ApiError::new(error, self.certificate))
    }

    /// Sends a request and returns the body as it arrives: logs and watches.
    pub(crate) async fn stream(&self, call: Call<'_>) -> Result<impl AsyncBufRead, ApiError> {
        let request = call.request().map_err(ApiError::from)?;
        let answer = self.client.request_stream(request).await;
        answer.map_err(|error| ApiError::new(error, self.certificate))
    }

    /// An object, or `None` when there is none of that name.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.call(Call::get(path)).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads aggregated discovery: two requests, whatever the number of groups.
    async fn discover(&self) -> Result<Vec<Mapping>, ApiError> {
        let mut mappings = Vec::new();
        for path in ["/api", "/apis"] {
            let call = Call {
                accept: "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                ..Call::get(path)
            };
            let document = self.call(call).await?;
            mappings.extend(mapping::parse(&document));
        }
        Ok(mappings)
    }

    /// Every resource the cluster serves, from discovery; asked once.
    pub(crate) async fn mappings(&self) -> Result<&[Mapping], ApiError> {
        self.mappings
            .get_or_try_init(|| self.discover())
            .await
            .map(Vec::as_slice)
    }

    /// The resource a user means by `deploy`, `deployments.apps`, `Deployment`, ...
    pub(crate) async fn mapping(&self, word: &str) -> Result<&Mapping> {
        let mappings = self.mappings().await?;
        match mapping::by_word(mappings, word) {
            Some(mapping) => Ok(mapping),
            None => bail!("the server doesn't have a resource type \"{word}\""),
        }
    }

    /// The resource of a manifest's `apiVersion` and `kind`.
    pub(crate) async fn mapping_of(
        &self,
        api_version: &str,
        kind: &str,
    ) -> Result<Option<&Mapping>> {
        let mappings = self.mappings().await?;
        Ok(mappings
            .iter()
            .find(|mapping| mapping.api_version() == api_version && mapping.kind == kind))
    }
}

/// RFC 3986 percent-encoding of a query value.
pub(crate) fn percent_encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::percent_encode;

    #[test]
    fn query_values_survive_encoding() {
        assert_eq!(
            percent_encode("app=web,tier!=x y"),
            "app%3Dweb%2Ctier%21%3Dx%20y"
        );
    }
}
