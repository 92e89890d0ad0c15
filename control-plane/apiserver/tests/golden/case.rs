//! The form of a recorded case.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A sequence of requests and the answers they got.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// The area it belongs to: its folder.
    pub(crate) group: String,
    /// What it needs beside API server and controllers: `scheduler`, `nodes`.
    #[serde(default)]
    pub(crate) needs: Vec<String>,
    pub(crate) steps: Vec<Step>,
}

impl Case {
    /// `area/name`
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Whether it needs a part of the cluster: a node that somebody acts as is there, as in the recording.
    pub(crate) fn needs(&self, part: &str) -> bool {
        let acts_as_node = |step: &Step| {
            let user = step.request.headers.get("impersonate-user");
            user.is_some_and(|user| user.starts_with("system:node:"))
        };
        self.needs.iter().any(|need| need == part)
            || (part == "nodes" && self.steps.iter().any(acts_as_node))
    }
}

/// A request, and what is compared with its answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    pub(crate) request: Request,
    pub(crate) response: Recorded,
    /// Paths whose values vary: `path`, `path|mask` or `path|optional`.
    #[serde(default)]
    pub(crate) normalise: Vec<String>,
    /// Lists without an order.
    #[serde(default)]
    pub(crate) unordered: Vec<String>,
    /// Values of the answer that later steps name.
    #[serde(default)]
    pub(crate) capture: BTreeMap<String, String>,
    /// It must succeed; its answer is not compared.
    #[serde(default)]
    pub(crate) setup: bool,
    /// Its answer does not matter.
    #[serde(default)]
    pub(crate) cleanup: bool,
    /// It is repeated until the answer agrees.
    #[serde(default)]
    pub(crate) eventually: bool,
    /// For how long, when 15 seconds are not enough.
    #[serde(default)]
    pub(crate) timeout_seconds: u64,
    /// How long the recording waited before it.
    #[serde(default)]
    pub(crate) delay_seconds: f64,
}

/// What is sent. `{{name}}` stands for a captured value.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) query: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) body: Option<Value>,
    #[serde(default)]
    pub(crate) body_text: Option<String>,
    /// Nobody for the administrator, `anonymous`, or `token:...`.
    #[serde(default, rename = "as")]
    pub(crate) who: Option<String>,
}

/// The recorded answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Recorded {
    pub(crate) status: u16,
    #[serde(default)]
    pub(crate) headers: RecordedHeaders,
    #[serde(default)]
    pub(crate) body: Option<Value>,
    #[serde(default)]
    pub(crate) body_text: Option<String>,
    #[serde(default)]
    pub(crate) events: Option<Vec<Value>>,
    /// Only status and headers count.
    #[serde(default)]
    pub(crate) body_ignored: bool,
}

/// The headers that count.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RecordedHeaders {
    #[serde(default)]
    pub(crate) content_type: String,
    #[serde(default)]
    pub(crate) warning: Vec<String>,
    #[serde(default)]
    pub(crate) content_encoding: Option<String>,
}
