//! The connections of pods.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Figures;
use crate::sample::{Connections, PodName};

/// The connections that a pod has, as its node has said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodConnections {
    /// Whose.
    pub pod: Arc<PodName>,
    /// When it was heard, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// How many.
    pub connections: Connections,
}

/// How many connections are opened to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewConnections {
    /// To which.
    pub pod: Arc<PodName>,
    /// When it was heard, nanoseconds since the epoch.
    pub unix_nanos: i64,
    /// What the rate is over.
    pub window: Duration,
    /// Thousandths of a connection in a second.
    pub millis_per_second: u64,
}

impl Figures {
    /// The connections that a pod has, by its uid. None where nothing fresh is known, and of a pod on its node's network.
    pub fn connections(&self, uid: &str, now: Instant) -> Option<PodConnections> {
        let state = self.state.lock();
        let (node, pod) = state.fresh(uid, now)?;
        Some(PodConnections {
            pod: pod.name.clone(),
            unix_nanos: node.unix_nanos,
            connections: pod.connections?,
        })
    }

    /// As [`Self::connections`], how many are opened, over about so long. None where that is not known for a second yet.
    pub fn new_connections(
        &self,
        uid: &str,
        window: Duration,
        now: Instant,
    ) -> Option<NewConnections> {
        let state = self.state.lock();
        let (node, pod) = state.fresh(uid, now)?;
        let rate = pod.opened.rate(window)?;
        Some(NewConnections {
            pod: pod.name.clone(),
            unix_nanos: node.unix_nanos,
            window: rate.window,
            millis_per_second: rate.millis_per_second(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Amounts, PodSample, Sample};

    const SECOND: u64 = 1_000_000_000;
    const WINDOW: Duration = Duration::from_secs(1);

    #[test]
    fn connections_are_told_of_who_has_them_while_the_node_is_heard() {
        let (figures, start) = (Figures::default(), Instant::now());
        let say = |clock: u64, at: u64, connections: Option<(u64, u64)>| {
            let connections = connections.map(|(open, opened)| Connections { open, opened });
            let pod = PodName {
                namespace: "default".to_owned(),
                name: "web".to_owned(),
                uid: "uid-web".to_owned(),
            };
            let web = PodSample {
                pod: Arc::new(pod),
                at: at * SECOND,
                amounts: Amounts::default(),
                traffic: None,
                connections,
                containers: Vec::new(),
            };
            let sample = Sample {
                clock,
                pods: vec![web],
                ..Sample::default()
            };
            let now = start + Duration::from_secs(at);
            figures.take("one", sample, now, 7);
            let known = figures.connections("uid-web", now);
            let rate = figures.new_connections("uid-web", 2 * WINDOW, now);
            let known = known.map(|known| (known.connections.open, known.connections.opened));
            (
                known,
                rate.map(|rate| (rate.millis_per_second, rate.window)),
            )
        };
        assert_eq!(say(1, 1, Some((3, 10))), (Some((3, 10)), None));
        assert_eq!(
            say(1, 2, Some((4, 15))),
            (Some((4, 15)), Some((5000, WINDOW)))
        );
        let over_two = Some((2500, 2 * WINDOW));
        assert_eq!(say(1, 3, Some((0, 15))), (Some((0, 15)), over_two));
        let now = start + Duration::from_secs(14);
        assert_eq!(figures.connections("uid-web", now), None, "it is silent");
        assert_eq!(say(1, 4, None), (None, None), "it has none of its own");
        assert_eq!(say(2, 5, Some((1, 16))), (Some((1, 16)), None));
    }
}
