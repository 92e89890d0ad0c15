//! The example application of `deploy/examples/web.yaml`, as a test wants it.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{Fleet, Pod};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/web.yaml");
/// The selector of its pods.
pub const WEB: &str = "app=web";
/// Where every node serves it.
pub const WEB_NODE_PORT: u16 = 30080;

impl Fleet {
    /// Applies the example with so many replicas and the template changed, and waits until all of them serve, some on
    /// every node. A Deployment that is new is spread; one that is rolled only tends to be.
    pub fn apply_web(&self, replicas: usize, change: impl Fn(&mut Value)) -> Result<Vec<Pod>> {
        let text = std::fs::read_to_string(MANIFEST).context("reading the example")?;
        for document in serde_norway::Deserializer::from_str(&text) {
            let mut object = Value::deserialize(document).context("parsing the example")?;
            if object["kind"] == "Deployment" {
                object["spec"]["replicas"] = replicas.into();
                change(&mut object["spec"]["template"]);
            }
            self.apply(&object)?;
        }
        let pods = self.wait_serving_pods(WEB, replicas)?;
        let spread = Self::spread(&pods);
        ensure!(
            spread.len() == self.node_names().len(),
            "not every node has a pod: {spread:?}"
        );
        Ok(pods)
    }

    /// Where clients outside reach the example at a node.
    pub fn web_node_port(&self, node: &str) -> Result<String> {
        let address = self.node_address(node)?;
        Ok(format!("http://{address}:{WEB_NODE_PORT}/"))
    }
}
