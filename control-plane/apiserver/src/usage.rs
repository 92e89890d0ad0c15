//! Where figures of what nodes and pods use come from.

use std::time::Duration;

use async_trait::async_trait;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageOf<'a> {
    /// All nodes, or the one of this name.
    Nodes(Option<&'a str>),
    /// All pods of a namespace, or everywhere; or one of them.
    Pods {
        /// The namespace, where it is one.
        namespace: Option<&'a str>,
        /// The name of one pod.
        name: Option<&'a str>,
    },
}

/// What a container uses, or a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartUsage {
    /// The container's name; empty of a node.
    pub name: String,
    /// CPU, in billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory that cannot be reclaimed easily, in bytes.
    pub memory_bytes: u64,
}

/// What a node or a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The namespace of a pod; empty of a node.
    pub namespace: String,
    /// The name of the pod or node.
    pub name: String,
    /// When it was heard, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What rates are over.
    pub window: Duration,
    /// By container; one part of a node.
    pub parts: Vec<PartUsage>,
}

/// Tells what nodes and pods use; the composition root knows where that is known.
#[async_trait]
pub trait UsageSource: Send + Sync + 'static {
    /// What fresh figures there are of, sorted by namespace and name; or why nothing can be told, in one sentence.
    async fn used(&self, of: UsageOf<'_>) -> Result<Vec<Used>, String>;
}
