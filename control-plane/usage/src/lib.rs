//! What nodes, pods and containers use: the last minute of it, in memory alone.
//!
//! Nodes say each second what the kernel has counted; [`Figures`] keeps it, makes rates of it, and tells who listens that
//! there is news of a pod. Whoever hands over what a node said has checked that it is the node's own. Must never know the
//! store, the API server, or whoever reads the figures.
//!
//! Invariants kept here:
//! - what is kept is bounded by what nodes have said last: of a pod that its node does not name any more nothing is left;
//! - a rate is over a second at least, and never over a counter that began anew: neither one of another attempt at the
//!   container, nor times of another process of the agent;
//! - nobody is given figures that are older than [`FRESH`].

mod figures;
mod held;
mod ring;
mod sample;
mod scraped;

pub use figures::{
    ContainerUsage, Figures, NewConnections, News, NodeUsage, PodConnections, PodUsage,
};
pub use ring::SHORTEST;
pub use sample::{
    Amounts, Connections, ContainerSample, NodeSample, PodName, PodSample, Pressure, Pressures,
    Sample, ScrapedPod, ScrapedSample, ScrapedSeries, ServiceName, Traffic,
};
pub use scraped::{ScrapedMetric, ScrapedValue, Selects, sources};

use std::time::Duration;

/// Figures that are older than this are none: their node has not been heard since.
pub const FRESH: Duration = Duration::from_secs(10);
