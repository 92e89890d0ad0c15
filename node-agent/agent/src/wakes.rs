//! Says which services are wanted: those that nothing serves, and that connections wait for on this node.
//!
//! It is said when the first connection comes to wait, and each second while any does, since a link or a leader may be lost
//! meanwhile. What has become of the connections is counted for the node's metrics.

use std::sync::Arc;
use std::time::Duration;

use gantry_network::{Holding, HoldingNews, ServiceName};

use crate::metrics::{COLD_STARTS, METRICS};
use crate::reports::Reports;

/// Between words that a service is still wanted.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub(crate) async fn follow(holding: Arc<dyn Holding>, reports: Arc<Reports>) {
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = holding.news() => {
                for (service, news) in news {
                    if news.began {
                        reports.service_wanted(&service);
                    }
                    count(&service, &news);
                }
            }
            _ = again.tick() => {
                for service in holding.held().keys() {
                    reports.service_wanted(service);
                }
            }
        }
    }
}

fn count(service: &ServiceName, news: &HoldingNews) {
    METRICS.connections_held.inc_by(news.held);
    METRICS.connections_released.inc_by(news.released);
    METRICS.connections_refused.inc_by(news.refused);
    if let Some(waited) = news.waited {
        COLD_STARTS.observe(service, waited);
        tracing::info!(
            namespace = service.namespace,
            service = service.name,
            connections = news.released,
            ?waited,
            "connections that waited go on"
        );
    }
    if news.refused > 0 {
        // As many lines as packets, if somebody wants that: the counter tells of it as well.
        tracing::debug!(
            namespace = service.namespace,
            service = service.name,
            connections = news.refused,
            "connections that waited were refused: nothing served them in time, or there were too many"
        );
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use gantry_network::FakeHolding;
    use gantry_rpc::node::{Wake, agent_message};
    use tokio::time::Instant;

    use super::*;

    fn web() -> ServiceName {
        ServiceName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        }
    }

    async fn wanted(reports: &Reports) -> Wake {
        match reports.next_wanted().await.message {
            Some(agent_message::Message::Wake(wake)) => wake,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_is_wanted_at_once_and_each_second_while_somebody_waits() {
        let (holding, reports) = (
            Arc::new(FakeHolding::default()),
            Arc::new(Reports::new("n1")),
        );
        let following = tokio::spawn(follow(holding.clone(), reports.clone()));
        tokio::time::sleep(AGAIN / 2).await;
        let begun = Instant::now();
        let began = HoldingNews {
            began: true,
            held: 2,
            ..HoldingNews::default()
        };
        holding.happen(web(), 2, began);
        assert_eq!(wanted(&reports).await.service, "web");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..2 {
            assert_eq!(wanted(&reports).await.namespace, "shop");
        }
        assert_eq!(begun.elapsed(), AGAIN * 3 / 2);
        let released = HoldingNews {
            released: 2,
            waited: Some(Duration::from_millis(1500)),
            ..HoldingNews::default()
        };
        holding.happen(web(), 0, released);
        tokio::time::sleep(3 * AGAIN).await;
        assert!(reports.next_wanted().now_or_never().is_none());
        following.abort();
    }
}
